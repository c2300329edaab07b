"""Normalisation: from the raw values of tokens to the numbers that a network reads, and back.

    token = basis (values - center) / scale / |basis|^2      values = scale basis^T token + center

Statistics are fitted on a zoo and shared by all tasks of a base model. Statistics of one task
would decode all-zero tokens to that task's mean adapter, and the condition would leak.

Letters: b batch (adapters), l tokens, k values a token, r components a token.
"""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from oral_lib.errors import OralError, UsageError
from oral_lib.method.tokenization import Layout

_ROUNDING = 1e-6  # a part smaller than this share of the whole is float32 rounding
NOTHING = 1e-12  # absolute floor of that test, for tensors and tokens that are zero everywhere
PREFER_IDENTITY = 1e-3  # weight of the identity where Procrustes leaves a rotation open


@dataclass(frozen=True, eq=False)  # tensors have no single truth value
class TokenStatistics:
    """Center, scale and basis that normalise values [b, l, k]; shared by all tasks of a base model.

    Without a basis a token is its k values, centred and divided by the scale of its tensor
    (the tokens of RPG, arXiv 2501.11587).

    With a basis a token is represented by its first r principal components over the zoo instead of
    k raw values. Adapters trained from one initialisation vary along few directions, which differ
    from token to token; the basis spares the network from learning them. The components of each
    token are rotated so that all tokens of an adapter have nearly the same r numbers (D-TOK).
    Components that a token lacks are zero rows of the basis.

    The rows of a token's basis are orthogonal. Their length is one number for all tokens, chosen
    so that components have unit size, and not 1. `squared_length` stores its square, by which
    `normalise` divides. It is measured on the basis once, when statistics are made or rotated.

    Args:
        center: float32 [l, k], padding 0.
        scale: float32 [l, 1], above 0, one number for each tensor.
        basis: float32 [l, r, k], or None.
        squared_length: float32 [l], measured on the basis if None.

    Raises:
        UsageError: shapes do not fit together.
        OralError: NaN, infinity, or a scale of zero or below.

    >>> from oral_lib.method.tokenization import Layout, encode
    >>> start = {"q.lora_A.weight": torch.ones(2, 3), "q.lora_B.weight": torch.zeros(3, 2)}
    >>> zoo = [{n: t + torch.randn_like(t) for n, t in start.items()} for _ in range(5)]
    >>> layout = Layout.of(start, k=4)
    >>> values, center = encode(layout, zoo), encode(layout, [start])[0]
    >>> statistics = TokenStatistics.fit(layout, values, center, components=4)
    >>> tokens = statistics.normalise(values)  # 5 adapters of 4 tokens of 4 components
    >>> tokens.shape
    torch.Size([5, 4, 4])
    >>> torch.allclose(statistics.denormalise(tokens), values, atol=1e-4)
    True
    """

    center: Tensor
    scale: Tensor
    basis: Tensor | None = None
    squared_length: Tensor | None = None

    def __post_init__(self) -> None:
        center, scale = tuple(self.center.shape), tuple(self.scale.shape)
        if len(center) != 2 or scale != (center[0], 1):
            raise UsageError(
                f"Statistics need center [l, k] and scale [l, 1]: got {center} and {scale}."
            )
        if not self.center.isfinite().all() or not self.scale.isfinite().all():
            raise OralError("Statistics contain NaN or infinity: fit them again.")
        if not (self.scale > 0).all():
            raise OralError("Statistics contain a scale of zero or below: fit them again.")
        if self.basis is None:
            return
        shape = tuple(self.basis.shape)
        if len(shape) != 3 or (shape[0], shape[2]) != center:
            raise UsageError(f"Statistics of {center} need a basis [l, r, k]: got {shape}.")
        if not self.basis.isfinite().all():
            raise OralError("Statistics contain NaN or infinity: fit them again.")
        if self.squared_length is None:
            object.__setattr__(self, "squared_length", _squared_length(self.basis))

    @classmethod
    def fit(
        cls,
        layout: Layout,
        values: Tensor,
        center: Tensor | None = None,
        components: int = 0,
        *,
        align: bool = True,
    ) -> "TokenStatistics":
        """Statistics of a zoo.

        The scale of a tensor is the root mean square of (value - center) over all adapters and its
        unpadded values. It is 1 where that is rounding noise.

        Args:
            layout: how the adapters are cut into tokens.
            values: [b, l, k], all tasks and seeds of a base model together.
            center: [l, k], the shared LoRA initialisation, `encode(layout, [init])[0]`. All-zero
                tokens then decode exactly to it, that is, to the base model. If None, the center of
                a tensor is its mean (RPG).
            components: r principal components a token; 0 for no basis.
            align: rotate the components of each token so that they agree over tokens.

        Raises:
            UsageError: values or center do not have the shape of the layout.
        """
        if values.ndim != 3 or values.shape[1:] != (layout.l, layout.k) or not len(values):
            raise UsageError(
                f"Statistics need values {('b', layout.l, layout.k)} of one adapter or more, "
                f"got {tuple(values.shape)}."
            )
        if center is not None and tuple(center.shape) != (layout.l, layout.k):
            raise UsageError(
                f"The center has the shape {tuple(center.shape)}, the layout needs "
                f"{(layout.l, layout.k)}: use encode(layout, [init])[0]."
            )
        mask, _, owner = layout.on(values.device)
        values = torch.where(mask, values.float(), 0.0)  # [b, l, k]
        if center is None:
            mean = _mean(layout, values.sum((0, 2), dtype=torch.float64), len(values))
            center = mean[owner, None].float()  # [l, 1]
        center = torch.where(mask, center.to(values.device, torch.float32), 0.0)  # [l, k]
        rms = _rms(layout, values - center)  # [tensors]
        noise = _ROUNDING * _rms(layout, values) + NOTHING
        scale = torch.where(rms > noise, rms, 1.0)[owner, None]  # [l, 1]
        plain = cls(center, scale.float())
        if not components:
            return plain
        basis = _principal_directions(plain.normalise(values), components, align)
        return cls(center, plain.scale, basis)

    def normalise(self, values: Tensor) -> Tensor:
        """Tokens [b, l, k or r] of `values` [b, l, k]; padding stays 0."""
        plain = (values - self.center) / self.scale  # [b, l, k]
        if self.basis is None:
            return plain
        products = torch.einsum("blk,lrk->blr", plain, self.basis)
        return products / self.squared_length[:, None]  # [b, l, r]

    def denormalise(self, tokens: Tensor) -> Tensor:
        """float32 values [b, l, k] of `tokens` [b, l, k or r]."""
        tokens = tokens.float()
        if self.basis is not None:
            tokens = torch.einsum("blr,lrk->blk", tokens, self.basis)
        return torch.addcmul(self.center, tokens, self.scale)  # [b, l, k]

    def rotated(self, rotation: Tensor) -> "TokenStatistics":
        """Statistics whose tokens are `tokens @ rotation`, for an orthogonal float [r, r].

        UsageError for statistics without components.
        """
        if self.basis is None:
            raise UsageError(
                "Statistics without components cannot be rotated: fit them with components."
            )
        return replace(self, basis=rotation.mT @ self.basis, squared_length=None)

    def mask(self, layout: Layout) -> Tensor:
        """bool [l, k or r] on the CPU: the numbers of a token that carry information."""
        return layout.mask if self.basis is None else self.basis.cpu().square().sum(-1) > 0

    def to(self, device: str | torch.device) -> "TokenStatistics":
        """The same statistics on `device`."""
        if self.basis is None:
            return TokenStatistics(self.center.to(device), self.scale.to(device))
        tensors = self.center, self.scale, self.basis, self.squared_length
        return TokenStatistics(*(tensor.to(device) for tensor in tensors))


