"""Tuning: recipes are chosen on validation rows, once, with a seed that no zoo has."""

from dataclasses import replace

import pytest
import torch

from oral_lib import scales, storage
from oral_lib.errors import OralError, PreflightError
from oral_lib.evaluation.evaluate import Outcome
from oral_lib.tasks.rows import task_rows
from oral_lib.tasks.task import load_task
from oral_lib.zoo import recipes, training, tuning
from oral_lib.zoo.recipes import Recipe

torch.set_num_threads(1)
SHORT = Recipe(steps=8, batch=4, lr=1e-2)


class Sealed(tuple):
    """Rows that nobody may look at."""

    def _refuse(self, *_):
        raise AssertionError("a test row was looked at")

    __iter__ = __len__ = __getitem__ = __contains__ = __add__ = _refuse


@pytest.fixture
def trained(monkeypatch):
    """The (task, seed, lr, steps) that were trained from now on; test rows are sealed."""
    monkeypatch.setitem(recipes.RECIPES, "tiny-causal", SHORT)
    rows, train, seen = task_rows, training.StackTrainer.train, []
    monkeypatch.setattr(
        "oral_lib.tasks.rows.task_rows",
        lambda task, source: replace(rows(task, source), test=Sealed()),
    )

    def counted(self, runs, data, **rest):
        seen.extend((r.task.name, r.seed, r.recipe.lr, r.recipe.steps) for r in runs)
        return train(self, runs, data, **rest)

    monkeypatch.setattr(training.StackTrainer, "train", counted)
    return seen


def tune(root, *names):
    return tuning.tune("tiny-causal", names, source="made", root=root)


@pytest.mark.parametrize("task", ["movie", "quartz", "arithmetic"])
def test_a_recipe_is_chosen_without_a_look_at_the_test_rows(task, trained, tmp_path):
    [file] = tune(tmp_path, task)
    said = storage.read_json(file)
    assert len(trained) == len(said["candidates"]) == 6
    assert said["validation_rows"] == len(task_rows(load_task(task), "made").validation)
    best = tuning.best_candidate(said["candidates"], said["validation_rows"])
    assert said["chosen"] == {"steps": best["steps"], "lr": best["lr"]}
    assert all((c["accuracy"] is None) == (task == "arithmetic") for c in said["candidates"])
    assert len({c["likelihood"] for c in said["candidates"]}) > 1  # they do differ
    chosen = recipes.recipe_of("tiny-causal", task, tmp_path)
    assert chosen == replace(SHORT, **said["chosen"])


def test_a_candidate_that_diverges_is_out_and_harms_no_other(trained, tmp_path, monkeypatch):
    alone = [replace(SHORT, lr=lr) for lr in (1e-2, 2e-2)]
    monkeypatch.setattr(tuning, "candidates", lambda base: alone)
    [quiet] = tune(tmp_path / "quiet", "movie")
    monkeypatch.setattr(tuning, "candidates", lambda base: [*alone, replace(SHORT, lr=1e30)])
    [wild] = tune(tmp_path / "wild", "movie")
    said, wanted = storage.read_json(wild), storage.read_json(quiet)
    assert said["candidates"][-1] == {"steps": SHORT.steps, "lr": 1e30, "diverged": True}
    assert said["chosen"] == wanted["chosen"]
    for one, other in zip(said["candidates"][:-1], wanted["candidates"], strict=True):
        assert one["likelihood"] == pytest.approx(other["likelihood"], abs=1e-3)


def test_it_is_told_when_every_candidate_diverges(trained, tmp_path, monkeypatch, refused):
    monkeypatch.setattr(tuning, "candidates", lambda base: [replace(SHORT, lr=1e30)])
    with refused(OralError, "tune tiny-causal movie", "all 1 candidates"):
        tune(tmp_path, "movie")


