"""Rows of novelty.csv: how far generated adapters are from the zoo and from each other.

`bound` is the largest number of free numbers that a projection allows: n - 1 weights of the convex
hull of n adapters, the directions of their span, or the numbers of the noise without projection.
"""

from collections.abc import Sequence

from oral_lib.experiments.trials import PROJECTION_OF, Trial
from oral_lib.generator import Generator
from oral_lib.lora import distances
from oral_lib.provenance import code_commit
from oral_lib.zoo.store import Member


def novelty_rows(
    cell: dict,
    planned: Sequence[Trial],
    members: Sequence[Member],
    held_out: Sequence[Member],
    scale: float,
    generator: Generator,
) -> list[dict]:
    """Rows of `small_tables.NOVELTY` about adapters generated from the task's own text.

    Args:
        cell: experiment, source, base, task and seed.
        planned: trials, with "generated" under the condition "matched".
        members: the zoo of the base model.
        held_out: adapters of the task that no generator was trained on; no row without them.
        scale: alpha / r of the adapters.
        generator: the generator of the cell.
    """
    if not held_out:
        return []
    train = [member.tensors for member in members if member.task == cell["task"]]
    others = [member.tensors for member in held_out]
    table = []
    for trial in planned:
        if trial.condition != "matched" or trial.method not in ("generated", *PROJECTION_OF):
            continue
        numbers = distances.novelty(trial.adapters, train, others, scale)._asdict()
        about = {
            "n_generated": len(trial.adapters), "n_train": len(train), "n_held_out": len(others),
            "method": trial.method, "commit": code_commit(),
            "bound": bound(generator, cell["base"], PROJECTION_OF.get(trial.method)),
        }  # fmt: skip
        table.append(cell | numbers | about)
    return table


def bound(generator: Generator, base: str, projection: str | None = None) -> int:
    """The largest number of free numbers of a sample.

    Args:
        generator: the generator.
        base: name of the base model.
        projection: default: that of the generator.
    """
    entry, sampling = generator.bases[base], generator.sampling
    projection = projection or sampling.projection
    if projection == "none":
        shared = sampling.noise_sharing == "adapter"
        return int((entry.mask.any(0) if shared else entry.mask).sum())
    adapters, directions = entry.projection.coordinates.shape
    return adapters - 1 if projection == "hull" else directions
