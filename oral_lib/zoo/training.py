"""The zoo: trained LoRA adapters, the data that a generator learns from.

Every adapter of a base model starts from the same LoRA initialisation; the seed decides the order
of the data and nothing else. Adapters are trained many at a time (`stacked.py`), each as PEFT would
train it alone. A run leaves a standard PEFT folder and `run.json` (recipe, losses, validation
score, kept checkpoints). Checkpoints of one run are one sample: seeds are the data.
"""

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from zlib import crc32

import torch
from torch import Tensor

from oral_lib import seeds, storage
from oral_lib.devices import Replay
from oral_lib.errors import OralError
from oral_lib.evaluation import scoring
from oral_lib.lora import stacked
from oral_lib.lora.stacked import Stack
from oral_lib.models.base import BaseModel
from oral_lib.progress import bar
from oral_lib.tasks.rows import Split
from oral_lib.tasks.task import Task
from oral_lib.zoo.batches import StackBatches
from oral_lib.zoo.recipes import Recipe

MOST = 32  # adapters of a stack
COMPILED = 50_000_000  # weights of a base from which on compiling, half a minute, pays
SAVE_EVERY = 100  # steps between states that an interrupted stack goes on from


@dataclass(frozen=True)
class AdapterJob:
    """One adapter to be trained."""

    task: Task
    seed: int
    recipe: Recipe


@dataclass(frozen=True)
class Trained:
    """One trained adapter: final tensors, kept checkpoints (oldest first), loss a step, and its
    share of the seconds that its stack took."""

    run: AdapterJob
    tensors: dict[str, Tensor]
    checkpoints: dict[int, dict[str, Tensor]]
    losses: list[float]
    seconds: float

    @property
    def finite(self) -> bool:
        """Whether no loss was lost to too high a learning rate."""
        return all(map(math.isfinite, self.losses))


class Trainer:
    """Trains stacks of S adapters of one base, one after the other, on buffers that stay in place.

    A step of a shape seen before is, on a GPU, one replayed graph: see `replay.Replay`.
    """

    def __init__(self, base: BaseModel, size: int, feed: StackBatches, recipe: Recipe):
        self.base, self.clip, self.how = base, recipe.clip, feed.how
        dtype = next(base.model.parameters()).dtype
        self.stack = Stack(base.lora_init(), size, base.device, dtype, recipe.ratio)
        rows, options = feed.rows[0], feed.table.options
        self.answers, self.words = feed.answers[0].clone(), feed.words_of(len(rows))
        self.option = torch.arange(options, device=base.device)
        self.read = feed.table[rows]
        self.lr = torch.zeros(size, device=base.device)
        self.loss = torch.zeros(size, device=base.device)
        self.replay = Replay(self._step, base.device)

    def begin(self, start: dict[str, Tensor], feed: StackBatches) -> Stack:
        """The stack, all of it as `start` says, about to read `feed`."""
        self.stack.restart(start)
        self.words.copy_(feed.words_of(len(self.words)))
        return self.stack

    def _step(self, shape: tuple[int, int]) -> None:
        batch = self.read.cut(*shape)
        found = scoring.losses(
            self.base.model, self.base, self.how, batch, self.answers, self.words, len(self.stack)
        )
        loss = found.view(len(self.stack), -1).mean(1)  # [S]
        self.loss.copy_(loss.detach())
        self.stack.update(loss.sum(), self.lr, self.clip)

    def step(self, feed: StackBatches, i: int, lr: Tensor) -> Tensor:
        """Step `i` of `feed` at learning rates `lr` [S]; the losses [S] before it."""
        rows = feed.rows[i]
        places = (rows[:, None] * len(self.option) + self.option).flatten()
        torch.index_select(feed.table.ids, 0, places, out=self.read.ids)
        torch.index_select(feed.table.lengths, 0, places, out=self.read.lengths)
        torch.index_select(feed.table.begins, 0, places, out=self.read.begins)
        if feed.table.images is not None:
            image_index = feed.table.image_index[rows]
            torch.index_select(feed.table.images, 0, image_index, out=self.read.images)
        self.answers.copy_(feed.answers[i])
        self.lr.copy_(lr)
        self.replay((feed.widths[i], feed.tails[i]))
        return self.loss


