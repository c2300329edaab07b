"""Tuning: learning rate and steps of a task on a base model, chosen on validation rows.

All candidates of a task are trained as one stack. The seed is none that a zoo has, and the rows are
cut from the training rows: no evaluation row is ever looked at.
"""

from collections.abc import Sequence
from pathlib import Path

from oral_lib import storage
from oral_lib.errors import OralError
from oral_lib.evaluation.evaluate import accuracy_of, evaluate
from oral_lib.models import loading
from oral_lib.tasks.rows import full_rows
from oral_lib.tasks.task import load_task
from oral_lib.zoo import training
from oral_lib.zoo.recipes import candidates

SEED = 1000


def chosen(found: Sequence[dict], rows: int) -> dict:
    """The winner among `found` candidates (accuracy or None, likelihood), judged on `rows` rows."""
    top = max(one["accuracy"] or 0.0 for one in found)
    error = (top * (1 - top) / rows) ** 0.5
    near = [one for one in found if (one["accuracy"] or 0.0) >= top - error]
    return max(near, key=lambda one: one["likelihood"])


def tune(
    base: str, names: Sequence[str], *, source: str, root: Path, device: str = "cpu"
) -> list[Path]:
    """Chooses recipes for the tasks called `names` that `root` lacks; the files of all.

    Of all candidates within one standard error of the best accuracy the one wins that finds the
    right answers likeliest; where answers have to be written, likelihood alone decides. One whose
    loss is no longer finite is out. OralError if all are.
    """
    files = [root / "tuning" / base / f"{name}.json" for name in names]
    todo = [name for name, file in zip(names, files, strict=True) if not file.exists()]
    for labels in sorted({len(load_task(name).labels) for name in todo}):
        alike = [name for name in todo if len(load_task(name).labels) == labels]
        model = loading.load(base, source=source, labels=labels, device=device)
        workshop = training.StackTrainer(model, max(load_task(name).words for name in alike))
        for name in alike:
            task, data = load_task(name), full_rows(load_task(name), source)
            runs = [training.AdapterJob(task, SEED, recipe) for recipe in candidates(base)]
            trained = list(workshop.train(runs, {name: data}, strict=False))
            made = [done for done in trained if done.finite]
            if not made:
                raise OralError(
                    f"tune {base} {name}: the loss of all {len(runs)} candidates is no longer "
                    f"finite; lower the learning rate of {base} in recipes.RECIPES."
                )
            judged = evaluate(model, task, data.validation, [d.tensors for d in made], write=False)
            found = [
                {
                    "steps": done.run.recipe.steps,
                    "lr": done.run.recipe.lr,
                    "accuracy": accuracy_of(outcome),
                    "likelihood": round(outcome.likelihood, 5),
                }
                for done, outcome in zip(made, judged, strict=True)
            ]
            best = chosen(found, len(data.validation))
            lost = [done.run.recipe for done in trained if not done.finite]
            found += [{"steps": r.steps, "lr": r.lr, "diverged": True} for r in lost]
            storage.write_json(
                root / "tuning" / base / f"{name}.json",
                {
                    "chosen": {"steps": best["steps"], "lr": best["lr"]},
                    "candidates": found,
                    "ratio": runs[0].recipe.ratio,
                    "validation_rows": len(data.validation),
                    "seed": SEED,
                },
            )
    return files
