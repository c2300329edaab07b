"""Generators of a run: their presets, and their training on the adapters of a zoo."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from oral_lib import seeds, storage
from oral_lib.generator import FORMAT, Generator
from oral_lib.method.config import GeneratorConfig, SamplingConfig
from oral_lib.method.denoiser import DenoiserConfig
from oral_lib.method.model import ORAL
from oral_lib.method.recurrence import RecurrenceConfig
from oral_lib.method.tokenization import Layout
from oral_lib.method.training.tokens import TrainingConfig, train
from oral_lib.method.training.training_set import TrainingSet
from oral_lib.models import loading
from oral_lib.models.text_encoder import TextEncoder
from oral_lib.scales import GENERATOR, GeneratorJob
from oral_lib.tasks.task import load_task, wordings_hash
from oral_lib.zoo import store
from oral_lib.zoo.store import BaseFacts, Member


@dataclass(frozen=True, kw_only=True)
class Preset:
    """The three configurations of a generator: network, sampling and training."""

    network: GeneratorConfig
    sampling: SamplingConfig
    training: TrainingConfig


def assemble(
    config: GeneratorConfig,
    members: Sequence[Member],
    *,
    sampling: SamplingConfig | None = None,
    facts: Mapping[str, BaseFacts] | None = None,
    source: str = "packages",
    seed: int = 0,
) -> tuple[Generator, dict[str, TrainingSet]]:
    """An untrained generator for the base models of `members`, and its training sets by base model.

    Args:
        config: of the network.
        members: the zoo.
        sampling: default: `SamplingConfig()`.
        facts: of each base model; default: read from the loaded base models.
        source: where text encoder and base models are read from.
        seed: of the initial weights.
    """
    encoder = TextEncoder(config.text_encoder, source=source)
    if facts is None:
        names = sorted({m.base for m in members})
        facts = {name: store.compute_facts(loading.load(name, source=source)) for name in names}
    data = training_sets(config, members, facts, encoder)
    network = untrained(config, data, facts, encoder, seed)
    manifest = {
        "zoo": [
            {"base": m.base, "task": m.task, "seed": m.seed, "sha256": m.info["sha256"]}
            for m in members
        ],
        "wordings": wordings_hash(sorted({m.task for m in members})),
    }
    return Generator(network, manifest, sampling, source=source, encoder=encoder), data


def training_sets(
    config: GeneratorConfig,
    members: Sequence[Member],
    facts: Mapping[str, BaseFacts],
    encoder: TextEncoder,
    *,
    zero_start: bool = False,
) -> dict[str, TrainingSet]:
    """The training sets of `members` by base model, sorted by name.

    Statistics are centred on the shared LoRA initialisation, with `zero_start` on LoRA factors of
    zero. Components of base models are rotated to agree with the base model of most tasks (of
    several, the first by name).
    """
    data: dict[str, TrainingSet] = {}
    means: dict[str, torch.Tensor] = {}
    zoos = {n: [m for m in members if m.base == n] for n in sorted({m.base for m in members})}
    for name in sorted(zoos, key=lambda n: -len({m.task for m in zoos[n]})):
        start, zoo = facts[name].start, zoos[name]
        if zero_start:
            start = {n: t * ("lora_" not in n) for n, t in start.items()}
        layout = Layout.of(start, config.k)
        names = list(dict.fromkeys(m.task for m in zoo))
        wordings = {task: load_task(task).training_texts for task in names}
        fewest = min(map(len, wordings.values()))
        texts = {task: encoder.encode(wordings[task][:fewest]) for task in names}
        adapters, tasks = [m.tensors for m in zoo], [m.task for m in zoo]
        data[name] = TrainingSet.of(layout, start, adapters, tasks, texts, config, align_to=means)
        means = {**data[name].task_means, **means}  # the first base model of a task leads
    return dict(sorted(data.items()))


def untrained(
    config: GeneratorConfig,
    data: Mapping[str, TrainingSet],
    facts: Mapping[str, BaseFacts],
    encoder: TextEncoder,
    seed: int = 0,
) -> ORAL:
    """A network for the base models of `data`, with initial weights drawn from `seed`."""
    entries = {}
    for name, adapters in data.items():
        about = facts[name]
        description = encoder.encode([about.description])[0]
        entries[name] = adapters.base(description, about.fingerprint, about.peft_config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seeds.integer(seed, "generator-init"))
        return ORAL(config, entries)


LAB = TrainingConfig(steps=6000, conditions=16, draws=4, tokens=4800, warmup=100, ema=0.995)


def train_from_zoo(
    members: Sequence[tuple[str, str, int]],
    job: GeneratorJob,
    *,
    root: Path,
    scale: str,
    source: str,
    device: str = "cpu",
    configured: Preset | None = None,
) -> Path:
    """The folder of a generator under `root`, trained unless it is there and current.

    A generator of another zoo, wordings, configuration or file format is trained again.

    Args:
        members: (base model, task, seed) of each adapter of the zoo.
        job: kind and seed; its name is the name of the folder.
        root: folder of the run.
        scale: of the run.
        source: of the run.
        device: where to train.
        configured: default: `preset(scale, job)`.
    """
    folder = root / job.name
    configured = configured or preset(scale, job)
    training = configured.training
    zoo_members = [store.read(root, *member) for member in members]
    if _is_current(folder, configured, zoo_members):
        return folder
    names = sorted({m.base for m in zoo_members})
    generator, data = assemble(
        configured.network,
        zoo_members,
        sampling=configured.sampling,
        facts={name: store.stored_facts(root, name, source) for name in names},
        source=source,
        seed=training.seed,
    )
    state = folder / "training.safetensors"
    folder.mkdir(parents=True, exist_ok=True)
    network, losses = train(
        generator.network,
        data,
        training,
        device=device,
        state=state,
        key=generator.manifest,
        label=f"{job.name} ({scale})",
    )
    manifest = generator.manifest | {
        "kind": job.name,
        "scale": scale,
        "source": source.partition(":")[0],
        "training": asdict(training),
        "losses": [round(x, 6) for x in losses],
    }
    Generator(network, manifest, generator.sampling, source=source).save_pretrained(folder)
    state.unlink(missing_ok=True)
    return folder


def _is_current(folder: Path, configured: Preset, members: Sequence[Member]) -> bool:
    """True if `folder` holds a generator of this format, configuration, zoo and wordings."""
    if not (folder / "manifest.json").exists():
        return False
    manifest = storage.read_json(folder / "manifest.json")
    stored = storage.read_json(folder / "config.json")
    hashes = {entry["sha256"] for entry in manifest["zoo"]}
    wordings = wordings_hash(sorted({member.task for member in members}))
    ignored = {"save_every": None}  # changes no result
    return (
        stored.get("format") == FORMAT
        and manifest["training"] | ignored == asdict(configured.training) | ignored
        and stored.get("generator") == json.loads(json.dumps(asdict(configured.network)))
        and stored.get("sampling") == json.loads(json.dumps(asdict(configured.sampling)))
        and hashes == {member.info["sha256"] for member in members}
        and manifest.get("wordings") == wordings
    )


def preset(scale: str, job: GeneratorJob = GENERATOR, hidden: int = 1024) -> Preset:
    """The configurations of a generator at a scale.

    "regression" is the network of "generator" without diffusion; "unconditional" uses no text.
    `hidden` is the width of the denoiser at lab and paper.
    """
    network, sampling, training = GeneratorConfig(), SamplingConfig(), TrainingConfig()
    if scale == "smoke":
        network = GeneratorConfig(
            k=128,
            components=32,
            recurrence=RecurrenceConfig(width=64, state=16, head=32, chunk=16),
            denoiser=DenoiserConfig(hidden=128, depth=2, skip=False),
            text_encoder="tiny",
        )
        sampling = SamplingConfig(steps=10)
        training = TrainingConfig(steps=400, lr=3e-3, warmup=20, ema=0.95, tokens=512)
    else:  # widths: D-DIF-9
        hidden = 256 if scale == "desk" else hidden
        network = replace(network, denoiser=replace(network.denoiser, hidden=hidden))
        training = training if scale == "desk" else LAB
    if job.kind == "unconditional":
        network = replace(network, uses_text=False)
    if job.kind == "regression":
        network = replace(network, diffusion=None)
    training = replace(training, seed=job.seed)
    return Preset(network=network, sampling=sampling, training=training)
