"""Mixtures of zoo adapters: where a generated one may lie, all of its tokens together.

    x_0 -> sum_i w_i a_i,   the w nearest to x_0        span: any w     hull: w >= 0, sum_i w_i = 1

What the best possible denoiser answers, E[x_0 | x_t], is a mean of what it was taught from, so it
lies in their convex hull whatever the noise. What a real one answers outside is its error.

Letters: n adapters of the zoo, b others, l tokens, r numbers a token, s directions of the span.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from oral_lib.errors import OralError

WAYS = ("hull", "span", "none")
MOST = 1024  # directions of a base model's zoo that a generator keeps, at most
ROUNDS = 150  # of `shares`: leave it some 1e-3 of an adapter's size off, always in the hull


@dataclass(frozen=True, eq=False)  # tensors have no single truth value
class ZooProjection:
    """The zoo of a base model as directions, orthonormal over all tokens, and places along them."""

    directions: Tensor  # float32 [s, l, r], the strongest first
    places: Tensor  # float32 [n, s] of the zoo's adapters

    def __post_init__(self) -> None:
        if self.directions.ndim != 3 or self.places.shape[1:] != self.directions.shape[:1]:
            shapes = tuple(self.directions.shape), tuple(self.places.shape)
            raise OralError(f"Mixtures want directions [s, l, r], places [n, s]: got {shapes}.")

    @classmethod
    def of(cls, codes: Tensor, most: int = MOST) -> "ZooProjection":
        """Those of adapters told by `codes` [n, l, r]: `most` directions, or all there are."""
        directions = span(codes, most)
        return cls(directions, codes.flatten(1).float() @ directions.flatten(1).mT)

    def nearest(self, codes: Tensor, way: str) -> Tensor:
        """Codes [b, l, r] of the mixtures that lie nearest to `codes`; `way` "hull" or "span"."""
        flat = self.directions.flatten(1)
        found = codes.flatten(1) @ flat.mT
        if way == "hull":
            found = convex_weights(self.places, found) @ self.places
        return (found @ flat).view_as(codes)


def span(codes: Tensor, most: int) -> Tensor:
    """float32 [s, l, r], orthonormal: the strongest directions about zero of adapters told by
    `codes` [n, l, r], all tokens together; `most` of them, or as many as there are."""
    flat = codes.flatten(1)
    wide = max(1, (1 << 24) // len(flat))  # so that little stands there in float64
    gram = sum(part.double() @ part.double().mT for part in flat.split(wide, 1))
    energy, mix = torch.linalg.eigh(gram)  # rising
    real = energy > 1e-6 * energy[-1]  # less is rounding in what follows
    mix = (mix[:, real] / energy[real].sqrt()).flip(1)[:, :most]
    return (mix.mT.to(flat.dtype) @ flat).view(-1, *codes.shape[1:]).float()


def convex_weights(points: Tensor, targets: Tensor, rounds: int = ROUNDS) -> Tensor:
    """The shares [b, n], none below 0 and their sum 1, of the mixtures of `points` [n, s] that lie
    nearest to `targets` [b, s].

    Accelerated projected gradient (FISTA, Beck and Teboulle 2009). A fixed number of rounds of ten
    small kernels each: the device is not asked when to stop.
    """
    middle = points.mean(0)  # shares add up to 1, so both may be moved alike
    points, targets = points - middle, targets - middle
    gram = points @ points.mT
    rate = 1 / torch.linalg.matrix_norm(gram, 2).clamp_min(1e-30)
    stay = torch.eye(len(points), device=points.device) - rate * gram
    pull = rate * targets @ points.mT
    now = ahead = torch.full_like(pull, 1 / len(points))
    speed = 1.0
    for _ in range(rounds):
        new = simplex(torch.addmm(pull, ahead, stay))
        faster = (1 + math.sqrt(1 + 4 * speed**2)) / 2
        ahead = torch.add(new, new - now, alpha=(speed - 1) / faster)
        now, speed = new, faster
    return now


def simplex(values: Tensor) -> Tensor:
    """The shares [b, n], none below 0 and their sum 1, nearest to `values` [b, n] (Duchi et al.
    2008): all are lowered by as much, by what the largest of them lie above 1 in sum."""
    falling = values.sort(descending=True).values
    count = torch.arange(1, values.shape[1] + 1, device=values.device)
    return (values - ((falling.cumsum(1) - 1) / count).amax(1, keepdim=True)).clamp_min(0)
