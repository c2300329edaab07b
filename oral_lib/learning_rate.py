"""Learning rates: linear warm-up, then a linear or a cosine decay to zero.

Steps count from 0, `steps` is the length of the training, `warmup` the number of warm-up steps.
"""

import math


def linear_from_zero(peak: float, step: int, *, steps: int, warmup: int) -> float:
    """Learning rate of a linear schedule whose first step has rate 0; 0 from step `steps` on.

    Equals `get_linear_schedule_with_warmup` of transformers.
    """
    if step < warmup:
        return peak * step / warmup
    return peak * max(0, steps - step) / max(1, steps - warmup)


def linear(peak: float, step: int, *, steps: int, warmup: int, at_peak: int = 1) -> float:
    """Learning rate of a linear schedule in which every step learns.

    Args:
        peak: highest learning rate.
        step: number of the step, from 0.
        steps: length of the training.
        warmup: warm-up steps, at least 1; the last of them has the highest rate.
        at_peak: number of steps with the highest rate, 1 or 2.
    """
    rise = (step + 1) / warmup
    fall = (steps - step) / max(1, steps - warmup + 2 - at_peak)
    return peak * min(rise, fall)


def cosine(peak: float, step: int, *, steps: int, warmup: int) -> float:
    """Learning rate of a linear warm-up followed by half a period of a cosine; 0 from step `steps`
    on."""
    if step < warmup:
        return peak * (step + 1) / warmup
    share = (step - warmup) / max(steps - warmup, 1)
    return peak * 0.5 * (1 + math.cos(math.pi * min(share, 1.0)))
