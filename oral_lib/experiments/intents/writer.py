"""The generators of intents: one network that writes adapters for all base models.

Kind "through_base" learns from the losses of the frozen base models on the rows of seen tasks; the
scale of each tensor comes from the zoo, the adapters trained on seen tasks. Kind "weights" learns
from these adapters only, as the generator of seen experiments does.

Letters: T tasks, S adapters of a step, n rows of a task, k examples of a task, e size of an
embedding, v values of an adapter.
"""

import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from oral_lib import seeds, storage
from oral_lib.errors import PreflightError
from oral_lib.experiments import generators
from oral_lib.experiments.intents import rivals, stored
from oral_lib.experiments.intents.batches import StreamBatches, fitting_group
from oral_lib.experiments.intents.messages import MessageTable
from oral_lib.experiments.intents.methods.from_text import Embedder
from oral_lib.experiments.intents.methods.shared import label_distilled
from oral_lib.experiments.intents.stream import Mixture, TaskStream
from oral_lib.generator import FORMAT, Generator
from oral_lib.lora import stacked
from oral_lib.lora.stacked import Stack
from oral_lib.method.base_entry import BaseEntry
from oral_lib.method.config import GeneratorConfig, SamplingConfig
from oral_lib.method.denoiser import DenoiserConfig
from oral_lib.method.model import ORAL
from oral_lib.method.normalization import TokenStatistics
from oral_lib.method.recurrence import RecurrenceConfig
from oral_lib.method.tokenization import Layout, encode
from oral_lib.method.training.through_base import ThroughBaseConfig, train_through_base
from oral_lib.method.training.tokens import TrainingConfig
from oral_lib.method.training.tokens import train as train_on_tokens
from oral_lib.method.training.training_set import TrainingSet
from oral_lib.models import loading
from oral_lib.models.base import BaseModel
from oral_lib.models.text_encoder import TextEncoder
from oral_lib.planning.parts import GENERATOR, GeneratorJob
from oral_lib.tasks.intents.family import MESSAGE, IntentFamily, load_family
from oral_lib.zoo import store
from oral_lib.zoo.training import COMPILED

MOST_EXAMPLES = 32  # labelled examples of a task, at most


@dataclass(frozen=True, kw_only=True)
class WriterPreset:
    """How the generator of intents is built and trained through the base models at a scale.

    Args:
        network: the network.
        training: its training.
        mixture: tasks and texts of the stream.
        wider_a: factor on the scale of A, which zoos of a high ratio of learning rates hardly move.
        tasks: S, tasks of a step on each base model.
        rows: n, rows of a task in a step.
        weights: training on the adapters of the zoo before; None: from initial weights.
    """

    network: GeneratorConfig
    training: ThroughBaseConfig
    mixture: Mixture = field(default_factory=Mixture)
    wider_a: float = 1.0
    tasks: int = 32
    rows: int = 16
    weights: TrainingConfig | None = None


_RAW = {"components": 0, "component_rotation": "none", "shared": "added", "examples": True}
PRESETS = {
    "smoke": WriterPreset(
        network=GeneratorConfig(
            k=128,
            recurrence=RecurrenceConfig(width=64, state=16, head=32, chunk=16),
            denoiser=DenoiserConfig(hidden=128, depth=1, skip=False),
            text_encoder="tiny",
            linear=64,
            **_RAW,
        ),
        training=ThroughBaseConfig(steps=20, lr=2e-3, warmup=5, ema=0.95),
        tasks=8,
        rows=8,
    ),
    "desk": WriterPreset(
        network=GeneratorConfig(
            recurrence=RecurrenceConfig(width=128),
            denoiser=DenoiserConfig(hidden=256, depth=2, skip=False),
            linear=128,
            **_RAW,
        ),
        training=ThroughBaseConfig(
            steps=200, lr=1e-3, warmup=10, shared_rate=5.0, text_noise=1.0, ema=0.97
        ),
        mixture=Mixture(unions=0.0, topics=0.0),
        tasks=8,
        rows=8,
    ),
    "lab": WriterPreset(
        network=GeneratorConfig(
            recurrence=RecurrenceConfig(width=384),
            denoiser=DenoiserConfig(hidden=1024, depth=2, skip=False),
            linear=128,
            **_RAW,
        ),
        training=ThroughBaseConfig(steps=1800, lr=1e-3, text_noise=1.0),
        wider_a=10.0,
    ),
}
SAMPLING = SamplingConfig(steps=1, projection="none", noise_sharing="token")  # as it was trained


