"""Folders of runs, experiments, cells and results."""

from pathlib import Path

from oral_lib.errors import UsageError, closest

ROOT = Path(__file__).resolve().parent.parent


def slug(source: str) -> str:
    """Folder name of a source: "packages", "local", "hub" or "made"."""
    kind, _, folder = source.partition(":")
    choices = ("packages", "local:DIR", "hub")  # "made" is chosen by the smoke scale, not the user
    if source not in ("packages", "hub", "made") and not (kind == "local" and folder):
        raise UsageError(
            f"unknown source {source!r}.{closest(source, choices)} Known: {', '.join(choices)}."
        )
    return kind


def run_folder(scale: str, source: str, out: str | Path = ROOT) -> Path:
    """Folder of a run: zoo, generators, cells, notebooks and logs."""
    return Path(out) / "runs" / scale / slug(source)


def experiment_folder(
    scale: str, source: str, out: str | Path = ROOT, experiment: str = "language"
) -> Path:
    """Folder of an experiment's zoo, generators and cells; of `language` the run's folder."""
    run = run_folder(scale, source, out)
    return run if experiment == "language" else run / experiment


def results_folder(scale: str, out: str | Path = ROOT) -> Path:
    """Folder of the published tables and figures of a scale."""
    return Path(out) / "results" / scale


def cell_folder(run: Path, experiment: str, base: str, task: str, seed: int) -> Path:
    """Folder of metrics.csv and items.parquet of one cell."""
    return Path(run) / "cells" / f"{experiment}--{base}--{task}--seed-{seed}"
