"""Sweeps: a YAML file names a notebook and a grid of its parameters; every cell runs once.

    notebook: 10_language
    parameters: {scale: lab, source: packages}                  # the same in every cell
    grid: {base: [minilm-l6], task: [movie], seed: [0, 1, 2]}   # cells: the product of the lists
    cells: [{base: smollm2-135m, task: sarcasm, seed: 1}]       # further cells

A cell is identified by the values of all its parameters, defaults included. If the plan has a node
with the same values, the cell is that node. A cell that differs from a cell of the plan only in
base model, task or seed has the outputs that the plan would give it. So a second sweep or a later
plan never runs a cell again.
"""

import hashlib
import json
import math
import re
import shlex
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from oral_lib import paths, scales
from oral_lib.documents.document import Document, load_yaml
from oral_lib.documents.schema import VISIBLE
from oral_lib.documents.words import short
from oral_lib.errors import UsageError
from oral_lib.experiments.records import EXPERIMENTS
from oral_lib.runner import environment
from oral_lib.runner import nodes as graph
from oral_lib.runner.nodes import Node
from oral_lib.tasks import wordings
from oral_lib.workflow import notebooks, plan, reproduce

_VALUE = {"type": ["string", "integer", "number", "boolean"]}
_VALUES = {"type": "array", "items": _VALUE, "minItems": 1, "description": "a list of values"}
_SCHEMA = {
    "type": "object",
    "required": ["notebook"],
    "additionalProperties": False,
    "properties": {
        "notebook": VISIBLE,
        "parameters": {"type": "object", "additionalProperties": _VALUE},
        "grid": {"type": "object", "additionalProperties": _VALUES},
        "cells": {
            "type": "array",
            "items": {"type": "object", "additionalProperties": _VALUE, "minProperties": 1},
        },
    },
}
LONGEST_TEXT = 500  # letters of a name or value
MOST_CELLS = 10_000  # of one file
WHERE = ("scale", "source", "out")  # the same in every cell: a sweep belongs to one run
BY_NOTEBOOK = {record.notebook: name for name, record in EXPERIMENTS.items()}
CELL_PARAMETERS = ("base", "task", "seed")  # identify a cell of the plan
# of notebooks outside the plan: the nodes that they need for each base model (default: all
# generators), and the file that they write to results/<scale>
NEEDS = {"70_ablations": "zoo/{base}*"}
PUBLISHED = {"70_ablations": "ablations.csv"}

Cell = Mapping[str, Any]  # every parameter of the notebook except WHERE


@dataclass(frozen=True)
class Sweep:
    """A sweep file after all checks.

    Args:
        path: the file.
        notebook: the notebook that runs.
        defaults: of all parameters of the notebook.
        scale: of the run.
        source: of the run.
        cells: complete parameter values, no two equal.
    """

    path: Path
    notebook: Path
    defaults: dict[str, Any]
    scale: str
    source: str
    cells: tuple[Cell, ...]


# ---------------------------------------------------------------- the file
def read_sweep(path: Path, scale: str | None = None, source: str | None = None) -> Sweep:
    """The sweep in the file `path`.

    Args:
        path: the YAML file.
        scale: replaces the scale in the file.
        source: replaces the source in the file.

    Raises:
        UsageError: one line that names file, line and key. The form is wrong, a notebook, parameter
            or value is unknown or of another type, or the scale has no such cell.
    """
    document = load_yaml(path)
    document.check(_SCHEMA)
    content = {"parameters": {}, "grid": {}, "cells": []} | document.content
    _check_lengths(document)
    try:
        notebook = notebooks.find(content["notebook"])
        allowed = notebooks.parameters(notebook)
        defaults = {name: about.default for name, about in allowed.items()}
        if missing := [name for name in WHERE if name not in defaults]:
            raise UsageError(
                f"{notebook.name} has no parameter {missing[0]!r}: a notebook of a sweep needs it."
            )
    except UsageError as error:
        raise document.error(str(error), "notebook") from error
    _check_places(document, content)
    fixed = content["parameters"]
    scale = scale or fixed.get("scale", defaults["scale"])
    source = source or fixed.get("source", defaults["source"])
    cells: dict[str, Cell] = {}
    for number, (place, varied) in enumerate(_combinations(content), 1):
        values = fixed | varied | {"scale": scale, "source": source}
        try:
            texts = {name: _text(name, value, defaults) for name, value in values.items()}
            cell = defaults | notebooks.check_against(notebook, allowed, texts)
        except UsageError as error:
            settings = ", ".join(f"{name}={short(value)}" for name, value in varied.items())
            raise document.error(f"cell {number} ({settings}): {error}", *place) from error
        cell = {name: value for name, value in cell.items() if name not in WHERE}
        cells.setdefault(_key(notebook.stem, cell), cell)
    return Sweep(path, notebook, defaults, scale, source, tuple(cells.values()))


