"""The Python of the project: the active one if it fits a lock, else one created from the lock.

Imports with the standard library only.
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
READY = "ORAL_ENV_READY"  # set for the chosen Python, so that it does not choose again


def home() -> Path:
    """The folder of the created environment: $ORAL_ENV, else .venv in the repository."""
    folder = os.environ.get("ORAL_ENV")
    return Path(folder).expanduser().absolute() if folder else ROOT / ".venv"


def interpreter(folder: Path) -> Path:
    """The Python of the environment at `folder`."""
    return folder / "bin" / "python"


def machine_lock() -> Path:
    """The lock for this machine: with or without GPU."""
    return LOCKS / ("lock-gpu.txt" if doctor.gpus() else "lock-cpu.txt")


def stamp(folder: Path, locked: Path) -> str:
    """The mark of an environment of the lock `locked` at `folder`; another folder has another."""
    return hashlib.sha256(locked.read_bytes() + bytes(folder)).hexdigest()


def is_complete(folder: Path) -> bool:
    """Whether the environment at `folder` was installed completely from one of the locks."""
    mark = folder / "oral-lock.sha256"
    if not mark.is_file() or not interpreter(folder).exists():
        return False
    stamps = {stamp(folder, locked) for locked in LOCKS.glob("lock-*.txt")}
    return mark.read_text().strip() in stamps


def fits() -> bool:
    """Whether the running Python has the packages of a lock."""
    return bool(os.environ.get(READY)) or doctor.packages().state == "ok"


def best() -> str:
    """The Python to run with, without creating one: one that fits, else this one."""
    return str(interpreter(home())) if not fits() and is_complete(home()) else sys.executable


def prepare_environment(*, offline: bool = False) -> str:
    """The Python to run with, created if necessary.

    Raises:
        PreflightError: it has to be created, but `offline`, a small disk or pip prevents that.
    """
    folder = home()
    if fits():
        return sys.executable
    if is_complete(folder):
        _add_project(folder)
        return str(interpreter(folder))
    if offline:
        raise PreflightError(
            f"no environment fits the locks in {LOCKS}, and --offline forbids creating one: "
            "run once without --offline."
        )
    for check in (doctor.python(), doctor.disk(folder)):
        if check.state == "fail":
            raise PreflightError(doctor.table([check]))
    with lock.hold(folder.parent) as locked:
        if not is_complete(folder):
            _create(folder, machine_lock(), locked)
    return str(interpreter(folder))


def _create(folder: Path, requirements: Path, locked: int) -> None:
    if find_spec("ensurepip") is None:
        raise PreflightError(
            f"{sys.executable} cannot create environments: install python3-venv, or name another "
            "Python 3.11 or 3.12 with PYTHON=..."
        )
    size = "0.4 to 3 GB to download, 2 to 6 GB on disk"
    print(f"oral: creating {folder} from {requirements.name} ({size})", file=sys.stderr, flush=True)
    mark = folder / "oral-lock.sha256"
    # a folder without a mark is incomplete: pip cannot rely on what is there
    venv.create(folder, with_pip=True, clear=not mark.exists())
    mark.unlink(missing_ok=True)
    python = str(interpreter(folder))
    command = [
        python,
        "-m",
        "pip",
        "install",
        "--disable-pip-version-check",
        "-r",
        str(requirements),
    ]
    # pip inherits the lock: it may outlive this process, and no other may clear its folder
    if subprocess.run(command, stdout=sys.stderr, pass_fds=(locked,)).returncode != 0:
        raise PreflightError(
            f"pip could not install {requirements.name} (see its output above). Check the "
            "connection to the package index and run the same command again: downloads are kept."
        )
    _add_project(folder)
    mark.write_text(stamp(folder, requirements) + "\n")


def _add_project(folder: Path) -> None:
    """Makes `import oral_lib` work in that environment, from any folder, without pip."""
    for packages in folder.glob("lib/python3.*/site-packages"):
        path, line = packages / "oral_lib.pth", f"{ROOT}\n"
        if not path.exists() or path.read_text() != line:
            path.write_text(line)
