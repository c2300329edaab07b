"""Judgements: three states, signal, shares, and the words and tables that are made of them."""

import numpy as np
import pandas as pd
import pytest
from made_results import PROFILE, cell, made_items

from oral_lib.errors import OralError
from oral_lib.evaluation.item_tables import join, label_items
from oral_lib.report import comparisons, findings, formats
from oral_lib.report.comparisons import judged, trained_gains, without_signal
from oral_lib.report.findings import overview, verdict
from oral_lib.report.tables import judgements, methods, studies

TEXTS = ["paraphrase", "mismatched", "random", "empty"]
EVERYTHING = PROFILE | {
    ("router", "matched"): (0.86, 2), ("router", "paraphrase"): (0.86, 2),
    ("router", "mismatched"): (0.52, 2), ("retrieval", "paraphrase"): (0.86, 1),
    ("regression", "paraphrase"): (0.80, 1), ("soup_task", "matched"): (0.86, 1),
    ("soup_task", "paraphrase"): (0.86, 1), ("generated_span", "matched"): (0.84, 2),
    ("generated_free", "matched"): (0.70, 2), ("linear_probe", "none"): (0.75, 1),
}  # fmt: skip
USELESS = {key: (0.5, samples) for key, (_, samples) in PROFILE.items()}


def outcome(place, method, condition, right, sample=0):
    """Items whose predictions are right as in `right` [n]; every label is 1."""
    logits = np.where(np.asarray(right)[:, None], [[0.0, 1.0]], [[1.0, 0.0]])
    rows = {"item": [f"i{i:04d}" for i in range(len(right))], "labels": np.ones(len(right), int)}
    return label_items(place, method, condition, logits=logits, sample=sample, **rows)


def row(table, what, against, task="movie"):
    [line] = table[
        (table.what == what) & (table.against == against) & (table.task == task)
    ].itertuples()
    return line


@pytest.fixture(scope="module")
def everything():
    places = {"movie": EVERYTHING, "sarcasm": PROFILE, "rte": USELESS}
    return join(made_items(cell(task), p, 1500, 500, 0.05) for task, p in places.items())


@pytest.fixture(scope="module")
def table(everything):
    return judged(everything, 1)


# ---------------------------------------------------------------- states
def cell_of(copies, noise, adapters=8, n=1000, router="router"):
    """A cell with differing adapters, copies of them by a router, and noisy adapters."""
    random, place = np.random.default_rng(0), cell()
    easy = random.random(n) < 0.8
    trained = [np.where(random.random(n) < 0.04, ~easy, easy) for _ in range(adapters)]
    tables = [outcome(place, "base", "none", random.random(n) < 0.5)]
    tables += [outcome(place, "trained", "none", right, i) for i, right in enumerate(trained)]
    chosen = [trained[i] for i in copies]
    tables += [outcome(place, router, "matched", right, i) for i, right in enumerate(chosen)]
    noisy = [np.where(random.random(n) < noise, ~right, right) for right in trained[:2]]
    tables += [outcome(place, "gaussian", "none", right, i) for i, right in enumerate(noisy)]
    return join(tables)


def test_a_copy_of_stored_adapters_is_equal_and_noise_is_undecided_or_below():
    table = judged(cell_of(range(8), noise=0.01, n=150), 0)
    assert row(table, "router", "trained").state == "equal"
    assert row(table, "router", "trained").difference == pytest.approx(0)
    noisy = row(table, "gaussian", "trained")
    assert noisy.state == "undecided" and noisy.ci_low < -0.01 and noisy.ci_high > 0
    assert row(judged(cell_of(range(8), noise=0.3), 0), "gaussian", "trained").state == "below"


def test_copies_are_recognised_by_their_outcomes_and_only_of_methods_that_copy():
    few = row(judged(cell_of([2], noise=0.03), 0), "router", "trained")
    other = row(judged(cell_of([2], noise=0.03, router="regression"), 0), "regression", "trained")
    assert few.difference == other.difference
    assert few.ci_high - few.ci_low != pytest.approx(other.ci_high - other.ci_low, abs=1e-6)


