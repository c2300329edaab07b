import os
import re
import shutil
import subprocess
import sys

import matplotlib
import numpy as np
import pandas as pd
import pytest
from made_results import PROFILE, cell, made, made_items

from oral_lib import paths
from oral_lib.errors import OralError
from oral_lib.evaluation import item_tables, results
from oral_lib.report import (
    ablation_summary,
    build,
    cell_figures,
    comparisons,
    findings,
    formats,
    method_figures,
    overview_figures,
    readme,
    tables,
    theme,
    training_figures,
)
from oral_lib.report.comparisons import contrasts, trained_gains, without_signal
from oral_lib.report.findings import overview
from oral_lib.report.tables import MODELS, grid_legend, grid_table, ordered
from oral_lib.report.theme import BLUE, VERMILION
from oral_lib.scales import PAPER_TASKS
from oral_lib.storage import write_json

BASELINES = [
    "majority", "base", "trained", "adapter average (soup)", "all-task average (soup)", "retrieval",
    "regression", "generated", "wrong-task prompt", "random words", "empty prompt",
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """results/ with one scale of two cells, one of them without signal, and everything optional."""
    root = tmp_path_factory.mktemp("report")
    useless = {key: (0.5, samples) for key, (_, samples) in PROFILE.items()}
    cells = [
        results.write_cell(root / "one", *made(cell(task="movie"), n=100, n_control=60)),
        results.write_cell(
            root / "two", *made(cell(task="a_b"), profile=useless, n=100, n_control=60)
        ),
    ]
    lab = root / "results" / "lab"
    results.collect(cells, lab)
    row = dict.fromkeys(["benchmark", "variant", "case", "metric", "unit", "device"], "sampling")
    row |= {"values": 100, "value": 0.25, "repeats": 3, "commit": "abc"}
    results.append_benchmarks(lab / "benchmarks.csv", [row])
    machine = {"cpu": "abacus", "cores": 2, "memory_gib": 8.0, "gpu": []}
    zoo = [{"base": "minilm-l6", "task": "movie", "seed": seed} for seed in (0, 1, 0)]
    entry = {"hardware": machine, "versions": {"python": "3.11", "torch": "2.13"}}
    write_json(lab / "manifest.json", {"packages": entry | {"seeds": {"zoo": zoo, "generator": 7}}})
    steps = np.arange(20)
    curves = [
        pd.DataFrame({"series": s, "step": steps, "loss": 1 / (1 + steps)}) for s in ("g", "z/m")
    ]
    pd.concat(curves).to_csv(lab / "curves.csv", index=False)
    results.append_benchmarks(lab / "benchmarks.csv", stacking())
    shares = ablation().assign(source="packages", base="minilm-l6", task="movie")
    shares = shares.assign(n_items=100, commit="a")
    times = shares.assign(metric="seconds", value=12.5, ci_low=np.nan, ci_high=np.nan)
    pd.concat([shares, times]).to_csv(lab / "ablations.csv", index=False)
    results.append_novelty(lab / "novelty.csv", [novelty()])
    build.write_report(root / "results", "lab")
    return root / "results"


def stacking() -> list[dict]:
    """Benchmarks of training one and many LoRAs at once."""
    row = {"benchmark": "train LoRAs", "case": "minilm-l6", "values": 1, "repeats": 3}
    row |= {"device": "GPU", "commit": "abc", "metric": "adapters an hour", "unit": "1/h"}
    share = {"metric": "share of limit", "unit": "ratio"}
    ways = [("1 at once", 300.0, 0.1), ("64 at once", 4567.0, 0.4)]
    rows = [row | {"variant": name, "value": speed} for name, speed, _ in ways]
    rows += [row | share | {"variant": name, "value": part} for name, _, part in ways]
    return [*rows, row | {"variant": "plain", "value": 43.0}]


def ablation() -> pd.DataFrame:
    rows = [("token size", "256", 0.7, True), ("token size", "512", 0.6, False)]
    rows += [("objective", "v", 0.7, True), ("reference", "trained", 0.75, False)]
    frame = pd.DataFrame(rows, columns=["group", "variant", "value", "default"])
    frame = frame.assign(metric="accuracy")
    return frame.assign(ci_low=frame.value - 0.05, ci_high=frame.value + 0.05)


def novelty(**more) -> dict:
    row = dict.fromkeys(results.NOVELTY_COLUMNS, 1.0) | {"ratio": 0.87, "method": "generated"}
    row |= dict.fromkeys(["n_generated", "n_train", "n_held_out"], 2) | {"seed": 0, "commit": "a"}
    place = {"experiment": "language", "source": "packages", "base": "minilm-l6", "task": "movie"}
    return row | place | more


def contents(folder) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_two_runs_give_the_same_bytes(folder, tmp_path):
    copy = tmp_path / "results"
    shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("tables", "figures", "README.md"))
    build.write_report(copy, "lab")
    assert contents(copy) == contents(folder)
    kinds = {name.rsplit(".", 1)[1] for name in contents(copy)}
    assert kinds == {"csv", "json", "parquet", "md", "tex", "png", "pdf", "svg"}


