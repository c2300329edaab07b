"""What is installed on this machine: a table of checks, and the checks before a run.

Imports with the standard library only: it has to work when nothing else does.
"""

import fcntl
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from oral_lib import machine
from oral_lib.errors import OralError, PreflightError
from oral_lib.paths import ROOT, full
from oral_lib.runner.nodes import Node
from oral_lib.storage import NO_LOCKS, list_paths

FREE_GB = 3.0
PYTHONS = ((3, 11), (3, 12))
SETUP = "run ./reproduce.sh test, which sets everything up"


class Check(NamedTuple):
    """One line of the table."""

    what: str
    state: str  # "ok", "warn" or "fail"
    finding: str
    remedy: str = ""  # what to do about it


def _existing(folder: Path) -> Path:
    """`folder` or its closest parent that exists."""
    return folder if folder.exists() else _existing(folder.parent)


def python() -> Check:
    """Whether the project runs on this version of Python."""
    number = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info[:2] in PYTHONS:
        return Check("python", "ok", number)
    return Check("python", "fail", number, "install Python 3.11 or 3.12, or name one: PYTHON=...")


def disk(folder: Path, other: str = "--out") -> Check:
    """Whether the disk of `folder` has FREE_GB free."""
    free = shutil.disk_usage(_existing(folder)).free / 1e9
    finding = f"{free:.1f} GB free for {folder}"
    if free >= FREE_GB:
        return Check("disk", "ok", finding)
    return Check(
        "disk", "fail", finding, f"free {FREE_GB:.0f} GB, or use another disk with {other}"
    )


def memory(plan: Sequence[Node]) -> Check:
    """Whether the largest node of `plan` fits; a warning if other programs leave too little."""
    total, free = machine.memory_mb()
    largest = max(plan, key=lambda node: node.memory_mb, default=None)
    needed = largest.memory_mb if largest else 0
    finding = f"{total / 1024:.1f} GB, {free / 1024:.1f} GB free, {needed / 1024:.1f} GB needed"
    if total < needed:
        return Check("memory", "fail", finding, f"{largest.name} needs a machine with more memory")
    if free < needed:
        return Check("memory", "warn", finding, "close other programs, or expect swapping")
    return Check("memory", "ok", finding)


def packages() -> Check:
    """Whether the installed packages fit a lock."""
    script, locks = ROOT / "env" / "check.py", list_paths(ROOT / "env", "lock-*.txt")
    if not script.exists() or not locks:
        return Check("packages", "fail", "env/ holds no lock", "get the whole repository")
    for lock in locks:
        command = [sys.executable, str(script), str(lock)]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace")
        if done.returncode == 0:
            return Check("packages", "ok", f"as in {lock.name}")
    lines = (done.stdout + done.stderr).strip().splitlines() or ["they differ from every lock"]
    return Check("packages", "warn", lines[-1], SETUP)


def torch() -> Check:
    """The devices that torch can use."""
    import torch

    finding = f"torch {torch.__version__}, "
    if torch.cuda.is_available():
        bf16 = "bf16" if torch.cuda.is_bf16_supported() else "no bf16"
        return Check("torch", "ok", finding + f"{torch.cuda.get_device_name()}, {bf16}")
    if machine.gpus():
        remedy = "install env/lock-gpu.txt: this torch has no CUDA"
        return Check("torch", "warn", finding + "a GPU that it cannot use", remedy)
    with suppress(OSError):
        flags = Path("/proc/cpuinfo").read_text()
        finding += "CPU with bf16, " if "bf16" in flags else "CPU without bf16, "
    return Check("torch", "ok", finding + f"{torch.get_num_threads()} threads")


def torchvision() -> Check:
    """Whether torchvision can be imported with this torch."""
    if find_spec("torchvision") is None:
        return Check("torchvision", "warn", "not installed", SETUP)
    import torchvision

    return Check("torchvision", "ok", f"torchvision {torchvision.__version__}")


def assets(source: str, plan: Sequence[Node] = ()) -> Iterator[Check]:
    """One check of the cache, and one of each asset that `plan` reads and the cache lacks."""
    from oral_lib.assets import sources
    from oral_lib.assets.cache import cache_dir

    places = [node.name.rpartition("/") for node in plan]
    read = [first or "language" for first, _, last in places if last == "assets"]
    missing = sorted(
        {name for one in read or ["language"] for name in sources.missing(source, one)}
    )
    if [node.name for node in plan] == ["quickstart"]:
        from oral_lib.prompting import quickstart
        from oral_lib.zoo import run_folders

        released = run_folders.released_generator(quickstart.RELEASE)
        missing = quickstart.missing_assets(released, source)
    seen = f"{cache_dir()}, " + ("all there" if not missing else f"{len(missing)} missing")
    yield Check("assets", "warn" if missing else "ok", seen)
    for name in missing:
        yield Check(f"asset {name}", "warn", "not there", "python -m oral_lib assets")


def kernels() -> Check:
    """Whether the optional CUDA kernels are installed; plain torch replaces them."""
    try:
        return Check("mamba_ssm", "ok", version("mamba_ssm"))
    except PackageNotFoundError:
        return Check("mamba_ssm", "ok", "not installed; plain torch is used")


def kernelspec() -> Check:
    """Whether notebooks run in the Python of this environment."""
    from jupyter_client.kernelspec import KernelSpecManager, NoSuchKernel

    try:
        path = Path(KernelSpecManager().get_kernel_spec("python3").argv[0])
    except RuntimeError:  # of pathlib, without a home folder
        return Check("notebooks", "ok", "the kernel is looked up at the start of a notebook")
    except NoSuchKernel:
        return Check("notebooks", "fail", "no kernel called python3", SETUP)
    if path.is_absolute() and Path(sys.prefix) not in path.parents:
        return Check("notebooks", "warn", f"python3 is {path}", "jupyter kernelspec remove python3")
    return Check("notebooks", "ok", "kernel python3 of this environment")


