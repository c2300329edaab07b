"""Adapters that were not trained, for tests that ask what is done with them."""

import torch


def shaken(base, seed, by=0.1):
    """The shared start of `base`, every value of it moved."""
    draw = torch.Generator().manual_seed(seed)
    start = sorted(base.lora_init().items())
    return {n: t + by * torch.randn(t.shape, generator=draw) for n, t in start}


def equal(one, other):
    """The same tensors by the same names, bit for bit."""
    return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)
