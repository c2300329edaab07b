"""A step that is replayed is the step that was called."""

import torch

from oral_lib.devices import Replay

CPU = torch.device("cpu")


def test_on_a_cpu_every_step_is_the_plain_call():
    called = []
    step = Replay(called.append, CPU)
    for key in ("a", "b", "a", "a", "b"):
        assert step(key) is None
    assert called == ["a", "b", "a", "a", "b"]


def test_a_step_reads_and_writes_where_its_tensors_lie():
    x, y = torch.zeros(3), torch.zeros(3)
    step = Replay(lambda scale: y.copy_(scale * x), CPU)
    for value in (1.0, 2.0, 3.0):
        x.fill_(value)
        step(2)
        assert y.tolist() == [2 * value] * 3
