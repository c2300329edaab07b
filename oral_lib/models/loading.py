"""Base models by name from any source, and where models that are trained here are stored.

Adding a model is one entry of `registry.py`.
"""

import hashlib
import importlib
import json
import shlex
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch

from oral_lib import storage
from oral_lib.assets import sources
from oral_lib.assets.cache import cache_dir, folder_fault, weights_hash
from oral_lib.devices import fast_dtype
from oral_lib.errors import PreflightError
from oral_lib.models import text
from oral_lib.models.base import BaseModel
from oral_lib.models.registry import BaseSpec, lineage, spec

MODULES = {  # of families other than text
    "vision": "vision",
    "multimodal": "two_tower",
    "vision-language": "vision_language",
    "diffusion": "latent_diffusion",
}


def load(
    name: str,
    *,
    source: str = "packages",
    labels: int = 2,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    words: str = "language",
) -> BaseModel:
    """The base model called `name`, frozen.

    Args:
        name: a name of the registry.
        source: where assets come from, such as "packages", "hub" or "local:DIR".
        labels: number of classes of an encoder's head.
        dtype: of the weights; default: the dtype that `device` computes fastest.
        words: family of tasks whose words the tokenizer of a tiny model contains.

    Raises:
        UsageError: there is no such name.
        PreflightError: weights are not available; the message says what to do. Versions and aligned
            models are never trained here.
        OralError: files are damaged or of another model.

    >>> load("tiny-encoder", source="made", labels=3).labels
    3
    """
    entry = spec(name)
    where = _folder(entry, source), device, dtype or fast_dtype(device)
    if entry.family in MODULES:  # imported when needed: timm, open_clip and diffusers are slow
        module = importlib.import_module(f"oral_lib.models.{MODULES[entry.family]}")
        return module.load(entry, *where)
    return text.load(entry, *where, labels=labels, family=words)


def _folder(entry: BaseSpec, source: str) -> Path | None:
    """The folder with the weights of `entry`; None for a tiny model with random weights."""
    if entry.parent or entry.alignment:
        return made_dir(entry.name, source)
    return entry.asset and sources.model_dir(entry.asset, source=source)


def made_dir(name: str, source: str = "packages") -> Path:
    """`version_dir`, checked. PreflightError, with the command that creates the model, if files are
    missing or damaged."""
    folder = version_dir(name, source)
    if sources.local_model(name, source) or not (fault := folder_fault(folder)):
        return folder
    command = ["python", "-m", "oral_lib", "align" if spec(name).alignment else "evolve"]
    command += ["--base", name]
    command += ["--source", source] if source not in ("packages", "made") else []
    what = fault if folder.is_dir() else f"{name} has not been created"
    raise PreflightError(f"{what}: run {shlex.join(command)} first.")


def version_dir(name: str, source: str = "packages") -> Path:
    """The folder of an evolved version or an aligned two-tower model: the user's own, or one in the
    cache. The cache key covers the recipe and all weights and pairs that the model is made from."""
    if folder := sources.local_model(name, source):
        return folder
    first, entry = lineage(name)[0], spec(name)
    if recipe := entry.alignment:
        from oral_lib.models import two_tower

        parts = [two_tower.digest(recipe, source)]
        parts += [_origin(spec(n), source, entry.family) for n in (recipe.image, recipe.text)]
        ingredients = [asdict(recipe), entry.pixels, *parts]
    else:
        ingredients = [asdict(entry.evolution), _origin(first, source)]
    key = hashlib.sha256(json.dumps(ingredients, sort_keys=True).encode()).hexdigest()[:10]
    return cache_dir() / "models" / f"{name}-{key}"


def _origin(entry: BaseSpec, source: str, words: str = "language") -> str:
    """A string that identifies the weights of a released model, or of a tiny random one."""
    if entry.asset is None:
        return " ".join(sorted(text.word_tokenizer(words).get_vocab()))
    return weights_hash(sources.model_dir(entry.asset, source=source))


def make_once(
    name: str, source: str, prepare: Callable[[], None], make: Callable[[Path], None]
) -> Path:
    """The folder of a model that is trained here, created if it is missing or damaged.

    Args:
        prepare: fetches what the training reads; not called for a user's own model.
        make: trains the model and stores it in the folder; called by one process at a time.
    """
    if folder := sources.local_model(name, source):
        return folder
    prepare()
    folder = version_dir(name, source)
    if not folder_fault(folder):
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    first = lineage(name)[0].name  # versions of one model share a lock
    with storage.file_lock(folder.parent / f".{folder.name.replace(name, first, 1)}.lock"):
        if folder_fault(folder):  # another process may have created it
            make(folder)
    return folder
