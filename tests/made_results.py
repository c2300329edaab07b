"""Made-up outcomes for the tests of results, figures and the report: simulated, never real."""

from statistics import NormalDist

import numpy as np
import pandas as pd

from oral_lib.evaluation.item_tables import join, label_items, summarise

PROFILE = {  # (method, condition): (accuracy in the long run, samples)
    ("majority", "none"): (0.50, 1),
    ("base", "none"): (0.55, 1),
    ("trained", "none"): (0.86, 3),
    ("soup_task", "none"): (0.86, 1),
    ("soup_all", "none"): (0.66, 1),
    ("retrieval", "matched"): (0.86, 1),
    ("regression", "matched"): (0.86, 1),
    ("generated", "matched"): (0.86, 5),
    ("generated", "paraphrase"): (0.86, 2),
    ("generated", "mismatched"): (0.52, 2),
    ("generated", "random"): (0.64, 2),
    ("generated", "empty"): (0.63, 2),
    ("gaussian", "none"): (0.80, 2),
    ("noise_small", "none"): (0.86, 2),
    ("noise_large", "none"): (0.56, 2),
    ("unconditional", "none"): (0.62, 2),
}


def cell(task="movie", base="minilm-l6", seed=0, experiment="language", source="packages") -> dict:
    return {"experiment": experiment, "source": source, "base": base, "task": task, "seed": seed}


def made_items(
    place: dict, profile: dict = PROFILE, n: int = 300, n_control: int = 120, shake=0.35
):
    """Items whose difficulty is shared by all methods, so that paired comparisons have a point."""
    name = "/".join(str(part) for part in place.values())
    random = np.random.default_rng(list(name.encode()))
    labels = random.permutation(np.arange(n) % 2)
    difficulty, tables = random.normal(size=n), []
    for (method, condition), (accuracy, samples) in profile.items():
        size = min(n, n_control) if condition in ("mismatched", "random", "empty") else n
        skill = NormalDist().inv_cdf(accuracy) * np.sqrt(1 + shake**2)
        for sample in range(samples):
            margin = skill + difficulty + shake * random.normal(size=n)
            if method == "majority":
                margin = np.where(labels == 1, 1.0, -1.0)
            logits = np.stack([0 * margin, np.where(labels == 1, margin, -margin)], axis=1)[:size]
            ids = [f"{place['task']}-{i:04d}" for i in range(size)]
            row = {"item": ids, "labels": labels[:size], "logits": logits, "sample": sample}
            tables.append(label_items(place, method, condition, **row))
    return join(tables)


def made(place: dict | None = None, **more) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Metrics and items of one made cell."""
    items = made_items(place or cell(), **more)
    return summarise(items, family="language", base_version="made", wall_s=1.5, commit="abc"), items


def stacking() -> list[dict]:
    """Benchmarks of training one and many LoRAs at once."""
    row = {"benchmark": "train LoRAs", "case": "minilm-l6", "values": 1, "repeats": 3}
    row |= {"device": "GPU", "commit": "abc", "metric": "adapters an hour", "unit": "1/h"}
    share = {"metric": "share of limit", "unit": "ratio"}
    ways = [("1 at once", 300.0, 0.1), ("64 at once", 4567.0, 0.4)]
    rows = [row | {"variant": name, "value": speed} for name, speed, _ in ways]
    rows += [row | share | {"variant": name, "value": part} for name, _, part in ways]
    return [*rows, row | {"variant": "plain", "value": 43.0}]


def ablation() -> pd.DataFrame:
    rows = [("token size", "256", 0.7, True), ("token size", "512", 0.6, False)]
    rows += [("objective", "v", 0.7, True), ("reference", "trained", 0.75, False)]
    frame = pd.DataFrame(rows, columns=["group", "variant", "value", "default"])
    frame = frame.assign(metric="accuracy")
    return frame.assign(ci_low=frame.value - 0.05, ci_high=frame.value + 0.05)
