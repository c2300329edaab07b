"""Alignment: how two released networks become one two-tower base model, once.

Both towers are locked (LiT, arXiv 2111.07991): what is trained is a linear projection of each into
a shared space, and the scale of the logits, so that pictures and their texts come close. Each step
reads a batch of different pictures, half of them mirrored, with one text of each. Since the towers
stand still, their features are computed once; the training itself then takes seconds on a CPU.

The pairs are training rows of one task of the source. The model lies whole in the cache beside a
manifest with its recipe, losses, and the recall on validation rows before and after.
"""

import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
import torch.nn.functional as F
from filelock import FileLock
from torch import Tensor

from oral_lib import learning_rate, seeds, storage
from oral_lib.assets import sources
from oral_lib.assets.cache import cache_lock, folder_fault, require_space, write_manifest
from oral_lib.errors import OralError, UsageError
from oral_lib.models import contrastive, loading, registry, two_tower
from oral_lib.models.contrastive import Gallery
from oral_lib.models.registry import Alignment, BaseSpec
from oral_lib.models.two_tower import Towers
from oral_lib.progress import bar
from oral_lib.tasks.rows import Row, Split

SAVE_EVERY = 100  # steps between states that an interrupted alignment goes on from


def ensure(
    name: str,
    source: str = "packages",
    device: str | torch.device = "cpu",
    *,
    offline: bool = False,
) -> Path:
    """The folder of the two-tower model `name`, aligned from `source` if it is not there yet.

    Interrupted, it goes on where it was. UsageError for a model of another kind; PreflightError
    when a tower, rows or space are missing.
    """
    spec = registry.spec(name)
    if spec.alignment is None:
        known = [n for n, entry in registry.REGISTRY.items() if entry.alignment]
        raise UsageError(f"{name!r} has no two towers to align; {', '.join(known)} have.")
    if own := sources.local_model(name, source):
        return own
    wanted = [registry.spec(n).asset for n in (spec.alignment.image, spec.alignment.text)]
    sources.prepare([asset for asset in wanted if asset], source=source, offline=offline)
    folder = loading.version_dir(name, source)
    if not folder_fault(folder):
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    state = folder.with_name(f".{folder.name}.state.safetensors")
    with FileLock(folder.with_name(f".{folder.name}.lock")):
        if folder_fault(folder):  # nobody else made it meanwhile
            _make(spec, folder, source, device, state)
    return folder


def _make(
    spec: BaseSpec, folder: Path, source: str, device: str | torch.device, state: Path
) -> None:
    recipe, data = spec.alignment, two_tower.pairs(spec.alignment, source)
    loading = {"source": source, "device": device, "dtype": torch.float32}
    image = loading.load(recipe.image, **loading)
    text = loading.load(recipe.text, words=spec.family, **loading)
    with cache_lock(), storage.replacing(folder) as place:
        require_space(4 * (image.weights + text.weights) >> 20)
        place.mkdir()
        two_tower.write_config(place, spec, image, text)
        base = two_tower.joined(place, spec, image, text)
        about = align(base, data, state=state)
        storage.write_tensors(place / two_tower.WEIGHTS, base.model.clip.state_dict())
        about |= {
            "name": spec.name,
            "source": source.split(":")[0],
            "task": dict(recipe.pairs)[data.source],
        }
        write_manifest(place, about)
    state.unlink(missing_ok=True)


def align(base: Towers, data: Split, *, state: Path | None = None) -> dict:
    """Trains the projections of `base`, in place and in float32, on the training rows of `data`.

    Returns what there is to say of it: recipe, loss of each step, recall@k on the validation rows
    before and after, seconds. `state` is a file that an interrupted alignment goes on from.
    """
    recipe, clip, began = base.spec.alignment, base.model.clip, time.monotonic()
    gallery, unread = Gallery.of(data.train), Gallery.of(data.validation)
    held = storage.read_tensors(state) if state and state.exists() else {}
    if not held:
        held = _features(base, data.train, gallery) | {
            f"unread.{n}": v for n, v in _features(base, data.validation, unread).items()
        }
        if state:
            storage.write_tensors(state, held)
    kept = [n for n in held if n.split(".")[-1] in ("shown", "mirrored", "texts")]
    features = {n: held[n].to(base.device) for n in kept}
    before = _recall(base, features, unread)  # of the projections as they were drawn
    learned = {
        "image": clip.visual.head.proj.weight,
        "text": clip.text.proj.weight,
        "scale": clip.logit_scale,
    }
    losses = _train(recipe, features, gallery, learned, held, state, base.name)
    if not losses.isfinite().all():
        raise OralError(f"{base.name}: the loss of its alignment is not finite: lower the lr.")
    return {
        "recipe": asdict(recipe),
        "losses": [round(x, 5) for x in losses.tolist()],
        "pictures": len(gallery.pictures),
        "texts": len(gallery.texts),
        "recall_before": before,
        "recall_after": _recall(base, features, unread),
        "seconds": round(time.monotonic() - began, 2),
    }


