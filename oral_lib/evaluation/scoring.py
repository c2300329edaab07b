"""Scoring: likelihoods of a task's answers under a base model, as in lm-evaluation-harness.

A task is scored in one of seven ways (`BaseModel.scoring_kind`):

    label      log-likelihood of the first token of each label word after the prompt (they must
               differ), or of each class of an encoder's head
    option     log-likelihood of each option's continuation after its context, summed over tokens
    answer     mean log-likelihood per token of the correct answer; `write_answers` generates an
               answer, which must contain the exact one
    image      log-likelihood of the task's classes, normalised over these classes
    question   the same for two towers, about an image and a text
    match      similarity of every text to every image
    style      minus the denoising loss of a latent diffusion model

Training, tuning and evaluation share these definitions. `model` is always the base model under
adapters: PEFT's, or a stack of S adapters (`lora.stacked`), which reads S groups of the same rows.

Letters: `b` rows of a batch, `n` rows of a task.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from oral_lib.models import contrastive
from oral_lib.models.base import BaseModel, EncodedRows
from oral_lib.models.contrastive import Gallery
from oral_lib.models.text import CausalModel, vocabulary_logits
from oral_lib.tasks.rows import Row
from oral_lib.tasks.task import Task

CHUNK = 8192  # positions whose logits over the vocabulary are in memory at once
GENERATED = {"cpu": 16, "cuda": 1024}  # rows whose answers are generated at once, by device


def tail_likelihoods(model: nn.Module, base: CausalModel, batch: EncodedRows) -> Tensor:
    """[b] float32 log-likelihood of all tokens of a row from `begins` on."""
    states = base.states(model, batch)  # [b, tokens, width]
    width = batch.ids.shape[1]
    before = batch.begins[:, None] - 1 + torch.arange(batch.tail, device=states.device)
    scored = before < batch.lengths[:, None] - 1  # [b, tail]
    before = before.clamp(max=width - 2)
    targets = batch.ids.gather(1, before + 1)  # [b, tail]
    states = states.gather(1, before[..., None].expand(-1, -1, states.shape[-1]))

    def likelihood(states: Tensor, targets: Tensor) -> Tensor:
        logits = vocabulary_logits(model, states)
        return logits.gather(1, targets[:, None])[:, 0] - logits.logsumexp(-1)

    chunks = zip(states.flatten(0, 1).split(CHUNK), targets.flatten().split(CHUNK), strict=True)
    likelihoods = [
        checkpoint(likelihood, *chunk, use_reentrant=False, preserve_rng_state=False)
        for chunk in chunks
    ]
    return (torch.cat(likelihoods).view_as(scored) * scored).sum(1)


def losses(
    model: nn.Module,
    base: BaseModel,
    kind: str,
    batch: EncodedRows,
    labels: Tensor,
    answer_ids: Tensor,
    groups: int = 1,
) -> Tensor:
    """[n] training loss of each row: minus the log-likelihood of the correct answer.

    Args:
        kind: `base.scoring_kind` of the task. For labels and options the likelihood is that of the
            correct one among them. For a written answer it is the mean over its tokens. For `match`
            it is contrastive, among the rows of each of `groups`. For `style` the loss is the
            squared error of denoising.
        labels: [n] index of the correct answer; for `style` the draws of noise.
        answer_ids: [n, labels] `base.answer_ids` of each row's task.
    """
    if kind == "style":
        return base.denoising_loss(model, batch.ids, labels)
    if kind == "match":
        v, u = base.image_features(model, batch), base.text_features(model, batch)
        v, u, labels = (side.unflatten(0, (groups, -1)) for side in (v, u, labels))
        return contrastive.contrastive(v, u, labels, base.scale).flatten()
    if kind == "answer":
        return -tail_likelihoods(model, base, batch) / (batch.lengths - batch.begins)
    if kind == "option":
        likelihoods = tail_likelihoods(model, base, batch).view(-1, batch.options).log_softmax(-1)
    else:
        logits = base.answer_logits(model, batch)
        likelihoods = _label_likelihoods(kind, logits, lambda x: x.gather(1, answer_ids))
    return -likelihoods.gather(1, labels[:, None])[:, 0]


def _label_likelihoods(kind: str, logits: Tensor, chosen) -> Tensor:
    """[b, labels] log-likelihoods of the `chosen` columns of `logits` [b, vocabulary or classes].

    Of an image only the task's classes compete: a head has classes of other tasks, too.
    """
    if kind == "label":
        return chosen(logits.log_softmax(-1))
    return chosen(logits).log_softmax(-1)


def by_length(rows: Sequence[Row], size: int) -> Iterator[list[int]]:
    """Indices of `rows` in batches of `size`; rows of similar length share a batch, to save
    padding."""
    order = sorted(range(len(rows)), key=lambda i: len(rows[i].text))
    for start in range(0, len(order), size):
        yield order[start : start + size]


@torch.inference_mode()
def score(
    model: nn.Module,
    base: BaseModel,
    task: Task,
    rows: Sequence[Row],
    *,
    groups: int = 1,
    batch: int | None = None,
) -> Tensor:
    """[groups, n, labels] log-likelihoods of all rows, on the CPU, in the order of `rows`.

    Of written answers it is [groups, n, 1], the mean log-likelihood of the correct answer's tokens;
    `write_answers` returns the answers themselves. Of `match` it is [groups, texts, images], the
    scaled similarities of all distinct texts and images. Of `style` it is [groups, n, 1], minus the
    squared error of denoising.

    Args:
        groups: number of adapters in `model`.
        batch: rows of each adapter in a batch; default: `base.batch_size`.
    """
    model = _core(model)
    kind, answer_ids = base.scoring_kind(task), base.answer_ids(task)
    batch = batch or base.batch_size(task, groups)
    if kind == "match":
        return _similarities(model, base, task, rows, groups, batch)
    table = base.encode_rows(task, rows)
    out = torch.empty(groups, len(rows), max(1, len(answer_ids)), device=base.device)
    for chosen in by_length(rows, batch):
        index = torch.tensor(chosen, device=base.device)
        part = table[index.repeat(groups)]
        part = part.cut(int(part.lengths.max()))
        if kind == "style":
            likelihoods = -base.evaluation_loss(model, part.ids, index.repeat(groups))
        elif kind == "option":
            likelihoods = tail_likelihoods(model, base, part).view(-1, part.options)
        elif kind == "answer":
            likelihoods = tail_likelihoods(model, base, part) / (part.lengths - part.begins)
        else:
            logits = base.answer_logits(model, part)
            likelihoods = _label_likelihoods(kind, logits, lambda x: x[:, answer_ids])
        out[:, index] = likelihoods.view(groups, len(chosen), -1)
    return out.cpu()


def _similarities(
    model: nn.Module, base: BaseModel, task: Task, rows: Sequence[Row], groups: int, batch: int
) -> Tensor:
    gallery, table = Gallery.of(rows), base.encode_rows(task, rows)

    def features(rows: list[int], side) -> Tensor:
        """[groups, rows, d] features of one side of `rows`."""
        parts = []
        for index in torch.tensor(rows, device=base.device).split(batch):
            part = table[index.repeat(groups)]
            part = part.cut(int(part.lengths.max()))
            parts.append(side(model, part).unflatten(0, (groups, -1)))
        return torch.cat(parts, 1)

    texts = features(gallery.texts, base.text_features)
    images = features(gallery.images, base.image_features)
    return (base.scale * texts @ images.mT).cpu()


def _core(model: nn.Module) -> nn.Module:
    """The base model in which PEFT's LoRA acts, or `model` itself."""
    return model.get_base_model() if isinstance(model, PeftModel) else model


