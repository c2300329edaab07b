"""Messages behind other text: a description, or a description and labelled examples.

A causal model reads "Task: {description}\\nMessage: {text}\\nAnswer:", an encoder the pair
"{description} [SEP] {text}". The tokens of both sides are stored once, and a batch joins them on
the device.

Letters: b rows of a batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from oral_lib.checkpoints.context import cut_contexts
from oral_lib.errors import OralError
from oral_lib.evaluation import scoring
from oral_lib.experiments.intents.messages import Text
from oral_lib.models.base import BaseModel, EncodedRows
from oral_lib.tasks.intents.family import MESSAGE, IntentFamily, IntentTask, draw_rows
from oral_lib.zoo.batches import rounded_width

_LONGEST = 60  # words of a text that are read
_SHOWN = 4  # examples in a prompt
_CHECKED = 32  # joined rows that are compared with the tokenizer's own


def described(text: str) -> str:
    """The text in front of a message in the prompt of a causal model.

    >>> described("Is an alarm to be set? ")
    'Task: Is an alarm to be set?\\n'
    """
    return f"Task: {shortened(text)}".rstrip() + "\n"


def with_examples(text: str, examples: Sequence[tuple[str, int]]) -> str:
    """`described`, followed by messages with their labels (0: no, 1: yes).

    >>> print(with_examples("Alarms", [("wake me at six", 1)]) + "Message: ...")
    Task: Alarms
    Message: wake me at six
    Answer: yes
    Message: ...
    """
    prompts = [
        f"{MESSAGE.prompt(shortened(message))} {MESSAGE.labels[label]}\n"
        for message, label in examples
    ]
    return described(text) + "".join(prompts)


def shortened(text: str) -> str:
    """The first `_LONGEST` words."""
    return " ".join(text.split()[:_LONGEST])


@dataclass(frozen=True)
class PromptTable:
    """Texts and messages as `base` reads them one behind the other, on its device.

    Attributes:
        base: the base model.
        fronts: [texts, tokens] what comes first.
        front_lengths: [texts].
        messages: [messages, tokens] what comes next.
        message_lengths: [messages].
        answer_ids: [2] columns of the logits of no and yes.
        lengths: int64 ([texts], [messages]) tokens of each, on the host.
    """

    base: BaseModel
    fronts: Tensor
    front_lengths: Tensor
    messages: Tensor
    message_lengths: Tensor
    answer_ids: Tensor
    lengths: tuple[np.ndarray, np.ndarray]

    @classmethod
    def of(cls, base: BaseModel, fronts: Sequence[str], messages: Sequence[Text]) -> "PromptTable":
        """The table of `fronts` and `messages`.

        Args:
            base: a causal model or an encoder.
            fronts: for a causal model prompts that end with a line break; for an encoder the first
                texts of its pairs.
            messages: the messages, in the order of their row numbers.

        Raises:
            OralError: the tokenizer cuts a joined text differently.
        """
        texts, tokenizer = [message.text for message in messages], base.tokenizer
        if base.family == "causal":
            cuts = cut_contexts(tokenizer, fronts)
            first = [cut.front + cut.context for cut in cuts]
            second = [c.context for c in cut_contexts(tokenizer, [*map(MESSAGE.prompt, texts)])]
            second = [ids[-MESSAGE.max_tokens :] for ids in second]
        else:
            fronts = [shortened(text) for text in fronts]
            first = tokenizer(list(fronts))["input_ids"]
            plain = tokenizer(texts, add_special_tokens=False)["input_ids"]
            pair = tokenizer(fronts[0], texts[0])["input_ids"]
            end = pair[len(first[0]) + len(plain[0]) :]  # special tokens
            second = [ids[: MESSAGE.max_tokens - len(end)] + end for ids in plain]
        for i in range(min(_CHECKED, len(fronts), len(texts))):
            if base.family == "causal":
                [cut] = cut_contexts(tokenizer, [fronts[i] + MESSAGE.prompt(texts[i])])
                whole = cut.front + cut.context
            else:
                whole = tokenizer(fronts[i], texts[i])["input_ids"]
            if len(second[i]) < MESSAGE.max_tokens and whole != first[i] + second[i]:
                raise OralError(
                    f"the tokenizer of {base.name!r} cuts {fronts[i]!r} and the message "
                    f"{texts[i]!r} differently when they are one text: use another base model."
                )
        sides = [_padded(base, ids) for ids in (first, second)]
        lengths = tuple(np.array([len(ids) for ids in side]) for side in (first, second))
        on_device = [torch.from_numpy(each).to(base.device) for each in lengths]
        answer_ids = base.answer_ids(MESSAGE)
        return cls(base, sides[0], on_device[0], sides[1], on_device[1], answer_ids, lengths)

    def total(self, texts: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Tokens of each joined row."""
        return self.lengths[0][texts] + self.lengths[1][rows]

    def width(self, texts: np.ndarray, rows: np.ndarray) -> int:
        """Tokens that a batch is cut to: its longest joined row, rounded up."""
        return rounded_width(int(self.total(texts, rows).max()))

    def batch(self, texts: Tensor, rows: Tensor, width: int) -> EncodedRows:
        """The messages `rows` [b] behind `texts` [b], of at most `width` tokens."""
        before = self.front_lengths.index_select(0, texts)  # [b]
        after = self.message_lengths.index_select(0, rows)  # [b]
        column = torch.arange(width, device=texts.device)
        inside = (column - before[:, None]).clamp(0, self.messages.shape[1] - 1)  # [b, width]
        first = self.fronts.index_select(0, texts)[:, column.clamp(max=self.fronts.shape[1] - 1)]
        second = self.messages.index_select(0, rows).gather(1, inside)
        ids = torch.where(column < before[:, None], first, second)
        lengths = before + after
        ids = torch.where(column < lengths[:, None], ids, self._padding)
        return EncodedRows(ids, lengths, lengths)

    def losses(self, texts: Tensor, rows: Tensor, labels: Tensor, width: int) -> Tensor:
        """Losses [b] of the joined rows with labels [b] under one attached adapter."""
        base, batch = self.base, self.batch(texts, rows, width)
        answer_ids = self.answer_ids.expand(len(rows), -1)
        return scoring.losses(base.model, base, "label", batch, labels, answer_ids)

    def scores(self, texts: Tensor, rows: Tensor, width: int) -> Tensor:
        """Logit of yes minus logit of no, float32 [b], of the joined rows."""
        logits = self.base.answer_logits(self.base.model, self.batch(texts, rows, width))
        no, yes = logits.index_select(1, self.answer_ids).unbind(1)
        return yes - no

    @property
    def _padding(self) -> int:
        return self.base.tokenizer.pad_token_id or 0


