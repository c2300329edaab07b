"""The outcomes of one base model and split of experiment intents: a value a method and task.

A method under its own text, or without text, is named by the method: "generated". Under another
condition the condition follows: "generated/paraphrase", "generated/matched_4". Letters: b draws, m
methods, s samples over all seeds, t tasks, n rows of a task.
"""

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np
import pandas as pd

from oral_lib.errors import OralError
from oral_lib.evaluation import over_tasks, two_level
from oral_lib.evaluation.schema import row_keys

INTENTS = "intents"  # the experiment
TASK_METRICS = ["auc", "balanced_accuracy"]
BASE_ORDER = [
    "minilm-l6",
    "minilm-l3",
    "smollm2-135m",
    "smollm2-135m-all",
]  # the first of the tables
FEW_ROWS = "few_shot_"  # and the number of labelled rows
_USUAL = ("none", "matched")
_RUN = ["method", "condition", "seed", "sample"]


def method_name(method: str, condition: str) -> str:
    """The name of a method under a condition: "trained", "generated", "generated/empty"."""
    return method if condition in _USUAL else f"{method}/{condition}"


def costs_of(costs: pd.DataFrame, base: str, split: str) -> pd.DataFrame:
    """The rows of intents_costs.csv of a split on a base model, by `method_name`."""
    here = costs[(costs.base == base) & (costs.split == split)]
    names = [method_name(*pair) for pair in zip(here.method, here.condition, strict=True)]
    return here.assign(method=names).set_index("method")


def split_of(task: str) -> str:
    """The split in the name of a task.

    >>> split_of("L2/clinc150.alarm")
    'L2'
    """
    return task.partition("/")[0]


class Draws(NamedTuple):
    """The means over tasks of all methods that have these tasks.

    Args:
        mean: the observed mean by name.
        draws: [b] by name, under the same resampled tasks, rows, seeds and samples.
        tasks: the number of tasks.
    """

    mean: dict[str, float]
    draws: dict[str, np.ndarray]
    tasks: int


