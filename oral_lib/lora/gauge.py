"""Gauge: one weight change has many factors, B A = (B R)(R^-1 A) for every invertible R.

    balanced   B A = U S V^T, so that B = U sqrt(S) and A = sqrt(S) V^T: the same for every R
    turned     B R and R^T A for a random rotation R a module: another gauge, the same weights

A zoo that shares its LoRA start keeps one gauge by itself. Letters: r rank, A [r, in, ...],
B [out, r, ...].
"""

from collections import defaultdict

import torch
import torch.nn.functional as F
from torch import Tensor

from oral_lib import seeds
from oral_lib.lora.adapter import Adapter, factors


def balanced(adapter: Adapter) -> dict[str, Tensor]:
    """`adapter` with the balanced factors of every B A, singular values falling; other tensors are
    passed on as they are.

    Of the two signs of a singular pair the one is taken that makes the largest entry of its column
    of B positive. dW is unchanged up to rounding; equal singular values leave a freedom.
    """
    made, alike = dict(adapter), defaultdict(list)
    for a, b in factors(adapter).items():
        alike[adapter[a].shape, adapter[b].shape].append((a, b))
    for pairs in alike.values():  # modules of one shape at once
        right = torch.stack([adapter[a].flatten(1) for a, _ in pairs]).double()  # [n, r, in]
        left = torch.stack([adapter[b].flatten(1) for _, b in pairs]).double()  # [n, out, r]
        # B A = Q (R R'^T) Q'^T: the decomposition is one of small matrices
        (q, r), (q2, r2) = torch.linalg.qr(left), torch.linalg.qr(right.mT)
        u, s, vt = torch.linalg.svd(r @ r2.mT, full_matrices=False)
        u, vt = q @ u, vt @ q2.mT
        largest = u.gather(-2, u.abs().argmax(-2, keepdim=True))  # [n, 1, k]
        sign = torch.where(largest < 0, -1.0, 1.0).to(u.dtype)
        root = s.sqrt()[:, None]  # [n, 1, k]
        spare = right.shape[1] - s.shape[-1]  # a side shorter than r leaves nothing more to hold
        new_b = F.pad(u * sign * root, (0, spare))
        new_a = F.pad(vt.mT * sign * root, (0, spare)).mT
        for (a, b), at, bt in zip(pairs, new_a, new_b, strict=True):
            made[a] = at.to(adapter[a].dtype).reshape(adapter[a].shape).contiguous()
            made[b] = bt.to(adapter[b].dtype).reshape(adapter[b].shape).contiguous()
    return made


def rotated(adapter: Adapter, seed: int) -> dict[str, Tensor]:
    """`adapter` with the factors of each module turned by a rotation of its own, drawn from `seed`.

    dW and the size of either factor are unchanged up to rounding; other tensors are passed on.
    """
    made = dict(adapter)
    for a, b in factors(adapter).items():
        rank = len(adapter[a])
        draw = torch.randn(rank, rank, generator=seeds.generator(seed, "gauge", a)).double()
        turn, upper = torch.linalg.qr(draw)
        turn = (turn * upper.diagonal().sign()).to(adapter[a].device)  # every rotation alike likely
        for name, new in (
            (a, turn.mT @ adapter[a].flatten(1).double()),
            (b, adapter[b].flatten(1).double() @ turn),
        ):
            made[name] = new.to(adapter[name].dtype).reshape(adapter[name].shape).contiguous()
    return made
