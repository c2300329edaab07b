"""Training a generator on a zoo.

A step visits every base model: a few conditions (task in varied wording, sometimes no wording at
all), their prototypes, and for each condition several zoo adapters noised at several t, of which a
random subset of tokens is denoised. Prototypes depend on the condition alone, so one recurrent pass
serves all the adapters of a condition. All randomness of a step comes from (seed, step): a run that
was interrupted goes on bit for bit.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from oral_lib import bases, seeds, storage, tasks, tokens, zoo
from oral_lib.condition import describe_base, text_encoder
from oral_lib.denoise import DenoiserConfig
from oral_lib.errors import OralError, UsageError
from oral_lib.generator import Generator, GeneratorConfig, Known
from oral_lib.progress import bar
from oral_lib.recurrence import RecurrenceConfig
from oral_lib.tokens import Layout, Statistics
from oral_lib.zoo import Member


@dataclass(frozen=True)
class TrainingConfig:
    """A generator's training; a step reads conditions * draws rows of `subset` tokens a base."""

    steps: int = 800
    lr: float = 1e-3
    warmup: int = 50
    conditions: int = 4
    draws: int = 2
    subset: int = 64
    text_dropout: float = 0.1
    text_noise: float = 0.0  # of an embedding whose values have unit size: wordings not yet read
    ema: float = 0.99
    clip: float = 1.0
    weight_decay: float = 0.0
    save_every: int = 100
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "lr", "conditions", "draws", "subset", "clip", "save_every"):
            if getattr(self, name) <= 0:
                raise UsageError(f"training: {name} must be positive, got {getattr(self, name)!r}.")
        for name in ("text_dropout", "ema", "text_noise"):
            if not 0 <= getattr(self, name) < 1:
                raise UsageError(f"training: {name}={getattr(self, name)!r} must lie in [0, 1).")

    def lr_at(self, step: int) -> float:
        """Linear warm-up to `lr`, then a cosine to zero."""
        if step < self.warmup:
            return self.lr * (step + 1) / self.warmup
        share = (step - self.warmup) / max(self.steps - self.warmup, 1)
        return self.lr * 0.5 * (1 + math.cos(math.pi * min(share, 1.0)))


@dataclass(frozen=True)
class Shelf:
    """The zoo of one base model as training reads it, on the device."""

    tokens: Tensor  # [a, l, k] normalised
    members: Tensor  # [tasks, most] adapter indices of each task, repeated to equal length
    texts: Tensor  # [tasks, wordings, e]


def assemble(
    config: GeneratorConfig, members: Sequence[Member], *, source: str = "packages"
) -> tuple[Generator, dict[str, Shelf]]:
    """An untrained generator that knows the bases of `members`, and their tokens to train on.

    Statistics are centred on the shared LoRA start and pooled over all tasks of a base, so that
    all-zero tokens are the base model and nothing of a task leaks through them.
    """
    encoder = text_encoder(config.text_encoder, source)
    layouts, prepared = {}, {}
    for name in sorted({m.base for m in members}):
        base = bases.load(name, source=source)
        start = base.lora_init()
        layouts[name] = Layout.of(start, config.k)
        prepared[name] = (start, describe_base(base, encoder), base.peft_config().to_dict())
        del base
    types = sorted({t for layout in layouts.values() for t in layout.types})
    known, shelves = {}, {}
    for name, layout in layouts.items():
        start, c_model, peft_config = prepared[name]
        mine = [m for m in members if m.base == name]
        values = tokens.encode(layout, [m.tensors for m in mine])
        statistics = Statistics.fit(layout, values, tokens.encode(layout, [start])[0])
        known[name] = Known(layout, statistics, *c_model, types, _plain(peft_config))
        shelves[name] = _shelf(statistics.normalise(values), mine, encoder)
    manifest = {
        "zoo": [
            {"base": m.base, "task": m.task, "seed": m.seed, "sha256": m.info["sha256"]}
            for m in members
        ],
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seeds.integer(0, "generator-init"))
        return Generator(config, known, manifest), shelves


