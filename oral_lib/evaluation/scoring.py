"""Scoring: how likely a model finds the answers to a task, as lm-evaluation-harness asks.

A task is scored in one of seven ways. `label`: a causal model reads the prompt and is asked for the
first token of each label word (they must differ); an encoder is asked for the classes of its head.
`option`: the tokens of each option's continuation are scored after its context, and summed.
`answer`: the model writes on after the prompt, and what it wrote must hold the exact answer.
`image`: a backbone is asked for the task's classes among those of its head; `question`: two towers
are, about a picture and a text; of a vision-language model it is `label`. `match`: two towers say
how close every text is to every picture. `style`: a latent diffusion model takes noise out of the
pictures; what it paints is judged by `painting.py`. Training, tuning and evaluation share these
definitions.

`model` is always the base model under adapters: one of PEFT's, or a stack of S (`stacked.py`),
which is given S groups of the same rows.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.checkpoint import checkpoint

from oral_lib.errors import UsageError
from oral_lib.models import contrastive
from oral_lib.models.base import BaseModel
from oral_lib.models.contrastive import Gallery
from oral_lib.tasks.rows import Row
from oral_lib.tasks.task import PAIRED, Task

PIECE = 8192  # places whose logits over the vocabulary are held at once
BUDGET = {"cpu": 2048, "cuda": 1 << 17}  # tokens read at once
PICTURES = {"cpu": 64, "cuda": 4096}  # read at once
READS = {  # all others read texts
    "vision": "pictures",
    "multimodal": "pictures with texts",
    "vision-language": "pictures with texts",
    "diffusion": "pictures of a style",
}
WORDED = ("causal", "vision-language")  # families that answer with a word
PAINTED = {"cpu": 64, "cuda": 16}  # pictures of a style
WRITES = {"cpu": 16, "cuda": 1024}  # rows written at once


@dataclass(frozen=True)
class EncodedRows:
    """Token rows, right-padded, on the model's device: one a row, or one an option of a row.

    Of pictures `ids` holds the bytes, of a style's the latents, all rows equally long.

    Never padded on the left: a padded query would have nothing to attend to.
    """

    ids: Tensor  # [b, tokens]
    lengths: Tensor  # [b]
    begins: Tensor  # [b] the first token that is scored; `lengths` where one more is asked for
    options: int = 1  # rows of `ids` that belong to one row of the task
    tail: int = 0  # the most tokens that are scored of a row
    shown: Tensor | None = None  # [b] the place of a row's picture among `pictures`
    pictures: Tensor | None = None  # [m, bytes]

    def __getitem__(self, rows: Tensor) -> "EncodedRows":
        """Those of the task's rows, all options of each."""
        places = rows[:, None] * self.options + torch.arange(self.options, device=rows.device)
        places = places.flatten()
        read = replace(
            self, ids=self.ids[places], lengths=self.lengths[places], begins=self.begins[places]
        )
        if self.pictures is None:
            return read
        own = torch.arange(len(rows), device=rows.device)
        return replace(read, shown=own, pictures=self.pictures[self.shown[rows]])

    def cut(self, width: int, tail: int | None = None) -> "EncodedRows":
        """The first `width` columns, of which `tail` at most are scored."""
        return replace(self, ids=self.ids[:, :width], tail=self.tail if tail is None else tail)

    @property
    def mask(self) -> Tensor:
        """[b, tokens] what is not padding."""
        place = torch.arange(self.ids.shape[1], device=self.ids.device)
        return (place < self.lengths[:, None]).long()


def scoring_kind(base: BaseModel, task: Task) -> str:
    """How `base` is scored on `task`: one of `tasks.SCORINGS`. UsageError if it cannot be."""
    known = {"image": "pictures", "style": "pictures of a style"}
    known |= dict.fromkeys(PAIRED, "pictures with texts")
    wants, reads = known.get(task.scoring, "texts"), READS.get(base.family, "texts")
    if wants != reads:
        raise UsageError(f"task {task.name!r} is about {wants}, and {base.name!r} reads {reads}.")
    if base.family == "vision-language":
        if task.scoring == "match":
            raise UsageError(
                f"task {task.name!r} asks which texts belong to which pictures, and {base.name!r} "
                "answers questions about one: choose two towers."
            )
        return "label"
    if base.family in READS:
        if task.scoring == "image" and len(task.labels) > base.spec.classes > 0:
            raise UsageError(
                f"task {task.name!r} has {len(task.labels)} labels, and the head of {base.name!r} "
                f"{base.spec.classes} classes: choose another base model."
            )
        return task.scoring
    if base.family == "causal":
        return task.scoring
    if task.scoring == "answer":
        raise UsageError(
            f"task {task.name!r} wants an answer to be written, and {base.name!r} is an encoder: "
            "choose a causal base model."
        )
    return "label"  # an encoder has a class for every option


