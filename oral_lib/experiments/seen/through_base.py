"""Generators of the tasks of a zoo, trained through the base models.

Training starts from the generator of the same seed, which learnt from the adapters of the zoo, and
goes on with the loss of the frozen base models on the training rows of the tasks. One network
serves all base models and tasks of an experiment. It is not projected on the zoo and samples as it
is trained: in one step, with noise of its own in each token.
"""

import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from oral_lib import seeds, storage
from oral_lib.errors import OralError
from oral_lib.generator import Generator
from oral_lib.method.config import SamplingConfig
from oral_lib.method.model import ORAL
from oral_lib.method.training.through_base import ThroughBaseConfig, train_through_base
from oral_lib.models import loading
from oral_lib.planning.parts import GENERATOR, BasePlan, GeneratorJob
from oral_lib.tasks.rows import full_rows
from oral_lib.tasks.task import load_task, wordings_hash
from oral_lib.zoo.task_batches import ZooBatches

ONE_STEP = SamplingConfig(steps=1, projection="none", noise_sharing="token")


@dataclass(frozen=True, kw_only=True)
class ThroughBase:
    """How a generator of a zoo is trained on through the base models.

    Args:
        tasks: S, adapters of a step on each base model.
        rows: n, rows that each adapter answers in a step.
        training: the training.
        network: fields of `GeneratorConfig` that differ from the generator that training starts
            from, such as `shared`. What they add to the network starts untrained.
    """

    tasks: int
    rows: int
    training: ThroughBaseConfig
    network: Mapping[str, Any] = field(default_factory=dict)


ZOO_PRESETS = {
    "smoke": ThroughBase(
        tasks=8, rows=8, training=ThroughBaseConfig(steps=40, lr=1e-3, warmup=5, ema=0.9)
    ),
    "lab": ThroughBase(tasks=32, rows=16, training=ThroughBaseConfig(steps=1000, ema=0.995)),
    "paper": ThroughBase(tasks=8, rows=4, training=ThroughBaseConfig(steps=1000, ema=0.995)),
}
_IMAGES = {"tasks": 16, "rows": 32}  # of lab: an image takes more memory than a text


def preset(scale: str, experiment: str = "language") -> ThroughBase:
    """The configuration at a scale.

    Args:
        scale: of the run, a key of `ZOO_PRESETS`.
        experiment: the name of the experiment.
    """
    images = _IMAGES if scale == "lab" and experiment != "language" else {}
    return replace(ZOO_PRESETS[scale], **images)


def train_from_weights(
    plans: Sequence[BasePlan],
    job: GeneratorJob,
    *,
    scale: str,
    source: str,
    root: Path,
    device: str = "cpu",
    configured: ThroughBase,
    start: str = "",
) -> Path:
    """The folder of the generator `job`, trained unless it is there and current.

    Args:
        plans: the base models with their tasks.
        job: its name is the name of the folder.
        scale: of the run.
        source: where rows, base models and text encoder are read from.
        root: the folder of the run, with the generator that training starts from.
        device: where to train.
        configured: the configuration, such as `preset(scale)`.
        start: name of that generator; default: the generator of the same seed.

    Raises:
        PreflightError: the generator that training starts from is missing.
        OralError: training diverged.
    """
    folder = root / job.name
    training = replace(configured.training, seed=job.seed)
    start = start or replace(GENERATOR, seed=job.seed).name
    trained = Generator.from_pretrained(root / start, source=source)
    tasks = {plan.base: list(plan.tasks) for plan in plans}
    names = sorted({name for part in tasks.values() for name in part})
    about = {
        "kind": job.name,
        "scale": scale,
        "source": source.partition(":")[0],
        "zoo": trained.manifest["zoo"],
        "wordings": wordings_hash(names),
        "start": {"name": start, "sha256": trained.manifest["sha256"]},
        "tasks": {b: {n: load_task(n).version for n in part} for b, part in tasks.items()},
        "training": asdict(replace(configured, training=training)),
    }
    about = json.loads(json.dumps(about))  # as it is read from the manifest
    manifest, state = folder / "manifest.json", folder / "training.safetensors"
    if manifest.exists() and about.items() <= storage.read_json(manifest).items():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    network = started(trained.network, configured.network, job.seed)
    encoder = trained.encoder
    data = {name: full_rows(load_task(name), source) for name in names}
    texts = {name: encoder.encode(load_task(name).training_texts) for name in names}
    sizes = {"steps": training.steps, "size": configured.tasks, "rows": configured.rows}
    batches: dict[str, ZooBatches] = {}
    with ExitStack() as attached:
        for base, part in tasks.items():
            chosen = [load_task(name) for name in part]
            classes = len(chosen[0].labels)  # of the head of an encoder
            model = loading.load(base, source=source, labels=classes, device=device)
            about_tasks = {task.name: texts[task.name] for task in chosen}
            batches[base] = ZooBatches(model, chosen, data, about_tasks, seed=job.seed, **sizes)
            attached.enter_context(batches[base].attached())
        options = {"device": device, "state": state, "key": about, "label": f"{job.name} ({scale})"}
        network, curves = train_through_base(network, batches, training, **options)
    losses = [round(sum(step) / len(step), 6) for step in curves["losses"]]
    content = about | {"losses": losses, "norms": curves["norms"]}
    Generator(network, content, ONE_STEP, source=source, encoder=encoder).save_pretrained(folder)
    state.unlink(missing_ok=True)
    return folder


def started(network: ORAL, changes: Mapping[str, Any], seed: int) -> ORAL:
    """A network with the weights of `network`, to be trained.

    Args:
        network: where training starts.
        changes: fields of its configuration to replace. They may add parts, which `seed` draws.
        seed: of the initial weights of added parts.

    Raises:
        UsageError: a change is not valid.
        OralError: a change removes a part of `network`.
    """
    if changes:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seeds.integer(seed, "through-base-init"))
            changed = ORAL(replace(network.config, **changes), network.bases)
        removed = network.state_dict().keys() - changed.state_dict().keys()
        if removed:
            raise OralError(
                f"network {dict(changes)}: {sorted(removed)[0]} of the trained generator has no "
                "counterpart. Start with options that add parts only."
            )
        changed.load_state_dict(network.state_dict(), strict=False)
        network = changed
    return network.requires_grad_(True)
