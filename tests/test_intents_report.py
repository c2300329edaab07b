"""The report of experiment intents, on made-up outcomes with a known answer."""

import re
import time
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from made_intents import CURVE, FEW, PROFILE, distance, intents_items, truth
from readable import faults, says_n

from oral_lib.errors import OralError
from oral_lib.evaluation import bootstrap, item_tables, results, schema, small_tables
from oral_lib.report import build
from oral_lib.report.figures import theme
from oral_lib.report.intents import curves, judgements, tables, text_map
from oral_lib.report.intents.outcomes import SplitOutcomes
from oral_lib.report.intents.results import IntentsResults
from oral_lib.report.tables import methods

BASES = ["minilm-l6", "smollm2-135m"]
G, D = "generated_through_base", "multitask_described"


def pair_of(generated: float, described: float) -> dict:
    return {(G, "matched"): generated, (D, "matched"): described}


def outcomes_of(profile, n_boot=400, **options) -> SplitOutcomes:
    return SplitOutcomes(intents_items(profile, **options), n_boot)


@pytest.fixture(scope="module")
def made() -> IntentsResults:
    """Two base models and two splits with every method, and the small tables of one of them."""
    items = item_tables.join(
        [intents_items(base=base, split=s, n_tasks=8) for base in BASES for s in ("L1", "L2")]
    )
    return IntentsResults("packages", metrics_of(items), items, n_boot=400)


def metrics_of(items: pd.DataFrame) -> pd.DataFrame:
    """The rows of metrics.csv without their intervals, which this report does not read."""
    rows = []
    for key, part in items.groupby(schema.GROUP, sort=False, observed=True):
        labels, row = part.label.to_numpy(), dict(zip(schema.GROUP, key, strict=True))
        measured = {
            "accuracy": part.correct.mean(),
            "auc": bootstrap.auc(labels, part.score.to_numpy()),
            "balanced_accuracy": bootstrap.balanced_accuracy(labels, part.correct),
        }
        row |= {"n_items": len(part), "n_samples": 1}
        rows += [row | {"metric": name, "value": float(x)} for name, x in measured.items()]
    about = {"family": "intents", "base_version": "made", "higher_is_better": True}
    frame = pd.DataFrame(rows).assign(**about, stderr=0.0, wall_s=0.0, commit="abc")
    return frame.assign(ci_low=frame.value, ci_high=frame.value)[list(schema.COLUMNS)]


def costs() -> pd.DataFrame:
    row = {"source": "packages", "base": "minilm-l6", "split": "L2", "condition": "matched"}
    row |= {"ms_adapter": 2.5, "ms_row": 0.05}
    row |= {"flops_row": 2e8, "bytes": 9.5e6, "device": "GPU", "commit": "a"}
    other = {"method": D, "flops_row": 6e8, "ms_adapter": np.nan}
    return pd.DataFrame([row | {"method": G}, row | other])


def map_rows(n=5) -> pd.DataFrame:
    names = [f"L2/made.intent-{i}" for i in range(n)]
    rows = [
        {"text_task": a, "row_task": b, "auc": 0.9 if a == b else 0.5} for a in names for b in names
    ]
    return pd.DataFrame(rows).assign(source="packages", base="minilm-l6", split="L2", commit="a")


# ---------------------------------------------------------------- values
def test_values_are_the_means_of_the_metrics_of_every_task():
    items = intents_items(n_tasks=5)
    outcomes = SplitOutcomes(items, 100)
    part = items[(items.method == G) & (items.condition == "matched")]
    auc, balanced = [], []
    for _, rows in part.groupby(["task", "seed"], observed=True):
        auc.append(bootstrap.auc(rows.label, rows.score))
        balanced.append(bootstrap.balanced_accuracy(rows.label, rows.correct))
    assert outcomes.values(G, "auc").shape == (3, 5)
    assert outcomes.draws([G], "auc").mean[G] == pytest.approx(np.mean(auc))
    assert outcomes.draws([G], "balanced_accuracy").mean[G] == pytest.approx(np.mean(balanced))
    assert outcomes.by_task(G).index.tolist() == [f"L2/made.intent-{i:02d}" for i in range(5)]