def commit() -> Check:
    """The commit that results will name."""
    from oral_lib.provenance import commit_and_fault

    name, remedy = commit_and_fault()
    if remedy:
        return Check("git", "warn", "no commit: results will not name their code", remedy)
    if name.endswith("-dirty"):
        return Check("git", "warn", name, "commit your changes before a run whose results count")
    return Check("git", "ok", name)


def gpu() -> Check:
    """The GPUs, or the reason why no GPU is usable."""
    if reason := machine.gpu_fault():
        return Check("gpu", "ok", f"none: {reason}")
    sizes = [f"{gpu.name} ({gpu.total_mb / 1024:.0f} GiB)" for gpu in machine.gpus()]
    return Check("gpu", "ok", ", ".join(sizes))


def processor() -> Check:
    """The cores that nodes share."""
    count, everything = machine.cores(), os.cpu_count() or 1
    limit = "" if count == everything else f" of {everything}: the CPU set or quota of this process"
    return Check("cores", "ok", f"{count}{limit}")


def folders(out: Path) -> Iterator[Check]:
    """Whether results, temporary files and settings of other programs can be written."""
    yield _writable("results", out, "name another folder with --out")
    remedy = "set TMPDIR to a folder that can be written"
    try:
        temporary = tempfile.gettempdir()
    except FileNotFoundError as error:
        yield Check("temporary", "fail", str(error.strerror), remedy)
    else:
        chosen = os.environ.get("TMPDIR") or temporary
        if Path(chosen).absolute() != Path(temporary):
            finding = f"{temporary}, since TMPDIR={chosen} cannot be written"
            yield Check("temporary", "warn", finding, remedy)
        else:
            yield _writable("temporary", Path(temporary), remedy)
    try:
        home = full("~")
    except PreflightError:
        yield Check("home", "warn", "no home folder", "set HOME, or ORAL_CACHE for models and data")
        return
    remedy = "set HOME to a folder that can be written, or ORAL_CACHE for models and data"
    yield _writable("home", home, remedy)


def _writable(what: str, folder: Path, remedy: str) -> Check:
    """Whether files can be written and locked in `folder`, or in its closest existing parent."""
    try:
        with tempfile.TemporaryFile(dir=_existing(folder)) as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in NO_LOCKS:
            finding = f"{folder} is on a file system without locks"
            return Check(what, "warn", finding, "start only one run at a time there")
        state = "warn" if what == "home" else "fail"
        return Check(what, state, f"{folder} cannot be written ({error.strerror})", remedy)
    return Check(what, "ok", str(folder))


def python_path() -> Check:
    """Whether folders of the user come before the packages of the environment."""
    first = [x for x in os.environ.get("PYTHONPATH", "").split(os.pathsep) if x]
    if others := [x for x in first if Path(x).resolve() != ROOT]:
        remedy = "unset PYTHONPATH, unless the packages of the environment are there"
        return Check("PYTHONPATH", "warn", f"{', '.join(others)} come first", remedy)
    return Check("PYTHONPATH", "ok", "no other folders")


def examine(plan: Sequence[Node], source: str, out: Path) -> Iterator[Check]:
    """All checks; a check that raises an error has the state "fail".

    Args:
        plan: the nodes that would run.
        source: the data source of their assets.
        out: the folder of their results.
    """
    checks: dict[str, Callable[[], Check | Iterator[Check]]] = {
        "python": python,
        "cores": processor,
        "gpu": gpu,
        "disk": lambda: disk(out),
        "folders": lambda: folders(out),
        "memory": lambda: memory(plan),
        "PYTHONPATH": python_path,
        "packages": packages,
        "torch": torch,
        "torchvision": torchvision,
        "mamba_ssm": kernels,
        "notebooks": kernelspec,
        "assets": lambda: assets(source, plan),
        "git": commit,
    }
    for name, check in checks.items():
        try:
            result = check()
            yield from [result] if isinstance(result, Check) else result
        except OralError as error:
            yield Check(name, "fail", str(error))
        except (ImportError, RuntimeError, OSError, json.JSONDecodeError) as error:
            yield Check(name, "fail", (str(error).splitlines() or [repr(error)])[0], SETUP)


def table(checks: Sequence[Check]) -> str:
    """The checks as text, a line each, with the remedies below."""
    width = max(len(check.what) for check in checks)
    lines = []
    for check in checks:
        lines.append(f"{check.state:4}  {check.what:{width}}  {check.finding}")
        if check.remedy and check.state != "ok":
            lines.append(f"{'':4}  {'':{width}}  -> {check.remedy}")
    return "\n".join(lines)


def preflight(plan: Sequence[Node], out: Path) -> None:
    """Raises PreflightError, with all reasons, if a run of `plan` would fail on this machine."""
    on_gpu = [node for node in plan if node.gpu]
    if on_gpu and len(machine.gpus()) < max(node.gpu for node in on_gpu):
        raise PreflightError(
            f"{on_gpu[0].name} and {len(on_gpu) - 1} other nodes need a CUDA GPU (80 GB for models "
            "of 7B) and models from the hub or a local folder; here "
            f"{machine.gpu_fault() or 'are too few'}. "
            "--dry-run shows the plan, --scale desk runs without."
        )
    require(python(), disk(out), memory(plan))


def require(*checks: Check) -> None:
    """Raises PreflightError, in one line, with all of `checks` that failed and their remedies."""
    failed = [f"{c.what} {c.finding}: {c.remedy}" for c in checks if c.state == "fail"]
    if failed:
        raise PreflightError(f"this machine cannot do it. {'; '.join(failed)}.")