def prompts_with_examples(
    base: BaseModel,
    family: IntentFamily,
    tasks: Sequence[IntentTask],
    samples: Sequence[Sequence[str]],
) -> tuple[PromptTable, list[np.ndarray]]:
    """(prompts with examples of each task, the numbers [T, 1] of each sample's prompts).

    Args:
        base: a causal model.
        family: its training messages are the examples.
        tasks: T tasks.
        samples: lists of T texts.
    """
    fronts, half = [], _SHOWN // 2
    turns = np.arange(_SHOWN).reshape(2, half).T.ravel()  # yes, no, yes, no
    for sample in samples:
        for task, text in zip(tasks, sample, strict=True):
            rows, labels = draw_rows(family, task, "train", half, half, 0)
            examples = [(family.messages[rows[i]].text, int(labels[i])) for i in turns]
            fronts.append(with_examples(text, examples))
    table = PromptTable.of(base, fronts, family.messages)
    return table, [np.arange(len(tasks))[:, None] + len(tasks) * s for s in range(len(samples))]


@torch.inference_mode()
def pair_logits(
    table: PromptTable, texts: np.ndarray, rows: np.ndarray, *, tokens: int | None = None
) -> Tensor:
    """Logit of yes minus logit of no, float32 [T, n] on the CPU, under what is attached.

    Args:
        table: texts and messages.
        texts: the text [T, n] or [T, 1] of each row.
        rows: row numbers [T, n] on the host.
        tokens: of a batch, at most; default: as many as suit the device.
    """
    device = table.base.device
    tokens = tokens or {"cpu": 1 << 12, "cuda": 1 << 17}[device.type]
    shape = rows.shape
    texts, rows = np.broadcast_to(texts, shape).ravel(), rows.ravel()
    out = torch.empty(len(rows))
    order = np.argsort(table.total(texts, rows), kind="stable")
    start = 0
    while start < len(order):
        longest = table.width(texts[order[start:]], rows[order[start:]])
        size = max(1, tokens // longest)  # rows are sorted: later ones are longer
        chosen = order[start : start + size]
        index = [torch.from_numpy(side[chosen]).to(device) for side in (texts, rows)]
        scores = table.scores(*index, table.width(texts[chosen], rows[chosen]))
        out[torch.from_numpy(chosen)] = scores.float().cpu()
        start += size
    return out.view(shape)


def _padded(base: BaseModel, rows: Sequence[list[int]]) -> Tensor:
    padding = base.tokenizer.pad_token_id or 0
    tensors = [torch.tensor(ids, dtype=torch.long) for ids in rows]
    table = pad_sequence(tensors, batch_first=True, padding_value=padding)
    return base.embedded(table).to(base.device)
