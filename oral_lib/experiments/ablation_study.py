"""The jury of the ablations: one variant of the generator, trained, and judged on validation
rows."""

import copy
import hashlib
import json
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from filelock import FileLock
from torch import Tensor

from oral_lib import seeds
from oral_lib.evaluation import bootstrap
from oral_lib.evaluation.evaluate import evaluate
from oral_lib.experiments import baselines
from oral_lib.experiments.ablation_variants import Variant
from oral_lib.experiments.generators import assemble as shelve
from oral_lib.generator import Generator, GeneratorConfig
from oral_lib.lora import gauge
from oral_lib.method import tokenization, training
from oral_lib.method.normalization import TokenStatistics
from oral_lib.method.projection import ZooProjection
from oral_lib.method.training import TrainingConfig, TrainingSet
from oral_lib.models import loading
from oral_lib.models.base import BaseModel
from oral_lib.tasks.rows import Row, task_rows
from oral_lib.tasks.task import load_task, wordings_hash
from oral_lib.zoo.store import Member

FORMAT = 1  # of the kept parts: a new number measures everything anew


@dataclass(frozen=True)
class Study:
    """What all variants share: the zoo, the tasks and rows they are judged on, the training."""

    source: str
    bases: tuple[str, ...]
    tasks: dict[str, tuple[str, ...]]  # judged, by base
    config: GeneratorConfig
    training: TrainingConfig
    rows: int
    samples: int
    members: tuple[Member, ...]  # all tasks of the bases
    device: str = "cpu"

    def key(self, *more: object) -> str:
        """A name for all that decides a measurement: the zoo's hashes, settings, and `more`."""
        zoo = sorted(m.info["sha256"] for m in self.members)
        told = {t: load_task(t) for names in self.tasks.values() for t in names}
        judged = {t: (spec.version, spec.description, spec.paraphrases) for t, spec in told.items()}
        read = wordings_hash(sorted({m.task for m in self.members}))
        content = [FORMAT, self.source, self.tasks, judged, read, self.rows, self.samples, zoo]
        content += [asdict(self.training), *more]
        text = json.dumps(content, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def schooling(study: Study, config: GeneratorConfig) -> TrainingConfig:
    """The study's training with as many values in a step as the default's tokens hold."""
    tokens = max(1, round(study.training.tokens * study.config.k / config.k))
    return replace(study.training, tokens=tokens)


# ---------------------------------------------------------------- one variant
def dressed(member: Member, way: str) -> Member:
    """`member` with its factors in the gauge `way`: the same weights."""
    if way == "balanced":
        return replace(member, tensors=gauge.balanced(member.tensors))
    if way == "turned":
        own = seeds.integer(member.seed, member.task)
        return replace(member, tensors=gauge.rotated(member.tensors, own))
    return member


def assemble(
    variant: Variant, members: Sequence[Member], source: str
) -> tuple[Generator, dict[str, TrainingSet], dict[tuple[str, str], TokenStatistics]]:
    """(untrained generator, its shelves, the statistics to decode with by (base, task)).

    In any gauge but the shared start's nothing of the start is left to centre on, so LoRA factors
    are centred on zero: all-zero tokens still are the base model. Statistics of one task are
    centred on its mean: all-zero tokens then are its soup, whatever the generator has learned;
    their components are not made alike in all base models.
    """
    members = [dressed(m, variant.gauge) for m in members]
    bare = variant.gauge != "shared"
    model, shelves = shelve(variant.config, members, source=source, bare=bare)
    used: dict[tuple[str, str], TokenStatistics] = {}
    for name, shelf in shelves.items():
        known = model.known[name]
        mine = [m for m in members if m.base == name]
        values = tokenization.encode(known.layout, [m.tensors for m in mine])
        normalised = known.statistics.normalise(values)
        for task in dict.fromkeys(m.task for m in mine):
            own = torch.tensor([m.task == task for m in mine])
            if variant.statistics == "per":
                part = values[own]
                fitted = variant.config.fit(known.layout, part, part.mean(0))
                normalised[own] = fitted.normalise(part)
            else:
                fitted = copy.deepcopy(known.statistics)
            used[name, task] = fitted
        mixtures = ZooProjection.of(normalised)
        known.directions, known.places = mixtures.directions, mixtures.places
        shelves[name] = replace(shelf, tokens=normalised)
    return model, shelves, used


def _set(known, statistics: TokenStatistics) -> None:
    known.center.copy_(statistics.center)
    known.scale.copy_(statistics.scale)
    if statistics.basis is not None:
        known.basis.copy_(statistics.basis)
        known.squared_length.copy_(statistics.squared_length)
    known.mask.copy_(statistics.mask(known.layout))


@torch.inference_mode()
def denoising_error(model: Generator, base: str, shelf: TrainingSet) -> list[float]:
    """Of each task on the shelf: |x0 predicted - x0|^2 / |x0|^2 with its own text, where half of
    the signal is left (abar nearest to 1/2). 0 is perfect, 1 what answering zeros costs."""
    device, known = model.kind.weight.device, model.known[base]
    t = int((model.schedule.abar - 0.5).abs().argmin())
    found = []
    for text, members in zip(shelf.texts[:, :1], shelf.members, strict=True):
        given = torch.ones(1, dtype=torch.bool, device=device)
        c = model.conditions(base, text.to(device), given)
        k0 = shelf.tokens[members.unique()].to(device)
        b = len(k0)
        p, c = model.prototypes(base, c).expand(b, -1, -1), c.expand(b, -1)
        draw = seeds.generator(0, "denoising", base)
        eps = torch.randn(k0.shape, generator=draw).to(device) * known.mask
        when = torch.full((b,), t, device=device)
        x = model.schedule.add_noise(k0, eps, when)
        guess = model.schedule.to_x0(model.predict(x, when, p, c), x, when) * known.mask
        found.append((guess - k0).square().sum() / k0.square().sum())
    return torch.stack(found).tolist()


def measure(jury: "Evaluator", variant: Variant, folder: Path) -> pd.DataFrame:
    """The rows of one variant, trained first; `folder` keeps the default's generator, which
    variants of the sampling read."""
    study, began = jury.study, time.perf_counter()
    model, shelves, used = assemble(variant, study.members, study.source)
    model, seconds = _trained(study, variant, model, shelves, folder)
    count = sum(v.numel() for v in model.parameters())
    rows = []
    for name in study.bases:
        known = list(dict.fromkeys(m.task for m in study.members if m.base == name))
        errors = dict(zip(known, denoising_error(model, name, shelves[name]), strict=True))
        rows += [_row(name, "all", "seconds", seconds), _row(name, "all", "parameters", count)]
        for task in study.tasks[name]:
            _set(model.known[name], used[name, task])
            rows.append(_row(name, task, "denoising", errors[task]))
            others = [other for other in known if other != task]
            asked = ask(study, name, task, model, others)
            rows += [_row(name, task, *one) for one in jury.judge(name, task, asked)]
    return pd.DataFrame(rows).assign(wall_s=round(time.perf_counter() - began, 2))


def _trained(
    study: Study, variant: Variant, model: Generator, shelves: dict[str, TrainingSet], folder: Path
) -> tuple[Generator, float]:
    """(trained generator, seconds it took), the default's from `folder` if it is there."""
    school = schooling(study, variant.config)
    sampling = ("sampling_steps", "temperature", "joint")
    still = {name: getattr(study.config, name) for name in sampling}
    if "whole" not in (variant.config.noise, study.config.noise):  # else no matter of sampling
        still["noise"] = study.config.noise
    common = replace(variant.config, **still)
    shared = (common, variant.gauge, variant.statistics) == (study.config, "shared", "shared")
    kept = folder / "generators" / study.key(asdict(common))
    kept.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{kept}.lock") if shared else nullcontext():
        if shared and (kept / "manifest.json").exists():
            held = Generator.from_pretrained(kept, study.device)
            held.config = variant.config
            return held, held.manifest["seconds"]
        began = time.perf_counter()
        label = f"ablation {variant.group} {variant.name}"
        made, _ = training.train(model, shelves, school, device=study.device, label=label)
        if made.kind.weight.is_cuda:
            torch.cuda.synchronize()
        seconds = round(time.perf_counter() - began, 2)
        if shared:
            made.config = study.config
            made.manifest = {**made.manifest, "seconds": seconds}
            made.save_pretrained(kept)
            made.config = variant.config
        return made, seconds


def ask(
    study: Study, base: str, task: str, model: Generator, others: Sequence[str]
) -> dict[str, list[dict[str, Tensor]]]:
    """The adapters to be judged, by metric: accuracy (its own text), unseen (wordings kept for
    testing), other (the descriptions of `others`) and zeros (all-zero tokens)."""
    spec, known = load_task(task), model.known[base]

    def told(kind: str, texts: Sequence[str], n: int) -> list[dict[str, Tensor]]:
        seed = study.training.seed
        return [
            adapter
            for i, text in enumerate(texts)
            for adapter in model.generate(
                text, base, n, seeds.integer(seed, kind, i), source=study.source
            )
        ]

    few = max(1, study.samples // 5)
    zero = known.statistics.denormalise(
        torch.zeros_like(known.mask, dtype=torch.float32)[None]
    ).cpu()
    return {
        "accuracy": told("matched", [spec.description], study.samples),
        "unseen": told("paraphrase", spec.paraphrases["test"], few),
        "other": told("mismatched", [load_task(name).description for name in others], few),
        "zeros": tokenization.decode(known.layout, zero),
    }


class Evaluator:
    """Base models and validation rows of a study, each loaded when it is first needed."""

    def __init__(self, study: Study):
        self.study = study
        self._bases: dict[tuple[str, int], BaseModel] = {}
        self._rows: dict[str, Sequence[Row]] = {}

    def base(self, name: str, task: str) -> BaseModel:
        """The base model called `name` with the head that `task` wants."""
        labels = len(load_task(task).labels)
        if (name, labels) not in self._bases:
            self._bases[name, labels] = loading.load(
                name, source=self.study.source, labels=labels, device=self.study.device
            )
        return self._bases[name, labels]

    def rows(self, task: str) -> Sequence[Row]:
        """The validation rows that adapters of `task` are judged on."""
        if task not in self._rows:
            split = task_rows(load_task(task), self.study.source)
            self._rows[task] = split.validation[: self.study.rows]
        return self._rows[task]

    def judge(self, base: str, task: str, asked: dict[str, list[dict[str, Tensor]]]) -> list[tuple]:
        """(metric, value, low, high, items, samples) of named sets of adapters on the same rows;
        beside accuracy its spread, the standard deviation over samples."""
        held = self.rows(task)
        everything = [adapter for some in asked.values() for adapter in some]
        outcomes = evaluate(self.base(base, task), load_task(task), held, everything)
        correct = np.stack([outcome.correct.float().numpy() for outcome in outcomes])
        found, first = [], 0
        for metric, some in asked.items():
            part = correct[first : first + len(some)]  # [samples, items]
            first += len(some)
            if not some:
                continue
            found.append((metric, *bootstrap.bootstrap(part), len(held), len(some)))
            if metric == "accuracy":
                spread = bootstrap.spread(part.mean(1))[1]
                found.append(("spread", spread, np.nan, np.nan, len(held), len(some)))
        return found

    def references(self) -> pd.DataFrame:
        """The rows of the group `reference`: the trained adapters, their soup, the base model."""
        began, parts = time.perf_counter(), []
        for name in self.study.bases:
            for task in self.study.tasks[name]:
                own = [m.tensors for m in self.study.members if (m.base, m.task) == (name, task)]
                sets = {"trained": own, "soup": [baselines.soup(own)]}
                sets["base"] = [self.base(name, task).lora_init()]
                for variant, some in sets.items():
                    found = self.judge(name, task, {"accuracy": some})
                    rows = [_row(name, task, *one) for one in found]
                    parts.append(pd.DataFrame(rows).assign(variant=variant))
        frame = pd.concat(parts, ignore_index=True)
        frame = frame[(frame.metric != "spread") | (frame.variant == "trained")]
        return frame.assign(wall_s=round(time.perf_counter() - began, 2))


def _row(base, task, metric, value, low=np.nan, high=np.nan, items=1, samples=1) -> dict:
    return {
        "base": base, "task": task, "metric": metric, "value": float(value), "ci_low": low,
        "ci_high": high, "n_items": items, "n_samples": samples,
    }  # fmt: skip
