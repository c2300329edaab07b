"""Rows of published results that follow from stored outcomes, without a model or an adapter.

Router, retrieval and adapter average return stored adapters. The outcomes of the task's adapters
are published as `trained`, the outcomes of the nearest task as `retrieval`. So the rows of a
condition follow where all tasks that are picked for its texts have outcomes on the cell's rows.
Elsewhere there is no row; texts.csv has the picked tasks.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from oral_lib import provenance, seeds, storage
from oral_lib.baselines import router
from oral_lib.evaluation import item_tables, results, small_tables
from oral_lib.evaluation.schema import PLACE
from oral_lib.experiments import unseen
from oral_lib.experiments.conditions import Pickers, Question, Size, questions_of, text_rows
from oral_lib.experiments.records import EXPERIMENTS
from oral_lib.models import contrastive
from oral_lib.models.text_encoder import load_encoder
from oral_lib.progress import bar
from oral_lib.tasks.task import load_task

CONDITIONS = ("matched", "paraphrase")  # the others name tasks whose outcomes are not stored
WORDINGS_USED = "development"


@dataclass(frozen=True, kw_only=True)
class PublishedZoo:
    """The zoo of one base model, as the manifest of published results lists it.

    Args:
        seeds: the seeds of each task that generators were trained on, in the order of the zoo.
        held_out: further seeds of each task.
        pickers: router and retrieval over its tasks.
    """

    seeds: Mapping[str, Sequence[int]]
    held_out: Sequence[int]
    pickers: Pickers


def add_chosen(folder: Path) -> dict[str, int]:
    """Adds the rows of router, retrieval and average to results/<scale>; the number by method.

    Cells whose router was measured keep their rows.

    Args:
        folder: the published results of a scale.
    """
    manifest = storage.read_json(folder / "manifest.json")
    counts: dict[str, int] = {}
    metrics = results.read_metrics(folder / "metrics.csv")
    for experiment, source in sorted(set(zip(metrics.experiment, metrics.source, strict=True))):
        about = manifest[EXPERIMENTS[experiment].publication(source)]
        rows, items = results.read(folder, experiment, source)
        measured = rows[(rows.method == "router") & (rows.condition == "random")]
        keys = set(measured[PLACE].itertuples(index=False, name=None))
        zoos = _zoos(about)
        tables, texts = [], []
        cells = dict(list(rows.groupby(PLACE)))
        for key in bar(list(cells), label=f"{experiment} {source}", unit="cell"):
            if key in keys:
                continue
            part = items[(items.base == key[2]) & (items.task == key[3])]
            cell = _Cell(dict(zip(PLACE, key, strict=True)), cells[key], part, zoos[key[2]])
            texts += cell.texts()
            tables += [(cells[key], table) for table in cell.chosen()]
        if texts:
            small_tables.TEXTS.append(folder, texts)
        new = [_metrics(rows, table) for rows, table in tables]
        if new:
            chosen = item_tables.join(table for _, table in tables)
            results.extend(folder, pd.concat(new), chosen)
        for _, table in tables:
            name = f"{table.method.iloc[0]} {table.condition.iloc[0]}"
            counts[name] = counts.get(name, 0) + 1
    return counts


def _zoos(manifest: Mapping) -> dict[str, PublishedZoo]:
    """The zoos of a publication by base model."""
    tasks: dict[str, dict[str, list[int]]] = {}
    for member in manifest["zoo"]:
        by_task = tasks.setdefault(member["base"], {})
        by_task.setdefault(member["task"], []).append(member["seed"])
    encoder = load_encoder(manifest["generator"]["text_encoder"])
    pickers = {
        names: Pickers.of(names, encoder) for names in {tuple(zoo) for zoo in tasks.values()}
    }
    held_out = manifest["seeds"].get("held out of training", [])
    return {
        base: PublishedZoo(seeds=zoo, held_out=held_out, pickers=pickers[tuple(zoo)])
        for base, zoo in tasks.items()
    }


class _Cell:
    """The published rows of one task on one base model."""

    def __init__(self, place: dict, metrics: pd.DataFrame, items: pd.DataFrame, zoo: PublishedZoo):
        self.place, self.items, self.zoo = place, items, zoo
        accuracy = metrics[metrics.metric == "accuracy"].set_index(["method", "condition", "seed"])
        self.accuracy, self.task = accuracy, load_task(place["task"])
        few = self._count("paraphrase") // len(self.task.paraphrases[WORDINGS_USED])
        self.size = Size(
            rows=int(accuracy.n_items["generated", "matched", 0]),
            control_rows=int(accuracy.n_items["generated", "empty", 0]),
            samples=self._count("matched"),
            control_samples=self._count("empty"),
            other_tasks=self._count("mismatched") // few,
            zoo_adapters=int(accuracy.n_samples["trained", "none", 0]),
        )

    def _count(self, condition: str) -> int:
        """The samples that were generated under a condition."""
        return int(self.accuracy.n_samples.get(("generated", condition, 0), 0))

    def questions(self, seed: int) -> list[Question]:
        """The texts of the cell of a seed."""
        pickers, about = self.zoo.pickers, {"seed": seed, "wordings": WORDINGS_USED}
        if self.place["experiment"] == "unseen":
            names = pickers.router.names
            return unseen.unseen_questions(self.task, names, self.size, pickers=pickers, **about)
        encoder = pickers.router.encoder
        return questions_of(self.task, pickers, encoder, self.size, **about)

    def texts(self) -> list[dict]:
        """The rows of texts.csv of all seeds."""
        numbers = sorted({seed for method, _, seed in self.accuracy.index if method == "generated"})
        return [
            row
            for seed in numbers
            for row in text_rows(self.place | {"seed": seed}, self.questions(seed))
        ]

    def outcomes(self, matched: Question) -> dict[tuple[str, int], pd.DataFrame]:
        """The stored items of adapters of the zoo, by task and seed."""
        stored = {}
        [nearest] = matched.retrieval
        chosen = self.zoo.seeds[nearest][-self.size.zoo_adapters :]
        for seed, items in zip(chosen, self._samples("retrieval", "matched"), strict=True):
            stored[nearest, seed] = items
        if numbers := self.zoo.seeds.get(self.task.name):
            trained = [*numbers, *self.zoo.held_out][-self.size.zoo_adapters :]
            for seed, items in zip(trained, self._samples("trained", "none"), strict=True):
                if seed in numbers:
                    stored[self.task.name, seed] = items
        return stored

    def _samples(self, method: str, condition: str) -> list[pd.DataFrame]:
        items = self.items
        part = items[(items.method == method) & (items.condition == condition) & (items.seed == 0)]
        return [rows for _, rows in part.groupby("sample")]

    def chosen(self) -> Iterator[pd.DataFrame]:
        """The items of each method and condition whose outcomes are all stored."""
        questions = [q for q in self.questions(0) if q.condition in CONDITIONS]
        stored = self.outcomes(questions[0])
        average = self._samples("soup_task", "none")
        for question in questions:
            for method, picks in (("router", question.router), ("retrieval", question.retrieval)):
                if (method, question.condition) == ("retrieval", "matched"):
                    continue
                adapters = self._drawn(question, picks)
                if all(adapter in stored for adapter in adapters):
                    samples = [stored[adapter] for adapter in adapters]
                    yield _as_method(method, question.condition, samples)
            if average and set(question.router) == {self.task.name}:
                samples = average * len(question.router)
                yield _as_method("soup_task", question.condition, samples)

    def _drawn(self, question: Question, picks: Sequence[str]) -> list[tuple[str, int]]:
        """(task, seed) of the adapters that `trials.chosen_trials` draws."""
        adapters = []
        for i, name in enumerate(picks):
            numbers = self.zoo.seeds[name][-self.size.zoo_adapters :]
            stream = seeds.integer(0, question.condition, i)
            drawn = router.draw(len(numbers), question.n, stream)
            adapters += [(name, numbers[j]) for j in drawn]
        return adapters


def _as_method(method: str, condition: str, samples: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Items of adapters as items of another method, a sample each."""
    tables = [
        items.assign(method=method, condition=condition, sample=sample)
        for sample, items in enumerate(samples)
    ]
    return item_tables.join(tables)


def _metrics(rows: pd.DataFrame, items: pd.DataFrame) -> pd.DataFrame:
    """The metric rows of items of one cell; kinds of items are known for ranks only."""
    first, matches = rows.iloc[0], load_task(items.task.iloc[0]).scoring == "match"
    names = items["item"].astype(str).unique()
    return item_tables.summarise(
        items,
        family=first.family,
        base_version=first.base_version,
        commit=provenance.code_commit(),
        balanced="balanced_accuracy" in set(rows.metric),
        kinds={name: name.partition("/")[0] for name in names} if matches else {},
        depths=contrastive.DEPTHS if matches else (),
    )
