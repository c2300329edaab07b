"""A linear map of low rank from the condition to the tokens of an adapter.

    K_0 += U_j V c        for each token j

Letters: b batch, l tokens, k values or r components a token, m width of the condition, q rank.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from oral_lib.method.config import GeneratorConfig


class LinearMap(nn.Module):
    """U_j V c: a linear map of rank q from the condition c [b, m] to each token j, [b, l, k or r].

    V [q, m] is shared by the tokens of a base model. U [l, k or r, q] starts at zero.
    """

    def __init__(self, config: GeneratorConfig, length: int):
        super().__init__()
        self.reduce = nn.Linear(config.width, config.linear, bias=False)
        self.tokens = nn.Parameter(torch.zeros(length * config.size, config.linear))
        self.shape = length, config.size

    def forward(self, c: Tensor) -> Tensor:
        return F.linear(self.reduce(c), self.tokens).unflatten(1, self.shape)
