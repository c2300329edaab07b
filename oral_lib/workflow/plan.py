"""The plan: every node of a run, with what it reads, what it leaves, and the command that makes it.

Nothing here computes. The Snakefile turns the nodes into rules, `reproduce` runs them, and a
notebook asks where things are. Imports with the standard library alone.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from oral_lib.paths import ROOT, cell_folder, experiment_folder, results_folder, run_folder
from oral_lib.runner.nodes import Node
from oral_lib.scales import CELL_NOTEBOOKS, base_plans, experiments, generators

PROJECT = ("-m", "oral_lib")  # what every command starts with
# what a run is made of: (scale, source, out) -> nodes, each after those it needs
Planner = Callable[[str, str, Path], list[Node]]


NOTEBOOKS = {"quickstart": "00_quickstart", "method": "01_method"}


def notebook_node(
    name: str,
    stem: str,
    run: Path,
    parameters: Mapping[str, object],
    outputs: Iterable[Path] = (),
    inputs: Iterable[str] = (),
    **rest,
) -> Node:
    """A node that runs a notebook; the executed notebook is the last of its outputs."""
    executed = run / "notebooks" / f"{name.replace('/', '--')}.ipynb"
    texts = {k: v if isinstance(v, str) else json.dumps(v) for k, v in parameters.items()}
    given = [word for name, text in texts.items() for word in ("-p", name, text)]
    return Node(
        name,
        tuple(str(path) for path in (*outputs, executed)),
        (*PROJECT, "notebook", stem, str(executed), *given),
        inputs=(str(ROOT / "notebooks" / f"{stem}.ipynb"), *inputs),
        **rest,
    )


class _Draft:
    """The nodes of an experiment, as far as they were added: all names begin with `prefix`."""

    def __init__(self, scale: str, source: str, out: Path, experiment: str):
        self.scale, self.source, self.experiment = scale, source, experiment
        self.run = run_folder(scale, source, out)
        self.root = experiment_folder(scale, source, out, experiment)
        self.models = base_plans(scale, source, experiment)
        self.prefix = "" if experiment == "language" else f"{experiment}/"
        self.known = {"scale": scale, "source": source, "out": str(out)}
        self.where = [word for key, value in self.known.items() for word in (f"--{key}", value)]
        self.told = ["--experiment", experiment] if self.prefix else []
        self.gpu = int(scale in ("lab", "paper"))
        self.largest = max(model.memory_mb for model in self.models)
        self.nodes: list[Node] = []

    def add(self, name: str, *command: str, outputs: Iterable[Path], **rest) -> tuple[str, ...]:
        made = tuple(str(path) for path in outputs)
        command = (*PROJECT, *command, *self.where)
        self.nodes.append(Node(self.prefix + name, made, command, **rest))
        return made

    def notebook(self, name: str, stem: str, **rest) -> tuple[str, ...]:
        parameters = rest.pop("parameters", {}) | self.known
        self.nodes.append(notebook_node(name, stem, self.run, parameters, **rest))
        return self.nodes[-1].outputs


def nodes(scale: str, source: str, out: str | Path = ROOT) -> list[Node]:
    """All nodes of a run, each after those it needs."""
    out, made, results = Path(out), [], []
    published = results_folder(scale, out)
    for experiment in experiments(scale, source):
        draft = _Draft(scale, source, out, experiment)
        assets = ()
        if source != "made":  # what is made on the spot needs no asset
            file = draft.root / "assets.json"
            assets = draft.add("assets", "assets", *draft.told, outputs=[file])
        zoo = _zoo(draft, assets)
        trained = _generators(draft, zoo)
        cells = _cells(draft, trained)
        if experiment == "language":
            _notebooks(draft, zoo, trained)
            last, results = draft, [*results, *cells]
        else:
            results += draft.add(
                "report",
                *("report", *draft.told),
                outputs=[draft.root / "published.json"],
                inputs=tuple(cells),
                published=(str(published / "metrics.csv"),),
                minutes=0.3,
            )
        made.append(draft)
    last.nodes, ends = [], [*(node for draft in made for node in draft.nodes)]
    last.notebook(
        "report",
        "90_report",
        inputs=tuple(results),
        published=(str(published / "metrics.csv"), str(published.parent / "README.md")),
        minutes=0.3,
    )
    return [*ends, *last.nodes]


def _zoo(draft: _Draft, assets: tuple[str, ...]) -> tuple[str, ...]:
    """Adds what makes the zoo; the files that say that it is there."""
    root, gpu = draft.root, draft.gpu
    chosen: dict[str, tuple[str, ...]] = {}  # recipes, by base model
    for model in draft.models:
        if model.aligned:
            assets = draft.add(
                f"align/{model.base}",
                *("align", "--base", model.base),
                outputs=[root / "aligned" / f"{model.base}.json"],
                after=assets,
                memory_mb=model.memory_mb,
                minutes=1.0,
                gpu=gpu,
            )
        if model.tuned:
            chosen[model.base] = draft.add(
                f"tune/{model.base}",
                *("tune", "--base", model.base),
                outputs=[root / "tuning" / model.base / f"{task}.json" for task in model.tasks],
                after=assets,
                resumes=True,
                memory_mb=model.memory_mb,
                minutes=4 * model.zoo_minutes * len(model.tasks),
                gpu=gpu,
            )
    zoo: list[str] = []
    for model in draft.models:
        first = assets
        if model.parent:
            first = draft.add(
                f"evolve/{model.base}",
                *("evolve", "--base", model.base),
                outputs=[root / "evolved" / f"{model.base}.json"],
                after=assets,
                memory_mb=8000,
                minutes=0.5,
                gpu=gpu,
            )
        seeds = range(model.zoo_seeds + model.held_out)
        folders = [root / "zoo" / model.base / task / f"seed-{s}" for task in model.zoo_tasks
                   for s in seeds]  # fmt: skip
        zoo += draft.add(
            f"zoo/{model.base}",
            *("zoo", "--base", model.base),
            outputs=[folder / "run.json" for folder in folders],  # written last
            inputs=chosen.get(model.parent or model.base, ()),
            after=first,
            resumes=True,
            memory_mb=model.memory_mb,
            minutes=model.zoo_minutes * len(folders),
            gpu=gpu,
        )
    return tuple(zoo)


def _generators(draft: _Draft, zoo: tuple[str, ...]) -> tuple[str, ...]:
    """Adds the training of generators; their manifests."""
    adapters = sum(m.zoo_minutes * len(m.tasks) * m.zoo_seeds for m in draft.models)
    made: list[str] = []
    for kind in generators(draft.scale, draft.experiment):
        made += draft.add(
            kind,
            *("train", kind, *draft.told),
            outputs=[draft.root / kind / "manifest.json"],  # written last, too
            inputs=zoo,
            memory_mb=draft.largest,
            minutes=0.25 * adapters,
            gpu=draft.gpu,
        )
    return tuple(made)


def _cells(draft: _Draft, made: tuple[str, ...]) -> list[str]:
    """Adds the measuring of all cells, with a notebook each; their result files."""
    stem, called = CELL_NOTEBOOKS[draft.experiment]
    results: list[str] = []
    for model in draft.models:
        measured, together = (), draft.experiment == "unseen"
        if draft.gpu or together:
            measured = draft.add(
                f"cells/{model.base}",
                *("cells", "--base", model.base),
                outputs=[draft.root / "cells" / f"{model.base}.json"],
                inputs=made,
                memory_mb=model.memory_mb,
                minutes=model.cell_minutes * len(model.cell_tasks) * model.seeds,
                gpu=draft.gpu,
            )
        if together:  # many tasks, one notebook
            name = f"{draft.experiment}/{model.base}"
            results += draft.notebook(name, stem, inputs=measured, minutes=0.3, gpu=draft.gpu)
            continue
        for task in model.tasks:
            for seed in range(model.seeds):
                folder = cell_folder(draft.root, draft.experiment, model.base, task, seed)
                written = draft.notebook(
                    f"{draft.experiment}/{model.base}/{task}/seed-{seed}",
                    stem,
                    outputs=[folder / "metrics.csv", folder / "items.parquet"],
                    inputs=made,
                    parameters={"task": task, called: model.base, "seed": seed},
                    memory_mb=model.memory_mb,
                    minutes=0.2 if measured else model.cell_minutes,
                    gpu=draft.gpu,
                    after=measured,
                    resumes=bool(measured),  # then it only shows what is there
                )
                results += written[:2]
    return results


def _notebooks(draft: _Draft, zoo: tuple[str, ...], made: tuple[str, ...]) -> None:
    """Adds the notebooks that are no cells."""
    if draft.gpu:
        about = {"bases": draft.models[0].base, "groups": "all"}
        about |= {"rows": 300, "samples": 10, "steps": 0}
        draft.notebook(
            "ablations", "70_ablations", inputs=zoo, parameters=about, minutes=90.0, gpu=draft.gpu
        )
    for name, stem in NOTEBOOKS.items():
        draft.notebook(name, stem, inputs=made, memory_mb=draft.largest, minutes=0.5, gpu=draft.gpu)
