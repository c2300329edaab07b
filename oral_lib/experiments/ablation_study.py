"""The study behind the ablations: train one variant of the generator, measure it on validation
rows."""

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from oral_lib import seeds, storage
from oral_lib.baselines import averages
from oral_lib.evaluation import bootstrap
from oral_lib.evaluation.evaluate import evaluate
from oral_lib.experiments import generators
from oral_lib.experiments.ablation_variants import Gauge, Pooling, Variant
from oral_lib.experiments.trials import adapters_of
from oral_lib.generator import Generator
from oral_lib.lora import gauge
from oral_lib.method import tokenization
from oral_lib.method.config import GeneratorConfig, SamplingConfig
from oral_lib.method.model import ORAL
from oral_lib.method.normalization import TokenStatistics
from oral_lib.method.stored import compression
from oral_lib.method.training import tokens as on_tokens
from oral_lib.method.training.tokens import TrainingConfig
from oral_lib.method.training.training_set import TrainingSet
from oral_lib.models import loading
from oral_lib.models.base import BaseModel
from oral_lib.models.text_encoder import TextEncoder
from oral_lib.tasks.rows import Row, task_rows
from oral_lib.tasks.task import load_task, wordings_hash
from oral_lib.zoo.store import BaseFacts, Member

_FORMAT = 3  # of the stored parts: a new number measures everything again

Decoding = dict[tuple[str, str], TokenStatistics]  # by base model and task


