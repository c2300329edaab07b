"""Runs a plan with Snakemake and prints its progress: starts, ends, time left.

Snakemake orders and starts the nodes; its own output goes to logs/snakemake.log. The terminal gets
the output of each node and a line at its start and end. Imports with the standard library only.
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

from oral_lib import machine
from oral_lib.paths import ROOT
from oral_lib.runner import nodes as graph
from oral_lib.runner import worker
from oral_lib.runner.nodes import Node

Print = Callable[[str], None]


def _print(text: str) -> None:
    print(text, flush=True)


class Progress:
    """Prints the progress of `due` nodes from the lines of their workers.

    Args:
        due: the nodes to run.
        jobs: nodes at a time.
        write: prints one line.
    """

    def __init__(self, due: Sequence[Node], jobs: int, write: Print = _print) -> None:
        self.due, self.jobs, self.write = list(due), jobs, write
        self.began = time.monotonic()
        self.started: dict[str, float] = {}  # time of start by node, in seconds
        self.ended: dict[str, float] = {}  # duration by node, in minutes
        self.codes: dict[str, int] = {}  # exit code by node

    def line(self, text: str) -> None:
        """Processes one line of a worker: an event, or output to print."""
        if text.startswith(worker.MARK):
            event = json.loads(text[len(worker.MARK) :])
            getattr(self, f"_{event['event']}")(event)
        else:
            self.write(f"    {text}")

    def _start(self, event: dict) -> None:
        self.started[event["node"]] = time.monotonic()
        self._report(event["node"], f"started, {self._left()}")

    def _end(self, event: dict) -> None:
        name, code, seconds = event["node"], event["code"], event["seconds"]
        self.codes[name], self.ended[name] = code, seconds / 60
        verdict = "done" if code == 0 else f"FAILED (exit {code})"
        self._report(name, f"{verdict} in {graph.duration(seconds)}, {self._left()}")

    def _report(self, name: str, event: str) -> None:
        number = list(self.started).index(name) + 1
        self.write(f"node {number}/{len(self.due)} {name}: {event}")

    def _left(self) -> str:
        now = time.monotonic()
        running = {n: (now - t) / 60 for n, t in self.started.items() if n not in self.ended}
        left = graph.minutes_left(self.due, self.ended, running, self.jobs)
        elapsed = graph.duration(now - self.began)
        return f"elapsed {elapsed}, about {graph.duration(60 * left)} left"

    def failed(self) -> dict[str, str]:
        """The nodes that failed or did not write all outputs, each with the reason."""
        reasons = {}
        for node in self.due:
            if node.name not in self.started:
                continue
            code = self.codes.get(node.name)
            missing = [path for path in node.outputs if not Path(path).exists()]
            if code is None:
                reasons[node.name] = "was interrupted"
            elif code == 128 + signal.SIGKILL:
                reasons[node.name] = "was killed, probably because memory ran out"
            elif code:
                reasons[node.name] = f"ended with exit code {code}"
            elif missing:
                reasons[node.name] = f"did not write {missing[0]}"
        return reasons


def command(folder: Path, jobs: int) -> list[str]:
    """The Snakemake command for the plan written in `folder`."""
    memory = max(1, int(0.9 * machine.memory_mb()[0]))
    threads = max(1, machine.cores() // jobs)  # passed to every node as OMP_NUM_THREADS
    cards = len(machine.gpus())  # several nodes may share one
    return [
        *(sys.executable, "-P", "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile")),
        *("--directory", str(folder), "--cores", str(jobs * threads), "--scheduler", "greedy"),
        *("--config", f"threads={threads}"),
        *("--resources", f"mem_mb={memory}", f"gpu={max(jobs, cards) if cards else 0}"),
        # a node writes each output as a whole or not at all: a failed or killed node keeps complete
        # ones, and one that was killed after its last output is done
        *("--keep-going", "--keep-incomplete", "--ignore-incomplete"),
        *("--rerun-triggers", "mtime", "input"),
        *("--max-checksum-file-size", "0"),  # what `nodes.due` lists runs, whatever its content
        *(
            "--profile",
            "none",
            "--workflow-profile",
            "none",
        ),  # settings of the user, as of a cluster
        "--nolock",  # runner.lock locks the folder; Snakemake's own lock outlives kill -9
    ]


def run_nodes(
    nodes: Sequence[Node],
    due: Collection[str],
    folder: Path,
    source: str,
    *,
    jobs: int,
    locked: int,
    environment: Mapping[str, str],
) -> dict[str, str]:
    """The failed nodes with the reason, after running the due ones.

    Args:
        nodes: the plan, in order.
        due: the names of the nodes to run.
        folder: the run folder.
        source: the data source, written with the plan.
        jobs: nodes at a time.
        locked: descriptor of the folder's lock, which Snakemake keeps if this process dies.
        environment: environment variables of the nodes.
    """
    plan = folder / "plan.json"
    graph.write_plan(plan, nodes, source)
    log_path = folder / "logs" / "snakemake.log"
    log_path.parent.mkdir(parents=True, exist_ok=True)
    progress = Progress([node for node in nodes if node.name in due], jobs)
    # workers read from one end; it closes when this process ends, however it ends
    read_end, write_end = os.pipe()
    with log_path.open("w", encoding="utf-8") as log:
        engine = subprocess.Popen(
            command(folder, jobs),
            stdin=read_end,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            encoding="utf-8",
            errors="replace",
            pass_fds=(locked,),
            start_new_session=True,  # Ctrl-C reaches only this process, which then ends the others
            env={**environment, worker.EVENTS: "1", "ORAL_PLAN": str(plan)},
        )
    os.close(read_end)
    try:
        for line in engine.stdout:
            progress.line(line.rstrip("\n"))
        code = engine.wait()
    except BaseException:
        os.close(write_end)
        _end(engine)
        raise
    os.close(write_end)
    failed = progress.failed()
    if code != 0 and not failed:
        lines = log_path.read_text(encoding="utf-8").strip().splitlines()
        failed["snakemake"] = "stopped: " + (" | ".join(lines[-3:]) or f"exit code {code}")
    return failed


def _end(engine: subprocess.Popen) -> None:
    """Waits until the workers have ended their nodes (their pipe is closed), then ends them."""
    engine.stdout.close()
    engine.send_signal(signal.SIGINT)
    try:
        engine.wait(3 * worker.GRACE)
    except (subprocess.TimeoutExpired, KeyboardInterrupt):  # a second Ctrl-C does not wait
        with suppress(ProcessLookupError):
            os.killpg(engine.pid, signal.SIGKILL)
        engine.wait()