def test_intervals_cover_the_truth_of_made_items():
    random, hits, runs = np.random.default_rng(0), np.zeros(2), 40
    for _ in range(runs):
        outcomes = outcomes_of(pair_of(0.9, 0.85), n_tasks=20, own_sd=0.2, random=random)
        wanted = truth(0.9, (0.3**2 + 0.2**2) ** 0.5), truth(0.85, (0.3**2 + 0.2**2) ** 0.5)
        row = judgements.compared(outcomes, G, D, "auc")
        value = judgements.values({("b", "L2"): outcomes}).set_index(["method", "metric"])
        ends = value.loc[(G, "auc")]
        hits += [
            row["ci_low"] <= wanted[0] - wanted[1] <= row["ci_high"],
            ends.ci_low <= wanted[0] <= ends.ci_high,
        ]
    assert (hits / runs >= 0.88).all() and (hits / runs).min() < 1


def test_methods_are_compared_on_the_tasks_and_samples_of_both():
    items = intents_items(pair_of(0.9, 0.9), n_tasks=10)
    few = items[(items.method == G) | (items.task.cat.codes < 4)]
    row = judgements.compared(SplitOutcomes(few, 100), G, D, "auc")
    assert row["n_tasks"] == 4 and (row["n_what"], row["n_against"]) == (3, 1)
    some = items[items.task.cat.codes < 4]
    whole = judgements.compared(SplitOutcomes(some, 100), G, D, "auc")
    assert row["difference"] == pytest.approx(whole["difference"])
    none = items[(items.method == G) == (items.task.cat.codes < 4)]
    assert judgements.compared(SplitOutcomes(none, 100), G, D, "auc") is None


def test_fewer_rows_of_a_control_are_allowed():
    items = intents_items(pair_of(0.9, 0.9), n_tasks=6)
    wrong = items[
        (items.method != D) | items["item"].str[1:].astype(int).mod(30).isin(range(5, 15))
    ]
    outcomes = SplitOutcomes(wrong, 100)
    assert outcomes.rows == {D: 10, G: 30}
    assert judgements.compared(outcomes, G, D, "auc")["n_tasks"] == 6


# ---------------------------------------------------------------- verdicts
@pytest.mark.parametrize(
    ("low", "high", "state"),
    [
        (0.001, 0.02, "above"), (-0.009, 0.02, "equal"), (-0.009, -0.001, "equal"),
        (-0.011, 0.02, "undecided"), (-0.03, -0.001, "below"), (0.0, 0.0, "equal"),
    ],
)  # fmt: skip
def test_the_verdict_follows_from_the_whole_interval(low, high, state):
    assert judgements.state_of(SimpleNamespace(ci_low=low, ci_high=high)) == state


def test_one_task_decides_nothing():
    outcomes = {("minilm-l6", "L2"): outcomes_of(pair_of(0.99, 0.6), n_tasks=1)}
    assert set(judgements.compared_pairs(outcomes).state) == {"undecided"}
    assert set(judgements.aims(outcomes).verdict) == {"undecided"}


def verdicts(profile, **options) -> dict:
    options = {"n_tasks": 40, "rows": (30, 60), "own_sd": 0.05} | options
    base, split = options.get("base", "minilm-l6"), options.get("split", "L2")
    table = judgements.aims({(base, split): outcomes_of(profile, **options)}, costs())
    return {(row.aim, row.metric): row for row in table.itertuples()}


def test_aims_are_reached_missed_or_undecided():
    good, bad = verdicts(pair_of(0.96, 0.92)), verdicts(pair_of(0.85, 0.92))
    for metric in ("auc", "balanced_accuracy"):
        for aim in ("described", "beyond"):
            key = judgements.AIMS[aim], metric
            assert (good[key].verdict, bad[key].verdict) == ("reached", "missed")
    equal = verdicts(pair_of(0.92, 0.92), n_tasks=12)
    assert equal[judgements.AIMS["beyond"], "auc"].verdict == "undecided"
    row = equal[judgements.AIMS["flops"], "flops_row"]
    assert (row.value, row.verdict) == (pytest.approx(1 / 3), "reached")


@pytest.mark.parametrize(
    ("base", "points"),
    [("minilm-l6", (0.5, 2)), ("smollm2-135m", (1, 4)), ("smollm2-135m-all", (1, 4))],
)
def test_margins_are_wider_for_causal_models(base, points):
    rows = verdicts(pair_of(0.9, 0.9), base=base, n_tasks=6)
    bounds = [rows[judgements.AIMS["described"], m].bound for m in ("auc", "balanced_accuracy")]
    assert bounds == pytest.approx([-p / 100 for p in points])


