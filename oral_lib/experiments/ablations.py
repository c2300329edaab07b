"""Ablations: one part of the generator is changed at a time, all else stays the library's default.

Every variant trains on the same zoo for as many steps, and is judged on validation rows: the
defaults of the library are chosen by this study, so test rows have no say in it. Variants that
change the sampling alone share the generator of the default. What is finished is kept by its
content, so a study goes on where it was left, and several processes may work on one.
"""

import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import pandas as pd
from filelock import FileLock

from oral_lib import scales, storage
from oral_lib.errors import OralError, UsageError, closest
from oral_lib.evaluation.schema import REFERENCE
from oral_lib.experiments import generators
from oral_lib.experiments.ablation_study import Evaluator, Study, measure
from oral_lib.experiments.ablation_variants import GROUPS, Variant, check_groups, variants
from oral_lib.provenance import code_commit
from oral_lib.tasks.task import load_task
from oral_lib.workflow.run import Run

COLUMNS = [
    *("group", "variant", "default", "base", "source", "task", "metric", "value"),
    *("ci_low", "ci_high", "n_items", "n_samples", "seed", "wall_s", "commit"),
]


def run(
    run: Run,
    groups: Sequence[str] = tuple(GROUPS),
    device: str | None = None,
    **how,
) -> pd.DataFrame:
    """Measures the variants of `groups` that are missing; returns all rows of this study so far.

    They are written to results/<scale>/ablations.csv, too; `how` is that of `prepare`. A variant
    that fails is told and the others are measured: OralError at the end. UsageError for names that
    do not exist.
    """
    study = prepare(run, device, **how)
    folder, failed = run.root / "ablations", []
    jury = Evaluator(study)
    todo: dict[str, Callable[[], pd.DataFrame]] = {part_of(study, None): jury.references}
    labels = {part_of(study, None): REFERENCE}
    for variant in variants(study.config, check_groups(groups)):
        part = part_of(study, variant)
        labels.setdefault(part, f"{variant.group} {variant.name}")
        todo.setdefault(part, lambda v=variant: measure(jury, v, folder))
    for part, work in todo.items():
        try:
            _once(folder / "parts" / f"{part}.csv", work)
        except Exception as error:  # the other variants are still worth having
            log = folder / f"failed-{part}.log"
            storage.write_text(log, traceback.format_exc())
            failed.append(f"{labels[part]} ({type(error).__name__}: {error}; traceback: {log})")
            print(f"ablation {failed[-1]} failed", flush=True)
    frame = collect(study, folder, run.results / "ablations.csv")
    if failed:
        raise OralError(f"{len(failed)} of {len(todo)} ablations failed: {'; '.join(failed)}")
    return frame


def prepare(
    run: Run,
    device: str | None = None,
    *,
    bases: Sequence[str] = (),
    tasks: Sequence[str] = (),
    rows: int = 200,
    samples: int = 10,
    steps: int | None = None,
    seed: int = 0,
) -> Study:
    """The study of a run, its zoo trained where it is missing.

    `bases` (default: the first of the scale) share one generator, trained for `steps` (default: as
    long as the scale does); `tasks` (default: `quick`) are judged on `rows` validation rows with
    `samples` adapters each.
    """
    for name, value in {"rows": rows, "samples": samples, "steps": steps or 1}.items():
        if value < 1:
            raise UsageError(f"ablations: {name}={value}: must be 1 or more.")
    planned = {cells.base: cells for cells in scales.base_plans(run.scale, run.source)}
    chosen = tuple(dict.fromkeys(bases)) or tuple(planned)[:1]
    plans = {name: scales.base_plan(run.scale, name, run.source, "language") for name in chosen}
    known = {name: plan.tasks for name, plan in plans.items()}
    for task in tasks:
        if not any(task in names for names in known.values()):
            some = sorted({t for names in known.values() for t in names})
            raise UsageError(
                f"no task {task!r} on {', '.join(chosen)}.{closest(task, some)} "
                f"There are {', '.join(some)}."
            )
    run.root.mkdir(parents=True, exist_ok=True)
    with FileLock(run.root / ".ready.lock"):
        for name in chosen:
            run.train_zoo(name, known[name], list(range(planned[name].zoo_seeds)))
    config, school = generators.preset(run.scale, "generator")
    return Study(
        source=run.source,
        bases=chosen,
        tasks={n: tuple(t for t in known[n] if t in (tasks or quick(known[n]))) for n in chosen},
        config=config,
        training=replace(school, seed=seed, steps=steps or school.steps),
        rows=rows,
        samples=samples,
        members=tuple(m for name in chosen for m in run.members(name)),
        device=device or run.device,
    )


def quick(names: Sequence[str]) -> list[str]:
    """Those of the tasks `names` whose answers need not be written, word by word, to be scored."""
    return [name for name in names if load_task(name).scoring != "answer"]


def part_of(study: Study, variant: Variant | None) -> str:
    """The name under which the rows of `variant` (None: the references) are kept."""
    if variant is None:
        return study.key(REFERENCE)
    return study.key(asdict(variant.config), variant.gauge, variant.statistics)


def _once(path: Path, work: Callable[[], pd.DataFrame]) -> None:
    """Has `work` done and kept at `path`, unless it is there or another process is at it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock"):
        if not path.exists():
            storage.write_text(path, work().assign(commit=code_commit()).to_csv(index=False))


def collect(study: Study, folder: Path, path: Path) -> pd.DataFrame:
    """All finished rows of `study`; `path` gets them in place of older ones of its bases."""
    listed = [(v.group, v.name, v.default, part_of(study, v)) for v in variants(study.config)]
    listed.append((REFERENCE, None, False, part_of(study, None)))
    found = []
    for group, name, default, part in listed:
        file = folder / "parts" / f"{part}.csv"
        if file.exists():
            rows = pd.read_csv(file).assign(group=group, default=default)
            found.append(rows if name is None else rows.assign(variant=name))
    if not found:
        return pd.DataFrame(columns=COLUMNS)
    source = study.source.partition(":")[0]
    frame = pd.concat(found, ignore_index=True).assign(source=source, seed=study.training.seed)
    more = {g for g, part in frame.groupby("group") if not part.default.all()}  # than the default
    frame = frame[frame.group.isin(more)][COLUMNS].reset_index(drop=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".csv.lock"):
        merged = frame
        if path.exists():
            old, own = pd.read_csv(path, dtype={"variant": str}), ["source", "base", "seed"]
            mine = pd.MultiIndex.from_frame(frame[own])
            merged = pd.concat([old[~pd.MultiIndex.from_frame(old[own]).isin(mine)], frame])
        storage.write_text(path, merged.to_csv(index=False, float_format="%.6g"))
    return frame