def _shelf(values: Tensor, members: Sequence[Member], encoder) -> Shelf:
    of_task: dict[str, list[int]] = {}
    for i, member in enumerate(members):
        of_task.setdefault(member.task, []).append(i)
    most = math.lcm(*map(len, of_task.values()))  # repeats keep the draw uniform
    table = [chosen * (most // len(chosen)) for chosen in of_task.values()]
    wordings = [tasks.load(name).training_texts for name in of_task]
    fewest = min(map(len, wordings))
    texts = torch.stack([encoder.encode(w[:fewest]) for w in wordings])
    return Shelf(values, torch.tensor(table), texts)


def _plain(config: dict) -> dict:
    """A PEFT configuration as JSON holds it."""
    return {
        k: sorted(v) if isinstance(v, set) else v
        for k, v in config.items()
        if isinstance(v, str | int | float | bool | list | dict | set | None)
    }


def step_loss(
    model: Generator, shelves: dict[str, Shelf], config: TrainingConfig, step: int
) -> Tensor:
    """The loss of one step, the mean over base models."""
    device = model.kind.weight.device
    total = torch.zeros((), device=device)
    for name, shelf in shelves.items():
        draw = seeds.generator(config.seed, "step", step, name, device=device)

        def pick(high: int, *shape: int, draw=draw) -> Tensor:
            return torch.randint(high, shape, generator=draw, device=device)

        b, r = config.conditions, config.draws
        task = pick(shelf.texts.shape[0], b)
        text = shelf.texts[task, pick(shelf.texts.shape[1], b)]
        blur = torch.randn(text.shape, generator=draw, device=device) / text.shape[-1] ** 0.5
        text = text + config.text_noise * blur
        given = torch.rand(b, generator=draw, device=device) >= config.text_dropout
        c = model.conditions(name, text, given)
        p = model.prototypes(name, c)
        l = p.shape[1]  # noqa: E741 - the letter of the method
        chosen = torch.randperm(l, generator=draw, device=device)[: config.subset]
        adapters = shelf.members[task[:, None], pick(shelf.members.shape[1], b, r)].flatten()
        k0 = shelf.tokens[adapters[:, None], chosen]  # [b r, s, k]
        p = p[:, chosen].repeat_interleave(r, 0)
        total = total + model.loss(name, k0, p, c.repeat_interleave(r, 0), chosen, draw)
    return total / len(shelves)


def train(
    model: Generator,
    shelves: dict[str, Shelf],
    config: TrainingConfig,
    *,
    device: str | torch.device = "cpu",
    state: Path | None = None,
    until: int | None = None,
    label: str = "generator",
) -> tuple[Generator, list[float]]:
    """The averaged (EMA) generator after `config.steps` steps, and the loss of each step.

    `state` is a file that is written every `save_every` steps and at the end, and from which an
    interrupted run goes on; `until` stops early. OralError when the loss is no longer finite, or
    when `state` belongs to another configuration or zoo.
    """
    model = model.to(device).train()
    shelves = {n: Shelf(s.tokens.to(device), s.members.to(device), s.texts.to(device))
               for n, s in shelves.items()}  # fmt: skip
    averaged = AveragedModel(model, multi_avg_fn=_ema(config.ema))
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=config.lr,
        weight_decay=config.weight_decay,
        betas=(0.9, 0.99),
        fused=True,
    )
    run = seeds.integer(config.seed, repr(config), repr(model.config), repr(model.manifest))
    losses: list[Tensor] = []
    begin = 0
    if state is not None and state.exists():
        begin, losses = _resume(state, run, model, averaged, optimizer, device)
    half = bases.fast_dtype(device) == torch.bfloat16
    last = min(until or config.steps, config.steps)
    for step in bar(range(begin, last), label=label, unit="step"):
        for group in optimizer.param_groups:
            group["lr"] = config.lr_at(step)
        with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=half):
            loss = step_loss(model, shelves, config, step)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip)
        optimizer.step()
        averaged.update_parameters(model)
        losses.append(loss.detach())
        done = step + 1
        if done % config.save_every == 0 or done == last:
            if not loss.isfinite():
                raise OralError(f"{label}: the loss is {loss.item()} at step {done}; lower lr.")
            if state is not None:
                _store(state, run, model, averaged, optimizer, done, losses)
    curve = torch.stack(losses).tolist() if losses else []
    return averaged.module.eval(), curve


def _ema(decay: float):
    """Exponential average whose memory grows up to `decay`, so that early weights fade."""

    def update(kept, now, count) -> None:
        weight = 1 - min(decay, (1 + float(count)) / (10 + float(count)))
        torch._foreach_lerp_(kept, now, weight)

    return update


