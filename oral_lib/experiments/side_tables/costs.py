"""Rows of costs.csv and bytes.csv: what making an adapter takes, and what has to be stored."""

from collections.abc import Sequence
from pathlib import Path
from statistics import median

import torch

from oral_lib import devices
from oral_lib.baselines.router import Router
from oral_lib.experiments.conditions import Question
from oral_lib.experiments.trials import Trial
from oral_lib.generator import Generator
from oral_lib.provenance import code_commit
from oral_lib.zoo.store import Member


def cost_rows(
    cell: dict,
    planned: Sequence[Trial],
    zoo: Sequence[Member],
    questions: Sequence[Question],
    n_train: int,
    device: torch.device,
) -> list[dict]:
    """A row for base, router, generated and trained: seconds and labelled rows of one adapter.

    Seconds are medians over adapters or texts. Router and generator read no labelled rows of the
    task for one more adapter; their zoo has read them before. Only the cell of seed 0 has rows.

    Args:
        cell: experiment, source, base, task and seed.
        planned: its trials.
        zoo: adapters of the task.
        questions: its texts.
        n_train: training rows of the task.
        device: of the measurement.
    """
    if cell["seed"] != 0:
        return []
    generated = [
        trial.seconds / len(trial.adapters) for trial in planned if trial.method == "generated"
    ]
    recipe = zoo[0].info.get("recipe", {})
    labelled = min(n_train, recipe.get("steps", 0) * recipe.get("batch", 0))
    seconds = {
        "base": (0, 0.0),
        "router": (0, median(s for question in questions for s in question.seconds)),
        "generated": (0, median(generated)),
        "trained": (labelled, median(member.info.get("seconds", 0.0) for member in zoo)),
    }
    place = {name: cell[name] for name in ("experiment", "source", "base", "task")}
    about = {"device": devices.device_name(device), "commit": code_commit()}
    return [
        place | {"method": method, "labelled_rows": labelled, "seconds": each} | about
        for method, (labelled, each) in seconds.items()
    ]


def byte_rows(
    experiment: str, source: str, members: Sequence[Member], generator: Generator, folder: Path
) -> list[dict]:
    """Rows of bytes.csv: the zoo in float32 and float16, the generator's files, the router.

    The router is one classifier a base model in float32, and the zoo in float16.

    Args:
        experiment: name of the experiment.
        source: slug of the data source.
        members: the adapters that the generator was trained on.
        generator: the generator.
        folder: its folder.
    """
    values = sum(tensor.numel() for member in members for tensor in member.tensors.values())
    tasks: dict[str, set[str]] = {}
    for member in members:
        tasks.setdefault(member.base, set()).add(member.task)
    weights = sum(Router(sorted(names), generator.encoder).values for names in tasks.values())
    files = [file for file in folder.iterdir() if file.suffix in (".safetensors", ".json")]
    stored = sum(tensor.numel() for tensor in generator.network.state_dict().values())
    sizes = {
        "zoo_fp32": (4 * values, values),
        "zoo_fp16": (2 * values, values),
        "generator": (sum(file.stat().st_size for file in files), stored),
        "router": (4 * weights + 2 * values, weights + values),
    }
    about = {"experiment": experiment, "source": source}
    return [
        about
        | {"what": what, "bytes": size, "adapters": len(members), "values": count}
        | {"commit": code_commit()}
        for what, (size, count) in sizes.items()
    ]
