"""Rivals that write an adapter, or score a message, from the embedding of a text and a zoo.

Letters: T texts, Z adapters of the zoo, V values of an adapter, e of an embedding, N training texts
of the zoo's tasks.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from oral_lib import learning_rate, seeds
from oral_lib.method.projection import span
from oral_lib.models.text_encoder import TextEncoder

NEAREST = 5  # adapters of a soup
MIXTURE_PENALTIES = (0.01, 0.1, 1.0, 10.0)  # of the ridge of a mixture
_DIRECTIONS = 128  # principal directions of the zoo that the regression writes


class Embedder:
    """The unit embeddings of texts, each computed once.

    Args:
        encoder: of the texts.
        device: where many texts are embedded.
    """

    def __init__(self, encoder: TextEncoder, device: torch.device | str = "cpu"):
        self.encoder, self.width, self.device = encoder, encoder.width, device
        self.vectors: dict[str, Tensor] = {}

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Embeddings [T, e] on the CPU."""
        new = sorted({*texts} - self.vectors.keys(), key=lambda text: (len(text), text))
        if len(new) > 256:
            self.encoder.model.to(self.device)
        for start in range(0, len(new), 256):
            part = new[start : start + 256]
            self.vectors |= zip(part, self.encoder.encode(part).cpu(), strict=True)
        self.encoder.model.to("cpu")
        return torch.stack([self.vectors[text] for text in texts])


@dataclass(frozen=True, eq=False)
class TextZoo:
    """Adapters of one base model with their tasks' texts.

    Attributes:
        names: [Z] of the tasks.
        values: float32 [Z, V].
        matched: [Z, e] the first text of each task.
        texts: [N, e] all training texts.
        task_of: int64 [N] the adapter of each text.
    """

    names: tuple[str, ...]
    values: Tensor
    matched: Tensor
    texts: Tensor
    task_of: Tensor

    @classmethod
    def of(
        cls, names: Sequence[str], values: Tensor, texts: Sequence[Sequence[str]], embed: Embedder
    ) -> "TextZoo":
        """The zoo of `values` [Z, V] whose tasks have `texts`, the matched one first."""
        task_of = torch.tensor([z for z, each in enumerate(texts) for _ in each])
        flat = embed([text for each in texts for text in each])
        return cls(tuple(names), values, embed([each[0] for each in texts]), flat, task_of)

    def without(self, tasks: Sequence[int]) -> "TextZoo":
        """The zoo without the adapters of these numbers."""
        kept = torch.ones(len(self.values), dtype=torch.bool)
        kept[list(tasks)] = False
        number = kept.cumsum(0) - 1
        texts = kept[self.task_of]
        return TextZoo(
            tuple(name for name, keep in zip(self.names, kept, strict=True) if keep),
            self.values[kept],
            self.matched[kept],
            self.texts[texts],
            number[self.task_of[texts]],
        )


# ---------------------------------------------------------------- adapters
def nearest_adapters(texts: Tensor, zoo: TextZoo, n: int = 1) -> Tensor:
    """Numbers [T, n] of the adapters whose matched texts are nearest to `texts` [T, e]."""
    return (texts @ zoo.matched.T).topk(min(n, len(zoo.values)), dim=1).indices


def retrieved(texts: Tensor, zoo: TextZoo) -> Tensor:
    """The adapter [T, V] of the nearest description."""
    return zoo.values[nearest_adapters(texts, zoo)[:, 0]]


def soup_of_nearest(texts: Tensor, zoo: TextZoo, n: int = NEAREST) -> Tensor:
    """The mean [T, V] of the adapters of the n nearest descriptions."""
    return torch.stack([zoo.values[chosen].mean(0) for chosen in nearest_adapters(texts, zoo, n)])


@lru_cache(maxsize=8)
def _ridge(zoo: TextZoo, penalty: float) -> tuple[Tensor, Tensor, Tensor]:
    """(center [e], mean [Z], weights [e, Z]) of the ridge regression of `mixture_weights`."""
    targets = F.one_hot(zoo.task_of, len(zoo.values)).double()  # [N, Z]
    center, mean = zoo.texts.double().mean(0), targets.mean(0)
    x = zoo.texts.double() - center  # [N, e]
    gram = x.T @ x + penalty * torch.eye(x.shape[1], dtype=x.dtype)
    return center, mean, torch.linalg.solve(gram, x.T @ (targets - mean))


def mixture_weights(texts: Tensor, zoo: TextZoo, penalty: float) -> Tensor:
    """Weights [T, Z] by ridge regression from an embedding to the zoo; each row sums to 1.

    The targets of the regression are 1 for the task of a training text and 0 for all others. A
    ridge regression on the adapters' values would have the same result, since it is linear.
    """
    center, mean, weights = _ridge(zoo, penalty)
    return (mean + (texts.double() - center) @ weights).float()


