"""The Python of the project: the active one if it fits a lock, else one created from the lock.

Imports with the standard library only.
"""

import hashlib
import os
import shlex
import site
import subprocess
import sys
import tempfile
import venv
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec
from pathlib import Path

from oral_lib import machine
from oral_lib.assets import pip_settings
from oral_lib.assets.cache import cache_dir
from oral_lib.errors import PreflightError
from oral_lib.paths import ROOT, full
from oral_lib.runner import doctor, lock
from oral_lib.storage import list_paths

LOCKS = ROOT / "env"
OURS = "prompt = 'oral'"  # in the settings of the created environment
READY = "ORAL_ENV_READY"  # set for the chosen Python, so that it does not choose again


def home() -> Path:
    """The folder of the created environment: $ORAL_ENV, else .venv in the repository."""
    folder = os.environ.get("ORAL_ENV")
    folder = full(folder) if folder else ROOT / ".venv"
    if os.pathsep in str(folder):
        raise PreflightError(f"ORAL_ENV={folder} has a colon: an environment cannot be there.")
    return folder


def interpreter(folder: Path) -> Path:
    """The Python of the environment at `folder`."""
    return folder / "bin" / "python"


def machine_lock() -> Path:
    """The lock for this machine: with or without GPU."""
    return LOCKS / ("lock-gpu.txt" if machine.gpus() else "lock-cpu.txt")


def stamp(folder: Path, locked: Path) -> str:
    """The mark of an environment of the lock `locked` at `folder`; another folder has another."""
    return hashlib.sha256(locked.read_bytes() + bytes(folder)).hexdigest()


def mark(folder: Path) -> Path:
    """The file that says of which lock the environment at `folder` was installed and checked."""
    return folder / "oral-lock.sha256"


def is_marked(folder: Path) -> bool:
    """Whether the environment at `folder` was once installed completely from one of the locks."""
    return _lock_of(folder) is not None and interpreter(folder).exists()


def _lock_of(folder: Path) -> Path | None:
    """The lock that the mark of an environment names."""
    try:
        text = mark(folder).read_text().strip()
    except (OSError, UnicodeDecodeError):
        return None
    return next((x for x in list_paths(LOCKS, "lock-*.txt") if stamp(folder, x) == text), None)


def _is_ours(folder: Path) -> bool:
    """Whether `folder` may be emptied: it is absent, empty, or was created by `_create`."""
    if not folder.exists() or mark(folder).exists():
        return True
    if not folder.is_dir():
        return False
    settings = folder / "pyvenv.cfg"
    return not any(folder.iterdir()) or (settings.is_file() and OURS in settings.read_text())


def fault(folder: Path, locked: Path) -> str:
    """What is wrong with the environment at `folder`, as its own Python finds; empty if nothing.

    It takes a second: every package is there in its version, with all its files.
    """
    command = [str(interpreter(folder)), "-I", str(ROOT / "env" / "check.py"), "--files"]
    try:
        done = subprocess.run(
            [*command, str(locked)], capture_output=True, text=True, errors="replace"
        )
    except OSError as error:
        return f"its Python does not start: {error.strerror}"
    if done.returncode == 0:
        return ""
    return ((done.stdout or done.stderr).strip().splitlines() or ["its Python does not start"])[0]


def fits() -> bool:
    """Whether the running Python has the packages of a lock."""
    return bool(os.environ.get(READY)) or doctor.packages().state == "ok"


def best() -> str:
    """The Python to run with, without creating one: one that fits, else this one."""
    return str(interpreter(home())) if not fits() and is_marked(home()) else sys.executable


def prepare_environment(*, offline: bool = False) -> str:
    """The Python to run with, created if necessary.

    Raises:
        PreflightError: it has to be created, but `offline`, a small disk or pip prevents that.
    """
    if fits():
        return sys.executable
    folder = home()
    reason = f"no environment fits the locks in {LOCKS}"
    if damage := _damage(folder):
        reason = f"the environment {folder} is damaged ({damage})"
    elif is_marked(folder):
        _add_project(folder)
        return str(interpreter(folder))
    if offline:
        raise PreflightError(
            f"{reason}, and --offline forbids creating one: run once without --offline."
        )
    if damage:
        print(f"oral: {reason}; it is created again", file=sys.stderr, flush=True)
    doctor.require(doctor.python(), doctor.disk(folder, "ORAL_ENV"))
    with lock.hold(folder.parent, "ORAL_ENV") as locked:
        if not is_marked(folder) or _damage(folder):  # another run may have created it
            _create(folder, machine_lock(), locked)
    return str(interpreter(folder))


