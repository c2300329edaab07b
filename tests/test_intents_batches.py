"""Groups of adapters in training through the base: the same losses and gradients for any size."""

import pytest
import torch

from oral_lib.errors import UsageError
from oral_lib.experiments.intents.messages import MessageTable
from oral_lib.experiments.intents.stream import StreamBatches, TaskStream
from oral_lib.lora import stacked
from oral_lib.models import loading
from oral_lib.models.text_encoder import HashedWords
from oral_lib.tasks.intents.family import MESSAGE, load_family

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
