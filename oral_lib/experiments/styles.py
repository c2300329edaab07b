"""The cell of an image style: adapters generate images, which are compared with real images.

Every adapter generates as many images as the style has held-out images, at most
`StyleSettings.max_images`, from the same noise and prompt; `n_items` is their number. The second
metric is the error of denoising held-out images. `frechet_floor` is the Fréchet distance between
equally many real training images and the held-out images, a lower baseline for all adapters.

A style has no items with a correct answer, so a cell's table of items is empty.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
import torch
from torch import Tensor

from oral_lib import seeds
from oral_lib.evaluation import fid, schema
from oral_lib.evaluation.evaluate import STACK_SIZES, evaluate
from oral_lib.experiments.cells import Measurement, models_of, side_tables, zoo_of
from oral_lib.experiments.conditions import Size, questions_of
from oral_lib.experiments.model_cache import ModelCache
from oral_lib.experiments.trials import trials
from oral_lib.lora import stacked
from oral_lib.lora.stacked import Stack
from oral_lib.models.latent_diffusion import LatentDiffusion
from oral_lib.progress import bar
from oral_lib.provenance import code_commit
from oral_lib.tasks import images
from oral_lib.tasks.rows import task_rows
from oral_lib.tasks.task import load_task


@dataclass(frozen=True, kw_only=True)
class StyleSettings:
    """Sample sizes of a style's cell, and how images are generated."""

    max_images: int  # of each adapter
    steps: int  # of DDIM
    guidance: float
    network: str  # backbone whose features are compared where Inception is unavailable
    size: Size  # adapters of each method


STYLE_SETTINGS = {
    "smoke": StyleSettings(
        max_images=40,
        steps=5,
        guidance=1.0,
        network="tiny-convnet",
        size=Size(rows=40, control_rows=40, samples=2, control_samples=1, noise_samples=1),
    ),
    "paper": StyleSettings(
        max_images=200,
        steps=50,
        guidance=7.5,
        network="efficientnet-lite0",
        size=Size(
            rows=200,
            control_rows=200,
            samples=10,
            control_samples=4,
            other_tasks=6,
            noise_samples=5,
        ),
    ),
}


def generate_images(
    base: LatentDiffusion,
    adapters: Sequence[dict[str, Tensor]],
    n: int,
    settings: StyleSettings,
    label: str,
) -> list[Tensor]:
    """For each adapter its images, uint8 [n, 3, pixels, pixels].

    Args:
        base: the diffusion model.
        adapters: several of them generate at a time.
        n: images of each adapter.
        settings: steps and guidance.
        label: of the progress bar.
    """
    group, results = min(STACK_SIZES[base.device.type], len(adapters)), []
    stack = Stack(adapters[0], group, base.device, next(base.model.parameters()).dtype)
    with stacked.attached(base.model, stack, base.spec.alpha / base.spec.rank) as unet:
        for first in bar(range(0, len(adapters), group), label=label, unit="stack"):
            chosen = list(adapters[first : first + group])
            stack.put(chosen + chosen[:1] * (group - len(chosen)))
            sampling = {"steps": settings.steps, "guidance": settings.guidance}
            results += base.sample_images(unet, n, groups=group, **sampling)[: len(chosen)]
    return results


def run_cell(
    task: str, base: str, seed: int, *, scale: str, cache: ModelCache, wordings: str
) -> Measurement:
    """One cell, which has no items.

    Args:
        task: name of the style.
        base: name of the diffusion model.
        seed: of the generator and of its samples.
        scale: of the run.
        cache: the models of the run.
        wordings: the paraphrases to measure, one of `wordings.HELD_OUT_WORDINGS`.
    """
    spec, settings, source = load_task(task), STYLE_SETTINGS[scale], cache.source
    data, model = task_rows(spec, source), cache.base(base, 0)
    network = fid.network(settings.network, source, cache.device)
    models = models_of(cache, scale, "style", task, seed)
    where = {"scale": scale, "source": source, "experiment": "style"}
    members, held_out = zoo_of(cache.root, task, base, **where)
    n = min(settings.max_images, len(data.test), len(data.train))
    rows = data.test[:n]
    encoder, size = models.generator.encoder, settings.size
    pickers = cache.pickers(list(dict.fromkeys(m.task for m in members)), encoder)
    questions = questions_of(spec, pickers, encoder, size, seed=seed, wordings=wordings)
    planned = list(trials(spec, model, members, held_out, models, size, questions, seed=seed))
    unique = list({id(a): a for trial in planned for a in trial.adapters}.values())
    began = time.perf_counter()
    generated = generate_images(model, unique, n, settings, f"images {base} {task} seed {seed}")
    likelihoods = [outcome.likely for outcome in evaluate(model, spec, rows, unique)]
    each = (time.perf_counter() - began) / len(unique)
    test, train = (
        network(images.decode_images([row.image for row in part], model.pixels, "bicubic"))
        for part in (rows, data.train[:n])
    )  # [n, f] each
    measured = {
        id(adapter): (network(pixels), -likely[:, 0])
        for adapter, pixels, likely in zip(unique, generated, likelihoods, strict=True)
    }
    cell = {
        "experiment": "style", "source": data.source, "base": base, "task": task, "seed": seed,
    }  # fmt: skip
    about = cell | {
        "family": spec.family, "base_version": model.spec.version, "n_items": n,
        "higher_is_better": False, "commit": code_commit(),
    }  # fmt: skip
    metrics, draw = [], seeds.generator(seed, "resample")
    for trial in planned:
        pairs = [measured[id(adapter)] for adapter in trial.adapters]
        row = about | {"method": trial.method, "condition": trial.condition}
        row |= {"n_samples": len(pairs), "wall_s": round(trial.seconds + each * len(pairs), 3)}
        distances = [
            (fid.frechet_distance(x, test), fid.standard_error(x, test, draw)) for x, _ in pairs
        ]
        errors = torch.stack([error for _, error in pairs]).mean(0)  # [n], over adapters
        stderr = (errors.std() / n**0.5).item()
        metrics.append(row | _number(network.metric, *map(_mean, zip(*distances, strict=True))))
        metrics.append(row | _number("denoising_error", errors.mean().item(), stderr))
        if trial.method == "base":
            floor = fid.frechet_distance(train, test), fid.standard_error(train, test, draw)
            metrics.append(row | _number("frechet_floor", *floor))
    frame = schema.check_metrics(pd.DataFrame(metrics)[list(schema.COLUMNS)])
    no_items = schema.items_frame(pd.DataFrame(columns=list(schema.ITEM_COLUMNS)))
    tables = side_tables(
        cell, model, models, planned, members, held_out, questions, len(data.train)
    )
    return Measurement(frame, no_items, tables)


def _number(metric: str, value: float, stderr: float) -> dict:
    ends = {"ci_low": value - 1.96 * stderr, "ci_high": value + 1.96 * stderr}
    return {"metric": metric, "value": value, "stderr": stderr} | ends


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
