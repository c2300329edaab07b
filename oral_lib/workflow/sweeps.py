"""Sweeps: a YAML file names a notebook and a grid of its parameters; every cell is run once.

    notebook: 10_language
    parameters: {scale: lab, source: packages}            the same in every cell
    grid: {base: [minilm-l6], task: [movie], seed: [0, 1, 2]}       cells: their product,
    cells: [{base: smollm2-135m, task: sarcasm, seed: 1}]           and these

A cell is known by the values of all its parameters, given or not. Where the plan has a node of the
same values that node is the cell, and a cell that differs from one of the plan's in base, task or
seed alone lies where the plan would put it. So no two files, and no later plan, run a cell again.
"""

import hashlib
import json
import re
import shlex
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import yaml

from oral_lib import paths, scales
from oral_lib.errors import UsageError, closest
from oral_lib.runner import nodes as graph
from oral_lib.runner.nodes import Node
from oral_lib.workflow import notebooks, plan, reproduce

PARTS = ("notebook", "parameters", "grid", "cells")
WHERE = ("scale", "source", "out")  # one run a sweep: these are the same in every cell
OF_NOTEBOOK = {stem: experiment for experiment, (stem, _) in scales.CELL_NOTEBOOKS.items()}
# of two experiments that call their base model alike, the first
CALLED = {called: name for name, (_, called) in reversed(scales.CELL_NOTEBOOKS.items())}
PLACE = (*CALLED, "task", "seed")  # what names a cell of the plan
# of notebooks that are not in the plan: the nodes that each word of `bases` needs (others need all
# generators), and what it writes to results/<scale>
NEEDS = {"70_ablations": "zoo/{base}*"}
PUBLISHED = {"70_ablations": "ablations.csv"}

Cell = Mapping[str, Any]  # every parameter of the notebook but WHERE


@dataclass(frozen=True)
class Sweep:
    """A sweep file as it is meant: the cells are checked, complete and no two the same."""

    path: Path
    notebook: Path
    defaults: dict[str, Any]
    scale: str
    source: str
    cells: tuple[Cell, ...]


# ---------------------------------------------------------------- the file
def read(path: Path, scale: str | None = None, source: str | None = None) -> Sweep:
    """The sweep in the file `path`; `scale` and `source` go before what it says.

    `UsageError` in one line that names the file, for whatever could not run: another form, an
    unknown notebook or parameter, a value of another type, a cell that its scale does not have.
    """
    try:
        return _read(path, scale, source)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error


def _read(path: Path, scale: str | None, source: str | None) -> Sweep:
    content = _content(path)
    notebook = notebooks.find(content["notebook"])
    known = notebooks.defaults(notebook)
    if missing := [name for name in WHERE if name not in known]:
        raise UsageError(f"{notebook.name} has no parameter {missing[0]!r}: no run has its cells.")
    fixed = content["parameters"]
    if "out" in fixed:
        raise UsageError("`out` is no parameter of a sweep: give --out.")
    scale = scale or fixed.get("scale", known["scale"])
    source = source or fixed.get("source", known["source"])
    found: dict[str, Cell] = {}
    for place, varied in enumerate(_combinations(content), 1):
        given = fixed | varied | {"scale": scale, "source": source}
        try:
            texts = {name: _text(name, value, known) for name, value in given.items()}
            cell = known | notebooks.checked(notebook, known, texts)
        except UsageError as error:
            told = ", ".join(f"{name}={value!r}" for name, value in varied.items())
            raise UsageError(f"cell {place} ({told}): {error}") from error
        cell = {name: value for name, value in cell.items() if name not in WHERE}
        found.setdefault(_key(notebook.stem, cell), cell)
    return Sweep(path, notebook, known, scale, source, tuple(found.values()))


