"""Statistics leak no condition; components are those of a slow plain twin."""

import pytest
import torch
import torch.nn.functional as F

from oral_lib.errors import OralError, UsageError
from oral_lib.method.normalization import TokenStatistics, procrustes_rotation
from oral_lib.method.tokenization import Layout, encode

torch.set_num_threads(1)


def rotation_ref(codes, targets):
    """Orthogonal Procrustes: the rotation [r, r] that brings `codes` closest to `targets`."""
    left, _, right = torch.linalg.svd(codes.mT @ targets)
    return left @ right


def fit_ref(plain, r, align):
    """(tokens [b, l, r], basis [l, r, k]) of `plain` [b, l, k], token by token in float64.

    Slow on purpose: each token's own singular value decomposition instead of Gram matrices.
    """
    plain = plain.double()
    b, length, _ = plain.shape
    joint = torch.zeros(b, r, dtype=torch.float64)
    # the zoo as one matrix [b, l k]: its strongest components are the common target
    u, s, _ = torch.linalg.svd(plain.flatten(1), full_matrices=False)
    rank = min(r, int((s.square() > 1e-6 * s[0].square()).sum()))
    joint[:, :rank] = u[:, :rank] * s[:rank] / length**0.5
    codes, directions, energies = [], [], []
    for token in range(length):
        u, s, v = torch.linalg.svd(plain[:, token], full_matrices=False)
        m = min(r, int((s.square() > 1e-6 * s[0].square().clamp_min(1e-12)).sum()))
        code = F.pad((u * s)[:, :m], (0, r - m))  # [b, r]
        direction = F.pad(v[:m], (0, 0, 0, r - m))  # [r, k]
        if align:
            rotation = rotation_ref(code, joint)
            rotation[:, rank:] = 0
            code, direction = code @ rotation, rotation.mT @ direction
        codes.append(code)
        directions.append(direction)
        energies += s[:m].square().tolist()
    size = (sum(energies) / (len(energies) * b)) ** 0.5  # components then have unit size
    return torch.stack(codes, 1) / size, torch.stack(directions) * size


def same_up_to_sign(one, other, axis):
    """Whether two tensors agree but for the sign of each component along `axis`."""
    one, other = one.movedim(axis, -1).double(), other.movedim(axis, -1).double()
    sign = (one * other).flatten(0, -2).sum(0).sign()
    size = other.abs().max()
    return bool(((one * sign - other).abs() < 1e-3 * size).all())


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("r", [1, 3, 9])
def test_aligned_components_are_those_of_the_slow_twin(seed, r):
    torch.manual_seed(seed)
    k, b = (5, 16, 40)[seed % 3], (4, 7, 12)[seed % 4 % 3]
    layout = Layout.of({"a": torch.zeros(6, k), "b": torch.zeros(3, k)}, k)
    scales = torch.linspace(2, 0.5, b)[:, None, None]  # the joint directions are then distinct
    values = scales * torch.randn(b, layout.l, k)
    values[:, 4, 2:] = 0  # a token of two directions
    center = torch.zeros(layout.l, k)
    plain = TokenStatistics.fit(layout, values, center).normalise(values)
    statistics = TokenStatistics.fit(layout, values, center, components=r)
    tokens, basis = fit_ref(plain, r, align=True)
    assert same_up_to_sign(statistics.normalise(values), tokens, 2)
    assert same_up_to_sign(statistics.basis, basis, 1)


@pytest.mark.parametrize("seed", range(4))
def test_components_that_are_not_aligned_are_singular_vectors_of_their_token(seed):
    torch.manual_seed(seed)
    layout = Layout.of({"a": torch.zeros(6, 20), "b": torch.zeros(3, 20)}, 20)
    values, center = torch.randn(8, layout.l, 20), torch.zeros(layout.l, 20)
    plain = TokenStatistics.fit(layout, values, center).normalise(values)
    statistics = TokenStatistics.fit(layout, values, center, components=5, align=False)
    found, (tokens, basis) = statistics.normalise(values), fit_ref(plain, 5, align=False)
    for token in range(layout.l):
        assert same_up_to_sign(found[:, token], tokens[:, token], 1)
        assert same_up_to_sign(statistics.basis[token], basis[token], 0)


@pytest.mark.parametrize("r", [1, 4, 20])
def test_normalising_divides_by_the_length_measured_on_the_basis(r):
    """Bit for bit what a Gram matrix made at every call would give, rotated or not."""
    layout, start, values = zoo()
    fitted = TokenStatistics.fit(layout, values, center=start, components=r)
    rotation = torch.linalg.qr(torch.randn(r, r, generator=torch.manual_seed(0))).Q
    for statistics in (fitted, fitted.rotated(rotation), fitted.to("cpu")):
        basis, plain = statistics.basis, (values - statistics.center) / statistics.scale
        gram = basis @ basis.mT
        trace = gram.diagonal(dim1=1, dim2=2).sum(1)
        squared = gram.square().sum((1, 2)) / trace
        products = torch.einsum("blk,lrk->blr", plain, basis)
        assert torch.equal(statistics.normalise(values), products / squared[:, None])
        # one length for all rows of a token: its Gram matrix is the length times a projection
        torch.testing.assert_close(gram @ gram, squared[:, None, None] * gram, atol=1e-3, rtol=1e-3)


