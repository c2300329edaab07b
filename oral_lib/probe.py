"""The linear probe: what a head alone can do on the features of the frozen backbone.

It is an adapter whose LoRA is still at its start, so that what a trained one is above it is what
LoRA adds. The head is multinomial logistic regression; how much its weights are held back is chosen
on validation rows.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from oral_lib.models.vision import Backbone
from oral_lib.tasks.rows import Split
from oral_lib.tasks.task import Task

DECAYS = (1e-4, 1e-3, 1e-2, 1e-1)  # candidates: of the squared weights, on standardised features
ROUNDS = 200  # of L-BFGS at most


def adapter(base: Backbone, task: Task, data: Split) -> dict[str, Tensor]:
    """The shared start with the best head on `data.validation` of those fitted to `data.train`."""
    x, y = base.features(data.train), _labels(data.train)
    held, wanted = base.features(data.validation), _labels(data.validation)
    mean, std = x.mean(0), x.std(0).clamp_min(1e-6)
    best, right = None, -1.0
    for decay in DECAYS:
        weight, bias = fitted((x - mean) / std, y, len(task.labels), decay)
        weight = weight / std  # of features as they are
        bias = bias - weight @ mean
        found = ((held @ weight.T + bias).argmax(1) == wanted).float().mean().item()
        if found > right:
            best, right = (weight, bias), found
    start = base.lora_init()
    for part, value in zip(("weight", "bias"), best, strict=True):
        start[f"base_model.model.{base.head}.{part}"][: len(value)] = value
    return start


def fitted(x: Tensor, y: Tensor, classes: int, decay: float) -> tuple[Tensor, Tensor]:
    """(weight [classes, features], bias [classes]) of least cross-entropy + decay |weight|^2."""
    weight = torch.zeros(classes, x.shape[1], requires_grad=True)
    bias = torch.zeros(classes, requires_grad=True)
    search = torch.optim.LBFGS([weight, bias], max_iter=ROUNDS, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        search.zero_grad()
        found = F.cross_entropy(x @ weight.T + bias, y) + decay * weight.square().sum()
        found.backward()
        return found

    search.step(loss)
    return weight.detach(), bias.detach()


def _labels(rows) -> Tensor:
    return torch.tensor([row.label for row in rows])
