"""Runs a plan with Snakemake and tells how it goes: what starts, what ends, how long is left.

Snakemake decides and starts; its own talk goes to logs/snakemake.log. What reaches the terminal is
each node's output and one line at its start and end. Imports with the standard library alone.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from oral_lib.paths import ROOT
from oral_lib.runner import doctor, worker
from oral_lib.runner import nodes as graph
from oral_lib.runner.nodes import Node

Say = Callable[[str], None]


def clock(seconds: float) -> str:
    """Seconds as m:ss, from an hour on as h:mm:ss."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _say(text: str) -> None:
    print(text, flush=True)


class Progress:
    """Turns the workers' lines into what a person wants to see, and keeps what happened."""

    def __init__(self, todo: Sequence[Node], jobs: int, say: Say = _say) -> None:
        self.todo, self.jobs, self.say = list(todo), jobs, say
        self.began = time.monotonic()
        self.started: dict[str, float] = {}  # node -> when
        self.ended: dict[str, float] = {}  # node -> minutes it took
        self.codes: dict[str, int] = {}

    def line(self, text: str) -> None:
        """Takes one line of a worker: an event, or output to pass on."""
        if text.startswith(worker.MARK):
            event = json.loads(text[len(worker.MARK) :])
            getattr(self, f"_{event['event']}")(event)
        else:
            self.say(f"    {text}")

    def _start(self, event: dict) -> None:
        self.started[event["node"]] = time.monotonic()
        self._tell(event["node"], f"started, {self._left()}")

    def _end(self, event: dict) -> None:
        name, code, seconds = event["node"], event["code"], event["seconds"]
        self.codes[name], self.ended[name] = code, seconds / 60
        how = "done" if code == 0 else f"FAILED (exit {code})"
        self._tell(name, f"{how} in {clock(seconds)}, {self._left()}")

    def _tell(self, name: str, what: str) -> None:
        place = list(self.started).index(name) + 1
        self.say(f"node {place}/{len(self.todo)} {name}: {what}")

    def _left(self) -> str:
        now = time.monotonic()
        running = {n: (now - t) / 60 for n, t in self.started.items() if n not in self.ended}
        left = graph.minutes_left(self.todo, self.ended, running, self.jobs)
        return f"elapsed {clock(now - self.began)}, about {clock(60 * left)} left"

    def failed(self) -> dict[str, str]:
        """The nodes that failed or did not leave what they promised, each with a reason."""
        found = {}
        for node in self.todo:
            if node.name not in self.started:
                continue
            code = self.codes.get(node.name)
            missing = [path for path in node.outputs if not Path(path).exists()]
            if code is None:
                found[node.name] = "was cut off"
            elif code == 128 + signal.SIGKILL:
                found[node.name] = "was killed, as a system does that is out of memory"
            elif code:
                found[node.name] = f"ended with exit code {code}"
            elif missing:
                found[node.name] = f"did not write {missing[0]}"
        return found


def command(folder: Path, jobs: int) -> list[str]:
    """The Snakemake command for the plan written in `folder`."""
    memory = max(1, int(0.9 * doctor.memory_mb()[0]))
    threads = max(1, doctor.cores() // jobs)  # Snakemake tells every node, by OMP_NUM_THREADS
    cards = len(doctor.gpus())  # several nodes may share one
    return [
        *(sys.executable, "-P", "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile")),
        *("--directory", str(folder), "--cores", str(jobs * threads), "--scheduler", "greedy"),
        *("--config", f"threads={threads}"),
        *("--resources", f"mem_mb={memory}", f"gpu={max(jobs, cards) if cards else 0}"),
        # a node's own outputs are whole or absent, so a failed node need not lose the whole ones
        *("--keep-going", "--keep-incomplete", "--rerun-incomplete"),
        *("--rerun-triggers", "mtime", "input"),
        "--nolock",  # oral_lib.lock holds the folder; Snakemake's own lock outlives kill -9
    ]


def run(
    nodes: Sequence[Node],
    todo: Collection[str],
    folder: Path,
    source: str,
    *,
    jobs: int,
    locked: int,
    environment: Mapping[str, str],
) -> dict[str, str]:
    """Runs what is due of `nodes` (by name: `todo`); returns the failed nodes and why.

    `locked` is the descriptor of the folder's lock, which Snakemake keeps if this process dies.
    """
    written = folder / "plan.json"
    graph.write(written, nodes, source)
    talk = folder / "logs" / "snakemake.log"
    talk.parent.mkdir(parents=True, exist_ok=True)
    progress = Progress([node for node in nodes if node.name in todo], jobs)
    ends, here = os.pipe()  # workers read `ends`; it closes when this process dies, however it dies
    with talk.open("w", encoding="utf-8") as log:
        engine = subprocess.Popen(
            command(folder, jobs),
            stdin=ends,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            encoding="utf-8",
            errors="replace",
            pass_fds=(locked,),
            start_new_session=True,  # Ctrl-C reaches this process alone, which then ends the others
            env={**environment, worker.EVENTS: "1", "ORAL_PLAN": str(written)},
        )
    os.close(ends)
    try:
        for line in engine.stdout:
            progress.line(line.rstrip("\n"))
        code = engine.wait()
    except BaseException:
        os.close(here)
        _end(engine)
        raise
    os.close(here)
    failed = progress.failed()
    if code != 0 and not failed:
        words = talk.read_text(encoding="utf-8").strip().splitlines()
        failed["snakemake"] = "stopped: " + (" | ".join(words[-3:]) or f"exit code {code}")
    return failed


def _end(engine: subprocess.Popen) -> None:
    """Lets the workers end their nodes (their pipe is closed), then leaves nothing behind."""
    engine.stdout.close()
    engine.send_signal(signal.SIGINT)
    try:
        engine.wait(3 * worker.GRACE)
    except (subprocess.TimeoutExpired, KeyboardInterrupt):  # a second Ctrl-C does not wait
        with suppress(ProcessLookupError):
            os.killpg(engine.pid, signal.SIGKILL)
        engine.wait()
