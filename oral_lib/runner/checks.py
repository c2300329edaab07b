"""The README's test command: every check of the project, each run to its end, then the verdict.

Imports with the standard library alone.
"""

import os
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from oral_lib.paths import ROOT

CELL_SECONDS = 300


class Step(NamedTuple):
    """One check: its name and the arguments of python that make it."""

    name: str
    command: tuple[str, ...]


def steps(extra: Sequence[str] = (), offline: bool = False) -> list[Step]:
    """All checks in order; `extra` goes to pytest, and a path in it replaces the whole suite."""
    pytest = ["-m", "pytest", "-n", "2", "--dist", "loadscope"]
    pytest += ["--nbval-lax", "--nbval-current-env", f"--nbval-cell-timeout={CELL_SECONDS}"]
    paths = [] if any(Path(word.split("::")[0]).exists() for word in extra) else ["tests"]
    if paths and any((ROOT / "notebooks").glob("*.ipynb")):
        paths.append("notebooks")
    return [
        Step(
            "assets", ("-m", "oral_lib", "assets", "--tests", *(["--offline"] if offline else []))
        ),
        Step("ruff check", ("-m", "ruff", "check", ".")),
        Step("ruff format", ("-m", "ruff", "format", "--check", ".")),
        Step("twins", ("-m", "oral_lib", "twins", "--check")),
        Step("pytest and notebooks", (*pytest, *extra, *paths)),
    ]


def run(todo: Sequence[Step], folder: Path = ROOT) -> list[str]:
    """Runs all of `todo` in `folder` and returns the names of those that failed.

    All but the assets run without network: the hub's libraries are told to stay offline.
    """
    failed = []
    quiet = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    quiet |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    for step in todo:
        print(f"== {step.name}: python {shlex.join(step.command)}", flush=True)
        began = time.monotonic()
        environment = os.environ if step.name == "assets" else {**os.environ, **quiet}
        code = subprocess.call([sys.executable, *step.command], cwd=folder, env=environment)
        if code:
            failed.append(step.name)
        how = f"FAILED (exit {code})" if code else "ok"
        print(f"== {step.name}: {how} in {time.monotonic() - began:.0f} s", flush=True)
    return failed
