"""Unseen tasks by text: RPG's own test (arXiv 2501.11587), told in words instead of class bits.

A LoRA with its head was trained for each way to split ten classes into yes and no (`splits.py`). A
generator that was trained on 1,002 of them makes adapters for the twenty that it never saw, and so
does all that could stand in for it: retrieval, a soup, and one LoRA for all tasks whose head reads
the sentence. Balanced accuracy, since most splits are uneven.
"""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from oral_lib import learning_rate, scales, seeds, storage
from oral_lib.errors import PreflightError
from oral_lib.experiments import baselines, generators
from oral_lib.experiments.cells import Size, Trial, judged
from oral_lib.experiments.generators import Preset
from oral_lib.generator import Generator
from oral_lib.lora import stacked
from oral_lib.lora.stacked import Stack
from oral_lib.models.base import BaseModel
from oral_lib.models.loading import load as load_base
from oral_lib.models.text_encoder import TextEncoder
from oral_lib.progress import bar
from oral_lib.tasks.rows import task_rows
from oral_lib.tasks.task import load_task, wordings_hash
from oral_lib.zoo import store
from oral_lib.zoo.store import Member

SIZES = {"smoke": Size(100, 50, 3, 1), "lab": Size(1500, 500, 10, 5)}


def preset(scale: str, kind: str) -> Preset:
    """The configurations of `generators.preset` with the steps that a thousand tasks want, and a
    smaller blur of the sentence: it differs from the next task's in a word. An adapter that the
    zoo lacks need not lie between those it has."""
    default = generators.preset(scale, kind)
    changes = {"steps": 6000, "conditions": 32, "tokens": 6400, "text_noise": 0.5}
    if scale == "smoke":
        changes = {"steps": 200, "conditions": 8, "draws": 1}
    sampling = replace(default.sampling, projection="span")
    return replace(default, sampling=sampling, training=replace(default.training, **changes))


# ---------------------------------------------------------------- one LoRA for all tasks
@dataclass(frozen=True)
class MultitaskConfig:
    """How one LoRA is trained on all tasks at once; a step reads pictures * tasks answers."""

    steps: int = 1500
    pictures: int = 64
    tasks: int = 64
    lr: float = 3e-3  # of LoRA
    head_lr: float = 1e-3
    warmup: float = 0.1
    clip: float = 1.0
    seed: int = 0

    def lr_at(self, step: int) -> float:
        """The share of the learning rates: up from zero, then linearly down to it."""
        warmup = max(1, round(self.warmup * self.steps))
        return learning_rate.linear(1.0, step, steps=self.steps, warmup=warmup, at_peak=2)


MULTITASK = {"smoke": MultitaskConfig(steps=60, pictures=16, tasks=16), "lab": MultitaskConfig()}


def train_multitask(
    base: str, names: Sequence[str], *, scale: str, source: str, root: Path, device: str = "cpu"
) -> Path:
    """Trains LoRA and a head that is linear in the sentence, yes = features W e(text) + b; its
    folder under `root`, which counts once its manifest is there.

    A step answers for some pictures under some tasks, each told in one of its training wordings.
    One that was trained on other tasks or wordings, or otherwise, is trained again.
    """
    folder, config = root / "multitask", MULTITASK[scale]
    known = [load_task(name) for name in names]
    about = {"base": base, "tasks": len(known), "training": asdict(config)}
    about["told"] = wordings_hash(names)
    manifest = folder / "manifest.json"
    if manifest.exists() and about.items() <= storage.read_json(manifest).items():
        return folder
    model = load_base(base, source=source, device=device)
    name = generators.preset(scale, "generator").network.text_encoder
    encoder = TextEncoder(name, source=source)
    rows = task_rows(load_task(known[0].of), source).train
    pictures = model.pictures(rows)
    labels = torch.tensor([row.label for row in rows], device=model.device)
    texts = torch.stack([encoder.encode(task.training_texts) for task in known])  # [n, w, e]
    texts = texts.to(model.device)
    classes = len(load_task(known[0].of).labels)
    says_yes = torch.zeros(len(known), classes, device=model.device)
    for place, task in enumerate(known):
        says_yes[place, list(task.positive)] = 1.0
    start = {n: t for n, t in model.lora_init().items() if ".lora_" in n}
    stack = Stack(start, 1, model.device, next(model.model.parameters()).dtype)
    head = nn.Linear(encoder.width, model.model.num_features + 1, device=model.device)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    optimizer = torch.optim.AdamW(head.parameters(), lr=config.head_lr, weight_decay=0.0)
    draw = seeds.generator(config.seed, "multitask", device=model.device)
    how = {"generator": draw, "device": model.device}
    losses = []
    with stacked.attached(model.model, stack, model.spec.alpha / model.spec.rank) as core:
        for step in bar(range(config.steps), label=f"multi-task LoRA ({scale})", unit="step"):
            some = torch.randint(len(rows), (config.pictures,), **how)
            asked = torch.randint(len(known), (config.tasks,), **how)
            words = torch.randint(texts.shape[1], (config.tasks,), **how)
            features = _features(core, model, pictures[some])
            said = _answers(features, head, texts[asked, words])  # [pictures, tasks]
            loss = F.binary_cross_entropy_with_logits(said, says_yes[asked][:, labels[some]].T)
            optimizer.zero_grad()
            parts = list(head.parameters())
            grads = torch.autograd.grad(loss, parts, retain_graph=True)
            for part, grad in zip(parts, grads, strict=True):
                part.grad = grad
            share = config.lr_at(step)
            optimizer.param_groups[0]["lr"] = share * config.head_lr
            optimizer.step()
            rate = torch.full((1,), share * config.lr, device=model.device)
            stack.update(loss, rate, config.clip)
            losses.append(loss.detach())
    [lora] = stack.adapters()
    folder.mkdir(parents=True, exist_ok=True)
    own = {"head.weight": head.weight, "head.bias": head.bias}
    manifest.unlink(missing_ok=True)  # written last: without it nothing counts
    storage.write_tensors(folder / "multitask.safetensors", lora | own)
    curve = [round(x, 5) for x in torch.stack(losses).tolist()]
    digest = storage.sha256(folder / "multitask.safetensors")
    storage.write_json(manifest, about | {"losses": curve, "sha256": digest})
    return folder