def routed(texts: Tensor, zoo: TextZoo, penalty: float) -> Tensor:
    """The adapter [T, V] of the task that a ridge classifier of all training texts names."""
    return zoo.values[mixture_weights(texts, zoo, penalty).argmax(1)]


def mixture(texts: Tensor, zoo: TextZoo, penalty: float) -> Tensor:
    """The mixture [T, V] of all adapters of the zoo with `mixture_weights`."""
    return mixture_weights(texts, zoo, penalty) @ zoo.values


class WeightRegression(nn.Module):
    """A network from an embedding to an adapter, without diffusion and without a base model.

    It writes coordinates along the zoo's principal directions: values = mean + coordinates D.

    Args:
        width: e.
        size: number of directions.
        hidden: width of the two hidden layers.
    """

    def __init__(self, width: int, size: int, hidden: int = 512):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(width, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU(),
            nn.Linear(hidden, size),
        )  # fmt: skip
        nn.init.zeros_(self.layers[-1].weight)
        nn.init.zeros_(self.layers[-1].bias)

    def forward(self, texts: Tensor) -> Tensor:
        """Coordinates [T, size], in units of their root mean square over the zoo."""
        return self.layers(texts * texts.shape[1] ** 0.5)


@lru_cache(maxsize=4)
def principal(zoo: TextZoo) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(mean [V], directions [d, V], coordinates [Z, d], their root mean square) of the zoo."""
    mean = zoo.values.mean(0)
    centered = zoo.values - mean
    directions = span(centered[:, None], _DIRECTIONS)[:, 0]  # [d, V]
    coordinates = centered @ directions.T
    return mean, directions, coordinates, coordinates.square().mean().sqrt()


def train_regression(
    zoo: TextZoo, spoken: Tensor, spoken_of: Tensor, *, steps: int, seed: int = 0,
    device: torch.device | str = "cpu", lr: float = 1e-3, batch: int = 256,
) -> dict[str, Tensor]:  # fmt: skip
    """The weights of a `WeightRegression` on the zoo: squared error of the coordinates.

    Args:
        zoo: adapters and texts.
        spoken: [U, e] embeddings of messages that replace half of the texts.
        spoken_of: [U] the adapter that each message belongs to.
        steps: of AdamW, with linear warm-up and decay.
        seed: of weights and draws.
        device: of the training.
        lr: highest learning rate.
        batch: texts of a step.
    """
    _, _, coordinates, scale = principal(zoo)
    targets = (coordinates / scale).to(device)
    sides = [
        (texts.to(device), numbers.to(device))
        for texts, numbers in ((zoo.texts, zoo.task_of), (spoken, spoken_of))
        if len(texts)
    ]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seeds.integer(seed, "weight-regression"))
        network = WeightRegression(zoo.texts.shape[1], targets.shape[1]).to(device)
    optimizer = torch.optim.AdamW(network.parameters(), lr=lr, weight_decay=0.01)
    draw = seeds.generator(seed, "weight-regression-rows", device=device)
    for step in range(steps):
        rate = learning_rate.linear(lr, step, steps=steps, warmup=max(1, steps // 20))
        optimizer.param_groups[0]["lr"] = rate
        loss = 0.0
        for texts, numbers in sides:
            rows = torch.randint(len(texts), (batch // len(sides),), generator=draw, device=device)
            error = network(texts[rows]) - targets[numbers[rows]]
            loss = loss + error.square().mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
    return {name: tensor.cpu() for name, tensor in network.state_dict().items()}


def regression(texts: Tensor, zoo: TextZoo, weights: dict[str, Tensor]) -> Tensor:
    """The adapters [T, V] that a trained `WeightRegression` writes for `texts` [T, e]."""
    mean, directions, _, scale = principal(zoo)
    network = WeightRegression(zoo.texts.shape[1], len(directions))
    network.load_state_dict(weights)
    with torch.inference_mode():
        return mean + scale * network(texts) @ directions


# ---------------------------------------------------------------- zero-shot
def cosines(texts: Tensor, messages: Tensor) -> Tensor:
    """Cosine [T, n] of texts [T, e] and their messages [T, n, e], both of unit length."""
    return torch.einsum("te,tne->tn", texts, messages)


def best_threshold(scores: np.ndarray, labels: np.ndarray) -> float:
    """The threshold with the highest balanced accuracy, mean over tasks.

    Args:
        scores: [T, n].
        labels: [T, n] 0 or 1, both in each row.
    """
    candidates = np.quantile(scores, np.linspace(0.01, 0.99, 197))
    yes = scores[None] > candidates[:, None, None]  # [candidates, T, n]
    hits = (yes & (labels == 1)).sum(2) / (labels == 1).sum(1)
    passes = (~yes & (labels == 0)).sum(2) / (labels == 0).sum(1)
    return float(candidates[((hits + passes) / 2).mean(1).argmax()])
