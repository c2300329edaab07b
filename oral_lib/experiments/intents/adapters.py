"""Many LoRAs trained at once, each on rows of its own, and their files.

An adapter is a row of values [V] in the order of `lora.stacked.Stack`. The adapters of one split
and base model are one safetensors file with a manifest.

Letters: T adapters in all, S adapters of a stack, n rows of a step, V values of an adapter.
"""

import math
from collections.abc import Sequence
from contextlib import nullcontext

import numpy as np
import torch
from torch import Tensor

from oral_lib import learning_rate, seeds
from oral_lib.devices import Replay
from oral_lib.errors import OralError
from oral_lib.experiments.intents import scoring
from oral_lib.experiments.intents.messages import MessageTable, in_steps
from oral_lib.lora import stacked
from oral_lib.lora.stacked import Stack
from oral_lib.models.base import BaseModel
from oral_lib.progress import bar
from oral_lib.tasks.intents.family import IntentFamily, IntentTask
from oral_lib.zoo.recipes import Recipe
from oral_lib.zoo.training import COMPILED

_STACKED = 64  # adapters


class StackTraining:
    """The training step of S adapters on rows of one table, on tensors that keep their addresses.

    On a GPU a step of a width that occurred before replays a CUDA graph (`devices.Replay`).

    Args:
        table: the messages as the base model reads them.
        start: the adapter of which all S have the shapes.
        size: S.
        n: rows of an adapter in a step.
        clip: largest gradient norm of an adapter.
        ratio: the learning rate of B and of heads divided by the learning rate of A.
    """

    def __init__(
        self,
        table: MessageTable,
        start: dict[str, Tensor],
        size: int,
        n: int,
        *,
        clip: float,
        ratio: float,
    ):
        device = table.base.device
        dtype = next(table.base.model.parameters()).dtype
        self.table, self.clip = table, clip
        self.stack = Stack(start, size, device, dtype, ratio)
        self.rows = torch.zeros(size * n, dtype=torch.long, device=device)
        self.labels = torch.zeros_like(self.rows)
        self.lr = torch.zeros(size, device=device)
        self.loss = torch.zeros(size, device=device)
        self.replay = Replay(self._step, device)

    def begin(self, values: Tensor) -> None:
        """Sets the adapters to `values` [S, V], with zero moments and step 0, in place."""
        self.stack.moments.zero_()
        self.stack.step.zero_()
        scoring.set_values(self.stack, values)

    def _step(self, width: int) -> None:
        size = len(self.stack)
        losses = self.table.losses(self.rows, self.labels, width).view(size, -1).mean(1)
        self.loss.copy_(losses.detach())
        self.stack.update(losses.sum(), self.lr, self.clip)

    def step(self, rows: Tensor, labels: Tensor, lr: Tensor, width: int) -> Tensor:
        """Losses [S] before a step on rows [S, n] of at most `width` tokens, at rates `lr` [S]."""
        self.rows.copy_(rows.flatten())
        self.labels.copy_(labels.flatten())
        self.lr.copy_(lr)
        self.replay(width)
        return self.loss


