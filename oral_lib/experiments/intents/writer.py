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
from pathlib import Path

import torch
from torch import Tensor

from oral_lib import seeds, storage
from oral_lib.experiments import generators
from oral_lib.experiments.intents import rivals, stored
from oral_lib.experiments.intents.messages import MessageTable
from oral_lib.experiments.intents.stream import Mixture, StreamBatches, TaskStream, fitting_group
from oral_lib.experiments.model_cache import ModelCache
from oral_lib.generator import FORMAT, Generator
from oral_lib.lora import stacked
from oral_lib.lora.stacked import Stack
from oral_lib.method.base_entry import BaseEntry
from oral_lib.method.conditioning import Examples
from oral_lib.method.config import GeneratorConfig, SamplingConfig
from oral_lib.method.denoiser import DenoiserConfig
from oral_lib.method.model import ORAL
from oral_lib.method.normalization import TokenStatistics
from oral_lib.method.recurrence import RecurrenceConfig
from oral_lib.method.tokenization import Layout, encode, flat
from oral_lib.method.training.through_base import ThroughBaseConfig, train_through_base
from oral_lib.method.training.tokens import train as train_on_tokens
from oral_lib.method.training.training_set import TrainingSet
from oral_lib.models import loading
from oral_lib.models.base import BaseModel
from oral_lib.models.text_encoder import TextEncoder
from oral_lib.planning.parts import GENERATOR, GeneratorJob
from oral_lib.tasks.intents.family import MESSAGE, load_family
from oral_lib.zoo import store
from oral_lib.zoo.training import COMPILED

