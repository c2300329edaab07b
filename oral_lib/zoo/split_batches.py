"""Binary tasks for training through the base model: texts and rows of each step, and their losses.

`SplitRows` holds the images of a data set once, with the answers of all its binary tasks.
`SplitBatches` draws S tasks a step, each with its own rows, and computes the loss of S adapters in
one stacked forward pass. It is what `method.training.through_base` calls `TaskBatches`.

Letters: S tasks and adapters of a step, n rows of each, e size of an embedding, v values of an
adapter.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from oral_lib import seeds
from oral_lib.errors import OralError
from oral_lib.evaluation import scoring
from oral_lib.lora import stacked
from oral_lib.lora.stacked import Stack
from oral_lib.models.base import BaseModel, EncodedRows
from oral_lib.models.text_encoder import TextEncoder
from oral_lib.tasks.rows import task_rows
from oral_lib.tasks.task import load_task


@dataclass(frozen=True)
class SplitRows:
    """Labelled images, and for each task its texts and the classes that mean yes."""

    images: Tensor  # [rows, bytes] as the base model stores them
    labels: Tensor  # [rows]
    texts: Tensor  # [tasks, wordings, e] training wordings, embedded
    answers: Tensor  # [tasks, classes] 1.0 for yes, else 0.0

    @classmethod
    def of(
        cls, names: Sequence[str], model: BaseModel, encoder: TextEncoder, source: str
    ) -> "SplitRows":
        """The training rows and wordings of binary tasks, on the device of `model`.

        Args:
            names: binary tasks over the same images.
            model: the backbone.
            encoder: of the wordings.
            source: where the images are read from.

        Raises:
            OralError: if the tasks are not binary tasks over one set of images.
        """
        tasks = [load_task(name) for name in names]
        families = {task.of for task in tasks}
        if len(families) != 1 or not all(families):
            raise OralError(
                f"tasks over {sorted(map(str, families))}: all tasks must split the classes of one "
                "data set into yes and no."
            )
        family = load_task(tasks[0].of)
        rows = task_rows(family, source).train
        answers = torch.zeros(len(tasks), len(family.labels), device=model.device)
        for i, task in enumerate(tasks):
            answers[i, list(task.positive)] = 1.0
        texts = torch.stack([encoder.encode(task.training_texts) for task in tasks])
        return cls(
            images=model.images(rows),
            labels=torch.tensor([row.label for row in rows], device=model.device),
            texts=texts.to(model.device),
            answers=answers,
        )


class SplitBatches:
    """The tasks of each step on one backbone, in tensors that keep their addresses.

    The loss is that of the zoo: cross-entropy of yes and no, each row with the same weight.

    Args:
        model: the backbone, with a head of two classes.
        data: rows and tasks.
        size: S.
        rows: n.
        seed: of all draws.

    Attributes:
        text: [S, e] embeddings of a wording of each task.
        given: bool [S], all True.
        examples: None: a backbone's generator is conditioned on the text only.
        tasks: [S] indices of the tasks of the step.
        images: [S n, bytes] the rows of each task, one task after another.
        labels: [S n] 1 for yes, 0 for no.
    """

    examples = None

    def __init__(self, model: BaseModel, data: SplitRows, *, size: int, rows: int, seed: int = 0):
        self.model, self.data, self.seed, device = model, data, seed, model.device
        dtype = next(model.model.parameters()).dtype
        self.stack = Stack(model.lora_init(), size, device, dtype)
        self.text = torch.zeros(size, data.texts.shape[-1], device=device)
        self.given = torch.ones(size, dtype=torch.bool, device=device)
        self.tasks = torch.zeros(size, dtype=torch.long, device=device)
        shape = size * rows, *data.images.shape[1:]
        self.images = torch.zeros(shape, dtype=data.images.dtype, device=device)
        self.labels = torch.zeros(size * rows, dtype=torch.long, device=device)
        self.answer_ids = torch.arange(2, device=device).expand(size * rows, 2)

    def draw(self, step: int) -> int:
        """Sets the tensors to the tasks and rows of `step`, which depend on the step only.

        Returns the rows of a task: all steps have the same shapes.
        """
        data, size, device = self.data, len(self.tasks), self.model.device
        n = len(self.labels) // size
        stream = seeds.generator(self.seed, "splits", step, device=device)
        options = {"generator": stream, "device": device}
        total = len(data.texts)
        # distinct tasks as long as there are enough
        order = torch.cat([torch.randperm(total, **options) for _ in range(-(-size // total))])
        self.tasks.copy_(order[:size])
        wordings = torch.randint(data.texts.shape[1], (size,), **options)
        self.text.copy_(data.texts[self.tasks, wordings])
        rows = torch.randint(len(data.labels), (size * n,), **options)  # [S n]
        torch.index_select(data.images, 0, rows, out=self.images)
        task_of_row = self.tasks.repeat_interleave(n)  # [S n]
        self.labels.copy_(data.answers[task_of_row, data.labels[rows]])
        return n

    def losses(self, adapters: Tensor, key: int) -> Tensor:
        """[S] the mean loss of each of `adapters` [S, v] on its `key` rows, with a gradient."""
        model = self.model

        def each() -> Tensor:
            batch = EncodedRows.of_equal_length(self.images)
            answers = self.labels, self.answer_ids
            losses = scoring.losses(core, model, "image", batch, *answers, len(self.stack))
            return losses.view(-1, key).mean(1)  # [S]

        scale = model.spec.alpha / model.spec.rank
        with stacked.attached(model.model, self.stack, scale) as core:
            return stacked.losses_of(adapters, self.stack, each)
