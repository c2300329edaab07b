"""Where a result comes from: the commit of the code, the machine, the versions of the packages."""

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
    """The commit of this code, "-dirty" when tracked files differ.

    Outside git it is what $ORAL_COMMIT says, for copies that left .git behind, else "unknown".
    """
    here = Path(__file__).resolve()

    def git(*words: str) -> str:
        command = ["git", "-C", str(here.parent), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", here.name)  # or it lies installed in another repository
        # results/ is what a run writes: it must not make its own commit look dirty
        paths = ("--", ":/", ":(top,exclude)results")
        changed = git("status", "--porcelain", "--untracked-files=no", *paths)
        return git("rev-parse", "HEAD") + ("-dirty" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return os.environ.get("ORAL_COMMIT", "unknown")


def hardware() -> dict:
    """Processor, cores this process may use, memory and GPUs of this machine."""
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
    """Writes results_dir/manifest.json and returns it: one entry a source, others are kept.

    An entry holds seeds, assets (revisions and hashes), package versions, hardware, commit, date
    and whatever `more` names (the resolved configuration, the command).
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
