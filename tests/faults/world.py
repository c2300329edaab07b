"""One world: a run of ./reproduce.sh with a folder and a cache of its own, to kill and start again.

All its processes carry the variable MARK, by which they are found in /proc. Linux only.
"""

import ctypes
import fcntl
import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
MARK = "ORAL_FAULTS_WORLD"
EVENT = re.compile(r"node \d+/\d+ (\S+): (started|done|FAILED)")
TARGETS = {  # words of the command line that a kind of process has
    "snakemake": ("-m", "snakemake"),
    "worker": ("-m", "oral_lib.runner.worker"),
    "node": ("-m", "oral_lib"),
    "kernel": ("-m", "ipykernel_launcher"),
}
SURVIVAL = 15.0  # seconds that processes may outlive the leader of their run


class Process(NamedTuple):
    """One process of a world."""

    pid: int
    parent: int
    words: tuple[str, ...]


def die_with_parent() -> None:
    """For `preexec_fn`: this process gets SIGKILL when the one that started it has ended."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def processes(mark: str) -> list[Process]:
    """The living processes that carry `mark`; zombies have ended."""
    found = []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdecimal():
            continue
        with suppress(OSError):
            if f"{MARK}={mark}".encode() not in (folder / "environ").read_bytes().split(b"\0"):
                continue
            state, parent = (folder / "stat").read_text().rpartition(")")[2].split()[:2]
            words = (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")
            if state != "Z":
                found.append(Process(int(folder.name), int(parent), tuple(words[:-1])))
    return found


def has_words(process: Process, words: Sequence[str]) -> bool:
    """Whether `words` follow each other in the command line of `process`."""
    size = len(words)
    starts = range(len(process.words) - size + 1)
    return any(process.words[i : i + size] == tuple(words) for i in starts)


def descendants(pid: int, among: Iterable[Process]) -> set[int]:
    """The processes that `pid` started, and those that they started."""
    children: dict[int, list[int]] = {}
    for process in among:
        children.setdefault(process.parent, []).append(process.pid)
    found, stack = set(), [pid]
    while stack:
        new = set(children.get(stack.pop(), ())) - found
        found |= new
        stack += new
    return found


def held_locks(folder: Path, patience: float = 3.0) -> list[str]:
    """The lock files under `folder` that some process still holds after `patience` seconds.

    An ending process leaves /proc a moment before its files are closed.
    """
    end = time.monotonic() + patience
    while True:
        held = [str(path) for path in folder.rglob("*.lock") if _is_held(path)]
        if not held or time.monotonic() > end:
            return held
        time.sleep(0.1)


def _is_held(path: Path) -> bool:
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


class World:
    """A run in `folder`, started and killed again and again.

    Args:
        folder: of the world; the run's own folder is out/ in it, its cache cache/.
        command: the command line of the run, without --out.
        cores: the cores that the run may use.
        python: the Python of the run.
        program: arguments of Python that run another program than ./reproduce.sh.
    """

    def __init__(
        self,
        folder: Path,
        command: Sequence[str],
        cores: Iterable[int],
        python: str,
        program: Sequence[str] = (),
    ) -> None:
        self.folder, self.out = folder, folder / "out"
        starts = [python, "-P", *program] if program else ["bash", str(ROOT / "reproduce.sh")]
        self.command = [*starts, *command, "--out", str(self.out)]
        self.cores, self.python = set(cores), python
        self.leader: subprocess.Popen | None = None
        self.starts = 0
        self.reported: dict[str, int] = {}  # node -> number of the start that reported it done
        self.lost: list[str] = []  # nodes that had been reported done and ran again
        self.running: dict[str, float] = {}  # time of start by node that runs
        self.seconds: list[float] = []  # durations of finished nodes
        self.began = 0.0
        self.reader: threading.Thread | None = None

    @property
    def mark(self) -> str:
        """What the processes of this world carry."""
        return str(self.folder)

    def start(self) -> None:
        """Starts the run; its output goes to start-NN.log."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.starts += 1
        self.running.clear()
        environment = os.environ | {
            MARK: self.mark,
            "ORAL_ENV_READY": "1",
            "ORAL_CACHE": str(self.folder / "cache"),
            "PYTHON": self.python,
            "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]).strip(":"),
            "CUDA_VISIBLE_DEVICES": "",
            "JUPYTER_RUNTIME_DIR": str(self.folder / "jupyter"),
            "IPYTHONDIR": str(self.folder / "ipython"),
        }
        cores = self.cores
        self.began = time.monotonic()

        def prepare() -> None:
            die_with_parent()
            os.sched_setaffinity(0, cores)

        self.leader = subprocess.Popen(
            self.command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
            preexec_fn=prepare,  # threads here only read
        )
        log = self.folder / f"start-{self.starts:02}.log"
        self.reader = threading.Thread(target=self._read, args=(self.leader, log, self.starts))
        self.reader.start()

    def _read(self, leader: subprocess.Popen, log: Path, start: int) -> None:
        with log.open("wb") as file:
            for line in leader.stdout:
                file.write(f"{time.monotonic() - self.began:8.2f} ".encode() + line)
                file.flush()
                if event := EVENT.match(line.decode(errors="replace")):
                    self._note(*event.groups(), start)

    def _note(self, node: str, event: str, start: int) -> None:
        now = time.monotonic()
        if event == "started":
            self.running[node] = now
            if self.reported.get(node, start) < start:
                self.lost.append(node)
            return
        began = self.running.pop(node, now)
        if event == "done":
            self.reported[node] = start
            self.seconds.append(now - began)

    def progress(self, nodes: int) -> float:
        """The share of `nodes` that is done; a running node counts by its time."""
        usual = sorted(self.seconds)[len(self.seconds) // 2] if self.seconds else 8.0
        now = time.monotonic()
        parts = sum(min(0.95, (now - began) / usual) for began in list(self.running.values()))
        return (len(self.reported) + parts) / nodes

    def ended(self) -> int | None:
        """The exit code of the run; None while it runs."""
        return self.leader.poll() if self.leader else None

    def find(self, target: str) -> list[int]:
        """The processes that `target` names: group, all, runner, or a kind of TARGETS."""
        if target in ("group", "runner"):
            return [self.leader.pid]
        living = processes(self.mark)
        if target == "all":
            return [process.pid for process in living]
        fitting = [p for p in living if has_words(p, TARGETS[target]) and not _is_shell(p)]
        if target == "node":  # a worker has the words of its node at the end of its own
            fitting = [p for p in fitting if not has_words(p, TARGETS["worker"])]
        return [p.pid for p in fitting]

    def kill(self, target: str, number: int, pids: Sequence[int]) -> set[int]:
        """Sends the signal `number`; the processes that must end now."""
        living = processes(self.mark)
        if target == "group":
            os.killpg(self.leader.pid, number)
        else:
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, number)
        if target in ("group", "runner", "all"):
            return {process.pid for process in living}
        if target == "snakemake":
            return set()  # its workers end their nodes by themselves
        below = set().union(*(descendants(pid, living) for pid in pids), pids)
        return below if number == signal.SIGKILL or target != "kernel" else set()

    def seconds_until_gone(self, pids: set[int], limit: float = SURVIVAL) -> float | None:
        """Seconds until none of `pids` lives; None if one still does after `limit`."""
        began = time.monotonic()
        while time.monotonic() - began < limit:
            if not pids & {process.pid for process in processes(self.mark)}:
                return time.monotonic() - began
            time.sleep(0.1)
        return None

    def done_in_this_start(self) -> list[str]:
        """The nodes that the present start reported done."""
        return [node for node, start in self.reported.items() if start == self.starts]

    def close(self) -> None:
        """Ends every process of this world."""
        for process in processes(self.mark):
            with suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)
        if self.leader:
            self.leader.wait()
            self.reader.join(10)


def _is_shell(process: Process) -> bool:
    return Path(process.words[0]).name in ("sh", "bash") if process.words else False


def phase(running: Iterable[str], done: Iterable[str]) -> str:
    """The phase of a start in which these nodes run and `done` are done."""
    names = [name.split("/") for name in running]
    kinds = [n[1] if n[0] in ("vision", "unseen", "multimodal") else n[0] for n in names]
    for label, members in PHASES.items():
        if any(kind in members for kind in kinds):
            return label
    if names:
        return "cells"
    return "between nodes" if list(done) else "start-up"


PHASES = {
    "report": ("report",),
    "notebooks": ("tutorial", "method"),
    "zoo": ("zoo", "align", "assets", "evolve", "tune"),
    "training": ("generator", "regression", "multitask", "unconditional"),
}
