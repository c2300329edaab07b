"""Unseen tasks by text: RPG's own test (arXiv 2501.11587), with sentences in place of class bits.

A LoRA with its head was trained for each way to split ten classes into yes and no
(`tasks/binary.py`). A generator trained on 1,002 of these tasks generates adapters for the twenty
held-out tasks. It is compared with retrieval, an adapter average, and one LoRA for all tasks whose
head is linear in the sentence. The metric is balanced accuracy, since most splits are uneven.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from oral_lib import learning_rate, scales, seeds, storage
from oral_lib.baselines import majority
from oral_lib.errors import OralError, PreflightError
from oral_lib.experiments import generators
from oral_lib.experiments.cells import Measurement, score_trials
from oral_lib.experiments.conditions import (
    Pickers,
    Question,
    Size,
    text_rows,
)
from oral_lib.experiments.generators import Preset
from oral_lib.experiments.model_cache import ModelCache
from oral_lib.experiments.side_tables import costs
from oral_lib.experiments.trials import Trial, generated_trial
from oral_lib.lora import stacked
from oral_lib.lora.adapter import PREFIX
from oral_lib.lora.stacked import Stack
from oral_lib.models.base import BaseModel
from oral_lib.models.loading import load as load_base
from oral_lib.models.text_encoder import TextEncoder
from oral_lib.progress import bar
from oral_lib.scales import GENERATOR, GeneratorJob
from oral_lib.tasks.rows import task_rows
from oral_lib.tasks.task import Task, load_task, wordings_hash
from oral_lib.zoo import store

_SIZES = {
    "smoke": Size(rows=100, control_rows=50, samples=3, control_samples=1),
    "lab": Size(rows=1500, control_rows=500, samples=10, control_samples=5),
}


def preset(scale: str, job: GeneratorJob = GENERATOR) -> Preset:
    """The configurations of `generators.preset`, changed for a zoo of a thousand tasks.

    Training has more steps and less embedding noise, because two sentences may differ in one word.
    The projection is "span": an unseen adapter need not be a convex combination of the zoo.
    """
    default = generators.preset(scale, job)
    changes = {"steps": 6000, "conditions": 32, "tokens": 6400, "text_noise": 0.5}
    if scale == "smoke":
        changes = {"steps": 200, "conditions": 8, "draws": 1}
    sampling = replace(default.sampling, projection="span")
    return replace(default, sampling=sampling, training=replace(default.training, **changes))


# ---------------------------------------------------------------- one LoRA for all tasks
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


@dataclass(frozen=True)
class MultitaskData:
    """Labelled images, and for each task its texts and the classes that mean yes."""

    images: Tensor  # [rows, ...] as the base model stores them
    labels: Tensor  # [rows]
    texts: Tensor  # [tasks, wordings, e] training wordings, embedded
    answers: Tensor  # [tasks, classes] 1.0 for yes, else 0.0

    @classmethod
    def of(
        cls, names: Sequence[str], model: BaseModel, encoder: TextEncoder, source: str
    ) -> "MultitaskData":
        """The training rows and wordings of binary tasks, on the device of `model`.

        Args:
            names: binary tasks over the same images.
            model: the backbone.
            encoder: of the wordings.
            source: where the images are read from.

        Raises:
            OralError: if the tasks are not binary tasks over one set of images.
        """
        tasks = [load_task(name) for name in names]
        families = {task.of for task in tasks}
        if len(families) != 1 or not all(families):
            raise OralError(
                f"one LoRA for tasks over {sorted(map(str, families))}: all tasks must split the "
                "classes of one data set into yes and no."
            )
        family = load_task(tasks[0].of)
        rows = task_rows(family, source).train
        answers = torch.zeros(len(tasks), len(family.labels), device=model.device)
        for i, task in enumerate(tasks):
            answers[i, list(task.positive)] = 1.0
        return cls(
            images=model.images(rows),
            labels=torch.tensor([row.label for row in rows], device=model.device),
            texts=torch.stack([encoder.encode(task.training_texts) for task in tasks]).to(
                model.device
            ),
            answers=answers,
        )


class MultitaskTrainer:
    """One LoRA on a backbone and a head that is linear in the text e: yes = features W e + b."""

    def __init__(self, model: BaseModel, width: int, config: MultitaskConfig):
        self.model, self.config, device = model, config, model.device
        start, _ = _split_head(model.lora_init(), model)
        self.stack = Stack(start, 1, device, next(model.model.parameters()).dtype)
        self.head = nn.Linear(width, model.model.num_features + 1, device=device)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        parameters = self.head.parameters()
        self.optimizer = torch.optim.AdamW(parameters, lr=config.head_lr, weight_decay=0.0)
        self.draw = seeds.generator(config.seed, "multitask", device=device)

    def step(self, core: nn.Module, data: MultitaskData, step: int) -> Tensor:
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

    def train(self, data: MultitaskData, label: str) -> list[float]:
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


def train_multitask(
    base: str, names: Sequence[str], *, scale: str, source: str, root: Path, device: str = "cpu"
) -> Path:
    """The folder of the multi-task LoRA, trained if it is missing or was trained otherwise.

    Args:
        base: name of the backbone.
        names: the tasks that the zoo is trained on.
        scale: a key of `MULTITASK`.
        source: where images and text encoder are read from.
        root: the folder of the run.
        device: to train on.
    """
    folder, config = root / "multitask", MULTITASK[scale]
    about = {"base": base, "tasks": len(names), "training": asdict(config)}
    about["wordings"] = wordings_hash(names)
    manifest = folder / "manifest.json"
    if manifest.exists() and about.items() <= storage.read_json(manifest).items():
        return folder
    model = load_base(base, source=source, device=device)
    name = generators.preset(scale).network.text_encoder
    encoder = TextEncoder(name, source=source)
    data = MultitaskData.of(names, model, encoder, source)
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
    expected, _ = _split_head(model.lora_init(), model)
    if lora.keys() != expected.keys():
        raise OralError(f"the multi-task LoRA in {folder} has other tensors than {model.name}.")
    weight = torch.stack([torch.zeros_like(row[:-1]), row[:-1]])  # [2, f]: no, yes
    bias = torch.stack([torch.zeros_like(row[-1]), row[-1]])  # [2]
    head = f"{PREFIX}{model.head}"
    return lora | {f"{head}.weight": weight, f"{head}.bias": bias}


def _split_head(
    adapter: dict[str, Tensor], model: BaseModel
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """(LoRA factors, head) of an adapter; OralError if it has any other tensor."""
    lora = {name: tensor for name, tensor in adapter.items() if ".lora_" in name}
    head = {name: tensor for name, tensor in adapter.items() if name not in lora}
    names = {f"{PREFIX}{model.head}.{end}" for end in ("weight", "bias")}
    if head.keys() != names:
        raise OralError(f"{model.name} has trained tensors besides LoRA: {sorted(head)}.")
    return lora, head


# ---------------------------------------------------------------- one unseen task
def run_cell(
    task: str, base: str, seed: int, *, scale: str, cache: ModelCache, wordings: str
) -> Measurement:
    """One unseen task, with rows of the tables texts and costs.

    Args:
        task: name of a held-out task.
        base: name of the backbone.
        seed: of the generated samples.
        scale: of the run.
        cache: the models of the run.
        wordings: the paraphrases to measure, one of `wordings.HELD_OUT_WORDINGS`.
    """
    spec, size, source = load_task(task), _SIZES[scale], cache.source
    names = scales.base_plan(scale, base, source).tasks
    model = cache.base(base, len(spec.labels))
    generator, regression = cache.generator("generator"), cache.generator("regression")
    zoo = cache.zoo(base, names)
    encoder = generator.encoder
    data = task_rows(spec, source)
    rows = data.test[: size.rows]
    questions = unseen_questions(spec, names, size, seed, cache.pickers(names, encoder), wordings)
    matched = questions[0]
    multitask = multitask_adapter(cache.root, model, encoder.encode([spec.description])[0])
    trained = store.read(cache.root, base, task, 0)
    adapters = {
        ("base", "none"): model.lora_init(),
        ("trained", "none"): trained.tensors,
        ("soup_all", "none"): zoo.average,
        ("multitask", "matched"): multitask,
        ("retrieval", "matched"): zoo.members[names.index(matched.retrieval[0])].tensors,
    }
    planned = [
        Trial(method=method, condition=condition, adapters=[adapter], rows=size.rows)
        for (method, condition), adapter in adapters.items()
    ]

    def generated(
        question: Question, method: str = "generated", network=generator, n: int = 0, **options
    ) -> Trial:
        about = {"method": method, "condition": question.condition, "rows": question.rows}
        n = n or question.n
        return generated_trial(network, question.texts, base, n, seed=seed, **about, **options)

    planned.append(generated(matched, "regression", regression, 1))
    planned += [generated(question) for question in questions]
    planned += [generated(q, "generated_free", projection="none") for q in questions[:2]]
    for question in questions:
        about = {"condition": question.condition, "rows": question.rows}
        for method, picks in (("router", question.router), ("retrieval", question.retrieval)):
            if (method, question.condition) == ("retrieval", "matched"):
                continue
            chosen = [zoo.members[names.index(name)].tensors for name in picks]
            planned.append(Trial(method=method, adapters=chosen, **about))
    planned += [generated(question, "regression", regression, 1) for question in questions[1:]]
    cell = {"experiment": "unseen", "source": data.source, "base": base, "task": task, "seed": seed}
    frequent = majority.majority(data.train, rows, len(spec.labels))
    tables = {
        "texts": text_rows(cell, questions),
        "costs": costs.cost_rows(
            cell, planned, [trained], questions, len(data.train), model.device
        ),
    }
    return Measurement(*score_trials(model, spec, rows, cell, planned, frequent), tables)


def unseen_questions(
    task: Task, names: Sequence[str], size: Size, seed: int, pickers: Pickers, wordings: str
) -> list[Question]:
    """The texts of a cell by condition: as `conditions.questions_of`, without random words."""
    other, n = names[seeds.integer(seed, task.name) % len(names)], size.control_samples
    paraphrases = task.paraphrases[wordings]
    few, wrong = max(1, n // 2), load_task(other).description
    return [
        Question.of("matched", [task.description], [task.name], size.samples, size.rows, pickers),
        Question.of("paraphrase", paraphrases, [task.name], few, size.rows, pickers),
        Question.of("mismatched", [wrong], [other], n, size.control_rows, pickers),
        Question.of("empty", [""], ["empty"], n, size.control_rows, pickers),
    ]