class StackTrainer:
    """Trains stacks on one base model; what was set up for a shape of stack serves the next one of
    that shape, and goes when another shape comes.

    `longest` is the most tokens that a row of any task may have.
    """

    def __init__(self, base: BaseModel, longest: int = 0):
        self.base, self.longest = base, longest
        self.trainers: dict[tuple, Trainer] = {}

    def train(
        self,
        runs: Sequence[AdapterJob],
        data: dict[str, Split],
        *,
        most: int = MOST,
        state: Path | None = None,
        strict: bool = True,
    ) -> Iterator[Trained]:
        """Trains `runs`, up to `most` at a time; `data` maps a task's name to its rows.

        Runs that are scored alike, read as many rows a step and have one clip and ratio share a
        stack. `state` is a folder for what an interrupted stack goes on from; a stack's file goes
        once all its adapters were taken. OralError when a loss is no longer finite; without
        `strict` that run is yielded as it is, since it harms no other.
        """
        base, alike = self.base, {}
        for run in runs:
            how = base.scoring_kind(run.task)
            classes = (
                len(run.task.labels) if how in ("image", "question") else 0
            )  # they compete for a picture
            recipe = run.recipe
            key = (how, classes, recipe.batch, recipe.clip, recipe.ratio)
            alike.setdefault(key, []).append(run)
        with stacked.compiled(base.model) if base.weights > COMPILED else nullcontext():
            for group in alike.values():
                for first in range(0, len(group), most):
                    stack = group[first : first + most]
                    key = _key(base, stack, data) if state else 0
                    file = state / f"stack-{key:016x}.safetensors" if state else None
                    made = self._stack(stack, data, file)
                    for done in made:
                        if strict and not done.finite:
                            raise OralError(
                                f"zoo {base.name} {done.run.task.name} seed {done.run.seed}: the "
                                f"loss is no longer finite; lower lr={done.run.recipe.lr}."
                            )
                    yield from made
                    if file:
                        file.unlink(missing_ok=True)

    def _stack(
        self, runs: Sequence[AdapterJob], data: dict[str, Split], state: Path | None
    ) -> list[Trained]:
        base, recipe, began = self.base, runs[0].recipe, time.perf_counter()
        label, steps = f"zoo {base.name} {_named(runs)}", max(run.recipe.steps for run in runs)
        longest = max(self.longest, *(run.task.words for run in runs))
        jobs = [(run.task, run.seed) for run in runs]
        feed = StackBatches.of(base, jobs, data, steps=steps, batch=recipe.batch, longest=longest)
        trainer = self._trainer(len(runs), feed, recipe)
        stack = trainer.begin(base.lora_init(), feed)
        rates = [[run.recipe.lr_at(i) for run in runs] for i in range(steps)]
        lr = torch.tensor(rates, device=base.device)
        losses = torch.zeros(steps, len(runs), device=base.device)
        wanted = {step for run in runs for step in run.recipe.kept}
        kept: dict[int, Tensor] = {}
        if state is not None and state.exists():
            held = storage.read_tensors(state)
            stack.load(held)
            losses.copy_(held["losses"])
            kept = {int(n.split(".")[1]): v for n, v in held.items() if n.startswith("kept.")}
        with stacked.attached(base.model, stack, base.spec.alpha / base.spec.rank):
            for step in bar(range(int(stack.step), steps), label=label, unit="step"):
                losses[step] = trainer.step(feed, step, lr[step])
                done = step + 1
                if done in wanted:
                    kept[done] = stack.values.cpu().clone()
                if state is not None and done % SAVE_EVERY == 0 and done < steps:
                    held = {f"kept.{n}": v for n, v in kept.items()}
                    parts = stack.state() | held | {"losses": losses}
                    storage.write_tensors(state, {n: v.cpu() for n, v in parts.items()})
        seconds = (time.perf_counter() - began) / len(runs)
        checkpoints = {step: stack.adapters(values) for step, values in sorted(kept.items())}
        return [
            Trained(
                run,
                checkpoints[run.recipe.steps][s],
                {step: checkpoints[step][s] for step in sorted(run.recipe.kept)},
                losses[: run.recipe.steps, s].tolist(),
                seconds,
            )
            for s, run in enumerate(runs)
        ]

    def _trainer(self, size: int, feed: StackBatches, recipe: Recipe) -> Trainer:
        shape = (size, recipe.batch, feed.table.ids.shape[1], feed.words.shape[1])
        key = (feed.how, feed.table.options, *shape, recipe.clip, recipe.ratio)
        if key not in self.trainers:
            self.trainers.clear()  # the graphs of one trainer can fill half of a GPU
            self.trainers[key] = Trainer(self.base, size, feed, recipe)
        return self.trainers[key]


def train(
    base: BaseModel, runs: Sequence[AdapterJob], data: dict[str, Split], **how
) -> Iterator[Trained]:
    """`Workshop.train` in a workshop of its own."""
    yield from StackTrainer(base).train(runs, data, **how)


def _key(base: BaseModel, runs: Sequence[AdapterJob], data: dict[str, Split]) -> int:
    """A number for all that decides what a stack of `runs` learns."""
    taught = {
        run.task.name: crc32(repr([(r.key, r.label) for r in data[run.task.name].train]).encode())
        for run in runs
    }
    named = (
        f"{r.task.name} {r.task.version} {taught[r.task.name]} {r.seed} {r.recipe}" for r in runs
    )
    return seeds.integer(0, base.name, *named)


def _named(runs: Sequence[AdapterJob]) -> str:
    """What a progress line says: movie seed 1; movie seeds 0-2; 3 tasks, 24 adapters."""
    names, numbers = {run.task.name for run in runs}, [run.seed for run in runs]
    if len(names) > 1:
        return f"{len(names)} tasks, {len(runs)} adapters"
    span = f"{min(numbers)}-{max(numbers)}" if len(runs) > 1 else str(numbers[0])
    return f"{names.pop()} seed{'s' if len(runs) > 1 else ''} {span}"