def test_figures_carry_no_date_and_fonts_that_can_be_edited(folder):
    files = contents(folder / "lab" / "figures")
    kinds = {"parity", "auc", "gaps", "controls", "loss", "ablations", "benchmarks"}
    assert {name.split(".")[0].split("-")[0] for name in files} == kinds
    for name, data in files.items():
        assert not re.search(rb"CreationDate|<dc:date>|tIME", data), name
        if name.endswith(".pdf"):
            assert b"/Type3" not in data


def test_main_table_holds_every_baseline(folder):
    metrics, items = results.read(folder / "lab")
    table = tables.main_table(metrics, "packages", items)
    assert [name for name in table if name in BASELINES] == BASELINES
    assert len(table) == 2 and (table[BASELINES] != formats.ABSENT).all(axis=None)
    row = table[table.task == "movie"].iloc[0]
    generated = items[(items.task == "movie") & (items.method == "generated")]
    means = generated[generated.condition == "matched"].groupby("sample").correct.mean()
    assert row.generated == f"{100 * means.mean():.1f} ± {100 * means.std():.1f}"
    assert row.n == "100 / 60"
    text = (folder / "README.md").read_text()
    for name in (*BASELINES, row.generated):
        assert f"| {name} |" in text


def test_a_method_that_was_not_run_keeps_its_column():
    metrics, _ = made(profile={("base", "none"): (0.5, 1)}, n=20)
    table = tables.main_table(metrics, "packages")
    assert table.loc[0, "generated"] == formats.ABSENT and set(BASELINES) <= set(table)
    assert not {"Gaussian", "small noise", "unconditional"} & set(table)


# ---------------------------------------------------------------- tasks by base models
FEW = {
    ("base", "none"): (0.5, 1),
    ("trained", "none"): (0.8, 3),
    ("generated", "matched"): (0.8, 2),
}


def test_the_grid_shows_every_cell_and_says_why_one_is_missing(monkeypatch):
    written = item_tables.answer_items(
        cell("gsm8k", "smollm2-135m", source="local"), "trained", "none",
        item=["a", "b"], correct=[True, False],
    )  # fmt: skip
    cells = [made(cell(t, source="local"), profile=FEW, n=40) for t in ("sst2", "extra")]
    metrics = [rows for rows, _ in cells]
    metrics.append(item_tables.summarise(written, family="language", base_version="t0", commit="a"))
    items = item_tables.join([rows for _, rows in cells] + [written])
    monkeypatch.setattr(
        "oral_lib.report.tables.impossible", lambda b, t: t == "gsm8k" and b.startswith("mini")
    )
    no_signal = {("language", "local", "minilm-l6", "extra")}
    grid = grid_table(pd.concat(metrics), "local", items, no_signal=no_signal).set_index("task")
    assert list(grid.index) == [*PAPER_TASKS, "extra"]  # no model has every task: no mean
    assert list(grid.columns) == list(MODELS)
    cell_items = items[items.task == "sst2"]
    texts = []
    for method in ("trained", "generated"):
        means = cell_items[cell_items.method == method].groupby("sample").correct.mean()
        texts.append(f"{100 * means.mean():.1f} ± {100 * means.std():.1f}")
    base = 100 * cell_items[cell_items.method == "base"].correct.mean()
    assert grid.loc["sst2", "minilm-l6"] == f"{' / '.join(texts)} [{base:.1f}]"
    assert grid.loc["gsm8k", "smollm2-135m"] == "50.0 / –"
    assert grid.loc["gsm8k", "minilm-l6"] == formats.IMPOSSIBLE
    assert grid.loc["sst2", "gemma-3-270m"] == formats.ABSENT
    assert " † [" in grid.loc["extra", "minilm-l6"] and "†" not in grid.loc["sst2", "minilm-l6"]
    legend = grid_legend(grid.reset_index())
    for sign in (formats.NO_SIGNAL, formats.IMPOSSIBLE, formats.ABSENT):
        assert f"{sign} " in legend


