"""Made-up outcomes of experiment intents, with a known truth: simulated, never real."""

from collections.abc import Mapping, Sequence
from statistics import NormalDist

import numpy as np
import pandas as pd

from oral_lib.evaluation.schema import ALLOWED, FEW_SHOT, items_frame

NORMAL = NormalDist()
CURVE = {1: 0.60, 2: 0.70, 4: 0.80, 8: 0.88, 16: 0.93, 32: 0.96}  # AUC by labelled rows
FEW = {(f"few_shot_{k}", "none"): auc for k, auc in CURVE.items()}
PROFILE = FEW | {  # (method, condition): AUC of a task of average difficulty
    ("base", "none"): 0.50,
    ("trained", "none"): 0.99,
    ("zero_shot", "matched"): 0.92,
    ("prompted", "matched"): 0.52,
    ("multitask_described", "matched"): 0.94,
    ("retrieval", "matched"): 0.80,
    ("soup_nearest", "matched"): 0.84,
    ("regression", "matched"): 0.85,
    ("generated", "matched"): 0.86,
    ("generated_through_base", "matched"): 0.94,
    ("generated_through_base", "paraphrase"): 0.935,
    ("generated_through_base", "mismatched"): 0.51,
    ("generated_through_base", "empty"): 0.55,
    ("generated_through_base", "matched_4"): 0.955,
    ("generated_through_base", "matched_16"): 0.97,
    ("generated_through_base", "rows_4"): 0.86,
    ("generated_through_base", "rows_16"): 0.94,
}
ONLY_HERE = {  # methods that no other experiment has
    "zero_shot", "prompted", "prompted_4", "multitask_described", "soup_nearest", "mixture",
    *FEW_SHOT,
}  # fmt: skip
SEEDED = ("generated", "generated_through_base")


def distance(auc: float) -> float:
    """The distance of two normal classes with this AUC."""
    return NORMAL.inv_cdf(auc) * 2**0.5


def intents_items(
    profile: Mapping = PROFILE,
    *,
    base="minilm-l6",
    split="L2",
    source="packages",
    n_tasks=12,
    rows=(10, 20),
    seeds: Sequence[int] = (0, 1, 2),
    task_sd=0.3,
    seed_sd=0.0,
    own_sd=0.1,
    shared=0.0,
    n_messages=0,
    random: np.random.Generator | None = None,
) -> pd.DataFrame:
    """Items of one base model and split.

    Args:
        profile: AUC by (method, condition).
        base: the base model.
        split: the split in the names of the tasks.
        source: the source of the data.
        n_tasks: the number of tasks.
        rows: positives and negatives of a task.
        seeds: generator seeds of the methods in `SEEDED`.
        task_sd: standard deviation of the difficulty of tasks, common to all methods.
        seed_sd: of a generator seed, common to all tasks.
        own_sd: of a method on a task.
        shared: of a message, common to all tasks that have it; 0 for no such effect.
        n_messages: the size of the pool that rows of all tasks are drawn from; 0 for rows of a
            task's own.
        random: draws everything; by default seeded by base model and split.
    """
    if random is None:
        random = np.random.default_rng(list(f"{base}/{split}".encode()))
    n, labels = sum(rows), np.repeat([1, 0], rows)
    difficulty = task_sd * random.normal(size=n_tasks)
    picked = np.arange(n_tasks * n).reshape(n_tasks, n)
    if n_messages:
        picked = np.stack([random.permutation(n_messages)[:n] for _ in range(n_tasks)])
    noise = random.normal(size=(n_tasks, n))
    tables = []
    for (method, condition), auc in profile.items():
        of_message = shared * random.normal(size=picked.max() + 1)
        own = own_sd * random.normal(size=n_tasks)
        for seed in seeds if method in SEEDED else (0,):
            of_seed = seed_sd * random.normal() * (method in SEEDED)
            effect = difficulty + own + of_seed
            mean = np.where(labels, distance(auc) + effect[:, None], 0.0)
            score = mean + 0.8 * noise + 0.6 * random.normal(size=noise.shape) + of_message[picked]
            tables.append(pd.DataFrame({
                "task": np.repeat([f"{split}/made.intent-{t:02d}" for t in range(n_tasks)], n),
                "method": method, "condition": condition, "seed": seed, "sample": 0,
                "item": [f"m{i}" for i in picked.ravel()], "label": np.tile(labels, n_tasks),
                "score": score.ravel(), "predicted": (score > distance(auc) / 2).ravel(),
            }))  # fmt: skip
    frame = pd.concat(tables).assign(experiment="intents", source=source, base=base)
    frame["correct"] = frame.label == frame.predicted
    for name in ("method", "condition"):
        frame[name] = frame[name].astype(pd.CategoricalDtype(ALLOWED[name]))
    return items_frame(frame)


def truth(auc: float, sd: float) -> float:
    """The mean AUC over tasks whose distances of classes have the standard deviation `sd`."""
    return NORMAL.cdf(distance(auc) / (2 + sd**2) ** 0.5)