def _content(path: Path) -> dict[str, Any]:
    """The parts of the file, those left out empty; `UsageError` for another form."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot be read ({type(error).__name__}).") from error
    except yaml.YAMLError as error:
        line = getattr(getattr(error, "problem_mark", None), "line", 0) + 1
        raise UsageError(f"is no YAML (line {line}).") from error
    if not isinstance(content, dict) or not isinstance(content.get("notebook"), str):
        raise UsageError(f"a sweep has the parts {', '.join(PARTS)}; `notebook` names one.")
    for part in content:
        if part not in PARTS:
            near = closest(str(part), PARTS)
            raise UsageError(f"unknown part {part!r}.{near} Known: {', '.join(PARTS)}.")
    content = {"parameters": {}, "grid": {}, "cells": []} | content
    forms = {"parameters": dict, "grid": dict, "cells": list}
    for part, form in forms.items():
        if not isinstance(content[part], form):
            raise UsageError(f"`{part}` must be a {'list' if form is list else 'map of names'}.")
    maps = [content["parameters"], content["grid"], *content["cells"]]
    if odd := [k for one in maps if isinstance(one, dict) for k in one if not isinstance(k, str)]:
        raise UsageError(f"the name of a parameter must be a text, got {odd[0]!r}.")
    for name, values in content["grid"].items():
        if not isinstance(values, list) or not values:
            raise UsageError(f"`grid` wants a list of values for {name!r}, got {values!r}.")
    if not all(isinstance(cell, dict) for cell in content["cells"]):
        raise UsageError("each of `cells` must be a map of names to values.")
    if not content["grid"] and not content["cells"]:
        raise UsageError("it has neither `grid` nor `cells`, so no cell.")
    for varied in (content["grid"], *content["cells"]):
        for name in varied:
            if name in WHERE:
                raise UsageError(f"{name!r} must be the same in all cells: put it in `parameters`.")
            if name in content["parameters"]:
                raise UsageError(f"{name!r} is in `parameters` and in a cell: leave one out.")
    return content


def _combinations(content: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    grid = content["grid"]
    if grid:
        for values in product(*grid.values()):
            yield dict(zip(grid, values, strict=True))
    yield from content["cells"]


def _text(name: str, value: Any, known: Mapping[str, Any]) -> str:
    """`value` as the command line would give it; `UsageError` for a text's place taken by YAML's
    own idea of a value (no, 12, a list)."""
    if isinstance(value, str):
        return value
    if isinstance(known.get(name), str):
        raise UsageError(f"parameter {name} must be a text like {known[name]!r}, got {value!r}.")
    try:
        return json.dumps(value, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise UsageError(f"parameter {name} cannot be {value!r}.") from error


def _key(stem: str, cell: Cell) -> str:
    text = json.dumps([stem, cell], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


# ---------------------------------------------------------------- the nodes
def nodes(sweep: Sweep, scale: str, source: str, out: Path) -> tuple[list[Node], list[Node]]:
    """(the cells, and with them all that they need in the order in which it is made)."""
    planned = plan.nodes(scale, source, out)
    known = {}  # the plan's cells of this notebook, by key
    for node in planned:
        told = _told(node, sweep)
        if told is not None:
            known[_key(sweep.notebook.stem, told)] = (node, told)
    where = {"scale": scale, "source": source, "out": str(out)}
    chosen, added = [], []
    for cell in sweep.cells:
        key = _key(sweep.notebook.stem, cell)
        if key not in known:
            run = paths.run_folder(scale, source, out)
            siblings = list(known.values())
            known[key] = (_node(sweep, cell, key, run, where, siblings, planned), cell)
            added.append(known[key][0])
        chosen.append(known[key][0])
    return chosen, graph.with_needs([*planned, *added], chosen)


def _told(node: Node, sweep: Sweep) -> Cell | None:
    """The parameters of a node that runs the sweep's notebook, else None."""
    start = (*plan.PROJECT, "notebook", sweep.notebook.stem)
    if node.command[: len(start)] != start:
        return None
    words = node.command[len(start) + 1 :]  # the executed notebook, then -p NAME VALUE ...
    given = {
        name: notebooks.typed(name, text, sweep.defaults[name])
        for name, text in zip(words[1::3], words[2::3], strict=True)
    }
    return {n: v for n, v in (sweep.defaults | given).items() if n not in WHERE}