def test_the_grid_puts_the_base_model_in_small_print():
    frame = pd.concat([made(cell(t), profile=FEW, n=20)[0] for t in ("one", "two")])
    grid = grid_table(frame, "packages")
    base = frame[(frame.method == "base") & (frame.metric == "accuracy")].value
    assert grid.task.tolist() == ["one", "two", "mean"]
    assert grid["minilm-l6"].iloc[-1].endswith(f"[{100 * base.mean():.1f}]")
    assert f"<br><sub>[{100 * base.mean():.1f}]</sub> |" in formats.markdown(grid)
    assert f"{{\\footnotesize [{100 * base.mean():.1f}]}}" in formats.latex(grid)
    assert "±" not in grid_legend(grid) and formats.NO_SIGNAL not in grid_legend(grid)


def test_the_paper_order_and_an_encoder_that_cannot_write():
    rows = pd.DataFrame({"base": ["minilm-l6"], "task": ["rte"], "source": ["hub"]})
    rows["experiment"] = "language"
    assert ordered(rows.assign(experiment="vision"), "task") == ["rte"]
    assert ordered(rows, "task") == [*PAPER_TASKS]
    assert ordered(rows.assign(source="packages"), "task") == ["rte"]
    assert ordered(rows.assign(base="tiny"), "base") == ["tiny"]


def test_targets_are_those_of_the_contrasts():
    compared = contrasts(made_items(cell(), n=200, n_control=200))
    row = tables.targets_table(compared).iloc[0]
    contrast = compared.set_index(["what", "against"])
    assert row["generated − trained"].startswith(
        f"{100 * contrast.loc[('generated', 'trained'), 'difference']:+.1f}".replace("-", "−")
    )
    lost = {n.split()[-1]: r.difference for (n, _), r in contrast.iterrows() if "lost" in n}
    assert row["kept, held-out paraphrase"].startswith(f"{100 * (1 - lost['paraphrase']):.0f}% (")
    assert row["lost, wrong-task prompt"].startswith(f"{100 * lost['mismatched']:.0f}% (")


def test_answers_and_three_labels_leave_auc_tables_out():
    answers = {"item": ["a", "b"], "correct": [True, False]}
    written = item_tables.answer_items(cell(), "base", "none", **answers)
    assert comparisons.per_sample(written, "auc").empty
    assert (
        comparisons.per_sample(made(profile=FEW, n=20)[1], "calibrated_accuracy")
        .value.notna()
        .all()
    )


def test_novelty_is_averaged_over_seeds_and_keeps_the_smallest_ratio():
    rows = pd.DataFrame([novelty(ratio_low=0.5), novelty(seed=1, ratio=0.89, ratio_low=0.7)])
    [line] = tables.novelty_table(rows, "packages").to_dict("records")
    assert line["ratio"] == "0.88" and line["smallest ratio"] == "0.5"
    assert tables.novelty_table(rows, "hub").empty


def test_seeds_are_averaged_and_sources_never_share_a_table():
    few = {("base", "none"): (0.5, 1), ("trained", "none"): (0.8, 2)}
    places = [cell(), cell(seed=1), cell(source="hub")]
    parts = [made(place, profile=few, n=60)[0] for place in places]
    table = tables.main_table(pd.concat(parts), "packages")
    trained = [
        part[(part.method == "trained") & (part.metric == "accuracy")].value for part in parts
    ]
    assert len(table) == 1
    assert table.trained.item() == f"{50 * (trained[0].item() + trained[1].item()):.1f}"


def test_terminal_table_fits_and_marks_missing_signal(folder):
    metrics, items = results.read(folder / "lab")
    text = tables.short_table(metrics, items)
    assert max(len(line) for line in text.splitlines()) <= 100
    assert "a_b †" in text and "movie †" not in text and "no signal" in text
    assert "†" not in tables.short_table(metrics)


def test_readme_says_what_where_and_how_to_make_it_again(folder):
    text = (folder / "README.md").read_text()
    for words in (
        "## lab",
        "language, source `packages`",
        "100 and 60 held-out items",
        "generated samples of each: 5.",
        "Commit: abc.",
        "Machine: abacus, 2 cores, 8.0 GiB, no GPU; Python 3.11, torch 2.13.",
        "Seeds: generator 7; zoo 0 and 1.",
        "./reproduce.sh --scale lab --source packages",
        "a_b on minilm-l6** (no signal)",
        "| sampling |",
        "| minilm-l6 | movie | generated | 0.87 |",
        "targets, cell by cell",
    ):
        assert words in text
    for link in re.findall(r"\]\((.+?)\)", text):
        assert (folder / link).is_file(), link


def test_readme_says_which_cells_another_commit_measured():
    few = {("base", "none"): (0.5, 1), ("generated", "matched"): (0.8, 2)}
    cells = [cell(seed=seed, task=task) for task in ("movie", "b") for seed in (0, 1)]
    rows = [made(place, profile=few, n=20)[0] for place in cells]
    rows[0].commit = rows[1].commit = rows[2].commit = "new"
    rows[3].commit = "old"
    assert readme._commits(pd.concat(rows[:3])) == ["- Commit: new."]
    first, second = readme._commits(pd.concat(rows))
    assert "new, to which the manifest belongs" in first
    assert second == "  - old: b on minilm-l6 (seed 1)."
    assert readme._commits(pd.concat(rows[:1] + rows[3:]))[1] == "  - old: b on minilm-l6."


