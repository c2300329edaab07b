"""Folders of runs, experiments, cells and results."""

import os
from contextlib import suppress
from pathlib import Path

from oral_lib.errors import PreflightError, UsageError, closest

ROOT = Path(__file__).resolve().parent.parent
RELEASED = ROOT / "results" / "generators"  # the released generators, in a clone


def full(path: str | Path) -> Path:
    """The absolute path, `~` being the home folder.

    Raises:
        PreflightError: `path` begins with `~` and there is no such home folder, or it is not
            UTF-8, which files of results cannot name.
    """
    try:
        absolute = Path(path).expanduser().absolute()
        str(absolute).encode()
        return absolute
    except UnicodeEncodeError as error:
        raise PreflightError(
            f"the path {os.fsencode(absolute)!r} is not UTF-8: rename or move the folder."
        ) from error
    except RuntimeError as error:
        raise PreflightError(
            f"{path}: this user has no home folder. Set HOME to a folder that can be written; for "
            "models and data ORAL_CACHE is enough."
        ) from error


def module_path() -> str:
    """The PYTHONPATH with which another process imports this library, and what the user has in it.

    Raises PreflightError if the path of the library has a colon.
    """
    if os.pathsep in str(ROOT):
        raise PreflightError(
            f"{ROOT} has a colon, which Python's module path cannot contain: move the checkout to "
            "another folder."
        )
    inherited = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    return os.pathsep.join([str(ROOT), *(x for x in inherited if x and x != str(ROOT))])


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


def release_folder(scale: str, out: str | Path = ROOT) -> Path:
    """Folder of the released generator of a scale."""
    return Path(out) / "results" / "generators" / scale


def nothing_released() -> PreflightError:
    """The error of a library that no released generator is next to."""
    return PreflightError(
        f"no released generator in {RELEASED}: they are files of the repository, which an "
        "installed package leaves out. Clone the repository and use the library there, or name "
        "the folder of a copy: oral_lib.Generator.from_pretrained(FOLDER), --generator FOLDER."
    )


def no_adapter(folder: str | Path) -> UsageError:
    """The error of an adapter's folder that is not there, with the nearest folder next to it."""
    folder, beside = Path(folder), []
    with suppress(OSError):  # its parent may be missing or unreadable, too
        beside = [path.name for path in folder.absolute().parent.iterdir() if path.is_dir()]
    near = closest(folder.name, beside) or " Name the folder that `generate` wrote."
    return UsageError(f"there is no adapter folder {str(folder)!r}.{near}")


def cell_folder(run: Path, experiment: str, base: str, task: str, seed: int) -> Path:
    """Folder of metrics.csv and items.parquet of one cell."""
    return Path(run) / "cells" / f"{experiment}--{base}--{task}--seed-{seed}"
