"""What test files share: one smoke run a test session, one real causal base, one way to refuse."""

import os
from contextlib import contextmanager
from dataclasses import replace

import pytest

import oral_lib  # makes transformers and peft importable beside a torchvision that does not fit

STEPS = 60


@pytest.fixture(scope="session")
def smoke(tmp_path_factory):
    """A run of the smoke scale, made once for all workers; only to be read.

    Its generators are trained for fewer steps than users get: no test asks how good they are.
    """
    import torch

    from oral_lib.experiments import generators

    torch.set_num_threads(1)
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base
    full = generators.preset

    def short(scale, kind):
        preset = full(scale, kind)
        return replace(preset, training=replace(preset.training, steps=STEPS))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(generators, "preset", short)
        return oral_lib.Run("smoke", out=shared / "smoke").ready()


@pytest.fixture(scope="session")
def smollm2():
    """SmolLM2-135M, loaded once a worker; only to be read."""
    return oral_lib.load_base("smollm2-135m")


@pytest.fixture
def refused():
    """`with refused(UsageError, "word"):` - an error of that very kind, in one line, with words."""

    @contextmanager
    def check(kind, *words):
        with pytest.raises(kind) as caught:
            yield
        message = str(caught.value)
        assert type(caught.value) is kind
        assert message.strip() and "\n" not in message
        for word in words:
            assert word in message

    return check