def test_readme_leaves_smoke_out_unless_it_is_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(theme, "save_figure", lambda *_: [])  # takes its time and is tested above
    few = {("base", "none"): (0.5, 1), ("generated", "matched"): (0.8, 2)}
    one = results.write_cell(tmp_path / "one", *made(profile=few, n=20))
    for scale in ("lab", "smoke"):
        results.collect([one], tmp_path / "results" / scale)
    both = build.write_report(tmp_path / "results", "smoke").read_text()
    assert "## lab" in both and "## smoke" not in both
    shutil.rmtree(tmp_path / "results" / "lab")
    alone = build.write_report(tmp_path / "results", "smoke").read_text()
    assert "## smoke" in alone and "the numbers mean nothing" in alone


def test_report_refuses_broken_rows_and_writes_nothing(folder, tmp_path):
    copy = tmp_path / "results"
    shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("tables", "figures", "README.md"))
    path = copy / "lab" / "metrics.csv"
    text = path.read_text()
    for old, new, column in (("generated,", "conjured,", "method"), (",0.5,", ",50.0,", "value")):
        path.write_text(text.replace(old, new, 1))
        with pytest.raises(OralError, match=f": {column} "):
            build.write_report(copy, "lab")
    assert not (copy / "README.md").exists() and not (copy / "lab" / "tables").exists()


def test_latex_is_escaped():
    table = pd.DataFrame({"task": ["a_b & 50% #1 $x$ {y} ^~\\"], "value": ["86.0 ± 1.2"]})
    text = formats.latex(table)
    escaped = r"a\_b \& 50\% \#1 \$x\$ \{y\} \textasciicircum{}\textasciitilde{}\textbackslash{}"
    assert rf"{escaped} & 86.0 $\pm$ 1.2 \\" in text
    assert r"\begin{tabular}{lr}" in text and r"\toprule" in text and r"\bottomrule" in text
    assert formats.markdown(pd.DataFrame({"a": ["x|y"]})).splitlines()[-1] == r"| x\|y |"


# ---------------------------------------------------------------- the words follow the numbers
def words(**accuracies) -> tuple[str, str]:
    """Summary and paragraph of one cell; names are methods or conditions of the generator."""
    profile = dict(PROFILE)
    for name, accuracy in accuracies.items():
        key = next(key for key in profile if name in key)
        profile[key] = (accuracy, profile[key][1])
    items = made_items(cell(), profile, n=500, n_control=500, shake=0.2)
    compared = contrasts(items)
    summary, paragraphs = findings.verdict(compared)
    return " ".join(summary), paragraphs[0]


def test_words_when_all_targets_are_reached():
    summary, cell_words = words()
    assert "in 1 of 1 cells with signal" in summary and "missed" not in summary
    assert summary.count("**reached**") == 3
    assert "Generated is **within half a point of trained**" in cell_words
    assert "A held-out paraphrase keeps" in cell_words
    assert "A wrong-task prompt loses" in cell_words and "**reached**" in cell_words
    assert "The generator equals soup" in cell_words
    assert "does not show that diffusion is needed" in cell_words
    assert "Matching trained therefore does not show that diffusion is needed" in summary


def test_words_when_the_generator_is_behind():
    summary, cell_words = words(matched=0.86, generated=0.78)
    missed = r"in 0 of 1 cells with signal\. .* Target \*\*missed\*\* by:\n  - movie on minilm-l6"
    assert re.search(missed + r" \(−\d+\.\d, −\d+\.\d to −\d+\.\d\)", summary)
    assert "By the mean: 0; by the interval only: 0; by neither: 1." in summary
    assert "Generated is **below trained**: −" in cell_words
    assert "The generator is below soup" in cell_words


def test_words_when_the_generator_is_ahead_of_everything_simple():
    summary, cell_words = words(soup_task=0.7, retrieval=0.7, regression=0.7, trained=0.8)
    assert "Generated is **above trained**: +" in cell_words
    assert "The generator beats soup" in cell_words
    assert "diffusion is needed" not in cell_words
    assert "beats soup, retrieval and regression in every cell" in summary


def test_words_when_the_text_does_not_matter():
    summary, cell_words = words(mismatched=0.80)
    counted = "Wrong-task prompts lose at least 80% of the gain in 0 of 1 cells with signal."
    assert f"{counted} Target **missed** by:\n  - movie on minilm-l6 (loses " in summary
    assert "target of 80% **missed**" in cell_words


