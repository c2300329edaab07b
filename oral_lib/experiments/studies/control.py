"""Control: what the text and the description of the base model do to a generated adapter.

All accuracies are of validation rows, so that a reader may look as often as he likes.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import pandas as pd
import torch
from torch import Tensor

from oral_lib import seeds
from oral_lib.baselines.router import Retrieval, Router
from oral_lib.errors import UsageError, closest
from oral_lib.evaluation.evaluate import accuracy_of, evaluate
from oral_lib.generator import Conditions, Generator
from oral_lib.lora import distances
from oral_lib.lora.adapter import Adapter
from oral_lib.models.base import BaseModel
from oral_lib.tasks.rows import Row, task_rows
from oral_lib.tasks.task import load_task
from oral_lib.zoo.store import Member


@dataclass(frozen=True)
class Bench:
    """A base model, a generator and a zoo, with what measures generated adapters.

    Args:
        model: the base model.
        generator: conditioned on it.
        members: the zoo of the base model.
        source: of the rows.
        n_rows: validation rows of a task, at most.
        n_samples: adapters generated for a condition.
        seed: of the samples.
    """

    model: BaseModel
    generator: Generator
    members: Sequence[Member] = field(repr=False)
    source: str
    n_rows: int = 100
    n_samples: int = 3
    seed: int = 0

    @cached_property
    def tasks(self) -> tuple[str, ...]:
        """The tasks of the zoo."""
        return tuple(dict.fromkeys(member.task for member in self.members))

    @cached_property
    def router(self) -> Router:
        """The classifier of texts over these tasks."""
        return Router(self.tasks, self.generator.encoder)

    @cached_property
    def retrieval(self) -> Retrieval:
        """The task with the nearest description."""
        return Retrieval(self.tasks, self.generator.encoder)

    @cached_property
    def rows(self) -> Mapping[str, Sequence[Row]]:
        """The validation rows of each task."""
        return {
            name: task_rows(load_task(name), self.source).validation[: self.n_rows]
            for name in self.tasks
        }

    def accuracy(self, adapters: Sequence[Adapter], task: str) -> list[float]:
        """The share of validation rows of `task` that each adapter answers correctly."""
        outcomes = evaluate(self.model, load_task(task), self.rows[task], list(adapters))
        return [accuracy_of(outcome) for outcome in outcomes]

    def conditions(self, text: str | Tensor, **options) -> Conditions:
        """`Generator.conditions` of a text for this base model."""
        return self.generator.conditions(text, self.model.name, **options)

    def samples(self, conditions: Conditions, **changes) -> list[Adapter]:
        """The adapters generated from `conditions`; all conditions share their noise.

        `changes` are fields of `SamplingConfig`.
        """
        sampling = self.generator.chosen_sampling(None, changes)
        noise = seeds.integer(self.seed, "control")
        return self.generator.sample(conditions, self.n_samples, noise, sampling)

    def check_task(self, name: str) -> None:
        """Raises UsageError, with the nearest name, unless the zoo has the task."""
        if name not in self.tasks:
            raise UsageError(
                f"the zoo of {self.model.name} has no task {name!r}."
                f"{closest(name, self.tasks)} It has {', '.join(self.tasks)}."
            )


def references(bench: Bench) -> pd.DataFrame:
    """Accuracy of the base model and of the zoo on each task: columns task, base, trained."""
    rows = []
    for task in bench.tasks:
        zoo = [member.tensors for member in bench.members if member.task == task]
        base, *trained = bench.accuracy([bench.model.lora_init(), *zoo], task)
        rows.append({"task": task, "base": base, "trained": sum(trained) / len(trained)})
    return pd.DataFrame(rows)


def guidance(bench: Bench, strengths: Iterable[float]) -> pd.DataFrame:
    """Accuracy against guidance: a row a task, guidance and sample.

    0 ignores the text, 1 is the network's own answer, beyond 1 exaggerates what the text changes.
    Columns: task, guidance, sample, accuracy.
    """
    rows = []
    for task in bench.tasks:
        conditions = bench.conditions(load_task(task).description)
        for strength in strengths:
            adapters = bench.samples(conditions, guidance=float(strength))
            for sample, accuracy in enumerate(bench.accuracy(adapters, task)):
                about = {"task": task, "guidance": float(strength), "sample": sample}
                rows.append(about | {"accuracy": accuracy})
    return pd.DataFrame(rows)


def interpolation(bench: Bench, first: str, second: str, weights: Iterable[float]) -> pd.DataFrame:
    """Accuracy on two tasks from a mix of their descriptions: a row a task, weight and sample.

    Args:
        bench: what measures.
        first: the task at weight 0.
        second: the task at weight 1.
        weights: of the second task, from 0 to 1.

    Returns:
        Columns mixed, weight, task, sample, accuracy. Mixed are the embeddings of the two texts,
        scaled to length 1 ("texts"), or the conditions of the network ("conditions").

    Raises:
        UsageError: the zoo has no such task.
    """
    for name in (first, second):
        bench.check_task(name)
    texts = [load_task(name).description for name in (first, second)]
    embeddings = bench.generator.encoder.encode(texts)  # [2, e]
    ends = [bench.conditions(text) for text in texts]
    rows = []
    for weight in map(float, weights):
        mean = torch.lerp(*embeddings, weight)
        for mixed, conditions in (
            ("texts", bench.conditions(mean / mean.norm())),
            ("conditions", ends[0].mixed(ends[1], weight)),
        ):
            adapters = bench.samples(conditions)
            for task in (first, second):
                for sample, accuracy in enumerate(bench.accuracy(adapters, task)):
                    about = {"mixed": mixed, "weight": weight, "task": task, "sample": sample}
                    rows.append(about | {"accuracy": accuracy})
    return pd.DataFrame(rows)


def wrong_base(bench: Bench) -> pd.DataFrame:
    """Accuracy where the network reads the description of another base model of the generator.

    The decoded adapters still have the layout and statistics of the base model itself. Columns:
    described, other, task, sample, accuracy. No rows if the generator has one base model.
    """
    entries, rows = bench.generator.bases, []
    right = entries[bench.model.name]
    for other in (name for name in entries if name != bench.model.name):
        wrong = entries[other]
        for described, c_model in {
            "right": (right.structure, right.fingerprint),
            "wrong structure": (wrong.structure, right.fingerprint),
            "wrong fingerprint": (right.structure, wrong.fingerprint),
            "both wrong": (wrong.structure, wrong.fingerprint),
        }.items():
            for task in bench.tasks:
                text = load_task(task).description
                adapters = bench.samples(bench.conditions(text, c_model=c_model))
                for sample, accuracy in enumerate(bench.accuracy(adapters, task)):
                    about = {"described": described, "other": other, "task": task}
                    rows.append(about | {"sample": sample, "accuracy": accuracy})
    return pd.DataFrame(rows, columns=["described", "other", "task", "sample", "accuracy"])


def sentences(bench: Bench, texts: Sequence[str]) -> pd.DataFrame:
    """What the generator makes of any sentences: a row a sentence.

    Columns: `sentence`; the tasks that `router` and `retrieval` pick; the task of the `nearest` zoo
    adapter and the `distance` to it, where 1 is the median distance of two adapters of one task;
    then the mean accuracy of the samples on each task.
    """
    ratio = bench.model.spec.alpha / bench.model.spec.rank
    zoo = [member.tensors for member in bench.members]
    apart = distances.pairwise(zoo, zoo, ratio)  # [n, n]
    names = [member.task for member in bench.members]
    same = [float(apart[i, j]) for i in range(len(names)) for j in range(i) if names[i] == names[j]]
    unit = float(torch.tensor(same).median()) if same else float("nan")
    rows = []
    for text in texts:
        adapters = bench.samples(bench.conditions(text))
        gaps = distances.pairwise(adapters, zoo, ratio).mean(0)  # [n]
        rows.append(
            {
                "sentence": text,
                "router": bench.router.pick(text),
                "retrieval": bench.retrieval.pick(text),
                "nearest": names[int(gaps.argmin())],
                "distance": float(gaps.min()) / unit,
            }
            | {task: _mean(bench.accuracy(adapters, task)) for task in bench.tasks}
        )
    return pd.DataFrame(rows)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