def _check_lengths(document: Document, *place: str | int) -> None:
    """Raises UsageError for a name or a text that no parameter can have."""
    value = document.content
    for key in place:
        value = value[key]
    if isinstance(value, str) and len(value) > LONGEST_TEXT:
        fault = f"{short(value)} has {len(value):,} letters, more than {LONGEST_TEXT}."
        raise document.error(fault, *place)
    keys: Iterable[str | int] = range(len(value)) if isinstance(value, list) else ()
    for key in value if isinstance(value, dict) else keys:
        if isinstance(key, str) and len(key) > LONGEST_TEXT:
            raise document.error(f"has a name of {len(key):,} letters: {short(key)}.", *place)
        _check_lengths(document, *place, key)


def _check_places(document: Document, content: Mapping[str, Any]) -> None:
    """Raises UsageError for a parameter in the wrong part, and for a sweep without cells."""
    if not content["grid"] and not content["cells"]:
        raise document.error("it has neither `grid` nor `cells`, so no cell.")
    cells = math.prod(map(len, content["grid"].values())) + len(content["cells"])
    if cells > MOST_CELLS:
        raise document.error(f"has {cells:,} cells, more than {MOST_CELLS:,}: split the file.")
    fixed = content["parameters"]
    if "out" in fixed:
        fault = "`out` is not a parameter of a sweep: use --out."
        raise document.error(fault, "parameters", "out")
    parts = [(("grid",), content["grid"])]
    parts += [(("cells", i), cell) for i, cell in enumerate(content["cells"])]
    for place, varied in parts:
        for name in varied:
            if name in WHERE:
                fault = f"{name!r} must be the same in all cells: put it in `parameters`."
                raise document.error(fault, *place, name)
            if name in fixed:
                fault = f"{name!r} is in `parameters` and in a cell: leave one out."
                raise document.error(fault, *place, name)


def _combinations(content: Mapping[str, Any]) -> Iterator[tuple[tuple, dict[str, Any]]]:
    """(place in the file, varied parameters) of each cell: the product of the grid, then the listed
    cells."""
    grid = content["grid"]
    if grid:
        for values in product(*grid.values()):
            yield ("grid",), dict(zip(grid, values, strict=True))
    for i, cell in enumerate(content["cells"]):
        yield ("cells", i), cell