def test_words_when_a_held_out_paraphrase_costs_too_much():
    summary, cell_words = words(paraphrase=0.76)
    counted = "Held-out paraphrases keep at least 95% of the gain in 0 of 1 cells with signal."
    assert f"{counted} Target **missed** by:\n  - movie on minilm-l6 (keeps " in summary
    assert "target of 95% **missed**" in cell_words


def test_words_name_the_simple_methods_that_do_as_well():
    summary, _ = words(soup_task=0.7, retrieval=0.7)
    assert ": soup in 0, retrieval in 0 and regression in 1." in summary


@pytest.mark.parametrize(
    ("estimate", "words"),
    [
        ((-0.004, -0.005, -0.003), "within half a point of trained"),
        ((-0.02, -0.05, 0.01), "not significantly below trained"),
        ((-0.006, -0.011, -0.001), "below trained"),
        ((0.02, 0.01, 0.03), "above trained"),
    ],
)
def test_parity_is_half_a_point_or_an_interval_that_contains_zero(estimate, words):
    compared = contrasts(made_items(cell(), n=60))
    gap = (compared.what == "generated") & (compared.against == "trained")
    compared.loc[gap, ["difference", "ci_low", "ci_high"]] = estimate
    summary, [paragraph] = findings.verdict(compared)
    assert f"Generated is **{words}**" in paragraph
    assert ("1 of 1" if words != "below trained" else "0 of 1") in summary[0]


def test_words_when_there_is_no_signal():
    summary, cell_words = words(trained=0.5, generated=0.5)
    assert "Cells without signal are excluded from these counts" in summary
    assert "\n  - minilm-l6: movie" in summary
    assert "Target" not in summary and "(no signal)" in cell_words
    assert "diffusion" not in cell_words


def test_words_when_the_items_cannot_settle_it():
    compared = contrasts(made_items(cell(), n=60))
    gap = (compared.what == "generated") & (compared.against == "trained")
    compared.loc[gap, ["difference", "ci_low", "ci_high"]] = -0.01, -0.09, 0.05
    summary, [paragraph] = findings.verdict(compared)
    assert "extends below −0.5 points: these items are too few to decide" in paragraph
    assert "By the mean: 0; by the interval only: 1; by neither: 0." in summary[0]


def test_words_when_generated_is_significantly_below_but_near():
    compared = contrasts(made_items(cell(), n=60))
    gap = (compared.what == "generated") & (compared.against == "trained")
    compared.loc[gap, ["difference", "ci_low", "ci_high"]] = -0.003, -0.004, -0.002
    summary, [paragraph] = findings.verdict(compared)
    assert "Generated is **within half a point of trained**" in paragraph
    assert "By the mean: 1; by the interval only: 0; by neither: 0." in summary[0]


def test_the_overview_counts_the_cells_with_signal_that_reach_a_target():
    useless = {key: (0.5, samples) for key, (_, samples) in PROFILE.items()}
    behind = PROFILE | {("generated", "matched"): (0.7, 5), ("generated", "paraphrase"): (0.55, 2)}
    cells = [(cell("movie"), PROFILE), (cell("sarcasm"), behind), (cell("rte"), useless)]
    cells.append((cell("digits", experiment="vision"), PROFILE))
    items = pd.concat([made_items(place, profile, 500, 500, 0.2) for place, profile in cells])
    table = overview(contrasts(items)).set_index("experiment").drop(columns="source")
    assert list(table.loc["language"]) == [3, 2, "1 of 2", "1 of 2", "2 of 2", "0 of 2"]
    assert list(table.loc["vision"]) == [1, 1, "1 of 1", "1 of 1", "1 of 1", "0 of 1"]


def test_words_when_something_was_not_run():
    items = made_items(cell(), {("base", "none"): (0.5, 1), ("trained", "none"): (0.8, 2)})
    summary, paragraphs = findings.verdict(contrasts(items))
    assert "Not evaluated" in " ".join(summary) and "were not both measured" in paragraphs[0]
    assert "Target" not in " ".join(summary)


def test_gain_lost_is_measured_from_the_better_of_base_and_majority():
    """Trained 1, wrong-task prompt 0.75, majority 0.5, base 0.25: half the gain is lost."""
    outcomes = []
    for method, condition, wrong in (
        ("base", "none", 75), ("majority", "none", 50), ("trained", "none", 0),
        ("generated", "matched", 0), ("generated", "mismatched", 25),
    ):  # fmt: skip
        logits = np.where((np.arange(100) < wrong)[:, None], [1.0, 0.0], [0.0, 1.0])
        rows = {"item": [str(i) for i in range(100)], "labels": np.ones(100, int)}
        outcomes.append(item_tables.label_items(cell(), method, condition, logits=logits, **rows))
    row = contrasts(pd.concat(outcomes)).set_index("what").loc["lost with mismatched"]
    assert row.against == "majority" and row.difference == pytest.approx(0.5)
    assert 0.3 < row.ci_low < 0.5 < row.ci_high < 0.7


