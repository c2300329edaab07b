"""The study of ways to write adapters for unseen messages: every way changes what it names."""

from dataclasses import replace

import pytest
import torch

from oral_lib.errors import UsageError
from oral_lib.experiments.intents import writer
from oral_lib.experiments.studies import intent_ways
from oral_lib.models import loading
from oral_lib.models.text_encoder import HashedWords, HiddenStates, TextEncoder

torch.set_num_threads(1)
BASE, STEPS = "tiny-encoder", 4


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = {"scale": "smoke", "source": "made", "device": "cpu"}
    place["root"] = tmp_path_factory.mktemp("ways")
    intent_ways.prepare_study(BASE, **place)
    return place


def test_every_way_but_those_of_the_encoder_changes_the_preset():
    preset = writer.PRESETS["lab"]
    changed = {name: way(preset) for name, way in intent_ways.WAYS.items()}
    alike = {name for name, made in changed.items() if made == preset}
    assert alike == {"preset", "states of the base", "states and encoder"}
    others = [repr(made) for name, made in changed.items() if name not in alike]
    assert len(set(others)) == len(others)


def test_ways_are_trained_and_judged_once(place, monkeypatch, capsys):
    first = replace(intent_ways.WEIGHTS_FIRST, steps=2)
    monkeypatch.setattr(intent_ways, "WEIGHTS_FIRST", first)
    ways = [intent_ways.TEXT_IN_INPUT, "preset", "weights first", "states and encoder"]
    table = intent_ways.judge_ways(BASE, ways, changes={"steps": STEPS, "tasks": 4}, **place)
    assert list(table.way.unique()) == ways
    texts = set(table[table.way == "preset"].text)
    means = {"mean of 3 texts", "mean of 4 samples"}
    assert texts == {*intent_ways.JUDGED_TEXTS, *means, "first and 4 rows"}
    assert table.auc.between(0, 100).all() and table.balanced_accuracy.between(0, 100).all()
    assert table[table.way == "preset"].loss.iloc[0] > 0
    monkeypatch.setattr(intent_ways, "train_way", None)
    monkeypatch.setattr(intent_ways, "judge_described", None)
    again = intent_ways.judge_ways(BASE, ways, changes={"steps": STEPS, "tasks": 4}, **place)
    assert again.equals(table)
    intent_ways.print_ways(table)
    assert "weights first" in capsys.readouterr().out


def test_another_number_of_steps_is_trained_anew(place, monkeypatch):
    def stop(way, base, preset, *rest):
        raise UsageError(f"{preset.training.steps} steps")

    monkeypatch.setattr(intent_ways, "train_way", stop)
    with pytest.raises(UsageError, match="9 steps"):
        intent_ways.judge_ways(BASE, ["preset"], changes={"steps": 9}, **place)


def test_an_unknown_way_is_refused_with_the_nearest(place):
    with pytest.raises(UsageError, match="weights first"):
        intent_ways.judge_ways(BASE, ["weight first"], **place)


@pytest.mark.parametrize("base", ["tiny-encoder", "tiny-causal"])
def test_hidden_states_are_unit_embeddings_that_depend_on_no_other_text(base):
    model = loading.load(base, source="made")
    texts = ["a film that I liked", "the weather", "superb acting and a poor plot of a film"]
    own = HiddenStates(model, texts)
    found = own.encode(texts)
    assert found.shape == (3, own.width) and not found.requires_grad
    assert torch.allclose(found.norm(dim=1), torch.ones(3), atol=1e-5)
    assert torch.allclose(own.encode(texts[1:2]), found[1:2], atol=1e-5)
    assert own._states(texts).mean(0).abs().max() < 1e-6  # of the texts that center it
    joined = HiddenStates(model, texts, TextEncoder("tiny"))
    both = joined.encode(texts)
    assert both.shape == (3, own.width + joined.encoder.width)
    assert torch.allclose(both[:, -own.width :], found / 2**0.5, atol=1e-6)
    assert "tiny" in joined.name and HashedWords.name not in joined.name