def test_equal_needs_a_small_loss_in_points_and_in_shares_of_the_gain():
    """The interval is within a point of trained, but a gain of three points may be lost by 20%."""
    place, n = cell(), 4000
    order = np.arange(n)

    def judge(base):
        tables = [outcome(place, "base", "none", order < base * n)]
        tables.append(outcome(place, "trained", "none", order < 0.9 * n))
        tables.append(outcome(place, "generated", "matched", (order < 0.9 * n) & (order >= 20)))
        return row(judged(join(tables), 0), "generated", "trained")

    small, large = judge(base=0.87), judge(base=0.6)
    assert (small.difference, small.ci_low) == (large.difference, large.ci_low)
    assert small.ci_low > -0.01 and small.signal and large.signal
    assert (small.state, large.state) == ("below", "equal")


def test_undecided_is_all_that_is_neither_equal_nor_below(table):
    states = table[table.state != ""]
    assert set(states.state) <= {"equal", "undecided", "below"}
    below = states[states.state == "below"]
    assert (below.ci_high < 0).all() and (states[states.state == "undecided"].ci_high >= 0).all()
    assert (states[states.state == "equal"].ci_low > -0.01).all()
    assert set(states.against) <= {
        *("trained", "trained_zoo", "trained_held_out", "generated", "router", "retrieval"),
        *("regression", "soup_task/matched"),
    }


def test_a_cell_without_signal_has_no_state(table):
    rows = table[table.task == "rte"]
    assert not rows.signal.any() and set(rows.state) == {""}
    assert without_signal(table) == {("language", "packages", "minilm-l6", "rte")}
    assert table[table.task != "rte"].signal.all()


def test_signal_is_corrected_over_the_cells_of_a_table():
    """A gain with p = 0.03 is a signal in a table of one cell, and none in a table of five."""
    accuracies = {"movie": 0.55} | dict.fromkeys(["rte", "mrpc", "boolq", "wnli"], 0.5)
    base, items = ("base", "none"), {}
    for task, accuracy in accuracies.items():
        profile = {base: (0.5, 1), ("trained", "none"): (accuracy, 3)}
        items[task] = made_items(cell(task), profile, 300)
    [one] = trained_gains(items["movie"]).itertuples()
    assert 0.005 < one.p == one.p_holm < 0.05 and one.signal
    table = trained_gains(join(items.values())).set_index("task")
    assert table.loc["movie"].p == one.p
    assert table.loc["movie"].p_holm > 0.05 and not table.signal.any()
    apart = pd.concat([items["movie"], made_items(cell("rte", source="hub"), USELESS, 300)])
    assert trained_gains(apart).set_index("task").loc["movie"].signal  # tables are by source


def test_a_loss_of_training_is_no_signal():
    worse = {("base", "none"): (0.8, 1), ("trained", "none"): (0.5, 3)}
    [one] = trained_gains(made_items(cell(), worse, 400)).itertuples()
    assert one.p_holm < 0.05 and one.ci_high < 0 and not one.signal


# ---------------------------------------------------------------- what is compared
def test_every_comparison_of_the_contract_is_there(table):
    rows = table[table.task == "movie"]
    pairs = set(zip(rows.what, rows.against, strict=True))
    simple = ["router", "retrieval", "regression", "soup_task"]
    baseline = {against for what, against in pairs if what == "trained"}
    assert baseline <= {"base", "majority"} and len(baseline) == 1
    for name in (*simple, "generated", "gaussian", "noise_small", "generated_span", "linear_probe"):
        assert (name, "trained") in pairs
    for name in (*simple, "gaussian", "unconditional", "linear_probe", "generated_free"):
        assert ("generated", name) in pairs
    for part in ("trained_zoo", "trained_held_out"):
        assert {("generated", part), ("router", part), ("retrieval", part)} <= pairs
    assert ("trained_zoo", "trained_held_out") in pairs
    for name in simple:
        assert ("generated/paraphrase", f"{name}/paraphrase") in pairs
    assert {(f"generated/{text}", "generated") for text in TEXTS} <= pairs
    assert {("router/paraphrase", "router"), ("router/mismatched", "router")} <= pairs
    assert ("soup_task/paraphrase", "soup_task/matched") in pairs
    assert list(table) == comparisons.JUDGED_COLUMNS