def answer_ids(base: BaseModel, task: Task) -> Tensor:
    """[labels] what `answers` is asked for: first tokens of the label words, classes, options."""
    if base.family not in WORDED or scoring_kind(base, task) != "label":
        return torch.arange(len(task.labels), device=base.device)
    gap = " " if base.family == "causal" and base.spec.asset else ""
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


def read(base: BaseModel, task: Task, rows: Sequence[Row]) -> EncodedRows:
    """The token rows of `rows`, each at most `task.words` long; their ends are always kept."""
    how = scoring_kind(base, task)
    if how == "image":
        pictures = base.pictures(rows)
        ends = torch.full((len(rows),), pictures.shape[1], device=base.device)
        return EncodedRows(pictures, ends, ends)
    if how == "style":
        latents = base.latents(rows)
        ends = torch.full((len(rows),), latents.shape[1], device=base.device)
        return EncodedRows(latents, ends, ends)
    if task.scoring in PAIRED:
        choices = {"choices": task.labels} if base.family == "vision-language" else {}
        batch = base.tokens([row.text for row in rows], task.words, **choices)
        lengths = batch["attention_mask"].sum(1)
        first: dict[bytes, int] = {}  # a picture is held once, however many rows show it
        shown = [first.setdefault(row.image, len(first)) for row in rows]
        held = dict(zip(shown, rows, strict=True))
        pictures = base.pictures([held[place] for place in range(len(first))])
        shown = torch.tensor(shown, device=base.device)
        return EncodedRows(batch["input_ids"], lengths, lengths, shown=shown, pictures=pictures)
    if how == "label":
        batch = base.tokens(prompts(base, task, [row.text for row in rows]), task.words)
        lengths = batch["attention_mask"].sum(1)
        return EncodedRows(batch["input_ids"], lengths, lengths)
    if how == "option":
        pairs = [pair for row in rows for pair in row.options]
        end = []
    else:
        pairs = [(task.prompt(row.text), row.target) for row in rows]
        end = [base.tokenizer.eos_token_id] if base.tokenizer.eos_token_id is not None else []
    before = _ids(base, [context for context, _ in pairs])
    whole = _ids(base, [context + rest for context, rest in pairs])
    kept, begins = [], []
    for context, ids in zip(before, whole, strict=True):
        ids = ids + end
        dropped = max(0, len(ids) - task.words)
        kept.append(torch.tensor(ids[dropped:]))
        begins.append(max(1, len(context) - dropped))
    lengths, begins = torch.tensor([len(ids) for ids in kept]), torch.tensor(begins)
    return EncodedRows(
        pad_sequence(kept, batch_first=True).to(base.device),
        lengths.to(base.device),
        begins.to(base.device),
        len(rows[0].options) if how == "option" else 1,
        int((lengths - begins).max()),
    )


def _ids(base: BaseModel, texts: Sequence[str]) -> list[list[int]]:
    return base.tokenizer(list(texts))["input_ids"]


def answers(model: nn.Module, base: BaseModel, batch: EncodedRows) -> Tensor:
    """[b, vocabulary or classes] float32 log-likelihoods of what comes after the last token; of a
    picture the logits: only the classes of its task compete, and rounding must not move others."""
    if base.family == "vision":
        return model(base.normalised(batch.ids)).float()
    if base.family == "multimodal":
        pictures = base.normalised(batch.pictures[batch.shown])
        return model(pictures, batch.ids, batch.mask, _seen(batch)).float()
    if base.family == "encoder":
        return model(batch.ids, attention_mask=_seen(batch)).logits.float().log_softmax(-1)
    if base.family == "vision-language":
        states = base.states(model, batch.ids, batch.pictures[batch.shown])
    else:  # no mask: what is padded comes after all that is read
        states = model.base_model(batch.ids, use_cache=False).last_hidden_state
    index = torch.arange(len(batch.ids), device=states.device)
    answer = states[index, batch.lengths - 1]  # [b, width]; only here is it scored
    return _logits(model, answer).log_softmax(-1)