# ---------------------------------------------------------------- figures
def test_figures_of_the_method_draw_their_arrays(tmp_path):
    random = np.random.default_rng(0)
    owner = np.repeat([0, 1], 4)
    tokens = method_figures.tokens_figure(random.normal(size=(8, 6)), owner, ["query A", "query B"])
    labels = [label.get_text() for label in tokens.axes[0].get_yticklabels()]
    assert labels == ["query A", "query B"]
    schedule = method_figures.schedule_figure(np.linspace(1, 0, 101))
    assert any("t = 50" in text.get_text() for text in schedule.axes[0].texts)
    prototypes = random.normal(size=(8, 5))
    similarity = method_figures.prototypes_figure(prototypes).axes[1].images[0].get_array()
    assert np.allclose(np.diag(similarity), 1) and similarity.shape == (8, 8)
    states, truth = np.linspace(random.normal(size=6), np.ones(6), 11), np.ones(6)
    steps = method_figures.denoising_figure(states, truth, steps=range(1000, -1, -100))
    assert steps.axes[0].get_title(loc="left") == "t = 1000"
    assert steps.axes[-1].lines[0].get_ydata()[-1] == pytest.approx(0)
    assert len(theme.save_figure(schedule, tmp_path, "schedule")) == 3


def test_images_of_a_style_lie_in_rows_named_after_their_adapters(tmp_path):
    random = np.random.default_rng(0)
    rows = {n: random.integers(0, 256, (3, 3, 8, 8), np.uint8) for n in ("real", "base", "trained")}
    figure = method_figures.style_figure(rows)
    drawn = [axis.images[0].get_array() for axis in figure.axes]
    assert all(np.array_equal(a, b) for a, b in zip(
        drawn, (p.transpose(1, 2, 0) for row in rows.values() for p in row), strict=True
    ))  # fmt: skip
    boxes = [axis.get_position() for axis in figure.axes]
    assert [box.x0 for box in boxes[:3]] == pytest.approx([box.x0 for box in boxes[3:6]])
    assert boxes[0].y0 - boxes[3].y1 > boxes[3].y0 - boxes[6].y1 > 0  # a gap below the real ones
    assert set(rows) <= {text.get_text() for text in figure.texts}
    assert len(theme.save_figure(figure, tmp_path, "style")) == 3


def test_a_table_of_a_style_has_the_real_images_first_and_then_the_methods():
    about = {"experiment": "style", "source": "made", "base": "b", "task": "t", "n_items": 9}
    about |= {"condition": "none", "ci_low": 0.0, "ci_high": 0.0, "n_samples": 2}
    numbers = {
        ("trained", "fid"): (24.4, 0.51), ("trained", "denoising_error"): (0.3261, 0.0106),
        ("base", "fid"): (101.26, 2.0), ("base", "frechet_floor"): (9.0, 0.3),
        ("base", "denoising_error"): (0.4562, 0.0153),
    }  # fmt: skip
    rows = [
        about | {"method": method, "metric": metric, "value": value, "stderr": stderr}
        for (method, metric), (value, stderr) in numbers.items()
    ]
    table = tables.style_table(pd.DataFrame(rows))
    assert list(table.columns) == ["method", "fid", "denoising error", "adapters"]
    assert table.to_numpy().tolist() == [
        ["training images", "9.0 ± 0.3", "–", ""],
        ["base", "101.3 ± 2.0", "0.456 ± 0.015", 2],
        ["trained", "24.4 ± 0.5", "0.326 ± 0.011", 2],
    ]
    lines = tables.short_table(pd.DataFrame(rows)).splitlines()  # no method has an accuracy
    assert lines[0] == "Style t on b, source made" and len(lines) == 2 + 1 + len(table)
    without = pd.DataFrame(rows)[lambda frame: frame.metric != "frechet_floor"]
    assert list(tables.style_table(without).method) == ["base", "trained"]


def test_figures_show_the_numbers_of_the_rows(folder):
    metrics, items = results.read(folder / "lab")
    rows = comparisons.pooled(metrics[metrics.metric == "accuracy"])
    figure = cell_figures.methods(rows, comparisons.per_sample(items))
    drawn = {text.get_text() for axis in figure.axes for text in axis.texts}
    wanted = rows[rows.condition.isin(["none", "matched"])].value
    assert {f"{100 * value:.1f}" for value in wanted} <= drawn
    controls = cell_figures.conditions(rows)
    labels = [label.get_text() for label in controls.axes[0].get_yticklabels()]
    others = ["held-out paraphrase", "wrong-task prompt", "random words", "empty prompt"]
    assert labels == ["task's own prompt", *others]


