"""The Python that runs the project: the active one if it fits a lock, else one made from the lock.

Imports with the standard library alone.
"""

import hashlib
import os
import subprocess
import sys
import venv
from importlib.util import find_spec
from pathlib import Path

from oral_lib.errors import PreflightError
from oral_lib.paths import ROOT
from oral_lib.runner import doctor, lock

LOCKS = ROOT / "env"
READY = "ORAL_ENV_READY"  # set for the Python that was chosen, so that it does not choose again


def home() -> Path:
    """The folder of the environment that is made: $ORAL_ENV, else .venv in the repository."""
    own = os.environ.get("ORAL_ENV")
    return Path(own).expanduser().absolute() if own else ROOT / ".venv"


def interpreter(folder: Path) -> Path:
    """The Python of the environment at `folder`."""
    return folder / "bin" / "python"


def wanted_lock() -> Path:
    """The lock for this machine."""
    return LOCKS / ("lock-gpu.txt" if doctor.gpus() else "lock-cpu.txt")


def stamp(folder: Path, locked: Path) -> str:
    """What an environment of `locked` at `folder` is marked with; moving the folder breaks it."""
    return hashlib.sha256(locked.read_bytes() + bytes(folder)).hexdigest()


def made(folder: Path) -> bool:
    """Whether the environment at `folder` is whole and belongs to one of the locks."""
    mark = folder / "oral-lock.sha256"
    if not mark.is_file() or not interpreter(folder).exists():
        return False
    known = {stamp(folder, locked) for locked in LOCKS.glob("lock-*.txt")}
    return mark.read_text().strip() in known


def fits() -> bool:
    """Whether the running Python has the packages of a lock."""
    return bool(os.environ.get(READY)) or doctor.packages().state == "ok"


def best() -> str:
    """The Python to run with, setting nothing up: one that fits, else this one."""
    return str(interpreter(home())) if not fits() and made(home()) else sys.executable


def prepare(*, offline: bool = False) -> str:
    """The Python to run with, made if need be. `PreflightError` when it cannot be."""
    folder = home()
    if fits():
        return sys.executable
    if made(folder):
        _let_see_project(folder)
        return str(interpreter(folder))
    if offline:
        raise PreflightError(
            f"no environment fits the locks in {LOCKS} and --offline forbids to make one: "
            "run once without --offline."
        )
    for check in (doctor.python(), doctor.disk(folder)):
        if check.state == "fail":
            raise PreflightError(doctor.table([check]))
    with lock.held(folder.parent) as locked:
        if not made(folder):
            _make(folder, wanted_lock(), locked)
    return str(interpreter(folder))


def _make(folder: Path, wanted: Path, locked: int) -> None:
    if find_spec("ensurepip") is None:
        raise PreflightError(
            f"{sys.executable} cannot make environments: install python3-venv, or name another "
            "Python 3.11 or 3.12 with PYTHON=..."
        )
    _say(f"making {folder} from {wanted.name} (0.4 to 3 GB to fetch, 2 to 6 GB on disk)")
    mark = folder / "oral-lock.sha256"
    # a folder without a mark was left half-made: what pip finds there cannot be trusted
    venv.create(folder, with_pip=True, clear=not mark.exists())
    mark.unlink(missing_ok=True)
    python = str(interpreter(folder))
    command = [python, "-m", "pip", "install", "--disable-pip-version-check", "-r", str(wanted)]
    # pip keeps the lock: it may outlive this process, and nobody must clear the folder under it
    if subprocess.run(command, stdout=sys.stderr, pass_fds=(locked,)).returncode != 0:
        raise PreflightError(
            f"pip could not install {wanted.name} (its words are above). Is a package index in "
            "reach? Run the same command again: what was fetched is kept."
        )
    _let_see_project(folder)
    mark.write_text(stamp(folder, wanted) + "\n")


def _let_see_project(folder: Path) -> None:
    """Lets that environment `import oral_lib` from anywhere; needs neither pip nor network."""
    for packages in folder.glob("lib/python3.*/site-packages"):
        path, line = packages / "oral_lib.pth", f"{ROOT}\n"
        if not path.exists() or path.read_text() != line:
            path.write_text(line)


def _say(text: str) -> None:
    print(f"oral: {text}", file=sys.stderr, flush=True)
