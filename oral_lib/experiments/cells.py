"""The protocol of one cell (task, base model, seed): every method and condition on the same rows.

Held-out rows are drawn once and shared by all methods, so any two rows of the table can be compared
item by item. Controls ask the generator with the wrong words: another task's text, random words, no
words. On a base model that is slow to score they see fewer rows; the table states how many.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd
from torch import Tensor

from oral_lib import scales, seeds
from oral_lib.evaluation import item_tables, scoring
from oral_lib.evaluation.evaluate import Matched, Outcome, evaluate
from oral_lib.experiments import baselines
from oral_lib.generator import Generator
from oral_lib.lora import distances
from oral_lib.models import contrastive, loading
from oral_lib.models.base import BaseModel
from oral_lib.models.text_encoder import TextEncoder
from oral_lib.progress import bar
from oral_lib.provenance import code_commit
from oral_lib.tasks.rows import Row, full_rows
from oral_lib.tasks.task import Task, load_task
from oral_lib.zoo import store

RANDOM_WORDS = 8


@dataclass(frozen=True)
class Size:
    """How much of a cell is measured."""

    rows: int  # held-out rows
    control_rows: int  # of them, rows of the controls
    samples: int = 5  # adapters generated from the task's own text
    control_samples: int = 2  # of each other text
    others: int = 20  # other tasks that the generator is told of
    draws: int = 0  # adapters of each noisy baseline; 0: these are left out
    trained: int = 100  # adapters of the zoo at most


SIZES = {
    ("smoke", "encoder"): Size(100, 100, 3, 1, draws=1),
    ("smoke", "causal"): Size(100, 100, 3, 1, draws=1),
    ("smoke", "vision"): Size(100, 100, 3, 1, draws=1),
    ("desk", "encoder"): Size(600, 600),
    ("desk", "causal"): Size(300, 150),
    ("lab", "encoder"): Size(1000, 500, 10, 4, 6, 5),
    ("lab", "causal"): Size(1000, 500, 10, 4, 6, 5),
    ("lab", "vision"): Size(1500, 500, 10, 4, 6, 5),
    ("smoke", "multimodal"): Size(100, 100, 3, 1, draws=1),
    ("lab", "multimodal"): Size(1500, 500, 10, 4, 6, 5),
    ("smoke", "vision-language"): Size(100, 100, 3, 1, draws=1),
    ("lab", "vision-language"): Size(1000, 500, 10, 4, 6, 5),
    ("lab", "match"): Size(1000, 1000, 10, 4, 6, 5),  # fewer rows would be easier to tell apart
    ("lab", "answer"): Size(150, 100, 10, 1, 2, 2, 5),
}


def size_of(scale: str, base: BaseModel, task: Task) -> Size:
    """The size of a cell; answers that have to be written are dear."""
    how, scale = scoring.scoring_kind(base, task), "lab" if scale == "paper" else scale
    return SIZES.get((scale, how)) or SIZES[scale, base.family]


@dataclass(frozen=True)
class Trial:
    """One method under one condition: the adapters to be scored, and on how many rows."""

    method: str
    condition: str
    adapters: Sequence[dict[str, Tensor]]
    rows: int
    seconds: float = 0.0  # that it took to make them


@dataclass(frozen=True)
class Models:
    """What reads a text and answers with adapters."""

    generator: Generator
    regression: Generator
    unconditional: Generator | None = None


def random_words(encoder: TextEncoder, seed: int) -> str:
    """Whole words drawn from the encoder's own vocabulary."""
    vocabulary = sorted(w for w in encoder.tokenizer.get_vocab() if w.isalpha() and len(w) > 3)
    draw = np.random.default_rng(seeds.integer(seed, "random-words"))
    return " ".join(draw.choice(vocabulary, RANDOM_WORDS))


