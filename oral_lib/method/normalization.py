"""Statistics: between the values of tokens and the numbers that a network reads and writes.

Letters: b batch (adapters), l tokens, k values a token, r components.

values = scale * (token @ basis) + center, fitted on a zoo and shared by all tasks of a base model.
"""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from oral_lib.errors import OralError, UsageError
from oral_lib.method.tokenization import Layout


@dataclass(frozen=True, eq=False)  # tensors have no single truth value
class TokenStatistics:
    """What takes values [b, l, k] to tokens of unit size and back: values = scale * token + center.

    Shared by all tasks of a base model: statistics of one task would return that task's mean
    adapter from all-zero tokens, and the condition would leak.

    With a `basis` a token is told by its first r principal components over the zoo instead of k
    values, values = scale * (token @ basis) + center: adapters of one start differ in few
    directions, other ones in every token, and a network need not find them. Each token's are
    turned so that an adapter has, as far as can be, the same r numbers in all of its tokens; of a
    token of fewer directions they are smaller. `rotated` turns all of them alike. Tokens of zeros
    alone stay the center.
    """

    center: Tensor  # float32 [l, k], padding 0
    scale: Tensor  # float32 [l, 1], above 0, one number a tensor
    basis: Tensor | None = None  # float32 [l, r, k], zero for components that the zoo lacks

    def __post_init__(self) -> None:
        center, scale = tuple(self.center.shape), tuple(self.scale.shape)
        if len(center) != 2 or scale != (center[0], 1):
            raise UsageError(f"Statistics want center [l, k], scale [l, 1]: got {center}, {scale}.")
        if not self.center.isfinite().all() or not self.scale.isfinite().all():
            raise OralError("Statistics hold NaN or infinite values: fit them again.")
        if not (self.scale > 0).all():
            raise OralError("Statistics hold a scale of zero or below: fit them again.")
        if self.basis is not None:
            shape = tuple(self.basis.shape)
            if len(shape) != 3 or (shape[0], shape[2]) != center:
                raise UsageError(f"Statistics of {center} want a basis [l, r, k]: got {shape}.")
            if not self.basis.isfinite().all():
                raise OralError("Statistics hold NaN or infinite values: fit them again.")

    @classmethod
    def fit(
        cls,
        layout: Layout,
        values: Tensor,
        center: Tensor | None = None,
        components: int = 0,
        *,
        turned: bool = True,
    ) -> "TokenStatistics":
        """Statistics of `values` [b, l, k], all tasks and seeds of a base model together; with a
        basis of that many principal components a token, if `components` is not 0; without `turned`
        each token's stay as they are, alike in none.

        `center` [l, k] is the shared LoRA initialisation, `encode(layout, [init])[0]`: all-zero
        tokens then decode to it exactly, that is, to the base model. Without it the center of a
        tensor is its mean (RPG). The scale of a tensor is the root mean square of (value - center)
        over all adapters and its unpadded values, and 1 where that is rounding noise.
        """
        if values.ndim != 3 or values.shape[1:] != (layout.l, layout.k) or not len(values):
            raise UsageError(
                f"Statistics want values {('b', layout.l, layout.k)} of one adapter or more, "
                f"got {tuple(values.shape)}."
            )
        if center is not None and tuple(center.shape) != (layout.l, layout.k):
            raise UsageError(
                f"The center has the shape {tuple(center.shape)}, the layout wants "
                f"{(layout.l, layout.k)}: use encode(layout, [init])[0]."
            )
        mask, _, owner = layout.on(values.device)
        values = torch.where(mask, values.float(), 0.0)
        if center is None:
            mean = _mean(layout, values.sum((0, 2), dtype=torch.float64), len(values))
            center = mean[owner, None].float()
        center = torch.where(mask, center.to(values.device, torch.float32), 0.0)
        rms = _rms(layout, values - center)
        noise = 1e-6 * _rms(layout, values) + 1e-12  # a constant tensor leaves float32 rounding
        scale = torch.where(rms > noise, rms, 1.0)[owner, None]
        plain = cls(center, scale.float())
        if not components:
            return plain
        return cls(center, plain.scale, _basis(plain.normalise(values), components, turned))

    def normalise(self, values: Tensor) -> Tensor:
        """Tokens [b, l, k or r] of `values` [b, l, k]; padding stays 0."""
        plain = (values - self.center) / self.scale
        if self.basis is None:
            return plain
        gram = self.basis @ self.basis.mT  # [l, r, r] a projection, but for one number a token
        trace = gram.diagonal(dim1=1, dim2=2).sum(1)
        size = gram.square().sum((1, 2)) / trace.where(trace > 0, 1.0)
        found = torch.einsum("blk,lrk->blr", plain, self.basis)
        return found / size.where(trace > 0, 1.0)[:, None]

    def denormalise(self, tokens: Tensor) -> Tensor:
        """float32 values [b, l, k] of `tokens` [b, l, k or r]."""
        tokens = tokens.float()
        if self.basis is not None:
            tokens = torch.einsum("blr,lrk->blk", tokens, self.basis)
        return torch.addcmul(self.center, tokens, self.scale)

    def rotated(self, turn: Tensor) -> "TokenStatistics":
        """The same, but its tokens are `tokens @ turn`, turn float [r, r], orthogonal. UsageError
        where there are no components to turn."""
        if self.basis is None:
            raise UsageError("Statistics without components cannot be turned: fit them with some.")
        return replace(self, basis=turn.mT @ self.basis)

    def mask(self, layout: Layout) -> Tensor:
        """bool [l, k or r]: what of a token means something."""
        return layout.mask if self.basis is None else self.basis.cpu().square().sum(-1) > 0

    def to(self, device: str | torch.device) -> "TokenStatistics":
        """The same statistics on `device`."""
        basis = self.basis if self.basis is None else self.basis.to(device)
        return TokenStatistics(self.center.to(device), self.scale.to(device), basis)


