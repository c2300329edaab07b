"""One run at a time in a folder: a lock that the system frees however its process ends.

The process is named in the lock file. A child can inherit the lock: the folder stays locked until
the last process of a killed run has ended. Imports with the standard library only.
"""

import fcntl
import json
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from oral_lib import storage
from oral_lib.errors import PreflightError

PATIENCE = 30.0  # seconds for the processes of a killed run to end


def _holder(path: Path) -> dict:
    """The process named in the lock file; empty if it is unreadable."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _killed(holder: dict) -> bool:
    """Whether the process that took the lock was on this machine and has ended."""
    if holder.get("host") != socket.gethostname():
        return False
    try:
        os.kill(int(holder["pid"]), 0)
    except ProcessLookupError:
        return True
    except (PermissionError, KeyError, ValueError):
        pass
    return False


def _lock(descriptor: int, folder: Path) -> bool:
    """Whether this process now has the lock; where `folder` has no locks, it goes on without."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # the second on some network file systems
        return False
    except OSError as error:
        if error.errno not in storage.NO_LOCKS:
            raise PreflightError(f"{folder} cannot be locked ({error.strerror}).") from error
        print(
            f"oral: {folder} is on a file system without locks ({error.strerror}): start only one "
            "run at a time there.",
            file=sys.stderr,
        )
    return True


@contextmanager
def hold(folder: Path, other: str = "--out") -> Iterator[int]:
    """Holds the lock of `folder`; the value is its descriptor, for `pass_fds` of a child.

    If the process that had the lock was killed, waits up to PATIENCE for its children to end.

    Args:
        folder: the folder to lock.
        other: the option or variable with which the user names another folder.

    Raises:
        PreflightError: another process has the lock, or `folder` cannot be written.
    """
    path = folder / ".oral.lock"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise PreflightError(
            f"{folder} cannot be written ({error.strerror}): name another folder with {other}."
        ) from error
    try:
        end = time.monotonic() + PATIENCE
        waited = False
        while not _lock(descriptor, folder):
            holder = _holder(path)
            if not _killed(holder) or time.monotonic() > end:
                raise PreflightError(
                    f"another run works in {folder}: process {holder.get('pid', '?')} on "
                    f"{holder.get('host', '?')}, since {holder.get('since', '?')}. "
                    f"Wait for it, stop it, or use another folder with {other}."
                )
            if not waited:
                print("waiting for the last processes of a killed run to end", file=sys.stderr)
                waited = True
            time.sleep(0.2)
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        holder = {"pid": os.getpid(), "host": socket.gethostname(), "since": since}
        try:
            os.ftruncate(descriptor, 0)
            os.write(descriptor, json.dumps(holder).encode())
        except OSError as error:
            raise storage.write_refusal(error, path) or error from None
        yield descriptor
    finally:
        os.close(descriptor)
