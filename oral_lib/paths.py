"""paths."""

from pathlib import Path

from oral_lib.errors import UsageError, closest

ROOT = Path(__file__).resolve().parent.parent


def slug(source: str) -> str:
    """The folder name of a source: "packages", "local", "hub" or "made"."""
    kind, _, folder = source.partition(":")
    known = ("packages", "local:DIR", "hub")  # "made" belongs to the smoke scale, which takes it
    if source not in ("packages", "hub", "made") and not (kind == "local" and folder):
        raise UsageError(
            f"unknown source {source!r}.{closest(source, known)} Known: {', '.join(known)}."
        )
    return kind


def run_folder(scale: str, source: str, out: str | Path = ROOT) -> Path:
    """Where a run keeps zoo, generator, cells, notebooks and logs."""
    return Path(out) / "runs" / scale / slug(source)


def experiment_folder(
    scale: str, source: str, out: str | Path = ROOT, experiment: str = "language"
) -> Path:
    """Where an experiment keeps its zoo, generators and cells: its own part of the run's folder."""
    run = run_folder(scale, source, out)
    return run if experiment == "language" else run / experiment


def results_folder(scale: str, out: str | Path = ROOT) -> Path:
    """Where the tables and figures of a scale are published."""
    return Path(out) / "results" / scale


def cell_folder(run: Path, experiment: str, base: str, task: str, seed: int) -> Path:
    """Where one cell of an experiment leaves metrics.csv and items.parquet."""
    return Path(run) / "cells" / f"{experiment}--{base}--{task}--seed-{seed}"