def _text(name: str, value: Any, defaults: Mapping[str, Any]) -> str:
    """`value` as the command line would pass it.

    Raises UsageError if YAML read a text as something else (no, 12, a list).
    """
    if isinstance(value, str):
        return value
    default = defaults.get(name)
    if isinstance(default, str):
        raise UsageError(f"parameter {name} must be a text like {default!r}, got {short(value)}.")
    try:
        return json.dumps(value, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise UsageError(f"parameter {name} cannot be {short(value)}.") from error


def _key(stem: str, cell: Cell) -> str:
    """A hash of the notebook and all its parameters."""
    text = json.dumps([stem, cell], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


# ---------------------------------------------------------------- the nodes
def sweep_nodes(sweep: Sweep, scale: str, source: str, out: Path) -> tuple[list[Node], list[Node]]:
    """(nodes of the cells, these and all nodes that they need in order)."""
    planned = plan.nodes(scale, source, out)
    by_key = {}  # (node, cell) of this notebook in the plan
    for node in planned:
        cell = _cell_of(node, sweep)
        if cell is not None:
            by_key[_key(sweep.notebook.stem, cell)] = (node, cell)
    where = {"scale": scale, "source": source, "out": str(out)}
    chosen, added = [], []
    for cell in sweep.cells:
        key = _key(sweep.notebook.stem, cell)
        if key not in by_key:
            run = paths.run_folder(scale, source, out)
            siblings = list(by_key.values())
            by_key[key] = (_node(sweep, cell, key, run, where, siblings, planned), cell)
            added.append(by_key[key][0])
        chosen.append(by_key[key][0])
    return chosen, graph.with_needs([*planned, *added], chosen)


def _cell_of(node: Node, sweep: Sweep) -> Cell | None:
    """The parameters of a node that runs the notebook of the sweep, else None."""
    start = (*plan.PROJECT, "notebook", sweep.notebook.stem)
    if node.command[: len(start)] != start:
        return None
    words = node.command[len(start) + 1 :]  # after the executed notebook: -p NAME VALUE ...
    values = {
        name: notebooks.typed(name, text, sweep.defaults[name])
        for name, text in zip(words[1::3], words[2::3], strict=True)
    }
    return {n: v for n, v in (sweep.defaults | values).items() if n not in WHERE}


def _node(
    sweep: Sweep,
    cell: Cell,
    key: str,
    run: Path,
    where: Mapping[str, str],
    siblings: Sequence[tuple[Node, Cell]],
    planned: Sequence[Node],
) -> Node:
    """The node of a cell that the plan does not have.

    Args:
        sweep: the sweep of the cell.
        cell: its parameters.
        key: `_key` of the cell.
        run: the run folder.
        where: scale, source and out.
        siblings: (node, parameters) of other cells of this notebook.
        planned: all nodes of the plan.
    """
    stem = sweep.notebook.stem
    costs = {"memory_mb": max(node.memory_mb for node in planned), "minutes": 1.0}
    costs |= {"gpu": max(node.gpu for node in planned)}
    if stem in PUBLISHED:
        results = paths.results_folder(where["scale"], where["out"])
        costs |= {"published": (str(results / PUBLISHED[stem]),)}
    inputs = _inputs(planned, stem, cell, where)
    name, outputs = f"sweep/{stem}/{_readable(cell, sweep.defaults)}{key}", ()
    similar = [s for s in siblings if _other_parameters(s[1]) == _other_parameters(cell)]
    if similar and identifies_cell(cell):
        place = [cell[name] for name in CELL_PARAMETERS]
        node, _ = next((s for s in similar if place[0] in s[1].values()), similar[0])
        costs = {"memory_mb": node.memory_mb, "minutes": node.minutes, "gpu": node.gpu}
        inputs = node.inputs[1:]  # the first is the notebook
        experiment = node.name.split("/")[0]
        name = "{}/{}/{}/seed-{}".format(experiment, *place)
        root = paths.experiment_folder(where["scale"], where["source"], where["out"], experiment)
        folder = paths.cell_folder(root, experiment, *place)
        outputs = [folder / Path(path).name for path in node.outputs[:-1]]
    return plan.notebook_node(name, stem, run, {**cell, **where}, outputs, inputs, **costs)


def identifies_cell(parameters: Collection[str]) -> bool:
    """Whether the parameters include a base model, a task and a seed."""
    return set(CELL_PARAMETERS) <= set(parameters)


def experiment_of(stem: str, cell: Cell, scale: str, source: str) -> str:
    """The experiment of the notebook `stem`.

    For a notebook of no experiment, its parameter `experiment`, or the first experiment with its
    base model (default: language).
    """
    with_base = (
        name
        for name in scales.experiments(scale, source)
        if any(entry.base == cell.get("base") for entry in scales.base_plans(scale, source, name))
    )
    return BY_NOTEBOOK.get(stem) or cell.get("experiment") or next(with_base, "language")


def _other_parameters(cell: Cell) -> dict[str, Any]:
    """The parameters that do not identify a cell of the plan."""
    return {name: value for name, value in cell.items() if name not in CELL_PARAMETERS}


def _inputs(
    planned: Sequence[Node], stem: str, cell: Cell, where: Mapping[str, str]
) -> tuple[str, ...]:
    """The outputs of the plan that a cell of the notebook `stem` needs."""
    experiment = experiment_of(stem, cell, where["scale"], where["source"])
    prefix = EXPERIMENTS[experiment].prefix
    patterns = [f"{prefix}generator*", f"{prefix}regression*"]
    if stem in NEEDS:
        patterns = [NEEDS[stem].format(base=base) for base in cell["bases"].split()]
    return tuple(path for node in graph.select(planned, patterns) for path in node.outputs)


def _readable(cell: Cell, defaults: Mapping[str, Any]) -> str:
    """Up to three parameters that differ from their defaults, as part of a file name."""
    parts = [f"{name}-{value}" for name, value in cell.items() if value != defaults[name]]
    return "".join(re.sub(r"[^\w.]+", "-", part)[:40].strip("-.") + "--" for part in parts[:3])


# ---------------------------------------------------------------- running
def run_sweep(
    path: Path,
    *,
    scale: str | None = None,
    source: str | None = None,
    out: Path = paths.ROOT,
    jobs: int = 1,
    dry_run: bool = False,
    offline: bool = False,
) -> int:
    """The exit code, after running the due cells of the file `path` and the nodes that they need.

    The whole file is checked before anything starts.

    Args:
        path: the sweep file.
        scale: replaces the scale in the file.
        source: replaces the source in the file.
        out: the folder of runs/ and results/.
        jobs: nodes that run at the same time.
        dry_run: only print what would run, and why.
        offline: fail if a model or data set has to be downloaded.
    """
    sweep = read_sweep(Path(path), scale, source)
    words = ["--scale", sweep.scale, "--jobs", str(jobs), "--out", str(out)]
    words += ["--source", sweep.source] if sweep.scale != "smoke" else []
    words += ["--dry-run"] * dry_run + ["--offline"] * offline
    kind = sweep.source if sweep.scale != "smoke" else "made"
    words += ["--wordings", wordings.recorded(paths.run_folder(sweep.scale, kind, out))]

    def planner(scale: str, source: str, out: Path) -> list[Node]:
        cells, wanted = sweep_nodes(sweep, scale, source, out)
        due = graph.due(wanted)
        left = sum(node.name in due for node in cells)
        print(f"{path}: {len(cells)} cells, {len(cells) - left} of them done", flush=True)
        return wanted

    code = reproduce.main(words, planner=planner)
    if code == 0 and not dry_run and identifies_cell(sweep.defaults):
        where = ["--scale", sweep.scale, "--source", sweep.source, "--out", str(out)]
        experiment = experiment_of(sweep.notebook.stem, sweep.cells[0], sweep.scale, sweep.source)
        where += ["--experiment", experiment]
        print("publish:", shlex.join([*environment.project_command(), "report", *where]))
    return code
