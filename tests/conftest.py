"""What test files share: short smoke runs, one real causal base, one way to refuse."""

import os
from contextlib import contextmanager
from dataclasses import replace
from importlib import import_module

import pytest

import oral_lib  # makes transformers and peft importable with a torchvision that does not fit
from oral_lib import paths

STEPS = 60


@pytest.fixture(autouse=True)
def nothing_released(monkeypatch, tmp_path_factory):
    """What a test sees does not depend on the generators that the repository has."""
    monkeypatch.setattr(paths, "RELEASED", tmp_path_factory.getbasetemp() / "no-generators")


@pytest.fixture(scope="session")
def short_run(tmp_path_factory):
    """`short_run("vision", steps=40)`: a run of the smoke scale, made once for all workers.

    It is only to be read. Its generators are trained for fewer steps than users get: how good a
    generator is, test_generator_is_good.py asks.
    """
    import torch

    from oral_lib.experiments.records import EXPERIMENTS

    torch.set_num_threads(1)
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base

    def ready(experiment, steps):
        presets = import_module(f"oral_lib.experiments.{EXPERIMENTS[experiment].presets}")
        full = presets.preset

        def short(scale, job, **options):
            preset = full(scale, job, **options)
            return replace(preset, training=replace(preset.training, steps=steps))

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(presets, "preset", short)
            return oral_lib.Run("smoke", out=shared / experiment, experiment=experiment).ready()

    return ready


@pytest.fixture(scope="session")
def smoke(short_run):
    """The run of the main experiment, language."""
    return short_run("language", STEPS)


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
