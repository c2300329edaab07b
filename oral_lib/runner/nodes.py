"""Nodes that make files out of files: which are due, why, and the time that is left.

Nothing here depends on what the nodes compute. Imports with the standard library only.
"""

import os
import time
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from oral_lib import storage
from oral_lib.errors import OralError, PreflightError, UsageError, closest


@dataclass(frozen=True)
class Node:
    """One step: `command` makes `outputs` out of `inputs`.

    Args:
        name: unique in a plan.
        outputs: the files that it writes, in the run folder.
        command: the arguments of Python.
        inputs: the files that it reads. A newer one makes the node due.
        after: files that have to exist first; their age has no effect (a cache).
        published: files outside the run folder, which nothing may delete.
        resumes: the command continues from existing outputs.
        memory_mb: estimate of the memory.
        minutes: estimate of the duration on 2 cores.
        gpu: number of GPUs.

    Raises:
        UsageError: it has no output, or a negative cost.
    """

    name: str
    outputs: tuple[str, ...]
    command: tuple[str, ...]
    inputs: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    published: tuple[str, ...] = ()
    resumes: bool = False
    memory_mb: int = 1000
    minutes: float = 1.0
    gpu: int = 0

    def __post_init__(self) -> None:
        if not self.outputs:
            raise UsageError(f"node {self.name!r} has no output, so it would never be done.")
        if self.memory_mb <= 0 or self.minutes < 0 or self.gpu < 0:
            raise UsageError(
                f"node {self.name!r}: memory_mb={self.memory_mb}, minutes={self.minutes}, "
                f"gpu={self.gpu}; memory must be positive, the others must not be negative."
            )


def select(plan: Sequence[Node], patterns: Sequence[str] | None) -> list[Node]:
    """The nodes whose names match one of `patterns` (none: all nodes), in the order of the plan.

    Raises UsageError, with the nearest name, if a pattern matches no node.
    """
    names = [node.name for node in plan]
    for pattern in patterns or ():
        if not any(fnmatchcase(name, pattern) for name in names):
            near = closest(pattern, [*names, *(f"{name.split('/')[0]}/*" for name in names)])
            raise UsageError(f"no node matches {pattern!r}.{near} --list shows all nodes.")
    if not patterns:
        return list(plan)
    return [n for n in plan if any(fnmatchcase(n.name, pattern) for pattern in patterns)]


def with_needs(plan: Sequence[Node], chosen: Sequence[Node]) -> list[Node]:
    """`chosen` and all nodes that they depend on, in the order of the plan."""
    maker = {path: node for node in plan for path in node.outputs}
    names, stack = set(), [*chosen]
    while stack:
        node = stack.pop()
        if node.name not in names:
            names.add(node.name)
            stack += [maker[path] for path in (*node.inputs, *node.after) if path in maker]
    return [node for node in plan if node.name in names]


def due(plan: Sequence[Node], forced: Collection[str] = ()) -> dict[str, str]:
    """The names of the nodes of `plan` that have to run, each with the reason.

    A node is due if an output is missing or older than an input, as in Snakemake. The nodes named
    in `forced` are due.
    """
    reasons: dict[str, str] = {}
    maker = {path: node.name for node in plan for path in node.outputs}
    for node in plan:
        times = {path: _modified(path) for path in (*node.inputs, *node.outputs)}
        missing = [p for p in (*node.outputs, *node.published) if not Path(p).exists()]
        before = [maker[p] for p in node.inputs if maker.get(p) in reasons]
        if node.name in forced:
            reasons[node.name] = "is forced"
        elif missing:
            reasons[node.name] = f"{Path(missing[0]).name} is missing"
        elif before:
            reasons[node.name] = f"{before[0]} runs again"
        else:
            oldest = min(times[p] for p in node.outputs)
            newer = [p for p in node.inputs if times[p] > oldest]
            if newer:
                reasons[node.name] = f"{Path(newer[0]).name} is newer"
    return reasons


