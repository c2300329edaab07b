"""The conditions of a cell: sample sizes, and the texts that every method is conditioned on.

Controls are wrong text: the description of another task, random words, or the empty text. They are
scored on fewer rows where a base model is slow. For each text the router and retrieval pick a task.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from oral_lib import seeds
from oral_lib.baselines.router import Retrieval, Router
from oral_lib.models.base import BaseModel
from oral_lib.models.text_encoder import TextEncoder
from oral_lib.tasks.task import Task, load_task

RANDOM_WORDS = 8


# ---------------------------------------------------------------- sample sizes
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


# ---------------------------------------------------------------- texts
@dataclass(frozen=True)
class Pickers:
    """What picks a task for a text."""

    router: Router
    retrieval: Retrieval

    @classmethod
    def of(cls, names: Sequence[str], encoder: TextEncoder) -> "Pickers":
        """Router and retrieval over the tasks `names`."""
        return cls(Router(names, encoder), Retrieval(names, encoder))


@dataclass(frozen=True, kw_only=True)
class Question:
    """The texts of one condition, and the tasks that are picked for them.

    Args:
        condition: one of `schema.CONDITIONS`.
        texts: the texts.
        text_of: the task that each text describes, or "random" or "empty".
        n: adapters generated from each text.
        rows: held-out rows that the adapters are scored on.
        router: the task that the router picks for each text.
        retrieval: the task with the nearest description, for each text.
        seconds: of the router, for each text.
    """

    condition: str
    texts: tuple[str, ...]
    text_of: tuple[str, ...]
    n: int
    rows: int
    router: tuple[str, ...]
    retrieval: tuple[str, ...]
    seconds: tuple[float, ...]

    @classmethod
    def of(
        cls,
        condition: str,
        texts: Sequence[str],
        text_of: Sequence[str],
        n: int,
        rows: int,
        pickers: Pickers,
    ) -> "Question":
        """The question with what the pickers answer; one name in `text_of` stands for all texts."""
        router, seconds = [], []
        for text in texts:
            began = time.perf_counter()
            router.append(pickers.router.pick(text))
            seconds.append(time.perf_counter() - began)
        return cls(
            condition=condition,
            texts=tuple(texts),
            text_of=tuple(text_of) if len(text_of) > 1 else tuple(text_of) * len(texts),
            n=n,
            rows=rows,
            router=tuple(router),
            retrieval=tuple(pickers.retrieval.pick(text) for text in texts),
            seconds=tuple(seconds),
        )


def random_words(encoder: TextEncoder, seed: int) -> str:
    """Words drawn from the vocabulary of the encoder."""
    vocabulary = sorted(w for w in encoder.tokenizer.get_vocab() if w.isalpha() and len(w) > 3)
    draw = np.random.default_rng(seeds.integer(seed, "random-words"))
    return " ".join(draw.choice(vocabulary, RANDOM_WORDS))


def questions_of(
    task: Task,
    pickers: Pickers,
    encoder: TextEncoder,
    size: Size,
    *,
    seed: int,
    wordings: str,
) -> list[Question]:
    """The texts of a cell by condition; no condition "mismatched" without another task.

    Args:
        task: the task of the cell.
        pickers: router and retrieval over the tasks of the zoo.
        encoder: its vocabulary has the random words.
        size: sample sizes.
        seed: of the cell.
        wordings: the paraphrases, one of `wordings.HELD_OUT_WORDINGS`.
    """
    n, few, rows = size.control_samples, max(1, size.control_samples // 2), size.control_rows
    paraphrases = task.paraphrases[wordings]
    questions = [
        Question.of("matched", [task.description], [task.name], size.samples, size.rows, pickers),
        Question.of("paraphrase", paraphrases, [task.name], few, size.rows, pickers),
    ]
    if others := [name for name in pickers.router.names if name != task.name]:
        start = seeds.integer(seed, task.name) % len(others)
        others = [*others[start:], *others[:start]][: size.other_tasks]
        texts = [load_task(name).description for name in others]
        questions.append(Question.of("mismatched", texts, others, few, rows, pickers))
    nonsense = [random_words(encoder, seeds.integer(seed, i)) for i in range(n)]
    questions.append(Question.of("random", nonsense, ["random"], 1, rows, pickers))
    questions.append(Question.of("empty", [""], ["empty"], n, rows, pickers))
    return questions


def text_rows(cell: dict, questions: Sequence[Question]) -> list[dict]:
    """A row of texts.csv for each sample of `generated`: its text's task, and the picked tasks."""
    rows = []
    for question in questions:
        picks = zip(question.text_of, question.router, question.retrieval, strict=True)
        picks = [pick for pick in picks for _ in range(question.n)]
        for sample, (text_of, router, retrieval) in enumerate(picks):
            about = {"condition": question.condition, "sample": sample, "text_of": text_of}
            rows.append(cell | about | {"router": router, "retrieval": retrieval})
    return rows
