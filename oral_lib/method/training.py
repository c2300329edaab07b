"""Training a generator on a zoo.

A step (`Trainer`) visits every base model: a few conditions (task in varied wording, sometimes no
wording at all), their prototypes, and for each condition several zoo adapters noised at several t.
All their tokens are denoised, or a random subset where they are many. Prototypes depend on the
condition alone, so one recurrent pass serves all the adapters of a condition. All randomness of a
step comes from (seed, step): a run that was interrupted goes on bit for bit.
"""

import copy
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from oral_lib import devices, learning_rate, seeds, storage
from oral_lib.devices import Replay
from oral_lib.errors import OralError, UsageError
from oral_lib.generator import Generator
from oral_lib.progress import bar


@dataclass(frozen=True)
class TrainingSet:
    """The zoo of one base model as training reads it."""

    tokens: Tensor  # [a, l, k or r] normalised
    members: Tensor  # [tasks, most] adapter indices of each task, repeated to equal length
    texts: Tensor  # [tasks, wordings, e]


@dataclass(frozen=True)
class TrainingConfig:
    """A generator's training; see `rows` for how much of a base a step reads."""

    steps: int = 800
    lr: float = 1e-3
    warmup: int = 50
    conditions: int = 4
    draws: int = 2  # adapters of a condition, at most
    tokens: int = 1280  # of a base in one step, at most
    text_dropout: float = 0.1
    text_noise: float = 2.0  # at most, of an embedding of size 1: stands for wordings not yet read
    ema: float = 0.99
    clip: float = 1.0
    weight_decay: float = 0.0
    save_every: float = 60.0  # seconds between states that an interrupted run goes on from
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "lr", "conditions", "draws", "tokens", "clip", "save_every"):
            if getattr(self, name) <= 0:
                raise UsageError(f"training: {name} must be positive, got {getattr(self, name)!r}.")
        if not 0 <= self.text_dropout <= 1:
            raise UsageError(f"training: text_dropout={self.text_dropout!r} must lie in [0, 1].")
        if self.text_noise < 0:
            raise UsageError(f"training: text_noise={self.text_noise!r} must not be negative.")
        for name in ("ema",):
            if not 0 <= getattr(self, name) < 1:
                raise UsageError(f"training: {name}={getattr(self, name)!r} must lie in [0, 1).")

    def rows(self, length: int) -> tuple[int, int]:
        """(adapters of each condition, tokens of each adapter) that a step reads of a base whose
        adapters have `length` tokens: all tokens if they fit, since a base of which a step sees a
        part only is learnt more slowly than the others; then as many adapters as fit."""
        subset = min(length, max(1, self.tokens // self.conditions))
        return max(1, min(self.draws, self.tokens // (self.conditions * subset))), subset

    def lr_at(self, step: int) -> float:
        """Linear warm-up to `lr`, then a cosine to zero."""
        return learning_rate.cosine(self.lr, step, steps=self.steps, warmup=self.warmup)

    def share_at(self, step: int) -> float:
        """The weight of a step's values in their average, whose memory grows up to `ema`, so that
        early values fade."""
        return 1 - min(self.ema, (1 + step) / (10 + step)) if step else 1.0


CHECK_EVERY = 100  # steps: looking at the loss makes the host wait for the device


@dataclass(frozen=True)
class StepDraw:
    """What chance decides in one step for one base model."""

    text: Tensor  # [b, e]
    given: Tensor  # [b] whether the text is read
    chosen: Tensor  # [s] tokens that are denoised
    adapters: Tensor  # [b r] places on the shelf
    t: Tensor  # [b r] diffusion steps
    eps: Tensor  # [b r, s, k]

    @classmethod
    def of(
        cls, model: Generator, name: str, shelf: TrainingSet, config: TrainingConfig, step: int
    ) -> "StepDraw":
        """The draw of `step` for base model `name`: the same for the same seed."""
        device = shelf.tokens.device
        source = seeds.generator(config.seed, "step", step, name, device=device)
        how = {"generator": source, "device": device}
        b, length = config.conditions, shelf.tokens.shape[1]
        r, subset = config.rows(length)
        task = torch.randint(shelf.texts.shape[0], (b,), **how)
        text = shelf.texts[task, torch.randint(shelf.texts.shape[1], (b,), **how)]
        blur = torch.randn(text.shape, **how) / text.shape[-1] ** 0.5
        blur = blur * torch.rand(b, 1, **how)  # from none at all to `text_noise`
        given = torch.rand(b, **how) >= config.text_dropout
        chosen = torch.randperm(length, **how)[:subset]
        places = torch.randint(shelf.members.shape[1], (b, r), **how)
        adapters = shelf.members[task[:, None], places].flatten()
        t = torch.randint(model.config.schedule.steps, (b * r,), **how)
        eps = torch.randn(b * r, len(chosen), model.config.size, **how)
        text = F.normalize(text + config.text_noise * blur, dim=-1)
        return cls(text, given, chosen, adapters, t, eps)

    def part(self, i: int) -> "StepDraw":
        """What falls to condition `i` alone."""
        r = len(self.adapters) // len(self.text)
        its = slice(i * r, (i + 1) * r)
        one = self.text[i : i + 1], self.given[i : i + 1], self.chosen
        return StepDraw(*one, self.adapters[its], self.t[its], self.eps[its])

    def copy_(self, other: "StepDraw") -> None:
        """Takes the values of `other` where these stand."""
        for name, value in vars(self).items():
            value.copy_(getattr(other, name))


def step_loss(
    model: Generator, shelves: dict[str, TrainingSet], draws: dict[str, StepDraw]
) -> Tensor:
    """The loss of one step, the mean over base models."""
    total = torch.zeros((), device=model.kind.weight.device)
    for name, shelf in shelves.items():
        d = draws[name]
        c = model.conditions(name, d.text, d.given)
        r = len(d.adapters) // len(d.text)
        p = model.prototypes(name, c)[:, d.chosen].repeat_interleave(r, 0)
        k0 = shelf.tokens[d.adapters[:, None], d.chosen]  # [b r, s, k]
        loss = model.loss(name, k0, p, c.repeat_interleave(r, 0), d.chosen, d.t, d.eps)
        total = total + loss
    return total / len(shelves)


class Trainer:
    """A generator in training: `model`, its average (EMA) `averaged`, its `optimizer`.

    A step of the same number and seed does the same to the same model. On a GPU it is one replayed
    graph.
    """

    def __init__(
        self,
        model: Generator,
        shelves: dict[str, TrainingSet],
        config: TrainingConfig,
        device: torch.device,
    ):
        self.config, self.model = config, model.to(device).train()
        self.shelves = {
            n: TrainingSet(s.tokens.to(device), s.members.to(device), s.texts.to(device))
            for n, s in shelves.items()
        }
        self.averaged = copy.deepcopy(self.model).requires_grad_(False)
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(),
            lr=torch.tensor(config.lr, device=device),
            weight_decay=config.weight_decay,
            betas=(0.9, 0.99),
            fused=True,
            capturable=device.type == "cuda",
        )
        self.half = devices.fast_dtype(device) == torch.bfloat16
        self.draws = {n: StepDraw.of(self.model, n, s, config, 0) for n, s in self.shelves.items()}
        self.loss, self.share = (torch.zeros((), device=device) for _ in range(2))
        self.kept, self.now = list(self.averaged.parameters()), list(self.model.parameters())
        self.replay = Replay(self._once, device)

    def step(self, number: int) -> Tensor:
        """Does step `number`; its loss, on the device."""
        for name, shelf in self.shelves.items():
            self.draws[name].copy_(StepDraw.of(self.model, name, shelf, self.config, number))
        self.optimizer.param_groups[0]["lr"].fill_(self.config.lr_at(number))
        self.share.fill_(self.config.share_at(number))
        self.replay(0)
        return self.loss.clone()

    def _once(self, _: int) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        kind = self.loss.device.type
        with torch.autocast(kind, torch.bfloat16, enabled=self.half, cache_enabled=False):
            found = step_loss(self.model, self.shelves, self.draws)
        found.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip)
        self.optimizer.step()
        self.loss.copy_(found.detach())
        with torch.no_grad():  # kept + share * (now - kept)
            moved = torch._foreach_sub(self.now, self.kept)
            torch._foreach_mul_(moved, self.share)
            torch._foreach_add_(self.kept, moved)


def train(
    model: Generator,
    shelves: dict[str, TrainingSet],
    config: TrainingConfig,
    *,
    device: str | torch.device = "cpu",
    state: Path | None = None,
    until: int | None = None,
    label: str = "generator",
) -> tuple[Generator, list[float]]:
    """The averaged (EMA) generator after `config.steps` steps, and the loss of each step.

    `state` is a file that is written about every `save_every` seconds and at the end, and from
    which an interrupted run goes on; `until` stops early. OralError when the loss is no longer
    finite, or when `state` belongs to another configuration or zoo.
    """
    trainer = Trainer(model, shelves, config, torch.device(device))
    how = repr(replace(config, save_every=1.0))  # which decides nothing that is learned
    run = seeds.integer(config.seed, how, repr(model.config), repr(model.manifest))
    losses: list[Tensor] = []
    begin = 0
    if state is not None and state.exists():
        begin, losses = _resume(state, run, trainer)
    saved = time.monotonic()
    last = min(until or config.steps, config.steps)
    for step in bar(range(begin, last), label=label, unit="step"):
        losses.append(trainer.step(step))
        done = step + 1
        if done % CHECK_EVERY == 0 or done == last:
            if not trainer.loss.isfinite():
                raise OralError(
                    f"{label}: the loss is {trainer.loss.item()} at step {done}; lower lr."
                )
            due = done == last or time.monotonic() - saved >= config.save_every
            if state is not None and due:
                _store(state, run, trainer, done, losses)
                saved = time.monotonic()
    curve = torch.stack(losses).tolist() if losses else []
    return trainer.averaged.eval(), curve


def _store(path: Path, run: int, trainer: Trainer, step: int, losses: Sequence[Tensor]) -> None:
    state = {f"model.{n}": v for n, v in trainer.model.state_dict().items()}
    state |= {f"ema.{n}": v for n, v in trainer.averaged.state_dict().items()}
    for i, slots in trainer.optimizer.state_dict()["state"].items():
        state |= {f"optimizer.{i}.{n}": v for n, v in slots.items()}
    state |= {"run": torch.tensor(run), "step": torch.tensor(step)}
    state |= {"losses": torch.stack(losses).float()}
    state = {n: v.detach().cpu().contiguous().clone() for n, v in state.items()}
    storage.write_tensors(path, state)


def _resume(path: Path, run: int, trainer: Trainer) -> tuple[int, list[Tensor]]:
    state = storage.read_tensors(path)
    if int(state.get("run", 0)) != run:
        raise OralError(
            f"{path} was interrupted with other settings or another zoo; delete it to start anew."
        )

    def part(prefix: str) -> dict[str, Tensor]:
        cut = len(prefix) + 1
        return {n[cut:]: v for n, v in state.items() if n.startswith(prefix + ".")}

    try:
        trainer.model.load_state_dict(part("model"))
        trainer.averaged.load_state_dict(part("ema"))
    except RuntimeError as error:
        raise OralError(
            f"{path} belongs to a generator of another shape; delete it to start anew."
        ) from error
    slots: dict[int, dict[str, Tensor]] = {}
    for name, value in part("optimizer").items():
        i, slot = name.split(".")
        slots.setdefault(int(i), {})[slot] = value
    held = trainer.optimizer.state_dict()
    trainer.optimizer.load_state_dict({"state": slots, "param_groups": held["param_groups"]})
    return int(state["step"]), list(state["losses"].to(trainer.loss.device).unbind())
