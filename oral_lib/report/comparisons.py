"""Every method judged against trained, against its alternatives, and under other texts.

The input are `items`: one outcome per method, condition, seed, sample and item. Nothing is scored
here. Intervals are over new items, adapters, generator seeds and samples (`evaluation.two_level`).
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from oral_lib.errors import OralError
from oral_lib.evaluation import bootstrap, two_level
from oral_lib.evaluation.schema import EITHER, PLACE
from oral_lib.report.outcomes import (
    BASELINES,
    ONE,
    STORED,
    TRAINED,
    TRAINED_HELD_OUT,
    TRAINED_ZOO,
    CellOutcomes,
)

EQUAL, UNDECIDED, BELOW = "equal", "undecided", "below"
STATES = [EQUAL, UNDECIDED, BELOW]
MARGIN = 0.01  # "equal" excludes a loss of one point
MARGIN_OF_GAIN = 0.1  # and a loss of a tenth of the gain
SIGNIFICANT = 0.05  # largest p-value of a signal, after Holm's correction
LEAST_GAIN = 0.1  # shares of a gain are given if the lower end of its interval is above this
GENERATORS = ["generated", "generated_span", "generated_free"]
GENERATED_THROUGH_BASE = "generated_through_base"
WITH_TEXTS = [*GENERATORS, "router", "retrieval", "regression", "soup_task", GENERATED_THROUGH_BASE]
ALTERNATIVES = [  # methods that generated is compared with
    "soup_task", "soup_all", "retrieval", "router", "regression", "gaussian", "noise_small",
    "noise_large", "unconditional", "linear_probe", "multitask", "generated_span", "generated_free",
    GENERATED_THROUGH_BASE, "complement", "ridge_bits",
]  # fmt: skip
ADDED_TO = ["soup_task", "router", "regression"]  # what training through the base is to add to
CONTROLS = ["paraphrase", "mismatched", "random", "empty"]
JUDGED_COLUMNS = [
    *PLACE, "what", "against", "difference", "ci_low", "ci_high", "p", "p_holm", "share",
    "share_low", "share_high", "state", "signal", "n_items", "n_what", "n_against",
]  # fmt: skip
_NUMBERS = ["difference", "ci_low", "ci_high", "share", "share_low", "share_high"]


# ---------------------------------------------------------------- judgements
def judged(items: pd.DataFrame, held_out: int, metric: str = "accuracy") -> pd.DataFrame:
    """One row per cell and comparison, with the columns `JUDGED_COLUMNS`.

    `what` and `against` are names of `outcomes`: "generated", "generated/paraphrase", "trained",
    "trained_zoo", "trained_held_out". `difference` is `what` minus `against` on the items of both.
    n_items, n_what and n_against are the numbers of items and of samples.

    `signal`: whether trained is above the baseline, after Holm's correction over the cells of the
    experiment and source. The baseline is the better of base model and majority class. `p_holm` is
    corrected over the same cells, for each comparison by itself.

    `share`: the difference as a share of a gain over the baseline. It is the gain of trained; for
    two texts of one method, the gain of that method with its own text. It is NaN unless the
    gain's interval lies above `LEAST_GAIN`.

    `state` of a method against trained, and of a method with another text against its own text:

    - "equal": the whole interval lies above minus one point, and above minus a tenth of the gain;
    - "below": the whole interval lies under 0;
    - "undecided": all else.

    It is "" in cells without signal and for all other comparisons.

    Args:
        items: rows of the items tables.
        held_out: the last so many trained adapters of a cell are the held-out ones.
        metric: "accuracy", "auc" or "balanced_accuracy". Cells without it have no rows.

    Raises:
        OralError: for another metric.
    """
    return _table(items, _pairs, held_out, metric)


def trained_gains(items: pd.DataFrame, metric: str = "accuracy") -> pd.DataFrame:
    """The rows of `judged` that compare trained with the baseline."""
    return _table(items, _gain, 0, metric)


def without_signal(table: pd.DataFrame) -> set[tuple[str, ...]]:
    """The places (experiment, source, base, task) of `judged` where training shows no gain.

    Places where trained or the baseline was not measured are not among them.
    """
    rows = table[(table.what == TRAINED) & table.against.isin(BASELINES) & ~table.signal]
    return set(rows[PLACE].itertuples(index=False, name=None))


class _Pair(NamedTuple):
    """One comparison, the two names whose difference is the gain, and whether it has a state."""

    what: str
    against: str
    gain: tuple[str, str]
    has_state: bool = False


def _pairs(baseline: str) -> Iterator[_Pair]:
    """All comparisons, whether measured or not."""
    gain = TRAINED, baseline
    yield _Pair(TRAINED, baseline, gain)
    for name in ("generated", ONE, *ALTERNATIVES):
        yield _Pair(name, TRAINED, gain, has_state=True)
    for name in WITH_TEXTS:
        yield _Pair(f"{name}/paraphrase", TRAINED, gain, has_state=True)
    for name in (*GENERATORS, *STORED):
        yield _Pair(name, TRAINED_ZOO, gain, has_state=True)
    for name in (*GENERATORS, *STORED, TRAINED_ZOO):
        yield _Pair(name, TRAINED_HELD_OUT, gain, has_state=True)
    for name in WITH_TEXTS:
        yield _Pair(name, baseline, gain)
    for name in ALTERNATIVES:
        yield _Pair("generated", name, gain)
    for name in (*ADDED_TO, "retrieval", "multitask", "complement", "ridge_bits"):
        yield _Pair(GENERATED_THROUGH_BASE, name, gain)
    for name in WITH_TEXTS[1:]:
        yield _Pair("generated/paraphrase", f"{name}/paraphrase", gain)
    for name in WITH_TEXTS:
        usual = f"{name}/matched" if name in EITHER else name
        for control in CONTROLS:
            yield _Pair(f"{name}/{control}", usual, (usual, baseline), has_state=True)


def _gain(baseline: str) -> Iterator[_Pair]:
    """The comparison that decides about the signal."""
    yield _Pair(TRAINED, baseline, (TRAINED, baseline))


def _table(
    items: pd.DataFrame, pairs: Callable[[str], Iterator[_Pair]], held_out: int, metric: str
) -> pd.DataFrame:
    """The rows of `judged` for the comparisons `pairs` of a baseline."""
    rows = []
    for place, cell in items.groupby(PLACE, sort=False, observed=True):
        outcomes = CellOutcomes(cell, held_out, metric)
        key = dict(zip(PLACE, place, strict=True))
        rows += [key | row for row in _rows(outcomes, pairs(outcomes.baseline))]
    table = pd.DataFrame(rows, columns=[*JUDGED_COLUMNS, "within"])
    of_baseline = table.against.isin(BASELINES)
    family = [*PLACE[:2], "what", table.against.where(~of_baseline, "baseline")]
    table["p_holm"] = table.groupby(family, sort=False).p.transform(two_level.holm)
    gains = table[(table.what == TRAINED) & of_baseline]
    gains = gains[(gains.p_holm < SIGNIFICANT) & (gains.difference > 0)]
    signal = set(gains[PLACE].itertuples(index=False, name=None))
    table["signal"] = [place in signal for place in table[PLACE].itertuples(index=False, name=None)]
    states = np.select([table.within == 1, table.ci_high < 0], [EQUAL, BELOW], UNDECIDED)
    table["state"] = np.where(table.signal & table.within.notna(), states, "")
    table[_NUMBERS] = table[_NUMBERS].astype(float).round(12) + 0.0  # -0.0 and 1e-17 are 0
    return table[JUDGED_COLUMNS]


def _rows(outcomes: CellOutcomes, planned: Iterator[_Pair]) -> Iterator[dict]:
    """The rows of one cell, in the order of `planned`, without the columns about several cells."""
    pairs, groups = [], {}
    for pair in planned:
        if {pair.what, pair.against} <= outcomes.names:
            names = [name for name in {*pair[:2], *pair.gain} if name in outcomes.names]
            shared = outcomes.shared(names)
            if shared.any():
                pairs.append(pair)
                groups.setdefault(shared.tobytes(), (shared, []))[1].append(pair)
    rows = {}
    for shared, members in groups.values():
        rows |= zip(members, _estimates(outcomes, shared, members), strict=True)
    return (rows[pair] for pair in pairs)


def _estimates(
    outcomes: CellOutcomes, shared: np.ndarray, pairs: Sequence[_Pair]
) -> Iterator[dict]:
    """A row for each of `pairs`, which have the same items `shared`."""
    names = dict.fromkeys(name for pair in pairs for name in (TRAINED, *pair[:2], *pair.gain))
    sides = {name: outcomes.side(name, shared) for name in names if name in outcomes.names}
    draws, mean = two_level.resampled(sides), {name: side.mean for name, side in sides.items()}
    for what, against, gain, has_state in pairs:
        difference, changes = mean[what] - mean[against], draws[what] - draws[against]
        estimate = two_level.estimate(draws[what], draws[against], difference)
        row = {"what": what, "against": against} | estimate._asdict()
        row |= {"n_items": int(shared.sum())}
        row |= {"n_what": len(sides[what].values), "n_against": len(sides[against].values)}
        if gain[0] in sides and gain[1] in sides:
            gains = draws[gain[0]] - draws[gain[1]]
            if has_state:
                rest = np.quantile(changes + MARGIN_OF_GAIN * gains, 0.025)
                row["within"] = float(estimate.ci_low > -MARGIN and rest > 0)
            if np.quantile(gains, 0.025) > LEAST_GAIN and (what, against) != gain:
                share = difference / (mean[gain[0]] - mean[gain[1]])
                shares = changes / np.where(gains > 0, gains, np.nan)
                interval = bootstrap.interval(share, shares[np.isfinite(shares)])
                row |= dict(zip(("share", "share_low", "share_high"), interval, strict=True))
        yield row


# ---------------------------------------------------------------- means and samples
def pooled(metrics: pd.DataFrame) -> pd.DataFrame:
    """One row per base model, task, method, condition and metric: the mean over seeds.

    All seeds share their held-out items. Intervals and standard errors are therefore averaged too:
    more seeds do not reduce the uncertainty about new items.
    """
    numbers = {name: "mean" for name in ("value", "stderr", "ci_low", "ci_high")}
    key = [*PLACE, "method", "condition", "metric"]
    counts = {"n_items": "min", "n_samples": "sum"}
    return metrics.groupby(key, as_index=False, sort=False).agg(numbers | counts)


def per_sample(items: pd.DataFrame, metric: str = "accuracy") -> pd.DataFrame:
    """One `value` per sample and seed, with the columns place, method, condition, seed and sample.

    Raises OralError for a metric that has no per-sample value.
    """
    key = [*PLACE, "method", "condition", "seed", "sample"]
    groups = items.groupby(key, sort=False, observed=True)
    if metric == "accuracy":
        values = groups.correct.mean()
    elif metric in PER_SAMPLE:
        values = groups[["label", "score", "correct"]].apply(_scored, metric).dropna()
    else:
        names = ", ".join(PER_SAMPLE)
        raise OralError(f"Metric {metric!r} has no value per sample. Use accuracy, {names}.")
    return values.rename("value").reset_index()


def with_trained_parts(samples: pd.DataFrame, held_out: int) -> pd.DataFrame:
    """`samples` of `per_sample`, and trained again by its parts: zoo seeds and held-out seeds.

    The last `held_out` trained samples of a cell are the held-out adapters. Without any, or in
    cells without others, nothing is added.
    """
    trained = samples[samples.method == TRAINED]
    groups = trained.groupby(PLACE, sort=False, observed=True)["sample"]
    size, place = groups.transform("size"), groups.rank(method="first")
    parts = trained[(size > held_out) & (held_out > 0)].astype({"method": str})
    last = (place > size - held_out)[parts.index]
    parts["method"] = np.where(last, TRAINED_HELD_OUT, TRAINED_ZOO)
    return pd.concat([samples.astype({"method": str}), parts], ignore_index=True)


def _scored(rows: pd.DataFrame, metric: str) -> float:
    """The metric of one sample; NaN for written answers and for more than two labels."""
    labels, scores = rows.label.to_numpy(), rows.score.to_numpy()
    if not np.isfinite(scores).all() or set(np.unique(labels)) != {0, 1}:
        return np.nan
    return PER_SAMPLE[metric](labels, scores, rows.correct.to_numpy())


PER_SAMPLE = {
    "auc": lambda labels, scores, _: bootstrap.auc(labels, scores),
    "calibrated_accuracy": lambda labels, scores, _: float(
        bootstrap.calibrated(labels, scores).mean()
    ),
    "balanced_accuracy": lambda labels, _, correct: bootstrap.balanced_accuracy(labels, correct),
}


def spreads_of(items: pd.DataFrame, metric: str = "accuracy") -> dict[tuple[str, ...], float]:
    """The standard deviation over samples and seeds, by (*place, method, condition).

    Methods with a single sample are left out.
    """
    key = [*PLACE, "method", "condition"]
    samples = per_sample(items, metric)
    return samples.groupby(key, observed=True).value.std().dropna().to_dict()
