"""Paired comparisons: which method is better on the same items, and what a text is worth.

They start from the items of `items.parquet`; nothing is scored here.
"""

import numpy as np
import pandas as pd

from oral_lib.errors import OralError
from oral_lib.evaluation import bootstrap
from oral_lib.evaluation.item_tables import matrix
from oral_lib.evaluation.schema import PLACE, PROMPTED

RIVALS = [
    "soup_task", "soup_all", "retrieval", "regression", "gaussian", "noise_small", "noise_large",
    "unconditional", "linear_probe", "multitask",
]  # fmt: skip
CONTROLS = ["paraphrase", "mismatched", "random", "empty"]
FOUND = bootstrap.Difference._fields
FLOORS = ["base", "majority"]


def contrasts(items: pd.DataFrame) -> pd.DataFrame:
    """Paired comparisons of every cell, over the items that both sides were scored on.

    `what` minus `against` in accuracy: trained and generated against the better of base and
    majority, generated against trained and its rivals. And for each control text, `what` =
    "lost with <control>": the share of the generator's gain over the better of base and majority
    that goes with the text (an unseen wording of the same task should lose nearly none); NaN when
    the gain is not above zero for sure.
    """
    lines = []
    for place, cell in items.groupby(PLACE, sort=False, observed=True):
        here = dict(zip(PLACE, place, strict=True))
        generated, trained = matrix(cell, "generated", "matched"), matrix(cell, "trained", "none")
        name, floor = _floor(cell)
        pairs = [("trained", trained, name, floor), ("generated", generated, name, floor)]
        pairs += [("generated", generated, "trained", trained)]
        for rival in RIVALS:
            condition = "matched" if rival in PROMPTED else "none"
            pairs.append(("generated", generated, rival, matrix(cell, rival, condition)))
        pairs.append(("trained", trained, "linear_probe", matrix(cell, "linear_probe", "none")))
        for what, first, against, second in pairs:
            series = _common(first, second)
            if series[0].size:
                found = bootstrap.paired_bootstrap(*series)._asdict()
                lines.append(here | {"what": what, "against": against} | found)
                lines[-1]["n_items"] = series[0].shape[1]
        for control in CONTROLS:
            series = _common(generated, matrix(cell, "generated", control), floor)
            if series[0].size:
                found = share_lost(*series)._asdict()
                lines.append(here | {"what": f"lost with {control}", "against": name} | found)
                lines[-1]["n_items"] = series[0].shape[1]
    return pd.DataFrame(lines, columns=[*PLACE, "what", "against", *FOUND, "n_items"])


def silent_places(compared: pd.DataFrame) -> set[tuple[str, ...]]:
    """`without_signal`, from what `contrasts` found already."""
    gains = compared[(compared.what == "trained") & compared.against.isin(FLOORS)]
    rows = gains[gains.ci_low <= 0]
    return set(rows[PLACE].itertuples(index=False, name=None))


def without_signal(items: pd.DataFrame) -> set[tuple[str, ...]]:
    """The places (experiment, source, base, task) where trained is not surely above its floor."""
    silent = set()
    for place, cell in items.groupby(PLACE, sort=False, observed=True):
        series = _common(matrix(cell, "trained", "none"), _floor(cell)[1])
        if series[0].size and bootstrap.paired_bootstrap(*series).ci_low <= 0:
            silent.add(place)
    return silent


def _floor(cell: pd.DataFrame) -> tuple[str, pd.DataFrame]:
    """The better of base and majority: its name and its outcomes."""
    found = {name: matrix(cell, name, "none") for name in FLOORS}
    best = max(FLOORS, key=lambda name: found[name].to_numpy().mean() if found[name].size else -1)
    return best, found[best]


def _common(*frames: pd.DataFrame) -> list[np.ndarray]:
    """Outcomes on the items that all frames share."""
    shared = [item for item in frames[0] if all(item in frame for frame in frames[1:])]
    return [frame[shared].to_numpy() for frame in frames]


def share_lost(generated: np.ndarray, other: np.ndarray, floor: np.ndarray) -> bootstrap.Difference:
    """(generated - other) / (generated - floor) with its bootstrap interval; p is left NaN."""
    own, control, low = (
        bootstrap.item_means(series).mean() for series in (generated, other, floor)
    )
    draws = bootstrap.resampled_means(generated, other, floor)
    gains = draws[0] - draws[2]
    if np.quantile(gains, 0.025) <= 0:
        return bootstrap.Difference(*[np.nan] * 4)
    gains = np.where(gains > 0, gains, np.nan)
    shares = (draws[0] - draws[1]) / gains
    found = bootstrap.interval((own - control) / (own - low), shares[np.isfinite(shares)])
    return bootstrap.Difference(*found, p=np.nan)


def pooled(metrics: pd.DataFrame) -> pd.DataFrame:
    """One row a base, task, method, condition and metric: the mean over seeds.

    The seeds share their held-out items, so intervals and standard errors are averaged too: more
    seeds do not shrink what is unknown about new items.
    """
    numbers = {name: "mean" for name in ("value", "stderr", "ci_low", "ci_high")}
    key = [*PLACE, "method", "condition", "metric"]
    counts = {"n_items": "min", "n_samples": "sum"}
    return metrics.groupby(key, as_index=False, sort=False).agg(numbers | counts)


def per_sample(items: pd.DataFrame, metric: str = "accuracy") -> pd.DataFrame:
    """`value` of each sample and seed, with the columns that name its place in the tables."""
    key = [*PLACE, "method", "condition", "seed", "sample"]
    groups = items.groupby(key, sort=False, observed=True)
    if metric == "accuracy":
        values = groups.correct.mean()
    elif metric in PER_SAMPLE:
        values = groups[["label", "score", "correct"]].apply(_scored, metric).dropna()
    else:
        known = ", ".join(PER_SAMPLE)
        raise OralError(f"No per-sample values for metric {metric!r}: use accuracy, {known}.")
    return values.rename("value").reset_index()


def _scored(rows: pd.DataFrame, metric: str) -> float:
    labels, scores = rows.label.to_numpy(), rows.score.to_numpy()
    if not np.isfinite(scores).all() or set(np.unique(labels)) != {0, 1}:
        return np.nan  # answers, or more than two labels
    return PER_SAMPLE[metric](labels, scores, rows.correct.to_numpy())


PER_SAMPLE = {
    "auc": lambda labels, scores, _: bootstrap.auc(labels, scores),
    "calibrated_accuracy": lambda labels, scores, _: float(
        bootstrap.calibrated(labels, scores).mean()
    ),
    "balanced_accuracy": lambda labels, _, correct: bootstrap.balanced(labels, correct),
}


def spreads_of(items: pd.DataFrame, metric: str = "accuracy") -> dict[tuple[str, ...], float]:
    """The standard deviation over samples and seeds of every method that has several."""
    key = [*PLACE, "method", "condition"]
    samples = per_sample(items, metric)
    return samples.groupby(key, observed=True).value.std().dropna().to_dict()
