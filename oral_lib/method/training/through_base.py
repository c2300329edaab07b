"""Training through the frozen base model: the second training signal.

    K_0 = write(noise, c)             x_0 at once from pure noise, or the last of k steps  [S, l, k]
    adapters = decode(K_0)            denormalised, without padding                        [S, v]
    loss = mean_s L_s(adapters_s)     L_s: the loss of the base model under adapter s on task s

The gradient runs from the loss back through the decoded values, the denoiser, the prototypes and
the condition. `TaskBatches` supplies texts, examples and L: this module knows only a callable from
adapters to losses, and no task or base model. The stacked forward of S adapters that computes L is
in `lora/stacked.py`.

Matching the weights of a zoo (`tokens.py`) returns means of adapters for tasks that the zoo lacks.
The loss through the base is what Text-to-LoRA (arXiv 2506.06105) found to generalise.

Letters: S adapters of a step, l tokens, k values a token, v values of an adapter, e size of an
embedding, n examples.
"""

import time
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from oral_lib import devices, seeds
from oral_lib.devices import Replay
from oral_lib.errors import OralError, UsageError
from oral_lib.method.conditioning import Examples
from oral_lib.method.model import ORAL
from oral_lib.method.tokenization import flat
from oral_lib.method.training.optimizer import CHECK_EVERY, AveragedAdamW, Schedule
from oral_lib.progress import bar

DIVERGED = 2.0  # times the mean loss of the first CHECK_EVERY steps


class TaskBatches(Protocol):
    """The tasks of each step on one base model, S at a time, in tensors that keep their addresses.

    Attributes:
        text: [S, e] unit embeddings of the texts of the step.
        given: bool [S], False: the task has no text.
        examples: labelled rows, or None if the network reads none.
    """

    text: Tensor
    given: Tensor
    examples: Examples | None

    def draw(self, step: int) -> Hashable:
        """Sets the tensors to the tasks and rows of `step`, which depend on the step only. Returns
        what the shapes of the step depend on: steps of one key replay one CUDA graph."""

    def losses(self, adapters: Tensor, key: Hashable) -> Tensor:
        """[S] the loss of each of `adapters` [S, v] on its rows of the step, with a gradient.

        The values are in the order of `tokenization.flat`. Nothing may wait for the device.
        """


@dataclass(frozen=True)
class ThroughBaseConfig(Schedule):
    """How a network is trained through the base model.

    Args:
        steps: optimiser steps; each visits every base model.
        lr: peak learning rate of AdamW.
        warmup: steps of linear warm-up, followed by a cosine to zero.
        shared_rate: the learning rate of the shared parts over `lr`. They are numbers of unit size,
            not weights of a network.
        sampling_steps: k, denoising steps of which the last has a gradient.
        temperature: scale of the initial noise.
        text_dropout: share of tasks whose text is left out.
        text_noise: largest norm of the noise added to an embedding of norm 1.
        dropout: share of the values of an embedding that are zeroed.
        example_dropout: share of tasks whose examples are all left out. Of other tasks a random
            share of the examples is.
        ema: largest memory of the average of the weights.
        clip: largest norm of the gradient.
        weight_decay: of AdamW.
        save_every: seconds between states to resume from.
        seed: of all draws.

    Raises:
        UsageError: a value is out of range.

    >>> ThroughBaseConfig(steps=200, warmup=10, lr=1e-3).lr_at(9)
    0.001
    """

    steps: int = 2000
    lr: float = 3e-4
    warmup: int = 100
    shared_rate: float = 20.0
    sampling_steps: int = 1
    temperature: float = 1.0
    text_dropout: float = 0.1
    text_noise: float = 0.5
    dropout: float = 0.0
    example_dropout: float = 0.5
    ema: float = 0.99
    clip: float = 1.0
    weight_decay: float = 0.0
    save_every: float = 60.0
    seed: int = 0

    def __post_init__(self) -> None:
        shares = ("text_dropout", "example_dropout", "temperature")
        self.check(("shared_rate", "sampling_steps"), shares)
        if not 0 <= self.dropout < 1:
            raise UsageError(f"training: dropout={self.dropout!r} must lie in [0, 1).")


