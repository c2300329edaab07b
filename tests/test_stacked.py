"""Many LoRAs trained at once are what each would have been alone."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from torch._dynamo.utils import counters
from torch.nn.functional import pad

from oral_lib import devices
from oral_lib.errors import OralError
from oral_lib.evaluation import scoring
from oral_lib.experiments import benchmarks
from oral_lib.lora import stacked
from oral_lib.lora.peft_model import take
from oral_lib.lora.stacked import Stack
from oral_lib.lora.stacked_layers import Siblings
from oral_lib.models import loading
from oral_lib.tasks.rows import task_rows
from oral_lib.tasks.task import load_task
from oral_lib.zoo import batches, training
from oral_lib.zoo.recipes import Recipe

torch.set_num_threads(1)
TINY = ("tiny-encoder", "tiny-causal")
SHORT = Recipe(steps=8, batch=4, lr=1e-2, checkpoints=(5,))


@pytest.fixture(scope="module")
def data():
    names = ("movie", "sarcasm", "quartz", "winogrande", "arithmetic", "gsm8k")
    return {name: task_rows(load_task(name), "made") for name in names}


def runs(*jobs):
    return [
        training.AdapterJob(load_task(task), seed, replace(SHORT, lr=lr)) for task, seed, lr in jobs
    ]


JOBS = (("movie", 0, 1e-2), ("sarcasm", 1, 3e-3), ("movie", 2, 1e-2))


@pytest.fixture(params=TINY)
def base(request):
    """A tiny base in float32: bfloat16 would hide small faults in its rounding."""
    loaded = loading.load(request.param)
    loaded.model.float()
    return loaded


def close(one, two):
    """Equal but for the rounding of float32, which sums in another order on every processor, and
    which a few steps of a high learning rate make larger."""
    torch.testing.assert_close(torch.tensor(one), torch.tensor(two), rtol=1e-3, atol=1e-4)


def same_as_alone(base, done, data):
    """The adapter and losses that PEFT, torch and transformers come to by themselves, but for
    rounding: Adam makes a whole step even of a gradient that is rounding alone."""
    alone, losses = benchmarks.train_plain(base, done.job, data)
    close(done.losses, losses)
    start = base.lora_init()
    off = {}
    for name, tensor in done.tensors.items():
        moved = (alone[name] - start[name]).norm()
        assert moved > 0
        off[name] = float((tensor - alone[name]).norm() / moved)
    most = 1e-2 if devices.fast_dtype("cpu") == torch.bfloat16 else 5e-2  # 0.018 seen on AVX2 alone
    assert max(off.values()) < most and np.median(list(off.values())) < 2e-3, off


def test_a_stack_trains_what_peft_trains_one_by_one(base, data):
    made = list(training.train(base, runs(*JOBS), data))
    for done in made:
        same_as_alone(base, done, data)
    assert [done.job.seed for done in made] == [0, 1, 2]


@pytest.mark.parametrize(
    "names", [("quartz", "winogrande", "quartz"), ("arithmetic", "gsm8k", "arithmetic")]
)
def test_options_and_written_answers_are_trained_as_peft_trains_them(names, data):
    base = loading.load("tiny-causal")
    base.model.float()
    jobs = [(name, seed, 1e-2) for seed, name in enumerate(names)]
    for done in training.train(base, runs(*jobs), data):
        same_as_alone(base, done, data)


def test_tasks_that_are_scored_in_other_ways_get_stacks_of_their_own(data):
    base = loading.load("tiny-causal")
    base.model.float()
    jobs = [(name, 0, 1e-2) for name in ("arithmetic", "movie", "quartz", "sarcasm")]
    made = list(training.train(base, runs(*jobs), data))
    assert sorted(d.job.task.name for d in made) == sorted(name for name, *_ in jobs)
    for done in made:
        same_as_alone(base, done, data)


def test_a_stack_step_is_reused_by_the_next_stack_without_a_trace(base, data):
    trainer = training.StackTrainer(base, 64)
    stacks = [runs(("movie", s, 1e-2), ("movie", s + 1, 3e-3)) for s in (0, 2)]
    stacks.append(runs(("sarcasm", 0, 1e-2), ("sarcasm", 1, 1e-2)))
    for stack in stacks:
        for done in trainer.train(stack, data):
            same_as_alone(base, done, data)
    assert len(trainer.steps) == 1  # on a GPU its graphs are captured once


def test_a_moves_at_its_share_of_the_learning_rate(base, data):
    [run] = runs(("movie", 0, 1e-2))
    start, moved = base.lora_init(), {}
    for ratio in (1.0, 16.0, 1e9):
        recipe = replace(run.recipe, ratio=ratio)
        [done] = training.train(base, [replace(run, recipe=recipe)], data)
        if ratio < 1e9:  # PEFT moves A by less than float32 can hold, too
            same_as_alone(base, done, data)
        for part in (".lora_A", ".lora_B"):
            names = [n for n in start if part in n]
            moved[ratio, part] = sum(float((done.tensors[n] - start[n]).norm()) for n in names)
    assert 1 / 32 < moved[16.0, ".lora_A"] / moved[1.0, ".lora_A"] < 1 / 8
    assert 1 / 2 < moved[16.0, ".lora_B"] / moved[1.0, ".lora_B"] < 2
    assert moved[1e9, ".lora_A"] < 1e-5 < moved[1e9, ".lora_B"]


def test_runs_of_other_lengths_in_one_stack_end_where_each_would_alone(base, data):
    lengths = (5, 8, 3)
    mixed = [
        replace(run, recipe=replace(run.recipe, steps=steps, checkpoints=()))
        for run, steps in zip(runs(*JOBS), lengths, strict=True)
    ]
    made = list(training.train(base, mixed, data))
    for done, steps in zip(made, lengths, strict=True):
        assert len(done.losses) == steps and list(done.checkpoints) == [steps]
        same_as_alone(base, done, data)


def test_an_adapter_does_not_feel_its_neighbours(base, data):
    one, *_ = training.train(base, runs(*JOBS), data)
    other, *_ = training.train(
        base, runs(JOBS[0], ("sarcasm", 5, 1e-1), ("sarcasm", 6, 1e-4)), data
    )
    for name, tensor in one.tensors.items():
        torch.testing.assert_close(tensor, other.tensors[name], atol=1e-5, rtol=1e-4)


def test_larger_groups_than_fit_are_cut(base, data):
    whole = list(training.train(base, runs(*JOBS), data))
    cut = list(training.train(base, runs(*JOBS), data, stack_size=2))
    assert [d.job for d in whole] == [d.job for d in cut]
    for one, two in zip(whole, cut, strict=True):
        close(one.losses, two.losses)


def test_an_interrupted_stack_goes_on_bit_for_bit(base, data, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "STACK_SAVE_EVERY", 5)
    straight = list(training.train(base, runs(*JOBS), data))
    update = Stack.update

    def cut(self, *rest):
        if self.step == 7:
            raise KeyboardInterrupt
        return update(self, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(Stack, "update", cut)
        with pytest.raises(KeyboardInterrupt):
            list(training.train(base, runs(*JOBS), data, state=tmp_path))
    list(training.train(base, runs(*JOBS[:2]), data, state=tmp_path))  # other runs, another state
    resumed = list(training.train(base, runs(*JOBS), data, state=tmp_path))
    for one, two in zip(straight, resumed, strict=True):
        assert one.losses == two.losses and list(one.checkpoints) == list(two.checkpoints) == [5, 8]
        for step, kept in one.checkpoints.items():
            assert all(torch.equal(kept[n], two.checkpoints[step][n]) for n in kept)
    assert list(tmp_path.iterdir()) == []


def padding(laid):
    """Share of padding among all tokens of all steps."""
    lengths = laid.table.lengths.view(-1, laid.table.options).sum(1)  # [rows]
    tokens = sum(laid.widths) * laid.rows.shape[1] * laid.table.options
    return 1 - lengths[laid.rows].sum().item() / tokens


def test_tasks_and_seeds_of_ragged_lengths_need_little_padding(data, monkeypatch):
    base, rng = loading.load("tiny-causal"), np.random.default_rng(0)
    ragged, jobs = {}, [(load_task(n), s) for n in ("movie", "sarcasm") for s in range(4)]
    for task, _ in jobs:  # lengths as SST-2 has them: most short, a few long
        long = np.clip(rng.lognormal(2.2, 0.8, 400), 2, 60).astype(int)
        rows = [replace(r, text=" ".join(["the"] * n)) for r, n in
                zip(data[task.name].train * 400, long, strict=False)]  # fmt: skip
        rows = [replace(row, key=f"{task.name}-{i}") for i, row in enumerate(rows)]
        ragged[task.name] = replace(data[task.name], train=tuple(rows))
    aligned = batches.StackBatches.of(base, jobs, ragged, steps=100, batch=SHORT.batch)
    grouped = batches.batches
    with monkeypatch.context() as patch:
        patch.setattr(batches, "batches", lambda *args, mixed: grouped(*args, mixed=True))
        shuffled = batches.StackBatches.of(base, jobs, ragged, steps=100, batch=SHORT.batch)
    assert padding(aligned) < 0.3 < 0.6 < padding(shuffled)
    batch, answers, words = aligned.step(0)
    assert batch.ids.shape == batch.mask.shape == (8 * SHORT.batch, aligned.widths[0])
    assert len(answers) == len(words) == 8 * SHORT.batch


def test_a_convolution_under_a_stack_is_that_of_peft():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 6, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(6, 4, 1))
    config = LoraConfig(r=2, lora_alpha=6, target_modules=["0", "2"])
    x, plain, parts = torch.randn(3, 5, 3, 9, 9), [], []
    for s in range(3):
        wrapped = get_peft_model(net, config)
        with torch.no_grad():
            for name, value in wrapped.named_parameters():
                if "lora_" in name:
                    value.normal_(generator=torch.Generator().manual_seed(s))
        parts.append(take(wrapped))
        plain.append(wrapped(x[s]).detach())
        net = wrapped.unload()
    stack = Stack(parts[0], 3)
    with torch.no_grad():
        for name, part in stack.parts.items():
            part.copy_(torch.stack([p[name] for p in parts]))
    with stacked.attached(net, stack, 3.0) as model:
        seen = model(x.flatten(0, 1)).detach()
    torch.testing.assert_close(seen, torch.cat(plain), atol=1e-3, rtol=1e-3)
    assert type(net[0]) is nn.Conv2d


def test_what_cannot_be_stacked_is_refused_and_the_model_left_as_it_was(refused):
    net = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))
    first = net[0]
    lora = {"lora_A.weight": torch.zeros(2, 4), "lora_B.weight": torch.zeros(4, 2)}
    start = {f"base_model.model.0.{n}": v for n, v in lora.items()}
    odd = start | {"base_model.model.1.weight": torch.zeros(4)}
    with refused(OralError, "1 is a LayerNorm", "weight"), stacked.attached(net, Stack(odd, 2), 1):
        pass
    assert net[0] is first
    dora = start | {"base_model.model.0.lora_magnitude_vector.weight": torch.zeros(4)}
    with refused(OralError, "magnitude_vector"), stacked.attached(net, Stack(dora, 2), 1):
        pass
    grouped = nn.Sequential(nn.Conv2d(4, 4, 1, groups=2))
    with refused(OralError, "2 groups"), stacked.attached(grouped, Stack(start, 2), 1):
        pass


def test_a_state_of_another_shape_is_refused(refused):
    start = {"a": torch.zeros(3)}
    with refused(OralError, "another shape"):
        Stack(start, 2).load(Stack(start, 3).state())


# ---------------------------------------------------------------- the one operation
def lora_case(dtype=torch.float64, bias=True):
    """(x, W, biases, A, B, scale) of two adapters over three rows each, on two layers."""
    draw = torch.Generator().manual_seed(0)

    def some(*shape, grad=False):
        return torch.randn(shape, generator=draw, dtype=dtype).requires_grad_(grad)

    weights, biases = [some(5, 7), some(6, 7)], [some(5), some(6)] if bias else []
    lora_b = [some(2, 5, 3, grad=True), some(2, 6, 2, grad=True)]
    return some(6, 4, 7, grad=True), weights, biases, some(2, 5, 7, grad=True), lora_b, 1.5


def plain_lora(x, weights, biases, lora_a, lora_b, scale):
    """y = x W^T + bias + scale (x A^T) B^T of each layer, group by group."""
    groups = x.view(len(lora_a), -1, x.shape[-1])
    for i, a in enumerate(lora_a.split([b.shape[2] for b in lora_b], 1)):
        y = groups @ weights[i].T + scale * (groups @ a.mT) @ lora_b[i].mT
        yield (y + biases[i] if biases else y).view(*x.shape[:-1], -1)


@pytest.mark.parametrize("bias", [True, False])
def test_the_operation_keeps_the_rules_of_torch(bias):
    torch.library.opcheck(torch.ops.oral.lora.default, lora_case(torch.float32, bias))


@pytest.mark.parametrize("bias", [True, False])
def test_the_operation_is_the_equation_and_its_gradients_are_those_of_autograd(bias):
    case = lora_case(bias=bias)
    x, _, _, lora_a, lora_b, _ = case
    *ours, _ = torch.ops.oral.lora(*case)
    plain, draw = list(plain_lora(*case)), torch.Generator().manual_seed(1)
    torch.testing.assert_close(ours, plain, atol=1e-12, rtol=1e-12)
    dys = [torch.randn(y.shape, dtype=y.dtype, generator=draw) for y in ours]
    for one, other in zip(
        torch.autograd.grad(ours, (x, lora_a, *lora_b), dys),
        torch.autograd.grad(plain, (x, lora_a, *lora_b), dys),
        strict=True,
    ):
        torch.testing.assert_close(one, other, atol=1e-12, rtol=1e-12)


def test_layers_that_read_something_else_than_their_siblings_are_right_too():
    x, weights, _, lora_a, lora_b, scale = lora_case(bias=False)
    layers = [nn.Linear(7, len(w), bias=False, dtype=w.dtype) for w in weights]
    for layer, weight in zip(layers, weights, strict=True):
        layer.weight.data = weight
    cuts = lora_a.detach().split([b.shape[2] for b in lora_b], 1)
    parts = [{"A": a, "B": b.detach()} for a, b in zip(cuts, lora_b, strict=True)]
    group = Siblings(layers, parts, scale)
    case = (weights, [], lora_a, lora_b, scale)
    with torch.no_grad():
        for first, second in ((x, x), (x, 2 * x), (2 * x, x), (x, x)):
            one, _ = plain_lora(first, *case)
            _, other = plain_lora(second, *case)
            torch.testing.assert_close((group(first, 0), group(second, 1)), (one, other))


class Skipping(nn.Module):
    """Attention that leaves out its keys, or fails before them."""

    def __init__(self):
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(4, 4) for _ in range(3))
        self.fails = False

    def forward(self, x):
        y = self.q_proj(x)
        if self.fails:
            raise ValueError("stopped")
        return y + self.v_proj(x)


@pytest.mark.parametrize("call", ["the whole model", "a part of it"])
def test_no_activation_is_kept_after_a_call(call):
    net = nn.Sequential()
    net.core = nn.Sequential()
    net.core.layers = nn.Sequential(Skipping(), Skipping())
    run = net if call == "the whole model" else net.core
    names = [f"core.layers.{i}.{m}_proj" for i in range(2) for m in "qkv"]
    start = {f"base_model.model.{n}.lora_A.weight": torch.ones(2, 4) for n in names}
    start |= {f"base_model.model.{n}.lora_B.weight": torch.ones(4, 2) for n in names}

    def kept():
        return [m for m in net.modules() if isinstance(m, Siblings) and (m.outputs or m.input)]

    groups = []
    with stacked.attached(net, Stack(start, 3), 1.0):
        groups = [m for m in net.modules() if isinstance(m, Siblings)]
        assert len(groups) == 2
        run(torch.randn(6, 4))
        assert kept() == []
        net.core.layers[1].fails = True
        with pytest.raises(ValueError):
            run(torch.randn(6, 4))
        assert kept() == []
        net.core.layers[0](torch.randn(6, 4))  # a block alone: what it keeps goes on exit
    assert all(not group.outputs and group.input is None for group in groups)
    assert not net._forward_hooks and not net.core._forward_hooks


def test_a_compiled_block_learns_what_a_plain_one_does(data):
    base = loading.load("tiny-causal")
    base.model.float()
    task = load_task("movie")
    found = batches.StackBatches.of(base, [(task, 0), (task, 1)], data, steps=2, batch=4)
    stack = Stack(base.lora_init(), 2)
    with torch.no_grad():
        stack.values.add_(0.1 * torch.randn(stack.values.shape, generator=torch.manual_seed(0)))

    def learned(tokens=0):
        batch, answers, words = found.step(0)
        batch = replace(batch, ids=pad(batch.ids, (0, tokens)))
        losses = scoring.losses(base.model, base, found.scoring_kind, batch, answers, words)
        return losses, *torch.autograd.grad(losses.sum(), list(stack.parts.values()))

    with stacked.attached(base.model, stack, 2.0):
        plain = learned()
        blocks = base.model.model.layers
        try:
            for block in blocks:
                block.compile(dynamic=True, backend="aot_eager", fullgraph=True)
            compiled = learned()
            known = counters["stats"]["unique_graphs"]
            learned(tokens=3)
            assert counters["stats"]["unique_graphs"] == known  # one code for every width
        finally:
            for block in blocks:
                block._compiled_call_impl = None
    for one, other in zip(plain, compiled, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)
