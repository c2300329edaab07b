"""Alignment: one two-tower base model from two released networks, trained once.

Both towers are locked (LiT, arXiv 2111.07991). Only a linear projection of each into a shared space
and the scale of the logits are trained, so that images and their texts become similar. Each step
reads a batch of distinct images, half of them mirrored, with one text of each. The features of the
locked towers are computed once; the training itself then takes seconds on a CPU.

The pairs are training rows of one task of the source. The model is stored in the cache with a
manifest of its recipe, losses, and the recall on validation rows before and after.

Letters: `m` images, `n` texts.
"""

import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from oral_lib import learning_rate, seeds, storage
from oral_lib.assets import sources
from oral_lib.assets.cache import cache_lock, require_space, write_manifest
from oral_lib.errors import OralError, UsageError
from oral_lib.models import contrastive, loading, registry, two_tower
from oral_lib.models.contrastive import Gallery
from oral_lib.models.registry import Alignment, BaseSpec
from oral_lib.models.two_tower import Towers
from oral_lib.progress import bar
from oral_lib.tasks.rows import Row, Split

SAVE_EVERY = 100  # steps between states from which an interrupted alignment resumes


def ensure(
    name: str,
    source: str = "packages",
    device: str | torch.device = "cpu",
    *,
    offline: bool = False,
) -> Path:
    """The folder of the two-tower model `name`, aligned on data of `source` if it is missing.

    An interrupted alignment resumes.

    Raises:
        UsageError: the model is not a two-tower model.
        PreflightError: a tower, rows or disk space are missing.
    """
    spec = registry.spec(name)
    if spec.alignment is None:
        names = [n for n, entry in registry.REGISTRY.items() if entry.alignment]
        raise UsageError(f"{name!r} has no two towers to align; {', '.join(names)} have.")

    def prepare() -> None:
        assets = [registry.spec(n).asset for n in (spec.alignment.image, spec.alignment.text)]
        sources.prepare([asset for asset in assets if asset], source=source, offline=offline)

    return loading.make_once(
        name, source, prepare, lambda folder: _make(spec, folder, source, device)
    )


def _make(spec: BaseSpec, folder: Path, source: str, device: str | torch.device) -> None:
    state = folder.with_name(f".{folder.name}.state.safetensors")
    recipe, data = spec.alignment, two_tower.alignment_rows(spec.alignment, source)
    options = {"source": source, "device": device, "dtype": torch.float32}
    image = loading.load(recipe.image, **options)
    text = loading.load(recipe.text, words=spec.family, **options)
    with cache_lock(), storage.replacing(folder) as temporary:
        require_space(4 * (image.weights + text.weights) >> 20)
        temporary.mkdir()
        two_tower.write_config(temporary, spec, image, text)
        base = two_tower.from_released(temporary, spec, image, text)
        about = align(base, data, state=state)
        storage.write_tensors(temporary / two_tower.WEIGHTS_FILE, base.model.clip.state_dict())
        about |= {
            "name": spec.name,
            "source": source.split(":")[0],
            "task": dict(recipe.pairs)[data.source],
        }
        write_manifest(temporary, about)
    state.unlink(missing_ok=True)


def align(base: Towers, data: Split, *, state: Path | None = None) -> dict:
    """Trains the projections of `base`, in place and in float32, on the training rows of `data`.

    Returns the report for the manifest: recipe, loss of each step, recall@k on the validation rows
    before and after, seconds. An interrupted alignment resumes from the file `state`. OralError
    when a loss is not finite.
    """
    recipe, clip, began = base.spec.alignment, base.model.clip, time.monotonic()
    gallery, validation = Gallery.of(data.train), Gallery.of(data.validation)
    saved = storage.read_tensors(state) if state and state.exists() else {}
    if not saved:
        saved = _features(base, data.train, gallery) | {
            f"unread.{n}": v for n, v in _features(base, data.validation, validation).items()
        }
        if state:
            storage.write_tensors(state, saved)
    names = [n for n in saved if n.split(".")[-1] in ("shown", "mirrored", "texts")]
    features = {n: saved[n].to(base.device) for n in names}
    before = _recall(base, features, validation)  # of the random projections
    parameters = {
        "image": clip.visual.head.proj.weight,
        "text": clip.text.proj.weight,
        "scale": clip.logit_scale,
    }
    losses = _train(recipe, features, gallery, parameters, saved, state, base.name)
    if not losses.isfinite().all():
        raise OralError(f"{base.name}: the loss of its alignment is not finite: lower the lr.")
    return {
        "recipe": asdict(recipe),
        "losses": [round(x, 5) for x in losses.tolist()],
        "pictures": len(gallery.images),
        "texts": len(gallery.texts),
        "recall_before": before,
        "recall_after": _recall(base, features, validation),
        "seconds": round(time.monotonic() - began, 2),
    }