@dataclass(frozen=True)
class StepInputs:
    """What the network reads in a step on one base model: tensors that keep their addresses.

    Args:
        text: [S, e] noised embeddings.
        given: bool [S] whether the text is used.
        noise: [S, l, k or r] initial noise.
        examples: labelled rows, or None.
    """

    text: Tensor
    given: Tensor
    noise: Tensor
    examples: Examples | None

    @classmethod
    def of(
        cls, model: ORAL, name: str, batches: TaskBatches, config: ThroughBaseConfig, step: int
    ) -> "StepInputs":
        """The inputs of `step` for base model `name`: the same for the same seed."""
        device = batches.text.device
        stream = seeds.generator(config.seed, "through-base", step, name, device=device)
        options = {"generator": stream, "device": device}
        s, e = batches.text.shape
        noise = torch.randn(s, e, **options) / e**0.5 * torch.rand(s, 1, **options)
        text = F.normalize(batches.text + config.text_noise * noise, dim=-1)
        if config.dropout:
            kept = torch.rand(s, e, **options) >= config.dropout
            text = text * kept / (1 - config.dropout)
        given = batches.given & (torch.rand(s, **options) >= config.text_dropout)
        shape = s, model.bases[name].layout.l, model.config.size
        start = config.temperature * torch.randn(shape, **options)
        examples = batches.examples
        if examples is not None:
            share = torch.rand(s, 1, **options)  # of the examples that are used
            share = share * (torch.rand(s, 1, **options) >= config.example_dropout)
            used = torch.rand(examples.given.shape, **options) < share
            examples = Examples(*examples[:2], examples.given & used)
        return cls(text, given, start, examples)

    def copy_(self, other: "StepInputs") -> None:
        """Copies the values of `other` into these tensors."""
        for name in ("text", "given", "noise"):
            getattr(self, name).copy_(getattr(other, name))
        if self.examples is not None:
            for mine, new in zip(self.examples, other.examples, strict=True):
                mine.copy_(new)

    def clone(self) -> "StepInputs":
        """A copy in memory of its own."""
        examples = self.examples and Examples(*(t.clone() for t in self.examples))
        return StepInputs(self.text.clone(), self.given.clone(), self.noise.clone(), examples)


class ThroughBaseTrainer:
    """A network in training through its base models.

    Steps are deterministic: they depend on the model, the seed and the number of the step. On a GPU
    a step is one replayed graph for each base model and one for the update.
    """

    def __init__(
        self,
        model: ORAL,
        batches: Mapping[str, TaskBatches],
        config: ThroughBaseConfig,
        device: torch.device,
    ):
        self.config, self.model, self.batches = config, model.to(device).train(), batches
        about = {"lr": config.lr, "weight_decay": config.weight_decay, "clip": config.clip}
        self.optimizer = AveragedAdamW(self.model, **about, faster={"shared": config.shared_rate})
        self.half = devices.fast_dtype(device) == torch.bfloat16
        for parameter in self.model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        self.gradients = [parameter.grad for parameter in self.model.parameters()]
        self.inputs = {
            name: StepInputs.of(self.model, name, part, config, 0).clone()
            for name, part in batches.items()
        }
        # read once: a check of statistics waits for the device
        self.statistics = {name: self.model.bases[name].statistics for name in batches}
        self.losses = torch.zeros(len(batches), device=device)  # by base model
        self.replay = Replay(self._run, device)

    def step(self, number: int) -> tuple[Tensor, Tensor]:
        """(losses by base model, norm of the gradient) of step `number`, on the device; updates the
        model and its average."""
        for name, batches in self.batches.items():
            key = batches.draw(number)
            new = StepInputs.of(self.model, name, batches, self.config, number)
            self.inputs[name].copy_(new)
            self.replay((name, key))
        self.optimizer.set_rates(self.config.lr_at(number), self.config.average_rate(number))
        self.replay(None)
        return self.losses.clone(), self.optimizer.norm.clone()

    def _written(self, name: str, inputs: StepInputs) -> Tensor:
        """K_0 [S, l, k or r] for `inputs`, with a gradient to the network."""
        c = self.model.conditions(name, inputs.text, inputs.given, examples=inputs.examples)
        return self.model.write(name, c, inputs.noise, self.config.sampling_steps)

    def _run(self, part: tuple[str, Hashable] | None) -> None:
        """The gradient of one base model, added to that of others; without `part` the update."""
        if part is None:
            self.optimizer.update()
            torch._foreach_zero_(self.gradients)
            return
        name, key = part
        kind = self.losses.device.type
        with torch.autocast(kind, torch.bfloat16, enabled=self.half, cache_enabled=False):
            k0 = self._written(name, self.inputs[name])
        values = self.statistics[name].denormalise(k0.float())
        adapters = flat(self.model.bases[name].layout, values)  # [S, v]
        losses = self.batches[name].losses(adapters, key)  # [S]
        (losses.mean() / len(self.batches)).backward()
        self.losses[list(self.batches).index(name)].copy_(losses.detach().mean())