@dataclass(frozen=True, kw_only=True)
class Study:
    """What all variants share.

    Args:
        source: where base models, tasks and text encoders are read from.
        bases: base models of the generator.
        tasks: the measured tasks of each base model.
        config: the default network.
        sampling: the default sampling.
        training: the training of every variant.
        rows: validation rows of a task.
        samples: adapters generated from a task's own description.
        members: the zoo, all tasks of the base models.
        facts: of each base model.
        device: where to train and to measure.
    """

    source: str
    bases: tuple[str, ...]
    tasks: dict[str, tuple[str, ...]]
    config: GeneratorConfig
    sampling: SamplingConfig
    training: TrainingConfig
    rows: int
    samples: int
    members: tuple[Member, ...]
    facts: dict[str, BaseFacts]
    device: str = "cpu"

    def key(self, *more: object) -> str:
        """A name for everything that decides a measurement: hashes of the zoo, texts, settings, and
        `more`."""
        zoo = sorted(m.info["sha256"] for m in self.members)
        specs = {t: load_task(t) for names in self.tasks.values() for t in names}
        texts = {
            t: (s.version, s.training_texts, s.paraphrases["development"]) for t, s in specs.items()
        }
        wordings = wordings_hash(sorted({m.task for m in self.members}))
        content = [_FORMAT, self.source, self.tasks, texts, wordings, self.rows, self.samples, zoo]
        content += [asdict(self.training), *more]
        text = json.dumps(content, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def key_of(self, variant: Variant) -> str:
        """The name of the measurements of `variant`."""
        sampling, network = asdict(variant.sampling), asdict(variant.config)
        return self.key(network, sampling, variant.gauge.value, variant.pooling.value)


def training_of(study: Study, config: GeneratorConfig) -> TrainingConfig:
    """The study's training, with as many values in a step for every token size k."""
    tokens = max(1, round(study.training.tokens * study.config.k / config.k))
    return replace(study.training, tokens=tokens)


# ---------------------------------------------------------------- one variant
def in_gauge(member: Member, form: Gauge) -> Member:
    """`member` with its factors in another gauge: the same product B A."""
    if form is Gauge.BALANCED:
        return replace(member, tensors=gauge.balanced(member.tensors))
    if form is Gauge.ROTATED:
        seed = seeds.integer(member.seed, member.task)
        return replace(member, tensors=gauge.rotated(member.tensors, seed))
    return member


def assemble_variant(
    variant: Variant, study: Study
) -> tuple[Generator, dict[str, TrainingSet], Decoding]:
    """(untrained generator, its training sets, the statistics to decode with).

    In any gauge but the shared initialisation, LoRA factors are centred on zero: all-zero tokens
    still are the base model. Statistics per task are centred on the mean of the task: all-zero
    tokens then are its soup, whatever the generator has learnt. Their components are not rotated to
    agree in all base models.
    """
    config = variant.config
    encoder = TextEncoder(config.text_encoder, source=study.source)
    members = [in_gauge(m, variant.gauge) for m in study.members]
    zero_start = variant.gauge is not Gauge.SHARED
    data = generators.training_sets(config, members, study.facts, encoder, zero_start=zero_start)
    decoding: Decoding = {}
    for name, adapters in data.items():
        zoo = [m for m in members if m.base == name]
        tokens = adapters.tokens.clone()
        for task in dict.fromkeys(m.task for m in zoo):
            decoding[name, task] = adapters.statistics
            if variant.pooling is Pooling.PER_TASK:
                rows = torch.tensor([m.task == task for m in zoo])
                tensors = [m.tensors for m in zoo if m.task == task]
                values = tokenization.encode(adapters.layout, tensors)
                fitted = config.fit(adapters.layout, values, values.mean(0))
                tokens[rows], decoding[name, task] = fitted.normalise(values), fitted
        data[name] = replace(adapters, tokens=tokens)
    network = generators.untrained(config, data, study.facts, encoder)
    generator = Generator(network, {}, variant.sampling, source=study.source, encoder=encoder)
    return generator, data, decoding


@torch.inference_mode()
def denoising_error(model: ORAL, base: str, data: TrainingSet) -> list[float]:
    """|x0 predicted - x0|^2 / |x0|^2 of each task of `data` with its own text, at the step where
    half of the signal is left (abar nearest to 1/2). 0 is perfect; predicting zeros gives 1."""
    device, entry = model.device, model.bases[base]
    t = int((model.diffusion.abar - 0.5).abs().argmin())
    errors = []
    for text, members in zip(data.texts[:, :1], data.members, strict=True):
        given = torch.ones(1, dtype=torch.bool, device=device)
        c = model.conditions(base, text.to(device), given)
        k0 = data.tokens[members.unique()].to(device)
        b = len(k0)
        p, c = model.prototypes(base, c).expand(b, -1, -1), c.expand(b, -1)
        stream = seeds.generator(0, "denoising", base)
        eps = torch.randn(k0.shape, generator=stream).to(device) * entry.mask
        steps = torch.full((b,), t, device=device)
        x = model.diffusion.add_noise(k0, eps, steps)
        guess = model.diffusion.to_x0(model.predict(x, steps, p, c), x, steps) * entry.mask
        errors.append((guess - k0).square().sum() / k0.square().sum())
    return torch.stack(errors).tolist()


def measure(evaluator: "Evaluator", variant: Variant, folder: Path) -> pd.DataFrame:
    """The rows of one variant, trained first.

    Variants that differ from the default only in sampling share its network, in `folder`.
    """
    study, began = evaluator.study, time.perf_counter()
    untrained, data, decoding = assemble_variant(variant, study)
    model, seconds = _trained(study, variant, untrained, data, folder)
    count = sum(v.numel() for v in model.network.parameters())
    rows = []
    for name in study.bases:
        names = list(dict.fromkeys(m.task for m in study.members if m.base == name))
        errors = denoising_error(model.network, name, data[name])
        errors = dict(zip(names, errors, strict=True))
        rows += [_row(name, "all", "seconds", seconds), _row(name, "all", "parameters", count)]
        for task in study.tasks[name]:
            rows.append(_row(name, task, "denoising", errors[task]))
            others = [other for other in names if other != task]
            adapters = generated(
                study, variant.sampling, name, task, model, others, decoding[name, task]
            )
            rows += [_row(name, task, *values) for values in evaluator.judge(name, task, adapters)]
    return pd.DataFrame(rows).assign(wall_s=round(time.perf_counter() - began, 2))


def _trained(
    study: Study,
    variant: Variant,
    untrained: Generator,
    data: Mapping[str, TrainingSet],
    folder: Path,
) -> tuple[Generator, float]:
    """(trained generator, seconds of training); the default's network is stored in `folder`."""
    default = (study.config, Gauge.SHARED, Pooling.SHARED)
    shared = (variant.config, variant.gauge, variant.pooling) == default
    stored = folder / "generators" / study.key(asdict(variant.config))
    stored.parent.mkdir(parents=True, exist_ok=True)
    with storage.file_lock(f"{stored}.lock") if shared else nullcontext():
        if shared and (stored / "manifest.json").exists():
            model = Generator.from_pretrained(stored, study.device, source=study.source)
            return model, model.manifest["seconds"]
        began = time.perf_counter()
        network, _ = on_tokens.train(
            untrained.network,
            data,
            training_of(study, variant.config),
            device=study.device,
            label=f"ablation {variant.group} {variant.name}",
        )
        if network.device.type == "cuda":
            torch.cuda.synchronize()
        seconds = round(time.perf_counter() - began, 2)
        model = Generator(
            compression.compressed(network),  # as the default's is read from its file
            {"seconds": seconds},
            study.sampling,
            source=study.source,
            encoder=untrained.encoder,
        )
        if shared:
            model.save_pretrained(stored)
        return model, seconds


def generated(
    study: Study,
    sampling: SamplingConfig,
    base: str,
    task: str,
    model: Generator,
    others: Sequence[str],
    statistics: TokenStatistics,
) -> dict[str, list[dict[str, Tensor]]]:
    """The adapters whose accuracy becomes a metric of the study, by metric.

    "accuracy": from the task's description. "unseen": from its development paraphrases. "other":
    from the descriptions of the tasks `others`. The last two have a fifth of the samples for each
    text. "zeros": the adapter of all-zero tokens; better than the base model means that the
    statistics leak the task. All are decoded with `statistics`, which a variant may fit for each
    task.
    """
    spec = load_task(task)

    def from_texts(kind: str, texts: Sequence[str], n: int) -> list[dict[str, Tensor]]:
        options = {"sampling": sampling, "statistics": statistics}
        seed = study.training.seed
        return adapters_of(model, texts, base, n, condition=kind, seed=seed, **options)

    few, layout = max(1, study.samples // 5), model.bases[base].layout
    zero = statistics.denormalise(torch.zeros(1, layout.l, model.config.size))
    descriptions = [load_task(name).description for name in others]
    return {
        "accuracy": from_texts("matched", [spec.description], study.samples),
        "unseen": from_texts("paraphrase", spec.paraphrases["development"], few),
        "other": from_texts("mismatched", descriptions, few),
        "zeros": tokenization.decode(layout, zero),
    }


class Evaluator:
    """Base models and validation rows of a study, each loaded when it is first needed."""

    def __init__(self, study: Study):
        self.study = study
        self._bases: dict[tuple[str, int], BaseModel] = {}
        self._rows: dict[str, Sequence[Row]] = {}

    def base(self, name: str, task: str) -> BaseModel:
        """The base model called `name` with a head of the size that `task` requires."""
        labels = len(load_task(task).labels)
        if (name, labels) not in self._bases:
            self._bases[name, labels] = loading.load(
                name, source=self.study.source, labels=labels, device=self.study.device
            )
        return self._bases[name, labels]

    def rows(self, task: str) -> Sequence[Row]:
        """The validation rows that adapters of `task` are measured on."""
        if task not in self._rows:
            split = task_rows(load_task(task), self.study.source)
            self._rows[task] = split.validation[: self.study.rows]
        return self._rows[task]

    def judge(
        self, base: str, task: str, adapters: Mapping[str, Sequence[dict[str, Tensor]]]
    ) -> list[tuple]:
        """(metric, value, low, high, items, samples) of each metric's adapters on the same rows,
        and the spread of accuracy, the standard deviation over samples."""
        rows = self.rows(task)
        everything = [tensors for group in adapters.values() for tensors in group]
        outcomes = evaluate(self.base(base, task), load_task(task), rows, everything)
        correct = np.stack([outcome.correct.float().numpy() for outcome in outcomes])
        measured, first = [], 0
        for metric, group in adapters.items():
            samples = correct[first : first + len(group)]  # [samples, items]
            first += len(group)
            if not group:
                continue
            measured.append((metric, *bootstrap.bootstrap(samples), len(rows), len(group)))
            if metric == "accuracy":
                spread = bootstrap.spread(samples.mean(1))[1]
                measured.append(("spread", spread, np.nan, np.nan, len(rows), len(group)))
        return measured

    def references(self) -> pd.DataFrame:
        """The rows of the group `reference`: the trained adapters, their soup, the base model."""
        began, parts = time.perf_counter(), []
        for name in self.study.bases:
            for task in self.study.tasks[name]:
                zoo = [m.tensors for m in self.study.members if (m.base, m.task) == (name, task)]
                sets = {"trained": zoo, "soup": [averages.soup(zoo)]}
                sets["base"] = [self.base(name, task).lora_init()]
                for variant, adapters in sets.items():
                    measured = self.judge(name, task, {"accuracy": adapters})
                    rows = [_row(name, task, *values) for values in measured]
                    parts.append(pd.DataFrame(rows).assign(variant=variant))
        frame = pd.concat(parts, ignore_index=True)
        frame = frame[(frame.metric != "spread") | (frame.variant == "trained")]
        return frame.assign(wall_s=round(time.perf_counter() - began, 2))


def _row(base, task, metric, value, low=np.nan, high=np.nan, items=1, samples=1) -> dict:
    return {
        "base": base, "task": task, "metric": metric, "value": float(value), "ci_low": low,
        "ci_high": high, "n_items": items, "n_samples": samples,
    }  # fmt: skip
