import re
import shutil

import numpy as np
import pandas as pd
import pytest
from made_results import PROFILE, ablation, cell, made, stacking

from oral_lib.errors import OralError
from oral_lib.evaluation import item_tables, results, small_tables
from oral_lib.planning.tables import PAPER_TASKS
from oral_lib.report import (
    build,
    comparisons,
    formats,
    pages,
)
from oral_lib.report.figures import theme
from oral_lib.report.studies import ablation_summary
from oral_lib.report.tables import methods, studies
from oral_lib.report.tables.grid import MODELS, grid_legend, grid_table, ordered
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
    small_tables.BENCHMARKS.append(lab, [row])
    machine = {"cpu": "abacus", "cores": 2, "memory_gib": 8.0, "gpu": []}
    zoo = [{"base": "minilm-l6", "task": "movie", "seed": seed} for seed in (0, 1, 0)]
    entry = {"hardware": machine, "versions": {"python": "3.11", "torch": "2.13"}}
    write_json(lab / "manifest.json", {"packages": entry | {"seeds": {"zoo": zoo, "generator": 7}}})
    steps = np.arange(20)
    curves = [
        pd.DataFrame({"series": s, "step": steps, "loss": 1 / (1 + steps)}) for s in ("g", "z/m")
    ]
    pd.concat(curves).to_csv(lab / "curves.csv", index=False)
    small_tables.BENCHMARKS.append(lab, stacking())
    shares = ablation().assign(source="packages", base="minilm-l6", task="movie")
    shares = shares.assign(n_items=100, commit="a")
    times = shares.assign(metric="seconds", value=12.5, ci_low=np.nan, ci_high=np.nan)
    pd.concat([shares, times]).to_csv(lab / "ablations.csv", index=False)
    small_tables.NOVELTY.append(lab, [novelty()])
    build.write_report(root / "results", "lab")
    return root / "results"


def novelty(**more) -> dict:
    row = dict.fromkeys(small_tables.NOVELTY.columns, 1.0) | {"ratio": 0.87, "method": "generated"}
    row |= dict.fromkeys(["n_generated", "n_train", "n_held_out"], 2) | {"seed": 0, "commit": "a"}
    place = {"experiment": "language", "source": "packages", "base": "minilm-l6", "task": "movie"}
    return row | place | more


def contents(folder) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_two_runs_give_the_same_bytes(folder, tmp_path):
    copy = tmp_path / "results"
    shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("tables", "figures", "*.md"))
    build.write_report(copy, "lab")
    assert contents(copy) == contents(folder)
    kinds = {name.rsplit(".", 1)[1] for name in contents(copy)}
    assert kinds == {"csv", "json", "parquet", "md", "tex", "png", "svg"}


def test_files_of_an_earlier_report_are_removed_but_not_the_images_with_answers(folder, tmp_path):
    copy = tmp_path / "results"
    shutil.copytree(folder, copy)
    names = ("tables/targets-old.csv", "figures/parity-old.pdf", "figures/answers-vision-local.png")
    for name in names:
        (copy / "lab" / name).write_text("old")
    build.write_report(copy, "lab")
    answers = contents(copy).keys() - contents(folder).keys()
    assert answers == {"lab/figures/answers-vision-local.png"}


def test_figures_carry_no_date(folder):
    files = contents(folder / "lab" / "figures")
    kinds = {"signals", "auc", "gaps", "controls", "loss", "ablations", "benchmarks"}
    assert {name.split(".")[0].split("-")[0] for name in files} == kinds
    for name, data in files.items():
        assert not re.search(rb"<dc:date>|tIME", data), name


def test_main_table_holds_every_baseline(folder):
    metrics, items = results.read(folder / "lab")
    table = methods.main_table(metrics, "packages", items)
    assert [name for name in table if name in BASELINES] == BASELINES
    assert len(table) == 2 and (table[BASELINES] != formats.ABSENT).all(axis=None)
    row = table[table.task == "movie"].iloc[0]
    generated = items[(items.task == "movie") & (items.method == "generated")]
    means = generated[generated.condition == "matched"].groupby("sample").correct.mean()
    assert row.generated == f"{100 * means.mean():.1f} ± {100 * means.std():.1f}"
    assert row.n == "100 / 60"
    text = (folder / "lab" / "language-packages.md").read_text()
    for name in (*BASELINES, row.generated):
        assert f"| {name} |" in text


def test_a_method_that_was_not_run_keeps_its_column():
    metrics, _ = made(profile={("base", "none"): (0.5, 1)}, n=20)
    table = methods.main_table(metrics, "packages")
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
        "oral_lib.report.tables.grid.impossible", lambda b, t: t == "gsm8k" and b.startswith("mini")
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
    [line] = studies.novelty_table(rows, "packages").to_dict("records")
    assert line["ratio"] == "0.88" and line["smallest ratio"] == "0.5"
    assert studies.novelty_table(rows, "hub").empty


def test_seeds_are_averaged_and_sources_never_share_a_table():
    few = {("base", "none"): (0.5, 1), ("trained", "none"): (0.8, 2)}
    places = [cell(), cell(seed=1), cell(source="hub")]
    parts = [made(place, profile=few, n=60)[0] for place in places]
    table = methods.main_table(pd.concat(parts), "packages")
    trained = [
        part[(part.method == "trained") & (part.metric == "accuracy")].value for part in parts
    ]
    assert len(table) == 1
    assert table.trained.item() == f"{50 * (trained[0].item() + trained[1].item()):.1f}"


def test_terminal_table_fits_and_marks_missing_signal(folder):
    metrics, items = results.read(folder / "lab")
    text = methods.short_table(metrics, items)
    assert max(len(line) for line in text.splitlines()) <= 100
    assert "a_b †" in text and "movie †" not in text and "no signal" in text
    assert "†" not in methods.short_table(metrics)


