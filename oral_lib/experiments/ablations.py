"""Ablations: one part of the generator is changed at a time, everything else is the default.

Every variant trains on the same zoo for the same number of steps and is measured on validation
rows: the defaults of the library are chosen here, so test rows are never read. Variants that change
only the sampling share the network of the default. Finished parts are stored under a hash of their
content: an interrupted study continues, and several processes may work on one.
"""

import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd

from oral_lib import scales, storage
from oral_lib.errors import OralError, UsageError, closest
from oral_lib.evaluation.schema import REFERENCE
from oral_lib.experiments.ablation_study import Evaluator, Study, measure
from oral_lib.experiments.ablation_variants import GROUPS, Variant, check_groups, variants
from oral_lib.provenance import code_commit
from oral_lib.tasks.task import load_task

ABLATION_COLUMNS = [
    *("group", "variant", "default", "base", "source", "task", "metric", "value"),
    *("ci_low", "ci_high", "n_items", "n_samples", "seed", "wall_s", "commit"),
]


def measure_variants(
    study: Study, folder: Path, path: Path, groups: Sequence[str] = tuple(GROUPS)
) -> pd.DataFrame:
    """All rows of `study` so far, after measuring the missing variants of `groups`.

    A variant that fails is reported at the end; the others are measured.

    Args:
        study: see `Study`.
        folder: for finished parts, the default's network, and tracebacks.
        path: the CSV file of all studies; gets the rows of this one.
        groups: see `GROUPS`; ["all"]: every group.

    Raises:
        UsageError: an unknown group.
        OralError: a variant failed.
    """
    failed: list[str] = []
    evaluator = Evaluator(study)
    todo: dict[str, Callable[[], pd.DataFrame]] = {part_of(study, None): evaluator.references}
    labels = {part_of(study, None): REFERENCE}
    for variant in variants(study.config, study.sampling, check_groups(groups)):
        part = part_of(study, variant)
        labels.setdefault(part, f"{variant.group} {variant.name}")
        todo.setdefault(part, lambda v=variant: measure(evaluator, v, folder))
    for part, work in todo.items():
        try:
            _once(folder / "parts" / f"{part}.csv", work)
        except Exception as error:  # any fault of one variant: the others are still measured
            log = folder / f"failed-{part}.log"
            storage.write_text(log, traceback.format_exc())
            failed.append(f"{labels[part]} ({type(error).__name__}: {error}; traceback: {log})")
            print(f"ablation {failed[-1]} failed", flush=True)
    frame = collect_parts(study, folder, path)
    if failed:
        raise OralError(f"{len(failed)} of {len(todo)} ablations failed: {'; '.join(failed)}")
    return frame


def measured_tasks(
    scale: str, source: str, bases: Sequence[str] = (), tasks: Sequence[str] = ()
) -> dict[str, tuple[str, ...]]:
    """The tasks that a study measures, by base model.

    Args:
        scale: of the run.
        source: of the run.
        bases: default: the first base model of the scale.
        tasks: default: see `quick`.

    Raises:
        UsageError: a base model or task is not in the plan of the scale.
    """
    plans = {plan.base: plan for plan in scales.base_plans(scale, source)}
    chosen = tuple(dict.fromkeys(bases)) or tuple(plans)[:1]
    listed = {name: scales.base_plan(scale, name, source, "language").tasks for name in chosen}
    names = sorted({task for of_base in listed.values() for task in of_base})
    for task in tasks:
        if task not in names:
            raise UsageError(
                f"no task {task!r} on {', '.join(chosen)}.{closest(task, names)} "
                f"There are {', '.join(names)}."
            )
    return {
        name: tuple(task for task in of_base if task in (tasks or quick(of_base)))
        for name, of_base in listed.items()
    }


def quick(names: Sequence[str]) -> list[str]:
    """The tasks of `names` that are scored without writing an answer token by token."""
    return [name for name in names if load_task(name).scoring != "answer"]


def part_of(study: Study, variant: Variant | None) -> str:
    """The name under which the rows of `variant` (None: the references) are stored."""
    return study.key(REFERENCE) if variant is None else study.key_of(variant)


def _once(path: Path, work: Callable[[], pd.DataFrame]) -> None:
    """Stores the result of `work` at `path`, unless it is there; other processes wait."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with storage.file_lock(f"{path}.lock"):
        if not path.exists():
            storage.write_text(path, work().assign(commit=code_commit()).to_csv(index=False))


def collect_parts(study: Study, folder: Path, path: Path) -> pd.DataFrame:
    """All finished rows of `study`; at `path` they replace older rows of its base models."""
    default = study.config, study.sampling
    listed = [(v.group, v.name, v.default, part_of(study, v)) for v in variants(*default)]
    listed.append((REFERENCE, None, False, part_of(study, None)))
    parts = []
    for group, name, is_default, part in listed:
        file = folder / "parts" / f"{part}.csv"
        if file.exists():
            rows = pd.read_csv(file).assign(group=group, default=is_default)
            parts.append(rows if name is None else rows.assign(variant=name))
    if not parts:
        return pd.DataFrame(columns=ABLATION_COLUMNS)
    source = study.source.partition(":")[0]
    frame = pd.concat(parts, ignore_index=True).assign(source=source, seed=study.training.seed)
    compared = {g for g, rows in frame.groupby("group") if not rows.default.all()}
    frame = frame[frame.group.isin(compared)][ABLATION_COLUMNS].reset_index(drop=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    with storage.file_lock(folder / ".csv.lock"):
        merged = frame
        if path.exists():
            old, keys = pd.read_csv(path, dtype={"variant": str}), ["source", "base", "seed"]
            replaced = pd.MultiIndex.from_frame(frame[keys])
            kept = ~pd.MultiIndex.from_frame(old[keys]).isin(replaced)
            merged = pd.concat([old[kept], frame])
        storage.write_text(path, merged.to_csv(index=False, float_format="%.6g"))
    return frame
