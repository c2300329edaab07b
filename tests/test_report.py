import re
import shutil

import numpy as np
import pandas as pd
import pytest
from made_results import PROFILE, cell, made, made_items

from oral_lib import figures, report, results, tables
from oral_lib.errors import OralError
from oral_lib.storage import write_json

BASELINES = [
    "majority", "base", "trained", "per-task soup", "all-task soup", "retrieval", "regression",
    "generated", "other text", "random words", "no text",
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
    report.write(root / "results", "lab")
    return root / "results"


def contents(folder) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_two_runs_give_the_same_bytes(folder, tmp_path):
    copy = tmp_path / "results"
    shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("tables", "figures", "README.md"))
    report.write(copy, "lab")
    assert contents(copy) == contents(folder)
    kinds = {name.rsplit(".", 1)[1] for name in contents(copy)}
    assert kinds == {"csv", "json", "parquet", "md", "tex", "png", "pdf", "svg"}


def test_figures_carry_no_date_and_fonts_that_can_be_edited(folder):
    made = contents(folder / "lab" / "figures")
    assert {name.split(".")[0].split("-")[0] for name in made} == {"methods", "conditions", "loss"}
    for name, data in made.items():
        assert not re.search(rb"CreationDate|<dc:date>|tIME", data), name
        if name.endswith(".pdf"):
            assert b"/Type3" not in data


def test_main_table_holds_every_baseline(folder):
    metrics, items = results.read(folder / "lab")
    table = report.main_table(metrics, "packages", items)
    assert [name for name in table if name in BASELINES] == BASELINES
    assert len(table) == 2 and (table[BASELINES] != tables.ABSENT).all(axis=None)
    row = table[table.task == "movie"].iloc[0]
    own = items[(items.task == "movie") & (items.method == "generated")]
    own = own[own.condition == "matched"].groupby("sample").correct.mean()
    assert row.generated == f"{100 * own.mean():.1f} ± {100 * own.std():.1f}"
    assert row.n == "100 / 60"
    readme = (folder / "README.md").read_text()
    for name in (*BASELINES, row.generated):
        assert f"| {name} |" in readme


def test_a_method_that_was_not_run_keeps_its_column():
    metrics, _ = made(profile={("base", "none"): (0.5, 1)}, n=20)
    table = report.main_table(metrics, "packages")
    assert table.loc[0, "generated"] == tables.ABSENT and set(BASELINES) <= set(table)


def test_seeds_are_averaged_and_sources_never_share_a_table():
    few = {("base", "none"): (0.5, 1), ("trained", "none"): (0.8, 2)}
    places = [cell(), cell(seed=1), cell(source="hub")]
    parts = [made(place, profile=few, n=60)[0] for place in places]
    table = report.main_table(pd.concat(parts), "packages")
    trained = [
        part[(part.method == "trained") & (part.metric == "accuracy")].value for part in parts
    ]
    assert len(table) == 1
    assert table.trained.item() == f"{50 * (trained[0].item() + trained[1].item()):.1f}"


def test_terminal_table_fits_and_marks_missing_signal(folder):
    metrics, items = results.read(folder / "lab")
    text = report.short_table(metrics, items)
    assert max(len(line) for line in text.splitlines()) <= 100
    assert "a_b †" in text and "movie †" not in text and "no signal" in text
    assert "†" not in report.short_table(metrics)


def test_readme_says_what_where_and_how_to_make_it_again(folder):
    readme = (folder / "README.md").read_text()
    for words in (
        "## lab",
        "language, source `packages`",
        "100 and 60 held-out items",
        "5 generated samples",
        "Commit abc",
        "Machine: abacus, 2 cores, 8.0 GiB, no GPU; Python 3.11, torch 2.13.",
        "Seeds of the run: generator 7; zoo 0 and 1.",
        "./reproduce.sh --scale lab --source packages",
        "a_b on minilm-l6** (no signal)",
        "| sampling |",
    ):
        assert words in readme
    for link in re.findall(r"\]\((.+?)\)", readme):
        assert (folder / link).is_file(), link


