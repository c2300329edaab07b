"""Few-shot LoRAs: adapters trained on a few labelled rows, and the choice of their recipe."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from oral_lib import seeds
from oral_lib.evaluation import bootstrap
from oral_lib.experiments.intents import adapters, scoring, stored
from oral_lib.experiments.intents.messages import MessageTable
from oral_lib.tasks.intents.family import IntentFamily, IntentTask, draw_rows
from oral_lib.zoo.recipes import Recipe

SHOTS = (1, 2, 4, 8, 16, 32)  # labelled rows of a few-shot LoRA
CHOICE_ROWS = (20, 40)  # positive and negative rows of a task on which choices are made


def labelled_rows(
    family: IntentFamily, tasks: Sequence[IntentTask], shots: int, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Training rows [T, shots] and labels of each task: half are positive, a single row is."""
    sizes = shots - shots // 2, shots // 2
    drawn = [draw_rows(family, task, "train", *sizes, seed) for task in tasks]
    rows, labels = zip(*drawn, strict=True)
    return np.stack(rows), np.stack(labels)


def few_shot(
    table: MessageTable,
    family: IntentFamily,
    tasks: Sequence[IntentTask],
    shots: int,
    recipe: Recipe,
    seed: int = 0,
) -> Tensor:
    """Adapters [T, V], each trained on `shots` labelled rows of its task: half are positive.

    A single row is positive. The rows are the first of `family.draw_rows`: 8 rows contain the 4.

    Args:
        table: the messages.
        family: of the tasks.
        tasks: the tasks.
        shots: labelled rows of a task.
        recipe: `batch` is the largest number of rows of a step.
        seed: of the rows and their order.
    """
    chosen, answers = labelled_rows(family, tasks, shots, seed)
    n, random = min(shots, recipe.batch), np.random.default_rng(seeds.integer(seed, "shots"))
    passes = -(-recipe.steps * n // shots)
    order = np.concatenate([random.permutation(shots) for _ in range(passes)])
    order = order[: recipe.steps * n].reshape(recipe.steps, n)  # alike for all tasks
    rows = chosen[:, order].transpose(1, 0, 2).copy()  # [steps, T, n]
    labels = answers[:, order].transpose(1, 0, 2).copy()
    start, label = table.base.lora_init(), f"{shots} rows"
    return adapters.train_stack(
        table.base, table, start, rows, labels, label=label, **adapters.options_of(recipe)
    )


def choose_few_shot(
    table: MessageTable, family: IntentFamily, candidates: Sequence[Recipe]
) -> dict[int, Recipe]:
    """The best candidate for each number of rows, by the validation rows of development tasks.

    The criterion is the mean of AUC and balanced accuracy over tasks.
    """
    tasks, chosen = family.tasks("development"), {}
    for shots in SHOTS:
        means = []
        for recipe in candidates if len(candidates) > 1 else ():
            values = few_shot(table, family, tasks, shots, recipe, seed=1)
            means.append(validation_score(table, family, tasks, values))
        chosen[shots] = candidates[int(np.argmax(means))] if means else candidates[0]
    return chosen


def validation_score(
    table: MessageTable, family: IntentFamily, tasks: Sequence[IntentTask], values: Tensor
) -> float:
    """Mean of AUC and balanced accuracy of adapters [T, V] on validation rows of their tasks."""
    drawn = [draw_rows(family, task, "validation", *CHOICE_ROWS, 0) for task in tasks]
    rows, labels = (np.stack(side) for side in zip(*drawn, strict=True))
    scores = scoring.yes_logits(table.base, table, values, rows).numpy()
    each = [
        (bootstrap.auc(y, s) + bootstrap.balanced_accuracy(y, (s > 0) == y)) / 2
        for y, s in zip(labels, scores, strict=True)
    ]
    return float(np.mean(each))


def few_shot_choice(
    table: MessageTable, family: IntentFamily, candidates: Sequence[Recipe]
) -> tuple[dict[str, Tensor], dict]:
    """(index of the chosen candidate by number of rows, facts), as a file has them."""
    chosen = choose_few_shot(table, family, candidates)
    index = torch.tensor([candidates.index(recipe) for recipe in chosen.values()])
    return {"chosen": index}, {"chosen": {str(k): asdict(r) for k, r in chosen.items()}}


def few_shot_recipes(root: Path, base: str, *, development: bool = False) -> dict[int, Recipe]:
    """The chosen recipe for each number of rows; PreflightError if no choice was made."""
    _, info = stored.read_rival(root, base, "few_shot", development=development)
    return {int(k): Recipe.from_json(r) for k, r in info["chosen"].items()}
