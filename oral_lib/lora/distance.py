"""lora.distance."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from math import hypot, sqrt
from typing import Any, NamedTuple

import torch
from peft import LoraConfig
from torch import Tensor

from oral_lib.errors import UsageError
from oral_lib.lora.adapter import PAIRS, Adapter, check
from oral_lib.lora.peft_folder import _check_factors, _lora, _scaling

_STACK = 64  # modules that `distance` multiplies at once: bounds its float64 copies


class Distance(NamedTuple):
    """How far two adapters are apart (Frobenius norms)."""

    lora: float  # ||dW - dW'|| over all modules that LoRA adapts
    rest: float  # of the tensors used as they are: heads, DoRA magnitudes, biases

    @property
    def total(self) -> float:
        """Both parts as one norm."""
        return hypot(self.lora, self.rest)


def delta(tensors: Adapter, config: LoraConfig | Mapping[str, Any]) -> Iterator[tuple[str, Tensor]]:
    """(module, dW = s B A) for each adapted module, made one at a time: float32 [out, in], or
    [out, in, kernel...] for a convolution.

    PEFT transposes it for embeddings and GPT-2's Conv1D. The magnitudes of DoRA are not applied:
    they need the base's weights.
    """
    config = _lora(config)
    for module, (a, b) in _check_factors(tensors, config).items():
        left, right = _matrices(a, b)
        dense = _scaling(config, module) * (left.float() @ right.float())
        yield module, dense.view(b.shape[0], *a.shape[1:])


def distance(one: Adapter, other: Adapter, config: LoraConfig | Mapping[str, Any]) -> Distance:
    """How far `one` is from `other`, two adapters of one base and `config`, without forming dW.

    B A - B' A' = L R with L = [B - B', B'] and R = [A; A - A'], and ||L R||^2 is the sum over
    (L^T L) * (R R^T), both [2r, 2r]. Written with differences, near adapters lose no digits and
    equal ones are 0 apart. OralError when names or shapes differ.
    """
    check(one, other)
    config, other = _lora(config), {n: t.to(one[n].device) for n, t in other.items()}
    pairs, others = _check_factors(one, config), _check_factors(other, config)
    alike = defaultdict(list)  # modules of one shape are multiplied together
    for module, (a, b) in pairs.items():
        alike[a.shape, b.shape].append(module)
    squared = 0.0
    for modules in alike.values():
        for start in range(0, len(modules), _STACK):
            some = modules[start : start + _STACK]
            b, a = _stacked(pairs, some)  # [modules, out, r], [modules, r, in]
            b2, a2 = _stacked(others, some)
            left, right = torch.cat([b - b2, b2], -1), torch.cat([a, a - a2], -2)
            norms = ((left.mT @ left) * (right @ right.mT)).sum((-1, -2))
            scaling = norms.new_tensor([_scaling(config, module) for module in some])
            squared += float((scaling**2 * norms).sum())
    rest = (
        float((tensor.double() - other[name].double()).square().sum())
        for name, tensor in one.items()
        if not name.endswith((*PAIRS, *PAIRS.values()))
    )
    return Distance(sqrt(max(squared, 0.0)), sqrt(sum(rest)))


def nearest(
    tensors: Adapter,
    zoo: Iterable[tuple[str, Adapter]],
    config: LoraConfig | Mapping[str, Any],
) -> tuple[str, Distance]:
    """(name, distance) of the adapter in `zoo` that is nearest by total distance.

    UsageError when the zoo is empty, OralError when one of its adapters has other shapes.
    """
    config = _lora(config)
    found = ((name, distance(tensors, member, config)) for name, member in zoo)
    if (best := min(found, key=lambda pair: pair[1].total, default=None)) is None:
        raise UsageError("The zoo is empty: no adapter can be nearest.")
    return best


class Novelty(NamedTuple):
    """How far generated adapters lie from those that were trained on (medians of ||dW - dW'||).

    A ratio near 0 is a copy, near 1 as new as a training run of another seed. Samples between two
    seeds, as the mean of all of them is, are nearer to each than they are to one another: below 1.
    """

    ratio: float  # generated over held_out
    ratio_low: float  # the same of the generated adapter that is nearest to one trained on
    generated: float  # from a generated adapter to the nearest one trained on
    held_out: float  # from an adapter of a held-out seed to the nearest one trained on
    seeds: float  # between two independent seeds
    samples: float  # between two generated adapters; NaN for a single one
    norm: float  # ||dW|| of a trained adapter


def novelty(
    generated: Sequence[Adapter],
    train: Sequence[Adapter],
    held_out: Sequence[Adapter],
    scale: float,
) -> Novelty:
    """How new `generated` is beside `train`, which the generator learned from, with `held_out`
    seeds of the same task and base model as the measure; scale is alpha / r.

    Heads and other tensors outside LoRA are left out. UsageError when one of the lists is empty.
    """
    if not (generated and train and held_out):
        counts = f"{len(generated)}, {len(train)} and {len(held_out)}"
        raise UsageError(f"Novelty wants generated, train and held-out adapters, got {counts}.")
    trained = [*train, *held_out]
    together = [*trained, *generated]
    apart = distances(together, together, scale)
    known, seen = len(trained), len(train)
    near = apart[known:, :seen].amin(1)
    own = float(apart[seen:known, :seen].amin(1).median())
    size = distances(trained, [{n: t * 0 for n, t in train[0].items()}], scale)
    return Novelty(
        float(near.median()) / own, float(near.min()) / own, float(near.median()), own,
        _median_pair(apart[:known, :known]), _median_pair(apart[known:, known:]),
        float(size.median()),
    )  # fmt: skip


def distances(ones: Sequence[Adapter], others: Sequence[Adapter], scale: float = 1.0) -> Tensor:
    """[n, m] ||dW - dW'|| over all LoRA modules, dW = scale B A, of every pair; no dW is formed.

    <B A, B' A'> is the sum over (B^T B') * (A A'^T), both [r, r]. In float64: pairs nearer than
    1e-7 of their size read as equal (`distance` is exact there). OralError when shapes differ.
    """
    for adapter in [*ones[1:], *others]:
        check(adapter, ones[0])
    inner = one = two = 0.0
    for first, second in PAIRS.items():
        for name in (n for n in ones[0] if n.endswith(first)):
            pair = name, name.removesuffix(first) + second
            own = [torch.stack([x[n].double().flatten(1) for x in ones]) for n in pair]
            far = own
            if others is not ones:
                far = [torch.stack([x[n].double().flatten(1) for x in others]) for n in pair]
            inner = inner + _inner(*own, *far)
            one, two = one + _squares(*own), two + _squares(*far)
    return scale * (one[:, None] + two - 2 * inner).clamp_min(0).sqrt()


def _inner(a: Tensor, b: Tensor, a2: Tensor, b2: Tensor) -> Tensor:
    """[n, m] <B A, B' A'>; A [n, r, in], B [n, out, r] and the same of m others."""
    (n, r, _), m, r2 = a.shape, len(a2), a2.shape[1]
    left = b.mT.flatten(0, 1) @ b2.mT.flatten(0, 1).mT  # [n r, m r] of B^T B'
    right = a.flatten(0, 1) @ a2.flatten(0, 1).mT
    return (left * right).view(n, r, m, r2).sum((1, 3))


def _squares(a: Tensor, b: Tensor) -> Tensor:
    """[n] ||B A||^2."""
    return ((b.mT @ b) * (a @ a.mT)).sum((-1, -2))


def _median_pair(apart: Tensor) -> float:
    """The median over all pairs of different members; NaN where there is none."""
    rows, columns = torch.triu_indices(len(apart), len(apart), 1)
    return float(apart[rows, columns].median()) if len(rows) else float("nan")


def _matrices(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """(B [out, r], A [r, in * kernel]); B of a grouped convolution is made block-diagonal."""
    groups = a.shape[0] // b.shape[1]
    b = b.flatten(1)
    return (torch.block_diag(*b.chunk(groups)) if groups > 1 else b), a.flatten(1)


def _stacked(pairs: dict[str, tuple[Tensor, Tensor]], modules: list[str]) -> list[Tensor]:
    both = zip(*(_matrices(*pairs[module]) for module in modules), strict=True)
    return [torch.stack(matrices).double() for matrices in both]
