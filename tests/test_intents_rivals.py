"""Rivals of the intents experiment: many adapters on rows of their own, trained and scored."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from oral_lib.errors import OralError
from oral_lib.evaluation import bootstrap, item_tables, many_tasks, schema
from oral_lib.experiments.intents import adapters, messages, scoring
from oral_lib.experiments.intents.messages import MessageTable
from oral_lib.experiments.intents.methods import few_shot, from_text, prompts, shared
from oral_lib.experiments.intents.methods.from_text import Embedder
from oral_lib.experiments.intents.stream import Mixture, TaskStream
from oral_lib.lora.stacked import Stack
from oral_lib.models import loading
from oral_lib.models.text_encoder import HashedWords, TextEncoder
from oral_lib.tasks.intents.family import MESSAGE, draw_rows, load_family, training_unions
from oral_lib.zoo.recipes import Recipe

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
        drawn = [draw_rows(FAMILY, task, part, 20, 40, 0) for task in TASKS]
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


# ---------------------------------------------------------------- prompts and multi-task LoRAs
def texts_of(base, texts):
    return [prompts.described(text) for text in texts] if base.family == "causal" else texts


def test_a_message_behind_a_text_has_the_tokens_of_the_whole_prompt(table):
    base, messages = table.base, FAMILY.messages
    texts = [TASKS[0].texts["train"][0], "", TASKS[2].texts["train"][1]]
    joined = prompts.PromptTable.of(base, texts_of(base, texts), messages)
    rows = np.array([5, 900, 3])
    batch = joined.batch(*map(torch.from_numpy, (np.arange(3), rows)), 64)
    for i, (text, row) in enumerate(zip(texts, rows, strict=True)):
        message, length = messages[row].text, int(batch.lengths[i])
        if base.family == "causal":
            front = f"Task: {text}" if text else "Task:"
            whole = base.tokenizer(f"{front}\nMessage: {message}\nAnswer:")["input_ids"]
        else:
            whole = base.tokenizer(text, message)["input_ids"]
        assert batch.ids[i, :length].tolist() == whole
        assert joined.total(np.array([i]), rows[i : i + 1]) == [length] == [len(whole)]
        assert (batch.ids[i, length:] == (base.tokenizer.pad_token_id or 0)).all()


def test_examples_in_a_prompt_are_training_rows_with_both_labels(table):
    if table.base.family != "causal":
        pytest.skip("an encoder has no prompt")
    [task], text = TASKS[:1], "Is it barred?"
    shown, [places] = prompts.prompts_with_examples(table.base, FAMILY, [task], [[text]])
    [front] = shown.fronts[places[0]].tolist()
    words = table.base.tokenizer.decode(front).replace(" ", "")
    rows, labels = few_shot.labelled_rows(FAMILY, [task], 4)
    assert (FAMILY.part_of[rows] == 0).all() and labels.tolist() == [[1, 1, 0, 0]]
    for row, label in zip(rows[0], ("yes", "yes", "no", "no"), strict=True):
        turn = f"Message:{FAMILY.messages[row].text}Answer:{label}".replace(" ", "").lower()
        assert turn in words.lower()
    assert words.lower().startswith("task:isitbarred?")


def test_pairs_have_the_scores_of_rows_read_one_by_one(table):
    base = table.base
    texts = [TASKS[0].texts["train"][0], "Is it moving?"]
    joined = prompts.PromptTable.of(base, texts_of(base, texts), FAMILY.messages)
    index, rows = np.array([[0], [1]]), np.array([[4, 70, 900], [8, 3, 11]])
    together = prompts.pair_logits(joined, index, rows, tokens=64)
    for t in range(2):
        for i in range(3):
            one = prompts.pair_logits(joined, index[t : t + 1], rows[t : t + 1, i : i + 1])
            torch.testing.assert_close(together[t, i], one[0, 0], rtol=1e-3, atol=1e-3)


def separation(scores, labels):
    return np.mean([bootstrap.auc(labels, row) for row in scores])


def test_multi_task_loras_follow_the_text(table):
    base, recipe = table.base, Recipe(steps=100, batch=32, lr=1e-2, ratio=4.0)
    mixture = Mixture(unions=0.0, topics=0.0, messages_as_texts=0.0, short=0.0)
    stream = TaskStream.of(FAMILY, mixture=mixture)
    stream = replace(stream, intents=stream.intents[:3])
    tasks = FAMILY.tasks("train")[:3]
    drawn = [draw_rows(FAMILY, task, "train", 10, 20, 0) for task in tasks]
    rows, labels = np.stack([rows for rows, _ in drawn]), drawn[0][1]
    texts = [task.texts["train"][0] for task in tasks]
    embed = HashedWords().encode
    joint = shared.train_multitask_head(base, stream, recipe, embed)
    own, other = (
        shared.multitask_logits(table, joint, embed(each), rows).numpy()
        for each in (texts, texts[1:] + texts[:1])
    )
    assert separation(own, labels) > max(0.8, separation(other, labels) + 0.2)
    assert not hasattr(base.model, shared.HEAD)
    read = shared.train_described(base, stream, recipe)
    assert read.keys() == base.lora_init().keys()
    joined = prompts.PromptTable.of(base, texts_of(base, texts), FAMILY.messages)
    with shared.under(base, read):
        scores = prompts.pair_logits(joined, np.arange(3)[:, None], rows).numpy()
    assert separation(scores, labels) > 0.6


def test_half_of_the_texts_of_a_step_are_messages_and_half_of_the_rows_positive():
    stream = TaskStream.of(FAMILY)
    steps = shared.Steps.of(stream, 32, 16, lambda _, rows: np.ones(len(rows)))
    assert steps.rows.shape == steps.texts.shape == (32, 16)
    assert steps.labels.mean() == 0.5
    spoken = (steps.texts < len(stream.messages)).mean()
    assert 0.3 < spoken < 0.5  # none of a union
    assert (FAMILY.part_of[steps.rows] == 0).all()


# ---------------------------------------------------------------- methods from a text and a zoo
@pytest.fixture(scope="module")
def zoo():
    tasks = FAMILY.tasks("train")
    embed = Embedder(TextEncoder("tiny", source="made"))
    values = torch.randn(len(tasks), 40, generator=torch.manual_seed(0))
    names = [task.name for task in tasks]
    return from_text.TextZoo.of(names, values, [task.texts["train"] for task in tasks], embed)


def test_retrieval_soup_and_mixture_combine_adapters_of_the_zoo(zoo):
    assert torch.equal(from_text.retrieved(zoo.matched, zoo), zoo.values)
    chosen = from_text.nearest_adapters(zoo.matched, zoo, 5)
    assert (
        chosen.shape == (len(zoo.values), 5) and (chosen[:, 0] == torch.arange(len(chosen))).all()
    )
    soup = from_text.soup_of_nearest(zoo.matched[:2], zoo)
    torch.testing.assert_close(soup[1], zoo.values[chosen[1]].mean(0))
    weights = from_text.mixture_weights(zoo.matched, zoo, 0.01)
    torch.testing.assert_close(weights.sum(1), torch.ones(len(weights)), rtol=0, atol=1e-4)
    assert (weights.argmax(1) == torch.arange(len(weights))).float().mean() > 0.8
    even = from_text.mixture(zoo.matched, zoo, 1e9)
    share = zoo.task_of.bincount() / len(zoo.task_of)
    torch.testing.assert_close(even[0], share @ zoo.values, rtol=0, atol=1e-3)


def test_an_adapter_that_is_left_out_is_in_no_mixture(zoo):
    rest = zoo.without([0, 3])
    assert len(rest.values) == len(zoo.values) - 2 and zoo.names[3] not in rest.names
    assert len(rest.task_of) == (~torch.isin(zoo.task_of, torch.tensor([0, 3]))).sum()
    assert rest.task_of.max() == len(rest.values) - 1
    assert torch.equal(rest.values[rest.task_of[-1]], zoo.values[zoo.task_of[-1]])


def test_the_regression_learns_the_adapters_of_its_texts(zoo):
    weights = from_text.train_regression(zoo, zoo.texts, zoo.task_of, steps=400, lr=3e-3, batch=64)
    written = from_text.regression(zoo.matched, zoo, weights)
    error = (written - zoo.values).square().mean() / (
        zoo.values - zoo.values.mean(0)
    ).square().mean()
    assert error < 0.3


def test_the_threshold_of_the_cosine_is_between_the_classes():
    scores = np.array([[0.9, 0.8, 0.1, 0.2], [0.7, 0.6, 0.3, 0.1]])
    labels = np.array([[1, 1, 0, 0]] * 2)
    assert 0.3 <= from_text.best_threshold(scores, labels) < 0.6


# ---------------------------------------------------------------- few rows
def test_few_shot_rows_are_nested_and_have_both_labels():
    tasks = FAMILY.tasks("L2")
    rows, labels = few_shot.labelled_rows(FAMILY, tasks, 1)
    assert rows.shape == (len(tasks), 1) and (labels == 1).all()
    fewer, _ = few_shot.labelled_rows(FAMILY, tasks, 4)
    more, labels = few_shot.labelled_rows(FAMILY, tasks, 8)
    assert (labels.sum(1) == 4).all() and (FAMILY.part_of[more] == 0).all()
    for few, many in zip(fewer, more, strict=True):
        assert {*few} <= {*many}


def test_a_few_shot_lora_separates_the_rows_that_it_read(table):
    tasks = FAMILY.tasks("L2")[:2]
    values = few_shot.few_shot(table, FAMILY, tasks, 8, Recipe(steps=60, batch=4, lr=1e-2, ratio=4))
    rows, labels = few_shot.labelled_rows(FAMILY, tasks, 8)
    scores = scoring.yes_logits(table.base, table, values, rows).numpy()
    assert separation(scores, labels[0]) > 0.9


# ---------------------------------------------------------------- items and metrics
def test_items_and_metrics_of_many_tasks_agree_with_those_of_one():
    random = np.random.default_rng(0)
    labels = np.repeat([1, 0], [4, 8])
    scores = random.normal(size=(2, 3, 12)) + labels
    planned = [
        many_tasks.Scored("trained", "none", scores[:1]),
        many_tasks.Scored("generated", "matched", scores),
    ]
    about = {"experiment": "intents", "source": "made", "base": "tiny-causal", "seed": 0}
    names = [f"L2/made.{i}" for i in range(3)]
    rows = random.permutation(40)[:36].reshape(3, 12)
    keys = [message.key for message in FAMILY.messages]
    items = many_tasks.items_of(about, names, keys, rows, labels, planned)
    metrics = many_tasks.metrics_of(about, names, labels, planned, "t0")
    schema.check_items(items, metrics)
    assert len(items) == 3 * 36 and len(metrics) == 2 * 3 * 3
    one = items[(items.task == names[1]) & (items.method == "generated")]
    [expected] = item_tables.summarise(
        one, family="intents", base_version="t0", balanced=True
    ).groupby(["method", "condition"])
    value = expected[1].set_index("metric").value
    here = metrics[(metrics.task == names[1]) & (metrics.method == "generated")]
    for metric, number in here.set_index("metric").value.items():
        assert number == pytest.approx(value[metric], abs=1e-6), metric
    assert {*one["item"].astype(str)} == {keys[row] for row in rows[1]}