def test_the_last_adapters_are_the_held_out_ones(everything):
    items = everything[(everything.task == "movie") & (everything.method == "trained")]
    means = items.groupby("sample").correct.mean()
    gap = row(judged(everything, 2), "trained_zoo", "trained_held_out")
    assert gap.difference == pytest.approx(means[0] - means[[1, 2]].mean())
    assert (gap.n_what, gap.n_against, gap.n_items) == (1, 2, 1500)
    assert "trained_zoo" not in set(judged(everything, 0).what)
    assert "trained_zoo" not in set(judged(everything, 3).what)  # all would be held out


def test_shares_are_of_the_gain_from_the_better_of_base_and_majority():
    """Trained 1, wrong-task prompt 0.75, majority 0.5, base 0.25: half the gain is lost."""
    tables = [
        outcome(cell(), method, condition, np.arange(100) >= wrong)
        for method, condition, wrong in (
            ("base", "none", 75), ("majority", "none", 50), ("trained", "none", 0),
            ("generated", "matched", 0), ("generated", "mismatched", 25),
        )
    ]  # fmt: skip
    table = judged(join(tables), 0)
    lost = row(table, "generated/mismatched", "generated")
    assert lost.share == pytest.approx(-0.5) and -0.7 < lost.share_low < -0.5 < lost.share_high
    assert row(table, "trained", "majority").difference == pytest.approx(0.5)
    assert row(table, "generated", "majority").share == pytest.approx(1)


def test_shares_are_given_only_where_the_gain_carries_them():
    small = {("base", "none"): (0.79, 1), ("trained", "none"): (0.85, 3)}
    small |= {("generated", "matched"): (0.85, 3), ("generated", "paraphrase"): (0.8, 3)}
    table = judged(made_items(cell(), small, 400), 0)
    assert row(table, "trained", "base").ci_low < comparisons.LEAST_GAIN
    assert table.share.isna().all() and table.difference.notna().all()


def test_a_difference_of_nothing_is_zero_without_a_sign(table):
    numbers = table[["difference", "ci_low", "ci_high", "share", "share_low", "share_high"]]
    text = numbers.to_csv(index=False, float_format="%.6g")
    assert "-0," not in text.replace("\n", ",") and "e-1" not in text


def test_control_texts_are_paired_over_the_rows_that_both_sides_have():
    table = judged(made_items(cell(), PROFILE, n=300, n_control=120), 0)
    assert row(table, "generated/random", "generated").n_items == 120
    assert row(table, "generated/paraphrase", "generated").n_items == 300


def test_results_without_a_method_are_judged_without_its_rows():
    few = {("base", "none"): (0.5, 1), ("trained", "none"): (0.8, 3)}
    table = judged(made_items(cell(), few, 200), 2)
    assert set(table.what) == {"trained", "trained_zoo"}
    lonely = judged(made_items(cell(), {("generated", "matched"): (0.8, 2)}, 50), 0)
    assert lonely.empty and without_signal(lonely) == set()
    assert overview(table).generated.item() == formats.ABSENT
    assert "were not both measured" in verdict(table)[1][0]
    assert judged(made_items(cell(), few, 20).iloc[:0], 0).empty


def test_equal_items_give_equal_judgements(everything, table):
    shuffled = everything.sample(frac=1, random_state=0)
    again = judged(shuffled, 1).sort_values(["task", "what", "against"], ignore_index=True)
    first = table.sort_values(["task", "what", "against"], ignore_index=True)
    pd.testing.assert_frame_equal(first, again, check_exact=False, atol=1e-12)