def zoo(tasks=3, seeds=4):
    """Adapters as training leaves them: a shared start, a task's move, a seed's noise."""
    draw = torch.Generator().manual_seed(0)
    start = {
        f"base_model.model.layers.{i}.q.lora_{m}": torch.randn(shape, generator=draw) * (m == "A")
        for i in (0, 1)
        for m, shape in (("A", (3, 7)), ("B", (5, 3)))
    }
    members = []
    for _ in range(tasks):
        move = {n: torch.randn(t.shape, generator=draw) for n, t in start.items()}
        members += [
            {
                n: t + 0.02 * move[n] + 0.01 * torch.randn(t.shape, generator=draw)
                for n, t in start.items()
            }
            for _ in range(seeds)
        ]
    layout = Layout.of(start, 4)
    return layout, encode(layout, [start])[0], encode(layout, members)


def test_all_zero_tokens_decode_to_the_shared_start_exactly():
    layout, start, values = zoo()
    statistics = TokenStatistics.fit(layout, values, center=start)
    back = statistics.denormalise(torch.zeros(1, layout.l, layout.k))
    assert torch.equal(back[0], start)
    # and so no task's mean can hide in the statistics
    task_means = values.view(3, 4, layout.l, layout.k).mean(1)
    assert ((task_means - statistics.center).abs().amax((1, 2)) > 1e-3).all()


def test_the_scale_is_one_pooled_rms_a_tensor():
    layout, start, values = zoo()
    statistics = TokenStatistics.fit(layout, values, center=start)
    for tensor in range(len(layout.names)):
        here = layout.owner == tensor
        moves = (values - start)[:, here][:, layout.mask[here]]
        assert statistics.scale[here].unique().numel() == 1
        torch.testing.assert_close(statistics.scale[here][0, 0], moves.square().mean().sqrt())


@pytest.mark.parametrize("given_center", [True, False])
def test_normalised_tokens_have_unit_size_and_come_back(given_center):
    layout, start, values = zoo()
    statistics = TokenStatistics.fit(layout, values, center=start if given_center else None)
    tokens = statistics.normalise(values)
    assert not tokens[:, ~layout.mask].any()
    for tensor in range(len(layout.names)):
        here = layout.owner == tensor
        rms = tokens[:, here][:, layout.mask[here]].square().mean().sqrt()
        torch.testing.assert_close(rms, torch.tensor(1.0))
    torch.testing.assert_close(statistics.denormalise(tokens), values, rtol=1e-5, atol=1e-6)


def test_without_a_start_the_center_of_a_tensor_is_its_mean():
    layout, _, values = zoo()
    center = TokenStatistics.fit(layout, values).center
    for tensor in range(len(layout.names)):
        here = layout.owner == tensor
        real = values[:, here][:, layout.mask[here]]
        torch.testing.assert_close(center[here][layout.mask[here]].unique(), real.mean()[None])
    assert not center[~layout.mask].any()


def test_padding_is_ignored_in_statistics():
    layout, start, values = zoo()
    clean, noisy = values.clone(), torch.where(layout.mask, values, 1e6)
    for center in (None, start):
        one, two = (TokenStatistics.fit(layout, v, center=center) for v in (clean, noisy))
        assert torch.equal(one.scale, two.scale) and torch.equal(one.center, two.center)


def test_a_constant_tensor_and_rounding_noise_keep_their_size():
    tenth = torch.full((10,), 0.1)
    noise = torch.nextafter(tenth, torch.ones(10))
    members = [{"a": a, "b": torch.zeros(3), "c": torch.randn(5)} for a in (tenth, noise)]
    layout = Layout.of(members[0], 4)
    scale = TokenStatistics.fit(layout, encode(layout, members)).scale
    assert (scale[layout.owner < 2] == 1).all() and (scale[layout.owner == 2] != 1).all()


def test_statistics_refuse_what_is_none():
    layout, start, values = zoo()
    statistics = TokenStatistics.fit(layout, values, center=start)
    with pytest.raises(OralError, match="zero"):
        TokenStatistics(start, torch.zeros(layout.l, 1))
    with pytest.raises(OralError, match="NaN"):
        TokenStatistics(start * torch.nan, statistics.scale)
    with pytest.raises(UsageError, match=r"scale \[l, 1\]"):
        TokenStatistics(start, statistics.scale[1:])
    with pytest.raises(UsageError, match=r"basis \[l, r, k\]"):
        TokenStatistics(start, statistics.scale, torch.ones(layout.l, 2, layout.k - 1))
    with pytest.raises(OralError, match="NaN"):
        TokenStatistics(start, statistics.scale, torch.full((layout.l, 2, layout.k), torch.nan))
    with pytest.raises(UsageError, match="one adapter or more"):
        TokenStatistics.fit(layout, values[:0])
    with pytest.raises(UsageError, match="encode"):
        TokenStatistics.fit(layout, values, center=start[1:])


