"""The router picks a task from its training wordings and returns stored adapters, nothing else."""

import pytest

from oral_lib.baselines import router
from oral_lib.baselines.router import Retrieval, Router
from oral_lib.errors import OralError
from oral_lib.models.text_encoder import HashedWords, TextEncoder
from oral_lib.tasks.task import load_task

TASKS = ("movie", "review_topic", "sarcasm", "digits")


@pytest.mark.parametrize("name", ["minilm-l6", "hashed"])
def test_every_description_and_training_wording_is_assigned_to_its_task(name):
    picker = Router(TASKS, HashedWords() if name == "hashed" else TextEncoder(name))
    for task in TASKS:
        texts = load_task(task).training_texts
        right = sum(picker.pick(text) == task for text in texts)
        assert picker.pick(texts[0]) == task and right > 0.95 * len(texts)


def test_held_out_paraphrases_are_assigned_without_having_been_read():
    encoder = TextEncoder("minilm-l6")
    picker = Router(TASKS, encoder)
    for task in TASKS:
        texts = load_task(task).paraphrases["development"]
        assert not set(texts) & set(load_task(task).training_texts)
        assert [picker.pick(text) for text in texts] == [task] * len(texts)


@pytest.mark.parametrize("kind", [Router, Retrieval])
@pytest.mark.parametrize("name", ["tiny", "minilm-l6"])
def test_the_empty_text_gets_a_task_too_and_always_the_same(kind, name):
    picker = kind(TASKS, TextEncoder(name))
    assert picker.pick("") in TASKS and picker.pick("") == picker.pick("")


def test_of_one_task_there_is_no_choice_and_of_none_no_router():
    picker = Router(["movie"], HashedWords())
    assert picker.pick("Which digit is it?") == "movie" and picker.values == 0
    with pytest.raises(OralError, match="no tasks"):
        Router([], HashedWords())


def test_two_tasks_are_told_apart_as_several_are():
    picker = Router(["movie", "digits"], HashedWords())
    assert picker.pick(load_task("digits").description) == "digits"
    assert picker.pick(load_task("movie").description) == "movie"
    assert picker.values == HashedWords.width + 1


def test_no_adapter_is_drawn_twice_and_the_seed_decides():
    assert sorted(router.draw(8, 20, seed=0)) == list(range(8))
    assert len(router.draw(8, 3, seed=0)) == 3
    draws = {tuple(router.draw(8, 3, seed)) for seed in range(20)}
    assert len(draws) > 10 and router.draw(8, 3, 5) == router.draw(8, 3, 5)
    firsts = [router.draw(4, 1, seed)[0] for seed in range(400)]
    assert all(70 < firsts.count(number) < 130 for number in range(4))
