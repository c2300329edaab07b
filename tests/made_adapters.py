"""Adapters that were not trained, and a small generator, for tests of what is done with them."""

import torch

from oral_lib.method.config import GeneratorConfig
from oral_lib.method.denoiser import DenoiserConfig
from oral_lib.method.recurrence import RecurrenceConfig

SMALL = GeneratorConfig(
    k=128,
    recurrence=RecurrenceConfig(width=32, state=8, head=16, chunk=16),
    denoiser=DenoiserConfig(hidden=32, depth=1),
    text_encoder="tiny",
)


def shaken(base, seed, by=0.1):
    """The shared start of `base`, every value of it moved."""
    draw = torch.Generator().manual_seed(seed)
    start = sorted(base.lora_init().items())
    return {n: t + by * torch.randn(t.shape, generator=draw) for n, t in start}


def equal(one, other):
    """The same tensors by the same names, bit for bit."""
    return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)