def test_loss_curves_of_the_seeds_of_a_task_share_a_name_and_a_colour():
    names = [
        "zoo of x/movie seed 0",
        "zoo of x/movie seed 1",
        "zoo of x/sarcasm seed 0",
        "gen/rating",
    ]
    frames = [pd.DataFrame({"series": n, "step": [1, 2, 3], "loss": [3.0, 2, 1]}) for n in names]
    figure = training_figures.loss_curves(pd.concat(frames))
    assert [axis.get_title(loc="left") for axis in figure.axes] == ["gen", "zoo of x"]
    labels = {text.get_text() for text in figure.axes[1].texts}
    assert labels == {"movie (2 seeds, 3 steps)", "sarcasm (3 steps)"}
    assert len({line.get_color() for line in figure.axes[1].lines}) == 2


def test_parity_draws_both_intervals_and_the_difference_of_every_cell(folder):
    metrics, items = results.read(folder / "lab")
    rows = comparisons.pooled(metrics[metrics.metric == "accuracy"])
    figure = overview_figures.parity(rows, without_signal(trained_gains(items)))
    axes = {axis.get_title(loc="left"): axis for axis in figure.axes}
    assert list(axes) == ["minilm-l6"]  # of two tasks of packages only what was run
    whole = overview_figures.parity(rows.assign(source="local"))
    assert [axis.get_title(loc="left") for axis in whole.axes] == list(MODELS)
    axis = axes["minilm-l6"]
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert labels == ["a b", "movie"]
    drawn = {tuple(line.get_xdata()) for line in axis.lines}
    for method in ("trained", "generated"):
        row = rows[(rows.task == "movie") & (rows.method == method)].iloc[0]
        assert (100 * row.ci_low, 100 * row.ci_high) in drawn and (100 * row.value,) in drawn
    texts = [text.get_text() for text in axis.texts]
    assert texts.count("no signal") == 1 and "not run" not in texts
    [gap] = [a for a in whole.axes if a.get_title(loc="left") == "gemma-3-270m"]
    assert {text.get_text() for text in gap.texts} == {"not run"}


def test_parity_in_auc_leaves_out_the_tasks_that_have_none():
    parts = [made(cell(task, source="local"), profile=FEW, n=20)[0] for task in ("sst2", "rte")]
    rows = pd.concat(parts)
    for metric, count in (("accuracy", len(PAPER_TASKS)), ("auc", 2)):
        figure = overview_figures.parity(comparisons.pooled(rows[rows.metric == metric]))
        assert len(figure.axes[0].get_yticklabels()) == count


def test_gaps_draw_the_paired_interval_and_mark_intervals_below_zero(folder):
    compared = contrasts(results.read(folder / "lab")[1])
    gap = (compared.what == "generated") & (compared.against == "trained")
    bad = compared.task == "movie"
    compared.loc[gap & bad, ["difference", "ci_low", "ci_high"]] = -0.02, -0.03, -0.01
    compared.loc[gap & ~bad, ["difference", "ci_low", "ci_high"]] = 0.002, -0.08, 0.01
    [axis] = overview_figures.gaps(compared).axes
    drawn = {tuple(np.round(line.get_xdata(), 6)): line.get_color() for line in axis.lines}
    assert drawn[-3.0, -1.0] == drawn[(-2.0,)] == VERMILION
    assert drawn[-4.0, 1.0] == drawn[(0.2,)] == BLUE  # cut at the edge of the panel


def test_controls_draw_what_is_kept_and_nothing_without_signal(folder):
    compared = contrasts(results.read(folder / "lab")[1])
    figure = overview_figures.controls(compared)
    axis = next(a for a in figure.axes if a.get_title(loc="left") == "minilm-l6")
    assert [text.get_text() for text in axis.texts] == ["no signal"]
    drawn = [line.get_xdata()[0] for line in axis.lines if len(line.get_xdata()) == 1]
    lost = compared[(compared.task == "movie") & compared.what.str.startswith("lost")].difference
    assert len(lost) == 4 and drawn == pytest.approx(100 * (1 - lost.to_numpy()))


