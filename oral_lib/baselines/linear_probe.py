"""A head fitted to the features of a frozen backbone: the LoRA initialisation with that head."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from oral_lib.lora.adapter import PREFIX
from oral_lib.tasks.rows import Row, Split
from oral_lib.tasks.task import Task

if TYPE_CHECKING:  # imports timm, which is slow
    from oral_lib.models.vision import Backbone

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