def procrustes_rotation(codes: Tensor, targets: Tensor) -> Tensor:
    """The orthogonal matrix R [r, r] that minimises |codes R - targets|; it may reflect.

    Orthogonal Procrustes, computed in float64. Where the codes leave R free it stays close to the
    identity. Components that are zero in all codes stay as they are.

    Args:
        codes: [t, r] components of t tasks.
        targets: [t, r] components that they should have.
    """
    active = codes.any(0)  # [r]
    cross = codes[:, active].double().mT @ targets[:, active].double()  # [active, active]
    identity = torch.eye(len(cross), dtype=cross.dtype, device=cross.device)
    # a small multiple of the identity decides where the codes leave R free; elsewhere it moves R
    # by about PREFER_IDENTITY
    left, _, right = torch.linalg.svd(cross + PREFER_IDENTITY * cross.norm() * identity)
    rotation = torch.eye(codes.shape[1], dtype=codes.dtype, device=codes.device)  # [r, r]
    rotation[active.nonzero(), active.nonzero().mT] = (left @ right).to(codes.dtype)
    return rotation


def _squared_length(basis: Tensor) -> Tensor:
    """[l] squared length of the rows of `basis` [l, r, k]; 1 for a token without directions.

    The Gram matrix G of a token is that number times a projection P, and trace(P P) = trace(P), so
    the number is trace(G G) / trace(G).
    """
    gram = basis @ basis.mT  # [l, r, r]
    trace = gram.diagonal(dim1=1, dim2=2).sum(1)  # [l]
    present = trace > 0
    squared = gram.square().sum((1, 2)) / trace.where(present, 1.0)  # [l]
    return squared.where(present, 1.0)


