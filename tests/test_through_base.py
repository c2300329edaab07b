"""Training through the base model: gradients, the shared part, examples, resuming, divergence."""

import pytest
import torch
from torch import nn

from oral_lib import method
from oral_lib.errors import OralError, UsageError
from oral_lib.lora import stacked
from oral_lib.lora.stacked import Stack
from oral_lib.method.base_entry import BaseEntry
from oral_lib.method.conditioning import Examples
from oral_lib.method.normalization import TokenStatistics
from oral_lib.method.tokenization import Layout, decode, encode, flat
from oral_lib.method.training.through_base import ThroughBaseConfig, train_through_base

E, TASKS, ROWS = 8, 32, 16  # size of an embedding, adapters of a step, rows of each
START = {
    "base_model.model.0.lora_A.weight": torch.randn(
        2, E, generator=torch.Generator().manual_seed(0)
    ),
    "base_model.model.0.lora_B.weight": torch.zeros(4, 2),
    "base_model.model.1.weight": torch.tensor([[1.0, -1.0, 1.0, -1.0], [-1.0, 1.0, -1.0, 1.0]]),
}


class Signs:
    """Made tasks: a row x belongs to task w if w x > 0, and w is the text of the task."""

    def __init__(self, examples: bool = False):
        self.net = nn.Sequential(nn.Linear(E, 4), nn.Linear(4, 2)).requires_grad_(False)
        with torch.no_grad():
            torch.manual_seed(1)
            self.net[0].weight.normal_(std=0.5)
        self.stack = Stack(START, TASKS)
        self.text, self.given = torch.zeros(TASKS, E), torch.ones(TASKS, dtype=torch.bool)
        self.x, self.y = torch.zeros(TASKS, ROWS, E), torch.zeros(TASKS, ROWS, dtype=torch.long)
        self.examples = None
        if examples:
            given = torch.ones(TASKS, ROWS, dtype=torch.bool)
            self.examples = Examples(torch.zeros(TASKS, ROWS, E), self.y.clone(), given)

    def rows(self, stream):
        x = torch.nn.functional.normalize(torch.randn(TASKS, ROWS, E, generator=stream), dim=-1)
        return x, (torch.einsum("sre,se->sr", x, self.text) > 0).long()

    def draw(self, step):
        stream = torch.Generator().manual_seed(step)
        self.text.copy_(
            torch.nn.functional.normalize(torch.randn(TASKS, E, generator=stream), dim=-1)
        )
        for mine, new in zip((self.x, self.y), self.rows(stream), strict=True):
            mine.copy_(new)
        if self.examples is not None:
            x, y = self.rows(stream)
            self.examples.embeddings.copy_(x)
            self.examples.labels.copy_(y)
        return ROWS

    def losses(self, adapters, key):
        def losses():
            logits = model(self.x.flatten(0, 1))
            each = nn.functional.cross_entropy(logits, self.y.flatten(), reduction="none")
            return each.view(TASKS, key).mean(1)

        with stacked.attached(self.net, self.stack, 2.0) as model:
            return stacked.losses_of(adapters, self.stack, losses)


def network(**changes) -> method.ORAL:
    options = {
        "k": 32,
        "components": 0,
        "component_rotation": "none",
        "recurrence": method.RecurrenceConfig(width=32, head=16, state=8),
        "denoiser": method.DenoiserConfig(hidden=64, depth=1, skip=False),
        "text_encoder": "tiny",
    }
    config = method.GeneratorConfig(**(options | changes))
    layout = Layout.of(START, config.k)
    torch.manual_seed(0)
    statistics = TokenStatistics(encode(layout, [START])[0], torch.ones(layout.l, 1))
    entry = BaseEntry(layout, statistics, None, torch.randn(E), torch.randn(64))
    return method.ORAL(config, {"net": entry})


FAST = ThroughBaseConfig(steps=200, lr=3e-3, warmup=20, text_noise=0.0, text_dropout=0.0)


def test_flat_has_the_values_of_the_decoded_adapters_in_the_order_of_a_stack():
    layout = Layout.of(START, 32)
    values = torch.randn(3, layout.l, layout.k)
    stack = Stack(START, 3)
    stack.put(decode(layout, values))
    assert torch.equal(flat(layout, values), stack.values)


def test_the_gradient_to_the_values_is_that_of_the_plain_loss():
    batches = Signs()
    batches.draw(0)
    values = torch.randn(TASKS, batches.stack.values.shape[1], requires_grad=True)
    weights = torch.rand(TASKS)
    (batches.losses(values, ROWS) * weights).sum().backward()
    plain = values.detach().clone().requires_grad_()
    a, b, head = plain.split([2 * E, 8, 8], 1)
    w = batches.net[0].weight + 2.0 * b.view(-1, 4, 2) @ a.view(-1, 2, E)  # [S, 4, e]
    states = torch.einsum("soe,sre->sro", w, batches.x) + batches.net[0].bias
    logits = states @ head.view(-1, 2, 4).mT  # the adapter has a head without bias
    losses = nn.functional.cross_entropy(
        logits.flatten(0, 1), batches.y.flatten(), reduction="none"
    )
    (losses.view(TASKS, ROWS).mean(1) * weights).sum().backward()
    assert torch.allclose(values.grad, plain.grad, atol=1e-6)


