"""A zoo of adapters that share nothing but their task: each starts from a LoRA draw of its own.

A is random in LoRA's initialisation and B is zero, so that the B which training writes fits this A.
With other random rows of A the same task has other factors, many of them with the opposite sign.
Only A and B are trained: the head of an encoder stays at its initial values, which all share, as a
causal model's vocabulary does. The products B A of such a zoo are alike, their factors are not.

Letters: n adapters, S adapters of a stack.
"""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from torch import nn

from oral_lib import seeds, storage
from oral_lib.lora import stacked
from oral_lib.models.base import BaseModel
from oral_lib.progress import bar
from oral_lib.tasks.rows import Split
from oral_lib.tasks.task import Task
from oral_lib.zoo.batches import StackBatches
from oral_lib.zoo.recipes import Recipe
from oral_lib.zoo.training import StackStep


def own_start(base: BaseModel, task: str, seed: int) -> dict[str, torch.Tensor]:
    """The LoRA initialisation of one adapter: A drawn from (task, seed), the rest as of all."""
    start = base.lora_init()
    for name in sorted(start):
        if "lora_A" in name:
            draw = seeds.generator(seed, "own-start", base.name, task, name)
            nn.init.kaiming_uniform_(start[name], a=5**0.5, generator=draw)
    return start


def train_independent(
    base: BaseModel,
    task: Task,
    rows: Split,
    numbers: Sequence[int],
    recipe: Recipe,
    folder: Path,
    *,
    stack_size: int = 96,
) -> list[dict[str, torch.Tensor]]:
    """The adapters of `task` with the seeds `numbers`, each from `own_start`.

    Stacks that are in `folder` are read.

    Args:
        base: the base model, on the device to train on.
        task: a task with labels.
        rows: of the task.
        numbers: seeds of start and order of rows.
        recipe: of every adapter.
        folder: of the stored stacks.
        stack_size: S, at most.
    """
    adapters, steps = [], {}  # one captured step for each S
    for first in range(0, len(numbers), stack_size):
        chosen = numbers[first : first + stack_size]
        about = [
            base.name,
            base.spec.rank,
            task.name,
            task.version,
            *chosen,
            *asdict(recipe).items(),
        ]
        file = folder / f"{task.name}-{seeds.integer(0, *map(str, about)):016x}.safetensors"
        if not file.exists():
            values = _train_stack(base, task, rows, chosen, recipe, steps)
            storage.write_tensors(file, {"values": values})
        stack = stacked.Stack(base.lora_init(), len(chosen))
        adapters += stack.adapters(storage.read_tensors(file)["values"])
    return adapters


def _train_stack(
    base: BaseModel,
    task: Task,
    rows: Split,
    numbers: Sequence[int],
    recipe: Recipe,
    steps: dict[int, StackStep],
) -> torch.Tensor:
    """[S, values] of trained adapters, on the CPU."""
    jobs, size = [(task, number) for number in numbers], len(numbers)
    options = {"steps": recipe.steps, "batch": recipe.batch, "longest": task.max_tokens}
    batches = StackBatches.of(base, jobs, {task.name: rows}, **options)
    if size not in steps:
        steps[size] = StackStep(base, size, batches, recipe)
    trainer = steps[size]
    stack = trainer.begin(base.lora_init(), batches)
    stack.put([own_start(base, task.name, number) for number in numbers])
    moving = [".lora_" in name for name in stack.names]
    moving = torch.tensor(moving).repeat_interleave(torch.tensor(stack.sizes))  # [values]
    stack.pace.mul_(moving.to(stack.pace.device))
    scale = base.spec.alpha / base.spec.rank
    with stacked.attached(base.model, stack, scale):
        label = f"own starts {base.name} {task.name} {numbers[0]}-{numbers[-1]}"
        for step in bar(range(recipe.steps), label=label, unit="step"):
            rate = torch.full((size,), recipe.lr_at(step), device=base.device)
            trainer.step(batches, step, rate)
    return stack.values.detach().cpu().clone()
