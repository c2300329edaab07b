"""One run at a time in a folder: a lock that the system frees however its holder ends.

The holder is written into the lock file. The lock can be handed to a child, so that a folder stays
locked until the last process of a killed run has left it. Imports with the standard library alone.
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

from oral_lib.errors import PreflightError

PATIENCE = 30.0  # seconds for the processes of a killed run to end


def _holder(path: Path) -> dict:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _killed(holder: dict) -> bool:
    """Whether the process that took the lock was on this machine and is gone."""
    if holder.get("host") != socket.gethostname():
        return False
    try:
        os.kill(int(holder["pid"]), 0)
    except ProcessLookupError:
        return True
    except (PermissionError, KeyError, ValueError):
        pass
    return False


def _taken(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextmanager
def held(folder: Path) -> Iterator[int]:
    """Holds the lock of `folder`; the value is a descriptor that keeps it held (for `pass_fds`).

    `PreflightError` names the process that holds it. When that one was killed and only its
    children are still ending, waits for them instead.
    """
    path = folder / ".oral.lock"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise PreflightError(
            f"{folder} cannot be written ({error.strerror}): name another folder with --out."
        ) from error
    try:
        until = time.monotonic() + PATIENCE
        waited = False
        while not _taken(descriptor):
            holder = _holder(path)
            if not _killed(holder) or time.monotonic() > until:
                raise PreflightError(
                    f"another run works in {folder}: process {holder.get('pid', '?')} on "
                    f"{holder.get('host', '?')}, since {holder.get('since', '?')}. "
                    "Wait for it, stop it, or use another folder with --out."
                )
            if not waited:
                print("waiting for the last processes of a killed run to end", file=sys.stderr)
                waited = True
            time.sleep(0.2)
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        holder = {"pid": os.getpid(), "host": socket.gethostname(), "since": since}
        os.ftruncate(descriptor, 0)
        os.write(descriptor, json.dumps(holder).encode())
        yield descriptor
    finally:
        os.close(descriptor)
