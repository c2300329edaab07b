"""Scoring: log-likelihoods of a task's label words, at the answer position only.

A causal model reads the prompt and is asked for the first token of each label word (they must
differ); an encoder is asked for the classes of its head. Both answer with one [b, labels] tensor,
so training, tuning and evaluation share a single definition of the task.
"""

from collections.abc import Iterator, Sequence

import torch
from peft import PeftModel
from torch import Tensor, nn

from oral_lib.bases import BaseModel
from oral_lib.errors import UsageError
from oral_lib.tasks import Row, Task


def words(base: BaseModel, task: Task) -> Tensor:
    """[labels] what `answers` is asked for: first tokens of the label words, or classes."""
    if base.family == "encoder":
        return torch.arange(len(task.labels), device=base.device)
    gap = "" if base.spec.asset is None else " "
    ids = [base.tokenizer.encode(gap + w, add_special_tokens=False)[0] for w in task.labels]
    if len(set(ids)) < len(ids):
        raise UsageError(
            f"task {task.name!r}: label words {task.labels} share their first token in the "
            f"tokenizer of {base.name!r}; choose words that begin differently."
        )
    return torch.tensor(ids, device=base.device)


def prompts(base: BaseModel, task: Task, texts: Sequence[str]) -> list[str]:
    """What `base` reads of `texts`: a causal model the template, an encoder the bare text."""
    return [task.prompt(text) for text in texts] if base.family == "causal" else list(texts)


def answers(model: nn.Module, base: BaseModel, batch: dict[str, Tensor]) -> Tensor:
    """[b, vocabulary or classes] float32 log-likelihoods of what comes after the last token.

    `model` is the base model under adapters; `batch` holds right-padded ids and their mask.
    """
    if base.family == "encoder":
        return model(**batch).logits.float().log_softmax(-1)
    states = model.base_model(**batch, use_cache=False).last_hidden_state  # [b, tokens, width]
    last = batch["attention_mask"].sum(1) - 1
    answer = states[torch.arange(len(last), device=last.device), last]  # only here is it scored
    return model.get_output_embeddings()(answer).float().log_softmax(-1)


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
    core, asked = model.get_base_model(), words(base, task)  # LoRA acts inside the base model
    out = torch.empty(len(rows), len(task.labels), device=base.device)
    for chosen in by_length(rows, batch):
        index = torch.tensor(chosen, device=base.device)
        read = base.tokens(prompts(base, task, [rows[i].text for i in chosen]), task.words)
        out[index] = answers(core, base, read)[:, asked]
    return out.cpu()