def _node(
    sweep: Sweep,
    cell: Cell,
    key: str,
    run: Path,
    where: Mapping[str, str],
    siblings: Sequence[tuple[Node, Cell]],
    planned: Sequence[Node],
) -> Node:
    """The node of a cell that the plan does not have."""
    stem = sweep.notebook.stem
    like = {"memory_mb": max(node.memory_mb for node in planned), "minutes": 1.0}
    like |= {"gpu": max(node.gpu for node in planned)}
    if stem in PUBLISHED:
        results = paths.results_folder(where["scale"], where["out"])
        like |= {"published": (str(results / PUBLISHED[stem]),)}
    inputs = _made(planned, stem, cell)
    name, outputs = f"sweep/{stem}/{_readable(cell, sweep.defaults)}{key}", ()
    near = [s for s in siblings if _without(s[1]) == _without(cell)]
    if near and has_place(cell):
        place = [cell[part] for part in PLACE if part in cell]
        node, _ = next((s for s in near if place[0] in s[1].values()), near[0])
        like = {"memory_mb": node.memory_mb, "minutes": node.minutes, "gpu": node.gpu}
        inputs = node.inputs[1:]  # the notebook is the first
        experiment = node.name.split("/")[0]
        name = "{}/{}/{}/seed-{}".format(experiment, *place)
        root = paths.experiment_folder(where["scale"], where["source"], where["out"], experiment)
        folder = paths.cell_folder(root, experiment, *place)
        outputs = [folder / Path(path).name for path in node.outputs[:-1]]
    return plan.notebook_node(name, stem, run, {**cell, **where}, outputs, inputs, **like)


def has_place(cell: Collection[str]) -> bool:
    """Whether the parameters name a base model, a task and a seed."""
    return len(set(PLACE) & set(cell)) == 3 and {"task", "seed"} <= set(cell)


def experiment_of(stem: str, cell: Collection[str]) -> str:
    """The experiment whose notebook is called `stem`; of other notebooks the one that the name of
    the base model speaks of."""
    called = next((CALLED[name] for name in cell if name in CALLED), "language")
    return OF_NOTEBOOK.get(stem, called)


def _without(cell: Cell) -> dict[str, Any]:
    return {name: value for name, value in cell.items() if name not in PLACE}


def _made(planned: Sequence[Node], stem: str, cell: Cell) -> tuple[str, ...]:
    """What the nodes leave that a cell of the notebook `stem` needs."""
    experiment = experiment_of(stem, cell)
    prefix = "" if experiment == "language" else f"{experiment}/"
    patterns = [f"{prefix}generator*", f"{prefix}regression*"]
    if stem in NEEDS:
        patterns = [NEEDS[stem].format(base=base) for base in cell["bases"].split()]
    return tuple(path for node in graph.select(planned, patterns) for path in node.outputs)


def _readable(cell: Cell, defaults: Mapping[str, Any]) -> str:
    """What of a cell is not the notebook's default, as part of a file name."""
    parts = [f"{name}-{value}" for name, value in cell.items() if value != defaults[name]]
    return "".join(re.sub(r"[^\w.]+", "-", part)[:40].strip("-.") + "--" for part in parts[:3])


# ---------------------------------------------------------------- running
def run(
    path: Path,
    *,
    scale: str | None = None,
    source: str | None = None,
    out: Path = paths.ROOT,
    jobs: int = 1,
    dry_run: bool = False,
    offline: bool = False,
) -> int:
    """Runs the cells of the file `path` that are due, and what they need; returns the exit code.

    Everything in the file is checked before anything starts.
    """
    sweep = read(Path(path), scale, source)
    words = ["--scale", sweep.scale, "--jobs", str(jobs), "--out", str(out)]
    words += ["--source", sweep.source] if sweep.scale != "smoke" else []
    words += ["--dry-run"] * dry_run + ["--offline"] * offline

    def planner(scale: str, source: str, out: Path) -> list[Node]:
        cells, wanted = nodes(sweep, scale, source, out)
        todo = graph.due(wanted)
        left = sum(node.name in todo for node in cells)
        print(f"{path}: {len(cells)} cells, {len(cells) - left} of them done", flush=True)
        return wanted

    code = reproduce.main(words, planner=planner)
    if code == 0 and not dry_run and has_place(sweep.defaults):
        where = ["--scale", sweep.scale, "--source", sweep.source, "--out", str(out)]
        where += ["--experiment", experiment_of(sweep.notebook.stem, sweep.defaults)]
        print("publish:", shlex.join(["python", "-m", "oral_lib", "report", *where]))
    return code
