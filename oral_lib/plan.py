"""The plan: every node of a run, with what it reads, what it leaves, and the command that makes it.

Nothing here computes. The Snakefile turns the nodes into rules, `reproduce` runs them, and a
notebook asks where things are. Imports with the standard library alone.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from oral_lib.errors import UsageError, closest
from oral_lib.graph import Node

ROOT = Path(__file__).resolve().parent.parent
PROJECT = ("-m", "oral_lib")  # what every command starts with
# what a run is made of: (scale, source, out) -> nodes, each after those it needs
Planner = Callable[[str, str, Path], list[Node]]


@dataclass(frozen=True)
class Cells:
    """One base model of a scale: its tasks, the adapters the zoo holds of each, what they cost."""

    base: str
    tasks: tuple[str, ...]
    zoo_seeds: int
    seeds: int = 1  # generator seeds, each a cell of the table
    zoo_minutes: float = 0.1  # one adapter
    cell_minutes: float = 0.2
    memory_mb: int = 2000


PAPER_TASKS = ("sst2", "mrpc", "rte", "boolq", "winogrande", "wnli", "gsm8k")
PAPER_BASES = ("mistral-7b", "llama-2-7b", "llama-3.1-8b", "gemma-2-9b", "qwen2.5-7b")
SCALES = {
    "smoke": (
        Cells("tiny-encoder", ("movie", "sarcasm"), 2),
        Cells("tiny-causal", ("movie", "sarcasm"), 2),
    ),
    "lab": (
        Cells("minilm-l6", ("movie", "sarcasm", "review_topic"), 3, 1, 0.5, 0.9, 2500),
        Cells("smollm2-135m", ("movie", "sarcasm"), 2, 1, 1.5, 2.5, 4000),
    ),
    "paper": tuple(Cells(b, PAPER_TASKS, 3, 3, 60.0, 30.0, 64_000) for b in PAPER_BASES),
}
# the tasks of the lab scale where rows do not come from packages: what their YAML files say
ELSEWHERE = dict.fromkeys(("local", "hub"), ("movie", "mrpc", "rte", "boolq", "wnli"))
NOTEBOOKS = {"quickstart": "00_quickstart", "method": "01_method"}


def slug(source: str) -> str:
    """The folder name of a source: "packages", "local", "hub" or "made"."""
    kind, _, folder = source.partition(":")
    known = ("packages", "local:DIR", "hub")  # "made" belongs to the smoke scale, which takes it
    if source not in ("packages", "hub", "made") and not (kind == "local" and folder):
        raise UsageError(
            f"unknown source {source!r}.{closest(source, known)} Known: {', '.join(known)}."
        )
    return kind


def cells_of(scale: str, source: str = "packages") -> tuple[Cells, ...]:
    """The base models of a scale with the tasks that `source` has rows of.

    `UsageError` with the nearest name if there is no such scale.
    """
    if scale not in SCALES:
        raise UsageError(
            f"unknown scale {scale!r}.{closest(scale, SCALES)} Known: {', '.join(SCALES)}."
        )
    had = ELSEWHERE.get(slug(source)) if scale == "lab" else None
    if had is None:
        return SCALES[scale]
    return tuple(replace(c, tasks=had) for c in SCALES[scale])


def base_of(scale: str, base: str, source: str = "packages") -> Cells:
    """The entry of `base` in a scale; `UsageError` with the nearest name if it has none."""
    known = {cells.base: cells for cells in cells_of(scale, source)}
    if base not in known:
        near = f"{closest(base, known)} It has {', '.join(known)}."
        raise UsageError(f"scale {scale!r} has no base {base!r}.{near}")
    return known[base]


def check_cell(scale: str, source: str, base: str, task: str) -> None:
    """`UsageError` with the nearest name unless (base, task) is a cell of the scale."""
    known = base_of(scale, base, source).tasks
    if task not in known:
        raise UsageError(
            f"scale {scale!r} from source {slug(source)!r} has no task {task!r} on {base!r}."
            f"{closest(task, known)} It has {', '.join(known)}."
        )


def zoo_seeds(scale: str, base: str) -> list[int]:
    """The seeds that the zoo of `base` holds for each task at `scale`."""
    return list(range(base_of(scale, base).zoo_seeds))


def members(scale: str, source: str) -> list[tuple[str, str, int]]:
    """(base, task, seed) of every adapter in the zoo of `scale` from `source`."""
    return [
        (cells.base, task, seed)
        for cells in cells_of(scale, source)
        for task in cells.tasks
        for seed in range(cells.zoo_seeds)
    ]


def run_folder(scale: str, source: str, out: str | Path = ROOT) -> Path:
    """Where a run keeps zoo, generator, cells, notebooks and logs."""
    return Path(out) / "runs" / scale / slug(source)


def results_folder(scale: str, out: str | Path = ROOT) -> Path:
    """Where the tables and figures of a scale are published."""
    return Path(out) / "results" / scale


def cell_folder(run: Path, experiment: str, base: str, task: str, seed: int) -> Path:
    """Where one cell of an experiment leaves metrics.csv and items.parquet."""
    return Path(run) / "cells" / f"{experiment}--{base}--{task}--seed-{seed}"


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


def nodes(scale: str, source: str, out: str | Path = ROOT) -> list[Node]:
    """All nodes of a run, each after those it needs."""
    out = Path(out)
    run, gpu = run_folder(scale, source, out), int(scale == "paper")
    known = {"scale": scale, "source": source, "out": str(out)}
    models = cells_of(scale, source)
    plan = []

    def add(name: str, *command: str, outputs: Iterable[Path], **rest) -> tuple[str, ...]:
        made = tuple(str(path) for path in outputs)
        plan.append(Node(name, made, (*PROJECT, *command), **rest))
        return made

    def notebook(name: str, stem: str, **rest) -> tuple[str, ...]:
        parameters = rest.pop("parameters", {}) | known
        plan.append(notebook_node(name, stem, run, parameters, **rest))
        return plan[-1].outputs

    where = [word for key, value in known.items() for word in (f"--{key}", value)]
    # what is made on the spot needs no asset
    assets = (
        () if source == "made" else add("assets", "assets", *where, outputs=[run / "assets.json"])
    )
    zoo: list[str] = []
    for model in models:
        for task in model.tasks:
            folder = run / "zoo" / model.base / task
            zoo += add(
                f"zoo/{model.base}/{task}",
                *("zoo", "--base", model.base, "--task", task, *where),
                # written last: it makes an adapter count
                outputs=[folder / f"seed-{s}" / "run.json" for s in range(model.zoo_seeds)],
                after=assets,
                resumes=True,
                memory_mb=model.memory_mb,
                minutes=model.zoo_minutes * model.zoo_seeds,
                gpu=gpu,
            )
    largest = max(model.memory_mb for model in models)
    trained = {
        kind: add(
            kind,
            *("train", kind, *where),
            outputs=[run / kind / "manifest.json"],  # written last, too
            inputs=tuple(zoo),
            memory_mb=largest,
            minutes=1.8 * sum(m.zoo_minutes for m in models),
            gpu=gpu,
        )
        for kind in ("generator", "regression")
    }
    made = (*trained["generator"], *trained["regression"])
    results: list[str] = []
    for model in models:
        for task in model.tasks:
            for seed in range(model.seeds):
                folder = cell_folder(run, "language", model.base, task, seed)
                written = notebook(
                    f"language/{model.base}/{task}/seed-{seed}",
                    "10_language",
                    outputs=[folder / "metrics.csv", folder / "items.parquet"],
                    inputs=made,
                    parameters={"task": task, "base": model.base, "seed": seed},
                    memory_mb=model.memory_mb,
                    minutes=model.cell_minutes,
                    gpu=gpu,
                )
                results += written[:2]
    for name, stem in NOTEBOOKS.items():
        notebook(name, stem, inputs=made, memory_mb=largest, minutes=0.5, gpu=gpu)
    published = results_folder(scale, out)
    notebook(
        "report",
        "90_report",
        inputs=tuple(results),
        published=(str(published / "metrics.csv"), str(published.parent / "README.md")),
        minutes=0.3,
    )
    return plan
