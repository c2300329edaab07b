"""How far adapters are apart: ||dW - dW'|| of their weight changes dW = s B A, without forming dW.

    ||dW - dW'||^2 = sum over modules of ||s B A - s B' A'||_F^2

One weight change has many factors, B A = (B R)(R^-1 A), so distances between factors would measure
the gauge, too. Novelty compares generated adapters with the ones trained on, after the finding that
most weight generators copy (arXiv 2506.07998).

Letters: r rank, A [r, in], B [out, r], s scale, n and m adapters.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from math import hypot, sqrt
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from oral_lib.errors import OralError, UsageError
from oral_lib.lora.adapter import (
    PAIRS,
    PREFIX,
    Adapter,
    Factors,
    LoraSettings,
    check_adapter,
    factors_by_module,
)

if TYPE_CHECKING:
    from peft import LoraConfig

_BIAS = ".lora_B.bias"
_BATCH = 64  # modules that `distance` multiplies at once: bounds its float64 copies


class Distance(NamedTuple):
    """The distance between two adapters (Frobenius norms)."""

    lora: float  # ||dW - dW'|| over all modules that LoRA adapts
    rest: float  # of all other tensors: heads and biases

    @property
    def total(self) -> float:
        """Both parts as one norm."""
        return hypot(self.lora, self.rest)


def distance(one: Adapter, other: Adapter, config: "LoraConfig | Mapping[str, Any]") -> Distance:
    """The distance between two adapters of one base model.

    B A - B' A' = L R with L = [B - B', B'] and R = [A; A - A'], and ||L R||^2 is the sum over
    (L^T L) * (R R^T), both [2r, 2r]. Differences keep the digits of near adapters; equal adapters
    are at distance 0.

    Args:
        one: the first adapter; the computation runs on its device, in float64.
        other: the second adapter.
        config: the PEFT configuration of both, as a LoraConfig or as its fields.

    Returns:
        The norms over LoRA modules (`lora`), other tensors (`rest`) and both (`total`).

    Raises:
        OralError: names or shapes differ, the configuration has other ranks, or it is DoRA.

    >>> one = {"q.lora_A.weight": torch.eye(2), "q.lora_B.weight": torch.eye(2)}
    >>> other = {"q.lora_A.weight": torch.eye(2), "q.lora_B.weight": torch.zeros(2, 2)}
    >>> distance(one, other, {"r": 2, "lora_alpha": 2}).total  # ||I||, scale 1
    1.4142135623730951
    """
    check_adapter(one, other)
    settings, other = LoraSettings.of(config), {n: t.to(one[n].device) for n, t in other.items()}
    if settings.magnitudes:
        raise OralError(
            "The weight change of DoRA (use_dora) depends on the base model: no distance is "
            "computed. Compare adapters of plain LoRA."
        )
    pairs, others = factors_by_module(one, settings), factors_by_module(other, settings)
    by_shape = defaultdict(list)  # modules of one shape are multiplied together
    for module, (a, b, _) in pairs.items():
        by_shape[a.shape, b.shape].append(module)
    squared = 0.0
    for modules in by_shape.values():
        for start in range(0, len(modules), _BATCH):
            batch = modules[start : start + _BATCH]
            b, a = _stacked(pairs, batch)  # [modules, out, r], [modules, r, in]
            b2, a2 = _stacked(others, batch)
            left = torch.cat([b - b2, b2], -1)  # [modules, out, 2r]
            right = torch.cat([a, a - a2], -2)  # [modules, 2r, in]
            norms = ((left.mT @ left) * (right @ right.mT)).sum((-1, -2))  # [modules]
            scales = norms.new_tensor([pairs[module].scale for module in batch])
            squared += float((scales**2 * norms).sum())
    rest = (
        _bias_scale(name, pairs) ** 2
        * float((tensor.double() - other[name].double()).square().sum())
        for name, tensor in one.items()
        if not name.endswith((*PAIRS, *PAIRS.values()))
    )
    return Distance(sqrt(max(squared, 0.0)), sqrt(sum(rest)))


def nearest(
    tensors: Adapter,
    zoo: Iterable[tuple[str, Adapter]],
    config: "LoraConfig | Mapping[str, Any]",
) -> tuple[str, Distance]:
    """(name, distance) of the adapter in `zoo` with the smallest total distance to `tensors`.

    Args:
        tensors: an adapter.
        zoo: pairs (name, adapter), read one at a time.
        config: the PEFT configuration of all of them.

    Raises:
        UsageError: the zoo is empty.
        OralError: an adapter of the zoo has other names or shapes.

    >>> adapter = {"q.lora_A.weight": torch.eye(2), "q.lora_B.weight": torch.eye(2)}
    >>> zoo = [(f"seed {i}", {n: t + i for n, t in adapter.items()}) for i in (3, 1, 2)]
    >>> name, gap = nearest(adapter, zoo, {"r": 2, "lora_alpha": 2})
    >>> name
    'seed 1'
    """
    distances = ((name, distance(tensors, member, config)) for name, member in zoo)
    closest = min(distances, key=lambda pair: pair[1].total, default=None)
    if closest is None:
        raise UsageError("The zoo is empty: give at least one adapter to compare with.")
    return closest


class Novelty(NamedTuple):
    """Distances of generated adapters to the adapters trained on (medians of ||dW - dW'||).

    A ratio near 0 is a copy, a ratio near 1 is as new as a training run of another seed. Samples
    between two seeds, such as the adapter average (soup), have a ratio below 1: they are nearer to
    each seed than seeds are to one another.
    """

    ratio: float  # generated / held_out
    ratio_low: float  # the same for the generated adapter nearest to one trained on
    generated: float  # from a generated adapter to the nearest one trained on
    held_out: float  # from an adapter of a held-out seed to the nearest one trained on
    seeds: float  # between two independent seeds
    samples: float  # between two generated adapters; NaN for a single one
    norm: float  # ||dW|| of a trained adapter
    spread: float  # between two generated adapters / between two adapters trained on; NaN for one
    free_numbers: float  # see `participation`


def novelty(
    generated: Sequence[Adapter],
    train: Sequence[Adapter],
    held_out: Sequence[Adapter],
    scale: float,
) -> Novelty:
    """The novelty of `generated` relative to `train`. Heads and other tensors are left out.

    Args:
        generated: adapters of one task and base model from the generator.
        train: adapters of this task and base model that the generator was trained on.
        held_out: adapters of this task and base model of seeds that it was not trained on.
        scale: s = alpha / r.

    Raises:
        UsageError: one of the lists is empty.
        OralError: names or shapes differ.

    >>> def adapter(seed):
    ...     draw = torch.Generator().manual_seed(seed)
    ...     shapes = {"q.lora_A.weight": (2, 6), "q.lora_B.weight": (5, 2)}
    ...     return {n: torch.randn(s, generator=draw) for n, s in shapes.items()}
    >>> train, held_out = [adapter(i) for i in range(4)], [adapter(10), adapter(11)]
    >>> novelty([train[2]], train, held_out, scale=1.0).ratio < 1e-3  # a copy
    True
    """
    if not (generated and train and held_out):
        counts = f"{len(generated)}, {len(train)} and {len(held_out)}"
        raise UsageError(
            f"Novelty needs at least one generated, train and held-out adapter each, got {counts}."
        )
    trained = [*train, *held_out]
    adapters = [*trained, *generated]
    apart = pairwise(adapters, adapters, scale)  # [n, n]
    n, n_train = len(trained), len(train)
    near = apart[n:, :n_train].amin(1)
    near_held_out = float(apart[n_train:n, :n_train].amin(1).median())
    size = pairwise(trained, [{n: t * 0 for n, t in train[0].items()}], scale)
    return Novelty(
        ratio=float(near.median()) / near_held_out,
        ratio_low=float(near.min()) / near_held_out,
        generated=float(near.median()),
        held_out=near_held_out,
        seeds=_median_pair(apart[:n, :n]),
        samples=_median_pair(apart[n:, n:]),
        norm=float(size.median()),
        spread=_median_pair(apart[n:, n:]) / _median_pair(apart[:n_train, :n_train]),
        free_numbers=participation(generated),
    )


def participation(adapters: Sequence[Adapter]) -> float:
    """The participation ratio of the variance of adapters: about how many numbers differ freely.

    It is (sum of v)^2 / sum of v^2, v the variances along the principal axes of all values: 1 for
    adapters on a line, at most n - 1 for n adapters, 0 for equal adapters. Convex combinations of m
    adapters have at most m - 1.

    >>> line = [{"w": torch.tensor([float(i), 2.0 * i])} for i in range(5)]
    >>> round(participation(line), 6)
    1.0
    """
    gram = torch.zeros(len(adapters), len(adapters), dtype=torch.float64)
    for name in adapters[0]:
        values = torch.stack([a[name].double().flatten() for a in adapters]).cpu()
        values = values - values.mean(0)
        gram += values @ values.mT
    total = float(gram.trace())
    return total**2 / float(gram.square().sum()) if total > 0 else 0.0


def pairwise(ones: Sequence[Adapter], others: Sequence[Adapter], scale: float = 1.0) -> Tensor:
    """float64 [n, m]: ||dW - dW'|| over all LoRA modules of every pair, dW = scale B A.

    ||dW - dW'||^2 = ||dW||^2 + ||dW'||^2 - 2 <dW, dW'>, and <B A, B' A'> is the sum over
    (B^T B') * (A A'^T), both [r, r]. Pairs nearer than 1e-7 of their size are equal here;
    `distance` is exact for them. OralError when names or shapes differ.
    """
    for adapter in [*ones[1:], *others]:
        check_adapter(adapter, ones[0])
    inner = squares = other_squares = 0.0
    for end_a, end_b in PAIRS.items():
        for name in (n for n in ones[0] if n.endswith(end_a)):
            pair = name, name.removesuffix(end_a) + end_b
            left = [torch.stack([x[n].double().flatten(1) for x in ones]) for n in pair]
            right = left
            if others is not ones:
                right = [torch.stack([x[n].double().flatten(1) for x in others]) for n in pair]
            inner = inner + _inner(*left, *right)  # [n, m]
            squares, other_squares = squares + _squares(*left), other_squares + _squares(*right)
    return scale * (squares[:, None] + other_squares - 2 * inner).clamp_min(0).sqrt()


def _inner(a: Tensor, b: Tensor, a2: Tensor, b2: Tensor) -> Tensor:
    """[n, m] <B A, B' A'>, for A [n, r, in], B [n, out, r] and m other pairs."""
    (n, r, _), m, r2 = a.shape, len(a2), a2.shape[1]
    left = b.mT.flatten(0, 1) @ b2.mT.flatten(0, 1).mT  # [n r, m r] B^T B'
    right = a.flatten(0, 1) @ a2.flatten(0, 1).mT  # [n r, m r] A A'^T
    return (left * right).view(n, r, m, r2).sum((1, 3))


def _squares(a: Tensor, b: Tensor) -> Tensor:
    """[n] ||B A||^2."""
    return ((b.mT @ b) * (a @ a.mT)).sum((-1, -2))


def _median_pair(apart: Tensor) -> float:
    """The median over all pairs of different adapters; NaN for a single adapter."""
    rows, columns = torch.triu_indices(len(apart), len(apart), 1)
    return float(apart[rows, columns].median()) if len(rows) else float("nan")


def _bias_scale(name: str, pairs: dict[str, Factors]) -> float:
    """What PEFT multiplies a tensor with: s for the bias of a B, 1 for all others."""
    if not name.endswith(_BIAS):
        return 1.0
    module = name.removesuffix(_BIAS).removeprefix(PREFIX)
    return pairs[module].scale if module in pairs else 1.0


def _matrices(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """(B [out, r], A [r, in * kernel]); the B of a grouped convolution becomes block-diagonal."""
    groups = a.shape[0] // b.shape[1]
    b = b.flatten(1)  # [out, r / groups]
    return (torch.block_diag(*b.chunk(groups)) if groups > 1 else b), a.flatten(1)


def _stacked(pairs: dict[str, Factors], modules: list[str]) -> list[Tensor]:
    """float64 (B [modules, out, r], A [modules, r, in])."""
    matrices = zip(*(_matrices(*pairs[module][:2]) for module in modules), strict=True)
    return [torch.stack([m.double() for m in matrix]) for matrix in matrices]
