"""Scoring: the answer position alone is read, and neither batch nor order changes an answer."""

from dataclasses import replace

import pytest
import torch

from oral_lib.errors import UsageError
from oral_lib.evaluation import scoring
from oral_lib.models import loading
from oral_lib.tasks.rows import task_rows
from oral_lib.tasks.task import load_task, task_names

torch.set_num_threads(1)
TINY = ("tiny-encoder", "tiny-causal")
TASK = load_task("movie")
ROWS = task_rows(TASK, "made").validation[:37]


@pytest.fixture(params=TINY)
def attached(request):
    """A base in float32, with an adapter that is not the base model."""
    base = loading.load(request.param)
    base.model.float()
    draw = torch.Generator().manual_seed(0)
    start = sorted(base.lora_init().items())
    with base.attach({n: t + 0.1 * torch.randn(t.shape, generator=draw) for n, t in start}) as m:
        yield base, m


def test_neither_the_batch_nor_the_order_changes_a_score(attached):
    base, model = attached
    [one] = scoring.score(model, base, TASK, ROWS, batch=32)
    assert one.shape == (len(ROWS), 2) and one.dtype == torch.float32
    torch.testing.assert_close(scoring.score(model, base, TASK, ROWS, batch=1)[0], one)
    [back] = scoring.score(model, base, TASK, ROWS[::-1], batch=5)
    torch.testing.assert_close(back.flip(0), one)
    assert one.std(0).min() > 0.01  # the scores differ from row to row


def test_the_answer_position_is_the_end_of_the_prompt(attached):
    base, model = attached
    for row, said in zip(ROWS[:5], scoring.score(model, base, TASK, ROWS[:5])[0], strict=True):
        if base.family == "causal":
            ids = base.tokenizer(TASK.prompt(row.text), return_tensors="pt")["input_ids"]
            words = [base.tokenizer.encode(w)[0] for w in TASK.labels]
            wanted = model(input_ids=ids).logits[0, -1].log_softmax(-1)[words]
        else:
            ids = base.tokenizer(row.text, return_tensors="pt")["input_ids"]
            wanted = model(input_ids=ids).logits[0].log_softmax(-1)
        torch.testing.assert_close(said, wanted.detach())


def test_scores_are_log_likelihoods(attached):
    base, model = attached
    likely = scoring.score(model, base, TASK, ROWS)[0].exp().sum(-1)
    assert (likely <= 1 + 1e-5).all()
    if base.family == "encoder":
        torch.testing.assert_close(likely, torch.ones(len(ROWS)))


def test_batches_hold_every_row_once_and_like_lengths_together():
    batches = list(scoring.by_length(ROWS, 8))
    assert sorted(i for batch in batches for i in batch) == list(range(len(ROWS)))
    assert all(len(batch) <= 8 for batch in batches)
    lengths = [len(ROWS[i].text) for batch in batches for i in batch]
    assert lengths == sorted(lengths)


def test_label_words_that_begin_alike_are_refused(smollm2, refused):
    tiny = loading.load("tiny-causal")
    for base in (tiny, smollm2):
        task = replace(TASK, labels=["film review", "film critic"])
        with refused(UsageError, "film review", base.name):
            base.answer_ids(task)


@pytest.mark.parametrize("name", ["quartz", "winogrande"])
def test_of_options_the_place_is_asked_for_and_no_word(name):
    task = load_task(name)
    for base in map(loading.load, TINY):
        assert base.answer_ids(task).tolist() == [0, 1]


LABELLED = [name for name in task_names() if load_task(name).scoring == "label"]


@pytest.mark.parametrize("name", LABELLED)
def test_label_words_of_every_task_begin_differently(name, smollm2):
    task = load_task(name)
    for base in (loading.load("tiny-causal"), smollm2):
        ids = base.answer_ids(task).tolist()
        assert len(set(ids)) == len(task.labels)
        for i, word in zip(ids, task.labels, strict=True):
            begun = base.tokenizer.decode([i])
            word = word if base is smollm2 else word.lower()  # as the tiny tokenizer reads it
            assert begun.strip() and word.startswith(begun.strip())
    assert begun.startswith(" ")  # as a real model goes on after a colon