def test_adapters_for_tasks_never_seen_work():
    model, curves = train_through_base(network(shared="added"), {"net": Signs()}, FAST)
    batches = Signs()
    batches.draw(10**6)  # texts that no step had
    inputs = torch.randn(TASKS, model.bases["net"].layout.l, 32)
    with torch.no_grad():
        c = model.conditions("net", batches.text, batches.given)
        entry = model.bases["net"]
        values = flat(entry.layout, entry.statistics.denormalise(model.write("net", c, inputs)))
        swapped = values.roll(1, 0)
        matched, other = (batches.losses(v, ROWS).mean() for v in (values, swapped))
    assert matched < 0.62 < 0.693 < other
    assert len(curves["norms"]) == FAST.steps and curves["losses"][-1][0] < curves["losses"][0][0]


def test_a_sample_of_the_trained_network_is_what_it_writes():
    model, _ = train_through_base(network(shared="added"), {"net": Signs()}, FAST, until=20)
    noise = torch.randn(2, model.bases["net"].layout.l, 32)
    with torch.no_grad():
        c = model.conditions("net", torch.randn(2, E), torch.tensor([True, True]))
        for steps in (1, 3):
            sampling = method.SamplingConfig(steps=steps, projection="none")
            written = model.write("net", c, noise, steps)
            assert torch.allclose(written, model.sample("net", c, noise, sampling), atol=1e-5)


@pytest.mark.parametrize("shared", ["none", "added", "only"])
def test_only_what_is_asked_for_is_shared_and_generated(shared):
    model = network(shared=shared)
    model, _ = train_through_base(model, {"net": Signs()}, FAST, until=30)
    noise = torch.randn(1, model.bases["net"].layout.l, 32).expand(2, -1, -1)
    with torch.no_grad():
        c = model.conditions("net", torch.randn(2, E), torch.tensor([True, True]))
        first, second = model.write("net", c, noise)
    assert torch.equal(first, second) == (shared == "only")
    assert (model.shared is None) == (shared == "none")
    assert first.abs().sum() > 0


def test_an_interrupted_training_continues_bit_for_bit(tmp_path):
    whole, curves = train_through_base(network(shared="added"), {"net": Signs()}, FAST, until=40)
    state = tmp_path / "state.safetensors"
    options = {"state": state, "key": "rows"}
    train_through_base(network(shared="added"), {"net": Signs()}, FAST, until=15, **options)
    torch.manual_seed(5)
    resumed, again = train_through_base(
        network(shared="added"), {"net": Signs()}, FAST, until=40, **options
    )
    assert again == curves
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    with pytest.raises(OralError, match="other settings"):
        train_through_base(network(shared="added"), {"net": Signs()}, FAST, state=state, key="else")


def test_a_diverging_training_stops_with_one_line():
    class Growing(Signs):
        def losses(self, adapters, key):
            return super().losses(adapters, key) * self.weight

        def draw(self, step):
            self.weight = 1.05**step
            return super().draw(step)

    with pytest.raises(OralError, match=r"diverged at step .*Use a lower lr") as error:
        train_through_base(network(), {"net": Growing()}, FAST)
    assert "\n" not in str(error.value)


def test_examples_are_read_in_any_order_and_left_out_where_not_given():
    model = network(examples=True)
    nn.init.normal_(model.condition.examples.shift.weight)
    text, none = torch.randn(1, E), torch.tensor([False])
    x, y = torch.randn(1, 5, E), torch.tensor([[0, 1, 1, 0, 1]])
    given = torch.tensor([[True, True, True, False, True]])
    order = torch.tensor([4, 2, 3, 0, 1])

    def c(*examples):
        return model.conditions("net", text, none, examples=Examples(*examples))

    first = c(x, y, given)
    assert torch.allclose(first, c(x[:, order], y[:, order], given[:, order]), atol=1e-6)
    assert torch.allclose(first, c(x + 9.0 * ~given[..., None], y, given), atol=1e-6)
    assert not torch.allclose(first, c(x, 1 - y, given), atol=1e-3)
    without = model.conditions("net", text, none)
    assert torch.allclose(c(x, y, torch.zeros_like(given)), without, atol=1e-6)


def test_examples_alone_tell_a_task():
    config = ThroughBaseConfig(
        steps=400, lr=3e-3, warmup=20, text_noise=0.0, text_dropout=1.0, example_dropout=0.0
    )
    _, curves = train_through_base(network(examples=True), {"net": Signs(True)}, config)
    late = torch.tensor(curves["losses"][-50:]).mean()
    assert late < 0.67 < torch.tensor(curves["losses"][:10]).mean()


def test_examples_for_a_network_that_reads_none_are_refused():
    model = network()
    examples = Examples(torch.zeros(1, 2, E), torch.zeros(1, 2).long(), torch.ones(1, 2).bool())
    with pytest.raises(UsageError, match="reads no examples"):
        model.conditions("net", torch.zeros(1, E), torch.tensor([True]), examples=examples)


def test_projection_of_a_network_with_a_shared_part_is_refused():
    with pytest.raises(UsageError, match="projection='none'"):
        network(shared="added").check("net", method.SamplingConfig())