def _features(base: Towers, rows: Sequence[Row], gallery: Gallery) -> dict[str, Tensor]:
    """The inputs of both projections, of all images, mirrored images and texts of `gallery`."""
    images, mirrored = base.pooled_images([rows[i] for i in gallery.images])
    texts = base.pooled_texts([rows[i].text for i in gallery.texts])
    return {"shown": images, "mirrored": mirrored, "texts": texts}


def _train(
    recipe: Alignment,
    features: dict[str, Tensor],
    gallery: Gallery,
    parameters: dict[str, nn.Parameter],
    saved: dict[str, Tensor],
    state: Path | None,
    name: str,
) -> Tensor:
    """[steps] losses; trains `parameters` in place, from the step in `saved` on if there is one."""
    device, weights = features["shown"].device, list(parameters.values())
    image_weight, text_weight, logit_scale = weights
    losses = torch.zeros(recipe.steps)
    optimizer = torch.optim.AdamW(
        [
            {"params": [weight.requires_grad_(True) for weight in weights[:2]]},
            {"params": [logit_scale.requires_grad_(True)], "weight_decay": 0.0},
        ],
        lr=recipe.lr,
        weight_decay=recipe.decay,
    )
    first = int(saved.get("step", 0))
    if first:
        losses[:first] = saved["losses"][:first]
        _restore(parameters, optimizer, saved)
    texts_of = gallery.matches.T.float()  # [m, n]
    labels = gallery.image_labels.to(device)
    warmup = max(1, round(recipe.warmup * recipe.steps))
    for step in bar(range(first, recipe.steps), label=f"align {name}", unit="step"):
        stream = seeds.generator(recipe.seed, "align", step)
        images = torch.randperm(len(texts_of), generator=stream)[: recipe.batch]
        texts = torch.multinomial(texts_of[images], 1, generator=stream)[:, 0]
        flip = (torch.rand(len(images), 1, generator=stream) < 0.5).to(device)
        keep_image, keep_text = (
            torch.rand(len(images), features[n].shape[1], generator=stream) >= recipe.dropout
            for n in ("shown", "texts")
        )
        images, texts = images.to(device), texts.to(device)
        inputs = torch.where(flip, features["mirrored"][images], features["shown"][images])
        v = F.normalize(inputs * keep_image.to(device) @ image_weight.T, dim=-1)
        u = F.normalize(features["texts"][texts] * keep_text.to(device) @ text_weight.T, dim=-1)
        loss = contrastive.contrastive(v, u, labels[images], logit_scale.exp()).mean()
        rate = learning_rate.linear(recipe.lr, step, steps=recipe.steps, warmup=warmup)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses[step] = loss.detach()
        done = step + 1
        if state and done % SAVE_EVERY == 0 and done < recipe.steps:
            progress = {"step": torch.tensor(done), "losses": losses}
            storage.write_tensors(state, features | _snapshot(parameters, optimizer) | progress)
    for weight in weights:
        weight.requires_grad_(False)
    return losses


def _snapshot(
    parameters: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer
) -> dict[str, Tensor]:
    """Parameters and their optimiser state by name."""
    moments = {
        f"{n}.{k}": v
        for n, weight in parameters.items()
        for k, v in optimizer.state[weight].items()
    }
    return parameters | moments


def _restore(
    parameters: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer, saved: dict[str, Tensor]
) -> None:
    """Writes what `_snapshot` returned back, in place."""
    with torch.no_grad():
        for n, weight in parameters.items():
            weight.copy_(saved[n])
            moments = {k: saved[f"{n}.{k}"].to(weight.device) for k in ("exp_avg", "exp_avg_sq")}
            optimizer.state[weight] = moments | {"step": saved[f"{n}.step"]}


@torch.no_grad()
def _recall(base: Towers, features: dict[str, Tensor], validation: Gallery) -> dict[str, float]:
    """Recall@k in both directions with the present projections, on the validation rows."""
    v = F.normalize(base.model.clip.visual.head(features["unread.shown"]), dim=-1)
    u = F.normalize(base.model.clip.text.proj(features["unread.texts"]), dim=-1)
    return contrastive.recalls(u @ v.T, validation.matches)
