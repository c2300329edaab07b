"""A zoo in a table: adapters, validation scores and losses by task and recipe."""

from collections.abc import Iterable

import pandas as pd

from oral_lib.zoo.store import Member


def of_members(members: Iterable[Member]) -> pd.DataFrame:
    """One row for each task and recipe: number of adapters, means of scores and of the last loss.

    Scores are validation accuracy and log-likelihood, where they exist (of a style minus the
    squared error of denoising).
    """
    zoo = pd.DataFrame(
        {
            "task": member.task,
            "lr": member.info["recipe"]["lr"],
            "steps": member.info["recipe"]["steps"],
            "adapters": 1,
            "validation accuracy": member.info["validation_accuracy"],
            "validation log-likelihood": member.info["validation_likelihood"],
            "last loss": member.info["losses"][-1],
        }
        for member in members
    )
    means = {name: "mean" for name in zoo.columns[4:] if zoo[name].notna().any()}
    zoo[[*means]] = zoo[[*means]].astype(float)
    return zoo.groupby(["task", "lr", "steps"]).agg({"adapters": "sum"} | means)
