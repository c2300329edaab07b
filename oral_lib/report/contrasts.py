"""Paired comparisons of methods on the same items, and the value of each text.

The input are `items`: one outcome per method, condition, seed, sample and item.
Nothing is scored here. Shapes: s samples over all seeds, n items.
"""

from collections.abc import Callable, Iterator
from functools import cache

import numpy as np
import pandas as pd

from oral_lib.evaluation import bootstrap
from oral_lib.evaluation.item_tables import matrix
from oral_lib.evaluation.schema import PLACE, PROMPTED
from oral_lib.report.comparisons import ALTERNATIVES, CONTROLS
from oral_lib.report.outcomes import BASELINES

ESTIMATE = bootstrap.Difference._fields
CONTRAST_COLUMNS = [*PLACE, "what", "against", *ESTIMATE, "n_items"]
Outcomes = Callable[..., pd.DataFrame]  # (method, condition="none") -> outcomes [s, n]


# ---------------------------------------------------------------- contrasts
def contrasts(items: pd.DataFrame) -> pd.DataFrame:
    """One row per cell and paired comparison, over the items that both sides share.

    There are two kinds of rows. `what` minus `against` is a difference in accuracy: trained and
    generated against the baseline, generated against trained and every alternative, trained against
    the linear probe. The baseline is the better of base model and majority class.

    `what` = "lost with <control>" is the share of the generator's gain over the baseline that is
    lost with a control text (see `share_lost`). It is NaN unless the gain's interval lies above 0.
    """
    rows = []
    for key, outcomes in _cells(items):
        name, baseline = _baseline(outcomes)
        rows += [key | row for row in _differences(outcomes, name, baseline)]
        rows += [key | row for row in _losses(outcomes, name, baseline)]
    return pd.DataFrame(rows, columns=CONTRAST_COLUMNS)


def trained_gains(items: pd.DataFrame) -> pd.DataFrame:
    """The rows of `contrasts` that compare trained with the baseline."""
    rows = []
    for key, outcomes in _cells(items):
        name, baseline = _baseline(outcomes)
        series = _shared(outcomes("trained"), baseline)
        if series[0].size:
            difference = bootstrap.paired_bootstrap(*series)
            rows.append(key | _contrast("trained", name, difference, series))
    return pd.DataFrame(rows, columns=CONTRAST_COLUMNS)


def share_lost(
    generated: np.ndarray, control: np.ndarray, baseline: np.ndarray
) -> bootstrap.Difference:
    """(generated - control) / (generated - baseline) and its interval; NaN without a gain.

    Args:
        generated: outcomes [s, n] with the task's own text.
        control: outcomes [s', n] with a control text.
        baseline: outcomes [s'', n] of the baseline.

    Returns:
        The share with its 95% bootstrap interval; p is always NaN. All values are NaN unless the
        interval of generated minus baseline lies above 0.
    """
    generated_mean, control_mean, baseline_mean = (
        bootstrap.item_means(series).mean() for series in (generated, control, baseline)
    )
    draws = bootstrap.resampled_means(generated, control, baseline)
    gains = draws[0] - draws[2]
    if np.quantile(gains, 0.025) <= 0:
        return bootstrap.Difference(*[np.nan] * 4)
    gains = np.where(gains > 0, gains, np.nan)
    shares = (draws[0] - draws[1]) / gains
    share = (generated_mean - control_mean) / (generated_mean - baseline_mean)
    return bootstrap.Difference(*bootstrap.interval(share, shares[np.isfinite(shares)]), p=np.nan)


def _cells(items: pd.DataFrame) -> Iterator[tuple[dict[str, str], Outcomes]]:
    """(place by column, function that returns the outcomes [s, n] of a method) of every cell."""
    for place, cell in items.groupby(PLACE, sort=False, observed=True):

        @cache
        def outcomes(method: str, condition: str = "none", cell=cell) -> pd.DataFrame:
            return matrix(cell, method, condition)

        yield dict(zip(PLACE, place, strict=True)), outcomes


def _differences(outcomes: Outcomes, name: str, baseline: pd.DataFrame) -> Iterator[dict]:
    """Differences in accuracy; `baseline` are the outcomes of the method `name`."""
    generated, trained = outcomes("generated", "matched"), outcomes("trained")
    pairs = [("trained", trained, name, baseline), ("generated", generated, name, baseline)]
    pairs += [("generated", generated, "trained", trained)]
    for method in ALTERNATIVES:
        condition = "matched" if method in PROMPTED else "none"
        pairs.append(("generated", generated, method, outcomes(method, condition)))
    pairs.append(("trained", trained, "linear_probe", outcomes("linear_probe")))
    for what, first, against, second in pairs:
        series = _shared(first, second)
        if series[0].size:
            yield _contrast(what, against, bootstrap.paired_bootstrap(*series), series)


def _losses(outcomes: Outcomes, name: str, baseline: pd.DataFrame) -> Iterator[dict]:
    """The shares of the gain lost with each control text."""
    generated = outcomes("generated", "matched")
    for control in CONTROLS:
        series = _shared(generated, outcomes("generated", control), baseline)
        if series[0].size:
            yield _contrast(f"lost with {control}", name, share_lost(*series), series)


def _contrast(what: str, against: str, estimate: bootstrap.Difference, series: list) -> dict:
    row = {"what": what, "against": against} | estimate._asdict()
    return row | {"n_items": series[0].shape[1]}


def _baseline(outcomes: Outcomes) -> tuple[str, pd.DataFrame]:
    """The better of base model and majority class: its name and its outcomes [s, n]."""
    frames = {name: outcomes(name) for name in BASELINES}
    best = max(
        BASELINES, key=lambda name: frames[name].to_numpy().mean() if frames[name].size else -1
    )
    return best, frames[best]


def _shared(*frames: pd.DataFrame) -> list[np.ndarray]:
    """Outcomes [s, n] of each frame on the n items that all frames contain."""
    shared = [item for item in frames[0] if all(item in frame for frame in frames[1:])]
    return [frame[shared].to_numpy() for frame in frames]
