import builtins

import pytest
import torch
import torch.nn.functional as F

from oral_lib import devices
from oral_lib.errors import OralError, PreflightError, UsageError
from oral_lib.method import recurrence
from oral_lib.method.recurrence import (
    RECURRENCES,
    Mamba2,
    Recurrence,
    RecurrenceConfig,
    fused_scan,
    mamba_ssm_scan,
    segment_sum,
    ssd,
    ssd_ref,
)


def small(kind="mamba2", **changes):
    sizes = dict(width=8, layers=2, state=4, head=4, conv=3, chunk=4) | changes
    torch.manual_seed(0)
    return Recurrence(RecurrenceConfig(kind, **sizes))


def scan_inputs(tokens, heads=3, p=4, n=5, dtype=torch.float32):
    """x, dt, A, B, C as a trained layer has them: dt above 0, A below 0."""
    g = torch.Generator().manual_seed(tokens)
    x = torch.randn(2, tokens, heads, p, generator=g)
    dt = 0.3 * torch.rand(2, tokens, heads, generator=g) + 1e-3
    A = -15 * torch.rand(heads, generator=g) - 0.1
    B, C = torch.randn(2, 2, tokens, n, generator=g)
    return [v.to(dtype) for v in (x, dt, A, B, C)]


SHAPES = [(1, 4), (3, 4), (4, 4), (5, 4), (8, 4), (17, 4), (40, 16), (9, 1), (30, 64)]