def _features(base: Towers, rows: Sequence[Row], gallery: Gallery) -> dict[str, Tensor]:
    shown, mirrored = base.pooled_pictures([rows[i] for i in gallery.pictures])
    texts = base.pooled_texts([rows[i].text for i in gallery.texts])
    return {"shown": shown, "mirrored": mirrored, "texts": texts}


def _train(
    recipe: Alignment,
    features: dict[str, Tensor],
    gallery: Gallery,
    learned: dict[str, Tensor],
    held: dict[str, Tensor],
    state: Path | None,
    name: str,
) -> Tensor:
    """The loss of every step; `learned` moves in place, on from what `held` has of it."""
    device, parts = features["shown"].device, list(learned.values())
    losses = torch.zeros(recipe.steps)
    optimizer = torch.optim.AdamW(
        [
            {"params": [part.requires_grad_(True) for part in parts[:2]]},
            {"params": [parts[2].requires_grad_(True)], "weight_decay": 0.0},
        ],
        lr=recipe.lr,
        weight_decay=recipe.decay,
    )
    first = int(held.get("step", 0))
    if first:
        losses[:first] = held["losses"][:first]
        with torch.no_grad():
            for n, part in learned.items():
                part.copy_(held[n])
                moments = {k: held[f"{n}.{k}"].to(device) for k in ("exp_avg", "exp_avg_sq")}
                optimizer.state[part] = moments | {"step": held[f"{n}.step"]}
    of = gallery.belongs.T.float()  # [m, n] the texts of each picture
    own = gallery.owners.to(device)
    warmup = max(1, round(recipe.warmup * recipe.steps))
    for step in bar(range(first, recipe.steps), label=f"align {name}", unit="step"):
        draw = seeds.generator(recipe.seed, "align", step)
        chosen = torch.randperm(len(of), generator=draw)[: recipe.batch]
        told = torch.multinomial(of[chosen], 1, generator=draw)[:, 0]
        turned = (torch.rand(len(chosen), 1, generator=draw) < 0.5).to(device)
        kept = [
            (torch.rand(len(chosen), features[n].shape[1], generator=draw) >= recipe.dropout)
            for n in ("shown", "texts")
        ]
        chosen, told = chosen.to(device), told.to(device)
        seen = torch.where(turned, features["mirrored"][chosen], features["shown"][chosen])
        v, u = (
            F.normalize(side * keep.to(device) @ weight.T, dim=-1)
            for side, keep, weight in zip(
                (seen, features["texts"][told]), kept, parts, strict=False
            )
        )
        loss = contrastive.contrastive(v, u, own[chosen], parts[2].exp()).mean()
        rate = learning_rate.linear(recipe.lr, step, steps=recipe.steps, warmup=warmup)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses[step] = loss.detach()
        done = step + 1
        if state and done % SAVE_EVERY == 0 and done < recipe.steps:
            moved = {n: part for n, part in learned.items()}
            moved |= {f"{n}.{k}": v for n, part in learned.items()
                      for k, v in optimizer.state[part].items()}  # fmt: skip
            told = {"step": torch.tensor(done), "losses": losses}
            storage.write_tensors(state, features | moved | told)
    for part in parts:
        part.requires_grad_(False)
    return losses


@torch.no_grad()
def _recall(base: Towers, features: dict[str, Tensor], unread: Gallery) -> dict[str, float]:
    """Recall@k both ways of the base as it is, among all unread pictures and texts."""
    v = F.normalize(base.model.clip.visual.head(features["unread.shown"]), dim=-1)
    u = F.normalize(base.model.clip.text.proj(features["unread.texts"]), dim=-1)
    return contrastive.recalls(u @ v.T, unread.belongs)
