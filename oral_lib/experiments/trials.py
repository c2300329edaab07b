"""The trials of a cell: each method under each condition, with its adapters.

Under each text condition router, retrieval, regression and adapter average answer the very texts
that the generator is conditioned on.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from oral_lib import seeds
from oral_lib.baselines import averages, router
from oral_lib.experiments.conditions import Question, Size
from oral_lib.generator import Generator
from oral_lib.models.base import BaseModel
from oral_lib.tasks.task import Task
from oral_lib.zoo.store import Member

PROJECTION_OF = {"generated_span": "span", "generated_free": "none"}  # "generated" has the default


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One method under one condition: the adapters to be scored, and on how many rows."""

    method: str
    condition: str
    adapters: Sequence[dict[str, Tensor]] = field(repr=False)
    rows: int
    seconds: float = 0.0  # of computing the adapters


@dataclass(frozen=True)
class Models:
    """The networks that generate adapters from text."""

    generator: Generator
    regression: Generator
    unconditional: Generator | None = None
    through_base: Generator | None = None


def adapters_of(
    model: Generator,
    texts: Sequence[str],
    base: str,
    n: int,
    *,
    condition: str,
    seed: int,
    **options: Any,
) -> list[dict[str, Tensor]]:
    """n adapters for each text; text i has the seed derived from (seed, condition, i).

    Args:
        model: a generator or a baseline of the same class.
        texts: task descriptions, or controls.
        base: name of the base model.
        n: adapters of each text.
        condition: one of `schema.CONDITIONS`.
        seed: of the cell.
        options: further arguments of `Generator.generate`.
    """
    return [
        adapter
        for i, text in enumerate(texts)
        for adapter in model.generate(text, base, n, seeds.integer(seed, condition, i), **options)
    ]


def generated_trial(
    model: Generator,
    texts: Sequence[str],
    base: str,
    n: int,
    *,
    method: str,
    condition: str,
    rows: int,
    seed: int,
    **options: Any,
) -> Trial:
    """The trial of `adapters_of` these arguments as `method`, timed."""
    began = time.perf_counter()
    adapters = adapters_of(model, texts, base, n, condition=condition, seed=seed, **options)
    seconds = time.perf_counter() - began
    return Trial(method=method, condition=condition, adapters=adapters, rows=rows, seconds=seconds)


def trials(
    task: Task,
    base: BaseModel,
    members: Sequence[Member],
    held_out: Sequence[Member],
    models: Models,
    size: Size,
    questions: Sequence[Question],
    *,
    seed: int,
) -> Iterator[Trial]:
    """All methods of the result table but majority and the linear probe.

    Methods that do not depend on the generator are measured with seed 0 only.

    Args:
        task: the task of the cell.
        base: the base model of the cell.
        members: the zoo of this base model.
        held_out: adapters of the task that no generator was trained on.
        models: the networks that generate adapters.
        size: sample sizes.
        questions: the texts of each condition, "matched" first.
        seed: of the cell.
    """
    by_task: dict[str, list[dict[str, Tensor]]] = {}
    for member in members:
        by_task.setdefault(member.task, []).append(member.tensors)
    matched, rows = questions[0], size.rows

    def plain(method: str, adapters: Sequence[dict[str, Tensor]], condition="none") -> Trial:
        return Trial(method=method, condition=condition, adapters=adapters, rows=rows)

    def generated(
        question: Question, method: str = "generated", model=models.generator, n: int = 0, **options
    ) -> Trial:
        about = {"method": method, "condition": question.condition, "rows": question.rows}
        n = n or question.n
        return generated_trial(model, question.texts, base.name, n, seed=seed, **about, **options)

    if seed == 0:
        zoo = by_task[task.name]
        trained = [*zoo, *(m.tensors for m in held_out if m.task == task.name)]
        picked = {task.name, *(name for question in questions for name in question.router)}
        soups = {name: averages.soup(by_task[name]) for name in sorted(picked)}
        yield plain("base", [base.lora_init()])
        yield plain("trained", trained[-size.zoo_adapters :])
        yield plain("soup_task", [soups[task.name]])
        yield plain("soup_all", [averages.soup_all(members)])
        [nearest] = matched.retrieval
        yield plain("retrieval", by_task[nearest][-size.zoo_adapters :], "matched")
        if size.noise_samples:
            yield plain("gaussian", averages.gaussian(zoo, size.noise_samples, seed))
            for name, amplitude in averages.NOISE.items():
                yield plain(name, averages.noised(zoo[: size.noise_samples], amplitude, seed))
        yield generated(matched, "regression", models.regression, 1)
        if models.unconditional and size.noise_samples:
            about = {"method": "unconditional", "condition": "none", "rows": rows, "seed": seed}
            n = size.noise_samples
            yield generated_trial(models.unconditional, [""], base.name, n, **about)
    for question in questions:
        yield generated(question)
        if models.through_base:
            yield generated(question, "generated_through_base", models.through_base)
    if seed == 0:
        for method, projection in PROJECTION_OF.items():
            for question in questions[:2]:  # matched and paraphrase
                yield generated(question, method, projection=projection)
        yield from chosen_trials(questions, by_task, soups, size, seed)
        for question in questions[1:]:
            yield generated(question, "regression", models.regression, 1)


def chosen_trials(
    questions: Sequence[Question],
    by_task: Mapping[str, Sequence[dict[str, Tensor]]],
    soups: Mapping[str, dict[str, Tensor]],
    size: Size,
    seed: int,
) -> Iterator[Trial]:
    """The trials of router, retrieval and adapter average: stored adapters of the picked tasks.

    For each text as many adapters are drawn as are generated from it, if the zoo has as many.
    Retrieval under "matched" is missing: `trials` measures all adapters of the picked task.
    """
    for question in questions:
        about = {"condition": question.condition, "rows": question.rows}
        for method, picks in (("router", question.router), ("retrieval", question.retrieval)):
            if (method, question.condition) == ("retrieval", "matched"):
                continue
            adapters = []
            for i, name in enumerate(picks):
                zoo = by_task[name][-size.zoo_adapters :]
                drawn = router.draw(
                    len(zoo), question.n, seeds.integer(seed, question.condition, i)
                )
                adapters += [zoo[number] for number in drawn]
            seconds = sum(question.seconds)
            yield Trial(method=method, adapters=adapters, seconds=seconds, **about)
        yield Trial(method="soup_task", adapters=[soups[n] for n in question.router], **about)
