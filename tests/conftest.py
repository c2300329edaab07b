"""What test files share: one smoke run a test session, one real causal base, one way to refuse."""

import os
from contextlib import contextmanager

import pytest

import oral_lib  # makes transformers and peft importable beside a torchvision that does not fit


@pytest.fixture(scope="session")
def smoke(tmp_path_factory):
    """The zoo and generators of the smoke scale, trained once for all workers; only to be read."""
    import torch

    torch.set_num_threads(1)
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base
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
