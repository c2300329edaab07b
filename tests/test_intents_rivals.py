"""Rivals of the intents experiment: many adapters on rows of their own, trained and scored."""

import numpy as np
import pytest
import torch

from oral_lib.errors import OralError
from oral_lib.evaluation import bootstrap
from oral_lib.experiments.intents import adapters, messages, scoring
from oral_lib.experiments.intents.messages import MessageTable
from oral_lib.lora.stacked import Stack
from oral_lib.models import loading
from oral_lib.tasks.intents.family import MESSAGE, draw, load_family, training_unions

torch.set_num_threads(1)
TINY = ("tiny-encoder", "tiny-causal")
FAMILY = load_family("made", "smoke")
TASKS = [*FAMILY.tasks("train")[:2], training_unions(FAMILY, 1, 0)[0]]


@pytest.fixture(scope="module", params=TINY)
def table(request):
    base = loading.load(request.param)
    base.model.float()
    return MessageTable.of(base, FAMILY.messages, MESSAGE)


def test_rows_of_a_step_have_similar_lengths_and_keep_their_labels(table):
    rows, labels = adapters.training_rows(FAMILY, TASKS, 32, 8, table.lengths, seed=1)
    assert rows.shape == labels.shape == (32, 3, 8) and (labels[..., :4] == 1).all()
    for t, task in enumerate(TASKS):
        intents = FAMILY.intent_of[rows[:, t]]
        assert set(intents[:, :4].flatten()) == {*task.positive}
        negative = intents[:, 4:]
        assert set(negative.flatten()) == {*task.near, *task.far}
        assert np.isin(negative, task.near).mean() == (0.5 if task.near else 0)
        drawn, count = np.unique(rows[:, t, :4], return_counts=True)
        assert (FAMILY.part_of[drawn] == 0).all() and count.max() - count.min() <= 1
    unsorted = np.random.default_rng(0).permutation(rows.reshape(-1)).reshape(rows.shape)

    def padding(order):
        longest = table.lengths[order].max((1, 2))
        return longest.sum() * order[0].size / table.lengths[order].sum()

    assert padding(rows) < padding(unsorted)


def test_a_batch_is_the_rows_that_the_base_model_would_read(table):
    base, rows = table.base, np.array([3, 50, 7])
    batch = table.batch(torch.from_numpy(rows), table.width(rows))
    assert batch.ids.shape[1] == min(
        messages.rounded_width(max(table.lengths[rows])), table.table.ids.shape[1]
    )
    for i, row in enumerate(rows):
        length = int(batch.lengths[i])
        text = MESSAGE.prompt(FAMILY.messages[row].text)
        if base.family == "encoder":
            text = FAMILY.messages[row].text
        assert batch.ids[i, :length].tolist() == base.tokenizer(text)["input_ids"]
        assert length == table.lengths[row]
    assert table.answer_ids.tolist() == base.answer_ids(MESSAGE).tolist()


def test_a_stack_learns_what_a_single_training_learns(table):
    base = table.base
    rows, labels = adapters.training_rows(FAMILY, TASKS, 20, 8, table.lengths)
    options = {"lr": 1e-2, "ratio": 4.0}
    start = base.lora_init()
    together = adapters.train_stack(base, table, start, rows, labels, **options)
    in_parts = adapters.train_stack(base, table, start, rows, labels, size=2, **options)
    one = adapters.train_stack(base, table, start, rows[:, 1:2], labels[:, 1:2], **options)
    stack = Stack(start, 1)
    moved = (together - stack.values).norm(dim=1)
    assert (moved > 0.1).all()
    assert (together[1] - one[0]).norm() < 0.02 * moved[1]
    assert ((together - in_parts).norm(dim=1) < 0.02 * moved).all()


def test_trained_adapters_separate_the_rows_of_their_tasks(table):
    base = table.base
    rows, labels = adapters.training_rows(FAMILY, TASKS, 100, 8, table.lengths)
    trained = adapters.train_stack(base, table, base.lora_init(), rows, labels, lr=1e-2, ratio=4.0)
    for part, least in (("train", 0.8), ("test", 0.7)):
        drawn = [draw(FAMILY, task, part, 20, 40, 0) for task in TASKS]
        scores = scoring.yes_logits(base, table, trained, np.stack([rows for rows, _ in drawn]))
        for task, row, (_, answers) in zip(TASKS, scores.numpy(), drawn, strict=True):
            assert bootstrap.auc(answers, row) > least, task.name


def test_each_adapter_of_a_stack_has_the_scores_that_it_has_by_itself(table, monkeypatch):
    base, start = table.base, table.base.lora_init()
    stack = Stack(start, 3)
    values = stack.values + 0.05 * torch.randn(stack.values.shape, generator=torch.manual_seed(0))
    rows = np.random.default_rng(0).integers(len(table), size=(3, 11))
    scores = scoring.yes_logits(base, table, values, rows)
    monkeypatch.setitem(scoring._TOKENS, "cpu", 64)
    again = scoring.yes_logits(base, table, values, rows, adapters=2)
    torch.testing.assert_close(scores, again, rtol=1e-3, atol=1e-3)
    adapter = stack.adapters(values)[2]
    with base.attach(adapter) as adapted, torch.inference_mode():
        index = torch.from_numpy(rows[2])
        logits = base.answer_logits(adapted.get_base_model(), table.batch(index))
        no, yes = table.answer_ids.tolist()
        torch.testing.assert_close(scores[2], logits[:, yes] - logits[:, no], rtol=1e-3, atol=1e-3)


def test_a_training_that_diverges_is_refused(table):
    rows, labels = adapters.training_rows(FAMILY, TASKS[:1], 4, 4, table.lengths)
    start = {name: tensor * float("inf") for name, tensor in table.base.lora_init().items()}
    with pytest.raises(OralError, match="lower the learning rate"):
        adapters.train_stack(table.base, table, start, rows, labels, lr=1e-2)