class SplitOutcomes:
    """The outcomes of every method on the tasks of one split.

    Args:
        items: rows of an items table, of one base model and split.
        n_boot: the number of draws of every interval.

    Attributes:
        names: of the methods and conditions, in the order of the tables.
        tasks: [t], the names of the tasks.
        seeds: by name [s], the generator seed of each sample.
        rows: by name, the smallest number of rows of a task.
    """

    def __init__(self, items: pd.DataFrame, n_boot: int = two_level.DRAWS):
        self.n_boot = n_boot
        items = items.assign(run=pd.factorize(row_keys(items, _RUN), sort=True)[0])
        runs = items.drop_duplicates("run").sort_values("run", kind="stable")[_RUN]
        self._name_of_run = [method_name(*pair) for pair in zip(runs.method, runs.condition)]  # noqa: B905
        seeds = runs.seed.to_numpy()
        self.names = list(dict.fromkeys(self._name_of_run))
        self._runs = {
            name: np.flatnonzero([name == other for other in self._name_of_run])
            for name in self.names
        }
        self.seeds = {name: seeds[index] for name, index in self._runs.items()}
        self.tasks = [str(task) for task in items.task.unique()]
        self.rows = dict.fromkeys(self.names, 0)
        shape = len(runs), len(self.tasks)
        self._values = {metric: np.full(shape, np.nan) for metric in TASK_METRICS}
        self._influences: dict[str, list[np.ndarray]] = {metric: [] for metric in TASK_METRICS}
        self._ids: list[np.ndarray] = []
        for column, (_, part) in enumerate(items.groupby("task", sort=False, observed=True)):
            self._add(column, part)
        self._cache: dict[tuple[str, bytes], Draws] = {}

    def _add(self, column: int, items: pd.DataFrame) -> None:
        """Computes the values and influences of one task, for runs that were scored on the same
        rows at once."""
        ids, position = np.unique(items["item"].cat.codes, return_inverse=True)
        scores = np.full((len(self._name_of_run), len(ids)), np.nan)
        correct, labels = scores.copy(), np.zeros(len(ids), int)
        run = items.run.to_numpy()
        scores[run, position], correct[run, position] = items.score, items.correct
        labels[position] = items.label
        influences = {metric: np.zeros((len(self.names), len(ids))) for metric in TASK_METRICS}
        measured = np.isfinite(correct)
        for pattern in np.unique(measured[measured.any(axis=1)], axis=0):
            members = np.flatnonzero((measured == pattern).all(axis=1))
            truth = labels[pattern]
            if set(np.unique(truth)) != {0, 1}:
                continue
            for metric, numbers in (("auc", scores), ("balanced_accuracy", correct)):
                chosen = members[np.isfinite(numbers[members][:, pattern]).all(axis=1)]
                if not len(chosen):
                    continue
                compute = two_level.auc_values if metric == "auc" else two_level.balanced_values
                values = compute(truth, numbers[chosen][:, pattern])
                self._values[metric][chosen, column] = values.mean(axis=1)
                for i, name in enumerate(self.names):
                    of_name = np.isin(chosen, self._runs[name])
                    if of_name.any():
                        moved = over_tasks.row_influences(values[of_name].mean(axis=0))
                        influences[metric][i, pattern] = moved
            for name in {self._name_of_run[run] for run in members}:
                least = self.rows[name] or len(truth)
                self.rows[name] = min(least, len(truth))
        self._ids.append(ids)
        for metric in TASK_METRICS:
            self._influences[metric].append(influences[metric])

    # ------------------------------------------------------------ values
    def values(self, name: str, metric: str) -> np.ndarray:
        """[s, t], NaN where a sample was not measured on a task."""
        return self._values[metric][self._runs[name]]

    def by_task(self, name: str, metric: str = "auc") -> pd.Series:
        """The mean over samples by task; NaN where the method was not measured."""
        return pd.Series(self.values(name, metric).mean(axis=0), self.tasks)

    def measured(self, names: Sequence[str], metric: str) -> np.ndarray:
        """[t], whether every sample of all `names` has a value of the task."""
        return np.all([np.isfinite(self.values(n, metric)).all(axis=0) for n in names], axis=0)

    @cached_property
    def few_shot(self) -> dict[int, str]:
        """The names of the adapters trained on few rows, by their number of rows, increasing."""
        names = [name for name in self.names if name.startswith(FEW_ROWS) and "/" not in name]
        return dict(sorted((int(name.removeprefix(FEW_ROWS)), name) for name in names))

    def draws(self, names: Sequence[str], metric: str) -> Draws | None:
        """The means of all methods over the tasks that all `names` have; None without tasks."""
        if not set(names) <= set(self.names):
            return None
        mask = self.measured(names, metric)
        if not mask.any():
            return None
        key = metric, mask.tobytes()
        if key not in self._cache:
            self._cache[key] = self._drawn(mask, metric)
        return self._cache[key]

    def _drawn(self, mask: np.ndarray, metric: str) -> Draws:
        covered = [n for n in self.names if (self.measured([n], metric) | ~mask).all()]
        index = [self.names.index(name) for name in covered]
        columns = np.flatnonzero(mask)
        influences = [self._influences[metric][column][index] for column in columns]
        covariance = over_tasks.shared_rows(influences, [self._ids[column] for column in columns])
        sides = {
            name: two_level.Side(self.values(name, metric)[:, mask], self.seeds[name])
            for name in covered
        }
        draws = over_tasks.resampled_tasks(sides, covariance, n_boot=self.n_boot)
        return Draws({name: side.mean for name, side in sides.items()}, draws, len(columns))


def by_split(items: pd.DataFrame, n_boot: int = two_level.DRAWS) -> Iterator[tuple]:
    """((base, split), its outcomes) for each base model and split of an items table.

    Args:
        items: items of experiment intents and one source, in the order of the schema.
        n_boot: the number of draws of every interval.

    Raises:
        OralError: without items.
    """
    if items.empty:
        raise OralError("There are no items of experiment intents: measure its cells first.")
    names = items.task.cat.categories
    split = pd.Series([split_of(name) for name in names])[items.task.cat.codes].to_numpy()
    groups = items.groupby(["base", pd.Series(split, items.index)], sort=False, observed=True)
    order = {name: i for i, name in enumerate(BASE_ORDER)}
    for base, name in sorted(
        groups.groups, key=lambda key: (key[1], order.get(key[0], 99), key[0])
    ):
        part = groups.get_group((base, name))
        yield (str(base), str(name)), SplitOutcomes(part, n_boot)
