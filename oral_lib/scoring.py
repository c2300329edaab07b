"""Scoring: log-likelihoods of a task's label words, at the answer position only.

A causal model reads the prompt and is asked for the first token of each label word (they must
differ); an encoder is asked for the classes of its head. Both answer with one [b, labels] tensor,
so training, tuning and evaluation share a single definition of the task.
"""

from collections.abc import Iterator, Sequence

import torch
from peft import PeftModel
from torch import Tensor

from oral_lib.bases import BaseModel
from oral_lib.errors import UsageError
from oral_lib.tasks import Row, Task


def label_ids(base: BaseModel, task: Task) -> Tensor:
    """[labels] first token id of each label word as the causal model would continue the prompt."""
    gap = "" if base.spec.asset is None else " "
    ids = [base.tokenizer.encode(gap + w, add_special_tokens=False)[0] for w in task.labels]
    if len(set(ids)) < len(ids):
        raise UsageError(
            f"task {task.name!r}: label words {task.labels} share their first token in the "
            f"tokenizer of {base.name!r}; choose words that begin differently."
        )
    return torch.tensor(ids, device=base.device)


def loglikelihoods(model: PeftModel, base: BaseModel, task: Task, texts: list[str]) -> Tensor:
    """[b, labels] float32 log-likelihood of each label for each text."""
    if base.family == "causal":
        batch = base.tokens([task.prompt(text) for text in texts])
        core = model.get_base_model()  # LoRA acts inside; only the backbone reads all positions
        states = core.base_model(**batch, use_cache=False).last_hidden_state  # [b, tokens, width]
        last = batch["attention_mask"].sum(1) - 1
        answer = states[torch.arange(len(texts), device=base.device), last]
        logits = core.get_output_embeddings()(answer)
        return logits.float().log_softmax(-1)[:, label_ids(base, task)]
    return model(**base.tokens(texts)).logits.float().log_softmax(-1)


def by_length(rows: Sequence[Row], size: int) -> Iterator[list[int]]:
    """Indices of `rows` in batches of `size`, similar lengths together to spare padding."""
    order = sorted(range(len(rows)), key=lambda i: len(rows[i].text))
    for start in range(0, len(order), size):
        yield order[start : start + size]


@torch.inference_mode()
def score(
    model: PeftModel, base: BaseModel, task: Task, rows: Sequence[Row], *, batch: int = 32
) -> Tensor:
    """[n, labels] log-likelihoods of all rows, on the CPU, in the order of `rows`."""
    out = torch.empty(len(rows), len(task.labels), device=base.device)
    for chosen in by_length(rows, batch):
        index = torch.tensor(chosen, device=base.device)
        out[index] = loglikelihoods(model, base, task, [rows[i].text for i in chosen])
    return out.cpu()
