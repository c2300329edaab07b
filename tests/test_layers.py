"""Data flows one way: a module imports only from modules to its left."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "oral_lib"
ORDER = [
    *["torchvision_guard", "errors", "seeds", "progress", "replay", "storage", "provenance"],
    *["corpora", "packages", "assets"],
    *["images", "splits", "partition", "tasks", "registry", "matching"],
    *["basemodel", "vision", "towers"],
    "vision_language",
    *["latent_diffusion", "tiny_diffusion"],
    *["bases", "alignment", "evolve", "scoring"],
    *["stacked", "evaluate"],
    *["feed", "recipes", "zoo", "tuning"],
    *["tokens", "statistics", "mixture", "known", "gauge"],
    *["condition", "recurrence", "denoise", "schedule"],
    *["generator", "shelf", "training"],
    "adapters",
    *["baselines", "probe", "frechet", "stats"],
    *["graph", "scales", "plan"],
    *["contract", "results", "ledgers", "protocol", "painting", "unseen", "benchmarks"],
    *["contrasts", "markup", "tables", "grid"],
    *["verdict", "style", "figures", "panels", "studies", "pictures", "examples", "report"],
    *["run", "variants", "jury", "ablations", "prompting"],
    *["lock", "doctor", "worker", "environment", "engine", "checks", "twins", "notebooks"],
    *["reproduce", "sweeps", "cli"],
]
STANDARD_LIBRARY_ALONE = ["reproduce", "cli", "worker", "plan", "environment"]


def imported(path: Path) -> set[str]:
    """The modules of the package that `path` imports, at its top or inside a function."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {n.name.split(".")[1] for n in node.names if n.name.startswith("oral_lib.")}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name} imports relatively"
            if node.module == "oral_lib":
                found |= {name.name for name in node.names}
            elif (node.module or "").startswith("oral_lib."):
                found.add(node.module.split(".")[1])
    return found


def test_every_module_has_its_place_in_the_order():
    there = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__", "__main__"}
    assert there - set(ORDER) == set()


def test_a_module_imports_only_from_its_left():
    wrong = [
        f"{name} imports {other}"
        for place, name in enumerate(ORDER)
        if (PACKAGE / f"{name}.py").exists()
        for other in sorted(imported(PACKAGE / f"{name}.py"))
        if other not in ORDER[:place]
    ]
    assert wrong == []


@pytest.mark.parametrize("name", STANDARD_LIBRARY_ALONE)
def test_what_sets_up_needs_no_package(name):
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE.parent)}
    words = [sys.executable, "-S", "-c", f"import oral_lib.{name}"]  # -S: no site-packages
    done = subprocess.run(words, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
