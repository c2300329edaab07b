"""The rooms of the package: what needs no package, how many modules a folder has, no re-exports.

Which room may import which is the contract of import-linter in pyproject.toml.
"""

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from oral_lib.runner import checks
from oral_lib.storage import list_paths

PACKAGE = Path(__file__).resolve().parent.parent / "oral_lib"
FILES = list_paths(PACKAGE, "**/*.py")
STANDARD_LIBRARY_ONLY = [
    *(f"runner.{path.stem}" for path in list_paths(PACKAGE / "runner", "*.py")),
    *(
        "workflow.cli",
        "workflow.options",
        "workflow.outcome",
        "workflow.plan",
        "workflow.reproduce",
    ),
    *("experiments.records", "planning.parts", "planning.tables", "scales", "paths"),
]
MODULES = 12  # of a folder
[IMPORT_RULES] = [step for step in checks.steps() if step.name == "import rules"]


def python(*arguments: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE.parent)}
    command = [sys.executable, *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment)


@pytest.mark.parametrize("name", STANDARD_LIBRARY_ONLY)
def test_what_sets_up_needs_no_package(name):
    done = python(
        "-S", "-c", f"import oral_lib.{name.removesuffix('.__init__')}"
    )  # -S: no packages
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("words", "limit"),
    [
        (("-c", "import oral_lib"), 0.3),
        (("-m", "oral_lib", "--help"), 0.3),
        (("-m", "oral_lib", "--version"), 0.3),
        (("-m", "oral_lib", "bases"), 0.4),
        (("-m", "oral_lib", "tasks"), 0.6),  # reads and checks all task files
    ],
)
def test_the_library_its_help_and_its_lists_start_at_once(words, limit):
    measure = "import resource; print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime)"
    run = f"import subprocess, sys; subprocess.run([sys.executable, *{words!r}], stdout=-3)"
    done = python("-c", f"{run}; {measure}")
    # seconds of computing on a fast machine; slow or busy ones take up to four times as many
    assert float(done.stdout) < 4 * limit, done


@pytest.mark.parametrize("command", ["bases", "tasks"])
def test_the_lists_import_no_torch(command):
    code = f"import sys; from oral_lib.workflow import cli; cli.main([{command!r}]); "
    done = python("-c", f"{code}sys.exit('torch' in sys.modules or 'pandas' in sys.modules)")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("folder", sorted({path.parent for path in FILES}), ids=lambda f: f.name)
def test_a_folder_holds_few_modules(folder):
    modules = [path.stem for path in list_paths(folder, "*.py") if not path.stem.startswith("__")]
    assert len(modules) <= MODULES, modules


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_module_imports_a_name_for_others(path):
    text = path.read_text("utf-8")
    assert "F401" not in text
    if path.name == "__init__.py" and path.parent.name not in ("oral_lib", "method", "lora"):
        [only] = ast.parse(text).body
        assert isinstance(only, ast.Expr), "a docstring and nothing else"


def test_the_import_rules_of_the_test_command_refuse_an_import_upwards(tmp_path):
    shutil.copytree(PACKAGE, tmp_path / "oral_lib", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(PACKAGE.parent / "pyproject.toml", tmp_path)
    with (tmp_path / "oral_lib" / "method" / "diffusion.py").open("a") as file:
        file.write("\n\nimport pandas\nfrom oral_lib.zoo import store\n")
    command = [sys.executable, *IMPORT_RULES.command]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1
    assert "oral_lib.method is not allowed to import oral_lib.zoo" in done.stdout
    assert "oral_lib.method is not allowed to import pandas" in done.stdout


def defined(source: str) -> set[str]:
    """The public names that a module defines at its top level: functions, classes, constants."""
    names = set()
    for node in ast.parse(source).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {n.id for t in targets for n in ast.walk(t) if isinstance(n, ast.Name)}
    return {name for name in names if not name.startswith("_")}


SEVERAL_MODULES = {  # name -> why several modules define it
    "ensure": "one for each kind of base model that is derived from others; called by its module",
    "load": "lora.load reads an adapter; of base models one a family, which loading.load selects",
    "main": "the entry point of a command",
    "preset": "one an experiment, which its record names",
    "pretrained": "oral_lib.pretrained reads a generator, hugging_face.pretrained a base model",
    "read": "results.read and store.read; called by their modules",
    "run_cell": "one an experiment, which its record names",
    "yes_logits": "logit of yes minus that of no: of adapters on messages, of heads on images",
    "train": "method.train trains a generator, training.train the zoo",
}


def test_a_public_name_has_one_meaning():
    modules: dict[str, list[str]] = {}
    for path in FILES:
        for name in defined(path.read_text("utf-8")):
            modules.setdefault(name, []).append(str(path.relative_to(PACKAGE)))
    several = {name: places for name, places in modules.items() if len(places) > 1}
    assert {name: several[name] for name in several.keys() - SEVERAL_MODULES.keys()} == {}
    assert SEVERAL_MODULES.keys() <= several.keys(), "a reason for a name that is defined once"
