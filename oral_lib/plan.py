"""The plan: every node of a run, with what it reads, what it leaves, and the command that makes it.

Nothing here computes. The Snakefile turns the nodes into rules, `reproduce` runs them, and a
notebook asks where things are. Imports with the standard library alone.
"""

import json
import os
import shutil
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
    zoo_seeds: int  # adapters of a task that the generator is trained on
    held_out: int = 0  # further ones that it never sees
    seeds: int = 1  # generator seeds, each a cell of the table
    tuned: bool = False  # learning rate and steps are chosen first
    parent: str = ""  # the model of which this is a later version
    zoo_minutes: float = 0.1  # one adapter
    cell_minutes: float = 0.2
    memory_mb: int = 2000


PAPER_TASKS = ("sst2", "mrpc", "rte", "boolq", "winogrande", "wnli", "gsm8k")
PAPER_BASES = ("mistral-7b", "llama-2-7b", "llama-3.1-8b", "gemma-2-9b", "qwen2.5-7b")
STAND_INS = (
    *("movie", "product_matching", "corr2cause", "pararule"),
    *("quartz", "winograd_schemas", "school_maths"),
)
SPARES = ("sarcasm", "tweets", "products", "review_topic", "arithmetic")
WRITTEN = ("gsm8k", "school_maths", "arithmetic")  # an encoder cannot write an answer
TASKS = {"packages": STAND_INS + SPARES, "local": PAPER_TASKS, "hub": PAPER_TASKS}
TERMS = {"gemma-3-270m": "gemma"}  # base models of terms that the user has to accept


def _lab(source: str) -> tuple[Cells, ...]:
    """The five language models of the lab scale, and two more where the hub has them."""
    rows = TASKS[source]
    labelled = tuple(task for task in rows if task not in WRITTEN)
    causal = Cells("", rows, 8, 2, 3, True, "", 0.03, 0.5, 6000)
    encoder = replace(causal, tasks=labelled, zoo_minutes=0.02, cell_minutes=0.3, memory_mb=3000)
    models = [
        replace(encoder, base="minilm-l6"),
        replace(encoder, base="minilm-l3"),
        replace(causal, base="smollm2-135m"),
        replace(causal, base="smollm2-135m-t4", parent="smollm2-135m", tuned=False),
        replace(causal, base="gemma-3-270m"),
    ]
    if source == "hub":
        models += [replace(causal, base=b) for b in ("qwen2.5-0.5b", "llama-3.2-1b")]
    agreed = os.environ.get("ORAL_ACCEPT", "").replace(",", " ").split()
    return tuple(m for m in models if TERMS.get(m.base, "") in ("", *agreed))


SCALES = {
    "smoke": lambda source: (
        Cells("tiny-encoder", ("movie", "sarcasm"), 2, 1),
        Cells("tiny-causal", ("movie", "sarcasm"), 2, 1),
    ),
    "desk": lambda source: (
        Cells(
            "minilm-l6", ("movie", "sarcasm", "review_topic"), 3, 0, 1, False, "", 0.5, 0.9, 2500
        ),
        Cells("smollm2-135m", ("movie", "sarcasm"), 2, 0, 1, False, "", 1.5, 2.5, 4000),
    ),
    "lab": _lab,
    "paper": lambda source: tuple(
        Cells(b, PAPER_TASKS, 8, 2, 3, True, "", 60.0, 30.0, 64_000) for b in PAPER_BASES
    ),
}
NOTEBOOKS = {"quickstart": "00_quickstart", "method": "01_method"}


def default_scale() -> str:
    """The scale that fits this machine: lab where there is a GPU, desk where there is none."""
    return "lab" if shutil.which("nvidia-smi") else "desk"


def generators(scale: str) -> tuple[str, ...]:
    """What is trained on a zoo: the generator with each of its seeds, and its baselines."""
    seeds = 3 if scale in ("lab", "paper") else 1
    more = tuple(f"generator-{seed}" for seed in range(1, seeds))
    rest = ("regression", "unconditional") if scale in ("lab", "paper") else ("regression",)
    return ("generator", *more, *rest)