def procrustes_rotation(codes: Tensor, others: Tensor) -> Tensor:
    """The turn [r, r] that brings `codes` [t, r] as near as can be to `others` [t, r], and moves
    nothing further than it must (orthogonal Procrustes), in the dtype of `codes`. Components that
    no code has stay as they are: the others turn among themselves."""
    real = codes.any(0)
    pull = codes[:, real].double().mT @ others[:, real].double()
    stay = torch.eye(len(pull), dtype=pull.dtype, device=pull.device)
    # where the codes leave the turn open, stay; what they say clearly is missed by about 1e-3
    left, _, right = torch.linalg.svd(pull + 1e-3 * pull.norm() * stay)
    turn = torch.eye(codes.shape[1], dtype=codes.dtype, device=codes.device)
    turn[real.nonzero(), real.nonzero().mT] = (left @ right).to(codes.dtype)
    return turn


def _basis(tokens: Tensor, components: int, turned: bool) -> Tensor:
    """[l, components, k] principal directions of `tokens` [b, l, k] about zero, as long as gives
    components of unit size; zero where b adapters have no more of them.

    By the Gram matrices of the adapters [l, b, b], which are small where tokens are long. Principal
    directions are known up to a turn: each token's are turned (orthogonal Procrustes) to bring the
    components of the adapters in it, [b, r], as near as can be to those in all tokens together, the
    strongest first. A network then has one thing to learn and not l of them.
    """
    gram = torch.einsum("alk,blk->lab", tokens, tokens).double()
    energy, mixes = _strongest(gram, components)
    found = energy > 1e-6 * energy[:, :1].clamp_min(1e-12)
    root = torch.where(found, energy.clamp_min(1e-30).sqrt(), 0.0)
    turn = torch.eye(root.shape[1], dtype=root.dtype, device=root.device).expand(len(root), -1, -1)
    if turned:
        joint, shared = _strongest(gram.mean(0), components)
        shared = shared * joint.clamp_min(0).sqrt()  # [b, r] what every token's are to be like
        left, _, right = torch.linalg.svd((mixes * root[:, None]).mT @ shared)
        real = joint > 1e-6 * joint[:1].clamp_min(1e-12)  # there may be fewer than asked for
        turn = left @ right * real  # [l, r, r]
    turn = torch.where(found[..., None], turn, 0.0)
    mixes = mixes / root.where(found, 1.0)[:, None] @ turn
    basis = torch.einsum("lar,alk->lrk", mixes.float(), tokens)
    size = (energy[found].sum() / (found.sum() * len(tokens)).clamp_min(1)).sqrt()
    return F.pad(basis * size.float(), (0, 0, 0, components - basis.shape[1]))


def _strongest(gram: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """(values [..., m], vectors [..., b, m]) of the m = min(n, b) largest eigenvalues."""
    energy, mixes = torch.linalg.eigh(gram)
    return energy[..., -n:].flip(-1), mixes[..., -n:].flip(-1)


def _mean(layout: Layout, of_tokens: Tensor, adapters: int) -> Tensor:
    """float64 [tensors]: sums over tokens [l] of `adapters`, divided by the number of values."""
    sizes = torch.tensor(layout.sizes, device=of_tokens.device, dtype=torch.float64)
    sums = torch.zeros_like(sizes).index_add_(0, layout.on(of_tokens.device).owner, of_tokens)
    return sums / (sizes * adapters).clamp_min(1)


def _rms(layout: Layout, values: Tensor) -> Tensor:
    """float64 [tensors]: root mean square of `values` [b, l, k] whose padding is 0."""
    norms = torch.linalg.vector_norm(values, dim=(0, 2), dtype=torch.float64)
    return _mean(layout, norms**2, len(values)).sqrt()