@torch.inference_mode()
def write_answers(
    model: nn.Module, base: CausalModel, task: Task, rows: Sequence[Row], *, groups: int = 1
) -> list[list[str]]:
    """[groups][n] texts generated greedily after each prompt.

    Prompts are padded on the left, since all are continued at once, and the padding is masked.
    """
    model, tokenizer = _core(model), base.tokenizer
    ids = base.prompt_ids(task, rows)
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
    answers = [[""] * len(rows) for _ in range(groups)]
    size = max(1, GENERATED[base.device.type] // groups)
    with _masked_attention(model):
        for first in range(0, len(order), size):
            chosen = order[first : first + size]
            width = max(len(ids[i]) for i in chosen)
            start = torch.full((len(chosen), width), base.padding)
            mask = torch.zeros_like(start)
            for row, i in enumerate(chosen):
                start[row, width - len(ids[i]) :] = torch.tensor(ids[i])
                mask[row, width - len(ids[i]) :] = 1
            generated = model.generate(
                start.to(base.device).repeat(groups, 1),
                attention_mask=mask.to(base.device).repeat(groups, 1),
                max_new_tokens=task.max_new_tokens,
                do_sample=False,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=base.padding,
            )
            texts = tokenizer.batch_decode(generated[:, width:], skip_special_tokens=True)
            for k, text in enumerate(texts):
                answers[k // len(chosen)][chosen[k % len(chosen)]] = text
    return answers


@contextmanager
def _masked_attention(model: nn.Module) -> Iterator[None]:
    """Uses an attention that reads a mask, if `models.text.attention` chose one that does not."""
    unmasked = model.config._attn_implementation == "plain_causal"
    if unmasked:
        model.set_attn_implementation("sdpa")
    try:
        yield
    finally:
        if unmasked:
            model.set_attn_implementation("plain_causal")
