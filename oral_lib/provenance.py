"""Origin of a result: commit of the code, machine, versions of the packages."""

import os
import platform
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from oral_lib import machine
from oral_lib.storage import read_json, write_json

PACKAGES = ["torch", "transformers", "peft", "datasets", "safetensors", "numpy", "pandas"]


def code_commit() -> str:
    """Commit of this code, with "-dirty" if tracked files differ.

    Where git does not answer: $ORAL_COMMIT if it is set, else "unknown".
    """
    return commit_and_fault()[0]


def commit_and_fault() -> tuple[str, str]:
    """(`code_commit`, what to do if it is unknown, else empty)."""
    here = Path(__file__).resolve()
    # a hook or script may have set these for another repository
    elsewhere = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE")
    variables = {key: x for key, x in os.environ.items() if key not in elsewhere}
    variables |= {"LC_ALL": "C", "GIT_OPTIONAL_LOCKS": "0"}

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(here.parent), "-c", "core.fileMode=false", *arguments]
        done = subprocess.run(
            command, env=variables, capture_output=True, text=True, errors="replace", check=True
        )
        return done.stdout.strip()

    try:
        git("ls-files", "--error-unmatch", here.name)  # fails if another repository contains it
        # a run writes results/: exclude it, or every run would mark its commit as dirty
        paths = ("--", ":/", ":(top,exclude)results")
        changed = git("status", "--porcelain", "--untracked-files=no", *paths)
        return git("rev-parse", "HEAD") + ("-dirty" if changed else ""), ""
    except OSError:
        remedy = "install git"
    except subprocess.CalledProcessError as error:
        remedy = "clone the repository"
        if "safe.directory" in error.stderr:  # the files belong to another user
            remedy = f"git config --global --add safe.directory {here.parents[1]}"
    commit = os.environ.get("ORAL_COMMIT")
    return (commit, "") if commit else ("unknown", f"{remedy}, or set ORAL_COMMIT to the commit")


def hardware() -> dict:
    """Processor, cores available to this process, memory and GPUs of this machine."""
    import torch

    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        cpu = names[0].split(":", 1)[1].strip() if names else cpu
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {"cpu": cpu, "cores": machine.cores(), "memory_gib": round(memory, 1), "gpu": gpus}


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
