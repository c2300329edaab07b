"""The checks of `./reproduce.sh test`. Imports with the standard library only."""

import os
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from oral_lib.paths import ROOT
from oral_lib.storage import list_paths

CELL_SECONDS = 300  # limit of a notebook cell
HUB_OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
LINT_IMPORTS = "from importlinter.cli import lint_imports_command; lint_imports_command()"


class Step(NamedTuple):
    """One check: its name and the arguments of Python that run it."""

    name: str
    command: tuple[str, ...]


def steps(extra: Sequence[str] = (), offline: bool = False) -> list[Step]:
    """All checks in order.

    Args:
        extra: arguments of pytest; a path among them replaces the whole test suite.
        offline: fail instead of downloading.
    """
    pytest = ["-m", "pytest", "-n", "2", "--dist", "loadscope"]
    pytest += ["--nbval-lax", "--nbval-current-env", f"--nbval-cell-timeout={CELL_SECONDS}"]
    paths = [] if any(Path(word.split("::")[0]).exists() for word in extra) else ["tests"]
    if paths and list_paths(ROOT / "notebooks", "*.ipynb"):
        paths.append("notebooks")
    return [
        Step(
            "assets", ("-m", "oral_lib", "assets", "--tests", *(["--offline"] if offline else []))
        ),
        Step("ruff check", ("-m", "ruff", "check", ".")),
        Step("ruff format", ("-m", "ruff", "format", "--check", ".")),
        Step("import rules", ("-c", LINT_IMPORTS, "--no-cache", "--no-logo")),
        Step("twins", ("-m", "oral_lib", "twins", "--check")),
        Step("pytest and notebooks", (*pytest, *extra, *paths)),
    ]


def run_checks(checks: Sequence[Step], folder: Path = ROOT) -> list[str]:
    """The names of the checks that failed, after running all of them in `folder`.

    Only the step "assets" may use the network.
    """
    failed = []
    offline = HUB_OFFLINE | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    for step in checks:
        print(f"== {step.name}: python {shlex.join(step.command)}", flush=True)
        began = time.monotonic()
        # PYTEST_ADDOPTS of the user would select or drop tests
        environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
        environment |= {} if step.name == "assets" else offline
        code = subprocess.call([sys.executable, *step.command], cwd=folder, env=environment)
        if code:
            failed.append(step.name)
        verdict = f"FAILED (exit {code})" if code else "ok"
        print(f"== {step.name}: {verdict} in {time.monotonic() - began:.0f} s", flush=True)
    return failed
