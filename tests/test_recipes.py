"""Recipes: a task gets what was chosen for it on this very model, or the default of the model."""

from dataclasses import replace

import pytest

from oral_lib import scales, storage
from oral_lib.models import registry
from oral_lib.workflow.run import Run
from oral_lib.zoo import recipes
from oral_lib.zoo.recipes import RECIPES, recipe_of


def tuned(root, base, task, **chosen):
    tried = [{"steps": one.steps, "lr": one.lr} for one in recipes.candidates(base)]
    content = {"chosen": chosen, "candidates": tried, "ratio": recipes.default(base).ratio}
    storage.write_json(root / "tuning" / base / f"{task}.json", content)


def test_what_this_run_tuned_goes_before_the_default(tmp_path):
    first = RECIPES["smollm2-135m"]
    tuned(tmp_path, "smollm2-135m", "movie", lr=3e-4, steps=30)
    found = recipe_of("smollm2-135m", "movie", tmp_path)
    assert found == replace(first, lr=3e-4, steps=30) != first
    assert recipe_of("smollm2-135m", "sarcasm", tmp_path) == first
    assert recipe_of("smollm2-135m", "movie", tmp_path / "other") == first


def test_a_version_of_a_model_has_the_recipes_of_the_model(tmp_path):
    tuned(tmp_path, "smollm2-135m", "sarcasm", lr=3e-4, steps=30)
    tuned(tmp_path, "smollm2-135m-t4", "sarcasm", lr=9.0, steps=9)  # nobody asks for it
    for task in ("sarcasm", "tweets"):
        own = recipe_of("smollm2-135m", task, tmp_path)
        assert recipe_of("smollm2-135m-t4", task, tmp_path) == own
    assert recipes.default("smollm2-135m-t2") == RECIPES["smollm2-135m"]


def test_a_model_that_nobody_tried_has_a_recipe_all_the_same():
    assert recipes.default("mistral-7b") == recipes.OTHERS


@pytest.mark.parametrize("base", registry.names())
def test_candidates_lie_round_the_default_and_hold_it(base):
    found, first = recipes.candidates(base), recipes.default(base)
    assert first in found and len(set(found)) == len(found) == 6
    assert {replace(c, lr=first.lr, steps=first.steps) for c in found} == {first}
    assert min(c.lr for c in found) < first.lr < max(c.lr for c in found)


def test_two_cores_train_with_recipes_of_their_own(monkeypatch, tmp_path):
    asked = []
    where = lambda base, names, seeds, **rest: asked.append(rest["recipe"])  # noqa: E731
    monkeypatch.setattr("oral_lib.zoo.store.train_seeds", where)
    for cells in scales.base_plans("desk"):
        Run("desk", out=tmp_path).train_zoo(cells.base, cells.tasks, [0])
    assert asked == [recipes.DESK[cells.base] for cells in scales.base_plans("desk")]
    Run("desk", out=tmp_path).train_zoo("minilm-l3", ["movie"], [0])  # one that the desk lacks
    Run("smoke", out=tmp_path).train_zoo("tiny-causal", ["movie"], [0])
    assert asked[2:] == [None, None]
    for base, recipe in recipes.DESK.items():
        assert recipe.steps * recipe.batch < RECIPES[base].steps * RECIPES[base].batch
