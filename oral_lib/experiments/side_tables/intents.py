"""Rows of intents_costs.csv and intents_map.csv: what a method takes, and whose text fits whose
rows."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median

import numpy as np
import torch
from torch import Tensor

from oral_lib.devices import device_name
from oral_lib.evaluation.many_tasks import Scored, wins_of
from oral_lib.models.base import BaseModel
from oral_lib.models.text_encoder import TextEncoder
from oral_lib.provenance import code_commit


def method_costs(
    source: str,
    base: BaseModel,
    split: str,
    planned: Sequence[Scored],
    tokens: tuple[float, float],
    stored: Mapping[str, float],
    one_ms: Mapping[str, float],
    encoder: TextEncoder,
) -> list[dict]:
    """A row for each method under its first condition, and for the generator with examples.

    FLOPs count the linear layers of a forward pass, 2 for a multiply-add, without padding. The
    encoder of the texts is counted only where it reads the messages, in FLOPs and in bytes.

    Args:
        source: slug of the data source.
        base: the base model.
        split: of the tasks.
        planned: the scores of all methods.
        tokens: mean tokens of a message, as base model and encoder read it.
        stored: bytes that each method stores to be used on a new task.
        one_ms: milliseconds to make one adapter by itself; else the time of all divided by theirs.
        encoder: of the texts.
    """
    frozen, lora = base.forward_flops(1)
    reading = 2 * sum(
        m.weight.numel() for m in encoder.model.modules() if isinstance(m, torch.nn.Linear)
    )
    rows, seen = [], set()
    for trial in planned:
        examples = trial.condition.rpartition("_")[2].isdigit()
        if trial.method in seen and not examples:
            continue
        seen.add(trial.method)
        samples, tasks, n = trial.scores.shape
        length = trial.tokens or tokens[0]
        plain = trial.method in ("base", "prompted", "prompted_4")
        flops = (frozen if plain else frozen + lora) * length
        each = 1e3 * trial.making_s / (samples * tasks)
        rows.append({
            "source": source, "base": base.name, "split": split, "method": trial.method,
            "condition": trial.condition,
            "ms_adapter": each if examples else one_ms.get(trial.method, each),
            "ms_row": 1e3 * trial.scoring_s / (samples * tasks * n),
            "flops_row": reading * tokens[1] if trial.method == "zero_shot" else flops,
            "bytes": stored.get(trial.method, 0.0),
            "device": device_name(base.device), "commit": code_commit(),
        })  # fmt: skip
    return rows


def one_at_a_time(make, text: Tensor, repeats: int = 5) -> float:
    """Milliseconds of `make` on one embedding [1, e], the median of repeats after a first call."""
    from time import perf_counter

    make(text)
    times = []
    for _ in range(repeats):
        began = perf_counter()
        make(text)
        times.append(perf_counter() - began)
    return 1e3 * median(times)


def text_map(
    source: str, base: str, split: str, tasks: Sequence[str], scores: np.ndarray, labels: np.ndarray
) -> list[dict]:
    """The AUC of every adapter on the rows of every task.

    Args:
        source: slug of the data source.
        base: name of the base model.
        split: of the tasks.
        tasks: names [T].
        scores: [T, T, n]: adapters by the task of their text, then tasks by their rows.
        labels: [n], 0 or 1, positive ones first.
    """
    about = {"source": source, "base": base, "split": split, "commit": code_commit()}
    return [
        about | {"text_task": text_task, "row_task": row_task, "auc": round(float(value), 4)}
        for text_task, of_text in zip(tasks, scores, strict=True)
        for row_task, value in zip(
            tasks, wins_of(of_text[None], labels == 1).mean((1, 2)), strict=True
        )
    ]


def folder_bytes(folder: Path) -> int:
    """Bytes of the safetensors files in a folder."""
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))