_ENCODED = 512  # texts embedded at once
_WRITTEN = 16  # adapters written at once
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
    """

    network: GeneratorConfig
    training: ThroughBaseConfig
    mixture: Mixture = field(default_factory=Mixture)
    wider_a: float = 1.0
    tasks: int = 32
    rows: int = 16


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
        training=ThroughBaseConfig(steps=40, lr=2e-3, warmup=10, ema=0.95),
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
        training=ThroughBaseConfig(steps=150, lr=2e-3, warmup=15, text_noise=1.0, ema=0.97),
        mixture=Mixture(unions=0.0, topics=0.0),
        wider_a=10.0,
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
METHOD_OF = {"through_base": "generated_through_base", "weights": "generated"}  # by kind of job


def embeddings(encoder: TextEncoder, texts: Sequence[str], device: str | torch.device) -> Tensor:
    """[texts, e] unit embeddings of many texts on `device`, where the encoder computes them."""
    encoder.model.to(device)
    try:
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        parts = [
            encoder.encode([texts[i] for i in order[first : first + _ENCODED]]).to(device)
            for first in range(0, len(texts), _ENCODED)
        ]
    finally:
        encoder.model.to("cpu")
    ordered = torch.cat(parts)
    out = torch.empty_like(ordered)
    out[torch.tensor(order, device=out.device)] = ordered
    return out


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
    encoder: TextEncoder,
    preset: WriterPreset,
    *,
    device: str | torch.device = "cpu",
    label: str = "generator",
    **options,
) -> tuple[ORAL, dict[str, list]]:
    """The network trained through `bases` on the tasks of `stream`, and its curves.

    Args:
        network: is trained in place.
        bases: the frozen base models by name, on `device`.
        stream: the tasks.
        encoder: of the texts.
        preset: steps, tasks and rows.
        device: where to train.
        label: of the progress bar.
        options: `state`, `key` and `until` of `train_through_base`.
    """
    examples = MOST_EXAMPLES if network.config.examples else 0
    steps = stream.steps(preset.training.steps, preset.tasks, preset.rows, examples)
    texts = embeddings(encoder, stream.all_texts, device)
    batches = {}
    with ExitStack() as attached:
        for name, base in bases.items():
            table = MessageTable.of(base, stream.messages, MESSAGE)
            group = fitting_group(table, steps, texts)
            batches[name] = StreamBatches(table, steps, texts, bool(examples), group)
            large = base.weights > COMPILED
            attached.enter_context(stacked.compiled(base.model) if large else nullcontext())
            scale = base.spec.alpha / base.spec.rank
            attached.enter_context(stacked.attached(base.model, batches[name].stack, scale))
        return train_through_base(
            network, batches, preset.training, device=device, label=label, **options
        )


# ---------------------------------------------------------------- the networks of a run
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
    without, dev = job.split or "L2", {"development": development}
    name = rivals.suffixed("train", job.split)
    zoos = {base: stored.read_set(root, base, name, **dev) for base in sorted(bases)}
    about["zoo_sha256"] = {base: info["sha256"] for base, (_, _, info) in zoos.items()}
    folder = root / (f"{job.name}-development" if development else job.name)
    family = load_family(source, scale)
    if job.kind == "weights":
        usual = generators.preset(scale, GENERATOR)
        config, sampling = usual.network, replace(usual.sampling, projection="none")
        steps = 100 if scale == "smoke" else usual.training.steps
        training = replace(usual.training, seed=job.seed, steps=steps)
    else:
        preset = PRESETS[scale]
        config, sampling = preset.network, SAMPLING
        training = replace(preset.training, seed=job.seed)
        about |= {"mixture": asdict(preset.mixture), "wider_a": preset.wider_a}
        about |= {"tasks": preset.tasks, "rows": preset.rows}
    about["training"] = asdict(training)
    about["network"] = asdict(config)
    about = json.loads(json.dumps(about))
    manifest, state = folder / "manifest.json", folder / "training.safetensors"
    if manifest.exists() and about.items() <= storage.read_json(manifest).items():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    encoder = TextEncoder(config.text_encoder, source=source)
    models = {base: loading.load(base, source=source, device=device) for base in sorted(bases)}
    options = {"device": device, "state": state, "key": about, "label": f"{job.name} ({scale})"}
    if job.kind == "weights":
        network, losses = _train_on_weights(
            config, training, models, zoos, family, encoder, options, name, dev
        )
    else:
        entries = {
            base: entry_of(models[base], config, zoos[base][1], encoder, preset.wider_a)
            for base in models
        }
        stream = TaskStream.of(
            family, without=without, mixture=preset.mixture, seed=job.seed, **dev
        )
        network = initial_network(config, entries, job.seed)
        preset = replace(preset, training=training)
        network, curves = train(network, models, stream, encoder, preset, **options)
        losses = [sum(step) / len(step) for step in curves["losses"]]
    about["losses"] = [round(loss, 6) for loss in losses]  # mean over base models
    Generator(network, about, sampling, source=source, encoder=encoder).save_pretrained(folder)
    state.unlink(missing_ok=True)
    return folder


def _train_on_weights(
    config, training, models, zoos, family, encoder, options, name, dev
) -> tuple[ORAL, list[float]]:
    """A network that matches the adapters of the zoo, and the loss of each step."""
    scope = name.partition("-")[2]
    tasks = {task.name: task for task in rivals.seen_tasks(family, scope, 0, **dev)}
    data, entries, means = {}, {}, {}
    texts = {task: encoder.encode(part.texts["train"]) for task, part in tasks.items()}
    for base, model in models.items():
        facts = store.compute_facts(model)
        layout = Layout.of(facts.start, config.k)
        names, values, _ = zoos[base]
        kept = [i for i, task in enumerate(names) if task in tasks]  # unions have no texts here
        stack = Stack(facts.start, len(kept))
        stack.set(values[kept])
        chosen = [names[i] for i in kept]
        about = layout, facts.start, stack.adapters(), chosen, texts, config
        data[base] = TrainingSet.of(*about, align_to=means)
        means = {**data[base].task_means, **means}
        described = encoder.encode([facts.description])[0]
        entries[base] = data[base].base(described, facts.fingerprint, facts.peft_config)
    network = initial_network(config, entries, training.seed)
    return train_on_tokens(network, data, training, **options)


class Writing:
    """Writes adapters of `base` from texts and examples; `seed` is that of the initial noise."""

    def __init__(self, generator: Generator, base: str, seed: int = 0):
        self.network, self.sampling = generator.network, generator.sampling
        self.base, self.seed = base, seed
        self.reads_examples = generator.config.examples

    @torch.inference_mode()
    def __call__(
        self, texts: Tensor, given: Tensor | None = None, examples: Examples | None = None
    ) -> Tensor:
        """[T, v] adapters on the CPU, in the order of `lora.stacked.Stack`.

        Args:
            texts: [T, e] embeddings of the tasks' texts.
            given: bool [T], False: without text (default: all with text).
            examples: labelled rows of the T tasks.
        """
        network, entry = self.network, self.network.bases[self.base]
        device, statistics = network.device, entry.statistics
        stream = seeds.generator(self.seed, "sample", self.base)
        given = torch.ones(len(texts), dtype=torch.bool) if given is None else given
        parts = []
        for first in range(0, len(texts), _WRITTEN):
            chosen = slice(first, first + _WRITTEN)
            text, has_text = texts[chosen].to(device), given[chosen].to(device)
            rows = examples and Examples(*(part[chosen].to(device) for part in examples))
            noise = [network.noise(self.base, self.sampling, stream) for _ in range(len(text))]
            c = network.conditions(self.base, text, has_text, examples=rows)
            k0 = network.sample(self.base, c, torch.stack(noise).to(device), self.sampling)
            parts.append(flat(entry.layout, statistics.denormalise(k0)).cpu())
        return torch.cat(parts)


def writings(
    names: Mapping[str, str], base: str, seed: int, cache: ModelCache
) -> dict[str, Writing]:
    """What writes adapters of `base`, by method, for the networks `names` (by kind) of a run."""
    return {
        METHOD_OF[kind]: Writing(cache.generator(name), base, seed) for kind, name in names.items()
    }
