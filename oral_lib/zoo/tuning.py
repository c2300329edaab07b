"""Tuning: learning rate and steps of a task on a base model, selected on validation rows.

All candidates of a task are trained as one stack. Their seed is not used by any zoo. Validation
rows are taken from the training rows, so that no test row is read.
"""

from collections.abc import Sequence
from pathlib import Path

from oral_lib import storage
from oral_lib.errors import OralError
from oral_lib.evaluation.evaluate import accuracy_of, evaluate
from oral_lib.models import loading
from oral_lib.tasks.rows import Split, full_rows
from oral_lib.tasks.task import Task, load_task
from oral_lib.zoo import training
from oral_lib.zoo.recipes import Recipe, candidates

_SEED = 1000


def best_candidate(candidates: Sequence[dict], rows: int) -> dict:
    """The candidate with the highest likelihood among those within one standard error of the best
    accuracy.

    Args:
        candidates: accuracy (None if answers are not generated) and likelihood of each.
        rows: number of validation rows.
    """
    top = max(candidate["accuracy"] or 0.0 for candidate in candidates)
    error = (top * (1 - top) / rows) ** 0.5
    near = [c for c in candidates if (c["accuracy"] or 0.0) >= top - error]
    return max(near, key=lambda candidate: candidate["likelihood"])


def tune(
    base: str, names: Sequence[str], *, source: str, root: Path, device: str = "cpu"
) -> list[Path]:
    """Files with the recipes of the tasks `names`; those that are missing in `root` are selected.

    `best_candidate` selects. Candidates whose loss is not finite are excluded.

    Raises:
        OralError: if no candidate of a task has a finite loss.
    """
    files = [root / "tuning" / base / f"{name}.json" for name in names]
    missing = [name for name, file in zip(names, files, strict=True) if not file.exists()]
    for labels in sorted({len(load_task(name).labels) for name in missing}):
        group = [name for name in missing if len(load_task(name).labels) == labels]
        model = loading.load(base, source=source, labels=labels, device=device)
        trainer = training.StackTrainer(model, max(load_task(name).max_tokens for name in group))
        for name in group:
            data = full_rows(load_task(name), source)
            content = _tune_task(trainer, load_task(name), data, candidates(base))
            storage.write_json(root / "tuning" / base / f"{name}.json", content)
    return files


def _tune_task(
    trainer: training.StackTrainer, task: Task, data: Split, recipes: Sequence[Recipe]
) -> dict:
    """Content of the task's file: the selected recipe, and the scores of all candidates."""
    jobs = [training.AdapterJob(task, _SEED, recipe) for recipe in recipes]
    adapters = list(trainer.train(jobs, {task.name: data}, strict=False))
    finite = [adapter for adapter in adapters if adapter.finite]
    if not finite:
        raise OralError(
            f"tune {trainer.base.name} {task.name}: the loss of all {len(jobs)} candidates is not "
            f"finite; lower the learning rate of {trainer.base.name} in recipes.RECIPES."
        )
    tensors = [adapter.tensors for adapter in finite]
    outcomes = evaluate(trainer.base, task, data.validation, tensors, write=False)
    scores = [
        {
            "steps": adapter.job.recipe.steps,
            "lr": adapter.job.recipe.lr,
            "accuracy": accuracy_of(outcome),
            "likelihood": round(outcome.likelihood, 5),
        }
        for adapter, outcome in zip(finite, outcomes, strict=True)
    ]
    best = best_candidate(scores, len(data.validation))
    diverged = [adapter.job.recipe for adapter in adapters if not adapter.finite]
    scores += [{"steps": r.steps, "lr": r.lr, "diverged": True} for r in diverged]
    return {
        "chosen": {"steps": best["steps"], "lr": best["lr"]},
        "candidates": scores,
        "ratio": recipes[0].ratio,
        "validation_rows": len(data.validation),
        "seed": _SEED,
    }
