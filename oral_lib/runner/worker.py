"""Runs one node of the plan for Snakemake: shows its output, keeps it as a log, ends it in time.

    python -m oral_lib.worker NODE LOG ARGUMENTS-OF-PYTHON...

Under `reproduce` (EVENTS is set) it also says when the node starts and ends, and its standard input
is a pipe from `reproduce`: when that closes, whoever wanted the node has gone, by Ctrl-C or by
kill -9, and the node must not live on. Imports with the standard library alone.
"""

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

from oral_lib.runner import doctor

EVENTS = "ORAL_EVENTS"
MARK = "\x1e"  # a line that begins so is an event, not output
WHOLE = 512  # bytes, the least that POSIX promises
GRACE = 5.0  # seconds a node gets to end by itself


def say(**event) -> None:
    """Prints an event for `reproduce`; nothing when nobody listens."""
    if os.environ.get(EVENTS):
        _print(MARK + json.dumps(event) + "\n")


def _print(line: str) -> None:
    """Writes a line that no other worker can write into: a pipe takes up to WHOLE bytes at once."""
    data = line.encode()
    with suppress(BrokenPipeError):  # nobody reads any more: the log goes on
        while len(data) > WHOLE:
            os.write(1, data[: WHOLE - 1] + b"\n")
            data = data[WHOLE - 1 :]
        os.write(1, data)


def stop(job: subprocess.Popen, signals=(signal.SIGINT, signal.SIGKILL)) -> None:
    """Ends `job` and all it started: asked first, killed after GRACE seconds."""
    for number in signals:
        with suppress(ProcessLookupError):
            os.killpg(job.pid, number)
        with suppress(subprocess.TimeoutExpired):
            job.wait(GRACE)
            return


def _stop_with_parent(job: subprocess.Popen) -> None:
    while os.read(0, 1024):  # not sys.stdin: a lock held by this thread would trouble the exit
        pass
    stop(job)


@contextmanager
def card() -> Iterator[dict[str, str]]:
    """What lets a node see one GPU of several: one that no other node of this folder has, or where
    each has one that with the most free memory. Nothing where the user chose, or there is one."""
    known = [] if "CUDA_VISIBLE_DEVICES" in os.environ else doctor.cards()
    if len(known) < 2:
        yield {}
        return
    with ExitStack() as files:  # a lock is held until its file is closed, however that comes
        for uuid in known:
            file = files.enter_context(Path(f".{uuid}.lock").open("w"))
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            break
        else:
            uuid = known[0]
        yield {"CUDA_VISIBLE_DEVICES": uuid}


def run(node: str, log: Path, command: list[str]) -> int:
    """The exit code of `python *command`, whose output goes to `log` and to standard output."""
    began = time.monotonic()
    log.parent.mkdir(parents=True, exist_ok=True)
    say(event="start", node=node)
    with (
        log.open("w", encoding="utf-8") as kept,
        card() as chosen,
        subprocess.Popen(
            [sys.executable, *command],
            env=os.environ | chosen,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,  # so that one signal reaches all that the node starts
        ) as job,
    ):
        if os.environ.get(EVENTS):
            threading.Thread(target=_stop_with_parent, args=(job,), daemon=True).start()
        try:
            for line in job.stdout:
                kept.write(line)
                kept.flush()
                _print(line.replace(MARK, ""))
            code = job.wait()
        except KeyboardInterrupt:
            stop(job)
            code = 130
    code = 128 - code if code < 0 else code
    say(event="end", node=node, code=code, seconds=time.monotonic() - began)
    return code


if __name__ == "__main__":
    sys.exit(run(sys.argv[1], Path(sys.argv[2]), sys.argv[3:]))