def test_shares_of_a_gain_are_over_chance_or_the_base_model():
    profile = {(G, "matched"): 0.95, (G, "mismatched"): 0.5, (G, "paraphrase"): 0.95}
    rows = verdicts(profile)
    lost, kept = (rows[judgements.AIMS[t], "auc"] for t in ("mismatched", "paraphrase"))
    assert lost.value == pytest.approx(1, abs=0.05) and lost.verdict == "reached"
    assert kept.value == pytest.approx(1, abs=0.05)
    outcomes = outcomes_of(profile | {("base", "none"): 0.7}, n_tasks=40)
    table = judgements.aims({("minilm-l6", "L2"): outcomes}).set_index("aim")
    mean = outcomes.draws([G], "auc").mean
    wanted = 1 - (mean[f"{G}/mismatched"] - mean["base"]) / (mean[G] - mean["base"])
    assert table.value[judgements.AIMS["mismatched"]] == pytest.approx(wanted) and wanted > 1.2


def test_aims_of_a_split_are_its_own(made):
    table = made.aims
    assert set(table[table.split == "L1"].aim) == {judgements.AIMS["trained"]}
    of_l2 = set(table[table.split == "L2"].aim)
    rivals = {"above retrieval", "above soup of nearest", "above regression"}
    assert rivals | {judgements.AIMS["rows"], "above zero-shot cosine"} <= of_l2
    assert judgements.AIMS["trained"] not in of_l2
    other = {("minilm-l6", "L3"): outcomes_of(PROFILE, split="L3", n_tasks=4)}
    assert set(judgements.aims(other).aim) == {judgements.AIMS["beyond"]}


# ---------------------------------------------------------------- equivalent labelled rows
@pytest.mark.parametrize("rows", [3, 6, 12, 24])
def test_equivalent_rows_of_made_items_cover_the_truth(rows):
    k = list(CURVE)
    auc = float(np.interp(np.log(rows), np.log(k), [truth(a, 0.32) for a in CURVE.values()]))
    value = next(a for a in np.linspace(0.5, 0.99, 2000) if truth(a, 0.32) >= auc)
    outcomes = outcomes_of(
        FEW | {("zero_shot", "matched"): value}, n_tasks=60, rows=(30, 60), own_sd=0.1
    )
    table = judgements.values({("b", "L2"): outcomes})
    row = table[(table.method == "zero_shot") & (table.metric == "auc")].iloc[0]
    assert row.rows_low <= rows <= row.rows_high and row.rows == pytest.approx(rows, rel=0.3)
    assert row.rows_high / row.rows_low < 3


def test_rows_beyond_the_curve_are_said_to_be_so(made):
    values = made.values[(made.values.metric == "auc") & (made.values.split == "L2")]
    ends = tables.curve_ends(values)
    assert ends == (1, 32)
    texts = {row.method: tables.rows_text(row, ends) for row in values.itertuples()}
    assert texts["base"].startswith("< 1") and texts["trained"].startswith("> 32")
    row = SimpleNamespace(rows=11.6, rows_low=7.94, rows_high=np.inf)
    assert tables.rows_text(row, ends) == "12 (7.9 to > 32)"
    assert tables.rows_text(SimpleNamespace(rows=np.nan), ends) == "–"
    assert made.values[made.values.metric != "auc"].rows.isna().all()


def test_without_a_curve_there_are_no_rows_and_no_figure():
    outcomes = {("b", "L2"): outcomes_of(pair_of(0.9, 0.9), n_tasks=4)}
    values = judgements.values(outcomes)
    assert values.rows.isna().all() and curves.equivalent_figure(values) is None
    assert curves.few_rows_figure(values) is None


# ---------------------------------------------------------------- tables, figures, page
def test_tables_have_every_method_and_comparison(made):
    table = made.method_tables["minilm-l6", "L2"]
    assert len(table) == len(PROFILE) and "ms a row" not in table
    row = table[table.method == "generated, through the base"].iloc[0]
    gap = made.judged.query(f"split == 'L2' and base == 'minilm-l6' and what == '{G}'")
    gap = gap[(gap.against == D) & (gap.metric == "auc")].iloc[0]
    assert row["− description in the input"].endswith(gap.state)
    assert row["generated − it"] == "–" and row.tasks == 8
    summary = made.summary
    assert set(summary.split) == {"L2"} and list(summary)[2:] == BASES
    assert not summary.method.str.contains("LoRA on").any()
    assert "generated, through the base, sentence and 4 rows" in set(summary.method)
    aims = made.aims_table
    first = aims[(aims.aim == judgements.AIMS["described"]) & (aims.metric == "AUC")].iloc[0]
    assert "margin 0.5" in first["minilm-l6"] and "margin 1" in first["smollm2-135m"]
    assert len(made.judged) == len(
        made.judged.drop_duplicates(["base", "split", "metric", "what", "against"])
    )