def settle_times(plan: Sequence[Node], finished: Node | None = None) -> int:
    """The number of files of `plan` with a time in the future, after they got the present time.

    Where a clock was set back, a new file would look older than the files that it is made from. The
    files keep their order; what `finished` has written is the newest.

    Raises:
        PreflightError: a time cannot be changed.
    """
    now = time.time_ns()
    mine = set(finished.outputs) if finished else set()
    paths = {path for node in plan for path in (*node.inputs, *node.after, *node.outputs)} - mine
    times = {path: Path(path).stat().st_mtime_ns for path in paths if Path(path).exists()}
    future = [path for path, modified in times.items() if modified > now]
    last = max((modified for modified in times.values() if modified <= now), default=now)
    later = {
        modified: last + 1000 * i
        for i, modified in enumerate(sorted(set(times[path] for path in future)), 1)
    }
    for path in future:
        try:
            os.utime(path, ns=(later[times[path]],) * 2)
        except OSError as error:
            raise PreflightError(
                f"{path} has a time in the future, which cannot be changed ({error.strerror}): set "
                "the clock of this machine, or touch the file."
            ) from error
    for path in mine if future else ():
        os.utime(path)
    return len(future)


def missing_inputs(plan: Sequence[Node]) -> list[str]:
    """The inputs that do not exist and that no node of `plan` writes."""
    outputs = {path for node in plan for path in node.outputs}
    inputs = {path for node in plan for path in (*node.inputs, *node.after)}
    return sorted(path for path in inputs - outputs if not Path(path).exists())


def _modified(path: str) -> float:
    """The modification time in seconds; 0 for a missing file."""
    try:
        return Path(path).stat().st_mtime
    except OSError:
        return 0.0


def minutes_left(
    plan: Sequence[Node], finished: dict[str, float], running: dict[str, float], jobs: int
) -> float:
    """Minutes until all of `plan` is done: the estimates, scaled by the pace of the finished nodes.

    A node that took less than a tenth of its estimate used a cache; it does not count.

    Args:
        plan: the nodes.
        finished: minutes by name of a finished node.
        running: minutes so far by name of a running node.
        jobs: nodes at a time.
    """
    estimate = {node.name: node.minutes for node in plan}
    worked = {name: took for name, took in finished.items() if took >= 0.1 * estimate[name]}
    expected = sum(estimate[name] for name in worked)
    pace = sum(worked.values()) / expected if expected else 1.0
    left = sum(
        max(0.0, pace * minutes - running.get(name, 0.0))
        for name, minutes in estimate.items()
        if name not in finished
    )
    return left / max(1, jobs)


def duration(seconds: float) -> str:
    """Seconds in the units of people.

    >>> [duration(seconds) for seconds in (5.4, 312, 7_500, 2_000_000)]
    ['5 s', '5 min 12 s', '2 h 05 min', '555 h']
    """
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours >= 100:
        return f"{hours:,} h"
    if hours:
        return f"{hours} h {minutes:02} min"
    return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"


def write_plan(path: Path, plan: Sequence[Node], source: str) -> None:
    """Writes the nodes for the Snakefile, and their data source."""
    storage.write_json(path, {"source": source, "nodes": [asdict(node) for node in plan]})


def read_plan(path: str | Path) -> list[Node]:
    """The nodes written by `write_plan`."""
    return [
        Node(**{k: tuple(v) if isinstance(v, list) else v for k, v in node.items()})
        for node in storage.read_json(path)["nodes"]
    ]


def same_source(path: Path, source: str) -> None:
    """Raises UsageError if the file `path` names another data source: results must not mix.

    Raises PreflightError if the file is damaged.
    """
    if path.exists():
        try:
            before = storage.read_json(path)["source"]
        except (OralError, KeyError, TypeError) as error:
            raise PreflightError(
                f"{path} is damaged, so the source of this run is unknown: remove the file if it "
                f"is --source {source}, or use --from-scratch."
            ) from error
        if before != source:
            raise UsageError(
                f"{path.parent} has a run of --source {before}, not {source}: name another "
                "folder with --out, or use --from-scratch."
            )
