"""The protocol of one cell (task, base model, seed): every method and condition on the same rows.

Held-out rows are drawn once and shared by all methods, so any two rows of the table can be compared
item by item. Controls ask the generator with the wrong words: another task's text, random words, no
words. On a base model that is slow to score they see fewer rows; the table states how many.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from torch import Tensor

from oral_lib import baselines, bases, results, seeds, tasks, zoo
from oral_lib.bases import BaseModel
from oral_lib.condition import TextEncoder, text_encoder
from oral_lib.evaluate import Outcome, evaluate
from oral_lib.generator import Generator
from oral_lib.progress import bar
from oral_lib.tasks import Task

RANDOM_WORDS = 8


@dataclass(frozen=True)
class Size:
    """How much of a cell is measured: held-out rows, rows of the controls, generated samples."""

    rows: int
    control_rows: int
    samples: int = 5
    control_samples: int = 2


SIZES = {
    ("smoke", "encoder"): Size(100, 100, 3, 1),
    ("smoke", "causal"): Size(100, 100, 3, 1),
    ("lab", "encoder"): Size(600, 600),
    ("lab", "causal"): Size(300, 150),
}


@dataclass(frozen=True)
class Trial:
    """One method under one condition: the adapters to be scored, and on how many rows."""

    method: str
    condition: str
    adapters: Sequence[dict[str, Tensor]]
    rows: int


def random_words(encoder: TextEncoder, seed: int) -> str:
    """Whole words drawn from the encoder's own vocabulary."""
    vocabulary = sorted(w for w in encoder.tokenizer.get_vocab() if w.isalpha() and len(w) > 3)
    draw = np.random.default_rng(seeds.integer(seed, "random-words"))
    return " ".join(draw.choice(vocabulary, RANDOM_WORDS))


def trials(
    task: Task,
    base: BaseModel,
    members: Sequence[zoo.Member],
    generator: Generator,
    regression: Generator,
    size: Size,
    *,
    seed: int,
    source: str,
) -> Iterator[Trial]:
    """All methods of the result table but majority; `members` is the zoo of this base model."""
    encoder = text_encoder(generator.config.text_encoder, source)
    by_task: dict[str, list[dict[str, Tensor]]] = {}
    for member in members:
        by_task.setdefault(member.task, []).append(member.tensors)
    others = [name for name in by_task if name != task.name]
    full, part = size.rows, size.control_rows

    def told(method: str, condition: str, texts: Sequence[str], n: int, rows: int) -> Trial:
        model = generator if method == "generated" else regression
        made = [
            adapter
            for i, text in enumerate(texts)
            for adapter in model.generate(
                text, base.name, n, seeds.integer(seed, condition, i), source=source
            )
        ]
        return Trial(method, condition, made, rows)

    yield Trial("base", "none", [base.lora_init()], full)
    yield Trial("trained", "none", by_task[task.name], full)
    yield Trial("soup_task", "none", [baselines.soup(by_task[task.name])], full)
    yield Trial("soup_all", "none", [baselines.soup_all(members)], full)
    found = baselines.nearest_task(task.description, list(by_task), encoder)
    yield Trial("retrieval", "matched", by_task[found], full)
    yield told("regression", "matched", [task.description], 1, full)
    yield told("generated", "matched", [task.description], size.samples, full)
    yield told("generated", "paraphrase", task.paraphrases["test"], 1, part)
    if others:
        texts = [tasks.load(name).description for name in others]
        yield told("generated", "mismatched", texts, size.control_samples, part)
    nonsense = [random_words(encoder, seeds.integer(seed, i)) for i in range(size.control_samples)]
    yield told("generated", "random", nonsense, 1, part)
    yield told("generated", "empty", [""], size.control_samples, part)


def run_cell(
    task: str, base: str, seed: int, *, scale: str, source: str, root: Path, device: str = "cpu"
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """(metrics, items) of one cell under the result contract, from what `root` holds."""
    spec = tasks.load(task)
    data = tasks.rows(spec, source)
    model = bases.load(base, source=source, labels=len(spec.labels), device=device)
    generator = Generator.from_pretrained(root / "generator", device)
    regression = Generator.from_pretrained(root / "regression", device)
    listed = [entry for entry in generator.manifest["zoo"] if entry["base"] == base]
    members = [zoo.read(root, e["base"], e["task"], e["seed"]) for e in listed]
    size = SIZES[scale, model.family]
    cell = {
        "experiment": "language", "source": data.source, "base": base, "task": task, "seed": seed,
    }  # fmt: skip
    tables, seconds, held = [], {}, data.test[: size.rows]

    def keep(method: str, condition: str, sample: int, outcome: Outcome) -> None:
        tables.append(
            results.outcomes(
                cell, method, condition, sample=sample, item=[r.key for r in outcome.rows],
                labels=outcome.labels.numpy(), logits=outcome.likely.numpy(),
            )
        )  # fmt: skip

    keep("majority", "none", 0, baselines.majority(data.train, held, len(spec.labels)))
    plan = list(trials(spec, model, members, generator, regression, size, seed=seed, source=source))
    known: dict[tuple[int, int], Outcome] = {}  # retrieval often finds the trained adapters again
    progress = bar(total=sum(len(t.adapters) for t in plan), label=f"{base} {task}", unit="adapter")
    for trial in plan:
        began = time.perf_counter()
        rows = held[: trial.rows]  # a random part: rows were shuffled when the task was split
        todo = [a for a in trial.adapters if (id(a), trial.rows) not in known]
        for adapter, outcome in zip(todo, evaluate(model, spec, rows, todo), strict=True):
            known[id(adapter), trial.rows] = outcome
            progress.update()
        progress.update(len(trial.adapters) - len(todo))
        for sample, adapter in enumerate(trial.adapters):
            keep(trial.method, trial.condition, sample, known[id(adapter), trial.rows])
        seconds[trial.method, trial.condition] = round(time.perf_counter() - began, 3)
    progress.close()
    items = pd.concat(tables, ignore_index=True)
    metrics = results.summarise(
        items, family=spec.family, base_version=model.spec.version, wall_s=seconds
    )
    return metrics, items