def _features(core: nn.Module, model: BaseModel, pictures: Tensor) -> Tensor:
    states = core.forward_features(model.normalised(pictures))
    return core.forward_head(states, pre_logits=True).float()  # [b, features]


def _answers(features: Tensor, head: nn.Linear, texts: Tensor) -> Tensor:
    """[pictures, tasks] how much rather yes than no."""
    told = head(texts * texts.shape[-1] ** 0.5)  # [tasks, features + 1]
    return features @ told[:, :-1].T + told[:, -1]


def multitask_adapter(root: Path, model: BaseModel, text: Tensor) -> dict[str, Tensor]:
    """The one LoRA with the head that it gives to a sentence's embedding [e]."""
    folder = root / "multitask"
    if not (folder / "manifest.json").exists():
        raise PreflightError(f"no multi-task LoRA in {folder}: run ./reproduce.sh first.")
    held = storage.read_tensors(folder / "multitask.safetensors")
    told = held.pop("head.weight") @ (text * len(text) ** 0.5) + held.pop("head.bias")
    weight = torch.stack([torch.zeros_like(told[:-1]), told[:-1]])  # no, yes
    bias = torch.stack([torch.zeros_like(told[-1]), told[-1]])
    name = f"base_model.model.{model.head}"
    return held | {f"{name}.weight": weight, f"{name}.bias": bias}


# ---------------------------------------------------------------- one task that nobody saw
@lru_cache(maxsize=1)
def _members(root: Path, base: str, names: tuple[str, ...]) -> list[Member]:
    return [store.read(root, base, name, 0) for name in names]


@lru_cache(maxsize=1)
def _ready(root: Path, base: str, names: tuple[str, ...], source: str, device: str):
    """What all cells share: the backbone, both generators and the mean of the zoo."""
    model = load_base(base, source=source, device=device)
    models = [
        Generator.from_pretrained(root / kind, device, source=source)
        for kind in ("generator", "regression")
    ]
    soup = baselines.soup([member.tensors for member in _members(root, base, names)])
    return model, *models, soup


def run_cell(
    task: str, base: str, seed: int, *, scale: str, source: str, root: Path, device: str = "cpu"
) -> tuple[pd.DataFrame, pd.DataFrame, None]:
    """(metrics, items, None) of one unseen task under the result contract."""
    spec, size = load_task(task), SIZES[scale]
    names = scales.base_plan(scale, base, source).tasks
    model, generator, regression, soup = _ready(root, base, names, source, str(device))
    encoder = generator.encoder
    data = task_rows(spec, source)
    held = data.test[: size.rows]
    found = baselines.nearest_task(spec.description, names, encoder)
    near = _members(root, base, names)[names.index(found)].tensors
    told = multitask_adapter(root, model, encoder.encode([spec.description])[0])
    full, part, n = size.rows, size.control_rows, size.control_samples
    asked = [
        Trial("base", "none", [model.lora_init()], full),
        Trial("trained", "none", [store.read(root, base, task, 0).tensors], full),
        Trial("soup_all", "none", [soup], full),
        Trial("multitask", "matched", [told], full),
        Trial("retrieval", "matched", [near], full),
    ]
    other = names[seeds.integer(seed, task) % len(names)]
    for method, condition, texts, count, rows, maker in (
        ("regression", "matched", [spec.description], 1, full, regression),
        ("generated", "matched", [spec.description], size.samples, full, generator),
        ("generated", "paraphrase", spec.paraphrases["test"], max(1, n // 2), full, generator),
        ("generated", "mismatched", [load_task(other).description], n, part, generator),
        ("generated", "empty", [""], n, part, generator),
    ):
        began = time.perf_counter()
        made = [
            adapter
            for i, text in enumerate(texts)
            for adapter in maker.generate(text, base, count, seeds.integer(seed, condition, i))
        ]
        asked.append(Trial(method, condition, made, rows, time.perf_counter() - began))
    cell = {"experiment": "unseen", "source": data.source, "base": base, "task": task, "seed": seed}
    first = baselines.majority(data.train, held, len(spec.labels))
    return *judged(model, spec, held, cell, asked, first), None
