"""Projection of a generated adapter onto the span or the convex hull of the zoo's adapters.

    x_0 -> sum_i w_i a_i,   the w closest to x_0        span: any w     hull: w >= 0, sum_i w_i = 1

The optimal denoiser, E[x_0 | x_t], is a mean of the training adapters, so its output is in their
convex hull at any noise level. What a network predicts outside of the hull is its error. All tokens
of an adapter share one w (D-DIF-14).

Letters: n adapters of the zoo, b other adapters, l tokens, r numbers a token, s directions.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from oral_lib.errors import OralError

PROJECTIONS = ("hull", "span", "none")
MAX_DIRECTIONS = 1024  # of a base model's zoo that a generator stores
_ITERATIONS = 150  # of `convex_weights`: its error is then about 1e-3 of an adapter's norm
_ROUNDING = 1e-6  # directions with a smaller share of the largest energy are float32 rounding
SMALLEST_NORM = 1e-30  # avoids a division by zero where all points are equal


@dataclass(frozen=True, eq=False)  # tensors have no single truth value
class ZooProjection:
    """The zoo of a base model as orthonormal directions over all tokens, and its coordinates.

    Args:
        directions: float32 [s, l, r], orthonormal, the strongest first.
        coordinates: float32 [n, s] of the zoo's adapters along the directions.

    Raises:
        OralError: shapes do not fit together.

    >>> zoo = torch.randn(6, 4, 3)  # 6 adapters of 4 tokens of 3 components
    >>> projection = ZooProjection.of(zoo)
    >>> projection.coordinates.shape
    torch.Size([6, 6])
    >>> average = zoo[:2].mean(0, keepdim=True)  # a convex combination
    >>> torch.allclose(projection.nearest(average, "hull"), average, atol=1e-2)
    True
    """

    directions: Tensor
    coordinates: Tensor

    def __post_init__(self) -> None:
        if self.directions.ndim != 3 or self.coordinates.shape[1:] != self.directions.shape[:1]:
            shapes = tuple(self.directions.shape), tuple(self.coordinates.shape)
            raise OralError(
                f"A projection needs directions [s, l, r] and coordinates [n, s]: got {shapes}."
            )

    @classmethod
    def of(cls, codes: Tensor, most: int = MAX_DIRECTIONS) -> "ZooProjection":
        """The projection onto the adapters `codes` [n, l, r]; at most `most` directions."""
        directions = span(codes, most)
        return cls(directions, codes.flatten(1).float() @ directions.flatten(1).mT)

    def nearest(self, codes: Tensor, kind: str) -> Tensor:
        """The points [b, l, r] of the `kind`, "hull" or "span", closest to `codes` [b, l, r]."""
        directions = self.directions.flatten(1)  # [s, l r]
        coordinates = codes.flatten(1) @ directions.mT  # [b, s]
        if kind == "hull":
            coordinates = convex_weights(self.coordinates, coordinates) @ self.coordinates
        return (coordinates @ directions).view_as(codes)


def span(codes: Tensor, most: int) -> Tensor:
    """Orthonormal directions, float32 [s, l, r], of the adapters `codes` [n, l, r] about zero.

    The strongest come first. There are at most `most`, fewer where the adapters span fewer.
    """
    flat = codes.flatten(1)  # [n, l r]
    width = max(1, (1 << 24) // len(flat))  # columns converted to float64 at once
    gram = sum(part.double() @ part.double().mT for part in flat.split(width, 1))  # [n, n]
    energy, vectors = torch.linalg.eigh(gram)  # rising
    present = energy > _ROUNDING * energy[-1]
    weights = (vectors[:, present] / energy[present].sqrt()).flip(1)[:, :most]  # [n, s]
    return (weights.mT.to(flat.dtype) @ flat).view(-1, *codes.shape[1:]).float()  # [s, l, r]


def convex_weights(points: Tensor, targets: Tensor, iterations: int = _ITERATIONS) -> Tensor:
    """Convex weights [b, n] of the combinations of `points` [n, s] closest to `targets` [b, s].

    Weights are non-negative and rows sum to 1. Accelerated projected gradient (FISTA, Beck and
    Teboulle 2009) on |w points - target|^2 / 2. The number of iterations is fixed, so the host does
    not wait for the device.
    """
    center = points.mean(0)  # weights sum to 1, so points and targets may be shifted alike
    points, targets = points - center, targets - center
    gram = points @ points.mT  # [n, n]
    rate = 1 / torch.linalg.matrix_norm(gram, 2).clamp_min(SMALLEST_NORM)  # 1 / Lipschitz constant
    shrink = torch.eye(len(points), device=points.device) - rate * gram  # [n, n]
    pull = rate * targets @ points.mT  # [b, n]
    # w <- simplex(v - rate (v gram - targets points^T)) at the extrapolated point v
    weights = ahead = torch.full_like(pull, 1 / len(points))
    momentum = 1.0
    for _ in range(iterations):
        new = simplex(torch.addmm(pull, ahead, shrink))
        # t' = (1 + sqrt(1 + 4 t^2)) / 2,   v = w' + (t - 1) / t' (w' - w)
        next_momentum = (1 + math.sqrt(1 + 4 * momentum**2)) / 2
        ahead = torch.add(new, new - weights, alpha=(momentum - 1) / next_momentum)
        weights, momentum = new, next_momentum
    return weights


def simplex(values: Tensor) -> Tensor:
    """The convex weights [b, n] closest to `values` [b, n] (Duchi et al. 2008).

    All values of a row are lowered by one threshold, max_j (sum of the j largest - 1) / j, and
    negative ones are set to 0.
    """
    falling = values.sort(descending=True).values  # [b, n]
    count = torch.arange(1, values.shape[1] + 1, device=values.device)  # j
    return (values - ((falling.cumsum(1) - 1) / count).amax(1, keepdim=True)).clamp_min(0)
