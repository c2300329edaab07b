"""Evolving base models: versions t = 1, 2, ... of a released model (t = 0), each trained further.

    W_t = W_(t-1) after `Evolution.steps` steps of AdamW on the next stretch of text

All weights are trained, in float32, on text without test rows of any task: versions differ in
their weights, while tasks stay the same. The cache stores all weights of each version, with a
manifest of its recipe, its drift |W_t - W_0| / |W_0| and its perplexity on held-out text. Machines
differ in rounding, so a version is trained once and then only read.
"""

import math
import time
from dataclasses import asdict
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from oral_lib import devices, learning_rate, seeds, storage
from oral_lib.assets import sources
from oral_lib.assets.cache import MANIFEST, cache_lock, folder_fault, require_space, write_manifest
from oral_lib.checkpoints.hugging_face import quiet
from oral_lib.errors import OralError, UsageError
from oral_lib.models import loading, registry
from oral_lib.models.base import BaseModel
from oral_lib.models.registry import BaseSpec, Evolution, lineage
from oral_lib.progress import bar
from oral_lib.tasks.rows import task_rows
from oral_lib.tasks.task import valid_tasks

MADE_TEXTS = 200  # made-up texts of each task


def ensure(
    name: str,
    source: str = "packages",
    device: str | torch.device = "cpu",
    *,
    offline: bool = False,
) -> Path:
    """The folder of version `name`, trained with all earlier versions that are missing.

    After an interruption, training resumes behind the last finished version.

    Raises:
        UsageError: the model is not a version of another.
        PreflightError: the model, text or disk space is missing.
    """
    first, *versions = lineage(name)
    if not versions:
        names = [n for n, entry in registry.REGISTRY.items() if entry.parent]
        raise UsageError(f"{name!r} is a released model; versions are {', '.join(names)}.")

    def prepare() -> None:
        sources.prepare([t for t in versions[-1].evolution.texts if t != "made"], offline=offline)
        if first.asset:
            sources.prepare([first.asset], source=source, offline=offline)

    return loading.make_once(name, source, prepare, lambda _: _chain(versions, source, device))


def _chain(versions: list[BaseSpec], source: str, device: str | torch.device) -> None:
    """Trains and stores all missing versions of `versions`, oldest first."""
    start, before = None, None
    for entry in versions:
        folder = loading.version_dir(entry.name, source)
        if not folder_fault(folder):
            before = None  # the perplexity of this version is not at hand
            continue
        if start is None:
            first = loading.load(versions[0].parent, source=source, dtype=torch.float32)
            start = _weights(first)
        # loaded each time, so that an interrupted chain gives the same versions
        base = loading.load(entry.parent, source=source, device=device, dtype=torch.float32)
        about = evolve(base, entry.version, start=start, before=before)
        before = about["perplexity_after"]
        about |= {"name": entry.name, "source": source.split(":")[0], "device": _device(device)}
        with cache_lock():
            require_space(sum(w.nbytes for w in start.values()) >> 20)
            with storage.replacing(folder) as temporary:
                temporary.mkdir()
                with quiet():
                    base.model.save_pretrained(temporary)
                base.tokenizer.save_pretrained(temporary)
                write_manifest(temporary, about)


def evolve(
    base: BaseModel,
    version: str,
    *,
    start: dict[str, Tensor] | None = None,
    before: float | None = None,
) -> dict:
    """Trains `base`, in place, from the version before `version` to `version`.

    Args:
        base: the version before, in float32.
        start: weights of version t = 0 by name, for the drift; default: the weights of `base`.
        before: perplexity of `base` on held-out text, if it was computed before.

    Returns:
        The report for the manifest: recipe, loss of each step, perplexity on held-out text before
        and after, drift from `start`, seconds.

    Raises:
        UsageError: `version` does not follow `base`, or `base` is not in float32.
        OralError: the perplexity after training is not finite.
    """
    entry = _version(base, version)
    recipe, t = entry.evolution, int(entry.version.removeprefix("t"))
    rows = packed(base.tokenizer, recipe)
    held_out, stretch_rows = rows[: recipe.held_out], stretch(rows, recipe, t)
    start = _weights(base) if start is None else start
    began = time.monotonic()
    before = perplexity(base.model, held_out) if before is None else before
    losses = train_version(base.model, stretch_rows, recipe, label=f"evolve {entry.name}")
    after = perplexity(base.model, held_out)
    if not math.isfinite(after):
        raise OralError(f"{entry.name} has perplexity {after} after its training: lower the lr.")
    base.spec, base.model.name_or_path = entry, entry.hub
    return {
        "recipe": asdict(recipe),
        "version": version,
        "parent": entry.parent,
        "losses": losses,
        "perplexity_before": before,
        "perplexity_after": after,
        "relative_change": drift(base.model, start),
        "seconds": time.monotonic() - began,
    }