def test_readme_leaves_smoke_out_unless_it_is_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(figures, "save", lambda *_: [])  # takes its time and is tested above
    few = {("base", "none"): (0.5, 1), ("generated", "matched"): (0.8, 2)}
    one = results.write_cell(tmp_path / "one", *made(profile=few, n=20))
    for scale in ("lab", "smoke"):
        results.collect([one], tmp_path / "results" / scale)
    both = report.write(tmp_path / "results", "smoke").read_text()
    assert "## lab" in both and "## smoke" not in both
    shutil.rmtree(tmp_path / "results" / "lab")
    alone = report.write(tmp_path / "results", "smoke").read_text()
    assert "## smoke" in alone and "the numbers mean nothing" in alone


def test_report_refuses_broken_rows_and_writes_nothing(folder, tmp_path):
    copy = tmp_path / "results"
    shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("tables", "figures", "README.md"))
    path = copy / "lab" / "metrics.csv"
    text = path.read_text()
    for old, new, column in (("generated,", "conjured,", "method"), (",0.5,", ",50.0,", "value")):
        path.write_text(text.replace(old, new, 1))
        with pytest.raises(OralError, match=f": {column} "):
            report.write(copy, "lab")
    assert not (copy / "README.md").exists() and not (copy / "lab" / "tables").exists()


def test_latex_is_escaped():
    table = pd.DataFrame({"task": ["a_b & 50% #1 $x$ {y} ^~\\"], "value": ["86.0 ± 1.2"]})
    text = tables.latex(table)
    escaped = r"a\_b \& 50\% \#1 \$x\$ \{y\} \textasciicircum{}\textasciitilde{}\textbackslash{}"
    assert rf"{escaped} & 86.0 $\pm$ 1.2 \\" in text
    assert r"\begin{tabular}{lr}" in text and r"\toprule" in text and r"\bottomrule" in text
    assert tables.markdown(pd.DataFrame({"a": ["x|y"]})).splitlines()[-1] == r"| x\|y |"


# ---------------------------------------------------------------- the words follow the numbers
def words(**accuracies) -> tuple[str, str]:
    """Summary and paragraph of one cell; names are methods or conditions of the generator."""
    profile = dict(PROFILE)
    for name, accuracy in accuracies.items():
        key = next(key for key in profile if name in key)
        profile[key] = (accuracy, profile[key][1])
    items = made_items(cell(), profile, n=500, n_control=500, shake=0.2)
    compared = tables.contrasts(items)
    summary, paragraphs = report.verdict(compared)
    return " ".join(summary), paragraphs[0]


def test_words_when_all_targets_are_reached():
    summary, cell_words = words()
    assert "in 1 of 1 cells with signal" in summary and "missed" not in summary
    assert summary.count("**reached**") == 2
    assert "Generated is **within 2 points of trained**" in cell_words
    assert "Another task's text loses" in cell_words and "**reached**" in cell_words
    assert "The generator equals the per-task soup" in cell_words
    assert "does not show that diffusion is needed" in cell_words
    assert "parity with trained does not show that diffusion is needed" in summary


def test_words_when_the_generator_is_behind():
    summary, cell_words = words(matched=0.86, generated=0.78)
    assert (
        "in 0 of 1 cells with signal; the whole 95% interval does in 0. Target **missed**"
        in summary
    )
    assert "**more than 2 points below trained**: −" in cell_words
    assert "The generator is below the per-task soup" in cell_words


def test_words_when_the_generator_is_ahead_of_everything_simple():
    summary, cell_words = words(soup_task=0.7, retrieval=0.7, regression=0.7, trained=0.8)
    assert "Generated is **above trained**: +" in cell_words
    assert "The generator beats the per-task soup" in cell_words
    assert "diffusion is needed" not in cell_words
    assert "beats per-task soup, retrieval and regression in every cell" in summary


def test_words_when_the_text_does_not_matter():
    summary, cell_words = words(mismatched=0.80)
    assert (
        "loses at least 80% of the gain in 0 of 1 cells with signal. Target **missed**" in summary
    )
    assert "target of 80% **missed**" in cell_words


def test_words_when_there_is_no_signal():
    summary, cell_words = words(trained=0.5, generated=0.5)
    assert "No signal, and so no part in these counts: movie on minilm-l6" in summary
    assert "Target" not in summary and "(no signal)" in cell_words
    assert "diffusion" not in cell_words