def trials(
    task: Task,
    base: BaseModel,
    members: Sequence[store.Member],
    held_out: Sequence[store.Member],
    models: Models,
    size: Size,
    *,
    seed: int,
) -> Iterator[Trial]:
    """All methods of the result table but majority; `members` is the zoo of this base model.

    What does not depend on the generator is measured with its first seed only.
    """
    generator = models.generator
    encoder = generator.encoder
    by_task: dict[str, list[dict[str, Tensor]]] = {}
    for member in members:
        by_task.setdefault(member.task, []).append(member.tensors)
    others = [name for name in by_task if name != task.name]
    full, part = size.rows, size.control_rows

    def told(
        method: str, condition: str, texts: Sequence[str], n: int, rows: int, model: Generator
    ) -> Trial:
        began = time.perf_counter()
        made = [
            adapter
            for i, text in enumerate(texts)
            for adapter in model.generate(text, base.name, n, seeds.integer(seed, condition, i))
        ]
        return Trial(method, condition, made, rows, time.perf_counter() - began)

    if seed == 0:
        own = by_task[task.name]
        trained = [*own, *(m.tensors for m in held_out if m.task == task.name)]
        yield Trial("base", "none", [base.lora_init()], full)
        yield Trial("trained", "none", trained[-size.trained :], full)
        yield Trial("soup_task", "none", [baselines.soup(own)], full)
        yield Trial("soup_all", "none", [baselines.soup_all(members)], full)
        found = baselines.nearest_task(task.description, list(by_task), encoder)
        yield Trial("retrieval", "matched", by_task[found][-size.trained :], full)
        if size.draws:
            yield Trial("gaussian", "none", baselines.gaussian(own, size.draws, seed), full)
            for name, amplitude in baselines.NOISE.items():
                yield Trial(
                    name, "none", baselines.noised(own[: size.draws], amplitude, seed), full
                )
        yield told("regression", "matched", [task.description], 1, full, models.regression)
        if models.unconditional and size.draws:
            yield told("unconditional", "none", [""], size.draws, full, models.unconditional)
    yield told("generated", "matched", [task.description], size.samples, full, generator)
    unread, n = task.paraphrases["test"], size.control_samples
    yield told("generated", "paraphrase", unread, max(1, n // 2), full, generator)
    if others:
        start = seeds.integer(seed, task.name) % len(others)
        chosen = [*others[start:], *others[:start]][: size.others]
        texts = [load_task(name).description for name in chosen]
        yield told("generated", "mismatched", texts, max(1, n // 2), part, generator)
    nonsense = [random_words(encoder, seeds.integer(seed, i)) for i in range(n)]
    yield told("generated", "random", nonsense, 1, part, generator)
    yield told("generated", "empty", [""], n, part, generator)


@lru_cache(maxsize=2)
def _base(name: str, source: str, labels: int, device: str) -> BaseModel:
    """Loaded once for the cells of a process that follow one another."""
    return loading.load(name, source=source, labels=labels, device=device)


@lru_cache(maxsize=6)
def _generator(folder: Path, device: str, source: str, stamp: int) -> Generator:
    """The same; `stamp` tells a generator that was trained again from the one before."""
    return Generator.from_pretrained(folder, device, source=source)


def _models(root: Path, kind: str, device: str, source: str) -> Models:
    stamps = {
        name: (root / name / "manifest.json").stat().st_mtime_ns
        for name in (kind, "regression", "unconditional")
        if (root / name / "manifest.json").exists()
    }
    if missing := [name for name in (kind, "regression") if name not in stamps]:
        Generator.from_pretrained(root / missing[0], device)  # says what to do
    return Models(
        *(_generator(root / name, device, source, stamp) for name, stamp in stamps.items())
    )


def judged(
    model: BaseModel,
    spec: Task,
    held: Sequence[Row],
    cell: dict,
    asked: Sequence[Trial],
    majority: Outcome | None = None,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """(metrics, items) of all that was `asked` on the rows `held`, each adapter judged once."""
    tables = [] if majority is None else [_items(cell, "majority", "none", 0, majority)]
    seconds = {(t.method, t.condition): t.seconds for t in asked}
    known: dict[tuple[int, int], Outcome] = {}  # retrieval often finds the trained adapters again
    unique = {(id(a), t.rows): a for t in asked for a in t.adapters}
    label = f"{model.name} {spec.name} seed {cell['seed']}"
    progress = bar(total=len(unique), label=label, unit="adapter")
    for rows in sorted({t.rows for t in asked}):
        todo = {key: a for key, a in unique.items() if key[1] == rows}
        began = time.perf_counter()
        outcomes = evaluate(model, spec, held[:rows], list(todo.values()))
        for key, outcome in zip(todo, outcomes, strict=True):  # rows were shuffled: a random part
            known[key] = outcome
            progress.update()
        each = (time.perf_counter() - began) / len(todo)
        for trial in (t for t in asked if t.rows == rows):
            seconds[trial.method, trial.condition] += each * len(trial.adapters)
    progress.close()
    for trial in asked:
        for sample, adapter in enumerate(trial.adapters):
            outcome = known[id(adapter), trial.rows]
            tables.append(_items(cell, trial.method, trial.condition, sample, outcome))
    items = item_tables.join(tables)
    kinds = {row.key: row.kind for row in held if row.kind}  # of items, for a metric each
    for outcome in known.values():
        kinds |= outcome.queries if isinstance(outcome, Matched) else {}
    metrics = item_tables.summarise(
        items,
        family=spec.family,
        base_version=model.spec.version,
        wall_s={key: round(value, 3) for key, value in seconds.items()},
        balanced=spec.metric == "balanced_accuracy",
        kinds=kinds if len(set(kinds.values())) > 1 else {},
        depths=contrastive.DEPTHS if spec.scoring == "match" else (),
    )
    return metrics, items


def _items(cell: dict, method: str, condition: str, sample: int, outcome: Outcome) -> pd.DataFrame:
    if isinstance(outcome, Matched):
        told = {"item": list(outcome.queries), "ranks": outcome.predicted.numpy()}
        return item_tables.rank_items(cell, method, condition, sample=sample, **told)
    about = {"sample": sample, "item": [row.key for row in outcome.rows]}
    if outcome.written is None:
        about |= {"labels": outcome.labels.numpy(), "logits": outcome.likely.numpy()}
        return item_tables.label_items(cell, method, condition, **about)
    about["correct"] = outcome.correct.numpy()
    return item_tables.answer_items(cell, method, condition, **about)


def run_cell(
    task: str, base: str, seed: int, *, scale: str, source: str, root: Path, device: str = "cpu"
) -> tuple[pd.DataFrame, pd.DataFrame, dict | None]:
    """(metrics, items, novelty) of one cell under the result contract, from what `root` holds.

    Novelty is a row of `ledgers.NOVELTY_COLUMNS`, or None where no adapter was held out.
    """
    spec = load_task(task)
    data = full_rows(spec, source, ("train", "validation", "test"))
    model = _base(base, source, len(spec.labels), str(device))
    models = _models(root, scales.generator_of(scale, seed), str(device), source)
    experiment = model.spec.experiment
    known = scales.members(scale, source, experiment)
    members = [store.read(root, *m) for m in known if m[0] == base]
    known = scales.members(scale, source, experiment, held_out=True)
    held_out = [store.read(root, *m) for m in known if m[:2] == (base, task)]
    size = size_of(scale, model, spec)
    cell = {
        "experiment": experiment, "source": data.source, "base": base, "task": task, "seed": seed,
    }  # fmt: skip
    held = data.test[: size.rows]
    asked = list(trials(spec, model, members, held_out, models, size, seed=seed))
    if model.family == "vision" and seed == 0:
        began = time.perf_counter()
        head = baselines.adapter(model, spec, data)
        took = time.perf_counter() - began
        asked.append(Trial("linear_probe", "none", [head], size.rows, took))
    first = None
    if seed == 0 and spec.scoring != "match":
        first = baselines.majority(data.train, held, len(spec.labels))
    metrics, items = judged(model, spec, held, cell, asked, first)
    made = next(t.adapters for t in asked if (t.method, t.condition) == ("generated", "matched"))
    own = [m.tensors for m in members if m.task == task]
    apart = [m.tensors for m in held_out]
    if not apart:
        return metrics, items, None
    found = distances.novelty(made, own, apart, model.spec.alpha / model.spec.rank)
    counts = {"n_generated": len(made), "n_train": len(own), "n_held_out": len(apart)}
    row = cell | found._asdict() | counts | {"method": "generated", "commit": code_commit()}
    return metrics, items, row