def _seen(batch: EncodedRows) -> Tensor:
    """Which tokens an encoder attends to: [b, tokens], or [b, 1, tokens, tokens] on a GPU, where
    transformers would first ask the device whether there is any padding."""
    if batch.ids.device.type != "cuda":
        return batch.mask
    b, width = batch.ids.shape
    return batch.mask.bool()[:, None, None].expand(b, 1, width, width)


def _logits(model: nn.Module, states: Tensor) -> Tensor:
    """[..., vocabulary] float32."""
    logits = model.get_output_embeddings()(states).float()
    cap = getattr(model.config, "final_logit_softcapping", None)  # Gemma 2
    return logits if cap is None else cap * (logits / cap).tanh()


def tails(model: nn.Module, batch: EncodedRows) -> Tensor:
    """[b] float32 log-likelihood of all tokens from `begins` on."""
    states = model.base_model(batch.ids, use_cache=False).last_hidden_state  # [b, tokens, width]
    width = batch.ids.shape[1]
    before = batch.begins[:, None] - 1 + torch.arange(batch.tail, device=states.device)
    scored = before < batch.lengths[:, None] - 1
    before = before.clamp(max=width - 2)
    asked = batch.ids.gather(1, before + 1)
    seen = states.gather(1, before[..., None].expand(-1, -1, states.shape[-1]))

    def likelihood(seen: Tensor, asked: Tensor) -> Tensor:
        logits = _logits(model, seen)
        return logits.gather(1, asked[:, None])[:, 0] - logits.logsumexp(-1)

    pieces = zip(seen.flatten(0, 1).split(PIECE), asked.flatten().split(PIECE), strict=True)
    found = [
        checkpoint(likelihood, *piece, use_reentrant=False, preserve_rng_state=False)
        for piece in pieces
    ]
    return (torch.cat(found).view_as(scored) * scored).sum(1)


def losses(
    model: nn.Module,
    base: BaseModel,
    how: str,
    batch: EncodedRows,
    labels: Tensor,
    asked: Tensor,
    groups: int = 1,
) -> Tensor:
    """[n] what training lowers, a row: minus the log-likelihood of the right answer.

    `labels` [n] its place among the answers, `asked` [n, labels] what `words` says. Of options
    and classes it is the likelihood of the right one among them, of a written answer the mean over
    its tokens. Of what matches it is that of its own among the rows of each of `groups`. Of a style
    it is the squared error of denoising, and `labels` are the draws of noise.
    """
    if how == "style":
        return base.denoising(model, batch.ids, labels)
    if how == "match":
        v = model.image_features(base.normalised(batch.pictures[batch.shown]))
        u = model.text_features(batch.ids, batch.mask, _seen(batch))
        v, u, own = (side.unflatten(0, (groups, -1)) for side in (v, u, labels))
        return contrastive.contrastive(v, u, own, base.scale).flatten()
    if how in ("label", "image", "question"):
        likely = answers(model, base, batch).gather(1, asked)
        likely = likely if how == "label" else likely.log_softmax(-1)
    elif how == "option":
        likely = tails(model, batch).view(-1, batch.options).log_softmax(-1)
    else:
        return -tails(model, batch) / (batch.lengths - batch.begins)
    return -likely.gather(1, labels[:, None])[:, 0]


def by_length(rows: Sequence[Row], size: int) -> Iterator[list[int]]:
    """Indices of `rows` in batches of `size`, similar lengths together to spare padding."""
    order = sorted(range(len(rows)), key=lambda i: len(rows[i].text))
    for start in range(0, len(order), size):
        yield order[start : start + size]


