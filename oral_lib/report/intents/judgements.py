"""Means over tasks, comparisons and aims of experiment intents, with their intervals.

The input are `outcomes.SplitOutcomes` by base model and split. Intervals are over new tasks, rows,
generator seeds and samples (`evaluation.over_tasks`).
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd

from oral_lib.evaluation import over_tasks, two_level
from oral_lib.evaluation.bootstrap import interval
from oral_lib.report.comparisons import BELOW, EQUAL, MARGIN, UNDECIDED
from oral_lib.report.formats import METHOD_WORDS
from oral_lib.report.intents.outcomes import TASK_METRICS, SplitOutcomes, costs_of
from oral_lib.report.outcomes import TRAINED

DESCRIBED = "multitask_described"
GENERATED_METHODS = ["generated_through_base", "generated"]  # the first that was measured is judged
RIVALS = ["retrieval", "soup_nearest", "regression", "zero_shot", "prompted"]
OTHER_TEXTS = ["paraphrase", "mismatched", "random", "empty"]
WITH_ROWS = ["matched_4", "matched_16", "rows_4", "rows_16"]
ABOVE = "above"
REACHED, MISSED = "reached", "missed"
CHANCE = 0.5
UNSEEN_SPLITS = ["L2", "L3"]  # splits with intents that no generator was trained on
VALUE_COLUMNS = [
    "base", "split", "method", "metric", "value", "ci_low", "ci_high", "rows", "rows_low",
    "rows_high", "n_tasks", "n_rows", "n_seeds", "n_samples",
]  # fmt: skip
COMPARED_COLUMNS = [
    "base", "split", "metric", "what", "against", "difference", "ci_low", "ci_high", "p", "state",
    "n_tasks", "n_what", "n_against",
]  # fmt: skip
AIM_COLUMNS = ["aim", "base", "split", "metric", "value", "ci_low", "ci_high", "bound", "verdict"]
Outcomes = Mapping[tuple[str, str], SplitOutcomes]  # by (base, split)


def judged_method(outcomes: SplitOutcomes) -> str | None:
    """The generated method that is judged: through the base model, else on weights, else None."""
    return next((name for name in GENERATED_METHODS if name in outcomes.names), None)


def is_causal(base: str) -> bool:
    """Whether a base model is a causal language model, for which the aims are wider."""
    return not base.startswith(("minilm", "tiny-encoder"))


# ---------------------------------------------------------------- means over tasks
def values(outcomes: Outcomes) -> pd.DataFrame:
    """One row per base model, split, method with condition, and metric: `VALUE_COLUMNS`.

    value is the mean over tasks. rows are equivalent labelled rows: the number at which the curve
    of adapters trained on few rows reaches this AUC. 0 means less than the first point of the
    curve, infinity more than the last; NaN means that there is no curve.
    """
    table = []
    for (base, split), of_split in outcomes.items():
        for name in of_split.names:
            for metric in TASK_METRICS:
                if line := value_of(of_split, name, metric):
                    table.append({"base": base, "split": split} | line)
    return pd.DataFrame(table, columns=VALUE_COLUMNS)


def value_of(outcomes: SplitOutcomes, name: str, metric: str) -> dict | None:
    """A row of `values` without base model and split; None where the method was not measured."""
    drawn = outcomes.draws([name], metric)
    if drawn is None:
        return None
    seeds = outcomes.seeds[name]
    line = {"method": name, "metric": metric} | _interval(drawn.mean[name], drawn.draws[name])
    line |= {"n_tasks": drawn.tasks, "n_rows": outcomes.rows[name]}
    line |= {"n_seeds": len(np.unique(seeds)), "n_samples": len(seeds)}
    return line | (_equivalent(outcomes, name) if metric == "auc" else {})


def _interval(value: float, draws: np.ndarray) -> dict[str, float]:
    low, high = interval(value, draws)[1:]
    return {"value": value, "ci_low": low, "ci_high": high}


def _equivalent(outcomes: SplitOutcomes, name: str) -> dict[str, float]:
    """The equivalent labelled rows of a method with their interval; empty without a curve."""
    few = outcomes.few_shot
    drawn = outcomes.draws([name, *few.values()], "auc") if len(few) > 1 else None
    if drawn is None:
        return {}
    point = np.array([drawn.mean[k] for k in few.values()])
    curve = np.stack([drawn.draws[k] for k in few.values()], axis=1)  # [b, k]
    value = over_tasks.equivalent_rows(point, list(few), np.array(drawn.mean[name]))
    draws = over_tasks.equivalent_rows(curve, list(few), drawn.draws[name])
    ends = over_tasks.rows_interval(float(value), draws)
    return dict(zip(("rows", "rows_low", "rows_high"), ends, strict=True))


# ---------------------------------------------------------------- paired comparisons
def compared_pairs(outcomes: Outcomes) -> pd.DataFrame:
    """One row per base model, split, metric and comparison: `COMPARED_COLUMNS`.

    `difference` is `what` minus `against`, over the tasks of both. `state`:

    - "above": the whole interval lies above 0;
    - "equal": the whole interval lies above minus one point, and not above 0;
    - "below": the whole interval lies under 0, and the method is not equal;
    - "undecided": all else, and whenever there is one task only.
    """
    table = []
    for (base, split), of_split in outcomes.items():
        for what, against in _pairs(of_split):
            for metric in TASK_METRICS:
                row = compared(of_split, what, against, metric)
                if row is not None:
                    table.append({"base": base, "split": split, "metric": metric} | row)
    return pd.DataFrame(table, columns=COMPARED_COLUMNS)


def _pairs(outcomes: SplitOutcomes) -> Iterable[tuple[str, str]]:
    """All comparisons of measured methods, each once."""
    pairs = [(name, against) for against in (DESCRIBED, TRAINED) for name in outcomes.names]
    plain = [name for name in outcomes.names if "/" not in name]
    few = list(outcomes.few_shot.values())
    for name in GENERATED_METHODS:
        pairs += [(name, against) for against in plain]
        pairs += [(f"{name}/{text}", name) for text in (*OTHER_TEXTS, *WITH_ROWS)]
        pairs += [(f"{name}/{rows}", against) for rows in WITH_ROWS for against in few]
    measured = set(outcomes.names)
    return dict.fromkeys(p for p in pairs if p[0] != p[1] and set(p) <= measured)


def compared(outcomes: SplitOutcomes, what: str, against: str, metric: str) -> dict | None:
    """The comparison of two methods; None if they have no task in common."""
    drawn = outcomes.draws([what, against], metric)
    if drawn is None:
        return None
    difference = drawn.mean[what] - drawn.mean[against]
    estimate = two_level.estimate(drawn.draws[what], drawn.draws[against], difference)
    counts = {"n_what": len(outcomes.seeds[what]), "n_against": len(outcomes.seeds[against])}
    row = {"what": what, "against": against} | estimate._asdict()
    state = state_of(estimate) if drawn.tasks > 1 else UNDECIDED
    return row | {"state": state, "n_tasks": drawn.tasks} | counts


def state_of(row) -> str:
    """above, equal, below or undecided, from the interval of a difference."""
    if row.ci_low > 0:
        return ABOVE
    if row.ci_low > -MARGIN:
        return EQUAL
    return BELOW if row.ci_high < 0 else UNDECIDED


# ---------------------------------------------------------------- aims
class _Margin(NamedTuple):
    """The largest loss to the description in the input, in points, by metric."""

    auc: float
    balanced_accuracy: float


_MARGINS = {False: _Margin(0.5, 2.0), True: _Margin(1.0, 4.0)}  # by whether the base is causal
AIMS = {  # name: words; stated before the measurement
    "described": "not below the description in the input by more than the margin",
    "beyond": "above the description in the input",
    "rival": "above {method}",
    "flops": "at most half of the FLOPs a row of the description in the input",
    "mismatched": "another task's text loses at least 90% of the gain",
    "paraphrase": "held-out wordings keep at least 98% of the gain",
    "trained": "within 1 point of trained",
    "rows": "a sentence and 4 rows: not below an adapter trained on 16 rows by more than 1 point",
}


def aims(outcomes: Outcomes, costs: pd.DataFrame | None = None) -> pd.DataFrame:
    """One row per aim, base model, split and metric: `AIM_COLUMNS`.

    An aim is reached if the whole interval lies on the right side of its bound, missed if it lies
    on the other side, and undecided otherwise. value, its interval and the bound are shares of 1:
    differences, or shares of a gain or of a cost. Costs have no interval.

    Args:
        outcomes: by base model and split.
        costs: rows of intents_costs.csv of the same source.
    """
    table = []
    for (base, split), of_split in outcomes.items():
        name = judged_method(of_split)
        if name is None:
            continue
        for row in _aims_of(base, split, name, of_split):
            table.append({"base": base, "split": split} | row)
            table += _cheaper(base, split, costs) if costs is not None and split == "L2" else []
    return pd.DataFrame(table, columns=AIM_COLUMNS)


def _aims_of(base: str, split: str, name: str, outcomes: SplitOutcomes) -> Iterator[dict]:
    """The aims of the method `name` on a split, without base model and split."""
    if split == "L1":
        yield from _above(outcomes, name, TRAINED, "auc", -MARGIN, AIMS["trained"])
    if split == "L3":
        for metric in TASK_METRICS:
            yield from _above(outcomes, name, DESCRIBED, metric, 0.0, AIMS["beyond"])
    if split != "L2":
        return
    for metric in TASK_METRICS:
        points = getattr(_MARGINS[is_causal(base)], metric)
        yield from _above(outcomes, name, DESCRIBED, metric, -points / 100, AIMS["described"])
        yield from _above(outcomes, name, DESCRIBED, metric, 0.0, AIMS["beyond"])
        for rival in RIVALS:
            words = AIMS["rival"].format(method=METHOD_WORDS[rival])
            yield from _above(outcomes, name, rival, metric, 0.0, words)
    yield from _share(outcomes, name, "mismatched", 0.9)
    yield from _share(outcomes, name, "paraphrase", 0.98)
    with_rows = f"{name}/matched_4", "few_shot_16"
    yield from _above(outcomes, *with_rows, "auc", -MARGIN, AIMS["rows"])


def _above(
    outcomes: SplitOutcomes, what: str, against: str, metric: str, bound: float, words: str
) -> Iterator[dict]:
    """Whether a difference lies above `bound`; nothing if it was not measured."""
    row = compared(outcomes, what, against, metric)
    if row is not None:
        ends = row["difference"], row["ci_low"], row["ci_high"]
        yield _aim(words, metric, ends, bound, row["n_tasks"])


def _share(outcomes: SplitOutcomes, name: str, text: str, bound: float) -> Iterator[dict]:
    """Whether the share of the gain in AUC that a text loses or keeps is at least `bound`.

    The gain is over chance or the base model, whichever is higher.
    """
    other = f"{name}/{text}"
    names = [name, other, *(["base"] if "base" in outcomes.names else [])]
    drawn = outcomes.draws(names, "auc")
    if drawn is None:
        return
    of_base = drawn.mean.get("base", 0.0) > CHANCE
    floor, floors = (drawn.mean["base"], drawn.draws["base"]) if of_base else (CHANCE, CHANCE)
    gains = drawn.draws[name] - floors
    kept = (drawn.draws[other] - floors) / np.where(gains > 0, gains, np.nan)
    if not np.isfinite(kept).any() or drawn.mean[name] <= floor:
        return
    value = (drawn.mean[other] - floor) / (drawn.mean[name] - floor)
    if text == "mismatched":
        value, kept = 1 - value, 1 - kept
    ends = interval(value, kept[np.isfinite(kept)])
    yield _aim(AIMS[text], "auc", ends, bound, drawn.tasks)


def _cheaper(base: str, split: str, costs: pd.DataFrame) -> list[dict]:
    """Whether a generated adapter takes at most half of the FLOPs of a row with its description."""
    flops = costs_of(costs, base, split).flops_row
    name = next((name for name in GENERATED_METHODS if np.isfinite(flops.get(name, np.nan))), None)
    described = flops.get(DESCRIBED, np.nan)
    if name is None or not np.isfinite(described):
        return []
    share = float(flops[name] / described)
    verdict = REACHED if share <= 0.5 else MISSED
    row = {
        "aim": AIMS["flops"],
        "base": base,
        "split": split,
        "metric": "flops_row",
        "value": share,
    }
    return [row | {"ci_low": share, "ci_high": share, "bound": 0.5, "verdict": verdict}]


def _aim(words: str, metric: str, ends: Iterable[float], bound: float, n_tasks: int) -> dict:
    """The columns of an aim after base model and split; one task decides nothing."""
    value, low, high = ends
    verdict = REACHED if low > bound else MISSED if high < bound else UNDECIDED
    verdict = verdict if n_tasks > 1 else UNDECIDED
    row = {"aim": words, "metric": metric, "value": value, "ci_low": low, "ci_high": high}
    return row | {"bound": bound, "verdict": verdict}