def entry_of(
    base: BaseModel,
    config: GeneratorConfig,
    zoo: Tensor,
    encoder: TextEncoder,
    wider_a: float = 1.0,
) -> BaseEntry:
    """The entry of a base model: its layout, and statistics of the `zoo` [adapters, v]."""
    facts = store.compute_facts(base)
    layout = Layout.of(facts.start, config.k)
    stack = Stack(facts.start, len(zoo))
    stack.set(zoo)
    values, center = encode(layout, stack.adapters()), encode(layout, [facts.start])[0]
    statistics = TokenStatistics.fit(layout, values, center, config.components, align=False)
    of_a = torch.tensor([".lora_A" in layout.names[owner] for owner in layout.owner.tolist()])
    statistics.scale[of_a] *= wider_a
    description = encoder.encode([facts.description])[0]
    return BaseEntry(layout, statistics, None, description, facts.fingerprint, facts.peft_config)


def initial_network(config: GeneratorConfig, entries: Mapping[str, BaseEntry], seed: int) -> ORAL:
    """A network for the base models of `entries`, with initial weights drawn from `seed`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seeds.integer(seed, "generator-init"))
        return ORAL(config, entries)


def train(
    network: ORAL,
    bases: Mapping[str, BaseModel],
    stream: TaskStream,
    embed: Embedder,
    preset: WriterPreset,
    *,
    teachers: Mapping[str, dict[str, Tensor]] | None = None,
    device: str | torch.device = "cpu",
    label: str = "generator",
    **options,
) -> tuple[ORAL, dict[str, list]]:
    """The network trained through `bases` on the tasks of `stream`, and its curves.

    Args:
        network: is trained in place.
        bases: the frozen base models by name, on `device`.
        stream: the tasks.
        embed: of the texts.
        preset: steps, tasks and rows.
        teachers: multi-task LoRAs that read the text, by base model, for distilled tasks.
        device: where to train.
        label: of the progress bar.
        options: `state`, `key` and `until` of `train_through_base`.
    """
    examples = MOST_EXAMPLES if network.config.examples else 0
    steps = stream.steps(preset.training.steps, preset.tasks, preset.rows, examples)
    texts = embed(stream.all_texts).to(device)
    batches = {}
    with ExitStack() as attached:
        for name, base in bases.items():
            table = MessageTable.of(base, stream.messages, MESSAGE)
            taught = label_distilled(base, stream, steps, teachers[name]) if teachers else steps
            group = fitting_group(table, taught, texts)
            batches[name] = StreamBatches(table, taught, texts, bool(examples), group)
            large = base.weights > COMPILED
            attached.enter_context(stacked.compiled(base.model) if large else nullcontext())
            scale = base.spec.alpha / base.spec.rank
            attached.enter_context(stacked.attached(base.model, batches[name].stack, scale))
        return train_through_base(
            network, batches, preset.training, device=device, label=label, **options
        )


# ---------------------------------------------------------------- the networks of a run
@dataclass(frozen=True)
class Learning:
    """What a generator learns from: base models, the zoo of each, and the seen tasks.

    Attributes:
        models: the base models by name, on one device.
        zoos: (tasks, adapters [T, v], manifest) by base model.
        teachers: multi-task LoRAs that read the text, by base model; they label distilled tasks.
        family: the tasks.
        embed: of texts.
        split: that the generator is judged on.
        development: whether the intents of development are held out, too.
    """

    models: Mapping[str, BaseModel]
    zoos: Mapping[str, tuple[list[str], Tensor, dict]]
    teachers: Mapping[str, dict[str, Tensor]]
    family: IntentFamily
    embed: Embedder
    split: str = "L2"
    development: bool = False

    @classmethod
    def of(
        cls, bases: Sequence[str], embed: Embedder, split: str = "L2", *, scale: str, source: str,
        root: Path, device: str = "cpu", development: bool = False,
    ) -> "Learning":  # fmt: skip
        """What is in the folder `root` of a run. PreflightError if adapters are missing."""
        dev = {"development": development}
        sets = rivals.suffixed("train", split), rivals.suffixed("described", split)
        zoos = {base: stored.read_set(root, base, sets[0], **dev) for base in bases}
        folders = {base: stored.rivals_folder(root, base, **dev) for base in bases}
        read = {b for b in bases if (folders[b] / f"{sets[1]}.json").exists()}
        teachers = {b: stored.read_rival(root, b, sets[1], **dev)[0] for b in read}
        models = {base: loading.load(base, source=source, device=device) for base in bases}
        return cls(models, zoos, teachers, load_family(source, scale), embed, split, development)

    def stream(self, mixture: Mixture, seed: int) -> TaskStream:
        """The training tasks."""
        about = {"without": self.split, "development": self.development}
        return TaskStream.of(self.family, mixture=mixture, seed=seed, embed=self.embed, **about)

    def entries(self, config: GeneratorConfig, wider_a: float) -> dict[str, BaseEntry]:
        """The entries of the base models, with the scale of their zoos."""
        return {
            base: entry_of(model, config, self.zoos[base][1], self.embed.encoder, wider_a)
            for base, model in self.models.items()
        }

    def token_sets(self, config: GeneratorConfig) -> dict[str, TrainingSet]:
        """The adapters of the zoos of single intents as tokens, by base model."""
        about = {"development": self.development}
        seen = rivals.seen_tasks(self.family, rivals.scope_of(self.split), 0, **about)
        texts = {task.name: self.embed(task.texts["train"]) for task in seen}
        sets, means = {}, {}
        for base, model in self.models.items():
            facts = store.compute_facts(model)
            names, values, _ = self.zoos[base]
            kept = [i for i, task in enumerate(names) if task in texts]
            stack = Stack(facts.start, len(kept))
            stack.set(values[kept])
            layout, chosen = Layout.of(facts.start, config.k), [names[i] for i in kept]
            zoo = layout, facts.start, stack.adapters(), chosen
            sets[base] = TrainingSet.of(*zoo, texts, config, align_to=means)
            means = {**sets[base].task_means, **means}
        return sets


def train_on_weights(
    learning: Learning, config: GeneratorConfig, training: TrainingConfig, **options
) -> tuple[ORAL, dict[str, list[float]]]:
    """A network that matches the adapters of the zoos, and "losses" by step."""
    data, entries = learning.token_sets(config), {}
    for base, model in learning.models.items():
        facts = store.compute_facts(model)
        described = learning.embed.encoder.encode([facts.description])[0]
        entries[base] = data[base].base(described, facts.fingerprint, facts.peft_config)
    network = initial_network(config, entries, training.seed)
    network, losses = train_on_tokens(network, data, training, **options)
    return network, {"losses": losses}


def train_writer(
    learning: Learning, preset: WriterPreset, *, state: Path | None = None, label: str, **options
) -> tuple[ORAL, dict[str, list[float]]]:
    """A network that is trained through the base models, and its curves by step: "losses" (mean
    over base models) and "norms" of the gradient.

    Args:
        learning: what it learns from.
        preset: network and training.
        state: file to resume from.
        label: of progress bars.
        options: `device`, `key` and `until` of `train_through_base`.

    Raises:
        PreflightError: there are distilled tasks, and a base model has no teacher.
    """
    seed, mixture = preset.training.seed, preset.mixture
    stream = learning.stream(mixture, seed)
    learning.embed(stream.all_texts)  # first: a resumed training then reads the same bits
    entries = learning.entries(preset.network, preset.wider_a)
    network = initial_network(preset.network, entries, seed)
    if mixture.distilled and (missing := learning.models.keys() - learning.teachers.keys()):
        raise PreflightError(f"no model reads texts on {sorted(missing)[0]}: train rivals first.")
    if preset.weights is not None and not (state and state.exists()):
        data = {
            base: replace(
                part,
                tokens=entries[base].statistics.normalise(part.statistics.denormalise(part.tokens)),
                statistics=entries[base].statistics,
            )
            for base, part in learning.token_sets(preset.network).items()
        }
        first = replace(preset.weights, seed=seed)
        device = options.get("device", "cpu")
        network, _ = train_on_tokens(
            network, data, first, device=device, label=f"{label}, on weights"
        )
        network.requires_grad_()
    teachers = learning.teachers if mixture.distilled else None
    about = {"teachers": teachers, "state": state, "label": label}
    network, curves = train(
        network, learning.models, stream, learning.embed, preset, **about, **options
    )
    return network, curves | {"losses": [sum(step) / len(step) for step in curves["losses"]]}


def train_job(
    job: GeneratorJob,
    bases: Sequence[str],
    *,
    scale: str,
    source: str,
    root: Path,
    device: str = "cpu",
    development: bool = False,
) -> Path:
    """The folder of a network in the run folder `root`, trained unless it is there and current.

    Args:
        job: kind "through_base" or "weights", seed and split.
        bases: names of all base models that it writes adapters for.
        scale: of the run.
        source: where base models, text encoder and messages are read from.
        root: the folder of the run, which has the zoo.
        device: where to train.
        development: leave out the intents of development, for choices.
    """
    about = {"kind": job.name, "scale": scale, "source": source.partition(":")[0]}
    about |= {"bases": sorted(bases), "format": FORMAT}
    split, on_weights = job.split or "L2", job.kind == "weights"
    files = {"zoo_sha256": (stored.read_set, "train")}
    if on_weights:
        usual = generators.preset(scale, GENERATOR)
        config, sampling = usual.network, replace(usual.sampling, projection="none")
        steps = 40 if scale == "smoke" else usual.training.steps
        training = replace(usual.training, seed=job.seed, steps=steps)
    else:
        preset = PRESETS[scale]
        config, sampling = preset.network, SAMPLING
        training = replace(preset.training, seed=job.seed)
        about |= {"mixture": asdict(preset.mixture), "wider_a": preset.wider_a}
        about |= {"tasks": preset.tasks, "rows": preset.rows}
        about |= {"weights": preset.weights and asdict(preset.weights)}
        if preset.mixture.distilled:
            files["teachers_sha256"] = stored.read_rival, "described"
    for key, (read, name) in files.items():
        name = rivals.suffixed(name, split)
        read_one = partial(read, root, name=name, development=development)
        about[key] = {base: read_one(base=base)[-1]["sha256"] for base in sorted(bases)}
    facts = rivals.stream_facts(load_family(source, scale), split, development=development)
    about |= {"stream": facts, "training": asdict(training)}
    about["network"] = asdict(config)
    about = json.loads(json.dumps(about))
    folder = root / (f"{job.name}-development" if development else job.name)
    manifest, state = folder / "manifest.json", folder / "training.safetensors"
    if manifest.exists() and about.items() <= storage.read_json(manifest).items():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    encoder = TextEncoder(config.text_encoder, source=source)
    place = {"scale": scale, "source": source, "root": root, "device": device}
    learning = Learning.of(
        sorted(bases), Embedder(encoder, device), split, development=development, **place
    )
    options = {"device": device, "state": state, "key": about, "label": f"{job.name} ({scale})"}
    if on_weights:
        network, curves = train_on_weights(learning, config, training, **options)
    else:
        network, curves = train_writer(learning, replace(preset, training=training), **options)
    about |= {name: [round(value, 6) for value in curve] for name, curve in curves.items()}
    Generator(network, about, sampling, source=source, encoder=encoder).save_pretrained(folder)
    state.unlink(missing_ok=True)
    return folder
