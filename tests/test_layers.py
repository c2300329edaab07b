"""What sets up needs the standard library alone."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "oral_lib"
STANDARD_LIBRARY_ALONE = [
    "workflow.reproduce",
    "workflow.cli",
    "runner.worker",
    "workflow.plan",
    "runner.environment",
    "scales",
    "paths",
]


@pytest.mark.parametrize("name", STANDARD_LIBRARY_ALONE)
def test_what_sets_up_needs_no_package(name):
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE.parent)}
    words = [sys.executable, "-S", "-c", f"import oral_lib.{name}"]  # -S: no site-packages
    done = subprocess.run(words, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
