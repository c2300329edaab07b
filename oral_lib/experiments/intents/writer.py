"""The generator of intents: one network that writes adapters for all base models, trained through
them.

The scale of each tensor comes from the zoo, the adapters trained on seen tasks. Training may start
from their weights (`Preset.tokens`) and goes on through the frozen base models.

Letters: T tasks, S adapters of a step, n rows of a task, k examples of a task, e size of an
embedding, v values of an adapter.
"""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor

from oral_lib import seeds
from oral_lib.devices import fast_dtype
from oral_lib.experiments.intents.messages import MessageTable
from oral_lib.experiments.intents.stream import Mixture, StreamSteps, TaskStream
from oral_lib.lora import stacked
from oral_lib.lora.stacked import Stack
from oral_lib.method.base_entry import BaseEntry
from oral_lib.method.conditioning import Examples
from oral_lib.method.config import GeneratorConfig, SamplingConfig
from oral_lib.method.denoiser import DenoiserConfig
from oral_lib.method.diffusion import DiffusionConfig
from oral_lib.method.model import ORAL
from oral_lib.method.normalization import TokenStatistics
from oral_lib.method.recurrence import RecurrenceConfig
from oral_lib.method.tokenization import Layout, encode, flat
from oral_lib.method.training.through_base import ThroughBaseConfig, train_through_base
from oral_lib.models.base import BaseModel
from oral_lib.models.text_encoder import TextEncoder
from oral_lib.zoo import store
from oral_lib.zoo.training import COMPILED

_ENCODED = 512  # texts embedded at once
_WRITTEN = 16  # adapters written at once
EXAMPLES = 32  # labelled examples of a task, at most


@dataclass(frozen=True, kw_only=True)
class Preset:
    """How the generator of intents is built and trained at a scale.

    Args:
        network: the network.
        training: its training through the base models.
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
    "smoke": Preset(
        network=GeneratorConfig(
            k=128,
            recurrence=RecurrenceConfig(width=64, state=16, head=32, chunk=16),
            denoiser=DenoiserConfig(hidden=128, depth=1, skip=False),
            diffusion=DiffusionConfig(objective="x0"),
            text_encoder="tiny",
            **_RAW,
        ),
        training=ThroughBaseConfig(steps=150, lr=2e-3, warmup=10, ema=0.95),
        tasks=8,
        rows=8,
    ),
    "lab": Preset(
        network=GeneratorConfig(
            k=1536,
            recurrence=RecurrenceConfig(width=384),
            denoiser=DenoiserConfig(hidden=1024, depth=2, skip=False),
            diffusion=DiffusionConfig(objective="x0"),
            **_RAW,
        ),
        training=ThroughBaseConfig(steps=2000),
    ),
}
SAMPLING = SamplingConfig(steps=1, projection="none", noise_sharing="token")  # as it was trained


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


class StreamBatches:
    """The tasks of a stream on one base model: `TaskBatches` of training through the base.

    The base model must be under `stack` (`attached`) while losses are computed.

    Args:
        table: the messages of the stream as the base model reads them.
        steps: the tasks of every step.
        texts: [texts, e] embeddings of `TaskStream.all_texts`, on the device.
        examples: whether examples are supplied.
    """

    def __init__(self, table: MessageTable, steps: StreamSteps, texts: Tensor, examples: bool):
        base, device = table.base, texts.device
        self.table, self.embedded = table, texts
        size, n = steps.rows.shape[1:]
        self.stack = Stack(base.lora_init(), size, device, next(base.model.parameters()).dtype)
        self.widths = [table.width(rows) for rows in steps.rows]
        arrays = steps.rows, steps.labels, steps.texts, steps.example_rows, steps.example_labels
        self.steps = [torch.from_numpy(array.copy()).to(device) for array in arrays]
        self.rows, self.labels = (
            torch.zeros(size * n, dtype=torch.long, device=device) for _ in "ab"
        )
        self.text = torch.zeros(size, texts.shape[1], device=device)
        self.given = torch.ones(size, dtype=torch.bool, device=device)
        self.examples = None
        if examples:
            k = steps.example_rows.shape[2]
            self.examples = Examples(
                torch.zeros(size, k, texts.shape[1], device=device),
                torch.zeros(size, k, dtype=torch.long, device=device),
                torch.ones(size, k, dtype=torch.bool, device=device),
            )

    def draw(self, step: int) -> int:
        """Sets the tensors to those of `step`; returns the width of its rows."""
        rows, labels, texts, example_rows, example_labels = (part[step] for part in self.steps)
        self.rows.copy_(rows.flatten())
        self.labels.copy_(labels.flatten())
        self.text.copy_(self.embedded[texts])
        if self.examples is not None:
            self.examples.embeddings.copy_(self.embedded[example_rows])  # messages come first
            self.examples.labels.copy_(example_labels)
        return self.widths[step]

    def losses(self, adapters: Tensor, key: int) -> Tensor:
        """[S] mean losses of `adapters` [S, v] on the rows of the step, with a gradient."""
        size = len(self.stack)

        def losses() -> Tensor:
            each = self.table.losses(self.rows, self.labels, size, key)
            return each.view(size, -1).mean(1)

        return stacked.losses_of(adapters, self.stack, losses)


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


def untrained(config: GeneratorConfig, entries: Mapping[str, BaseEntry], seed: int) -> ORAL:
    """A network for the base models of `entries`, with initial weights drawn from `seed`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seeds.integer(seed, "generator-init"))
        return ORAL(config, entries)