def _damage(folder: Path) -> str:
    """What is wrong with a marked environment; empty if it is whole or not marked."""
    return fault(folder, _lock_of(folder)) if is_marked(folder) else ""


def _create(folder: Path, requirements: Path, locked: int) -> None:
    if find_spec("ensurepip") is None:
        raise PreflightError(
            f"{sys.executable} cannot create environments: install python3-venv, or name another "
            "Python 3.11 or 3.12 with PYTHON=..."
        )
    if not _is_ours(folder):
        raise PreflightError(
            f"{folder} is not an environment of this project, and would be emptied: name a new "
            "folder with ORAL_ENV=..., or remove it."
        )
    size = "0.4 to 3 GB to download, 2 to 6 GB on disk"
    print(f"oral: creating {folder} from {requirements.name} ({size})", file=sys.stderr, flush=True)
    try:
        # pip cannot rely on what is there: begin with an empty folder
        venv.create(folder, with_pip=True, clear=True, prompt="oral")
    except (OSError, subprocess.CalledProcessError) as error:
        raise PreflightError(
            f"{sys.executable} could not create an environment in {folder} ({error}): name another "
            "folder with ORAL_ENV=..., or another Python with PYTHON=..."
        ) from error
    python = str(interpreter(folder))
    options = ["--disable-pip-version-check", "--no-input"]
    command = [python, "-I", "-m", "pip", "install", *options, "-r", str(requirements)]
    # pip inherits the lock: it may outlive this process, and no other may clear its folder
    done = subprocess.run(command, env=_variables(python), stdout=sys.stderr, pass_fds=(locked,))
    if done.returncode != 0:
        raise PreflightError(
            f"pip could not install {requirements.name} (see its output above). Check the "
            "connection to the package index and run the same command again: downloads are kept."
        )
    if damage := fault(folder, requirements):
        raise PreflightError(
            f"pip reports no error, but {folder} does not fit {requirements.name}: {damage}. Run "
            "the same command again; if it stays so, name another folder with ORAL_ENV=..."
        )
    _add_project(folder)
    mark(folder).write_text(stamp(folder, requirements) + "\n")


def _variables(python: str) -> dict[str, str]:
    """The environment variables of pip, without those that lead to other packages."""
    outside = ("PYTHON", "VIRTUAL_ENV", "CONDA_PREFIX")
    variables = {key: text for key, text in os.environ.items() if not key.startswith(outside)}
    return pip_settings.pip_environment(python, variables)


def home_variables(substitute: Path) -> dict[str, str]:
    """Variables that make `substitute` the home folder of other programs; none if HOME will do.

    The cache of models and data stays where it is.
    """
    try:
        home = full("~")
        home.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=home):
            return {}
    except (OSError, PreflightError):
        substitute.mkdir(parents=True, exist_ok=True)
    variables = {"HOME": str(substitute)}
    with suppress(PreflightError):  # without a home there is no cache, and no node that needs it
        variables["ORAL_CACHE"] = str(cache_dir())
    return variables


def _add_project(folder: Path) -> None:
    """Makes `import oral_lib` and the command `oral` work in that environment, without pip."""
    for packages in folder.glob("lib/python3.*/site-packages"):
        _write_if_changed(packages / "oral_lib.pth", f"{ROOT}\n")
    python = shlex.quote(str(interpreter(folder)))
    # a line of sh and a text of Python: the first line of a script cannot hold every path
    start = f"#!/bin/sh\n'''exec' {python} -P \"$0\" \"$@\"\n' '''\n"
    call = "import sys\nfrom oral_lib.workflow.cli import main\nsys.exit(main())\n"
    _write_if_changed(folder / "bin" / "oral", start + call, mode=0o755)


def _write_if_changed(path: Path, text: str, mode: int = 0o644) -> None:
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")
        path.chmod(mode)


def project_command() -> list[str]:
    """The first words of a command line that runs `python -m oral_lib` from the present folder."""
    command = [sys.executable, "-m", "oral_lib"]
    installed = any((Path(path) / "oral_lib.pth").exists() for path in site.getsitepackages())
    with suppress(PackageNotFoundError):
        installed = installed or bool(distribution("oral-lora"))
    if installed or Path.cwd() == ROOT:
        return command
    return ["env", f"PYTHONPATH={ROOT}", *command]