def _store(path: Path, run: int, model, averaged, optimizer, step: int, losses) -> None:
    state = {f"model.{n}": v for n, v in model.state_dict().items()}
    state |= {f"ema.{n}": v for n, v in averaged.state_dict().items()}
    for i, slots in optimizer.state_dict()["state"].items():
        state |= {f"optimizer.{i}.{n}": v for n, v in slots.items()}
    state |= {"run": torch.tensor(run), "step": torch.tensor(step)}
    state |= {"losses": torch.stack(losses).float()}
    state = {n: v.detach().cpu().contiguous().clone() for n, v in state.items()}
    storage.write_tensors(path, state)


def _resume(path: Path, run: int, model, averaged, optimizer, device) -> tuple[int, list[Tensor]]:
    state = storage.read_tensors(path)
    if int(state.get("run", 0)) != run:
        raise OralError(
            f"{path} was interrupted with other settings or another zoo; delete it to start anew."
        )

    def part(prefix: str) -> dict[str, Tensor]:
        cut = len(prefix) + 1
        return {n[cut:]: v for n, v in state.items() if n.startswith(prefix + ".")}

    try:
        model.load_state_dict(part("model"))
        averaged.load_state_dict(part("ema"))
    except RuntimeError as error:
        raise OralError(
            f"{path} belongs to a generator of another shape; delete it to start anew."
        ) from error
    slots: dict[int, dict[str, Tensor]] = {}
    for name, value in part("optimizer").items():
        i, slot = name.split(".")
        slots.setdefault(int(i), {})[slot] = value
    held = optimizer.state_dict()
    optimizer.load_state_dict({"state": slots, "param_groups": held["param_groups"]})
    return int(state["step"]), list(state["losses"].to(device).unbind())


def train_from_zoo(
    members: Sequence[tuple[str, str, int]],
    kind: str,
    *,
    root: Path,
    scale: str,
    source: str,
    device: str = "cpu",
) -> Path:
    """Trains the `kind` ("generator" or "regression") of a scale on zoo `members` of `root`.

    Returns its folder under `root`, which counts only once its manifest is there. One that was
    trained on another zoo or with another configuration is trained again.
    """
    folder = root / kind
    config, training = preset(scale, kind)
    zoo_members = [zoo.read(root, *member) for member in members]
    if _is_current(folder, config, training, zoo_members):
        return folder
    model, shelves = assemble(config, zoo_members, source=source)
    state = folder / "training.safetensors"
    folder.mkdir(parents=True, exist_ok=True)
    trained, losses = train(
        model, shelves, training, device=device, state=state, label=f"{kind} ({scale})"
    )
    trained.manifest |= {
        "kind": kind,
        "scale": scale,
        "source": source.partition(":")[0],
        "training": asdict(training),
        "losses": [round(x, 6) for x in losses],
    }
    trained.save_pretrained(folder)
    state.unlink(missing_ok=True)
    return folder


def _is_current(
    folder: Path, config: GeneratorConfig, training: TrainingConfig, members: Sequence[Member]
) -> bool:
    """Whether `folder` holds a generator of just this configuration and zoo."""
    if not (folder / "manifest.json").exists():
        return False
    manifest = storage.read_json(folder / "manifest.json")
    held = storage.read_json(folder / "config.json")["generator"]
    hashes = {entry["sha256"] for entry in manifest["zoo"]}
    return (
        manifest["training"] == asdict(training)
        and held == json.loads(json.dumps(asdict(config)))
        and hashes == {member.info["sha256"] for member in members}
    )


def preset(scale: str, kind: str) -> tuple[GeneratorConfig, TrainingConfig]:
    """The configurations of a scale; `regression` is the same network without diffusion."""
    if scale == "smoke":
        config = GeneratorConfig(
            k=128,
            width=64,
            recurrence=RecurrenceConfig(width=64, state=16, head=32, chunk=16),
            denoiser=DenoiserConfig(hidden=128, depth=2, skip=False),
            text_encoder="tiny",
            sampling_steps=10,
        )
        training = TrainingConfig(steps=400, lr=3e-3, warmup=20, ema=0.95)
    else:
        config, training = GeneratorConfig(), TrainingConfig()
    return replace(config, diffusion=kind == "generator"), training
