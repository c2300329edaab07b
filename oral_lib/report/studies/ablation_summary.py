"""The tables and findings of the ablations of the generator.

The input are rows of ablations.csv: one per group, variant, base model, task, seed and metric.
"""

import numpy as np
import pandas as pd

from oral_lib.evaluation.schema import REFERENCE

_SHARES = ["accuracy", "spread", "unseen", "other", "zeros"]  # metrics shown in percent


_ERRORS = ("below", "above")


# ---------------------------------------------------------------- tables
def ablation_means(rows: pd.DataFrame) -> pd.DataFrame:
    """[group, variant, default, value, ci_low, ci_high]: mean accuracy over bases, tasks and seeds.

    Tasks have separate items, so the errors of their means add in quadrature. The seeds of a task
    share its items, so their intervals are averaged. The order of groups and variants is kept.
    """
    rows = rows[rows.metric == "accuracy"]
    place = ["group", "variant", *(name for name in ("base", "task") if name in rows)]
    rows = rows.assign(below=rows.value - rows.ci_low, above=rows.ci_high - rows.value)
    mean = {"value": "mean", "default": "all", "below": "mean", "above": "mean"}
    if len(place) > 2:
        rows = rows.groupby(place, as_index=False, sort=False).agg(mean)
    rows = rows.assign(below=rows.below**2, above=rows.above**2, count=1)
    groups = rows.groupby(["group", "variant"], as_index=False, sort=False)
    means = groups.agg(mean | {"below": "sum", "above": "sum", "count": "sum"})
    low = means.value - np.sqrt(means.below) / means["count"]
    high = means.value + np.sqrt(means.above) / means["count"]
    columns = ["group", "variant", "default", "value"]
    return means[columns].assign(ci_low=low, ci_high=high)


def ablation_differences(rows: pd.DataFrame) -> pd.DataFrame:
    """[group, variant, default, value, difference, low, high, n_seeds]: variants minus the default.

    A variant is compared with the default on its own base models, tasks and generator seeds. So a
    group that was measured with more seeds has a default of its own value, and differences of all
    groups are comparable. The errors of variant and default count as independent although they
    share items: the interval is conservative. Seeds of a task are averaged, the errors of tasks add
    in quadrature. The variants of the group "reference" are trained, soup and base.
    """
    rows = rows[rows.metric == "accuracy"]
    place = [name for name in ("base", "task", "seed") if name in rows]
    rows = rows.assign(index=0) if not place else rows
    place = place or ["index"]
    defaults = rows[rows.default].drop_duplicates(place)
    pairs = rows.merge(
        defaults[[*place, "value", "ci_low", "ci_high"]], on=place, suffixes=("", "_0")
    )
    below = np.hypot(pairs.value - pairs.ci_low, pairs.ci_high_0 - pairs.value_0)
    above = np.hypot(pairs.ci_high - pairs.value, pairs.value_0 - pairs.ci_low_0)
    pairs = pairs.assign(difference=pairs.value - pairs.value_0, below=below, above=above)
    table = []
    for (group, variant), entries in pairs.groupby(["group", "variant"], sort=False):
        units = entries.groupby([name for name in place if name != "seed"] or place, sort=False)
        errors = {side: np.sqrt((units[side].mean() ** 2).sum()) / len(units) for side in _ERRORS}
        row = {"group": group, "variant": variant, "default": entries.default.all()}
        row |= {"value": units.value.mean().mean(), "difference": units.difference.mean().mean()}
        row |= {"low": row["difference"] - errors["below"]}
        row |= {"high": row["difference"] + errors["above"]}
        n_seeds = entries.seed.nunique() if "seed" in entries else 1
        table.append(row | {"n_seeds": n_seeds})
    return pd.DataFrame(table)


def ablation_metrics(rows: pd.DataFrame) -> pd.DataFrame:
    """Every metric as a column, indexed by [group, variant]: the mean over bases, tasks and seeds.

    Shares are in percent. The default of a group is marked with a star.
    """
    names = rows.variant.astype(str) + np.where(rows.default, " *", "")
    table = rows.assign(variant=names).pivot_table(
        index=["group", "variant"], columns="metric", values="value", aggfunc="mean", sort=False
    )
    table = table.reindex(columns=[*_SHARES, "denoising", "seconds", "parameters"])
    table[_SHARES] = 100 * table[_SHARES]
    return table


# ---------------------------------------------------------------- findings
def ablation_findings(rows: pd.DataFrame) -> list[str]:
    """One sentence per group: does a variant exceed the default by more than the item noise?

    The intervals of variants are treated as independent although all share the same items. The test
    is therefore conservative.
    """
    findings, means = [], ablation_means(rows)
    for group, variants in means[means.group != REFERENCE].groupby("group", sort=False):
        if not variants.default.any():
            findings.append(f"{group}: the default has not been measured.")
            continue
        default = variants[variants.default].iloc[0]
        best = variants.loc[variants.value.idxmax()]
        text = f"{group}: the default, {default.variant}, reaches {default.value:.1%}"
        if best.value <= default.value:
            findings.append(f"{text}; no variant is above it.")
            continue
        if group == "statistics":
            other = rows[(rows.group == group) & ~rows.default & (rows.metric == "other")]
            findings.append(
                f"{text}; with statistics per task {best.value:.1%}, and {other.value.mean():.1%} "
                "with a wrong-task prompt: the statistics encode the task."
            )
            continue
        gap = best.value - default.value
        error = np.hypot(default.ci_high - default.value, best.value - best.ci_low)
        within = "more than" if gap > error else "within"
        findings.append(
            f"{text}; {best.variant} is {100 * gap:.1f} points above, {within} the item noise."
        )
    return findings