def generator_of(scale: str, seed: int) -> str:
    """The generator that makes the adapters of a cell; a further cell draws from the first."""
    name = f"generator-{seed}"
    return name if name in generators(scale) else "generator"


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

    `UsageError` with the nearest name if there is no such scale, or where it has no such source.
    """
    if scale not in SCALES:
        raise UsageError(
            f"unknown scale {scale!r}.{closest(scale, SCALES)} Known: {', '.join(SCALES)}."
        )
    kind = slug(source)
    if scale == "desk" and kind != "packages":
        raise UsageError(f"scale 'desk' runs from source 'packages' alone, got {source!r}.")
    return SCALES[scale]("packages" if kind == "made" else kind)


def base_of(scale: str, base: str, source: str = "packages") -> Cells:
    """The entry of `base` in a scale; `UsageError` with the nearest name if it has none."""
    known = {cells.base: cells for cells in cells_of(scale, source)}
    if base not in known and base in TERMS and scale == "lab":
        raise UsageError(
            f"{base} comes under terms of use: read https://ai.google.dev/{TERMS[base]}/terms, and "
            f"if you accept them set ORAL_ACCEPT={TERMS[base]} and run the same command again."
        )
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


def zoo_seeds(scale: str, base: str, source: str = "packages") -> list[int]:
    """All seeds of a task that the zoo of `base` holds; the held-out ones come last."""
    cells = base_of(scale, base, source)
    return list(range(cells.zoo_seeds + cells.held_out))


def members(scale: str, source: str, *, held_out: bool = False) -> list[tuple[str, str, int]]:
    """(base, task, seed) of every adapter that generators are trained on, or of those held out."""
    return [
        (cells.base, task, seed)
        for cells in cells_of(scale, source)
        for task in cells.tasks
        for seed in (
            range(cells.zoo_seeds, cells.zoo_seeds + cells.held_out)
            if held_out
            else range(cells.zoo_seeds)
        )
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
    run, gpu = run_folder(scale, source, out), int(scale in ("lab", "paper"))
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
    chosen: dict[str, tuple[str, ...]] = {}  # recipes, by base model
    for model in models:
        if model.tuned:
            chosen[model.base] = add(
                f"tune/{model.base}",
                *("tune", "--base", model.base, *where),
                outputs=[run / "tuning" / model.base / f"{task}.json" for task in model.tasks],
                after=assets,
                resumes=True,
                memory_mb=model.memory_mb,
                minutes=4 * model.zoo_minutes * len(model.tasks),
                gpu=gpu,
            )
    zoo: list[str] = []
    for model in models:
        first = assets
        if model.parent:
            first = add(
                f"evolve/{model.base}",
                *("evolve", "--base", model.base, *where),
                outputs=[run / "evolved" / f"{model.base}.json"],
                after=assets,
                memory_mb=8000,
                minutes=0.5,
                gpu=gpu,
            )
        seeds = range(model.zoo_seeds + model.held_out)
        folders = [run / "zoo" / model.base / task / f"seed-{s}" for task in model.tasks
                   for s in seeds]  # fmt: skip
        zoo += add(
            f"zoo/{model.base}",
            *("zoo", "--base", model.base, *where),
            outputs=[folder / "run.json" for folder in folders],  # written last
            inputs=chosen.get(model.parent or model.base, ()),
            after=first,
            resumes=True,
            memory_mb=model.memory_mb,
            minutes=model.zoo_minutes * len(folders),
            gpu=gpu,
        )
    largest = max(model.memory_mb for model in models)
    adapters = sum(m.zoo_minutes * len(m.tasks) * m.zoo_seeds for m in models)
    trained = {
        kind: add(
            kind,
            *("train", kind, *where),
            outputs=[run / kind / "manifest.json"],  # written last, too
            inputs=tuple(zoo),
            memory_mb=largest,
            minutes=0.25 * adapters,
            gpu=gpu,
        )
        for kind in generators(scale)
    }
    made = tuple(path for paths in trained.values() for path in paths)
    results: list[str] = []
    for model in models:
        measured = (
            add(
                f"cells/{model.base}",
                *("cells", "--base", model.base, *where),
                outputs=[run / "cells" / f"{model.base}.json"],
                inputs=made,
                memory_mb=model.memory_mb,
                minutes=model.cell_minutes * len(model.tasks) * model.seeds,
                gpu=gpu,
            )
            if gpu
            else ()
        )
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
                    minutes=0.2 if measured else model.cell_minutes,
                    gpu=gpu,
                    after=measured,
                    resumes=bool(measured),  # then it only shows what is there
                )
                results += written[:2]
    if scale in ("lab", "paper"):
        about = {"bases": models[0].base}
        notebook(
            "ablations", "70_ablations", inputs=tuple(zoo), parameters=about, minutes=15.0, gpu=gpu
        )
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
