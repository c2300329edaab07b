"""The tasks of a stream on one base model, as training through the base model reads them.

Letters: S tasks of a step, n rows of a task, k examples of a task.
"""

from functools import partial

import torch
from torch import Tensor

from oral_lib.errors import UsageError
from oral_lib.experiments.intents.messages import MessageTable
from oral_lib.experiments.intents.stream import StreamSteps
from oral_lib.lora import stacked
from oral_lib.lora.stacked import Stack
from oral_lib.method.conditioning import Examples

MEMORY = 0.4  # of a GPU, for a group of adapters: the rest is for graphs and the network


class StreamBatches:
    """The tasks of a stream on one base model: `TaskBatches` of training through the base.

    The base model must be under `stack` (`attached`) while losses are computed.

    Args:
        table: the messages of the stream as the base model reads them.
        steps: the tasks of every step.
        texts: [texts, e] embeddings of `TaskStream.all_texts`, on the device.
        examples: whether examples are supplied.
        group: adapters that go through the base model at once, a divisor of S; default: all S. A
            smaller group takes less memory and more time, and changes no result.
    """

    def __init__(
        self,
        table: MessageTable,
        steps: StreamSteps,
        texts: Tensor,
        examples: bool,
        group: int | None = None,
    ):
        base, device = table.base, texts.device
        self.table, self.embedded = table, texts
        size, n = steps.rows.shape[1:]
        group = group or size
        if size % group:
            raise UsageError(f"Groups of {group} adapters do not divide {size}: give a divisor.")
        self.stack = Stack(base.lora_init(), group, device, next(base.model.parameters()).dtype)
        self.widths = [table.width(rows) for rows in steps.rows]
        arrays = (steps.rows, steps.labels, steps.texts)
        arrays += (steps.example_rows, steps.example_labels, steps.distilled)
        self.steps = [torch.from_numpy(array.copy()).to(device) for array in arrays]
        self.rows = torch.zeros(size * n, dtype=torch.long, device=device)
        self.labels = torch.zeros(size * n, device=device)
        self.text = torch.zeros(size, texts.shape[1], device=device)
        self.given = torch.ones(size, dtype=torch.bool, device=device)
        self.examples = None
        if examples:
            k = steps.example_rows.shape[2]
            self.examples = Examples(
                torch.zeros(size, k, texts.shape[1], device=device),
                torch.zeros(size, k, dtype=torch.long, device=device),
                torch.ones(size, k, dtype=torch.bool, device=device),
            )

    def draw(self, step: int) -> int:
        """Sets the tensors to the tasks of `step`. Returns the width of its rows."""
        rows, labels, texts, example_rows, example_labels, distilled = (p[step] for p in self.steps)
        self.rows.copy_(rows.flatten())
        self.labels.copy_(labels.flatten())
        self.text.copy_(self.embedded[texts])
        if self.examples is not None:
            self.examples.embeddings.copy_(self.embedded[example_rows])  # messages come first
            self.examples.labels.copy_(example_labels)
            self.examples.given.copy_(~distilled[:, None])  # no row of such a task has a true label
        return self.widths[step]

    def losses(self, adapters: Tensor, key: int) -> Tensor:
        """[S] mean losses of `adapters` [S, v] on the rows of the step, with a gradient."""
        size = len(self.stack)
        n = len(self.rows) // len(adapters)

        def losses(rows: Tensor, labels: Tensor) -> Tensor:
            return self.table.losses(rows, labels, key).view(size, n).mean(1)

        parts = zip(
            adapters.split(size),
            self.rows.split(size * n),
            self.labels.split(size * n),
            strict=True,
        )
        return torch.cat(  # each group's activations are freed before the next group
            [stacked.losses_of(a, self.stack, partial(losses, r, y)) for a, r, y in parts]
        )


def fitting_group(table: MessageTable, steps: StreamSteps, texts: Tensor) -> int:
    """The most adapters, S or S halved, whose losses and gradients on the widest step take at most
    `MEMORY` of the GPU. On a CPU all S.

    Raises:
        torch.OutOfMemoryError: not even the smallest group fits.
    """
    group, base, device = steps.rows.shape[1], table.base, texts.device
    if device.type != "cuda":
        return group
    widest = max(range(len(steps.rows)), key=lambda step: table.width(steps.rows[step]))
    scale = base.spec.alpha / base.spec.rank
    while True:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        try:
            batches = StreamBatches(table, steps, texts, False, group)
            values = batches.stack.values.repeat(len(batches.text) // group, 1)
            with stacked.attached(base.model, batches.stack, scale):
                batches.losses(values, batches.draw(widest))
            peak = torch.cuda.max_memory_allocated(device)
            if peak <= MEMORY * torch.cuda.mem_get_info(device)[1] or group % 2:
                return group
        except torch.OutOfMemoryError:
            if group % 2:
                raise
        group //= 2