def batch_size(base: BaseModel, task: Task, groups: int = 1) -> int:
    """Rows of each of `groups` that are read at once."""
    if base.family == "diffusion":
        return max(1, PAINTED[base.device.type] // groups)
    if base.family in ("vision", "multimodal"):
        return max(1, PICTURES[base.device.type] // groups)
    options = 2 if scoring_kind(base, task) == "option" else 1
    width = task.words + (base.around if base.family == "vision-language" else 0)
    return max(1, BUDGET[base.device.type] // (groups * width * options))


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

    `groups` is the number of adapters under which `model` reads. Of answers to be written it is
    [groups, n, 1], the mean log-likelihood of the right one's tokens; what is written says `write`.
    Of what matches it is [groups, texts, pictures], the scaled closeness of all different ones. Of
    a style it is [groups, n, 1], minus the squared error of denoising.
    """
    model = _core(model)
    how, asked = scoring_kind(base, task), answer_ids(base, task)
    if how == "match":
        return _closeness(model, base, task, rows, groups, batch)
    everything = read(base, task, rows)
    out = torch.empty(groups, len(rows), max(1, len(asked)), device=base.device)
    for chosen in by_length(rows, batch or batch_size(base, task, groups)):
        index = torch.tensor(chosen, device=base.device)
        some = everything[index.repeat(groups)]
        some = some.cut(int(some.lengths.max()))
        if how in ("label", "image", "question"):
            likely = answers(model, base, some)[:, asked]
            likely = likely if how == "label" else likely.log_softmax(-1)
        elif how == "style":
            likely = -base.judged(model, some.ids, index.repeat(groups))
        elif how == "option":
            likely = tails(model, some).view(-1, some.options)
        else:
            likely = tails(model, some) / (some.lengths - some.begins)
        out[:, index] = likely.view(groups, len(chosen), -1)
    return out.cpu()


def _closeness(
    model: nn.Module,
    base: BaseModel,
    task: Task,
    rows: Sequence[Row],
    groups: int,
    batch: int | None,
) -> Tensor:
    gallery, batch = Gallery.of(rows), batch or batch_size(base, task, groups)
    everything, sides = read(base, task, rows), []
    for places in (gallery.texts, gallery.pictures):
        parts = []
        for index in torch.tensor(places, device=base.device).split(batch):
            some = everything[index.repeat(groups)]
            if places is gallery.texts:
                some = some.cut(int(some.lengths.max()))
                found = model.text_features(some.ids, some.mask, _seen(some))
            else:
                found = model.image_features(base.normalised(some.pictures))
            parts.append(found.unflatten(0, (groups, -1)))
        sides.append(torch.cat(parts, 1))
    texts, pictures = sides
    return (base.scale * texts @ pictures.mT).cpu()


def _core(model: nn.Module) -> nn.Module:
    """The base model in which PEFT's LoRA acts, or `model` itself."""
    return model.get_base_model() if isinstance(model, PeftModel) else model


@torch.inference_mode()
def write(
    model: nn.Module, base: BaseModel, task: Task, rows: Sequence[Row], *, groups: int = 1
) -> list[list[str]]:
    """[groups][n] what the model writes after each prompt: the likeliest token, again and again.

    Prompts are padded on the left, since all are continued at once, and told apart by a mask.
    """
    model, tokenizer = _core(model), base.tokenizer
    ids = [row[-task.words :] for row in _ids(base, [task.prompt(row.text) for row in rows])]
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
    found = [[""] * len(rows) for _ in range(groups)]
    most = max(1, WRITES[base.device.type] // groups)
    with _masked(model):
        for first in range(0, len(order), most):
            chosen = order[first : first + most]
            width = max(len(ids[i]) for i in chosen)
            start = torch.full((len(chosen), width), tokenizer.pad_token_id)
            mask = torch.zeros_like(start)
            for place, i in enumerate(chosen):
                start[place, width - len(ids[i]) :] = torch.tensor(ids[i])
                mask[place, width - len(ids[i]) :] = 1
            made = model.generate(
                start.to(base.device).repeat(groups, 1),
                attention_mask=mask.to(base.device).repeat(groups, 1),
                max_new_tokens=task.new_tokens,
                do_sample=False,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
            texts = tokenizer.batch_decode(made[:, width:], skip_special_tokens=True)
            for k, text in enumerate(texts):
                found[k // len(chosen)][chosen[k % len(chosen)]] = text
    return found


@contextmanager
def _masked(model: nn.Module) -> Iterator[None]:
    """With an attention that heeds a mask, where `bases.attention` chose one that needs none."""
    own = model.config._attn_implementation
    if own == "plain_causal":
        model.set_attn_implementation("sdpa")
    try:
        yield
    finally:
        if own == "plain_causal":
            model.set_attn_implementation(own)