# ---------------------------------------------------------------- other metrics
def test_the_auc_forgives_a_moved_threshold_that_costs_accuracy():
    random, n = np.random.default_rng(0), 400
    labels = np.arange(n) % 2
    rows = {"item": [f"i{i:03d}" for i in range(n)], "labels": labels}
    tables = []
    for method, condition, skill, moved in (
        ("base", "none", 0.0, 0), ("trained", "none", 2.0, 0), ("generated", "matched", 2.0, 1.5),
    ):  # fmt: skip
        for sample in range(1 if method == "base" else 3):
            score = random.normal(size=n) + skill * (labels - 0.5) + moved
            logits = np.stack([0 * score, score], axis=1)
            tables.append(
                label_items(cell(), method, condition, logits=logits, sample=sample, **rows)
            )
    by = {name: judged(join(tables), 0, name) for name in ("accuracy", "auc", "balanced_accuracy")}
    gaps = {name: row(frame, "generated", "trained") for name, frame in by.items()}
    assert gaps["accuracy"].state == gaps["balanced_accuracy"].state == "below"
    assert gaps["auc"].state != "below" and abs(gaps["auc"].difference) < 0.03


def test_a_cell_without_the_metric_has_no_rows_and_another_metric_is_refused():
    items = outcome(cell(), "trained", "none", np.arange(20) < 9)
    assert judged(join([items, outcome(cell(), "base", "none", np.ones(20))]), 0, "auc").empty
    with pytest.raises(OralError, match="Metric 'f1' cannot be judged"):
        judged(items, 0, "f1")


# ---------------------------------------------------------------- words and tables
def test_the_overview_counts_states_for_every_method_by_the_same_rule(table):
    [line] = overview(table).to_dict("records")
    assert (line["cells"], line["with signal"]) == (3, 2)
    for name, method in (
        ("generated", "generated"),
        ("retrieval", "retrieval"),
        ("soup", "soup_task"),
    ):
        rows = table[(table.what == method) & (table.against == "trained") & table.signal]
        counts = [int((rows.state == state).sum()) for state in comparisons.STATES]
        assert line[name] == " / ".join(map(str, counts)) and sum(counts) == 2
    assert line["router"].endswith("(of 1)")  # the router was measured in one cell
    two = pd.concat([table, table.assign(experiment="vision"), table.assign(experiment="unseen")])
    total = overview(two).set_index("experiment").loc["all seen tasks"]
    assert total["with signal"] == 4


def test_undecided_is_never_counted_as_reached():
    table = judged(cell_of(range(8), noise=0.01, n=150), 0)
    generated = table[table.what == "gaussian"].assign(what="generated")
    table = pd.concat([table, generated])
    summary, [paragraph] = verdict(table)
    assert "generated is equal in 0, undecided in 1 and below in 0 of 1 cells" in summary[0]
    assert "**undecided**" in paragraph and overview(table).generated.item() == "0 / 1 / 0"


def test_words_count_the_simple_methods_next_to_the_generator(table):
    summary, paragraphs = verdict(table)
    text = "\n".join(summary)
    assert (
        "Other methods by the same rule:\n  - one generated sample: " in text
        and "\n  - router: " in text
    )
    assert "\n  - small noise: " in text and "\n  - regression, both with a held-out" in text
    assert "Against trained with held-out seeds only:\n  - generated: " in text
    assert "\n  - trained, zoo seeds: equal in " in text
    assert "cells where generated equals trained, a method without diffusion does, too." in text
    assert "With a wrong-task prompt, against the own text:\n  - generated: equal in 0" in text
    assert "\n  - minilm-l6: rte" in text and "(no signal)" in paragraphs[1]
    assert "Generated with a held-out paraphrase: " in paragraphs[0]
    assert "neither equality nor a loss can be interpreted" in paragraphs[1]