@pytest.mark.parametrize(("tokens", "chunk"), SHAPES)
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float64, 1e-12), (torch.float32, 2e-6)])
def test_chunked_scan_equals_the_recurrence_forward_and_backward(tokens, chunk, dtype, limit):
    inputs = [v.requires_grad_() for v in scan_inputs(tokens, dtype=dtype)]
    fast, slow = ssd(*inputs, chunk), ssd_ref(*inputs)
    torch.testing.assert_close(fast, slow, atol=limit, rtol=limit)
    seen = torch.randn(slow.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    for mine, theirs in zip(
        torch.autograd.grad(fast, inputs, seen),
        torch.autograd.grad(slow, inputs, seen),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs, atol=20 * limit, rtol=20 * limit)


@pytest.mark.parametrize("autocast", [False, True])
def test_bf16_scan_adds_up_in_float32(autocast):
    inputs = scan_inputs(300, dtype=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        y = ssd(*inputs, 64)
    assert y.dtype == torch.bfloat16
    # The twin works in float64 from the same bf16 inputs: only the last rounding may differ.
    torch.testing.assert_close(y, ssd_ref(*inputs), rtol=2**-7, atol=1e-5)


def test_scan_survives_decays_that_overflow_or_vanish():
    x, dt, A, B, C = scan_inputs(130)
    dt = torch.where(torch.arange(130)[:, None] % 3 == 0, 1e-6, 40.0).expand_as(dt)
    inputs = [v.clone().requires_grad_() for v in (x, dt, A, B, C)]
    y = ssd(*inputs, 64)
    scale = ssd_ref(*inputs).abs().max()
    torch.testing.assert_close(y / scale, ssd_ref(*inputs) / scale, atol=1e-6, rtol=0)
    assert all(g.isfinite().all() for g in torch.autograd.grad(y.sum(), inputs))


def test_segment_sum_keeps_its_digits_after_a_large_term():
    a = torch.tensor([-20_000.0, -0.001, -0.002])
    assert segment_sum(a)[2, 0].item() == pytest.approx(-0.003, rel=1e-6)
    assert segment_sum(a)[0, 1] == -torch.inf
    assert (segment_sum(a).diagonal() == 0).all()


def test_mamba2_layer_equals_its_equations_token_by_token():
    layer = Mamba2(RecurrenceConfig(width=8, state=4, head=4, conv=3, chunk=4))
    u = torch.randn(2, 11, 8)
    z, mixed, dt = layer.in_proj(u).split([16, 24, 4], -1)
    taps = layer.conv1d.weight[:, 0]  # [channels, 3], the last tap is the token itself
    state, ys = torch.zeros(2, 4, 4, 4), []
    for j in range(11):
        conv = layer.conv1d.bias + sum(
            taps[:, 2 - i] * mixed[:, j - i] for i in range(3) if j - i >= 0
        )
        x, B, C = F.silu(conv).split([16, 4, 4], -1)
        x = x.view(2, 4, 4)
        step = F.softplus(dt[:, j] + layer.dt_bias)
        state = (-step * layer.A_log.exp()).exp()[..., None, None] * state
        state = state + torch.einsum("bn,bhp,bh->bhnp", B, x, step)
        y = torch.einsum("bn,bhnp->bhp", C, state) + layer.D[:, None] * x
        y = y.reshape(2, 16) * F.silu(z[:, j])
        y = y * (y.square().mean(-1, keepdim=True) + 1e-5).rsqrt() * layer.norm.weight
        ys.append(layer.out_proj(y))
    torch.testing.assert_close(layer(u), torch.stack(ys, 1), atol=1e-6, rtol=1e-5)


def test_lstm_equals_cells_stepped_by_hand():
    model = small("lstm", layers=1)
    block = model.blocks[0]
    cell = torch.nn.LSTMCell(8, 8)
    with torch.no_grad():
        for name, value in cell.named_parameters():
            value.copy_(getattr(block.layer, f"{name}_l0"))
    u, state, outs = torch.randn(2, 7, 8), None, []
    for j in range(7):
        state = cell(block.norm(u[:, j]), state)
        outs.append(model.norm(u[:, j] + state[0]))
    torch.testing.assert_close(model(u), torch.stack(outs, 1), atol=1e-6, rtol=1e-5)


def test_transformer_equals_an_explicit_masked_softmax():
    model = small("transformer", layers=1)
    attend, feed = model.blocks
    u = torch.randn(2, 7, 8)
    query, key, value = attend.layer.in_proj(attend.norm(u)).chunk(3, -1)
    heads = []
    for part in (slice(0, 4), slice(4, 8)):
        scores = query[..., part] @ key[..., part].mT / 4**0.5
        scores = scores.masked_fill(torch.ones(7, 7).triu(1).bool(), -torch.inf)
        heads.append(scores.softmax(-1) @ value[..., part])
    out = u + attend.layer.out_proj(torch.cat(heads, -1))
    out = model.norm(out + feed.layer(feed.norm(out)))
    torch.testing.assert_close(model(u), out, atol=1e-6, rtol=1e-5)


CAUSAL = [kind for kind in RECURRENCES if kind != "bidirectional"]


@pytest.mark.parametrize("kind", CAUSAL)
@pytest.mark.parametrize("changed", [0, 1, 6, 11])
def test_no_output_sees_a_later_token(kind, changed):
    model, u = small(kind), torch.randn(2, 12, 8)
    before = model(u)
    u[:, changed] += 100
    after = model(u)
    torch.testing.assert_close(after[:, :changed], before[:, :changed], atol=1e-6, rtol=0)
    assert not torch.allclose(after[:, changed], before[:, changed])


@pytest.mark.parametrize("changed", [0, 11])
def test_a_bidirectional_transformer_sees_every_token_from_every_token(changed):
    model, u = small("bidirectional"), torch.randn(2, 12, 8)
    before = model(u)
    u[:, changed] += 1
    assert (model(u) != before).any(-1).all()


@pytest.mark.parametrize("kind", CAUSAL)
def test_a_prefix_alone_gives_the_prefix_of_the_outputs(kind):
    model, u = small(kind), torch.randn(2, 13, 8)
    whole = model(u)
    for tokens in (1, 3, 4, 8, 12):
        torch.testing.assert_close(model(u[:, :tokens]), whole[:, :tokens], atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("kind", RECURRENCES)
def test_memory_reaches_across_chunks_and_only_the_ablation_has_none(kind):
    model, u = small(kind), torch.randn(1, 30, 8)
    before = model(u)[:, -1]
    u[:, 0] += 1
    reached = not torch.equal(model(u)[:, -1], before)
    assert reached == (kind != "none")


@pytest.mark.parametrize("kind", RECURRENCES)
def test_every_parameter_gets_a_gradient(kind):
    model = small(kind)
    model(torch.randn(2, 9, 8)).pow(3).sum().backward()
    assert [n for n, v in model.named_parameters() if v.grad is None or not v.grad.any()] == []


@pytest.mark.parametrize("kind", ["mamba2", "lstm", "none"])
def test_four_thousand_tokens_stay_finite_forward_and_backward(kind):
    model = small(kind, chunk=64)
    u = torch.randn(1, 4000, 8, requires_grad=True)
    y = model(u)
    y.square().mean().backward()
    assert y.isfinite().all() and u.grad.isfinite().all()
    assert all(v.grad.isfinite().all() for v in model.parameters())


@pytest.mark.parametrize("kind", RECURRENCES)
def test_bf16_autocast_stays_near_float32(kind):
    if kind == "lstm" and devices.fast_dtype("cpu") != torch.bfloat16:
        pytest.skip("torch has no LSTM in bfloat16 for this processor, and training does not ask")
    model, u = small(kind, width=32), torch.randn(2, 20, 32)
    with torch.autocast("cpu", torch.bfloat16):
        rough = model(u)
    assert (rough.float() - model(u)).abs().mean() < 0.02


def test_the_chunk_changes_no_value():
    u = torch.randn(2, 21, 8)
    whole = small(chunk=64)(u)
    torch.testing.assert_close(small(chunk=4)(u), whole, atol=2e-6, rtol=1e-5)


def test_mamba2_traces_into_one_graph():
    model, u = small(), torch.randn(2, 9, 8)
    graph = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(graph(u), model(u))


def test_the_kernel_is_called_in_its_own_shapes_and_gives_the_same_values():
    def kernel(x, dt, A, B, C, chunk_size):
        assert B.shape == C.shape == (2, 9, 1, 5) and B.dtype == C.dtype == x.dtype
        assert dt.dtype == A.dtype == torch.float32
        return ssd_ref(x, dt, A, B[:, :, 0], C[:, :, 0])

    inputs = scan_inputs(9)
    torch.testing.assert_close(mamba_ssm_scan(kernel)(*inputs), ssd(*inputs), atol=2e-6, rtol=1e-5)


def test_a_missing_kernel_is_refused_only_when_asked_for_and_says_how_to_install(monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kw):
        if name.startswith("mamba_ssm"):
            raise ImportError("No module named 'mamba_ssm'")
        return real(name, *args, **kw)

    monkeypatch.setattr(builtins, "__import__", without)
    monkeypatch.setattr(recurrence.torch.cuda, "is_available", lambda: True)
    assert fused_scan("auto") is None and fused_scan("torch") is None
    with pytest.raises(PreflightError, match="pip install"):
        Recurrence(RecurrenceConfig(width=64), backend="mamba_ssm")


def test_an_explicit_kernel_never_falls_back_in_silence(monkeypatch):
    monkeypatch.setattr(recurrence, "fused_scan", lambda backend: ssd)
    model = Recurrence(RecurrenceConfig(width=8, head=4), backend="mamba_ssm")
    with pytest.raises(OralError, match=r"on cpu.*need CUDA"):
        model(torch.randn(1, 3, 8))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (dict(kind="mamba3"), r"kind='mamba3'.*Did you mean 'mamba2'"),
        (dict(width=0), r"width=0: must be"),
        (dict(layers=True), r"layers=True: must be"),
        (dict(state="64"), r"state='64': must be"),
        (dict(chunk=6.0), r"chunk=6.0: must be"),
        (dict(width=20), r"head=64: must divide expand \* width = 40"),
        (dict(kind="transformer", width=96), r"head=64: must divide width = 96"),
    ],
)
def test_a_config_that_cannot_be_meant_is_refused_with_its_value(wrong, message):
    with pytest.raises(UsageError, match=message):
        RecurrenceConfig(**wrong)


def test_an_unknown_backend_is_refused():
    with pytest.raises(UsageError, match=r"backend='mamba'.*Did you mean 'mamba_ssm'"):
        Recurrence(RecurrenceConfig(), backend="mamba")


@pytest.mark.parametrize("shape", [(3, 8), (2, 0, 8), (2, 3, 9)])
def test_a_wrong_input_shape_is_refused_with_the_shape(shape):
    with pytest.raises(OralError, match=r"it needs \[batch, tokens >= 1, 8\]"):
        small()(torch.zeros(shape))
