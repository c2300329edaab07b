"""The protocol of a style's cell: adapters paint, and their pictures are held against real ones.

Every adapter paints as many pictures as there are held-out ones of the style, up to `Canvas.most`,
all from the same noise and to the same prompt; `n_items` says how many. Beside the Fréchet distance
stands the error of denoising held-out pictures, which needs no painting. `frechet_floor` is the
distance of as many real training pictures from the held-out ones: no adapter has to be below it.

Styles have no items that are right or wrong, so a cell's table of items is empty.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from oral_lib import scales, seeds
from oral_lib.evaluation import fid, schema
from oral_lib.evaluation.evaluate import GROUPS, evaluate
from oral_lib.experiments.cells import Size, _base, _models, trials
from oral_lib.lora import distances, stacked
from oral_lib.lora.stacked import Stack
from oral_lib.models.latent_diffusion import LatentDiffusion
from oral_lib.progress import bar
from oral_lib.provenance import code_commit
from oral_lib.tasks import images
from oral_lib.tasks.rows import task_rows
from oral_lib.tasks.task import load_task
from oral_lib.zoo import store


@dataclass(frozen=True)
class StyleSettings:
    """How much of a cell is painted, and how."""

    most: int  # pictures of an adapter
    steps: int  # of DDIM
    guidance: float
    network: str  # whose features are compared where Inception is not there
    size: Size  # adapters of each method


CANVASES = {
    "smoke": StyleSettings(40, 5, 1.0, "tiny-convnet", Size(40, 40, 2, 1, draws=1)),
    "paper": StyleSettings(200, 50, 7.5, "efficientnet-lite0", Size(200, 200, 10, 4, 6, 5)),
}


def painted(
    base: LatentDiffusion,
    made: Sequence[dict[str, Tensor]],
    n: int,
    canvas: StyleSettings,
    label: str,
) -> list[Tensor]:
    """For each adapter its pictures uint8 [n, 3, pixels, pixels], several adapters at a time."""
    most, found = min(GROUPS[base.device.type], len(made)), []
    stack = Stack(made[0], most, base.device, next(base.model.parameters()).dtype)
    with stacked.attached(base.model, stack, base.spec.alpha / base.spec.rank) as unet:
        for first in bar(range(0, len(made), most), label=label, unit="stack"):
            chosen = list(made[first : first + most])
            stack.put(chosen + chosen[:1] * (most - len(chosen)))
            how = {"steps": canvas.steps, "guidance": canvas.guidance}
            found += base.paint(unet, n, groups=most, **how)[: len(chosen)]
    return found


def run_cell(
    task: str, base: str, seed: int, *, scale: str, source: str, root: Path, device: str = "cpu"
) -> tuple[pd.DataFrame, pd.DataFrame, dict | None]:
    """(metrics, no items, novelty) of one cell, from what `root` holds: as `protocol.run_cell`."""
    spec, canvas = load_task(task), CANVASES[scale]
    data, model = task_rows(spec, source), _base(base, source, 0, str(device))
    network = fid.network(canvas.network, source, device)
    models = _models(root, scales.generator_of(scale, seed), str(device))
    known = scales.members(scale, source, "style")
    members = [store.read(root, *m) for m in known if m[0] == base]
    known = scales.members(scale, source, "style", held_out=True)
    held_out = [store.read(root, *m) for m in known if m[:2] == (base, task)]
    n = min(canvas.most, len(data.test), len(data.train))
    held = data.test[:n]
    told = {"seed": seed, "source": source}
    asked = list(trials(spec, model, members, held_out, models, canvas.size, **told))
    unique = list({id(a): a for trial in asked for a in trial.adapters}.values())
    began = time.perf_counter()
    pictures = painted(model, unique, n, canvas, f"paint {base} {task} seed {seed}")
    likely = [outcome.likely for outcome in evaluate(model, spec, held, unique)]
    each = (time.perf_counter() - began) / len(unique)
    real, own = (
        network(images.decode([row.image for row in rows], model.pixels, "bicubic"))
        for rows in (held, data.train[:n])
    )
    found = {
        id(adapter): (network(shown), -error[:, 0])
        for adapter, shown, error in zip(unique, pictures, likely, strict=True)
    }
    about = {
        "experiment": "style", "family": spec.family, "task": task, "source": data.source,
        "base": base, "base_version": model.spec.version, "seed": seed, "n_items": n,
        "higher_is_better": False, "commit": code_commit(),
    }  # fmt: skip
    rows, draw = [], seeds.generator(seed, "resample")
    for trial in asked:
        seen = [found[id(adapter)] for adapter in trial.adapters]
        row = about | {"method": trial.method, "condition": trial.condition}
        row |= {"n_samples": len(seen), "wall_s": round(trial.seconds + each * len(seen), 3)}
        apart = [(fid.distance(x, real), fid.spread(x, real, draw)) for x, _ in seen]
        errors = torch.stack([error for _, error in seen]).mean(0)  # of each held-out picture
        stderr = (errors.std() / n**0.5).item()
        rows.append(row | _number(network.metric, *map(_mean, zip(*apart, strict=True))))
        rows.append(row | _number("denoising_error", errors.mean().item(), stderr))
        if trial.method == "base":
            floor = fid.distance(own, real), fid.spread(own, real, draw)
            rows.append(row | _number("frechet_floor", *floor))
    metrics = schema.check(pd.DataFrame(rows)[list(schema.COLUMNS)])
    nothing = schema.items_frame(pd.DataFrame(columns=list(schema.ITEM_COLUMNS)))
    if not held_out:
        return metrics, nothing, None
    own = [m.tensors for m in members if m.task == task]
    made = next(t.adapters for t in asked if (t.method, t.condition) == ("generated", "matched"))
    apart = [m.tensors for m in held_out]
    new = distances.novelty(made, own, apart, model.spec.alpha / model.spec.rank)
    counts = {"n_generated": len(made), "n_train": len(own), "n_held_out": len(apart)}
    cell = {name: about[name] for name in (*schema.CELL, "commit")}
    return metrics, nothing, cell | new._asdict() | counts | {"method": "generated"}


def _number(metric: str, value: float, stderr: float) -> dict:
    ends = {"ci_low": value - 1.96 * stderr, "ci_high": value + 1.96 * stderr}
    return {"metric": metric, "value": value, "stderr": stderr} | ends


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