def test_components_are_of_unit_size_and_give_the_zoo_back_where_there_are_enough():
    layout, start, values = zoo()
    statistics = TokenStatistics.fit(layout, values, center=start, components=len(values) + 3)
    tokens, mask = statistics.normalise(values), statistics.mask(layout)
    assert tokens.shape == (len(values), layout.l, len(values) + 3)
    assert not mask[:, len(values) :].any()  # no more directions than adapters
    assert not tokens[:, ~mask].any()
    real = torch.linalg.matrix_rank(statistics.basis, rtol=1e-3).sum()  # small tokens have fewer
    size = tokens.square().sum() / (real * len(values))
    torch.testing.assert_close(size, torch.tensor(1.0))
    torch.testing.assert_close(statistics.denormalise(tokens), values, rtol=1e-4, atol=1e-5)
    zeros = statistics.denormalise(torch.zeros_like(tokens[:1]))
    assert torch.equal(zeros[0], start)  # still the base model


def test_an_adapter_has_the_same_components_in_all_tokens_where_tokens_move_together():
    torch.manual_seed(0)
    layout = Layout.of({"a": torch.zeros(5, 64), "b": torch.zeros(7, 64)}, 64)
    inner = torch.randn(9, 6) * torch.tensor([5.0, 5.0, 3.0, 2.0, 1.0, 0.5])
    ways = torch.linalg.qr(torch.randn(layout.l, 64, 6))[0]  # others in every token
    moved = torch.einsum("br,lkr->blk", inner, ways)
    statistics = TokenStatistics.fit(layout, moved, torch.zeros(layout.l, 64), components=6)
    tokens = statistics.normalise(moved)
    torch.testing.assert_close(tokens, tokens.mean(1, keepdim=True).expand_as(tokens))
    energy = tokens[:, 0].square().sum(0)
    assert (energy.diff() < 0).all()  # the strongest first
    plain = moved + 0.1 * torch.randn_like(moved)  # and nearly so with noise of their own
    tokens = TokenStatistics.fit(layout, plain, torch.zeros(layout.l, 64), components=6).normalise(
        plain
    )
    apart = (tokens - tokens.mean(1, keepdim=True)).square().sum() / tokens.square().sum()
    assert apart < 0.02


def test_a_turn_brings_codes_to_others_and_moves_nothing_further_than_it_must():
    torch.manual_seed(0)
    others = F.pad(torch.randn(3, 5), (0, 2))  # of seven components the last two are none
    turn = torch.linalg.qr(torch.randn(5, 5)).Q
    codes = F.pad(others[:, :5] @ turn, (0, 2))
    found = procrustes_rotation(codes, others)
    torch.testing.assert_close(found.mT @ found, torch.eye(7))
    torch.testing.assert_close(codes @ found, others, atol=2e-2, rtol=0)
    assert torch.equal(found[5:, 5:], torch.eye(2)) and not found[:5, 5:].any()
    torch.testing.assert_close(procrustes_rotation(others, others), torch.eye(7), atol=1e-5, rtol=0)


def test_turned_statistics_turn_tokens_and_give_the_same_values_back():
    layout, start, values = zoo()
    statistics = TokenStatistics.fit(layout, values, center=start, components=3)
    tokens, turn = statistics.normalise(values), torch.linalg.qr(torch.randn(3, 3)).Q
    other = statistics.rotated(turn)
    torch.testing.assert_close(other.normalise(values), tokens @ turn, atol=1e-5, rtol=1e-4)
    back = statistics.denormalise(tokens)
    torch.testing.assert_close(other.denormalise(tokens @ turn), back, atol=1e-5, rtol=1e-4)


def test_components_that_are_rounding_alone_mean_nothing():
    torch.manual_seed(0)
    layout = Layout.of({"a": torch.zeros(6, 32)}, 32)
    values = torch.einsum("br,lrk->blk", torch.randn(9, 3), torch.randn(layout.l, 3, 32))
    for align in (True, False):
        statistics = TokenStatistics.fit(
            layout, values, torch.zeros(layout.l, 32), components=5, align=align
        )
        assert statistics.mask(layout).sum(1).tolist() == [3] * layout.l


def test_a_zoo_that_never_left_its_start_has_no_components():
    layout, start, values = zoo()
    still = start.expand_as(values)
    statistics = TokenStatistics.fit(layout, still, center=start, components=2)
    assert not statistics.mask(layout).any()
    assert torch.equal(statistics.denormalise(statistics.normalise(still)), still)


def test_a_few_components_keep_what_singular_values_say():
    layout, start, values = zoo()
    plain = TokenStatistics.fit(layout, values, center=start).normalise(values)
    statistics = TokenStatistics.fit(layout, values, center=start, components=2)
    back = (statistics.denormalise(statistics.normalise(values)) - start) / statistics.scale
    for token in range(layout.l):
        left = torch.linalg.svdvals(plain[:, token])[2:].square().sum()
        lost = (back[:, token] - plain[:, token]).square().sum()
        torch.testing.assert_close(lost, left, rtol=1e-3, atol=1e-4)
