"""The plan: every node of a run, with its inputs, outputs and command.

Nothing here computes. The Snakefile turns the nodes into rules, and `reproduce` runs them. Imports
with the standard library only.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from oral_lib import paths, scales
from oral_lib.experiments.records import EXPERIMENTS
from oral_lib.paths import ROOT, cell_folder, experiment_folder, results_folder, run_folder
from oral_lib.runner.nodes import Node

PROJECT = ("-m", "oral_lib")  # the first arguments of every command
Planner = Callable[[str, str, Path], list[Node]]  # (scale, source, out) -> nodes in order
NOTEBOOKS = {  # of no cell; file stems by node name
    "tutorial": "00_quickstart",
    "method": "01_method",
    "control": "50_control",
    "novelty": "80_novelty",
}
QUICKSTART = "quickstart"


def notebook_node(
    name: str,
    stem: str,
    run: Path,
    parameters: Mapping[str, object],
    outputs: Iterable[Path] = (),
    inputs: Iterable[str] = (),
    **rest,
) -> Node:
    """A node that runs a notebook; the executed notebook is the last of its outputs.

    Args:
        name: of the node.
        stem: file stem of the notebook.
        run: the run folder, where the executed notebook is stored.
        parameters: of the notebook.
        outputs: further files that the notebook writes.
        inputs: further files that it reads.
        rest: further fields of `Node`.
    """
    executed = run / "notebooks" / f"{name.replace('/', '--')}.ipynb"
    texts = {k: v if isinstance(v, str) else json.dumps(v) for k, v in parameters.items()}
    arguments = [word for name, text in texts.items() for word in ("-p", name, text)]
    return Node(
        name,
        tuple(str(path) for path in (*outputs, executed)),
        (*PROJECT, "notebook", stem, str(executed), *arguments),
        inputs=(str(ROOT / "notebooks" / f"{stem}.ipynb"), *inputs),
        **rest,
    )


class _ExperimentNodes:
    """Collects the nodes of one experiment in order."""

    def __init__(self, scale: str, source: str, out: Path, experiment: str):
        self.scale, self.source, self.record = scale, source, EXPERIMENTS[experiment]
        self.run = run_folder(scale, source, out)
        self.root = experiment_folder(scale, source, out, experiment)
        self.plans = scales.base_plans(scale, source, experiment)
        self.where = {"scale": scale, "source": source, "out": str(out)}
        self.gpu = int(scale in ("lab", "paper"))
        self.largest = max(plan.memory_mb for plan in self.plans)
        self.nodes: list[Node] = []

    def add(self, name: str, *command: str, outputs: Iterable[Path], **rest) -> tuple[str, ...]:
        """Adds a node that runs a subcommand of `python -m oral_lib`; returns its outputs."""
        files = tuple(str(path) for path in outputs)
        options = [word for key, value in self.where.items() for word in (f"--{key}", value)]
        command = (*PROJECT, *command, *options)
        self.nodes.append(Node(self.record.prefix + name, files, command, **rest))
        return files

    def notebook(self, name: str, stem: str, **rest) -> tuple[str, ...]:
        """Adds a node that runs a notebook; returns its outputs."""
        parameters = rest.pop("parameters", {}) | self.where
        self.nodes.append(notebook_node(name, stem, self.run, parameters, **rest))
        return self.nodes[-1].outputs


def nodes(scale: str, source: str, out: str | Path = ROOT) -> list[Node]:
    """All nodes of a run, each after those that it needs.

    Args:
        scale: a key of `scales.SCALES`.
        source: "packages", "hub", "local:DIR" or, at the smoke scale, "made".
        out: the folder of runs/ and results/.

    Raises:
        UsageError: unknown scale or source, or a source that the scale does not have.
    """
    out = Path(out)
    published = results_folder(scale, out)
    experiments, reported = [], []
    for experiment in scales.experiments(scale, source):
        part = _ExperimentNodes(scale, source, out, experiment)
        assets = ()
        if source != "made":  # generated data needs no assets
            file = part.root / "assets.json"
            assets = part.add("assets", "assets", *part.record.options, outputs=[file])
        zoo = _add_splits(part, assets) if part.record.has_splits else _add_zoo(part, assets)
        manifests = _add_generators(part, zoo)
        cells = _add_cells(part, manifests)
        if part.record.main:
            _add_notebooks(part, zoo, manifests, cells)
            main, reported = part, [*reported, *cells]
        else:
            reported += part.add(
                "report",
                *("report", *part.record.options),
                outputs=[part.root / "published.json"],
                inputs=tuple(cells),
                published=(str(published / "metrics.csv"),),
                minutes=0.3,
            )
        experiments.append(part)
    planned = [node for part in experiments for node in part.nodes]
    main.notebook(
        "report",
        "90_report",
        inputs=tuple(reported),
        published=(str(published / "metrics.csv"), str(published.parent / "README.md")),
        minutes=0.3,
    )
    return [*_first_look(scale, source, out), *planned, main.nodes[-1]]


def _first_look(scale: str, source: str, out: Path) -> list[Node]:
    """The node that generates and asks with the released generator; none where there is none, and
    none at the smoke scale, which downloads nothing."""
    manifest = paths.RELEASED / "desk" / "manifest.json"
    if scale == "smoke" or not manifest.is_file():
        return []
    folder = run_folder(scale, source, out) / QUICKSTART
    options = ("--source", source, "--save", str(folder))
    return [
        Node(
            QUICKSTART,
            (str(folder / "answers.json"),),
            (*PROJECT, QUICKSTART, *options),
            inputs=(str(manifest),),
            memory_mb=2500,
            minutes=0.5,
        )
    ]


def measures_cells(node: Node) -> bool:
    """Whether a node writes the files of cells."""
    return any("cells" in Path(path).parts for path in node.outputs)


def _add_zoo(part: _ExperimentNodes, assets: tuple[str, ...]) -> tuple[str, ...]:
    """Adds alignment, tuning and training of the adapters; returns the files written last."""
    root, gpu = part.root, part.gpu
    recipes: dict[str, tuple[str, ...]] = {}  # files of tuned recipes, by base model
    for plan in part.plans:
        if plan.aligned:
            assets = part.add(
                f"align/{plan.base}",
                *("align", "--base", plan.base),
                outputs=[root / "aligned" / f"{plan.base}.json"],
                after=assets,
                memory_mb=plan.memory_mb,
                minutes=1.0,
                gpu=gpu,
            )
        if plan.tuned:
            recipes[plan.base] = part.add(
                f"tune/{plan.base}",
                *("tune", "--base", plan.base),
                outputs=[root / "tuning" / plan.base / f"{task}.json" for task in plan.tasks],
                after=assets,
                resumes=True,
                memory_mb=plan.memory_mb,
                minutes=4 * plan.zoo_minutes * len(plan.tasks),
                gpu=gpu,
            )
    zoo: list[str] = []
    for plan in part.plans:
        first = assets
        if plan.parent:
            first = part.add(
                f"evolve/{plan.base}",
                *("evolve", "--base", plan.base),
                outputs=[root / "evolved" / f"{plan.base}.json"],
                after=assets,
                memory_mb=8000,
                minutes=0.5,
                gpu=gpu,
            )
        seeds = range(plan.zoo_seeds + plan.held_out)
        folders = [
            root / "zoo" / plan.base / task / f"seed-{seed}"
            for task in plan.zoo_tasks
            for seed in seeds
        ]
        zoo += part.add(
            f"zoo/{plan.base}",
            *("zoo", "--base", plan.base),
            outputs=[folder / "run.json" for folder in folders],  # written last
            inputs=recipes.get(plan.parent or plan.base, ()),
            after=first,
            resumes=True,
            memory_mb=plan.memory_mb,
            minutes=plan.zoo_minutes * len(folders),
            gpu=gpu,
        )
    return tuple(zoo)


def _groups(part: _ExperimentNodes) -> list[tuple[str, list[str], list[scales.BasePlan]]]:
    """(ending of the name of a node, its options, its base models).

    A node for each base model. Without a GPU an experiment with splits has one for all: starting a
    process takes longer than the step at the smoke scale.
    """
    if part.gpu or not part.record.has_splits:
        options = part.record.options if part.record.has_splits else []
        return [(f"/{p.base}", ["--base", p.base, *options], [p]) for p in part.plans]
    return [("", part.record.options, list(part.plans))]


def _add_splits(part: _ExperimentNodes, assets: tuple[str, ...]) -> tuple[str, ...]:
    """Adds zoo and rivals of an experiment with splits; returns their manifests."""
    manifests: dict[str, list[str]] = {"zoo": [], "rivals": []}
    for ending, options, plans in _groups(part):
        before: tuple[str, ...] = ()
        for step, files in manifests.items():
            before = part.add(
                f"{step}{ending}",
                *(step, *options),
                outputs=[part.root / step / plan.base / "manifest.json" for plan in plans],
                inputs=before,
                after=assets,
                resumes=True,
                memory_mb=max(plan.memory_mb for plan in plans),
                minutes=sum(plan.zoo_minutes * len(plan.tasks) for plan in plans),
                gpu=part.gpu,
            )
            files += before
    return *manifests["zoo"], *manifests["rivals"]


def _add_generators(part: _ExperimentNodes, zoo: tuple[str, ...]) -> tuple[str, ...]:
    """Adds the training of generators and baselines; returns their manifests."""
    minutes = sum(p.zoo_minutes * len(p.tasks) * (p.zoo_seeds or 1) for p in part.plans)
    manifests: list[str] = []
    for job in scales.generator_jobs(part.scale, part.record.name, part.source):
        name, start = job.name, scales.starts_from(part.record.name, job)
        manifests += part.add(
            name,
            *("train", name, *part.record.options),
            outputs=[part.root / name / "manifest.json"],  # written last
            inputs=(*zoo, str(part.root / start / "manifest.json")) if start else zoo,
            # through the base models, all are in memory at once
            memory_mb=sum(p.memory_mb for p in part.plans) if start else part.largest,
            minutes=0.25 * minutes,
            gpu=part.gpu,
        )
    return tuple(manifests)


def _add_cells(part: _ExperimentNodes, manifests: tuple[str, ...]) -> list[str]:
    """Adds the measurement of all cells and their notebooks; returns the result files."""
    record = part.record
    results: list[str] = []
    measured: dict[str, tuple[str, ...]] = {}  # by base model: the file that lists its cells
    if part.gpu or record.shows_all_cells:  # all cells of a base model in one process
        for ending, options, plans in _groups(part):
            files = part.add(
                f"cells{ending}",
                *("cells", *options),
                outputs=[part.root / "cells" / f"{plan.base}.json" for plan in plans],
                inputs=manifests,
                memory_mb=max(plan.memory_mb for plan in plans),
                minutes=sum(p.cell_minutes * len(p.cell_tasks) * p.seeds for p in plans),
                gpu=part.gpu,
            )
            measured |= {plan.base: files for plan in plans}
    if record.shows_all_cells:
        lists = tuple(dict.fromkeys(path for files in measured.values() for path in files))
        name = f"{record.name}/notebook"
        return list(part.notebook(name, record.notebook, inputs=lists, minutes=0.3, gpu=part.gpu))
    for plan in part.plans:
        for task in plan.tasks:
            for seed in range(plan.seeds):
                folder = cell_folder(part.root, record.name, plan.base, task, seed)
                outputs = part.notebook(
                    f"{record.name}/{plan.base}/{task}/seed-{seed}",
                    record.notebook,
                    outputs=[folder / "metrics.csv", folder / "items.parquet"],
                    inputs=manifests,
                    parameters={"task": task, "base": plan.base, "seed": seed},
                    memory_mb=plan.memory_mb,
                    minutes=0.2 if measured else plan.cell_minutes,
                    gpu=part.gpu,
                    after=measured.get(plan.base, ()),
                    resumes=bool(measured),  # the notebook shows the cell that is already measured
                )
                results += outputs[:2]
    return results


def _add_notebooks(
    part: _ExperimentNodes, zoo: tuple[str, ...], manifests: tuple[str, ...], cells: list[str]
) -> None:
    """Adds the notebooks that show no cell."""
    gpu = part.gpu
    if gpu:
        parameters = {"bases": part.plans[0].base, "groups": "all"}
        parameters |= {"rows": 300, "samples": 10, "steps": 0}
        part.notebook(
            "ablations", "70_ablations", inputs=zoo, parameters=parameters, minutes=90.0, gpu=gpu
        )
    part.notebook(
        "tutorial",
        NOTEBOOKS["tutorial"],
        inputs=manifests,
        memory_mb=part.largest,
        minutes=0.5,
        gpu=gpu,
    )
    toy = notebook_node("method", NOTEBOOKS["method"], part.run, {}, minutes=0.5)
    part.nodes.append(toy)  # needs no zoo
    for name in ("control", "novelty"):
        part.notebook(
            name,
            NOTEBOOKS[name],
            inputs=(*manifests, *cells),
            memory_mb=part.largest,
            minutes=1.0,
            gpu=gpu,
        )
