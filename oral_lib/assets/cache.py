"""The cache of models and data sets: its folder and lock, and the manifest of each entry."""

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from oral_lib import storage
from oral_lib.checkpoints.folders import weight_files
from oral_lib.errors import OralError, PreflightError
from oral_lib.paths import full

MANIFEST = "manifest.json"


def cache_dir() -> Path:
    """Folder of the cache: $ORAL_CACHE, else $XDG_CACHE_HOME/oral, else ~/.cache/oral."""
    if folder := os.environ.get("ORAL_CACHE"):
        return full(folder)
    return full(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "oral"


@contextmanager
def cache_lock() -> Iterator[None]:
    """Holds the lock of the cache; prints a line if it has to wait for another process.

    The cache is written under this lock only. Unfinished folders that exist when the lock is
    acquired were left by a killed process and are removed.
    """
    folder = cache_dir()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PreflightError(
            f"Cannot write to the cache {folder} ({error.strerror}). "
            "Make it writable or set ORAL_CACHE to another folder."
        ) from error
    waiting = f"Another process writes to {folder}; waiting for it."
    with storage.file_lock(folder / "prepare.lock", waiting):
        for unfinished in folder.glob("*/.*.tmp"):
            shutil.rmtree(unfinished, ignore_errors=True)
        yield


def require_space(megabytes: int) -> None:
    """Raises PreflightError unless the cache's disk has `megabytes` free."""
    free = shutil.disk_usage(cache_dir()).free >> 20
    if free < megabytes:
        raise PreflightError(
            f"Not enough space in {cache_dir()}: {megabytes} MB required, {free} MB free. "
            "Free some space or set ORAL_CACHE to another folder."
        )


def folder_fault(folder: Path) -> str | None:
    """What is wrong with a folder that has a manifest of `write_manifest`, or None."""
    try:
        files = _manifest_files(folder)
    except OralError:
        return f"{folder / MANIFEST} is missing or damaged"
    for file, size, digest in files:
        if not file.is_file():
            return f"{file} is missing"
        state = file.stat()
        try:
            if state.st_size != size or _sha256(file, size, state.st_mtime_ns) != digest:
                return f"{file} is damaged"
        except OralError as error:  # it cannot be read
            return str(error).removesuffix(".")
    return None


def _manifest_files(folder: Path) -> list[tuple[Path, int, str]]:
    """(file, size, sha256) of each file in the manifest of `folder`; OralError for a manifest of
    another form."""
    content = storage.read_json(folder / MANIFEST)
    files = content.get("files") if isinstance(content, dict) else None
    if (
        not isinstance(files, dict)
        or not files
        or not all(
            isinstance(entry, dict) and {"size", "sha256"} <= entry.keys()
            for entry in files.values()
        )
    ):
        raise OralError(f"{folder / MANIFEST} does not list files with size and sha256.")
    return [(folder / storage.safe_name(n), f["size"], f["sha256"]) for n, f in files.items()]


def write_manifest(folder: Path, about: dict) -> None:
    """Writes manifest.json of a complete folder: `about`, and size and hash of every file."""
    for file in storage.list_paths(folder):
        file.chmod(0o644)  # a cache may be shared, and safetensors writes private files
    files = {
        file.name: {"size": file.stat().st_size, "sha256": storage.sha256(file)}
        for file in storage.list_paths(folder)
    }
    storage.write_json(folder / MANIFEST, about | {"files": files})


def weights_hash(folder: Path) -> str:
    """SHA-256 over the hashes of the safetensors files with a model's weights (`weight_files`).

    Raises PreflightError if there is no such file.
    """
    states = [(file, file.stat()) for file in weight_files(folder)]
    if not states:
        raise PreflightError(f"{folder} has no *.safetensors file: copy the weights there.")
    hashes = [_sha256(file, state.st_size, state.st_mtime_ns) for file, state in states]
    return hashlib.sha256(" ".join(hashes).encode()).hexdigest()


@cache
def _sha256(path: Path, size: int, mtime: int) -> str:
    """Hash of a file, computed once a process for each state of it: 0.5 s for the largest."""
    return storage.sha256(path)
