import dataclasses
import json

import pytest
import torch
import torch.nn.functional as F

from oral_lib.errors import OralError, UsageError
from oral_lib.method.denoiser import DENOISERS, ConvDenoiser, DenoiserConfig, denoiser

K, M, ROWS, TOKENS = 12, 6, 2, 5


def small(kind, **changes):
    torch.manual_seed(0)
    sizes = dict(hidden=16, depth=2, channels=(4, 8, 4), kernel=3) | changes
    return denoiser(DenoiserConfig(kind, **sizes), K, M)


def stirred(kind):
    """A denoiser after an imagined training: no weight is at its zero start any more."""
    model = small(kind)
    with torch.no_grad():
        for value in model.parameters():
            value.add_(0.2 * torch.randn(value.shape))
    return model


def inputs(per_token=False):
    g = torch.Generator().manual_seed(1)
    x, p = torch.randn(ROWS, TOKENS, K, generator=g), torch.randn(ROWS, TOKENS, M, generator=g)
    t = torch.randint(0, 1000, (ROWS, TOKENS) if per_token else (ROWS,), generator=g)
    return x, t, p, torch.randn(ROWS, M, generator=g)


@pytest.mark.parametrize("kind", DENOISERS)
@pytest.mark.parametrize("per_token", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_any_subset_of_tokens_in_any_order_gets_the_same_values(kind, per_token, training):
    model = stirred(kind).train(training)
    x, t, p, c = inputs(per_token)
    whole = model(x, t, p, c)
    for some in ([3], [4, 0], [2, 4, 1, 0, 3]):
        part = model(x[:, some], t[:, some] if per_token else t, p[:, some], c)
        torch.testing.assert_close(part, whole[:, some], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", DENOISERS)
def test_rows_do_not_meet(kind):
    model, (x, t, p, c) = stirred(kind), inputs()
    alone = model(x[1:], t[1:], p[1:], c[1:])
    torch.testing.assert_close(model(x, t, p, c)[1:], alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", DENOISERS)
def test_one_t_a_row_equals_that_t_for_each_of_its_tokens(kind):
    model, (x, t, p, c) = stirred(kind), inputs()
    each = t[:, None].expand(ROWS, TOKENS)
    torch.testing.assert_close(model(x, each, p, c), model(x, t, p, c), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", DENOISERS)
@pytest.mark.parametrize("which", [0, 1, 2, 3])
def test_every_token_feels_its_values_its_step_its_prototype_and_the_condition(kind, which):
    model, args = stirred(kind), list(inputs())
    before = model(*args)
    args[which] = args[which] + 1
    moved = (model(*args) - before).abs().amax(-1)
    assert (moved > 1e-4).all()


@pytest.mark.parametrize(("kind", "skip"), [("adanorm", True), ("adanorm", False), ("conv", True)])
def test_every_parameter_learns_once_the_zero_start_is_left(kind, skip):
    model, (x, t, p, c) = small(kind, skip=skip), inputs()
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):  # output first, then gates, then all (conv: at once)
        optimiser.zero_grad()
        F.mse_loss(model(x, t, p, c), x.roll(1, -1)).backward()
        idle = [n for n, v in model.named_parameters() if v.grad is None or not v.grad.any()]
        optimiser.step()
    assert idle == []


def test_adanorm_starts_by_predicting_zero():
    assert not small("adanorm")(*inputs()).any()


@pytest.mark.parametrize("kind", DENOISERS)
def test_a_few_tokens_can_be_learned_by_heart(kind):
    model, (x, t, p, c) = small(kind, hidden=32), inputs()
    want = torch.randn(x.shape, generator=torch.Generator().manual_seed(5))
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(150):
        optimiser.zero_grad()
        loss = F.mse_loss(model(x, t, p, c), want)
        loss.backward()
        optimiser.step()
    assert loss < 0.2 * want.square().mean()


def test_adanorm_lets_noise_wider_than_itself_through():
    """eps contains x: a bottleneck of `hidden` < k channels alone could not return it."""
    model, (_, t, p, c) = small("adanorm", hidden=4), inputs()
    optimiser = torch.optim.Adam(model.parameters(), lr=3e-2)
    g = torch.Generator().manual_seed(2)
    for _ in range(150):
        x = torch.randn(ROWS, TOKENS, K, generator=g)
        loss = F.mse_loss(model(x, t, p, c), x)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert loss < 0.05


@pytest.mark.parametrize("skip", [True, False])
def test_only_the_skip_passes_x_on_at_its_size(skip):
    model, (x, t, p, c) = small("adanorm", skip=skip), inputs()
    torch.nn.init.normal_(model.modulation.weight)
    torch.nn.init.normal_(model.leave.weight)
    grown = model(1e6 * x, t, p, c).abs().max() > 1e4  # layer norm bounds all the rest
    assert grown == skip


def test_conv_follows_rpg_layer_by_layer():
    model = denoiser(DenoiserConfig("conv"), K, M)
    assert [(v.in_channels, v.out_channels) for v in model.convs] == [
        (1, 32), (32, 64), (64, 128), (128, 64), (64, 32), (32, 1),
    ]  # fmt: skip
    assert all(v.kernel_size == (7,) for v in model.convs)
    x, t, p, c = inputs()
    q = (model.project(p) + model.condition(c)[:, None]).view(-1, 1, K)
    time = model.factor(F.silu(model.time(t))).repeat_interleave(TOKENS, 0)[:, None]

    def layer(i, h):
        return F.elu(model.norms[i](model.convs[i]((h + q) * time)))

    h1 = layer(0, x.view(-1, 1, K))
    h2 = layer(1, h1)
    h4 = layer(3, layer(2, h2))
    h5 = layer(4, h4 + h2)
    out = model.convs[5]((h5 + h1 + q) * time).view(ROWS, TOKENS, K)
    torch.testing.assert_close(model(x, t, p, c), out, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", DENOISERS)
def test_bf16_autocast_stays_near_float32(kind):
    model, args = stirred(kind), inputs()
    exact = model(*args)
    with torch.autocast("cpu", torch.bfloat16):
        rough = model(*args)
    assert (rough.float() - exact).abs().mean() < 0.03 * exact.abs().mean()


@pytest.mark.parametrize("kind", DENOISERS)
def test_flops_per_token_are_those_that_torch_counts(kind):
    from torch.utils.flop_counter import FlopCounterMode

    model, (x, t, p, c) = small(kind), inputs()
    counts = []
    for n in (1, TOKENS):  # the difference leaves out what is computed once a row
        with FlopCounterMode(display=False) as counter:
            model(x[:, :n], t, p[:, :n], c)
        counts.append(counter.get_total_flops())
    assert (counts[1] - counts[0]) / (ROWS * (TOKENS - 1)) == model.flops_per_token()


def test_a_config_survives_json():
    config = DenoiserConfig("conv", channels=(4, 8, 4))
    assert DenoiserConfig(**json.loads(json.dumps(dataclasses.asdict(config)))) == config
    assert isinstance(denoiser(config, K, M), ConvDenoiser)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (dict(kind="adanom"), r"kind='adanom'.*Did you mean 'adanorm'"),
        (dict(hidden=0), "hidden=0: must be"),
        (dict(depth=2.0), "depth=2.0: must be"),
        (dict(skip=1), "skip=1: must be"),
        (dict(kernel=6), "kernel=6: must be odd"),
        (dict(channels=(4, 8)), r"channels=\(4, 8\)"),
        (dict(channels=(4, 8, 5)), r"channels=\(4, 8, 5\)"),
        (dict(channels=(4, 0, 4)), r"channels=\(4, 0, 4\)"),
    ],
)
def test_a_config_that_cannot_be_meant_is_refused_with_its_value(wrong, message):
    with pytest.raises(UsageError, match=message):
        DenoiserConfig(**wrong)


@pytest.mark.parametrize("kind", DENOISERS)
@pytest.mark.parametrize("which", [0, 1, 2, 3])
def test_shapes_that_do_not_fit_are_refused_with_the_shapes(kind, which):
    args = list(inputs())
    args[which] = args[which][:1]
    with pytest.raises(OralError, match=r"got x .* it needs x \[b, s, 12\]"):
        small(kind)(*args)
    with pytest.raises(OralError, match="needs"):
        small(kind)(*(v[..., 0] for v in inputs(per_token=True)))