def test_words_when_the_items_cannot_settle_it():
    compared = tables.contrasts(made_items(cell(), n=60))
    gap = (compared.what == "generated") & (compared.against == "trained")
    for difference, words in ((-0.01, "reaches below −2 points"), (-0.04, "still admits 2 points")):
        compared.loc[gap, ["difference", "ci_low", "ci_high"]] = difference, -0.09, 0.05
        assert words in report.verdict(compared)[1][0]


def test_words_when_something_was_not_run():
    items = made_items(cell(), {("base", "none"): (0.5, 1), ("trained", "none"): (0.8, 2)})
    summary, paragraphs = report.verdict(tables.contrasts(items))
    assert "Not judged" in " ".join(summary) and "were not both run" in paragraphs[0]
    assert "Target" not in " ".join(summary)


def test_gain_lost_is_measured_from_the_better_of_base_and_majority():
    """Trained 1, other text 0.75, majority 0.5, base 0.25: half the gain goes, not a third."""
    tables_of = []
    for method, condition, wrong in (
        ("base", "none", 75), ("majority", "none", 50), ("trained", "none", 0),
        ("generated", "matched", 0), ("generated", "mismatched", 25),
    ):  # fmt: skip
        logits = np.where((np.arange(100) < wrong)[:, None], [1.0, 0.0], [0.0, 1.0])
        rows = {"item": [str(i) for i in range(100)], "labels": np.ones(100, int)}
        tables_of.append(results.outcomes(cell(), method, condition, logits=logits, **rows))
    found = tables.contrasts(pd.concat(tables_of)).set_index("what").loc["lost with mismatched"]
    assert found.against == "majority" and found.difference == pytest.approx(0.5)
    assert 0.3 < found.ci_low < 0.5 < found.ci_high < 0.7


# ---------------------------------------------------------------- the notebooks' pictures
def test_pictures_of_the_method_show_what_they_are_given(tmp_path):
    random = np.random.default_rng(0)
    owner = np.repeat([0, 1], 4)
    tokens = figures.tokens_picture(random.normal(size=(8, 6)), owner, ["query A", "query B"])
    labels = [label.get_text() for label in tokens.axes[0].get_yticklabels()]
    assert labels == ["query A", "query B"]
    schedule = figures.schedule_picture(np.linspace(1, 0, 101))
    assert any("t = 50" in text.get_text() for text in schedule.axes[0].texts)
    prototypes = random.normal(size=(8, 5))
    likeness = figures.prototypes_picture(prototypes).axes[1].images[0].get_array()
    assert np.allclose(np.diag(likeness), 1) and likeness.shape == (8, 8)
    states, truth = np.linspace(random.normal(size=6), np.ones(6), 11), np.ones(6)
    steps = figures.denoising_picture(states, truth, steps=range(1000, -1, -100))
    assert steps.axes[0].get_title(loc="left") == "t = 1000"
    assert steps.axes[-1].lines[0].get_ydata()[-1] == pytest.approx(0)
    assert len(figures.save(schedule, tmp_path, "schedule")) == 3


def test_figures_show_the_numbers_of_the_rows(folder):
    metrics, items = results.read(folder / "lab")
    rows = tables.pooled(metrics[metrics.metric == "accuracy"])
    picture = figures.methods(rows, tables.per_sample(items))
    shown = {text.get_text() for axis in picture.axes for text in axis.texts}
    wanted = rows[rows.condition.isin(["none", "matched"])].value
    assert {f"{100 * value:.1f}" for value in wanted} <= shown
    controls = figures.conditions(rows)
    labels = [label.get_text() for label in controls.axes[0].get_yticklabels()]
    assert labels == ["own text", "another task's text", "random words", "no text"]


def test_loss_curves_of_the_seeds_of_a_task_share_a_name_and_a_colour():
    names = [
        "zoo of x/movie seed 0",
        "zoo of x/movie seed 1",
        "zoo of x/sarcasm seed 0",
        "gen/rating",
    ]
    frames = [pd.DataFrame({"series": n, "step": [1, 2, 3], "loss": [3.0, 2, 1]}) for n in names]
    picture = figures.loss_curves(pd.concat(frames))
    assert [axis.get_title(loc="left") for axis in picture.axes] == ["gen", "zoo of x"]
    labels = {text.get_text() for text in picture.axes[1].texts}
    assert labels == {"movie (2 seeds, 3 steps)", "sarcasm (3 steps)"}
    assert len({line.get_color() for line in picture.axes[1].lines}) == 2
