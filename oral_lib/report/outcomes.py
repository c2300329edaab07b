"""The outcomes of one base model and task as arrays, by method and condition.

A method under its own text is named by the method: "generated". Under another text the condition
follows: "generated/paraphrase". `trained` are all trained adapters of a cell: `trained_zoo`, which
generators were trained on, and `trained_held_out`. `generated_one` is the first generated sample:
what a user gets, and no mean over samples. Letters: s samples over all seeds, n items.
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import pandas as pd

from oral_lib.errors import OralError
from oral_lib.evaluation import two_level
from oral_lib.evaluation.schema import PROMPTED, row_keys

TRAINED, TRAINED_ZOO, TRAINED_HELD_OUT = "trained", "trained_zoo", "trained_held_out"
ONE = "generated_one"
STORED = ["router", "retrieval"]  # methods whose samples are stored adapters
BASELINES = ["base", "majority"]
JUDGED_METRICS = ["accuracy", "auc", "balanced_accuracy"]


def name_of(method: str, condition: str) -> str:
    """The name of a method under a condition: "generated", "generated/paraphrase", "base"."""
    usual = "matched" if method in PROMPTED else "none"
    return method if condition == usual else f"{method}/{condition}"


class _Samples(NamedTuple):
    """The samples of one method and condition: rows of the arrays of a cell, and their seeds."""

    rows: np.ndarray
    seeds: np.ndarray


class CellOutcomes:
    """The outcomes of every method of one cell.

    Args:
        items: rows of an items table, of one base model and task.
        held_out: the last so many samples of `trained` are the held-out adapters.
        metric: one of `JUDGED_METRICS`.

    Attributes:
        names: of the methods and conditions.
        baseline: the better of base model and majority class; "" if neither was measured.

    Raises:
        OralError: for another metric.
    """

    def __init__(self, items: pd.DataFrame, held_out: int = 0, metric: str = "accuracy"):
        if metric not in JUDGED_METRICS:
            raise OralError(f"Metric {metric!r} cannot be judged. Use {', '.join(JUDGED_METRICS)}.")
        self._metric = metric
        key = row_keys(items, ["method", "condition", "seed", "sample"])
        _, first, row = np.unique(key, return_index=True, return_inverse=True)
        used, column = np.unique(items["item"].astype("category").cat.codes, return_inverse=True)
        shape = len(first), len(used)
        self._labels = np.zeros(len(used), int)
        self._labels[column] = items.label
        self._correct, self._score, self._predicted = (np.full(shape, np.nan) for _ in range(3))
        self._correct[row, column] = items.correct
        self._score[row, column] = items.score
        self._predicted[row, column] = items.predicted
        runs = items.iloc[first][["method", "condition", "seed"]].astype({"seed": int})
        self._samples: dict[str, _Samples] = {}
        for position, (method, condition, _) in enumerate(runs.itertuples(index=False)):
            self._samples.setdefault(name_of(method, condition), []).append(position)
        for name, rows in self._samples.items():
            self._samples[name] = _Samples(np.array(rows), runs.seed.to_numpy()[rows])
        if held_out and TRAINED in self._samples:
            self._split(held_out)
        if "generated" in self._samples:
            self._samples[ONE] = _Samples(*(part[:1] for part in self._samples["generated"]))
        self.names = set(self._samples)
        means = {name: self._mean(name) for name in BASELINES if name in self.names}
        means = {name: mean for name, mean in means.items() if np.isfinite(mean)}
        self.baseline = max(means, key=means.get) if means else ""

    def _split(self, held_out: int) -> None:
        rows, seeds = self._samples[TRAINED]
        if len(rows) > held_out:
            self._samples[TRAINED_ZOO] = _Samples(rows[:-held_out], seeds[:-held_out])
            self._samples[TRAINED_HELD_OUT] = _Samples(rows[-held_out:], seeds[-held_out:])

    def _mean(self, name: str) -> float:
        shared = self.shared([name])
        return self.side(name, shared).mean if shared.any() else np.nan

    def shared(self, names: Iterable[str]) -> np.ndarray:
        """Which items every sample of all `names` was scored on, bool; none without the metric."""
        rows = np.concatenate([self._samples[name].rows for name in names])
        values = self._score if self._metric == "auc" else self._correct
        shared = np.isfinite(values[rows]).all(axis=0)
        two_labels = set(np.unique(self._labels[shared])) == {0, 1}
        return shared if two_labels or self._metric == "accuracy" else np.zeros_like(shared)

    def side(self, name: str, shared: np.ndarray) -> two_level.Side:
        """The samples called `name` on the items `shared`, for `two_level.resampled`."""
        rows, seeds = self._samples[name]
        labels, values = self._labels[shared], self._correct[rows][:, shared]
        if self._metric == "auc":
            values = two_level.auc_values(labels, self._score[rows][:, shared])
        elif self._metric == "balanced_accuracy":
            values = two_level.balanced_values(labels, values)
        return two_level.Side(values, seeds, self._originals(name, shared))

    def _originals(self, name: str, shared: np.ndarray) -> np.ndarray | None:
        """The indices in `trained` of the adapters of `name`, if all of them are stored there."""
        rows, trained = self._samples[name].rows, self._samples.get(TRAINED)
        if trained is None or name == TRAINED:
            return None
        if name in (TRAINED_ZOO, TRAINED_HELD_OUT):
            return np.searchsorted(trained.rows, rows)
        if name.partition("/")[0] not in STORED:
            return None
        predicted = self._predicted[:, shared]  # equal on every item: the same adapter
        same = np.stack([(predicted[trained.rows] == predicted[row]).all(axis=1) for row in rows])
        return same.argmax(axis=1) if same.any(axis=1).all() else None
