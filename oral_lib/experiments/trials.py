"""The trials of a cell: each method under each condition, with its adapters and sample sizes.

Controls condition the generator on wrong text: another task's description, random words, or the
empty text. They are scored on fewer rows where a base model is slow.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from oral_lib import seeds
from oral_lib.experiments import baselines
from oral_lib.generator import Generator
from oral_lib.models.base import BaseModel
from oral_lib.models.text_encoder import TextEncoder
from oral_lib.tasks.task import Task, load_task
from oral_lib.zoo.store import Member

RANDOM_WORDS = 8


@dataclass(frozen=True, kw_only=True)
class Size:
    """Sample sizes of a cell."""

    rows: int  # held-out rows
    control_rows: int  # held-out rows of the controls, the first of `rows`
    samples: int = 5  # adapters generated from the task's own text
    control_samples: int = 2  # adapters generated from each other text
    other_tasks: int = 20  # tasks whose descriptions are used as wrong text, at most
    noise_samples: int = 0  # adapters of each noise baseline; 0: no noise baselines
    zoo_adapters: int = 100  # adapters of the zoo that are scored, at most


_SMOKE = Size(rows=100, control_rows=100, samples=3, control_samples=1, noise_samples=1)
_LAB = Size(
    rows=1000, control_rows=500, samples=10, control_samples=4, other_tasks=6, noise_samples=5
)
LAB_IMAGES = Size(
    rows=1500, control_rows=500, samples=10, control_samples=4, other_tasks=6, noise_samples=5
)
SIZES = {  # by scale and then by kind of scoring or family of the base model
    "smoke": {
        "encoder": _SMOKE,
        "causal": _SMOKE,
        "vision": _SMOKE,
        "multimodal": _SMOKE,
        "vision-language": _SMOKE,
    },
    "desk": {
        "encoder": Size(rows=600, control_rows=600),
        "causal": Size(rows=300, control_rows=150),
    },
    "lab": {
        "encoder": _LAB,
        "causal": _LAB,
        "vision": LAB_IMAGES,
        "multimodal": LAB_IMAGES,
        "vision-language": _LAB,
        "match": Size(  # the task becomes easier with fewer candidates
            rows=1000,
            control_rows=1000,
            samples=10,
            control_samples=4,
            other_tasks=6,
            noise_samples=5,
        ),
        "answer": Size(
            rows=150,
            control_rows=100,
            samples=10,
            control_samples=1,
            other_tasks=2,
            noise_samples=2,
            zoo_adapters=5,
        ),
    },
}


def size_of(scale: str, base: BaseModel, task: Task) -> Size:
    """Sample sizes of a cell. Free-form answers are expensive to generate, so those cells are
    smaller."""
    sizes = SIZES["lab" if scale == "paper" else scale]
    return sizes.get(base.scoring_kind(task)) or sizes[base.family]


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


def random_words(encoder: TextEncoder, seed: int) -> str:
    """Words drawn from the vocabulary of the encoder."""
    vocabulary = sorted(w for w in encoder.tokenizer.get_vocab() if w.isalpha() and len(w) > 3)
    draw = np.random.default_rng(seeds.integer(seed, "random-words"))
    return " ".join(draw.choice(vocabulary, RANDOM_WORDS))


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
) -> Trial:
    """The trial of `adapters_of` these arguments as `method`, timed."""
    began = time.perf_counter()
    adapters = adapters_of(model, texts, base, n, condition=condition, seed=seed)
    seconds = time.perf_counter() - began
    return Trial(method=method, condition=condition, adapters=adapters, rows=rows, seconds=seconds)


def trials(
    task: Task,
    base: BaseModel,
    members: Sequence[Member],
    held_out: Sequence[Member],
    models: Models,
    size: Size,
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
        seed: of the cell.
    """
    encoder = models.generator.encoder
    by_task: dict[str, list[dict[str, Tensor]]] = {}
    for member in members:
        by_task.setdefault(member.task, []).append(member.tensors)
    rows, control_rows = size.rows, size.control_rows

    def plain(method: str, adapters: Sequence[dict[str, Tensor]], condition="none") -> Trial:
        return Trial(method=method, condition=condition, adapters=adapters, rows=rows)

    def generated(condition: str, texts: Sequence[str], n: int, rows: int) -> Trial:
        about = {"method": "generated", "condition": condition, "rows": rows, "seed": seed}
        return generated_trial(models.generator, texts, base.name, n, **about)

    if seed == 0:
        zoo = by_task[task.name]
        trained = [*zoo, *(m.tensors for m in held_out if m.task == task.name)]
        yield plain("base", [base.lora_init()])
        yield plain("trained", trained[-size.zoo_adapters :])
        yield plain("soup_task", [baselines.soup(zoo)])
        yield plain("soup_all", [baselines.soup_all(members)])
        nearest = baselines.nearest_task(task.description, list(by_task), encoder)
        yield plain("retrieval", by_task[nearest][-size.zoo_adapters :], "matched")
        if size.noise_samples:
            yield plain("gaussian", baselines.gaussian(zoo, size.noise_samples, seed))
            for name, amplitude in baselines.NOISE.items():
                yield plain(name, baselines.noised(zoo[: size.noise_samples], amplitude, seed))
        about = {"method": "regression", "condition": "matched", "rows": rows, "seed": seed}
        texts = [task.description]
        yield generated_trial(models.regression, texts, base.name, 1, **about)
        if models.unconditional and size.noise_samples:
            about |= {"method": "unconditional", "condition": "none"}
            n = size.noise_samples
            yield generated_trial(models.unconditional, [""], base.name, n, **about)
    yield generated("matched", [task.description], size.samples, rows)
    n = size.control_samples
    yield generated("paraphrase", task.paraphrases["development"], max(1, n // 2), rows)
    if others := [name for name in by_task if name != task.name]:
        start = seeds.integer(seed, task.name) % len(others)
        names = [*others[start:], *others[:start]][: size.other_tasks]
        texts = [load_task(name).description for name in names]
        yield generated("mismatched", texts, max(1, n // 2), control_rows)
    nonsense = [random_words(encoder, seeds.integer(seed, i)) for i in range(n)]
    yield generated("random", nonsense, 1, control_rows)
    yield generated("empty", [""], n, control_rows)