def history(name: str, source: str = "packages") -> list[dict]:
    """The manifests of the versions that lead to `name`, oldest first; none for a user's own model.
    PreflightError unless all versions have been created."""
    if sources.local_model(name, source):
        return []
    folders = [loading.made_dir(entry.name, source) for entry in lineage(name)[1:]]
    return [storage.read_json(folder / MANIFEST) for folder in folders]


def texts(recipe: Evolution) -> list[str]:
    """All texts of the recipe, in an order set by its seed."""
    in_order = [
        text
        for name in recipe.texts
        for text in (_made_texts() if name == "made" else sources.package_rows(name)["text"])
    ]
    order = torch.randperm(len(in_order), generator=seeds.generator(recipe.seed, "evolve", "texts"))
    return [in_order[i] for i in order]


@cache
def _made_texts() -> tuple[str, ...]:
    return tuple(
        row.text for task in valid_tasks() for row in task_rows(task, "made").train[:MADE_TEXTS]
    )


def packed(tokenizer, recipe: Evolution) -> Tensor:
    """[n, length] token ids: all texts, separated by the end-of-text token, cut into rows."""
    end = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.pad_token_id
    sequences = tokenizer(texts(recipe), add_special_tokens=False).input_ids
    flat = torch.tensor([i for ids in sequences for i in (*ids, end)])
    n = len(flat) // recipe.length
    if n <= recipe.held_out:
        raise UsageError(
            f"the text has {n} rows, and {recipe.held_out} of them are held out: use more text."
        )
    return flat[: n * recipe.length].view(n, recipe.length)


def stretch(rows: Tensor, recipe: Evolution, t: int) -> Tensor:
    """[steps * batch, length] training rows of version t: the t-th stretch after the held-out rows.
    After the end of the text, the first rows follow again."""
    rows, n = rows[recipe.held_out :], recipe.steps * recipe.batch
    return rows[(torch.arange(n) + (t - 1) * n) % len(rows)]


def train_version(model: nn.Module, rows: Tensor, recipe: Evolution, *, label: str) -> list[float]:
    """Trains all weights of `model`, in place, on `rows` in order. Returns the loss of each step.

    Weights and AdamW's moments are float32; products are bfloat16 if the device supports it.
    """
    device = next(model.parameters()).device
    optimizer = torch.optim.AdamW(
        model.requires_grad_(True).parameters(), lr=recipe.lr, betas=(0.9, 0.95), weight_decay=0.0
    )
    warmup = max(1, round(recipe.warmup * recipe.steps))
    losses = torch.zeros(recipe.steps, device=device)
    for step in bar(range(recipe.steps), label=label, unit="step"):
        rate = learning_rate.linear(recipe.lr, step, steps=recipe.steps, warmup=warmup)
        optimizer.param_groups[0]["lr"] = rate
        ids = rows[step * recipe.batch : (step + 1) * recipe.batch].to(device)
        loss = _loss(model, ids)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
        optimizer.step()
        losses[step] = loss.detach()  # copied at the end, so that the host does not wait for a GPU
    model.requires_grad_(False)
    return losses.tolist()


@torch.no_grad()
def perplexity(model: nn.Module, rows: Tensor, batch: int = 8) -> float:
    """exp of the mean loss per token of `rows` [n, length]."""
    device = next(model.parameters()).device
    losses = [_loss(model, part.to(device)) * len(part) for part in rows.split(batch)]
    return (torch.stack(losses).sum() / len(rows)).exp().item()


def drift(model: nn.Module, start: dict[str, Tensor]) -> float:
    """|W - W_0| / |W_0| over all weights; tied weights count once."""
    change = norm = 0.0
    for name, weight in model.named_parameters():
        initial = start[name].to(weight.device)
        change += (weight.detach() - initial).double().square().sum().item()
        norm += initial.double().square().sum().item()
    return math.sqrt(change / norm)


def _weights(base: BaseModel) -> dict[str, Tensor]:
    return {n: w.detach().cpu().clone() for n, w in base.model.named_parameters()}


def _loss(model: nn.Module, ids: Tensor) -> Tensor:
    """The mean negative log-likelihood of each next token of `ids` [b, length]."""
    half = devices.fast_dtype(ids.device) == torch.bfloat16
    with torch.autocast(ids.device.type, torch.bfloat16, enabled=half):
        logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
    return F.cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten())


def _version(base: BaseModel, version: str) -> BaseSpec:
    """The entry that follows `base`; UsageError unless it is `version`."""
    after = {e.version: e for e in registry.REGISTRY.values() if e.parent == base.name}
    if version not in after:
        raise UsageError(
            f"{base.name} is followed by {', '.join(after) or 'no version'}, not by {version!r}."
        )
    if next(base.model.parameters()).dtype != torch.float32:
        raise UsageError(f"{base.name} must be loaded in float32 to be trained further.")
    return after[version]


def _device(device: str | torch.device) -> str:
    kind = torch.device(device).type
    name = torch.cuda.get_device_name(device) if kind == "cuda" else kind
    return f"{name}, {devices.fast_dtype(device)}".replace("torch.", "")