def test_a_probe_that_equals_the_adapters_does_not_take_their_signal():
    places = [cell("digits", "efficientnet-lite0", experiment="vision"), cell("movie")]
    useless = {key: (0.5, samples) for key, (_, samples) in PROFILE.items()}
    probe = {("linear_probe", "none"): PROFILE["trained", "none"]}
    items = pd.concat([made_items(places[0], PROFILE | probe), made_items(places[1], useless)])
    compared = contrasts(items)
    [row] = compared[compared.against.eq("linear_probe") & compared.what.eq("trained")].itertuples()
    assert row.ci_low <= 0 <= row.ci_high
    no_signal = {("language", "packages", "minilm-l6", "movie")}
    assert without_signal(compared) == without_signal(trained_gains(items)) == no_signal
    [axis] = overview_figures.controls(compared[compared.experiment == "vision"]).axes
    assert "no signal" not in {text.get_text() for text in axis.texts}


def test_ablations_mark_the_default_and_draw_the_reference():
    figure = ablation_summary.ablation_figure(ablation())
    assert [axis.get_title(loc="left").strip() for axis in figure.axes] == [
        "token size", "objective",
    ]  # fmt: skip
    axis = figure.axes[0]
    dots = [line for line in axis.lines if line.get_marker() == "o"]
    assert [line.get_markerfacecolor() == "white" for line in dots] == [False, True]
    assert [list(line.get_xdata()) for line in dots] == [[70], [60]]
    assert [75, 75] in [list(line.get_xdata()) for line in axis.lines]


def test_an_ablation_is_the_mean_over_tasks_with_independent_errors():
    table = ablation_summary.ablation_means(
        pd.concat([ablation(), ablation().assign(value=0.8)] * 2)
    )
    assert table.variant.tolist() == ["256", "512", "v", "trained"]
    assert table.default.tolist() == [True, False, True, False]
    same = ablation_summary.ablation_means(pd.concat([ablation()] * 4)).iloc[0]
    assert same.value == pytest.approx(0.7) and table.value[1] == pytest.approx(0.7)
    assert same.ci_high - same.value == pytest.approx(0.05 / 2)  # four tasks: half the error


def test_training_speed_draws_many_at_once_and_plain_peft():
    frame = pd.DataFrame(stacking())
    speed, share = training_figures.training_speed(frame).axes
    assert list(speed.lines[0].get_xdata()) == [1, 64]
    assert list(speed.lines[0].get_ydata()) == [300, 4567]
    assert {"4,567", "PEFT, one by one: 43"} <= {text.get_text() for text in speed.texts}
    assert list(share.lines[0].get_ydata()) == [10, 40]


# --- the look --------------------------------------------------------------------------------

DRAW = """
import sys
from pathlib import Path
import numpy as np, pandas as pd
from oral_lib.report import method_figures, theme, training_figures
steps = np.arange(20)
curves = [pd.DataFrame({"series": s, "step": steps, "loss": 1 / (1 + steps)}) for s in ("g", "z/m")]
figures = {
    "loss": training_figures.loss_curves(pd.concat(curves)),
    "schedule": method_figures.schedule_figure(np.linspace(1, 0, 50)),
}
for name, figure in figures.items():
    theme.save_figure(figure, Path(sys.argv[1]), name)
    Path(sys.argv[1], f"{name}-in-a-notebook.png").write_bytes(figure._repr_png_())
"""
RC = """
text.usetex: True
axes.grid: True
axes.prop_cycle: cycler("color", ["r"])
figure.constrained_layout.use: False
font.family: serif
font.size: 30
lines.linewidth: 5
path.sketch: 1, 100, 2
path.simplify: False
savefig.bbox: tight
savefig.dpi: 10
savefig.transparent: True
svg.fonttype: none
text.hinting: no_autohint
"""


@pytest.mark.parametrize(
    "backend", ["svg", "tkagg", "module://matplotlib_inline.backend_inline", ""]
)
def test_a_figure_has_the_same_bytes_whatever_the_user_has_set(tmp_path, backend):
    def drawn(name: str, **settings: str) -> dict[str, bytes]:
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("MPL", "MATPLOTL"))}
        environment |= {"PYTHONPATH": str(paths.ROOT), "MATPLOTLIBRC": os.devnull} | settings
        (tmp_path / name).mkdir()
        command = [sys.executable, "-P", "-c", DRAW, str(tmp_path / name)]
        subprocess.run(command, env=environment, cwd=tmp_path, check=True)
        return contents(tmp_path / name)

    (tmp_path / "matplotlibrc-of-a-user").write_text(RC)
    usual = drawn("usual")
    assert len(usual) == 8
    rc = str(tmp_path / "matplotlibrc-of-a-user")
    assert drawn("of a user", MATPLOTLIBRC=rc, MPLBACKEND=backend) == usual


def test_the_settings_of_the_user_are_back_after_a_figure():
    with matplotlib.rc_context({"lines.linewidth": 7.0}):
        with theme.styled():
            assert matplotlib.rcParams["lines.linewidth"] == 1.5
            assert matplotlib.rcParams["font.size"] == 12
        assert matplotlib.rcParams["lines.linewidth"] == 7.0
