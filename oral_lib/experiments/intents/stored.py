"""Files of the zoo of intents and of the trained rivals, one folder a base model.

    zoo/<base>/<set>.safetensors     adapters [T, V] of the tasks of a set
    rivals/<base>/<name>.safetensors multi-task LoRAs and the regression on weights

Each file has a manifest, and the folder's manifest is written last. A file that is current is not
made again, so an interrupted run continues.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from torch import Tensor

from oral_lib import storage
from oral_lib.errors import PreflightError


def zoo_folder(root: Path, base: str, *, development: bool = False) -> Path:
    """The folder of the zoo of a base model in the run folder `root`."""
    return root / ("zoo-development" if development else "zoo") / base


def rivals_folder(root: Path, base: str, *, development: bool = False) -> Path:
    """The folder of the trained rivals on a base model in the run folder `root`."""
    return root / ("rivals-development" if development else "rivals") / base


def read_set(
    root: Path, base: str, name: str, *, development: bool = False
) -> tuple[list[str], Tensor, dict]:
    """(names of the tasks, values float32 [T, V], manifest) of a set of the zoo.

    PreflightError if it was not trained or its file is damaged.
    """
    tensors, info = read_file(zoo_folder(root, base, development=development), name)
    return info["tasks"], tensors["values"].float(), info


def read_rival(
    root: Path, base: str, name: str, *, development: bool = False
) -> tuple[dict[str, Tensor], dict]:
    """(tensors, manifest) of a trained rival. PreflightError if it is missing or damaged."""
    return read_file(rivals_folder(root, base, development=development), name)


def read_file(folder: Path, name: str) -> tuple[dict[str, Tensor], dict]:
    """(tensors, manifest) of a file. PreflightError if it is missing or damaged."""
    file, manifest = folder / f"{name}.safetensors", folder / f"{name}.json"
    if not manifest.exists():
        raise PreflightError(f"{folder} has no {name!r}: run ./reproduce.sh first.")
    info = storage.read_json(manifest)
    if storage.sha256(file) != info["sha256"]:
        raise PreflightError(f"{file} is damaged: its hash is not the one in {manifest.name}.")
    return storage.read_tensors(file), info


def _is_current(folder: Path, name: str, about: Mapping) -> bool:
    """Whether a file was made of what `about` says."""
    manifest = folder / f"{name}.json"
    return manifest.exists() and _json(about).items() <= storage.read_json(manifest).items()


def ensure(
    folder: Path, name: str, about: Mapping, make: Callable[[], tuple[Mapping, Mapping]]
) -> None:
    """Writes what `make` returns, (tensors, facts), unless the file is current."""
    if _is_current(folder, name, about):
        return
    (folder / f"{name}.json").unlink(missing_ok=True)  # written last
    (folder / "manifest.json").unlink(missing_ok=True)
    began = time.perf_counter()
    tensors, facts = make()
    file = folder / f"{name}.safetensors"
    storage.write_tensors(file, tensors)
    info = {"seconds": round(time.perf_counter() - began, 3), "sha256": storage.sha256(file)}
    storage.write_json(folder / f"{name}.json", {**_json(about), **facts, **info})


def finish(folder: Path, about: Mapping, names: Sequence[str]) -> Path:
    """Writes the manifest of a folder whose files are complete."""
    hashes = {name: storage.read_json(folder / f"{name}.json")["sha256"] for name in names}
    content = {**_json(about), "files": hashes}
    manifest = folder / "manifest.json"
    if not manifest.exists() or storage.read_json(manifest) != content:
        storage.write_json(manifest, content)
    return folder


def _json(about: Mapping) -> dict:
    """`about` as JSON reads it back: lists in place of tuples."""
    plain = lambda x: [*map(plain, x)] if isinstance(x, (list, tuple)) else x  # noqa: E731
    return {k: _json(v) if isinstance(v, Mapping) else plain(v) for k, v in about.items()}
