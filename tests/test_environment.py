"""One environment, said once: pyproject, the locks and environment.yml agree with what runs."""

import ast
import csv
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import oral_lib
from oral_lib import torchvision_guard
from oral_lib.assets.packages import ASSETS

ROOT = Path(__file__).parents[1]
LOCKS = ["lock-cpu.txt", "lock-gpu.txt"]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
DECLARED = PROJECT["dependencies"] + PROJECT["optional-dependencies"]["dev"]


def lines(lock: str) -> list[str]:
    text = (ROOT / "env" / lock).read_text("utf-8")
    return [line for line in text.splitlines() if not line.startswith("#")]


def pins(lock: str) -> dict[str, str]:
    return {canonicalize_name(line.split("==")[0]): line.split("==")[1] for line in lines(lock)}


def run(*arguments: str) -> subprocess.CompletedProcess:
    """Runs this Python from the root, with the library importable."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


# --- the files -----------------------------------------------------------------------------------


@pytest.mark.parametrize("lock", LOCKS)
def test_a_lock_has_one_plain_pin_a_line(lock):
    for line in lines(lock):
        assert re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][0-9a-z.]*", line), line
    assert len(pins(lock)) == len(lines(lock)) > 100
    names = [canonicalize_name(line.split("==")[0]) for line in lines(lock)]
    assert names == sorted(names)


@pytest.mark.parametrize("lock", LOCKS)
@pytest.mark.parametrize("declared", DECLARED)
def test_every_declared_dependency_is_pinned_within_its_range(lock, declared):
    requirement = Requirement(declared)
    assert Version(pins(lock)[canonicalize_name(requirement.name)]) in requirement.specifier


@pytest.mark.parametrize("lock", LOCKS)
def test_torch_and_torchvision_are_pinned_together_and_cuda_kernels_are_not(lock):
    pinned = pins(lock)
    assert {"torch", "torchvision"} <= set(pinned)
    assert not {"mamba-ssm", "causal-conv1d", "pip"} & set(pinned)
    # torchvision x.y goes with one torch only
    pairs = {("2.13.0", "0.28.0"), ("2.11.0", "0.26.0")}
    assert (pinned["torch"], pinned["torchvision"]) in pairs


def test_conda_brings_only_python_and_pip_and_pip_brings_the_lock():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text("utf-8"))
    assert environment["dependencies"] == ["python=3.11", "pip", {"pip": ["-r env/lock-cpu.txt"]}]
    assert environment["channels"] == ["conda-forge"]
    assert "3.11" in Requirement("python" + PROJECT["requires-python"]).specifier


def test_the_readme_of_the_environments_names_each_of_them():
    text = (ROOT / "env" / "README.md").read_text("utf-8")
    assert all(name in text for name in [*LOCKS, "environment.yml", "no conda channel"])


def imported(file: Path) -> set[str]:
    """The top-level names of the modules that a Python file imports anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("folder", ["oral_lib", "tests"])
def test_every_package_that_is_imported_is_declared(folder):
    called = {"yaml": "pyyaml", "sklearn": "scikit-learn", "open_clip": "open-clip-torch"}
    called |= {"PIL": "pillow", "markdown_it": "markdown-it-py"}
    extras = [text for name in ("kernels", "diffusion") for text in
              PROJECT["optional-dependencies"][name]]  # fmt: skip
    known = {canonicalize_name(Requirement(text).name) for text in DECLARED + extras}
    files = list((ROOT / folder).rglob("*.py"))
    ours = {"oral_lib", "tests"} | {file.stem for file in files}
    ours |= {"lm_eval", "atheris"}  # a wheel never installed; by hand only (tests/fuzz/guided.py)
    foreign = set().union(*map(imported, files)) - sys.stdlib_module_names - ours
    assert {canonicalize_name(called.get(name, name)) for name in foreign} <= known


# --- licences and vulnerabilities -----------------------------------------------------------------


