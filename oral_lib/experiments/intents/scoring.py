"""Scores of many adapters at once, each on its own rows."""

import numpy as np
import torch
from torch import Tensor

from oral_lib.experiments.intents.messages import MessageTable
from oral_lib.lora import stacked
from oral_lib.lora.stacked import Stack
from oral_lib.models.base import BaseModel

_TOKENS = {"cpu": 1 << 12, "cuda": 1 << 17}  # tokens of a forward pass, by device
_ADAPTERS = 64  # of a forward pass, at most


@torch.inference_mode()
def yes_logits(
    base: BaseModel,
    table: MessageTable,
    values: Tensor,
    rows: np.ndarray | Tensor,
    *,
    adapters: int = _ADAPTERS,
) -> Tensor:
    """Logit of yes minus logit of no, float32 [S, n] on the CPU, of S adapters on n rows each.

    The rows of an adapter are read in the order of their lengths, to save padding.

    Args:
        base: the base model.
        table: the messages as `base` reads them.
        values: [S, V], an adapter in the order of `lora.stacked.Stack`.
        rows: row numbers [S, n] on the host.
        adapters: largest number of adapters in one forward pass.
    """
    rows = np.asarray(rows)
    order = np.argsort(table.lengths[rows], axis=1, kind="stable")  # [S, n]
    sorted_rows = np.take_along_axis(rows, order, 1)
    out = torch.empty(rows.shape)
    dtype, scale = next(base.model.parameters()).dtype, base.spec.alpha / base.spec.rank
    start = base.lora_init()
    stack = Stack(start, min(adapters, len(rows)), base.device, dtype)
    for first in range(0, len(rows), len(stack)):
        part = sorted_rows[first : first + len(stack)]
        if len(part) < len(stack):
            stack = Stack(start, len(part), base.device, dtype)
        set_values(stack, values[first : first + len(part)])
        with stacked.attached(base.model, stack, scale):
            for columns in _columns(table, part, _TOKENS[base.device.type]):
                index = torch.from_numpy(part[:, columns].copy()).to(base.device)
                scores = table.scores(index.flatten(), table.width(part[:, columns]))
                out[first : first + len(part), columns] = scores.view(index.shape).float().cpu()
    return out.gather(1, torch.from_numpy(np.argsort(order, axis=1)))


def set_values(stack: Stack, values: Tensor) -> None:
    """Sets the values of `stack` to [S, V], in place."""
    with torch.no_grad():
        stack.values.copy_(values)
        if stack.read is not stack.values:
            stack.read.copy_(stack.values)


def _columns(table: MessageTable, rows: np.ndarray, tokens: int):
    """Slices of the columns of `rows` [S, n] whose batches have at most `tokens` tokens."""
    start = 0
    while start < rows.shape[1]:
        stop = start + 1
        while stop < rows.shape[1]:
            size = len(rows) * (stop + 1 - start) * table.width(rows[:, start : stop + 1])
            if size > tokens:
                break
            stop += 1
        yield slice(start, stop)
        start = stop
