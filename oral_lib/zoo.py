"""The zoo: LoRA adapters trained with PEFT, the data that a generator learns from.

Every adapter of a base model starts from the same LoRA initialisation; the seed decides the order
of the data and nothing else. A run leaves a standard PEFT folder and `run.json` (recipe, losses,
validation score, kept checkpoints). Checkpoints of one run are one sample: seeds are the data.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import get_linear_schedule_with_warmup

from oral_lib import bases, scoring, seeds, storage, tasks
from oral_lib.bases import BaseModel
from oral_lib.errors import OralError, PreflightError, UsageError
from oral_lib.progress import bar
from oral_lib.tasks import Row, Split, Task


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
    """One trained adapter: final tensors, kept checkpoints (oldest first), loss a step, seconds."""

    run: Run
    tensors: dict[str, Tensor]
    checkpoints: dict[int, dict[str, Tensor]]
    losses: list[float]
    seconds: float


def batches(rows: Sequence[Row], size: int, seed: int) -> Iterator[list[int]]:
    """Endless batches: shuffled by `seed`, then grouped by length within pools of 16 batches."""
    rng = np.random.default_rng(seeds.integer(seed, "order"))
    while True:
        order = rng.permutation(len(rows))
        for start in range(0, len(order), 16 * size):
            pool = sorted(order[start : start + 16 * size], key=lambda i: len(rows[i].text))
            groups = [pool[i : i + size] for i in range(0, len(pool), size)]
            for j in rng.permutation(len(groups)):
                yield groups[j]


def train(base: BaseModel, runs: Sequence[Run], data: dict[str, Split]) -> Iterator[Trained]:
    """Trains `runs` on `base` and yields each as it is done; `data` maps a task's name to its rows.

    The interface takes all runs at once so that a stacked trainer can share the frozen weights.
    """
    start = base.lora_init()
    for run in runs:
        label = f"zoo {base.name} {run.task.name} seed {run.seed}"
        with base.attach(start) as model:
            done = _train_one(model, base, run, data[run.task.name].train, label)
        yield done  # detached: the caller may attach adapters of its own


def _train_one(model, base: BaseModel, run: Run, rows: Sequence[Row], label: str) -> Trained:
    recipe, began = run.recipe, time.perf_counter()
    weights = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=recipe.lr, weight_decay=0.0)
    warmup = round(recipe.warmup * recipe.steps)
    schedule = get_linear_schedule_with_warmup(optimizer, warmup, recipe.steps)
    stream = batches(rows, recipe.batch, run.seed)
    last = {recipe.steps - i * recipe.every for i in range(recipe.keep)}
    losses, checkpoints = [], {}
    for step in bar(range(1, recipe.steps + 1), label=label, unit="step"):
        chosen = next(stream)
        answer = torch.tensor([rows[i].label for i in chosen], device=base.device)
        likely = scoring.loglikelihoods(model, base, run.task, [rows[i].text for i in chosen])
        loss = torch.nn.functional.nll_loss(likely, answer)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, recipe.clip)
        optimizer.step()
        schedule.step()
        losses.append(loss.detach())
        if step in last:
            checkpoints[step] = bases.take(model)
    curve = torch.stack(losses).tolist()
    if not np.isfinite(curve).all():
        raise OralError(f"{label}: the loss is no longer finite; lower lr={recipe.lr}.")
    seconds = time.perf_counter() - began
    return Trained(run, checkpoints[recipe.steps], checkpoints, curve, seconds)


def folder(root: Path, base: str, task: str, seed: int) -> Path:
    """Where the zoo under `root` keeps the adapter of (base, task, seed)."""
    return root / "zoo" / base / task / f"seed-{seed}"


def train_cell(
    base: str, task: str, seed_list: Sequence[int], *, source: str, root: Path, device: str = "cpu"
) -> list[Path]:
    """Trains the adapters of one (base, task) that `root` lacks; returns the folders of all."""
    wanted = [folder(root, base, task, s) for s in seed_list]
    missing = [s for s, f in zip(seed_list, wanted, strict=True) if not (f / "run.json").exists()]
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
        runs = [Run(spec, s, recipe) for s in missing]
        for done in train(model, runs, data):
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
