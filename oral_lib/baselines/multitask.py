"""One LoRA for all binary tasks over the same images, with a head that is linear in the text.

A vision backbone cannot read a text. A head that depends on the sentence is the least that lets one
adapter be conditioned on its task. On an unseen task it is what a generator has to match: one LoRA
for all tasks is trained on far more rows than any adapter of the zoo.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from oral_lib import learning_rate, seeds, storage
from oral_lib.errors import OralError, PreflightError
from oral_lib.lora import stacked
from oral_lib.lora.adapter import PREFIX
from oral_lib.lora.stacked import Stack
from oral_lib.models.base import BaseModel
from oral_lib.models.loading import load as load_base
from oral_lib.models.text_encoder import TextEncoder
from oral_lib.progress import bar
from oral_lib.tasks.task import wordings_hash
from oral_lib.zoo.split_batches import SplitRows


@dataclass(frozen=True, kw_only=True)
class MultitaskConfig:
    """The training of one LoRA on all tasks; a step has images * tasks answers."""

    steps: int = 1500
    images: int = 64  # of a step
    tasks: int = 64  # of a step
    lr: float = 3e-3  # of LoRA
    head_lr: float = 1e-3
    warmup: float = 0.1  # share of the steps
    clip: float = 1.0
    seed: int = 0

    def lr_at(self, step: int) -> float:
        """The share of both learning rates at `step`: linear warm-up, then linear decay."""
        warmup = max(1, round(self.warmup * self.steps))
        return learning_rate.linear(1.0, step, steps=self.steps, warmup=warmup, at_peak=2)


MULTITASK = {"smoke": MultitaskConfig(steps=60, images=16, tasks=16), "lab": MultitaskConfig()}


class MultitaskTrainer:
    """One LoRA on a backbone and a head that is linear in the text e: yes = features W e + b."""

    def __init__(self, model: BaseModel, width: int, config: MultitaskConfig):
        self.model, self.config, device = model, config, model.device
        start, _ = split_head(model.lora_init(), model)
        self.stack = Stack(start, 1, device, next(model.model.parameters()).dtype)
        self.head = nn.Linear(width, model.model.num_features + 1, device=device)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        parameters = self.head.parameters()
        self.optimizer = torch.optim.AdamW(parameters, lr=config.head_lr, weight_decay=0.0)
        self.draw = seeds.generator(config.seed, "multitask", device=device)

    def step(self, core: nn.Module, data: SplitRows, step: int) -> Tensor:
        """The loss of one update; `core` is the backbone with the LoRA attached."""
        config, device = self.config, self.model.device
        draws = {"generator": self.draw, "device": device}
        rows = torch.randint(len(data.labels), (config.images,), **draws)
        tasks = torch.randint(len(data.texts), (config.tasks,), **draws)
        wordings = torch.randint(data.texts.shape[1], (config.tasks,), **draws)
        logits = yes_logits(
            features(core, self.model, data.images[rows]), self.head, data.texts[tasks, wordings]
        )  # [images, tasks]
        targets = data.answers[tasks][:, data.labels[rows]].T  # [images, tasks]
        loss = F.binary_cross_entropy_with_logits(logits, targets)
        self.optimizer.zero_grad()
        parameters = list(self.head.parameters())
        gradients = torch.autograd.grad(loss, parameters, retain_graph=True)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        share = config.lr_at(step)
        self.optimizer.param_groups[0]["lr"] = share * config.head_lr
        self.optimizer.step()
        rate = torch.full((1,), share * config.lr, device=device)
        self.stack.update(loss, rate, config.clip)
        return loss.detach()

    def train(self, data: SplitRows, label: str) -> list[float]:
        """The losses of all steps; `label` names the progress bar."""
        scale, losses = self.model.spec.alpha / self.model.spec.rank, []
        with stacked.attached(self.model.model, self.stack, scale) as core:
            for step in bar(range(self.config.steps), label=label, unit="step"):
                losses.append(self.step(core, data, step))
        return torch.stack(losses).tolist()

    def tensors(self) -> dict[str, Tensor]:
        """LoRA and head, as they are stored."""
        [lora] = self.stack.adapters()
        return lora | {"head.weight": self.head.weight, "head.bias": self.head.bias}


def train_text_head(
    base: str,
    names: Sequence[str],
    *,
    scale: str,
    source: str,
    root: Path,
    text_encoder: str,
    device: str = "cpu",
) -> Path:
    """The folder of the multi-task LoRA, trained if it is missing or was trained otherwise.

    Args:
        base: name of the backbone.
        names: the tasks that the zoo is trained on.
        scale: a key of `MULTITASK`.
        source: where images and text encoder are read from.
        root: the folder of the run.
        text_encoder: its name.
        device: to train on.
    """
    folder, config = root / "multitask", MULTITASK[scale]
    about = {"base": base, "tasks": len(names), "training": asdict(config)}
    about["wordings"] = wordings_hash(names)
    manifest = folder / "manifest.json"
    if manifest.exists() and about.items() <= storage.read_json(manifest).items():
        return folder
    model = load_base(base, source=source, device=device)
    encoder = TextEncoder(text_encoder, source=source)
    data = SplitRows.of(names, model, encoder, source)
    trainer = MultitaskTrainer(model, encoder.width, config)
    losses = trainer.train(data, f"multi-task LoRA ({scale})")
    folder.mkdir(parents=True, exist_ok=True)
    manifest.unlink(missing_ok=True)  # written last: a folder without it is incomplete
    file = folder / "multitask.safetensors"
    storage.write_tensors(file, trainer.tensors())
    about |= {"losses": [round(loss, 5) for loss in losses], "sha256": storage.sha256(file)}
    storage.write_json(manifest, about)
    return folder


def features(core: nn.Module, model: BaseModel, images: Tensor) -> Tensor:
    """The input of the head [b, f] in float32, of images as the base model stores them."""
    states = core.forward_features(model.normalised(images))
    return core.forward_head(states, pre_logits=True).float()  # [b, f]


def yes_logits(features: Tensor, head: nn.Linear, texts: Tensor) -> Tensor:
    """[images, tasks] the logit of yes minus that of no, of features [images, f] and text
    embeddings [tasks, e]."""
    weights = head(texts * texts.shape[-1] ** 0.5)  # [tasks, f + 1]
    return features @ weights[:, :-1].T + weights[:, -1]


def multitask_adapter(root: Path, model: BaseModel, text: Tensor) -> dict[str, Tensor]:
    """The multi-task LoRA with the head of one task, whose text has the embedding [e].

    Raises:
        PreflightError: if it was not trained or its file is damaged.
        OralError: if it was trained on another backbone.
    """
    folder, file = root / "multitask", root / "multitask" / "multitask.safetensors"
    if not (folder / "manifest.json").exists():
        raise PreflightError(f"no multi-task LoRA in {folder}: run ./reproduce.sh first.")
    if storage.sha256(file) != storage.read_json(folder / "manifest.json")["sha256"]:
        raise PreflightError(
            f"{file} is damaged: its hash is not the one in manifest.json; delete {folder}."
        )
    lora = storage.read_tensors(file)
    row = lora.pop("head.weight") @ (text * len(text) ** 0.5) + lora.pop("head.bias")  # [f + 1]
    expected, _ = split_head(model.lora_init(), model)
    if lora.keys() != expected.keys():
        raise OralError(f"the multi-task LoRA in {folder} has other tensors than {model.name}.")
    weight = torch.stack([torch.zeros_like(row[:-1]), row[:-1]])  # [2, f]: no, yes
    bias = torch.stack([torch.zeros_like(row[-1]), row[-1]])  # [2]
    head = f"{PREFIX}{model.head}"
    return lora | {f"{head}.weight": weight, f"{head}.bias": bias}


def split_head(
    adapter: dict[str, Tensor], model: BaseModel
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """(LoRA factors, head) of an adapter; OralError if it has any other tensor."""
    lora = {name: tensor for name, tensor in adapter.items() if ".lora_" in name}
    head = {name: tensor for name, tensor in adapter.items() if name not in lora}
    names = {f"{PREFIX}{model.head}.{end}" for end in ("weight", "bias")}
    if head.keys() != names:
        raise OralError(f"{model.name} has trained tensors besides LoRA: {sorted(head)}.")
    return lora, head
