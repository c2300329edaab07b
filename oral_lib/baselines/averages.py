"""Adapters computed from stored adapters: averages (soup), Gaussians of each weight, added noise.

An adapter average or a Gaussian of each weight is only meaningful because all adapters of a zoo
share one LoRA initialisation. Both measure how far the task's adapters suffice without learning.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from oral_lib import seeds
from oral_lib.errors import OralError
from oral_lib.zoo.store import Member

NOISE = {"noise_small": 0.1, "noise_large": 1.0}  # in standard deviations of each tensor


def gaussian(adapters: Sequence[dict[str, Tensor]], n: int, seed: int) -> list[dict[str, Tensor]]:
    """`n` adapters whose weights are independent Gaussians, each with its mean and standard
    deviation over `adapters`.

    Raises:
        OralError: for fewer than two adapters.
    """
    if len(adapters) < 2:
        raise OralError(f"a Gaussian of {len(adapters)} adapters: at least two are required.")
    draw = seeds.generator(seed, "gaussian")
    samples: list[dict[str, Tensor]] = [{} for _ in range(n)]
    for name in sorted(adapters[0]):
        values = torch.stack([a[name].float() for a in adapters])
        mean, std = values.mean(0), values.std(0)
        for sample in samples:
            noise = torch.randn(mean.shape, generator=draw).to(mean.device)
            sample[name] = (mean + std * noise).to(adapters[0][name].dtype)
    return samples


def noised(
    adapters: Sequence[dict[str, Tensor]], amplitude: float, seed: int
) -> list[dict[str, Tensor]]:
    """Each of `adapters` plus white noise of `amplitude` standard deviations of each tensor.

    `NOISE` has the two amplitudes of the result table. A tenth of a standard deviation should
    hardly change a useful adapter; a full one is larger than what B learnt from zero.
    """
    noisy = []
    for i, adapter in enumerate(adapters):
        draw = seeds.generator(seed, "noise", i)
        copy = {}
        for name in sorted(adapter):
            tensor = adapter[name].float()
            noise = torch.randn(tensor.shape, generator=draw).to(tensor.device)
            scale = tensor.std(correction=0)  # 0 for a single value
            copy[name] = (tensor + amplitude * scale * noise).to(adapter[name].dtype)
        noisy.append(copy)
    return noisy


def soup(adapters: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The mean of adapters, tensor by tensor. OralError without any adapter."""
    if not adapters:
        raise OralError("an adapter average (soup) of no adapters: the zoo of this task is empty.")
    return {name: torch.stack([a[name] for a in adapters]).mean(0) for name in adapters[0]}


def soup_all(members: Sequence[Member]) -> dict[str, Tensor]:
    """The mean of the averages of all tasks: every task has the same weight."""
    names = sorted({m.task for m in members})
    return soup([soup([m.tensors for m in members if m.task == name]) for name in names])
