"""Baselines that every results table carries: what a generated adapter has to be better than.

A soup is a plain mean of weights, which only makes sense because a zoo shares its LoRA start; so
does a Gaussian of each weight. Both say what knowing the task's adapters is worth without learning.
Plain regression on the condition is a generator without diffusion: see `GeneratorConfig.diffusion`.
"""

from collections import Counter
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from oral_lib import seeds
from oral_lib.errors import OralError
from oral_lib.evaluation.evaluate import Outcome
from oral_lib.models.text_encoder import TextEncoder
from oral_lib.models.vision import Backbone
from oral_lib.tasks.rows import Row, Split
from oral_lib.tasks.task import Task, load_task
from oral_lib.zoo.store import Member

NOISE = {"noise_small": 0.1, "noise_large": 1.0}  # in standard deviations of each tensor


def majority(train: Sequence[Row], rows: Sequence[Row], labels: int) -> Outcome:
    """The outcome of always giving the most frequent label, or answer, of the training rows.

    Of answers and labels that are equally frequent the one that comes first is given.
    """
    if rows and rows[0].answer:
        answers = Counter(row.answer for row in train)
        said = max(answers, key=lambda answer: answers[answer])
        return Outcome(torch.zeros(len(rows), 1), rows, [said] * len(rows))
    counts = Counter(row.label for row in train)
    best = max(range(labels), key=lambda label: counts[label])
    likely = torch.zeros(len(rows), labels)
    likely[:, best] = 1.0
    return Outcome(likely, rows)


def gaussian(adapters: Sequence[dict[str, Tensor]], n: int, seed: int) -> list[dict[str, Tensor]]:
    """`n` adapters whose every weight is drawn by itself, with the mean and standard deviation that
    it has over `adapters`. OralError for fewer than two of them."""
    if len(adapters) < 2:
        raise OralError(f"a Gaussian of {len(adapters)} adapters: it takes at least two.")
    draw = seeds.generator(seed, "gaussian")
    made: list[dict[str, Tensor]] = [{} for _ in range(n)]
    for name in sorted(adapters[0]):
        values = torch.stack([a[name].float() for a in adapters])
        mean, std = values.mean(0), values.std(0)
        for one in made:
            noise = torch.randn(mean.shape, generator=draw).to(mean.device)
            one[name] = (mean + std * noise).to(adapters[0][name].dtype)
    return made


def noised(
    adapters: Sequence[dict[str, Tensor]], amplitude: float, seed: int
) -> list[dict[str, Tensor]]:
    """Each of `adapters` plus white noise of `amplitude` standard deviations of each tensor.

    `NOISE` holds the two amplitudes of the result table: a tenth of a tensor's own spread, which a
    useful adapter should survive, and all of it, which drowns what B (zero at the start) learned.
    """
    made = []
    for i, adapter in enumerate(adapters):
        draw = seeds.generator(seed, "noise", i)
        one = {}
        for name in sorted(adapter):
            tensor = adapter[name].float()
            noise = torch.randn(tensor.shape, generator=draw).to(tensor.device)
            scale = tensor.std(correction=0)  # of one value it is 0
            one[name] = (tensor + amplitude * scale * noise).to(adapter[name].dtype)
        made.append(one)
    return made


def soup(adapters: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The mean of adapters, tensor by tensor. OralError if there is none."""
    if not adapters:
        raise OralError("a soup of no adapters: the zoo of this task is empty.")
    return {name: torch.stack([a[name] for a in adapters]).mean(0) for name in adapters[0]}


def soup_all(members: Sequence[Member]) -> dict[str, Tensor]:
    """The mean of the per-task soups, so that every task weighs the same."""
    names = sorted({m.task for m in members})
    return soup([soup([m.tensors for m in members if m.task == name]) for name in names])


def nearest_task(text: str, known: Sequence[str], encoder: TextEncoder) -> str:
    """The task of `known` whose description is nearest to `text` (cosine of embeddings)."""
    descriptions = encoder.encode([load_task(name).description for name in known])
    return known[int((descriptions @ encoder.encode([text])[0]).argmax())]


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
