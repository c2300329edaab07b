"""Runs one input under a watchdog, with writes, reads of a forbidden folder and sockets watched."""

import os
import shutil
import signal
import sys
import tempfile
import warnings
from contextlib import contextmanager
from pathlib import Path
from random import Random

from oral_lib.errors import OralError
from tests.fuzz.targets import TARGETS, generator_files

LIMIT = 5  # seconds
CODES = {1, 2, 3}
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
_CHANGES = {"os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.truncate", "os.link"}
_CHANGES |= {"os.symlink", "shutil.rmtree", "shutil.copyfile", "shutil.move"}
_state: dict[str, str] = {}


class Forbidden(BaseException):
    """A write outside the folder, a read of the forbidden folder, a connection, a process."""


class Late(BaseException):
    """The input took longer than LIMIT."""


def _hook(event: str, arguments: tuple) -> None:
    if not (allowed := _state.get("folder")):
        return
    if event in (
        "socket.connect",
        "socket.getaddrinfo",
        "subprocess.Popen",
        "os.system",
        "os.exec",
    ):
        raise Forbidden(f"{event} {arguments!r:.100}")
    if event == "open" and isinstance(arguments[0], str | bytes):
        path = os.path.realpath(os.fsdecode(arguments[0]))
        if path.startswith(os.path.join(allowed, "outside")):
            raise Forbidden(f"reads {path}")
        flags = arguments[2] if isinstance(arguments[2], int) else 0
        if flags & _WRITES and not path.startswith((allowed, "/dev/")):
            raise Forbidden(f"writes {path}")
    elif event in _CHANGES and isinstance(arguments[0], str | bytes):
        inside = arguments[-1] if isinstance(arguments[-1], int) and arguments[-1] >= 0 else None
        start = "." if inside is None else os.readlink(f"/proc/self/fd/{inside}")
        path = os.path.realpath(os.path.join(start, os.path.dirname(os.fsdecode(arguments[0]))))
        if not path.startswith(allowed):
            raise Forbidden(f"{event} {os.fsdecode(arguments[0])}")


def _late(*_) -> None:
    raise Late


@contextmanager
def watched():
    """A folder in which inputs may write."""
    sys.dont_write_bytecode = True
    generator_files()
    if "installed" not in _state:
        sys.addaudithook(_hook)
        _state["installed"] = "yes"
    shared = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="fuzz-", dir=shared) as root, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        root = os.path.realpath(root)
        (Path(root) / "outside").mkdir()
        before = signal.signal(signal.SIGALRM, _late)
        try:
            yield Path(root)
        finally:
            signal.signal(signal.SIGALRM, before)


def outcome(root: Path, name: str, draw: Random) -> tuple[str, str]:
    """(kind, words) of one input: "read", "refused", or a fault."""
    folder = root / name
    folder.mkdir(exist_ok=True)
    _state["folder"] = str(folder.parent)
    signal.setitimer(signal.ITIMER_REAL, LIMIT)
    try:
        TARGETS[name](folder, draw)
        return "read", ""
    except OralError as error:
        text = str(error)
        if "\n" in text or not text.strip() or len(text) > 2000:
            return "unclear line", text[:500]
        if error.exit_code not in CODES:
            return "exit code", text[:500]
        return "refused", text
    except Late:
        return "late", f"no answer within {LIMIT} s"
    except Forbidden as error:
        return "forbidden", str(error)
    except (Exception, SystemExit) as error:
        return "traceback", f"{type(error).__name__}: {str(error)[:300]} at {_where(error)}"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        _state.pop("folder", None)


def _where(error: BaseException) -> str:
    """The last line of the project in a traceback."""
    places, trace = [], error.__traceback__
    while trace:
        file = Path(trace.tb_frame.f_code.co_filename)
        if "oral_lib" in file.parts or "fuzz" in file.parts:
            places.append(f"{file.name}:{trace.tb_lineno}")
        trace = trace.tb_next
    return places[-1] if places else "?"


def kept_files(root: Path, name: str, into: Path) -> None:
    """Copies the files of the last input into the folder `into`."""
    shutil.rmtree(into, ignore_errors=True)
    shutil.copytree(root / name, into, symlinks=True)
