"""Learning rates: up to the peak, down to zero, and equal to the schedules they are named after."""

import pytest
import torch
from transformers import get_linear_schedule_with_warmup

from oral_lib import learning_rate


@pytest.mark.parametrize("warmup", [0, 1, 5])
def test_linear_from_zero_is_the_schedule_of_transformers(warmup):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.3)
    schedule = get_linear_schedule_with_warmup(optimizer, warmup, 20)
    for step in range(25):
        rate = learning_rate.linear_from_zero(0.3, step, steps=20, warmup=warmup)
        assert rate == pytest.approx(schedule.get_last_lr()[0], abs=1e-12)
        optimizer.step()
        schedule.step()


@pytest.mark.parametrize("at_peak", [1, 2])
def test_every_step_of_a_linear_schedule_learns_and_the_stated_number_has_the_peak(at_peak):
    rates = [
        learning_rate.linear(0.5, step, steps=20, warmup=4, at_peak=at_peak) for step in range(20)
    ]
    assert all(rate > 0 for rate in rates) and rates.count(0.5) == at_peak
    assert rates[:4] == sorted(rates[:4]) and rates[3:] == sorted(rates[3:], reverse=True)
    assert learning_rate.linear(0.5, 20, steps=20, warmup=4, at_peak=at_peak) == 0


def test_a_cosine_ends_at_zero_and_stays_there():
    rates = [learning_rate.cosine(2.0, step, steps=20, warmup=4) for step in range(30)]
    assert rates[:5] == [0.5, 1.0, 1.5, 2.0, 2.0]
    assert rates[12] == pytest.approx(1.0), "halfway"
    assert rates[4:21] == sorted(rates[4:21], reverse=True)
    assert rates[20:] == pytest.approx([0.0] * 10, abs=1e-12)
