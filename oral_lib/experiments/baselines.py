"""Baselines of every results table, which a generated adapter has to be compared with.

An adapter average (soup) or a Gaussian of each weight is only meaningful because all adapters of a
zoo share one LoRA initialisation. Both measure how far the task's adapters suffice without
learning. Regression on the condition is a generator without diffusion.
"""

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from oral_lib import seeds
from oral_lib.errors import OralError
from oral_lib.evaluation.evaluate import Outcome
from oral_lib.lora.adapter import PREFIX
from oral_lib.models.text_encoder import TextEncoder
from oral_lib.tasks.rows import Row, Split
from oral_lib.tasks.task import Task, load_task
from oral_lib.zoo.store import Member

if TYPE_CHECKING:  # imports timm, which is slow
    from oral_lib.models.vision import Backbone

NOISE = {"noise_small": 0.1, "noise_large": 1.0}  # in standard deviations of each tensor


def majority(train: Sequence[Row], rows: Sequence[Row], n_labels: int) -> Outcome:
    """The outcome of always predicting the most frequent label, or written answer, of `train`.

    Rows of a task have either labels or answers. Of equally frequent labels the lowest is
    predicted, of answers the first in `train`.
    """
    if any(row.answer for row in rows):
        answers = Counter(row.answer for row in train if row.answer.strip())
        best = max(answers, key=lambda answer: answers[answer], default="")
        return Outcome(torch.zeros(len(rows), 1), rows, [best] * len(rows))
    counts = Counter(row.label for row in train)
    best = max(range(n_labels), key=lambda label: counts[label])
    likely = torch.zeros(len(rows), n_labels)
    likely[:, best] = 1.0
    return Outcome(likely, rows)


def gaussian(adapters: Sequence[dict[str, Tensor]], n: int, seed: int) -> list[dict[str, Tensor]]:
    """`n` adapters whose weights are independent Gaussians, each with its mean and standard
    deviation over `adapters`.

    Raises:
        OralError: for fewer than two adapters.
    """
    if len(adapters) < 2:
        raise OralError(f"a Gaussian of {len(adapters)} adapters: at least two are required.")
    draw = seeds.generator(seed, "gaussian")
    samples: list[dict[str, Tensor]] = [{} for _ in range(n)]
    for name in sorted(adapters[0]):
        values = torch.stack([a[name].float() for a in adapters])
        mean, std = values.mean(0), values.std(0)
        for sample in samples:
            noise = torch.randn(mean.shape, generator=draw).to(mean.device)
            sample[name] = (mean + std * noise).to(adapters[0][name].dtype)
    return samples


def noised(
    adapters: Sequence[dict[str, Tensor]], amplitude: float, seed: int
) -> list[dict[str, Tensor]]:
    """Each of `adapters` plus white noise of `amplitude` standard deviations of each tensor.

    `NOISE` has the two amplitudes of the result table. A tenth of a standard deviation should
    hardly change a useful adapter; a full one is larger than what B learnt from zero.
    """
    noisy = []
    for i, adapter in enumerate(adapters):
        draw = seeds.generator(seed, "noise", i)
        copy = {}
        for name in sorted(adapter):
            tensor = adapter[name].float()
            noise = torch.randn(tensor.shape, generator=draw).to(tensor.device)
            scale = tensor.std(correction=0)  # 0 for a single value
            copy[name] = (tensor + amplitude * scale * noise).to(adapter[name].dtype)
        noisy.append(copy)
    return noisy


def soup(adapters: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The mean of adapters, tensor by tensor. OralError without any adapter."""
    if not adapters:
        raise OralError("an adapter average (soup) of no adapters: the zoo of this task is empty.")
    return {name: torch.stack([a[name] for a in adapters]).mean(0) for name in adapters[0]}


def soup_all(members: Sequence[Member]) -> dict[str, Tensor]:
    """The mean of the averages of all tasks: every task has the same weight."""
    names = sorted({m.task for m in members})
    return soup([soup([m.tensors for m in members if m.task == name]) for name in names])


def nearest_task(text: str, names: Sequence[str], encoder: TextEncoder) -> str:
    """The task of `names` whose description is nearest to `text` (cosine of embeddings)."""
    descriptions = encoder.encode([load_task(name).description for name in names])
    return names[int((descriptions @ encoder.encode([text])[0]).argmax())]


# ---------------------------------------------------------------- the linear probe
DECAYS = (1e-4, 1e-3, 1e-2, 1e-1)  # candidates, on standardised features
_ITERATIONS = 200  # of L-BFGS, at most


def linear_probe(base: "Backbone", task: Task, data: Split) -> dict[str, Tensor]:
    """The LoRA initialisation with a head fitted to the features of `data.train`.

    Of the heads of all `DECAYS` the one with the best accuracy on `data.validation`.
    """
    x, y = base.features(data.train), _labels(data.train)  # [n, f], [n]
    x_validation, y_validation = base.features(data.validation), _labels(data.validation)
    mean, std = x.mean(0), x.std(0).clamp_min(1e-6)  # [f]
    best, best_accuracy = None, -1.0
    for decay in DECAYS:
        weight, bias = fit_head((x - mean) / std, y, len(task.labels), decay)
        weight = weight / std  # for features that are not standardised
        bias = bias - weight @ mean
        predicted = (x_validation @ weight.T + bias).argmax(1)
        accuracy = (predicted == y_validation).float().mean().item()
        if accuracy > best_accuracy:
            best, best_accuracy = (weight, bias), accuracy
    probe = base.lora_init()
    for name, value in zip(("weight", "bias"), best, strict=True):
        probe[f"{PREFIX}{base.head}.{name}"][: len(value)] = value
    return probe


def fit_head(x: Tensor, y: Tensor, classes: int, decay: float) -> tuple[Tensor, Tensor]:
    """(weight [classes, f], bias [classes]) that minimise cross-entropy + decay |weight|^2.

    Args:
        x: features [n, f].
        y: labels [n].
        classes: number of labels.
        decay: factor of the squared weights.
    """
    weight = torch.zeros(classes, x.shape[1], requires_grad=True)
    bias = torch.zeros(classes, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weight, bias], max_iter=_ITERATIONS, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(x @ weight.T + bias, y) + decay * weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return weight.detach(), bias.detach()


def _labels(rows: Sequence[Row]) -> Tensor:
    return torch.tensor([row.label for row in rows])