def test_costs_are_columns_of_their_base_model(made):
    by_place = dict(tables.method_tables(made.values, made.judged, costs()))
    table = by_place["minilm-l6", "L2"].set_index("method")
    assert table.loc["generated, through the base", "MFLOPs a row"] == "200"
    assert table.loc["description in the input", "ms an adapter"] == "–"
    assert "MB" not in by_place["smollm2-135m", "L2"]
    assert tables.costs_table(costs()).MB.tolist() == ["9.5", "9.5"]


def test_figures_can_be_read_and_say_n(made):
    named = dict(made.figures()) | {"map": text_map.unseen_map(map_rows())}
    assert len(named) == 4
    for name, figure in named.items():
        assert (name, faults(figure)) == (name, [])
        assert says_n(figure), name


def test_marks_lie_at_their_equivalent_rows(made):
    axis = made.equivalent_figure().axes[0]
    values = made.values.query("base == 'minilm-l6' and split == 'L2' and metric == 'auc'")
    star, shape = values[values.method == G].iloc[0], theme.LOOKS[G].mark
    [mark] = [line for line in axis.lines if line.get_marker() == shape]
    assert mark.get_ydata()[0] == pytest.approx(100 * star.value)
    assert mark.get_xdata()[0] == pytest.approx(star.rows)
    [prompted] = [line for line in axis.lines if line.get_marker() == "d"]
    assert prompted.get_xdata()[0] < 1
    assert [tick.get_text() for tick in axis.get_xticklabels()][-2:] == ["<1", ">32"]


def test_the_map_names_the_own_and_the_other_texts():
    figure = text_map.unseen_map(map_rows(4).iloc[:-1])  # the last own text is missing
    shown = figure.axes[0].images[0].get_array()
    assert np.ma.masked_invalid(shown).count() == 15 and shown[1, 1] == pytest.approx(90)
    words = figure._supxlabel.get_text().replace("\n", " ")
    assert "mean 90.0; other texts: mean 50.0" in words and "3 of 4 tasks" in words
    assert "Empty: not measured." in words


@pytest.fixture(scope="module")
def folder(tmp_path_factory, made):
    root = tmp_path_factory.mktemp("intents")
    cell = results.write_cell(root / "one", made.metrics, made.items)
    results.collect([cell], root / "results" / "lab")
    lab = root / "results" / "lab"
    small_tables.INTENTS_COSTS.append(lab, costs().to_dict("records"))
    small_tables.INTENTS_MAP.append(lab, map_rows().to_dict("records"))
    build.write_report(root / "results", "lab")
    return lab


def test_the_page_has_aims_findings_figures_and_links_that_lead_to_files(folder):
    text = (folder / "intents-packages.md").read_text()
    for words in (
        "## Aims", "## Findings", "- Splits: L1 (unseen combinations of seen intents: 8",
        "**L2, minilm-l6.**", "Equivalent labelled rows:", "--only 'intents*'",
        "| at most half of the FLOPs a row", "n = 8 tasks a split, 30 rows each, 3 gen",
    ):  # fmt: skip
        assert words in text, words
    links = re.findall(r"\]\((.+?)\)", text)
    assert len(links) > 20 and [link for link in links if not (folder / link).exists()] == []
    kinds = {path.name.split("-")[0] for path in (folder / "figures").iterdir()}
    assert kinds == {"equivalent", "few", "dots", "textmap"}
    assert not (folder / "tables" / "judged-intents-packages.md").exists()
    assert not (folder / "tables" / "overview.csv").exists()
    assert (
        "[intents-packages](lab/intents-packages.md)" in (folder.parent / "README.md").read_text()
    )


def test_the_terminal_has_means_over_tasks(made):
    text = methods.short_table(made.metrics, made.items)
    assert max(map(len, text.splitlines())) <= 100 and "made.intent" not in text
    assert "Mean over tasks, AUC / balanced accuracy" in text
    value = made.values.query(f"method == '{G}' and base == 'minilm-l6' and split == 'L2'").value
    assert " / ".join(f"{100 * x:.1f}" for x in value) in text


def test_a_source_without_items_is_refused(made):
    with pytest.raises(OralError, match="items"):
        IntentsResults("packages", made.metrics, made.items.iloc[:0]).values  # noqa: B018


def test_sixty_tasks_take_seconds():
    items = intents_items(n_tasks=60, rows=(30, 60), n_messages=1800)
    start = time.process_time()
    outcomes = {("minilm-l6", "L2"): SplitOutcomes(items)}
    for compute in (judgements.values, judgements.compared_pairs, judgements.aims):
        compute(outcomes)
    assert time.process_time() - start < 6  # of one of 16 base models and splits
    assert distance(0.5) == pytest.approx(0)
