"""Tables of the small studies: what a sample is, and what is stored for it."""

import numpy as np
import pandas as pd

from oral_lib.report.formats import ABSENT

_NOVELTY = {  # heading by column of novelty.csv
    "ratio": "ratio",
    "ratio_low": "smallest ratio",
    "generated": "generated to nearest",
    "held_out": "held-out seed to nearest",
    "seeds": "between seeds",
    "samples": "between samples",
    "spread": "spread",
    "free_numbers": "free numbers",
    "bound": "most free numbers",
}
_STORED = {
    "zoo_fp32": "zoo, single precision",
    "zoo_fp16": "zoo, half precision",
    "generator": "generator",
    "router": "router: classifier and zoo in half precision",
}


def novelty_table(novelty: pd.DataFrame, source: str) -> pd.DataFrame:
    """One row per base model, task and projection: distances on dW, spread and free numbers.

    Values are means over generator seeds; the smallest ratio is the smallest over all seeds.
    Columns without any value are left out.

    Args:
        novelty: rows of novelty.csv.
        source: the data source whose rows are used.
    """
    rows = novelty[novelty.source == source]
    key = ["base", "task", "method"]
    means = {name: "mean" for name in _NOVELTY if name in rows} | {"ratio_low": "min"}
    rows = rows.groupby(key, as_index=False, sort=False).agg(means)
    texts = {_NOVELTY[name]: rows[name].map(_three_digits) for name in means if name in rows}
    table = rows[key].rename(columns={"base": "base model"}).assign(**texts)
    empty = [name for name in texts if len(table) and (table[name] == ABSENT).all()]
    return table.drop(columns=empty)


def _three_digits(value: float) -> str:
    return ABSENT if np.isnan(value) else f"{value:.3g}"


def bytes_table(stored: pd.DataFrame) -> pd.DataFrame:
    """What is stored for the same adapters: megabytes, and their share of the half-precision zoo.

    `stored` are rows of bytes.csv of one experiment and source.
    """
    size = stored.set_index("what").bytes
    zoo = size.get("zoo_fp16", np.nan)
    table = []
    for row in sorted(stored.itertuples(), key=lambda row: list(_STORED).index(row.what)):
        line = {"what": _STORED[row.what], "MB": f"{row.bytes / 1e6:.1f}"}
        line["share of the zoo, half precision"] = (
            ABSENT if np.isnan(zoo) else f"{100 * row.bytes / zoo:.0f}%"
        )
        table.append(line | {"adapters": row.adapters, "values": row.values})
    return pd.DataFrame(table)