def test_words_without_any_signal_say_that_nothing_follows(table):
    summary, _ = verdict(table[table.task == "rte"])
    assert summary[0] == "No cell has a signal: nothing follows about the generator."


def test_the_tables_have_a_row_a_cell_and_a_dash_where_nothing_was_measured(table):
    targets = judgements.targets_table(table)
    assert list(targets.task) == ["movie", "rte †", "sarcasm"]
    assert targets["router − trained"].eq(formats.ABSENT).tolist() == [False, True, True]
    assert targets["generated − trained"][0].endswith(row(table, "generated", "trained").state)
    conditions = judgements.conditions_table(table)
    movie = conditions[conditions.task == "movie"].set_index("method")
    assert list(movie.index) == ["generated", "router", "retrieval", "regression", "soup"]
    assert movie.loc["router", "wrong-task prompt"].endswith(" lost")
    assert movie.loc["router", "random words"] == formats.ABSENT
    projections = judgements.projections_table(table)
    assert list(projections.task) == ["movie"] and "hull − none" in projections
    assert judgements.projections_table(table[table.task == "sarcasm"]).empty


def test_the_main_table_has_both_parts_of_trained(everything):
    metrics = pd.DataFrame({"experiment": "language", "source": "packages", "base": "minilm-l6"},
                           index=[0])  # fmt: skip
    metrics = metrics.assign(task="movie", method="trained", condition="none", metric="accuracy")
    metrics = metrics.assign(value=0.8, stderr=0.1, ci_low=0.7, ci_high=0.9, n_items=5, n_samples=3)
    items = everything[(everything.task == "movie") & (everything.method == "trained")]
    [line] = methods.main_table(metrics, "packages", items, held_out=2, no_signal=set()).to_dict(
        "records"
    )
    means = 100 * items.groupby("sample").correct.mean()
    assert line["trained, zoo seeds"] == f"{means[0]:.1f}"
    spread = means[[1, 2]].std()
    assert line["trained, held-out seeds"] == f"{means[[1, 2]].mean():.1f} ± {spread:.1f}"


def test_a_zero_has_no_sign():
    assert formats.signed_points(-0.0004) == "0.0" == formats.signed_points(0.0)
    assert formats.signed_points(-0.004) == "−0.4" and formats.signed_points(0.004) == "+0.4"
    shares = pd.Series({"share": -0.001, "share_low": -0.004, "share_high": 0.002})
    assert formats.share_interval(shares) == "0% (0 to 0)"
    assert formats.share_interval(shares, kept=True) == "100% (100 to 100)"


def test_novelty_shows_spread_and_free_numbers_where_they_were_measured():
    rows = pd.DataFrame(
        {"source": "packages", "base": "b", "task": "t", "method": ["generated", "generated_free"],
         "ratio": [0.1, 0.9], "ratio_low": 0.05, "spread": [0.2, np.nan], "free_numbers": np.nan}
    )  # fmt: skip
    table = studies.novelty_table(rows, "packages")
    assert list(table.columns) == [
        "base model",
        "task",
        "method",
        "ratio",
        "smallest ratio",
        "spread",
    ]
    assert table.spread.tolist() == ["0.2", formats.ABSENT]


def test_bytes_are_compared_with_the_zoo_in_half_precision():
    rows = pd.DataFrame({"what": ["generator", "zoo_fp16"], "bytes": [30_000_000, 20_000_000],
                         "adapters": 4, "values": 10})  # fmt: skip
    table = studies.bytes_table(rows)
    assert table.what.tolist() == ["zoo, half precision", "generator"]
    assert table["share of the zoo, half precision"].tolist() == ["100%", "150%"]
    alone = studies.bytes_table(rows[:1])
    assert alone["share of the zoo, half precision"].tolist() == [formats.ABSENT]


def test_the_rules_are_written_with_their_margins():
    assert "above −1 point" in findings.RULES and "−10% of the gain" in findings.RULES
    assert (comparisons.MARGIN, comparisons.MARGIN_OF_GAIN) == (0.01, 0.1)
