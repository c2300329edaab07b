"""The studies that notebooks show."""

import pytest
import torch

from oral_lib import method
from oral_lib.errors import UsageError
from oral_lib.experiments.studies import toy
from oral_lib.lora import gauge


def test_the_toy_adapters_are_their_drawings_and_their_factors_can_be_averaged():
    def error(one, other):
        """Of the mean of the factors, relative to the mean of the weight changes."""
        mean = {name: (one[name] + other[name]) / 2 for name in one}
        middle = (toy.weight_change(one) + toy.weight_change(other)) / 2
        return float((toy.weight_change(mean) - middle).norm() / middle.norm())

    shared = rotated = 0.0
    for task in toy.SHAPE_TEXTS:
        drawing, one, other = toy.drawing(task, 0), toy.adapter(task, 0), toy.adapter(task, 1)
        assert (toy.weight_change(one) - drawing).norm() < 0.05 * drawing.norm()
        shared += error(one, other)
        rotated += error(one, gauge.rotated(other, seed=0))
    assert shared < 0.5 * rotated


def test_the_toy_needs_the_text_and_not_the_recurrence():
    right = {}
    for recurrence, condition in (("mamba2", "text"), ("none", "text"), ("none", "none")):
        model, data = toy.toy_model(toy.config(recurrence, condition))
        training = method.TrainingConfig(steps=250, lr=3e-3, warmup=20, text_noise=0.5)
        model, _ = method.train(model, {"toy": data}, training)
        texts = toy.embed(list(toy.NEW_TEXTS.values()))
        c = model.conditions("toy", texts, torch.ones(len(texts), dtype=torch.bool))
        noise = model.noise("toy", method.SamplingConfig(), torch.Generator().manual_seed(0))
        k0 = model.sample("toy", c, noise.expand(len(texts), -1, -1))
        samples = method.decode(data.layout, data.statistics.denormalise(k0))
        names = [toy.nearest_shape(toy.weight_change(sample)) for sample in samples]
        right[recurrence, condition] = sum(
            n == t for n, t in zip(names, toy.NEW_TEXTS, strict=True)
        )
    assert right["mamba2", "text"] >= 4 and right["none", "text"] >= 4
    assert right["none", "none"] <= 2


def test_the_toy_refuses_other_words():
    with pytest.raises(UsageError, match="Did you mean 'ring'"):
        toy.drawing("rng", 0)
    with pytest.raises(UsageError, match="use 'text' or 'none'"):
        toy.config(condition="words")
