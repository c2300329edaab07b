"""Origin of a result: commit of the code, machine, versions of the packages."""

import os
import platform
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from oral_lib.storage import read_json, write_json

PACKAGES = ["torch", "transformers", "peft", "datasets", "safetensors", "numpy", "pandas"]


def code_commit() -> str:
    """Commit of this code, with "-dirty" if tracked files differ.

    Without a git repository: $ORAL_COMMIT if it is set, else "unknown".
    """
    here = Path(__file__).resolve()

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(here.parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", here.name)  # fails if another repository contains it
        # a run writes results/: exclude it, or every run would mark its commit as dirty
        paths = ("--", ":/", ":(top,exclude)results")
        changed = git("status", "--porcelain", "--untracked-files=no", *paths)
        return git("rev-parse", "HEAD") + ("-dirty" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return os.environ.get("ORAL_COMMIT", "unknown")


def hardware() -> dict:
    """Processor, cores available to this process, memory and GPUs of this machine."""
    import torch

    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        cpu = names[0].split(":", 1)[1].strip() if names else cpu
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {"cpu": cpu, "cores": cores, "memory_gib": round(memory, 1), "gpu": gpus}


def manifest(
    results_dir: str | Path, *, source: str, seeds: Mapping, assets: Mapping, **more
) -> dict:
    """Content of results_dir/manifest.json after the entry of `source` is written.

    The entries of other sources are kept.

    Args:
        results_dir: folder of the manifest.
        source: source of models and data.
        seeds: seeds of the run.
        assets: origin and hashes by asset.
        more: further values, such as the resolved configuration and the command.
    """
    path = Path(results_dir) / "manifest.json"
    content = read_json(path) if path.exists() else {}
    content[source] = {
        "assets": dict(assets),
        "commit": code_commit(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "hardware": hardware(),
        "seeds": dict(seeds),
        "versions": {"python": platform.python_version()} | {n: _version(n) for n in PACKAGES},
    } | more
    write_json(path, content)
    return content


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
