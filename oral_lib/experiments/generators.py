"""What a generator learns from: the tokens of a zoo, base model by base model, with their texts."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch import Tensor

from oral_lib import seeds, storage
from oral_lib.generator import Generator, GeneratorConfig, describe_base
from oral_lib.method import tokenization
from oral_lib.method.denoiser import DenoiserConfig
from oral_lib.method.model import BaseEntry
from oral_lib.method.normalization import procrustes_rotation
from oral_lib.method.projection import ZooProjection
from oral_lib.method.recurrence import RecurrenceConfig
from oral_lib.method.tokenization import Layout
from oral_lib.method.training import TrainingConfig, TrainingSet, train
from oral_lib.models import loading
from oral_lib.models.text_encoder import text_encoder
from oral_lib.tasks.task import load_task, wordings_hash
from oral_lib.zoo import store
from oral_lib.zoo.store import Member


def assemble(
    config: GeneratorConfig,
    members: Sequence[Member],
    *,
    source: str = "packages",
    seed: int = 0,
    bare: bool = False,
) -> tuple[Generator, dict[str, TrainingSet]]:
    """An untrained generator that knows the bases of `members`, and their tokens to train on.

    Statistics are centred on the shared LoRA start, or where `bare` on factors of zero, and pooled
    over all tasks of a base: all-zero tokens are the base model, nothing of a task leaks through
    them. Where components are to be alike in all base models, that of most tasks leads, of equally
    many the first by name; which task an adapter is of is read for that turn alone.
    """
    encoder = text_encoder(config.text_encoder, source)
    layouts, prepared = {}, {}
    for name in sorted({m.base for m in members}):
        base = loading.load(name, source=source)
        start = base.lora_init()
        if bare:
            start = {n: t * ("lora_" not in n) for n, t in start.items()}
        layouts[name] = Layout.of(start, config.k)
        prepared[name] = (start, describe_base(base, encoder), base.peft_config().to_dict())
        del base
    types = sorted({t for layout in layouts.values() for t in layout.types})
    known, shelves, codes = {}, {}, {}
    zoos = {name: [m for m in members if m.base == name] for name in layouts}
    for name in sorted(layouts, key=lambda n: -len({m.task for m in zoos[n]})):
        start, c_model, peft_config = prepared[name]
        layout, mine = layouts[name], zoos[name]
        values = tokenization.encode(layout, [m.tensors for m in mine])
        start = tokenization.encode(layout, [start])[0]
        statistics = config.fit(layout, values, start)
        told = statistics.normalise(values)
        if config.components and config.turned == "bases":
            turn = _turn(told, mine, codes)
            statistics, told = statistics.rotated(turn), told @ turn
        known[name] = BaseEntry(
            layout, statistics, ZooProjection.of(told), *c_model, types, _plain(peft_config)
        )
        shelves[name] = _shelf(told, mine, encoder)
    shelves = dict(sorted(shelves.items()))
    manifest = {
        "zoo": [
            {"base": m.base, "task": m.task, "seed": m.seed, "sha256": m.info["sha256"]}
            for m in members
        ],
        "told": wordings_hash(sorted({m.task for m in members})),
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seeds.integer(seed, "generator-init"))
        return Generator(config, known, manifest), shelves


def _turn(told: Tensor, members: Sequence[Member], codes: dict[str, Tensor]) -> Tensor:
    """The turn [r, r] after which a task's tokens, `told` [a, l, r] of `members`, have on average
    what `codes` says by task: the components [r] of it in earlier base models. Notes new tasks'."""
    of = [m.task for m in members]
    means = {t: told[torch.tensor([t == u for u in of])].mean((0, 1)) for t in dict.fromkeys(of)}
    turn = torch.eye(told.shape[-1])
    if again := [task for task in means if task in codes]:
        turn = procrustes_rotation(*(torch.stack([x[t] for t in again]) for x in (means, codes)))
    codes |= {task: mean @ turn for task, mean in means.items() if task not in codes}
    return turn


def _shelf(values: Tensor, members: Sequence[Member], encoder) -> TrainingSet:
    of_task: dict[str, list[int]] = {}
    for i, member in enumerate(members):
        of_task.setdefault(member.task, []).append(i)
    most = math.lcm(*map(len, of_task.values()))  # repeats keep the draw uniform
    table = [chosen * (most // len(chosen)) for chosen in of_task.values()]
    wordings = [load_task(name).training_texts for name in of_task]
    fewest = min(map(len, wordings))
    texts = torch.stack([encoder.encode(w[:fewest]) for w in wordings])
    return TrainingSet(values, torch.tensor(table), texts)


def _plain(config: dict) -> dict:
    """A PEFT configuration as JSON holds it."""
    return {
        k: sorted(v) if isinstance(v, set) else v
        for k, v in config.items()
        if isinstance(v, str | int | float | bool | list | dict | set | None)
    }


LAB = TrainingConfig(steps=6000, conditions=16, draws=4, tokens=4800, warmup=100, ema=0.995)


def train_from_zoo(
    members: Sequence[tuple[str, str, int]],
    kind: str,
    *,
    root: Path,
    scale: str,
    source: str,
    device: str = "cpu",
    configured: tuple[GeneratorConfig, TrainingConfig] | None = None,
) -> Path:
    """Trains the `kind` (see `preset`) of a scale on zoo `members` of `root`, as `configured` if
    that is given.

    Returns its folder under `root`, which counts only once its manifest is there. One that was
    trained on another zoo, on other wordings or with another configuration is trained again.
    """
    folder = root / kind
    config, training = configured or preset(scale, kind)
    zoo_members = [store.read(root, *member) for member in members]
    if _is_current(folder, config, training, zoo_members):
        return folder
    model, shelves = assemble(config, zoo_members, source=source, seed=training.seed)
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
    """Whether `folder` holds a generator of just this configuration, zoo and wordings."""
    if not (folder / "manifest.json").exists():
        return False
    manifest = storage.read_json(folder / "manifest.json")
    held = storage.read_json(folder / "config.json")["generator"]
    hashes = {entry["sha256"] for entry in manifest["zoo"]}
    told = wordings_hash(sorted({member.task for member in members}))
    same = {"save_every": None}  # decides nothing that is learned
    return (
        manifest["training"] | same == asdict(training) | same
        and held == json.loads(json.dumps(asdict(config)))
        and hashes == {member.info["sha256"] for member in members}
        and manifest.get("told") == told
    )


def preset(scale: str, kind: str) -> tuple[GeneratorConfig, TrainingConfig]:
    """The configurations of a scale and kind (`plan.generators`).

    "generator" and its further seeds ("generator-1", ...); `regression` is the same network without
    diffusion, `unconditional` one that is never told a text.
    """
    name, _, seed = kind.partition("-")
    if scale == "smoke":
        config = GeneratorConfig(
            k=128,
            components=32,
            width=64,
            recurrence=RecurrenceConfig(width=64, state=16, head=32, chunk=16),
            denoiser=DenoiserConfig(hidden=128, depth=2, skip=False),
            text_encoder="tiny",
            sampling_steps=10,
        )
        training = TrainingConfig(steps=400, lr=3e-3, warmup=20, ema=0.95, tokens=512)
    else:
        config, training = GeneratorConfig(), TrainingConfig()
        if scale != "desk":  # chosen on raw values: D-DIF-9
            config = replace(config, denoiser=replace(config.denoiser, hidden=1024))
            training = LAB
    if name == "unconditional":
        training = replace(training, text_dropout=1.0)
    training = replace(training, seed=int(seed or 0))
    return replace(config, diffusion=name != "regression"), training
