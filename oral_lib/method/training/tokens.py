"""Training the network on the adapters of a zoo.

A step (`Trainer`) visits every base model. It draws a few conditions (a task in varied wording,
sometimes without text), and for each condition several zoo adapters, noised at several t. All their
tokens are denoised, or a random subset of long adapters. Prototypes depend only on the condition,
so one recurrent pass serves all adapters of a condition. All randomness of a step comes from
(seed, step): an interrupted training continues bit for bit.

Letters: a adapters, b conditions of a step, r adapters of each, s tokens that are denoised.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from oral_lib import devices, seeds
from oral_lib.devices import Replay
from oral_lib.errors import OralError, UsageError
from oral_lib.method.model import ORAL
from oral_lib.method.training.optimizer import CHECK_EVERY, AveragedAdamW, Schedule
from oral_lib.method.training.training_set import TrainingSet
from oral_lib.progress import bar


@dataclass(frozen=True)
class TrainingConfig(Schedule):
    """How a network is trained.

    Args:
        steps: optimiser steps.
        lr: peak learning rate of AdamW.
        warmup: steps of linear warm-up, followed by a cosine to zero.
        conditions: conditions of each base model in a step.
        draws: adapters of a condition, at most; see `rows`.
        tokens: tokens of each base model in a step, at most.
        text_dropout: share of conditions without text.
        text_noise: largest norm of the noise added to an embedding of norm 1; it stands for
            held-out paraphrases.
        ema: largest memory of the average of the weights.
        clip: largest norm of the gradient.
        weight_decay: of AdamW.
        save_every: seconds between states to resume from.
        seed: of all draws.

    >>> config = TrainingConfig(steps=100, warmup=10, lr=1e-3)
    >>> config.lr_at(9)
    0.001
    >>> config.rows(300)  # adapters of a condition, tokens of each
    (1, 300)
    """

    steps: int = 800
    lr: float = 1e-3
    warmup: int = 50
    conditions: int = 4
    draws: int = 2
    tokens: int = 1280
    text_dropout: float = 0.1
    text_noise: float = 2.0
    ema: float = 0.99
    clip: float = 1.0
    weight_decay: float = 0.0
    save_every: float = 60.0
    seed: int = 0

    def __post_init__(self) -> None:
        self.check(("conditions", "draws", "tokens"), ("text_dropout",))

    def rows(self, length: int) -> tuple[int, int]:
        """(adapters r of each condition, tokens s of each adapter) in a step, for adapters of
        `length` tokens.

        All tokens if they fit: a base model whose adapters are read in part is learnt more slowly.
        Then as many adapters as fit.
        """
        subset = min(length, max(1, self.tokens // self.conditions))
        return max(1, min(self.draws, self.tokens // (self.conditions * subset))), subset


@dataclass(frozen=True)
class StepDraw:
    """The random choices of one step for one base model.

    Args:
        text: [b, e] noised embeddings.
        given: bool [b] whether the text is used.
        chosen: [s] indices of the tokens that are denoised.
        adapters: [b r] indices into `TrainingSet.tokens`.
        t: [b r] diffusion steps.
        eps: [b r, s, k or r] noise.
    """

    text: Tensor
    given: Tensor
    chosen: Tensor
    adapters: Tensor
    t: Tensor
    eps: Tensor

    @classmethod
    def of(
        cls, model: ORAL, name: str, data: TrainingSet, config: TrainingConfig, step: int
    ) -> "StepDraw":
        """The draw of `step` for base model `name`: the same for the same seed."""
        device = data.tokens.device
        stream = seeds.generator(config.seed, "step", step, name, device=device)
        options = {"generator": stream, "device": device}
        b, length = config.conditions, data.tokens.shape[1]
        r, subset = config.rows(length)
        task = torch.randint(data.texts.shape[0], (b,), **options)
        text = data.texts[task, torch.randint(data.texts.shape[1], (b,), **options)]
        noise = torch.randn(text.shape, **options) / text.shape[-1] ** 0.5
        noise = noise * torch.rand(b, 1, **options)  # of a norm from 0 to `text_noise`
        given = torch.rand(b, **options) >= config.text_dropout
        chosen = torch.randperm(length, **options)[:subset]
        if model.config.reads_tokens:  # one after the other
            chosen = chosen.sort().values
        columns = torch.randint(data.members.shape[1], (b, r), **options)
        adapters = data.members[task[:, None], columns].flatten()
        steps = 1 if model.diffusion is None else model.diffusion.steps
        t = torch.randint(steps, (b * r,), **options)
        eps = torch.randn(b * r, len(chosen), model.config.size, **options)
        text = F.normalize(text + config.text_noise * noise, dim=-1)
        return cls(text, given, chosen, adapters, t, eps)

    def part(self, i: int) -> "StepDraw":
        """The draw of condition `i` only."""
        r = len(self.adapters) // len(self.text)
        rows = slice(i * r, (i + 1) * r)
        condition = self.text[i : i + 1], self.given[i : i + 1], self.chosen
        return StepDraw(*condition, self.adapters[rows], self.t[rows], self.eps[rows])

    def copy_(self, other: "StepDraw") -> None:
        """Copies the values of `other` into these tensors."""
        for name, value in vars(self).items():
            value.copy_(getattr(other, name))


def step_loss(
    model: ORAL, data: Mapping[str, TrainingSet], draws: Mapping[str, StepDraw]
) -> Tensor:
    """The loss of one step, the mean over base models."""
    total = torch.zeros((), device=model.device)
    for name, adapters in data.items():
        d = draws[name]
        c = model.conditions(name, d.text, d.given)
        r = len(d.adapters) // len(d.text)
        p = model.prototypes(name, c)[:, d.chosen].repeat_interleave(r, 0)
        k0 = adapters.tokens[d.adapters[:, None], d.chosen]  # [b r, s, k]
        loss = model.loss(name, k0, p, c.repeat_interleave(r, 0), d.chosen, d.t, d.eps)
        total = total + loss
    return total / len(data)


class Trainer:
    """A network in training: `model`, its average (EMA) `averaged`.

    Steps are deterministic: they depend on the model, the seed and the number of the step. On a GPU
    a step is one replayed graph.
    """

    def __init__(
        self,
        model: ORAL,
        data: Mapping[str, TrainingSet],
        config: TrainingConfig,
        device: torch.device,
    ):
        self.config, self.model = config, model.to(device).train()
        self.data = {name: adapters.to(device) for name, adapters in data.items()}
        about = {"lr": config.lr, "weight_decay": config.weight_decay, "clip": config.clip}
        self.optimizer = AveragedAdamW(self.model, **about)
        self.half = devices.fast_dtype(device) == torch.bfloat16
        self.draws = {n: StepDraw.of(self.model, n, s, config, 0) for n, s in self.data.items()}
        self.loss = torch.zeros((), device=device)
        self.replay = Replay(self._once, device)

    @property
    def averaged(self) -> ORAL:
        """The network with averaged weights."""
        return self.optimizer.averaged

    def step(self, number: int) -> Tensor:
        """The loss of step `number`, on the device; updates the model and its average."""
        for name, adapters in self.data.items():
            self.draws[name].copy_(StepDraw.of(self.model, name, adapters, self.config, number))
        rates = self.config.lr_at(number), self.config.average_rate(number)
        self.optimizer.set_rates(*rates)
        self.replay(0)
        return self.loss.clone()

    def _once(self, _: int) -> None:
        for parameter in self.model.parameters():
            parameter.grad = None
        kind = self.loss.device.type
        with torch.autocast(kind, torch.bfloat16, enabled=self.half, cache_enabled=False):
            loss = step_loss(self.model, self.data, self.draws)
        loss.backward()
        self.optimizer.update()
        self.loss.copy_(loss.detach())


def train(
    model: ORAL,
    data: Mapping[str, TrainingSet],
    config: TrainingConfig | None = None,
    *,
    device: str | torch.device = "cpu",
    state: Path | None = None,
    key: object = "",
    until: int | None = None,
    label: str = "generator",
) -> tuple[ORAL, list[float]]:
    """The averaged (EMA) network after `config.steps` steps, and the loss of each step.

    Args:
        model: is trained in place; the average is a copy.
        data: the training set of each base model of `model`.
        config: default: `TrainingConfig()`.
        device: where to train.
        state: file to resume from, written about every `config.save_every` seconds and at the end.
        key: identifies `data`, such as hashes of the adapters. A state with another key is refused.
        until: stop before this step.
        label: name of the progress bar, and of the training in messages.

    Raises:
        UsageError: `data` and `model` have different base models.
        OralError: the loss is not finite, or `state` has another configuration or key.

    >>> from oral_lib import method
    >>> start = {"q.lora_A.weight": torch.ones(2, 8), "q.lora_B.weight": torch.zeros(8, 2)}
    >>> zoo = [{n: t + torch.randn_like(t) for n, t in start.items()} for _ in range(4)]
    >>> tasks = ["cheerful", "cheerful", "formal", "formal"]
    >>> texts = {task: torch.randn(3, 16) for task in tasks}  # 3 wordings each
    >>> small = method.RecurrenceConfig(width=32, head=16)
    >>> config = method.GeneratorConfig(k=8, components=4, recurrence=small)
    >>> layout = method.Layout.of(start, config.k)
    >>> data = method.TrainingSet.of(layout, start, zoo, tasks, texts, config)
    >>> model = ORAL(config, {"mine": data.base(torch.randn(16), torch.randn(64))})
    >>> model, losses = train(model, {"mine": data}, TrainingConfig(steps=2))
    >>> len(losses)
    2
    """
    if data.keys() != model.bases.keys():
        raise UsageError(
            f"training sets of {', '.join(sorted(data))}, but the network has the base models "
            f"{', '.join(model.bases)}: give one set for each."
        )
    config = config or TrainingConfig()
    trainer = Trainer(model, data, config, torch.device(device))
    settings = repr(replace(config, save_every=1.0))  # which changes no result
    run = seeds.integer(config.seed, settings, repr(model.config), repr(key))
    losses: list[Tensor] = []
    begin = 0
    if state is not None and state.exists():
        begin, curves = trainer.optimizer.resume(state, run, ["losses"])
        losses = curves["losses"]
    saved = time.monotonic()
    last = min(until or config.steps, config.steps)
    for step in bar(range(begin, last), label=label, unit="step"):
        losses.append(trainer.step(step))
        done = step + 1
        if done % CHECK_EVERY == 0 or done == last:
            if not trainer.loss.isfinite():
                raise OralError(
                    f"{label}: the loss is {trainer.loss.item()} at step {done}: use a lower lr."
                )
            due = done == last or time.monotonic() - saved >= config.save_every
            if state is not None and due:
                trainer.optimizer.store(state, run, done, {"losses": losses})
                saved = time.monotonic()
    curve = torch.stack(losses).tolist() if losses else []
    return trainer.averaged.eval(), curve