def _principal_directions(tokens: Tensor, components: int, align: bool) -> Tensor:
    """Principal directions [l, components, k] about zero of `tokens` [b, l, k], strongest first.

    All have the length that gives components of unit size; zero rows where a token has fewer.
    They are computed from the Gram matrices of the adapters [l, b, b], which are small where
    tokens are long. With `align`, the components [b, r] of each token are rotated (orthogonal
    Procrustes) towards the components of all tokens together, so that the network has one set of
    numbers to learn instead of l.
    """
    gram = torch.einsum("alk,blk->lab", tokens, tokens).double()  # [l, b, b]
    energy, vectors = _strongest(gram, components)  # [l, r], [l, b, r]
    present = energy > _ROUNDING * energy[:, :1].clamp_min(NOTHING)  # [l, r]
    root = torch.where(present, energy.clamp_min(0).sqrt(), 0.0)  # [l, r] singular values
    eye = torch.eye(root.shape[1], dtype=root.dtype, device=root.device)
    rotation = eye.expand(len(root), -1, -1)  # [l, r, r]
    if align:
        joint_energy, joint_vectors = _strongest(gram.mean(0), components)  # [r], [b, r]
        joint = joint_vectors * joint_energy.clamp_min(0).sqrt()  # [b, r] joint components
        left, _, right = torch.linalg.svd((vectors * root[:, None]).mT @ joint)  # [l, r, r] each
        joint_present = joint_energy > _ROUNDING * joint_energy[:1].clamp_min(NOTHING)  # [r]
        rotation = left @ right * joint_present  # [l, r, r]
    rotation = torch.where(present[..., None], rotation, 0.0)  # [l, r, r]
    weights = vectors / root.where(present, 1.0)[:, None] @ rotation  # [l, b, r]
    basis = torch.einsum("lar,alk->lrk", weights.float(), tokens)  # [l, r, k]
    length = (energy[present].sum() / (present.sum() * len(tokens)).clamp_min(1)).sqrt()
    return F.pad(basis * length.float(), (0, 0, 0, components - basis.shape[1]))


def _strongest(gram: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """(values [..., m], vectors [..., b, m]) of the m = min(n, b) largest eigenvalues, falling."""
    energy, vectors = torch.linalg.eigh(gram)
    return energy[..., -n:].flip(-1), vectors[..., -n:].flip(-1)


def _mean(layout: Layout, of_tokens: Tensor, adapters: int) -> Tensor:
    """float64 [tensors]: sums over tokens [l] of `adapters`, divided by the number of values."""
    sizes = torch.tensor(layout.sizes, device=of_tokens.device, dtype=torch.float64)
    sums = torch.zeros_like(sizes).index_add_(0, layout.on(of_tokens.device).owner, of_tokens)
    return sums / (sizes * adapters).clamp_min(1)


def _rms(layout: Layout, values: Tensor) -> Tensor:
    """float64 [tensors]: root mean square of `values` [b, l, k] whose padding is 0."""
    norms = torch.linalg.vector_norm(values, dim=(0, 2), dtype=torch.float64)  # [l]
    return _mean(layout, norms**2, len(values)).sqrt()