def train(
    network: ORAL,
    bases: Mapping[str, BaseModel],
    stream: TaskStream,
    encoder: TextEncoder,
    preset: Preset,
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
    from oral_lib.tasks.intents.family import MESSAGE

    examples = EXAMPLES if network.config.examples else 0
    steps = stream.steps(preset.training.steps, preset.tasks, preset.rows, examples)
    texts = embeddings(encoder, stream.all_texts, device)
    batches = {}
    with ExitStack() as attached:
        for name, base in bases.items():
            table = MessageTable.of(base, stream.messages, MESSAGE)
            batches[name] = StreamBatches(table, steps, texts, bool(examples))
            large = base.weights > COMPILED
            attached.enter_context(stacked.compiled(base.model) if large else nullcontext())
            scale = base.spec.alpha / base.spec.rank
            attached.enter_context(stacked.attached(base.model, batches[name].stack, scale))
        return train_through_base(
            network, batches, preset.training, device=device, label=label, **options
        )


@torch.inference_mode()
def write(
    network: ORAL,
    base: str,
    texts: Tensor,
    given: Tensor | None = None,
    examples: Examples | None = None,
    *,
    seed: int = 0,
) -> Tensor:
    """[T, v] adapters for T tasks, on the device of the network, in the order of `Stack`.

    Args:
        network: the trained network.
        base: name of the base model.
        texts: [T, e] embeddings of the tasks' texts.
        given: bool [T], False: without text (default: all with text).
        examples: labelled rows of the T tasks.
        seed: of the initial noise.
    """
    device, entry = network.device, network.bases[base]
    stream = seeds.generator(seed, "sample", base)
    given = torch.ones(len(texts), dtype=torch.bool) if given is None else given
    parts = []
    for first in range(0, len(texts), _WRITTEN):
        chosen = slice(first, first + _WRITTEN)
        text, has_text = texts[chosen].to(device), given[chosen].to(device)
        some = examples and Examples(*(part[chosen].to(device) for part in examples))
        noise = torch.stack([network.noise(base, SAMPLING, stream) for _ in range(len(text))])
        with torch.autocast(
            device.type, torch.bfloat16, enabled=fast_dtype(device) == torch.bfloat16
        ):
            c = network.conditions(base, text, has_text, examples=some)
            k0 = network.write(base, c, noise.to(device))
        parts.append(flat(entry.layout, entry.statistics.denormalise(k0.float())))
    return torch.cat(parts)
