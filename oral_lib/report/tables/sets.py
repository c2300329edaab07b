"""Held-out yes/no tasks judged set by set: means over tasks, and differences with their states."""

import pandas as pd

from oral_lib.report.formats import ABSENT, METHOD_WORDS, difference
from oral_lib.report.intents import judgements
from oral_lib.report.intents.outcomes import SplitOutcomes
from oral_lib.report.intents.tables import percent
from oral_lib.report.outcomes import TRAINED
from oral_lib.report.tables.methods import FIRST_RELEASE, unseen_sets

METRIC = "balanced_accuracy"
_JUDGED = "generated_through_base"  # else "generated"


def sets_table(items: pd.DataFrame) -> pd.DataFrame:
    """One row per set of tasks and method: balanced accuracy with its interval, minus trained, and
    the generator's minus it. No rows for tasks of the first release, which have no sets.

    Intervals are over new tasks, rows, generator seeds and samples. States are as in
    `judgements.compared_pairs`.
    """
    table = []
    for part, names in unseen_sets(items.task.astype(str)).items():
        if part == FIRST_RELEASE:
            continue
        outcomes = SplitOutcomes(items[items.task.isin(names)])
        judged = _JUDGED if _JUDGED in outcomes.names else "generated"
        for name in outcomes.names:
            values = None if "/" in name else judgements.value_of(outcomes, name, METRIC)
            if values is None:
                continue
            line = {"set": part, "method": METHOD_WORDS[name]}
            line["balanced accuracy"] = percent(pd.Series(values))
            for heading, pair in {
                "− trained": (name, TRAINED),
                f"{METHOD_WORDS[judged]} − it": (judged, name),
            }.items():
                row = None if pair[0] == pair[1] else judgements.compared(outcomes, *pair, METRIC)
                line[heading] = ABSENT if row is None else difference(pd.Series(row))
            table.append(line | {"tasks": values["n_tasks"]})
    return pd.DataFrame(table)