def page_of(folder, name="language-packages") -> str:
    return (folder / "lab" / f"{name}.md").read_text()


def test_a_page_says_what_where_and_how_to_make_it_again(folder):
    text = page_of(folder)
    for words in (
        "# language, source `packages`, scale lab",
        "n = 100 or 60 held-out items a cell, 3 trained adapters, 5 samples of each generator, "
        "generator seed 0.",
        "Commit: abc.",
        "Machine: abacus, 2 cores, 8.0 GiB, no GPU; Python 3.11, torch 2.13.",
        "Seeds: generator 7; zoo 0 and 1.",
        "./reproduce.sh --scale lab --source packages",
        "a_b on minilm-l6** (no signal)",
        "| minilm-l6 | movie | generated | 0.87 |",
        "Against trained, cell by cell",
        "the development wordings",
    ):
        assert words in text
    assert "| sampling |" in page_of(folder, "training")
    assert "![The effect of each part]" in page_of(folder, "ablations")


def test_a_commit_is_named_where_it_is_unfolded_and_nowhere_else(folder):
    for path in folder.rglob("*.md"):
        shown = re.sub(r"<details>.*?</details>", "", path.read_text(), flags=re.DOTALL)
        assert not re.search(r"\b(abc|[0-9a-f]{40})\b", shown), path.name


def test_every_page_is_linked_and_every_link_leads_to_a_file(folder):
    reached, todo = set(), [folder / "README.md"]
    while todo:
        path = todo.pop()
        reached.add(path)
        for link in re.findall(r"\]\((.+?)\)", path.read_text()):
            target = (path.parent / link).resolve()
            assert target.exists(), f"{path.name}: {link}"
            if target.suffix == ".md" and target not in reached:
                todo.append(target)
    assert {*folder.glob("*.md"), *folder.glob("lab/*.md")} <= reached
    text = "".join(path.read_text() for path in reached)
    names = [path.name for path in folder.rglob("*.png")]
    assert [name for name in names if f"figures/{name})" not in text] == []


def test_the_contents_page_has_a_row_for_each_experiment_and_source(folder):
    text = (folder / "README.md").read_text()
    assert "## lab" in text and len(text.splitlines()) < 60
    row = "| language | packages | 2 | 1 |"
    assert row in text and "| [language-packages](lab/language-packages.md) |" in text


def test_writing_one_scale_changes_no_file_of_another(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(theme, "save_figure", lambda *_: [])  # takes its time and is tested above
    copy = tmp_path / "results"
    shutil.copytree(folder, copy)
    few = {("base", "none"): (0.5, 1), ("generated", "matched"): (0.8, 2)}
    one = results.write_cell(tmp_path / "one", *made(profile=few, n=20))
    results.collect([one], copy / "desk")
    (copy / "lab" / "items-language-packages.parquet").write_bytes(b"damaged")  # not read
    before = contents(copy / "lab")
    text = build.write_report(copy, "desk").read_text()
    assert contents(copy / "lab") == before
    assert text.index("## desk") < text.index("## lab")
    assert "(desk/language-packages.md)" in text and "(lab/language-packages.md)" in text


def test_a_page_says_which_cells_another_commit_measured():
    few = {("base", "none"): (0.5, 1), ("generated", "matched"): (0.8, 2)}
    cells = [cell(seed=seed, task=task) for task in ("movie", "b") for seed in (0, 1)]
    rows = [made(place, profile=few, n=20)[0] for place in cells]
    rows[0].commit = rows[1].commit = rows[2].commit = "new"
    rows[3].commit = "old"
    assert pages._commits(pd.concat(rows[:3])) == ["- Commit: new."]
    first, second = pages._commits(pd.concat(rows))
    assert "new, to which the manifest belongs" in first
    assert second == "  - old: b on minilm-l6 (seed 1)."
    assert pages._commits(pd.concat(rows[:1] + rows[3:]))[1] == "  - old: b on minilm-l6."


def test_the_contents_page_leaves_smoke_out_unless_it_is_alone(tmp_path, monkeypatch):
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
    shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("tables", "figures", "*.md"))
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


# ---------------------------------------------------------------- studies
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
    table = methods.style_table(pd.DataFrame(rows))
    assert list(table.columns) == ["method", "fid", "denoising error", "adapters"]
    assert table.to_numpy().tolist() == [
        ["training images", "9.0 ± 0.3", "–", ""],
        ["base", "101.3 ± 2.0", "0.456 ± 0.015", 2],
        ["trained", "24.4 ± 0.5", "0.326 ± 0.011", 2],
    ]
    lines = methods.short_table(pd.DataFrame(rows)).splitlines()  # no method has an accuracy
    assert lines[0] == "Style t on b, source made" and len(lines) == 2 + 1 + len(table)
    without = pd.DataFrame(rows)[lambda frame: frame.metric != "frechet_floor"]
    assert list(methods.style_table(without).method) == ["base", "trained"]


def test_an_ablation_is_the_mean_over_tasks_with_independent_errors():
    table = ablation_summary.ablation_means(
        pd.concat([ablation(), ablation().assign(value=0.8)] * 2)
    )
    assert table.variant.tolist() == ["256", "512", "v", "trained"]
    assert table.default.tolist() == [True, False, True, False]
    same = ablation_summary.ablation_means(pd.concat([ablation()] * 4)).iloc[0]
    assert same.value == pytest.approx(0.7) and table.value[1] == pytest.approx(0.7)
    assert same.ci_high - same.value == pytest.approx(0.05 / 2)  # four tasks: half the error