def train_through_base(
    model: ORAL,
    batches: Mapping[str, TaskBatches],
    config: ThroughBaseConfig | None = None,
    *,
    device: str | torch.device = "cpu",
    state: Path | None = None,
    key: object = "",
    until: int | None = None,
    label: str = "generator",
) -> tuple[ORAL, dict[str, list]]:
    """The averaged (EMA) network after `config.steps` steps, and its curves.

    Args:
        model: is trained in place; the average is a copy. A network that was trained on tokens goes
            on from there.
        batches: the tasks of each base model of `model`.
        config: default: `ThroughBaseConfig()`.
        device: where to train.
        state: file to resume from, written about every `config.save_every` seconds and at the end.
        key: identifies the tasks, rows and base models. A state with another key is refused.
        until: stop before this step.
        label: name of the progress bar, and of the training in messages.

    Returns:
        The network, and by step "losses" (a list for each base model) and "norms" of the gradient.

    Raises:
        UsageError: `batches` and `model` have different base models.
        OralError: training diverged, or `state` has another configuration or key.

    The tasks below are vectors w, which are also their texts. The answer to a row x is yes if
    x w > 0, and the "base model" answers with x times the adapter.

    >>> from oral_lib import method
    >>> from oral_lib.method.base_entry import BaseEntry
    >>> class Signs:
    ...     text, given, examples = torch.zeros(8, 16), torch.ones(8, dtype=torch.bool), None
    ...
    ...     def draw(self, step):
    ...         stream = torch.Generator().manual_seed(step)
    ...         self.text.copy_(F.normalize(torch.randn(8, 16, generator=stream), dim=-1))
    ...         self.x = torch.randn(8, 32, 16, generator=stream)
    ...
    ...     def losses(self, adapters, key):
    ...         logits = torch.einsum("sre,se->sr", self.x, adapters)
    ...         labels = (torch.einsum("sre,se->sr", self.x, self.text) > 0).float()
    ...         every = F.binary_cross_entropy_with_logits(logits, labels, reduction="none")
    ...         return every.mean(1)
    >>> start = {"q.weight": torch.zeros(1, 16)}
    >>> small = method.RecurrenceConfig(width=32, head=16)
    >>> config = method.GeneratorConfig(
    ...     k=16, components=0, component_rotation="none", recurrence=small, linear=16
    ... )
    >>> layout = method.Layout.of(start, config.k)
    >>> statistics = method.TokenStatistics(torch.zeros(1, 16), torch.ones(1, 1))
    >>> entry = BaseEntry(layout, statistics, None, torch.randn(16), torch.randn(64))
    >>> training = ThroughBaseConfig(steps=40, lr=3e-3, warmup=5)
    >>> model = ORAL(config, {"mine": entry})
    >>> model, curves = train_through_base(model, {"mine": Signs()}, training)
    >>> curves["losses"][-1][0] < curves["losses"][0][0]
    True
    """
    if batches.keys() != model.bases.keys():
        raise UsageError(
            f"tasks for {', '.join(sorted(batches))}, but the network has the base models "
            f"{', '.join(model.bases)}: give tasks for each."
        )
    config = config or ThroughBaseConfig()
    trainer = ThroughBaseTrainer(model, batches, config, torch.device(device))
    settings = repr(replace(config, save_every=1.0))  # which changes no result
    run = seeds.integer(config.seed, settings, repr(model.config), repr(key))
    begin, curves = 0, {"losses": [], "norms": []}
    if state is not None and state.exists():
        begin, curves = trainer.optimizer.resume(state, run, list(curves))
    saved = time.monotonic()
    last = min(until or config.steps, config.steps)
    for step in bar(range(begin, last), label=label, unit="step"):
        losses, norm = trainer.step(step)
        curves["losses"].append(losses)
        curves["norms"].append(norm)
        done = step + 1
        if done % CHECK_EVERY == 0 or done == last:
            _check(curves, label, config)
            due = done == last or time.monotonic() - saved >= config.save_every
            if state is not None and due:
                trainer.optimizer.store(state, run, done, curves)
                saved = time.monotonic()
    values = {n: torch.stack(part).tolist() if part else [] for n, part in curves.items()}
    return trainer.optimizer.averaged.eval(), values


def _check(curves: Mapping[str, list[Tensor]], label: str, config: ThroughBaseConfig) -> None:
    """Raises OralError, in one line, if training has diverged."""
    losses = torch.stack([*curves["losses"][:CHECK_EVERY], *curves["losses"][-CHECK_EVERY:]])
    first, now = losses.view(2, -1, losses.shape[1]).mean((1, 2)).tolist()
    if not now <= DIVERGED * first:  # also for NaN
        norm = float(curves["norms"][-1])
        raise OralError(
            f"{label}: training diverged at step {len(curves['losses'])}: the mean loss is "
            f"{now:.3g}, it was {first:.3g}; the norm of the gradient is {norm:.3g}. Use a lower "
            f"lr than {config.lr:g}."
        )