def licences() -> list[dict[str, str]]:
    with (ROOT / "env" / "licences.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_every_locked_package_model_and_data_set_has_a_licence():
    table = {row["name"]: row for row in licences()}
    named = {canonicalize_name(name) for name, row in table.items() if row["kind"] == "package"}
    assert named == set().union(*map(pins, LOCKS))
    assert {name for name, row in table.items() if row["kind"] != "package"} == set(ASSETS)
    for name, asset in ASSETS.items():
        assert table[name]["licence"] == asset.licence
    for row in licences():
        assert row["licence"].strip() not in ("", "not stated", "UNKNOWN"), row
        assert len(row["licence"]) < 120, row


def test_the_licences_are_those_that_the_packages_state(tmp_path):
    if check().differences((ROOT / "env" / "lock-cpu.txt").read_text("utf-8")):
        pytest.skip("other versions than those of the CPU lock may state a licence differently")
    shutil.copytree(ROOT / "env", tmp_path / "env")
    shutil.copytree(ROOT / "oral_lib" / "assets", tmp_path / "oral_lib" / "assets")
    done = run(str(tmp_path / "env" / "licences.py"))
    assert done.returncode == 0, done.stderr
    written = (tmp_path / "env" / "licences.csv").read_text("utf-8")
    assert written == (ROOT / "env" / "licences.csv").read_text("utf-8")
    (tmp_path / "env" / "lock-cpu.txt").write_text("no-such-package==1\n")
    done = run(str(tmp_path / "env" / "licences.py"))
    assert done.returncode == 1 and "unknown: no-such-package" in done.stderr


def test_the_audit_reads_both_locks_and_lets_no_unknown_package_pass():
    script = (ROOT / "env" / "audit.sh").read_text("utf-8")
    assert "lock-*.txt" in script and "pip-audit" in script and "--strict" in script
    assert "env/audit.sh" in (ROOT / "env" / "README.md").read_text("utf-8")


# --- the check that reproduce.sh asks -------------------------------------------------------------


def check():
    spec = importlib.util.spec_from_file_location("environment_check", ROOT / "env" / "check.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_environment_that_runs_fits_a_lock():
    answers = [run("env/check.py", f"env/{lock}") for lock in LOCKS]
    assert 0 in [answer.returncode for answer in answers], [answer.stdout for answer in answers]


def test_the_check_needs_nothing_installed_and_says_little():
    answer = run("-I", "-S", "env/check.py")
    assert answer.returncode == 1 and answer.stderr == ""
    told = answer.stdout.splitlines()
    assert len(told) == 5 and "is not installed" in told[0] and "in all" in told[-1]


def test_the_check_sees_files_that_are_gone_or_of_another_size(tmp_path):
    about = tmp_path / "small-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: small\nVersion: 1.0\n")
    lines = ["small.py,sha256=x,4", '"a, b.txt",,3', "small.pyc,,", "../../bin/small,,9"]
    (about / "RECORD").write_text("\n".join(lines))
    (tmp_path / "small.py").write_text("a=1\n")
    (tmp_path / "lock.txt").write_text("small==1.0\n")
    code = f"import sys, runpy; sys.path.insert(0, {str(tmp_path)!r}); sys.argv[1:] = "
    code += f"['--files', {str(tmp_path / 'lock.txt')!r}]; runpy.run_path('env/check.py', "
    code += "run_name='__main__')"
    assert run("-c", code).stdout == "small 1.0 is damaged: a, b.txt, 1 files in all\n"
    (tmp_path / "a, b.txt").write_text("abc")
    assert run("-c", code).returncode == 0
    (tmp_path / "small.py").write_text("a=\n")
    assert run("-c", code).stdout == "small 1.0 is damaged: small.py, 1 files in all\n"


def test_the_check_sees_other_versions_and_forgives_local_ones():
    torch_version = torch.__version__.split("+")[0]
    told = check().differences(f"# a comment\ntorch=={torch_version}\npytest==0.1\nno-such==1\n")
    assert told == [
        f"pytest {pytest.__version__} is installed, the lock has 0.1",
        "no-such 1 is not installed",
    ]


@pytest.mark.parametrize("python", [(3, 10), (3, 13)])
def test_the_check_refuses_another_python(python):
    assert "3.11 or 3.12" in check().differences("", python)[0]
    assert check().differences("", (3, 12)) == []


def test_the_check_names_a_lock_that_is_not_there():
    answer = run("env/check.py", "env/no.txt")
    assert (answer.returncode, answer.stdout) == (1, f"No lock {Path('env/no.txt')}.\n")


# --- importing -----------------------------------------------------------------------------------


def test_importing_the_library_imports_nothing_heavy():
    answer = run(
        "-c",
        "import sys, oral_lib, oral_lib.assets, oral_lib.storage\n"
        "heavy = {'torch', 'transformers', 'peft', 'pandas', 'datasets'} & set(sys.modules)\n"
        "print(oral_lib.__version__, sorted(heavy))",
    )
    assert answer.stdout == f"{PROJECT['version']} []\n", answer.stderr


@pytest.mark.parametrize("name", oral_lib.__all__)
def test_every_public_name_is_there(name):
    assert getattr(oral_lib, name) is not None and name in dir(oral_lib)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="Generater"):
        _ = oral_lib.Generater


def test_torchvision_timm_and_transformers_import_after_the_library():
    answer = run(
        "-c",
        "import oral_lib, transformers\n"
        "from transformers import LlamaConfig\n"
        "import timm, torchvision\n"
        "print(torchvision.ops.nms.__name__)",
    )
    assert answer.stdout == "nms\n", answer.stderr


@pytest.fixture
def torchvision_folder(tmp_path, monkeypatch):
    """A torchvision with a C++ library that cannot be loaded, and no CUDA."""
    (tmp_path / "_C.so").write_bytes(b"not a library")
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(torchvision_guard, "_libraries", [])
    declared = []
    library = SimpleNamespace(define=declared.append)
    monkeypatch.setattr(torch.library, "Library", lambda *how: declared.append(how) or library)
    return SimpleNamespace(path=tmp_path, declared=declared)


def test_the_guard_declares_what_a_broken_torchvision_lacks(torchvision_folder):
    torchvision_guard.declare_operators(torchvision_folder.path)
    where, nms, qnms = torchvision_folder.declared
    assert where == ("torchvision", "FRAGMENT")
    assert nms == "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
    assert qnms == "q" + nms
    assert len(torchvision_guard._libraries) == 1  # or the operators vanish with the library


def test_the_guard_leaves_a_sound_torchvision_alone(torchvision_folder, monkeypatch):
    monkeypatch.setattr(torch.ops, "load_library", lambda path: None)
    torchvision_guard.declare_operators(torchvision_folder.path)
    assert torchvision_folder.declared == []


def test_the_guard_leaves_a_torch_with_cuda_alone(torchvision_folder, monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    torchvision_guard.declare_operators(torchvision_folder.path)
    assert torchvision_folder.declared == []


def test_the_guard_is_put_in_place_once():
    def guards() -> int:
        return sum(type(finder).__name__ == "_Guard" for finder in sys.meta_path)

    before = guards()
    torchvision_guard.install()
    assert before <= guards() <= 1