def training_rows(
    family: IntentFamily,
    tasks: Sequence[IntentTask],
    steps: int,
    n: int,
    lengths: np.ndarray,
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """Training rows [steps, T, n] of `tasks` and their labels: the first half of n is positive.

    Half of the negatives are of near intents, where a task has any. Every pool of rows is read in a
    random order, to its end, before a row is read again. Rows of similar length share a step.

    Args:
        family: the messages.
        tasks: which intents are positive, near and far.
        steps: number of steps.
        n: rows of a task in a step, at least 2.
        lengths: tokens by row number.
        seed: of the order of the rows.
    """
    rows = np.empty((steps, len(tasks), n), np.int64)
    labels = np.broadcast_to((np.arange(n) < n // 2).astype(np.int64), rows.shape)
    for t, task in enumerate(tasks):
        random = np.random.default_rng(seeds.integer(seed, "intent-rows", task.name))
        near = (n - n // 2) // 2 if task.near else 0
        if not task.far:
            near = n - n // 2
        counts = (n // 2, near, n - n // 2 - near)
        drawn = [
            _in_turn(family.rows_of(intents, "train"), steps * count, random)
            for intents, count in zip((task.positive, task.near, task.far), counts, strict=True)
            if count
        ]
        rows[:, t] = np.concatenate([part.reshape(steps, -1) for part in drawn], axis=1)
    return in_steps(rows, labels, lengths, seed=seed)


def _in_turn(pool: np.ndarray, n: int, random: np.random.Generator) -> np.ndarray:
    """n rows of `pool`, in a new random order after each pass over it. OralError if it is empty."""
    if not len(pool):
        raise OralError("A task has no training rows of an intent that it is about.")
    passes = [random.permutation(pool) for _ in range(-(-n // len(pool)))]
    return np.concatenate(passes)[:n]


def train_stack(
    base: BaseModel,
    table: MessageTable,
    start: dict[str, Tensor] | Tensor,
    rows: np.ndarray,
    labels: np.ndarray,
    *,
    lr: float | Sequence[float],
    warmup: float = 0.1,
    clip: float = 1.0,
    ratio: float = 16.0,
    size: int = _STACKED,
    label: str = "adapters",
) -> Tensor:
    """The trained adapters, float32 [T, V] on the CPU.

    Each adapter is trained as if it were the only one. The learning rate rises from zero and then
    falls to zero, both linearly.

    Args:
        base: the base model.
        table: the messages as `base` reads them.
        start: the adapter that all T start from, by PEFT's names, or the values [T, V] of each.
        rows: row numbers [steps, T, n], on the host; see `messages.in_steps`.
        labels: [steps, T, n] 1 for yes and 0 for no.
        lr: highest learning rate, one or T.
        warmup: share of the steps.
        clip: largest gradient norm of an adapter.
        ratio: the learning rate of B and of heads divided by the learning rate of A.
        size: largest number of adapters in a stack.
        label: of the progress bar.

    Raises:
        OralError: training diverged.
    """
    steps, total, n = rows.shape
    if not total:
        raise OralError("no adapters to train: rows [steps, adapters, n] have no adapter.")
    stacks = math.ceil(total / size)
    size = math.ceil(total / stacks)  # one shape of stack, with little repetition in the last
    init = base.lora_init()
    trainer = StackTraining(table, init, size, n, clip=clip, ratio=ratio)
    device = base.device
    initial = start if isinstance(start, Tensor) else _flat(start)[None].expand(total, -1)
    rise = round(warmup * steps)
    share = [learning_rate.linear_from_zero(1.0, i, steps=steps, warmup=rise) for i in range(steps)]
    rates = torch.as_tensor(lr, dtype=torch.float32).expand(total)
    trained = torch.empty(total, trainer.stack.values.shape[1])
    compiled = stacked.compiled(base.model) if base.weights > COMPILED else nullcontext()
    scale = base.spec.alpha / base.spec.rank
    progress = bar(total=stacks * steps, label=f"{base.name} {label}", unit="step")
    with compiled, stacked.attached(base.model, trainer.stack, scale):
        for first in range(0, total, size):
            chosen = np.arange(first, first + size).clip(max=total - 1)  # repeats the last adapter
            trainer.begin(initial[torch.from_numpy(chosen)].to(device))
            here = rows[:, chosen]
            widths = [table.width(part) for part in here]
            on_device = torch.from_numpy(here).to(device)
            answers = torch.from_numpy(labels[:, chosen]).to(device)
            pace = torch.tensor(share)[:, None] * rates[torch.from_numpy(chosen)]  # [steps, S]
            pace = pace.to(device)
            for i in range(steps):
                trainer.step(on_device[i], answers[i], pace[i], widths[i])
                progress.update()
            kept = min(size, total - first)
            trained[first : first + kept] = trainer.stack.values[:kept].cpu()
    progress.close()
    if broken := (~trained.isfinite().all(1)).nonzero().flatten().tolist():
        raise OralError(
            f"{base.name} {label}: {len(broken)} of {total} adapters have values that are not "
            "finite: lower the learning rate."
        )
    return trained


def options_of(recipe: Recipe) -> dict:
    """The options of `train_stack` in a recipe."""
    return {name: getattr(recipe, name) for name in ("lr", "warmup", "clip", "ratio")}


def _flat(adapter: dict[str, Tensor]) -> Tensor:
    """The values [V] of an adapter, in the order of `Stack`."""
    return torch.cat([adapter[name].flatten().float() for name in sorted(adapter)])
