"""Gauge: one weight change has many factors, B A = (B R)(R^-1 A) for every invertible R.

    balanced   B A = U S V^T, so that B = U sqrt(S) and A = sqrt(S) V^T: the same for every R
    rotated    B R and R^T A for a random rotation R of each module: another gauge, the same weights
    aligned    balanced factors, rotated to agree with the factors of a reference adapter

A zoo that shares its LoRA initialisation shares its gauge.

Letters: r rank, A [r, in, ...], B [out, r, ...], n modules of one shape.
"""

from collections import defaultdict

import torch
import torch.nn.functional as F
from torch import Tensor

from oral_lib import seeds
from oral_lib.errors import OralError
from oral_lib.lora.adapter import Adapter, check_adapter, factors


def balanced(adapter: Adapter) -> dict[str, Tensor]:
    """`adapter` with the balanced factors of every B A, singular values falling.

    Other tensors are passed on as they are. The sign of a singular pair makes the largest entry of
    its column of B positive. dW is unchanged up to rounding; equal singular values leave a freedom.
    OralError for factors that are not matrices.
    """
    result, by_shape = dict(adapter), defaultdict(list)
    for a, b in _matrix_factors(adapter).items():
        by_shape[adapter[a].shape, adapter[b].shape].append((a, b))
    for pairs in by_shape.values():  # modules of one shape at once
        right = torch.stack([adapter[a].flatten(1) for a, _ in pairs]).double()  # [n, r, in]
        left = torch.stack([adapter[b].flatten(1) for _, b in pairs]).double()  # [n, out, r]
        # B A = Q (R R'^T) Q'^T: the decomposition is one of small matrices
        (q, r), (q2, r2) = torch.linalg.qr(left), torch.linalg.qr(right.mT)
        u, s, vt = torch.linalg.svd(r @ r2.mT, full_matrices=False)
        u, vt = q @ u, vt @ q2.mT  # [n, out, k], [n, k, in]
        largest = u.gather(-2, u.abs().argmax(-2, keepdim=True))  # [n, 1, k]
        sign = torch.where(largest < 0, -1.0, 1.0).to(u.dtype)
        root = s.sqrt()[:, None]  # [n, 1, k]
        padding = right.shape[1] - s.shape[-1]  # a side shorter than r has fewer directions
        new_b = F.pad(u * sign * root, (0, padding))  # [n, out, r]
        new_a = F.pad(vt.mT * sign * root, (0, padding)).mT  # [n, r, in]
        for (a, b), a_values, b_values in zip(pairs, new_a, new_b, strict=True):
            result[a] = a_values.to(adapter[a].dtype).reshape(adapter[a].shape).contiguous()
            result[b] = b_values.to(adapter[b].dtype).reshape(adapter[b].shape).contiguous()
    return result


def rotated(adapter: Adapter, seed: int) -> dict[str, Tensor]:
    """`adapter` with the factors of each module rotated by a random rotation drawn from `seed`.

    dW and the norm of each factor are unchanged up to rounding; other tensors are passed on.
    OralError for factors that are not matrices.
    """
    result = dict(adapter)
    for a, b in _matrix_factors(adapter).items():
        rank = len(adapter[a])
        draw = torch.randn(rank, rank, generator=seeds.generator(seed, "gauge", a)).double()
        rotation, upper = torch.linalg.qr(draw)  # [r, r]
        rotation = (rotation * upper.diagonal().sign()).to(adapter[a].device)  # now uniform
        for name, values in (
            (a, rotation.mT @ adapter[a].flatten(1).double()),
            (b, adapter[b].flatten(1).double() @ rotation),
        ):
            old = adapter[name]
            result[name] = values.to(old.dtype).reshape(old.shape).contiguous()
    return result


def _matrix_factors(adapter: Adapter) -> dict[str, str]:
    """`factors`, and OralError where B A is not a product of matrices (grouped convolutions)."""
    pairs = factors(adapter)
    for a, b in pairs.items():
        shape = adapter[b].shape
        if shape[1] != len(adapter[a]) or shape[2:].numel() != 1:
            raise OralError(
                f"{a!r} {tuple(adapter[a].shape)} and {b!r} {tuple(shape)} are not factors of "
                "matrices: their gauge cannot be changed."
            )
    return pairs


def aligned(adapter: Adapter, reference: Adapter) -> dict[str, Tensor]:
    """The balanced factors of `adapter`, rotated to agree with the factors of `reference`.

    Each module has its own rotation R [r, r], the solution of orthogonal Procrustes for
    |B R - B'|^2 + |R^T A - A'|^2, where B' and A' are the balanced factors of `reference`. dW is
    unchanged up to rounding. Adapters aligned to one reference can be averaged if their dW are
    alike. OralError for factors that are not matrices or have another shape than the reference's.
    """
    result, target = balanced(adapter), balanced(reference)
    check_adapter(adapter, reference)
    for a, b in factors(adapter).items():
        left, right = result[b].flatten(1).double(), result[a].flatten(1).double()
        overlap = left.mT @ target[b].flatten(1).double()  # [r, r]
        overlap = overlap + right @ target[a].flatten(1).double().mT
        u, _, vt = torch.linalg.svd(overlap)
        rotation = u @ vt  # [r, r]
        for name, values in ((a, rotation.mT @ right), (b, left @ rotation)):
            old = adapter[name]
            result[name] = values.to(old.dtype).reshape(old.shape).contiguous()
    return result
