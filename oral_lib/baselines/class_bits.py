"""Baselines of binary tasks that know more than the sentence: the complement, and the class bits.

Neither can be used for a task that is described in words. They measure how much of an unseen
adapter follows from adapters of the zoo.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from oral_lib.errors import OralError
from oral_lib.tasks import binary
from oral_lib.zoo.store import Member

RIDGE_PENALTIES = (1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)  # of squared weights; by leave-one-out error


def exchanged(adapter: dict[str, Tensor]) -> dict[str, Tensor]:
    """The adapter of the complement: the same LoRA with the rows of no and yes exchanged.

    With heads initialised at zero and the same rows a task and its complement train to exactly
    this. So a training set that has the complement of a task has its adapter.
    """
    return {n: tensor if ".lora_" in n else tensor.flip(0) for n, tensor in adapter.items()}


class RidgeOfBits:
    """Linear regression of adapters on the ten class bits of their task, with a ridge penalty.

    The prediction is a combination of the adapters of the zoo. Its penalty has the least squared
    leave-one-out error over the zoo.

    Args:
        members: one adapter for each binary task of the zoo.

    Raises:
        OralError: for fewer than two adapters, or an adapter of another kind of task.
    """

    def __init__(self, members: Sequence[Member]):
        if len(members) < 2:
            raise OralError(f"a regression on {len(members)} adapters: at least two are required.")
        parsed = [binary.parse(member.task) for member in members]
        if None in parsed:
            raise OralError(f"{members[parsed.index(None)].task} is not a split of ten classes.")
        self.adapters = [member.tensors for member in members]
        bits = torch.stack([_bits(positive) for _, positive in parsed])  # [n, 10]
        self.mean = bits.mean(0)
        self.bits = bits - self.mean
        kernel = self.bits @ self.bits.T  # [n, n]
        gram = _centred_gram(self.adapters)
        errors = {penalty: _left_out_error(kernel, gram, penalty) for penalty in RIDGE_PENALTIES}
        self.penalty = min(RIDGE_PENALTIES, key=errors.get)

    def shares(self, positive: frozenset[int]) -> Tensor:
        """[n] the weight of each adapter of the zoo in the prediction; the weights add up to 1."""
        n = len(self.bits)
        kernel = self.bits @ self.bits.T + self.penalty * torch.eye(n, dtype=torch.float64)
        of_bits = torch.linalg.solve(kernel, self.bits @ (_bits(positive) - self.mean))  # [n]
        return of_bits - of_bits.mean() + 1 / n  # centred adapters: Y - mean Y

    def adapter(self, positive: frozenset[int]) -> dict[str, Tensor]:
        """The predicted adapter of the task whose positive classes are `positive`."""
        shares = self.shares(positive).tolist()
        return {
            name: sum(s * a[name].double() for s, a in zip(shares, self.adapters, strict=True)).to(
                tensor.dtype
            )
            for name, tensor in self.adapters[0].items()
        }


def _bits(positive: frozenset[int]) -> Tensor:
    """[10] float64, 1 for the classes of `positive`, else 0."""
    return torch.tensor(
        [float(i in positive) for i in range(binary.N_CLASSES)], dtype=torch.float64
    )


def _centred_gram(adapters: Sequence[dict[str, Tensor]]) -> Tensor:
    """[n, n] inner products of adapters, minus their mean; tensor by tensor, to save memory."""
    gram = torch.zeros(len(adapters), len(adapters), dtype=torch.float64)
    for name in adapters[0]:
        values = torch.stack([adapter[name].flatten() for adapter in adapters]).double()
        values -= values.mean(0)
        gram += values @ values.T
    return gram


def _left_out_error(kernel: Tensor, gram: Tensor, penalty: float) -> float:
    """The squared error of predicting each adapter from the others, with an intercept.

    With G = (kernel + penalty)^-1 the residuals of the fit are penalty G Y. The leverage of adapter
    i is 1 - penalty G_ii + 1/n. The residual when i is left out is the quotient of its residual and
    1 minus its leverage.
    """
    n = len(kernel)
    inverse = penalty * torch.linalg.inv(kernel + penalty * torch.eye(n, dtype=torch.float64))
    squares = torch.einsum("ij,jk,ik->i", inverse, gram, inverse)  # [n]
    left = (inverse.diagonal() - 1 / n).clamp_min(1e-9)
    return float((squares / left.square()).sum())
