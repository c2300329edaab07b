"""Training of the zoo: many LoRA adapters of one base model at a time.

All adapters of a base model have the same LoRA initialisation. The seed decides the order of the
rows only. A stack of adapters (`lora/stacked.py`) is trained as PEFT would train each of them.
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
from oral_lib.zoo.batches import StackBatches, StepRows, step_group
from oral_lib.zoo.recipes import Recipe

STACK_SIZE = 32  # adapters
COMPILED = 50_000_000  # base models with more weights are compiled, which takes half a minute
STACK_SAVE_EVERY = 100  # steps between two saved states of a stack


@dataclass(frozen=True)
class AdapterJob:
    """One adapter to train."""

    task: Task
    seed: int
    recipe: Recipe


@dataclass(frozen=True)
class TrainedAdapter:
    """One trained adapter."""

    job: AdapterJob
    tensors: dict[str, Tensor]
    checkpoints: dict[int, dict[str, Tensor]]  # by step, in order
    losses: list[float]  # by step
    seconds: float  # training time of its stack divided by the number of adapters

    @property
    def finite(self) -> bool:
        """True if training did not diverge (all losses are finite)."""
        return all(map(math.isfinite, self.losses))


class StackStep:
    """The training step of stacks of S adapters, on tensors that keep their addresses.

    On a GPU a step of a shape that occurred before replays a CUDA graph (`devices.Replay`).
    """

    def __init__(self, base: BaseModel, size: int, batches: StackBatches, recipe: Recipe):
        self.base, self.clip, self.scoring_kind = base, recipe.clip, batches.scoring_kind
        dtype = next(base.model.parameters()).dtype
        self.stack = Stack(base.lora_init(), size, base.device, dtype, recipe.ratio)
        self.rows = StepRows(batches)
        self.lr = torch.zeros(size, device=base.device)
        self.loss = torch.zeros(size, device=base.device)
        self.replay = Replay(self._step, base.device)

    def begin(self, start: dict[str, Tensor], batches: StackBatches) -> Stack:
        """The stack, with all adapters reset to `start`, for the steps of `batches`."""
        self.stack.restart(start)
        answer_ids = self.rows.answer_ids
        answer_ids.copy_(batches.answer_ids_of_rows(len(answer_ids)))
        return self.stack

    def _step(self, shape: tuple[int, int]) -> None:
        rows, model = self.rows, self.base.model
        batch, answers = rows.batch.cut(*shape), (rows.answers, rows.answer_ids)
        about = model, self.base, self.scoring_kind, batch, *answers
        loss = scoring.losses(*about, len(self.stack))
        loss = loss.view(len(self.stack), -1).mean(1)  # [S]
        self.loss.copy_(loss.detach())
        self.stack.update(loss.sum(), self.lr, self.clip)

    def step(self, batches: StackBatches, i: int, lr: Tensor) -> Tensor:
        """Losses [S] before step `i` of `batches`, which is made at learning rates `lr` [S]."""
        self.rows.set(batches, i)
        self.lr.copy_(lr)
        self.replay((batches.widths[i], batches.tails[i]))
        return self.loss


class StackTrainer:
    """Trains stacks of adapters of one base model.

    Compiled code and CUDA graphs are reused by stacks of one shape; another shape replaces them.

    Args:
        base: the base model.
        longest: tokens of the longest row of any task that will be trained.
    """

    def __init__(self, base: BaseModel, longest: int = 0):
        self.base, self.longest = base, longest
        self.steps: dict[tuple, StackStep] = {}

    def train(
        self,
        jobs: Sequence[AdapterJob],
        data: dict[str, Split],
        *,
        stack_size: int = STACK_SIZE,
        state: Path | None = None,
        strict: bool = True,
    ) -> Iterator[TrainedAdapter]:
        """The trained adapters of `jobs`.

        Jobs share a stack if they have the same kind of scoring, rows a step, clip and ratio.

        Args:
            jobs: the adapters to train.
            data: rows by name of the task.
            stack_size: maximum number of adapters in a stack.
            state: folder where interrupted stacks are resumed from. The file of a stack is removed
                once all its adapters have been yielded.
            strict: raise OralError for an adapter whose loss is not finite, instead of yielding
                it. It does not affect the other adapters.

        Raises:
            OralError: if training diverged and `strict` is set.
        """
        base, groups = self.base, {}
        for job in jobs:
            recipe, rows = job.recipe, data[job.task.name].train
            key = (step_group(base, job.task, rows), recipe.batch, recipe.clip, recipe.ratio)
            groups.setdefault(key, []).append(job)
        with stacked.compiled(base.model) if base.weights > COMPILED else nullcontext():
            for group in groups.values():
                for first in range(0, len(group), stack_size):
                    stack = group[first : first + stack_size]
                    key = state_key(base, stack, data) if state else 0
                    file = state / f"stack-{key:016x}.safetensors" if state else None
                    adapters = self._train_stack(stack, data, file)
                    for adapter in adapters:
                        if strict and not adapter.finite:
                            job = adapter.job
                            raise OralError(
                                f"zoo {base.name} {job.task.name} seed {job.seed}: the loss is not "
                                f"finite; lower lr={job.recipe.lr}."
                            )
                    yield from adapters
                    if file:
                        file.unlink(missing_ok=True)

    def _train_stack(
        self, jobs: Sequence[AdapterJob], data: dict[str, Split], state: Path | None
    ) -> list[TrainedAdapter]:
        base, recipe, began = self.base, jobs[0].recipe, time.perf_counter()
        label, steps = f"zoo {base.name} {_label(jobs)}", max(job.recipe.steps for job in jobs)
        longest = max(self.longest, *(job.task.max_tokens for job in jobs))
        tasks = [(job.task, job.seed) for job in jobs]
        batches = StackBatches.of(
            base, tasks, data, steps=steps, batch=recipe.batch, longest=longest
        )
        trainer = self._step(len(jobs), batches, recipe)
        stack = trainer.begin(base.lora_init(), batches)
        rates = [[job.recipe.lr_at(i) for job in jobs] for i in range(steps)]
        lr = torch.tensor(rates, device=base.device)  # [steps, S]
        losses = torch.zeros(steps, len(jobs), device=base.device)
        checkpoint_steps = {step for job in jobs for step in job.recipe.checkpoint_steps}
        values: dict[int, Tensor] = {}  # of the stack, by step
        if state is not None and state.exists():
            saved = storage.read_tensors(state)
            stack.load(saved)
            losses.copy_(saved["losses"])
            values = {int(n.split(".")[1]): v for n, v in saved.items() if n.startswith("kept.")}
        with stacked.attached(base.model, stack, base.spec.alpha / base.spec.rank):
            for step in bar(range(int(stack.step), steps), label=label, unit="step"):
                losses[step] = trainer.step(batches, step, lr[step])
                done = step + 1
                if done in checkpoint_steps:
                    values[done] = stack.values.cpu().clone()
                if state is not None and done % STACK_SAVE_EVERY == 0 and done < steps:
                    saved = {f"kept.{n}": v for n, v in values.items()}
                    saved |= stack.state() | {"losses": losses}
                    storage.write_tensors(state, {n: v.cpu() for n, v in saved.items()})
        seconds = (time.perf_counter() - began) / len(jobs)
        checkpoints = {step: stack.adapters(v) for step, v in sorted(values.items())}
        return [
            TrainedAdapter(
                job,
                checkpoints[job.recipe.steps][s],
                {step: checkpoints[step][s] for step in sorted(job.recipe.checkpoint_steps)},
                losses[: job.recipe.steps, s].tolist(),
                seconds,
            )
            for s, job in enumerate(jobs)
        ]

    def _step(self, size: int, batches: StackBatches, recipe: Recipe) -> StackStep:
        """The step of this shape of stack, set up now if the last stack had another shape."""
        shape = (size, recipe.batch, batches.table.ids.shape[1], batches.answer_ids.shape[1])
        key = (batches.scoring_kind, batches.table.options, *shape, recipe.clip, recipe.ratio)
        if key not in self.steps:
            self.steps.clear()  # the CUDA graphs of one shape can fill half of a GPU
            self.steps[key] = StackStep(self.base, size, batches, recipe)
        return self.steps[key]


def train(
    base: BaseModel, jobs: Sequence[AdapterJob], data: dict[str, Split], **options
) -> Iterator[TrainedAdapter]:
    """The trained adapters of `jobs`; `options` as of `StackTrainer.train`."""
    yield from StackTrainer(base).train(jobs, data, **options)


def state_key(base: BaseModel, jobs: Sequence[AdapterJob], data: dict[str, Split]) -> int:
    """A hash of everything that decides what a stack of `jobs` learns."""
    rows_hash = {
        job.task.name: crc32(repr([(r.key, r.label) for r in data[job.task.name].train]).encode())
        for job in jobs
    }
    parts = (
        f"{job.task.name} {job.task.version} {rows_hash[job.task.name]} {job.seed} {job.recipe}"
        for job in jobs
    )
    return seeds.integer(0, base.name, *parts)


def _label(jobs: Sequence[AdapterJob]) -> str:
    """`jobs` in a progress line: movie seed 1; movie seeds 0-2; 3 tasks, 24 adapters."""
    names, numbers = {job.task.name for job in jobs}, [job.seed for job in jobs]
    if len(names) > 1:
        return f"{len(names)} tasks, {len(jobs)} adapters"
    span = f"{min(numbers)}-{max(numbers)}" if len(jobs) > 1 else str(numbers[0])
    return f"{names.pop()} seed{'s' if len(jobs) > 1 else ''} {span}"
