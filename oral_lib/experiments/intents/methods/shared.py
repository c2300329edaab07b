"""One LoRA for all seen tasks of a base model, conditioned on a text.

`described`: the text is part of the input (`prompts.PromptTable`). `multitask`: the LoRA reads the
message only, and the head is linear in the embedding e of the text, yes - no = h . W e + b e, where
h is the state that a classifier reads: an encoder's pooled state, or the last hidden state of a
causal model.

Letters: b rows of a step, f values of a state, e of an embedding.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from oral_lib import seeds
from oral_lib.devices import Replay
from oral_lib.errors import OralError
from oral_lib.experiments.intents.messages import MessageTable
from oral_lib.experiments.intents.methods.prompts import PromptTable, described, pair_logits
from oral_lib.experiments.intents.stream import StreamSteps, TaskStream
from oral_lib.lora import stacked
from oral_lib.lora.adapter import PREFIX
from oral_lib.lora.stacked import Stack
from oral_lib.models.base import BaseModel, EncodedRows
from oral_lib.models.text import last_states
from oral_lib.progress import bar
from oral_lib.tasks.intents.family import MESSAGE
from oral_lib.zoo.recipes import Recipe
from oral_lib.zoo.training import COMPILED

HEAD = "text_head"  # the name under which a base model has the head while it is trained
_ROWS = 4  # of a task in a step
_POOL = 16  # steps within which rows of similar length are brought together


# ---------------------------------------------------------------- texts and rows of all steps
@dataclass(frozen=True)
class Steps:
    """Texts, rows and labels of all steps, int64 [steps, b] each, on the host.

    Texts are indices into `TaskStream.all_texts`, rows into `TaskStream.messages`.
    """

    texts: np.ndarray
    rows: np.ndarray
    labels: np.ndarray

    @classmethod
    def of(
        cls,
        stream: TaskStream,
        steps: int,
        size: int,
        lengths: Callable[[np.ndarray, np.ndarray], np.ndarray],
    ) -> "Steps":
        """The tasks of a stream, `_ROWS` rows of each, with rows of similar length in one step.

        Args:
            stream: the training tasks, which the generator reads, too.
            steps: number of steps.
            size: b, rows of a step, a multiple of `_ROWS`.
            lengths: tokens of (texts, rows).
        """
        drawn = stream.steps(steps, size // _ROWS, _ROWS)
        shape = drawn.rows.shape
        texts = np.broadcast_to(drawn.texts[..., None], shape).ravel()
        rows, labels = drawn.rows.ravel(), drawn.labels.ravel().astype(np.int64)
        order = np.arange(len(rows))
        random = np.random.default_rng(seeds.integer(stream.seed, "shared-steps"))
        for start in range(0, len(order), _POOL * size):
            pool = order[start : start + _POOL * size]
            pool = pool[np.argsort(lengths(texts[pool], rows[pool]), kind="stable")]
            blocks = pool.reshape(-1, size)
            order[start : start + len(pool)] = blocks[random.permutation(len(blocks))].ravel()
        return cls(*(part[order].reshape(steps, size) for part in (texts, rows, labels)))


# ---------------------------------------------------------------- training
def _train(
    base: BaseModel,
    start: dict[str, Tensor],
    recipe: Recipe,
    draws: Steps,
    width: Callable[[np.ndarray, np.ndarray], int],
    losses: Callable[[Tensor, Tensor, Tensor, int], Tensor],
    label: str,
) -> dict[str, Tensor]:
    """The trained tensors; `losses` of (texts, rows, labels, width) are [b]."""
    device = base.device
    stack = Stack(start, 1, device, next(base.model.parameters()).dtype, recipe.ratio)
    kept = [torch.zeros(draws.rows.shape[1], dtype=torch.long, device=device) for _ in range(3)]
    rate = torch.zeros(1, device=device)

    def step(width: int) -> None:
        stack.update(losses(*kept, width).mean(), rate, recipe.clip)

    replay = Replay(step, device)
    on_device = [
        torch.from_numpy(part).to(device) for part in (draws.texts, draws.rows, draws.labels)
    ]
    widths = [width(texts, rows) for texts, rows in zip(draws.texts, draws.rows, strict=True)]
    rates = torch.tensor([recipe.lr_at(i) for i in range(len(widths))], device=device)
    compiled = stacked.compiled(base.model) if base.weights > COMPILED else nullcontext()
    scale = base.spec.alpha / base.spec.rank
    with compiled, stacked.attached(base.model, stack, scale):
        for i in bar(range(len(widths)), label=f"{base.name} {label}", unit="step"):
            for place, part in zip(kept, on_device, strict=True):
                place.copy_(part[i])
            rate.copy_(rates[i : i + 1])
            replay(widths[i])
    [trained] = stack.adapters()
    if not all(tensor.isfinite().all() for tensor in trained.values()):
        raise OralError(f"{base.name} {label}: training diverged; lower lr={recipe.lr}.")
    return trained


def train_described(base: BaseModel, stream: TaskStream, recipe: Recipe) -> dict[str, Tensor]:
    """The multi-task LoRA (with its head) that reads the text in its input, by PEFT's names.

    Args:
        base: a causal model or an encoder.
        stream: the training tasks.
        recipe: `batch` is the number of rows of a step.
    """
    table = _behind_texts(base, stream)
    draws = Steps.of(stream, recipe.steps, recipe.batch, table.total)
    about = "multi-task LoRA that reads the text"
    return _train(base, base.lora_init(), recipe, draws, table.width, table.losses, about)


def _behind_texts(base: BaseModel, stream: TaskStream) -> PromptTable:
    """The messages of a stream behind each of its texts."""
    texts = stream.all_texts
    fronts = [described(text) for text in texts] if base.family == "causal" else texts
    return PromptTable.of(base, fronts, stream.messages)


def label_distilled(
    base: BaseModel, stream: TaskStream, steps: StreamSteps, teacher: dict[str, Tensor]
) -> StreamSteps:
    """`steps` with the labels of the tasks that are distilled: the probability of yes by a teacher.

    Args:
        base: the base model.
        stream: what `steps` was drawn from.
        steps: the tasks.
        teacher: what `train_described` returned.
    """
    if not steps.distilled.any():
        return steps
    table, labels = _behind_texts(base, stream), steps.labels.copy()
    chosen = steps.distilled
    with torch.inference_mode(), under(base, teacher):
        logits = pair_logits(table, steps.texts[chosen][:, None], steps.rows[chosen])
    labels[chosen] = logits.sigmoid().numpy()
    return replace(steps, labels=labels)


def train_multitask_head(
    base: BaseModel,
    stream: TaskStream,
    recipe: Recipe,
    embed: Callable[[Sequence[str]], Tensor],
) -> dict[str, Tensor]:
    """The multi-task LoRA and the head that is linear in the text, by PEFT's names.

    Args:
        base: a causal model or an encoder.
        stream: the training tasks.
        recipe: `batch` is the number of rows of a step.
        embed: embeddings [texts, e] of texts.
    """
    table = MessageTable.of(base, stream.messages, MESSAGE)
    draws = Steps.of(stream, recipe.steps, recipe.batch, lambda _, rows: table.lengths[rows])
    used, texts = np.unique(draws.texts, return_inverse=True)
    draws = replace(draws, texts=texts.reshape(draws.texts.shape))
    bank = stream.all_texts
    embeddings = embed([bank[i] for i in used])
    width, size = embeddings.shape[1], state_size(base)
    lora = {name: tensor for name, tensor in base.lora_init().items() if ".lora_" in name}
    start = lora | {
        f"{PREFIX}{HEAD}.weight": torch.zeros(size + 1, width),
        f"{PREFIX}{HEAD}.bias": torch.zeros(size + 1),
    }
    embeddings = (embeddings * width**0.5).to(base.device)  # unit size a value

    def losses(texts: Tensor, rows: Tensor, labels: Tensor, width: int) -> Tensor:
        h = states(base, table.batch(rows, width))  # [b, f]
        head = getattr(base.model, HEAD)(embeddings.index_select(0, texts)).float()  # [b, f + 1]
        logits = (h * head[:, :-1]).sum(1) + head[:, -1]
        return F.binary_cross_entropy_with_logits(logits, labels.float(), reduction="none")

    with _with_head(base, width):
        return _train(
            base, start, recipe, draws, lambda _, rows: table.width(rows), losses,
            "multi-task LoRA",
        )  # fmt: skip


@contextmanager
def _with_head(base: BaseModel, width: int) -> Iterator[None]:
    """`base` with an unused linear layer under the name `HEAD`, which a stack replaces."""
    base.model.add_module(HEAD, nn.Linear(width, state_size(base) + 1).to(base.device))
    try:
        yield
    finally:
        delattr(base.model, HEAD)


def state_size(base: BaseModel) -> int:
    """f, values of the state that a head reads."""
    return base.model.config.hidden_size


def states(base: BaseModel, batch: EncodedRows) -> Tensor:
    """The state h, float32 [b, f], of each row under what is attached."""
    if base.family == "causal":
        return last_states(base.states(base.model, batch), batch).float()
    read = base.model.base_model(batch.ids, attention_mask=batch.attention_mask)
    return read.pooler_output.float()


# ---------------------------------------------------------------- scores
@contextmanager
def under(base: BaseModel, adapter: dict[str, Tensor]) -> Iterator[None]:
    """`base` with one adapter attached as a stack of one."""
    stack = Stack(adapter, 1, base.device, next(base.model.parameters()).dtype)
    with stacked.attached(base.model, stack, base.spec.alpha / base.spec.rank):
        yield


@torch.inference_mode()
def multitask_logits(
    table: MessageTable, trained: dict[str, Tensor], texts: Tensor, rows: np.ndarray
) -> Tensor:
    """Logit of yes minus logit of no, float32 [T, n] on the CPU, of the multi-task LoRA.

    Args:
        table: the messages.
        trained: what `train_multitask_head` returned.
        texts: embeddings [T, e].
        rows: row numbers [T, n] on the host.
    """
    base = table.base
    lora = {name: tensor for name, tensor in trained.items() if ".lora_" in name}
    weight, bias = (trained[f"{PREFIX}{HEAD}.{end}"] for end in ("weight", "bias"))
    head = F.linear(texts.cpu() * texts.shape[1] ** 0.5, weight, bias)  # [T, f + 1]
    distinct, place = np.unique(rows, return_inverse=True)
    order = np.argsort(table.lengths[distinct], kind="stable")
    h = torch.empty(len(distinct), weight.shape[0] - 1)
    with under(base, lora):
        for chosen in np.array_split(order, max(1, len(order) // 1024)):
            part = distinct[chosen]
            batch = table.batch(torch.from_numpy(part).to(base.device), table.width(part))
            h[torch.from_numpy(chosen)] = states(base, batch).cpu()
    h = h[torch.from_numpy(place.reshape(rows.shape))]  # [T, n, f]
    return torch.einsum("tnf,tf->tn", h, head[:, :-1]) + head[:, -1:]
