"""Batches of training through the base: groups of adapters, and tasks that a teacher labels."""

import numpy as np
import pytest
import torch

from oral_lib.errors import UsageError
from oral_lib.evaluation import scoring
from oral_lib.experiments.intents.batches import StreamBatches
from oral_lib.experiments.intents.messages import MessageTable
from oral_lib.experiments.intents.methods import prompts, shared
from oral_lib.experiments.intents.stream import Mixture, TaskStream
from oral_lib.lora import stacked
from oral_lib.models import loading
from oral_lib.models.text_encoder import HashedWords
from oral_lib.tasks.intents.family import MESSAGE, load_family
from oral_lib.tasks.intents.texts import Topic

torch.set_num_threads(1)
SIZE = 4


@pytest.fixture(scope="module", params=["tiny-encoder", "tiny-causal"])
def parts(request):
    stream = TaskStream.of(load_family("made", "smoke"))
    table = MessageTable.of(loading.load(request.param, source="made"), stream.messages, MESSAGE)
    return table, stream.steps(2, SIZE, 4), HashedWords().encode(stream.all_texts)


def losses_and_gradient(parts, group):
    batches, base = StreamBatches(*parts, False, group), parts[0].base
    shape = SIZE, batches.stack.values.shape[1]
    values = 0.1 * torch.randn(shape, generator=torch.Generator().manual_seed(0))
    values.requires_grad_()
    with stacked.attached(base.model, batches.stack, base.spec.alpha / base.spec.rank):
        losses = batches.losses(values, batches.draw(1))
    (losses * torch.arange(1.0, SIZE + 1)).sum().backward()
    return losses.detach(), values.grad


@pytest.mark.parametrize("group", [1, 2])
def test_groups_of_adapters_change_no_loss_and_no_gradient(parts, group):
    whole, expected = losses_and_gradient(parts, None)
    losses, gradient = losses_and_gradient(parts, group)
    assert whole.std() > 0 and expected.abs().amax(1).min() > 0
    assert torch.allclose(losses, whole, atol=1e-5)
    assert torch.allclose(gradient, expected, atol=1e-5, rtol=1e-4)


def test_a_group_that_does_not_divide_the_adapters_is_refused(parts):
    with pytest.raises(UsageError, match="give a divisor"):
        StreamBatches(*parts, False, 3)


TOPICS = [
    Topic(f"topic-{i}", f"topic {i}", (f"about {word} things", f"{word}?"), (f"my {word} is lost",))
    for i, word in enumerate(("kettle", "ladder", "violin"))
]
DISTILLED = Mixture(unions=0.0, topics=0.0, distilled=0.5)


def distilled_stream(seed=0):
    embed = HashedWords().encode
    return TaskStream.of(
        load_family("made", "smoke"), mixture=DISTILLED, topics=TOPICS, embed=embed, seed=seed
    )


def test_a_distilled_task_has_a_text_of_a_topic_and_messages_near_it():
    stream = distilled_stream()
    steps = stream.steps(40, SIZE, 8, 6)
    assert 0.3 < steps.distilled.mean() < 0.7
    texts = {text for topic in TOPICS for text in (*topic.texts, *topic.messages)}
    assert {stream.all_texts[i] for i in steps.texts[steps.distilled]} == texts
    assert not texts & {stream.all_texts[i] for i in steps.texts[~steps.distilled]}
    ladder = [i for i, text in enumerate(stream.all_texts) if "ladder" in text]
    chosen = steps.distilled & np.isin(steps.texts, ladder)
    [message] = [i for i, m in enumerate(stream.messages) if m.text == "my ladder is lost"]
    assert (steps.rows[chosen][:, :4] == message).any()  # the first half is nearest


def test_distilled_tasks_have_the_labels_of_the_teacher_and_no_examples():
    stream = distilled_stream()
    steps = stream.steps(3, SIZE, 4, 5)
    base = loading.load("tiny-encoder", source="made")
    generator = torch.Generator().manual_seed(1)
    teacher = {
        name: tensor + 0.3 * torch.randn(tensor.shape, generator=generator)
        for name, tensor in base.lora_init().items()
    }
    taught = shared.label_distilled(base, stream, steps, teacher)
    assert (taught.labels[~steps.distilled] == steps.labels[~steps.distilled]).all()
    labels = taught.labels[steps.distilled]
    assert ((labels > 0) & (labels < 1)).all() and labels.std() > 0
    table = prompts.PromptTable.of(base, stream.all_texts, stream.messages)
    s, i = np.argwhere(steps.distilled)[0]
    with shared.under(base, teacher), torch.inference_mode():
        text, rows = np.array([[steps.texts[s, i]]]), steps.rows[s, i][None]
        expected = prompts.pair_logits(table, text, rows).sigmoid()
    assert torch.allclose(expected, torch.from_numpy(taught.labels[s, i]), atol=1e-5)
    texts = HashedWords().encode(stream.all_texts)
    batches = StreamBatches(MessageTable.of(base, stream.messages, MESSAGE), taught, texts, True)
    batches.draw(int(s))
    assert (batches.examples.given == ~torch.from_numpy(steps.distilled[s])[:, None]).all()
    assert torch.equal(batches.labels, torch.from_numpy(taught.labels[s]).flatten())


def test_tasks_cannot_be_distilled_without_an_encoder_that_finds_messages():
    with pytest.raises(UsageError, match="embed"):
        TaskStream.of(load_family("made", "smoke"), mixture=DISTILLED, topics=TOPICS)


def test_the_loss_of_a_probability_is_the_mean_of_both_answers(parts):
    table, rows = parts[0], torch.arange(6)
    no, yes, part = (table.losses(rows, torch.full((6,), p)) for p in (0.0, 1.0, 0.3))
    assert torch.allclose(part, 0.7 * no + 0.3 * yes, atol=1e-6)
    answers = table.answer_ids.expand(6, -1)
    for labels, found in ((torch.zeros(6), no), (torch.ones(6), yes)):
        about = table.base.model, table.base, "label", table.batch(rows), labels.long(), answers
        assert torch.allclose(scoring.losses(*about), found, atol=1e-6)