def judged(monkeypatch, accuracies, likelihoods):
    """Evaluation that says what it is told; returns the rows that it was given."""
    given = []

    def say(base, task, rows, adapters, **rest):
        given.append(rows)
        for right, sure in zip(accuracies, likelihoods, strict=True):
            outcome = Outcome(torch.zeros(1, 2), rows[:1])
            object.__setattr__(outcome, "said", (right, sure))
            yield outcome

    monkeypatch.setattr(tuning, "evaluate", say)
    monkeypatch.setattr(tuning, "accuracy_of", lambda outcome: outcome.said[0])
    monkeypatch.setattr(Outcome, "likelihood", property(lambda outcome: outcome.said[1]))
    return given


@pytest.mark.parametrize(
    ("accuracies", "likelihoods", "best"),
    [
        # 600 rows: the standard error of 0.9 is 0.0122
        ([0.5, 0.6, 0.9, 0.6, 0.887, 0.5], [-1, -1, -9, -1, -1, 0], 2),  # accuracy comes first
        ([0.5, 0.6, 0.9, 0.6, 0.888, 0.5], [-1, -1, -9, -1, -1, 0], 4),  # within one s.e.
        ([0.5, 0.9, 0.9, 0.9, 0.8, 0.5], [-1, -3, -2, -4, -1, 0], 2),  # then the likelihood
        ([None] * 6, [-5, -4, -3, -2, -1, -6], 4),  # answers that were not written
    ],
)
def test_accuracy_decides_and_within_one_standard_error_the_likelihood(
    accuracies, likelihoods, best, trained, tmp_path, monkeypatch
):
    given = judged(monkeypatch, accuracies, likelihoods)
    [file] = tune(tmp_path, "movie")
    wanted = recipes.candidates("tiny-causal")[best]
    chosen = storage.read_json(file)["chosen"]
    assert chosen == {"steps": wanted.steps, "lr": wanted.lr}
    assert given == [task_rows(load_task("movie"), "made").validation]
    assert len(given[0]) == 600


def test_what_was_chosen_is_not_chosen_again(trained, tmp_path):
    files = tune(tmp_path, "movie", "sarcasm")
    kept = [file.read_bytes() for file in files]
    trained.clear()
    assert tune(tmp_path, "movie", "sarcasm") == files and trained == []
    files[1].unlink()
    assert tune(tmp_path, "movie", "sarcasm") == files
    assert {task for task, *_ in trained} == {"sarcasm"}
    assert [file.read_bytes() for file in files] == kept


def test_what_was_chosen_at_another_ratio_is_refused_until_it_is_removed(
    trained, tmp_path, refused
):
    [file] = tune(tmp_path, "movie")
    assert recipes.recipe_of("tiny-causal", "movie", tmp_path).ratio == SHORT.ratio
    content = storage.read_json(file)
    del content["ratio"]  # from before there was one
    storage.write_json(file, content)
    with refused(PreflightError, str(file), "ratio of 1", "--from-scratch"):
        recipes.recipe_of("tiny-causal", "movie", tmp_path)
    file.unlink()
    tune(tmp_path, "movie")
    assert storage.read_json(file)["ratio"] == SHORT.ratio


def test_what_was_chosen_among_other_candidates_is_refused(trained, tmp_path, monkeypatch, refused):
    [file] = tune(tmp_path, "movie")
    recipes.recipe_of("tiny-causal", "movie", tmp_path)
    monkeypatch.setitem(recipes.RECIPES, "tiny-causal", replace(SHORT, lr=SHORT.lr / 2))
    with refused(PreflightError, str(file), "other steps and learning rates", "--from-scratch"):
        recipes.recipe_of("tiny-causal", "movie", tmp_path)


def test_the_seed_of_tuning_is_none_that_a_zoo_has(trained, tmp_path, monkeypatch):
    monkeypatch.setenv("ORAL_ACCEPT", "gemma")
    [file] = tune(tmp_path, "movie")
    assert {seed for _, seed, *_ in trained} == {storage.read_json(file)["seed"]}
    [seed] = {seed for _, seed, *_ in trained}
    for scale, source in (
        ("smoke", "made"),
        ("desk", "packages"),
        ("lab", "hub"),
        ("paper", "hub"),
    ):
        for cells in scales.base_plans(scale, source):
            assert seed not in scales.zoo_seeds(scale, cells.base, source)
