"""Nodes that make files out of files: which to run, why, and how long it may take.

Nothing here knows what the nodes do; `plan` names them. Imports with the standard library alone.
"""

from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from oral_lib import storage
from oral_lib.errors import OralError, PreflightError, UsageError, closest


@dataclass(frozen=True)
class Node:
    """One step: `command` (arguments of python) makes `outputs` out of `inputs`.

    `after` must be there first, but its age says nothing (a cache). `published` is written outside
    the run folder, where nothing may delete it. `resumes` says that the command goes on from those
    of its outputs that are there. `minutes` is a guess on 2 cores, for the time left.
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
            raise UsageError(f"node {self.name!r} leaves no output, so it would never be done.")
        if self.memory_mb <= 0 or self.minutes < 0 or self.gpu < 0:
            raise UsageError(
                f"node {self.name!r}: memory_mb={self.memory_mb}, minutes={self.minutes}, "
                f"gpu={self.gpu}; memory must be positive, the others must not be negative."
            )


def select(plan: Sequence[Node], patterns: Sequence[str] | None) -> list[Node]:
    """The nodes whose names match one of `patterns` (all without patterns), in the plan's order."""
    names = [node.name for node in plan]
    for pattern in patterns or ():
        if not any(fnmatchcase(name, pattern) for name in names):
            near = closest(pattern, [*names, *(f"{name.split('/')[0]}/*" for name in names)])
            raise UsageError(f"no node matches {pattern!r}.{near} --list shows all nodes.")
    if not patterns:
        return list(plan)
    return [n for n in plan if any(fnmatchcase(n.name, pattern) for pattern in patterns)]


def with_needs(plan: Sequence[Node], chosen: Sequence[Node]) -> list[Node]:
    """`chosen` and every node that makes something they need, in the plan's order."""
    maker = {path: node for node in plan for path in node.outputs}
    wanted, todo = set(), [*chosen]
    while todo:
        node = todo.pop()
        if node.name not in wanted:
            wanted.add(node.name)
            todo += [maker[path] for path in (*node.inputs, *node.after) if path in maker]
    return [node for node in plan if node.name in wanted]


def due(plan: Sequence[Node], forced: Collection[str] = ()) -> dict[str, str]:
    """The nodes of `plan` that have to run, each with the reason; empty when all is done.

    The rule is Snakemake's (missing, or older than an input), told in milliseconds. The nodes
    named in `forced` count as missing.
    """
    reasons: dict[str, str] = {}
    maker = {path: node.name for node in plan for path in node.outputs}
    for node in plan:
        ages = {path: _age(path) for path in (*node.inputs, *node.outputs)}
        missing = [p for p in (*node.outputs, *node.published) if not Path(p).exists()]
        before = [maker[p] for p in node.inputs if maker.get(p) in reasons]
        if node.name in forced:
            reasons[node.name] = "wanted anew"
        elif missing:
            reasons[node.name] = f"{Path(missing[0]).name} is not there"
        elif before:
            reasons[node.name] = f"{before[0]} runs again"
        else:
            oldest = min(ages[p] for p in node.outputs)
            newer = [p for p in node.inputs if ages[p] > oldest]
            if newer:
                reasons[node.name] = f"{Path(newer[0]).name} is newer"
    return reasons


def lacking(plan: Sequence[Node]) -> list[str]:
    """The inputs that are not there and that no node of `plan` makes."""
    made = {path for node in plan for path in node.outputs}
    needed = {path for node in plan for path in (*node.inputs, *node.after)}
    return sorted(path for path in needed - made if not Path(path).exists())


def _age(path: str) -> float:
    try:
        return Path(path).stat().st_mtime
    except OSError:  # not there, or below what is no folder
        return 0.0


def minutes_left(
    plan: Sequence[Node], finished: dict[str, float], running: dict[str, float], jobs: int
) -> float:
    """Minutes until all of `plan` is done: the guesses, scaled by how the finished nodes fared.

    `finished` and `running` map names to the minutes spent on them. A node that took less than a
    tenth of its guess found its work done (a cache) and says nothing of the pace.
    """
    guess = {node.name: node.minutes for node in plan}
    worked = {name: took for name, took in finished.items() if took >= 0.1 * guess[name]}
    known = sum(guess[name] for name in worked)
    pace = sum(worked.values()) / known if known else 1.0
    left = sum(
        max(0.0, pace * minutes - running.get(name, 0.0))
        for name, minutes in guess.items()
        if name not in finished
    )
    return left / max(1, jobs)


def write(path: Path, plan: Sequence[Node], source: str) -> None:
    """Writes the nodes for the Snakefile, and the source they belong to."""
    storage.write_json(path, {"source": source, "nodes": [asdict(node) for node in plan]})


def read(path: str | Path) -> list[Node]:
    """The nodes written by `write`."""
    return [
        Node(**{k: tuple(v) if isinstance(v, list) else v for k, v in node.items()})
        for node in storage.read_json(path)["nodes"]
    ]


def same_source(path: Path, source: str) -> None:
    """`UsageError` if what is noted at `path` belongs to another source: results must never mix.
    `PreflightError` if that cannot be read."""
    if path.exists():
        try:
            before = storage.read_json(path)["source"]
        except (OralError, KeyError, TypeError) as error:
            raise PreflightError(
                f"{path} is damaged, so whose run this is cannot be told: remove it if the run is "
                f"of --source {source}, or start --from-scratch."
            ) from error
        if before != source:
            raise UsageError(
                f"{path.parent} holds a run of --source {before}, not {source}: name another "
                "folder with --out, or start --from-scratch."
            )
