"""Runs one node of the plan for Snakemake, prints its output and writes it to a log.

    python -m oral_lib.runner.worker NODE LOG ARGUMENTS-OF-PYTHON...

Under `reproduce` (EVENTS is set) it also prints an event at the start and end of the node. Its
standard input is then a pipe from `reproduce`. When the pipe closes, `reproduce` has ended, by
Ctrl-C or by kill -9, and the worker ends its node. A killed worker takes its node with it. Imports
with the standard library only.
"""

import ctypes
import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from oral_lib import machine
from oral_lib.errors import OralError
from oral_lib.runner import nodes

EVENTS = "ORAL_EVENTS"
MARK = "\x1e"  # the first character of an event
ATOMIC_BYTES = 512  # of a write to a pipe, guaranteed by POSIX
GRACE = 5.0  # seconds that a node has to end by itself
PR_SET_PDEATHSIG = 1  # of Linux: the signal that a process gets when its parent ends


def emit(**event) -> None:
    """Prints an event for `reproduce`; without `reproduce`, nothing."""
    if os.environ.get(EVENTS):
        _print(MARK + json.dumps(event) + "\n")


def _print(line: str) -> None:
    """Prints a line, unmixed with lines of other workers: at most ATOMIC_BYTES a write."""
    data = line.encode()
    with suppress(BrokenPipeError):  # the reader has ended: the log is still written
        while len(data) > ATOMIC_BYTES:
            os.write(1, data[: ATOMIC_BYTES - 1] + b"\n")
            data = data[ATOMIC_BYTES - 1 :]
        os.write(1, data)


def stop(job: subprocess.Popen, signals=(signal.SIGINT, signal.SIGKILL)) -> None:
    """Ends `job` and all its processes: by SIGINT, after GRACE seconds by SIGKILL."""
    for number in signals:
        with suppress(ProcessLookupError):
            os.killpg(job.pid, number)
        with suppress(subprocess.TimeoutExpired):
            job.wait(GRACE)
            return


def _stop_with_parent(job: subprocess.Popen) -> None:
    while os.read(0, 1024):  # sys.stdin would keep a lock that blocks the exit
        pass
    stop(job)


@contextmanager
def card() -> Iterator[dict[str, str]]:
    """Environment variables that assign one of several GPUs to a node.

    It is a GPU that no other node of this folder uses; if all are used, the one with the most free
    memory. Empty if the user has set CUDA_VISIBLE_DEVICES or there is at most one GPU.
    """
    uuids = [] if "CUDA_VISIBLE_DEVICES" in os.environ else _uuids()
    if len(uuids) < 2:
        yield {}
        return
    with ExitStack() as files:  # a lock lasts until its file is closed
        for uuid in uuids:
            file = files.enter_context(Path(f".{uuid}.lock").open("w"))
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            except OSError:  # no locks here: nodes share the GPU with the most free memory
                uuid = uuids[0]
            break
        else:
            uuid = uuids[0]
        yield {"CUDA_VISIBLE_DEVICES": uuid}


def _uuids() -> list[str]:
    """The UUIDs of the GPUs, most free memory first."""
    return [gpu.uuid for gpu in sorted(machine.gpus(), key=lambda gpu: -gpu.free_mb)]


def _end_with_worker() -> None:
    """In the process of a node: it is killed when its worker ends, however that ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _open_log(path: Path) -> BinaryIO:
    """The log file `path`; if it cannot be created, a line says so and nothing is logged."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("wb", buffering=0)
    except OSError as error:
        _print(f"{path}: there is no log ({error.strerror})\n")
        return open(os.devnull, "wb", buffering=0)


def _write(file: BinaryIO, line: str, path: Path) -> bool:
    """Whether `line` is in the log. A full disk ends the log, not the node."""
    try:
        file.write(line.encode())
    except OSError as error:
        _print(f"{path}: the log ends here ({error.strerror})\n")
        return False
    return True


def _settle_times(node: str) -> None:
    """Makes what `node` has written newer than what it has read, also by a clock set back."""
    if plan := os.environ.get("ORAL_PLAN"):
        with open(plan) as file:
            with suppress(OSError):  # a file system without locks
                fcntl.flock(file, fcntl.LOCK_EX)  # other workers do the same
            planned = {entry.name: entry for entry in nodes.read_plan(plan)}
            try:
                nodes.settle_times(list(planned.values()), planned[node])
            except OralError as error:
                _print(f"oral: {error}\n")


def run_command(node: str, log: Path, command: list[str]) -> int:
    """The exit code of `python *command`, with its output in `log` and on standard output.

    Args:
        node: name of the node.
        log: the file to write.
        command: the arguments of Python.
    """
    began = time.monotonic()
    emit(event="start", node=node)
    with (
        _open_log(log) as file,
        card() as variables,
        subprocess.Popen(
            [sys.executable, *command],
            env=os.environ | variables,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,  # one signal reaches all processes of the node
            preexec_fn=_end_with_worker,
        ) as job,
    ):
        if os.environ.get(EVENTS):
            threading.Thread(target=_stop_with_parent, args=(job,), daemon=True).start()
        try:
            logs = True
            for line in job.stdout:
                logs = logs and _write(file, line, log)
                _print(line.replace(MARK, ""))
            code = job.wait()
        except KeyboardInterrupt:
            stop(job)
            code = 130
    code = 128 - code if code < 0 else code
    if code == 0:
        _settle_times(node)
    emit(event="end", node=node, code=code, seconds=time.monotonic() - began)
    return code


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(run_command(sys.argv[1], Path(sys.argv[2]), sys.argv[3:]))
