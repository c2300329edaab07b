"""One LoRA for all seen tasks of a base model, conditioned on a text.

`described`: the text is part of the input (`prompts.PromptTable`). `multitask`: the LoRA reads the
message only, and the head is linear in the embedding e of the text, yes - no = h . W e + b e, where
h is the state that a classifier reads: an encoder's pooled state, or the last hidden state of a
causal model.

Letters: b rows of a step, f values of a state, e of an embedding.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from oral_lib import seeds
from oral_lib.devices import Replay
from oral_lib.errors import OralError
from oral_lib.experiments.intents.messages import MessageTable
from oral_lib.experiments.intents.prompts import PromptTable
from oral_lib.lora import stacked
from oral_lib.lora.adapter import PREFIX
from oral_lib.lora.stacked import Stack
from oral_lib.models.base import BaseModel, EncodedRows
from oral_lib.models.text import last_states
from oral_lib.progress import bar
from oral_lib.tasks.intents.family import IntentFamily, IntentTask
from oral_lib.zoo.recipes import Recipe
from oral_lib.zoo.training import COMPILED

HEAD = "text_head"  # the name under which a base model has the head while it is trained
_POOL = 16  # steps within which rows of similar length are brought together


# ---------------------------------------------------------------- texts and rows of all steps
def text_bank(family: IntentFamily, tasks: Sequence[IntentTask]) -> list[str]:
    """The training texts of all tasks, task by task, and then all training messages."""
    texts = [text for task in tasks for text in task.texts["train"]]
    return texts + [family.messages[row].text for row in _training_messages(family)]


def _training_messages(family: IntentFamily) -> np.ndarray:
    return np.flatnonzero(family.part_of == 0)


@dataclass(frozen=True)
class Steps:
    """Texts, rows and labels of all steps, int64 [steps, b] each, on the host."""

    texts: np.ndarray
    rows: np.ndarray
    labels: np.ndarray


def text_steps(
    family: IntentFamily,
    tasks: Sequence[IntentTask],
    steps: int,
    size: int,
    seed: int,
    lengths: Callable[[np.ndarray, np.ndarray], np.ndarray],
    utterances: float = 0.5,
) -> Steps:
    """Random tasks, a text of each, and a row of each: half of the rows are positive.

    Half of the negatives are near, where a task has any. For a task on one intent, a share of the
    texts is replaced by another training message of the intent. Rows of similar length share a
    step, within pools of steps.

    Args:
        family: the messages.
        tasks: the seen tasks.
        steps: number of steps.
        size: b, rows of a step.
        seed: of all draws.
        lengths: tokens of (text, row), by numbers of `text_bank` and of messages.
        utterances: the share.
    """
    random = np.random.default_rng(seeds.integer(seed, "text-steps"))
    bank_of_message = np.full(len(family.messages), -1)
    counts = [len(task.texts["train"]) for task in tasks]
    first = np.cumsum([0, *counts])
    messages = _training_messages(family)
    bank_of_message[messages] = first[-1] + np.arange(len(messages))
    total = steps * size
    chosen = random.integers(len(tasks), size=total)
    texts, rows = np.empty(total, np.int64), np.empty(total, np.int64)
    labels = random.integers(2, size=total)
    near = random.random(total) < 0.5
    for t, task in enumerate(tasks):
        places = np.flatnonzero(chosen == t)
        texts[places] = first[t] + random.integers(counts[t], size=len(places))
        for kind, mask in (
            (task.positive, labels[places] == 1),
            (task.near, (labels[places] == 0) & (near[places] if task.far else True)),
            (task.far, (labels[places] == 0) & (~near[places] if task.near else True)),
        ):
            if kind and mask.any():
                rows[places[mask]] = random.choice(family.rows_of(kind, "train"), mask.sum())
        if len(task.positive) == 1:
            places = places[random.random(len(places)) < utterances]
            pool = family.rows_of(task.positive, "train")
            spoken = random.choice(pool, len(places))
            other = np.roll(pool, 1)[np.searchsorted(pool, spoken)]
            spoken = np.where(spoken == rows[places], other, spoken)
            texts[places] = bank_of_message[spoken]
    order = np.arange(total)
    for start in range(0, total, _POOL * size):
        pool = order[start : start + _POOL * size]
        pool = pool[np.argsort(lengths(texts[pool], rows[pool]), kind="stable")]
        blocks = pool.reshape(-1, size)
        order[start : start + len(pool)] = blocks[random.permutation(len(blocks))].ravel()
    return Steps(*(part[order].reshape(steps, size) for part in (texts, rows, labels)))


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


def train_described(
    table: PromptTable,
    family: IntentFamily,
    tasks: Sequence[IntentTask],
    recipe: Recipe,
    seed: int = 0,
) -> dict[str, Tensor]:
    """The multi-task LoRA (with its head) that reads the text in its input, by PEFT's names.

    Args:
        table: its texts begin with `text_bank` of `family` and `tasks`.
        family: the messages.
        tasks: the seen tasks.
        recipe: `batch` is the number of rows of a step.
        seed: of the texts and rows.
    """
    draws = text_steps(family, tasks, recipe.steps, recipe.batch, seed, table.total)
    start = table.base.lora_init()
    about = "multi-task LoRA that reads the text"
    return _train(table.base, start, recipe, draws, table.width, table.losses, about)


def train_multitask(
    table: MessageTable,
    embeddings: Tensor,
    family: IntentFamily,
    tasks: Sequence[IntentTask],
    recipe: Recipe,
    seed: int = 0,
) -> dict[str, Tensor]:
    """The multi-task LoRA and the head that is linear in the text, by PEFT's names.

    Args:
        table: the messages.
        embeddings: [texts, e] of `text_bank` of `family` and `tasks`.
        family: the messages.
        tasks: the seen tasks.
        recipe: `batch` is the number of rows of a step.
        seed: of the texts and rows.
    """
    base = table.base
    draws = text_steps(
        family, tasks, recipe.steps, recipe.batch, seed, lambda _, rows: table.lengths[rows]
    )
    lora = {name: tensor for name, tensor in base.lora_init().items() if ".lora_" in name}
    size = state_size(base)
    start = lora | {
        f"{PREFIX}{HEAD}.weight": torch.zeros(size + 1, embeddings.shape[1]),
        f"{PREFIX}{HEAD}.bias": torch.zeros(size + 1),
    }
    embeddings = (embeddings * embeddings.shape[1] ** 0.5).to(base.device)  # unit size a value

    def losses(texts: Tensor, rows: Tensor, labels: Tensor, width: int) -> Tensor:
        h = states(base, table.batch(rows, width))  # [b, f]
        head = getattr(base.model, HEAD)(embeddings.index_select(0, texts)).float()  # [b, f + 1]
        logits = (h * head[:, :-1]).sum(1) + head[:, -1]
        return F.binary_cross_entropy_with_logits(logits, labels.float(), reduction="none")

    with _with_head(base, embeddings.shape[1]):
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
        trained: what `train_multitask` returned.
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
