"""The zoo: trained LoRA adapters, the data that a generator learns from.

Every adapter of a base model starts from the same LoRA initialisation; the seed decides the order
of the data and nothing else. Adapters are trained many at a time (`stacked.py`), each as PEFT would
train it alone. A run leaves a standard PEFT folder and `run.json` (recipe, losses, validation
score, kept checkpoints). Checkpoints of one run are one sample: seeds are the data.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from oral_lib import bases, scoring, seeds, stacked, storage, tasks
from oral_lib.bases import BaseModel
from oral_lib.errors import OralError, PreflightError, UsageError
from oral_lib.progress import bar
from oral_lib.stacked import Stack
from oral_lib.tasks import Row, Split, Task

MOST = 32  # adapters of a stack
SAVE_EVERY = 100  # steps between states that an interrupted stack goes on from


@dataclass(frozen=True)
class Recipe:
    """How one adapter is trained; steps and learning rates were chosen on validation rows."""

    steps: int
    batch: int
    lr: float
    warmup: float = 0.1
    keep: int = 3  # last checkpoints kept
    every: int = 10  # steps between them
    clip: float = 1.0

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value <= 0:
                raise UsageError(f"zoo recipe: {name} must be positive, got {value!r}.")

    def lr_at(self, step: int) -> float:
        """Linear warm-up from zero to `lr`, then linearly to zero."""
        warmup = round(self.warmup * self.steps)
        if step < warmup:
            return self.lr * step / warmup
        return self.lr * (self.steps - step) / max(1, self.steps - warmup)

    @property
    def kept(self) -> set[int]:
        """The steps after which a checkpoint is kept, the last step among them."""
        return {self.steps - i * self.every for i in range(self.keep)}


RECIPES = {
    "minilm-l6": Recipe(steps=240, batch=16, lr=3e-3),
    "smollm2-135m": Recipe(steps=120, batch=8, lr=1e-3),
    "tiny-encoder": Recipe(steps=60, batch=16, lr=1e-2),
    "tiny-causal": Recipe(steps=120, batch=16, lr=1e-2),
}


@dataclass(frozen=True)
class Run:
    """One adapter to be trained."""

    task: Task
    seed: int
    recipe: Recipe


@dataclass(frozen=True)
class Trained:
    """One trained adapter: final tensors, kept checkpoints (oldest first), loss a step, and its
    share of the seconds that its stack took."""

    run: Run
    tensors: dict[str, Tensor]
    checkpoints: dict[int, dict[str, Tensor]]
    losses: list[float]
    seconds: float


def batches(rows: Sequence[Row], size: int, seed: int) -> Iterator[list[int]]:
    """Endless full batches: shuffled by `seed`, grouped by length within pools of 16 batches.

    What is left of an epoch is dropped. Which length comes when is the same for every seed, so that
    a stack of seeds needs little padding. UsageError for fewer rows than a batch holds.
    """
    if len(rows) < size:
        raise UsageError(f"{len(rows)} rows are fewer than one batch of {size}.")
    rng = np.random.default_rng(seeds.integer(seed, "order"))
    lengths = np.random.default_rng(seeds.integer(0, "lengths"))
    while True:
        order = rng.permutation(len(rows))[: len(rows) // size * size]
        for start in range(0, len(order), 16 * size):
            pool = sorted(order[start : start + 16 * size], key=lambda i: len(rows[i].text))
            groups = [pool[i : i + size] for i in range(0, len(pool), size)]
            for j in lengths.permutation(len(groups)):
                yield groups[j]


@dataclass(frozen=True)
class Feed:
    """All batches of a stack, on the device: a step is looked up, nothing comes from the host."""

    ids: Tensor  # [n, longest] token ids of every row of every task, right-padded
    lengths: Tensor  # [n]
    answers: Tensor  # [n] label of a row, as the place in its task's label words
    words: Tensor  # [S, labels] what the model is asked for: classes, or first tokens of words
    rows: Tensor  # [steps, S * batch] rows of a step, group by group
    widths: list[int]  # tokens of a step's longest row, rounded up

    @classmethod
    def of(cls, base: BaseModel, runs: Sequence[Run], data: dict[str, Split]) -> "Feed":
        """The batches that `runs` (same steps, same batch size) would read one by one."""
        recipe, ids, lengths, labels, first = runs[0].recipe, [], [], [], {}
        for task in {run.task.name: run.task for run in runs}.values():
            rows, first[task.name] = data[task.name].train, len(labels)
            texts = scoring.prompts(base, task, [row.text for row in rows])
            batch = base.tokens(texts, task.words)
            ids += batch["input_ids"].unbind()
            lengths.append(batch["attention_mask"].sum(1))
            labels += [row.label for row in rows]
        ids, lengths = pad_sequence(ids, batch_first=True), torch.cat(lengths)
        order = np.empty((recipe.steps, len(runs), recipe.batch), dtype=np.int64)
        for s, run in enumerate(runs):
            stream = batches(data[run.task.name].train, recipe.batch, run.seed)
            for step in range(recipe.steps):
                order[step, s] = np.add(next(stream), first[run.task.name])
        rows = torch.from_numpy(order).flatten(1)
        longest = lengths.cpu()[rows].amax(1)
        stride = 8 if base.device.type == "cuda" else 1  # few shapes, where shapes are compiled
        widths = [min(-(-n // stride) * stride, ids.shape[1]) for n in longest.tolist()]
        words = [scoring.words(base, run.task) for run in runs]
        device = base.device
        return cls(
            ids,
            lengths,
            torch.tensor(labels, device=device),
            pad_sequence(words, batch_first=True),
            rows.to(device),
            widths,
        )

    def step(self, i: int) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """(ids and mask [S * batch, tokens], answers [S * batch], words [S * batch, labels])."""
        rows, width = self.rows[i], self.widths[i]
        place = torch.arange(width, device=rows.device)
        mask = (place < self.lengths[rows, None]).long()
        batch = {"input_ids": self.ids[rows, :width], "attention_mask": mask}
        words = self.words.repeat_interleave(len(rows) // len(self.words), 0)
        return batch, self.answers[rows], words

    @property
    def padding(self) -> float:
        """The share of all tokens read that are padding."""
        read = sum(self.widths) * self.rows.shape[1]
        return 1 - self.lengths[self.rows].sum().item() / read


def train(
    base: BaseModel,
    runs: Sequence[Run],
    data: dict[str, Split],
    *,
    most: int = MOST,
    state: Path | None = None,
) -> Iterator[Trained]:
    """Trains `runs` on `base`, up to `most` at a time; `data` maps a task's name to its rows.

    Runs that differ in task, seed or learning rate alone share a stack. `state` is a folder for
    what an interrupted stack goes on from; a stack's file goes once all its adapters were taken.
    OralError when a loss is no longer finite.
    """
    alike: dict[Recipe, list[Run]] = {}
    for run in runs:
        alike.setdefault(replace(run.recipe, lr=1.0), []).append(run)
    for group in alike.values():
        for first in range(0, len(group), most):
            stack = group[first : first + most]
            key = seeds.integer(
                0, base.name, *(f"{r.task.name} {r.seed} {r.recipe}" for r in stack)
            )
            file = state / f"stack-{key:016x}.safetensors" if state else None
            yield from _train_stack(base, stack, data, file)
            if file:
                file.unlink(missing_ok=True)


def _train_stack(
    base: BaseModel, runs: Sequence[Run], data: dict[str, Split], state: Path | None
) -> list[Trained]:
    recipe, began = runs[0].recipe, time.perf_counter()
    label = f"zoo {base.name} {_named(runs)}"
    feed, stack = Feed.of(base, runs, data), Stack(base.lora_init(), len(runs), base.device)
    rates = [[run.recipe.lr_at(i) for run in runs] for i in range(recipe.steps)]
    lr = torch.tensor(rates, device=base.device)
    losses = torch.zeros(recipe.steps, len(runs), device=base.device)
    kept: dict[int, Tensor] = {}
    if state is not None and state.exists():
        held = storage.read_tensors(state)
        stack.load(held)
        losses.copy_(held["losses"])
        kept = {int(n.split(".")[1]): v for n, v in held.items() if n.startswith("kept.")}
    with stacked.attached(base.model, stack, base.spec.alpha / base.spec.rank) as model:
        for step in bar(range(stack.step, recipe.steps), label=label, unit="step"):
            batch, answers, words = feed.step(step)
            likely = scoring.answers(model, base, batch).gather(1, words)
            loss = -likely.gather(1, answers[:, None]).view(len(runs), -1).mean(1)  # [S]
            losses[step] = loss.detach()
            stack.update(loss.sum(), lr[step], recipe.clip)
            if stack.step in recipe.kept:
                kept[stack.step] = stack.values.cpu().clone()
            if state is not None and stack.step % SAVE_EVERY == 0:
                held = {f"kept.{n}": v for n, v in kept.items()}
                parts = stack.state() | held | {"losses": losses}
                storage.write_tensors(state, {n: v.cpu() for n, v in parts.items()})
    for run, curve in zip(runs, losses.isfinite().all(0).tolist(), strict=True):
        if not curve:
            raise OralError(
                f"{label}: the loss of {run.task.name} seed {run.seed} is no longer finite; lower "
                f"lr={run.recipe.lr}."
            )
    seconds = (time.perf_counter() - began) / len(runs)
    checkpoints = {step: stack.adapters(values) for step, values in sorted(kept.items())}
    return [
        Trained(
            run,
            checkpoints[recipe.steps][s],
            {step: made[s] for step, made in checkpoints.items()},
            losses[:, s].tolist(),
            seconds,
        )
        for s, run in enumerate(runs)
    ]


def _named(runs: Sequence[Run]) -> str:
    """What a progress line says: movie seed 1; movie seeds 0-2; 3 tasks, 24 adapters."""
    names, numbers = {run.task.name for run in runs}, [run.seed for run in runs]
    if len(names) > 1:
        return f"{len(names)} tasks, {len(runs)} adapters"
    span = f"{min(numbers)}-{max(numbers)}" if len(runs) > 1 else str(numbers[0])
    return f"{names.pop()} seed{'s' if len(runs) > 1 else ''} {span}"


def folder(root: Path, base: str, task: str, seed: int) -> Path:
    """Where the zoo under `root` keeps the adapter of (base, task, seed)."""
    return root / "zoo" / base / task / f"seed-{seed}"


def train_cell(
    base: str, task: str, seed_list: Sequence[int], *, source: str, root: Path, device: str = "cpu"
) -> list[Path]:
    """Trains the adapters of one (base, task) that `root` lacks; returns the folders of all."""
    wanted = [folder(root, base, task, s) for s in seed_list]
    missing = {s for s, f in zip(seed_list, wanted, strict=True) if not (f / "run.json").exists()}
    spec, recipe = tasks.load(task), RECIPES[base]
    for held in (f for f in wanted if (f / "run.json").exists()):
        info = storage.read_json(held / "run.json")
        if (info["recipe"], info["task_version"]) != (asdict(recipe), spec.version):
            raise PreflightError(
                f"{held} was trained with another recipe or version of the task: remove it, or run "
                "./reproduce.sh --from-scratch."
            )
    if missing:
        data = {task: tasks.rows(spec, source)}
        model = bases.load(base, source=source, labels=len(spec.labels), device=device)
    for first in range(0, len(seed_list), MOST):
        chunk = seed_list[first : first + MOST]
        if missing.isdisjoint(chunk):
            continue
        runs = [Run(spec, s, recipe) for s in chunk]  # all: a smaller stack rounds differently
        for done in train(model, runs, data, state=root / "zoo" / base / task):
            if done.run.seed in missing:
                _save(folder(root, base, task, done.run.seed), model, done, data[task])
    return wanted


def _save(where: Path, base: BaseModel, done: Trained, data: Split) -> None:
    with base.attach(done.tensors) as model:
        likely = scoring.score(model, base, done.run.task, data.validation)
    answer = torch.tensor([row.label for row in data.validation])
    accuracy = (likely.argmax(-1) == answer).float().mean().item()
    where.mkdir(parents=True, exist_ok=True)
    base.peft_config().save_pretrained(where)
    storage.write_tensors(where / "adapter_model.safetensors", done.tensors)
    for step, tensors in done.checkpoints.items():
        storage.write_tensors(where / f"checkpoint-{step}.safetensors", tensors)
    storage.write_json(
        where / "run.json",
        {
            "base": base.name,
            "task": done.run.task.name,
            "task_version": done.run.task.version,
            "source": data.source,
            "seed": done.run.seed,
            "recipe": asdict(done.run.recipe),
            "checkpoints": sorted(done.checkpoints),
            "losses": [round(x, 5) for x in done.losses],
            "validation_accuracy": accuracy,
            "validation_rows": len(data.validation),
            "seconds": round(done.seconds, 2),
            "sha256": storage.sha256(where / "adapter_model.safetensors"),
        },
    )


@dataclass(frozen=True)
class Member:
    """One adapter of the zoo as a generator reads it."""

    base: str
    task: str
    seed: int
    tensors: dict[str, Tensor]
    info: dict


def read(root: Path, base: str, task: str, seed: int) -> Member:
    """The adapter of (base, task, seed), hash-checked; `PreflightError` if it was not trained."""
    where = folder(root, base, task, seed)
    if not (where / "run.json").exists():
        raise PreflightError(
            f"the zoo has no adapter of task {task!r} on {base!r} with seed {seed}: run "
            f"'python -m oral_lib zoo --base {base} --task {task}' or ./reproduce.sh first."
        )
    info = storage.read_json(where / "run.json")
    file = where / "adapter_model.safetensors"
    if storage.sha256(file) != info["sha256"]:
        raise PreflightError(
            f"{file} is damaged: its hash is not the one in run.json; delete {where}."
        )
    return Member(base, task, seed, storage.read_tensors(file), info)
