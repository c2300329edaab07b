import math
from itertools import pairwise

import pytest
import torch

from oral_lib.errors import OralError, UsageError
from oral_lib.method.diffusion import OBJECTIVES, SCHEDULES, Diffusion, DiffusionConfig

T = 1000


def chain(objective="eps", **changes):
    return Diffusion(DiffusionConfig(objective=objective, **changes))


def oracle(schedule, x0):
    """The denoiser that knows x0, whatever the objective."""

    def denoise(x_t, t):
        assert t.dtype == torch.long and t.shape == x_t.shape[:1]
        a, s = (v.double() for v in schedule._coefficients(t, x_t))
        return schedule.target(x0, (x_t.double() - a * x0) / s, t).to(x_t.dtype)

    return denoise


def tokens(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_linear_chain_has_the_published_numbers():
    abar = chain().abar
    assert abar.dtype == torch.float64 and abar.shape == (T,)
    assert abar[0].item() == pytest.approx(1 - 1e-4, rel=1e-12)
    assert abar[-1].item() == pytest.approx(4.0358e-5, rel=1e-4)


def test_cosine_chain_follows_its_formula_until_the_clip():
    abar = chain(kind="cosine").abar
    f = lambda t: math.cos((t / T + 0.008) / 1.008 * math.pi / 2) ** 2  # noqa: E731
    for t in (0, 10, 499, 900):
        assert abar[t].item() == pytest.approx(f(t + 1) / f(0), rel=1e-9)
    assert 0 < abar[-1] < 1e-8


@pytest.mark.parametrize("kind", SCHEDULES)
@pytest.mark.parametrize("zero", [False, True])
def test_signal_falls_strictly_and_stays_in_range(kind, zero):
    abar = chain("v", kind=kind, zero_terminal_snr=zero).abar
    assert (abar.diff() < 0).all() and abar[0] < 1 and abar[-1] >= 0
    assert (abar[-1] == 0) == zero
    assert abar[0].item() == pytest.approx(chain(kind=kind).abar[0].item(), rel=1e-12)


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("shape", [(4,), (4, 3)])
def test_target_and_conversions_invert_each_other(objective, shape):
    schedule = chain(objective)
    x0, eps = tokens(4, 3, 5), tokens(4, 3, 5, seed=1)
    t = torch.randint(0, T // 2, shape, generator=torch.Generator().manual_seed(2))
    x_t = schedule.add_noise(x0, eps, t)
    pred = schedule.target(x0, eps, t)
    torch.testing.assert_close(schedule.to_x0(pred, x_t, t), x0, atol=2e-5, rtol=1e-5)
    back = schedule._eps(pred, x_t, *schedule._coefficients(t, x_t))
    torch.testing.assert_close(back, eps, atol=2e-4, rtol=1e-3)


def test_a_denoiser_of_x0_reads_the_least_squares_estimate_of_it():
    schedule = chain("x0")
    x0, eps, t = tokens(20000, 1), tokens(20000, 1, seed=1), torch.full((20000,), 300)
    x_t = schedule.add_noise(x0, eps, t)
    slope = (x_t * x0).mean() / x_t.square().mean()  # of the best line through the origin
    torch.testing.assert_close(schedule.denoiser_input(x_t, t), slope * x_t, atol=0.05, rtol=0.05)
    last = torch.full((20000,), T - 1)
    assert schedule.denoiser_input(eps, last).square().mean() < 1e-3  # noise alone is not read


@pytest.mark.parametrize("t", [0, 500, 800])
def test_the_middle_is_the_least_squares_estimate_of_the_mean_of_x0(t):
    schedule, mean = chain("x0"), tokens(20_000, 1, 1)
    when = torch.full((len(mean),), t)
    x0 = mean.expand(-1, 30, -1)
    found = schedule.mean_estimate(schedule.add_noise(x0, tokens(*x0.shape, seed=1), when), when)
    assert found.shape == mean.shape
    best = (found * mean).sum() / found.square().sum()  # the factor that would still improve it
    assert best.item() == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("how", [{"objective": "eps"}, {"objective": "v"}, {"scale_input": False}])
def test_other_denoisers_read_x_t_as_it_is(how):
    schedule = Diffusion(DiffusionConfig(**{"objective": "x0"} | how))
    x_t = tokens(4, 3)
    assert schedule.denoiser_input(x_t, torch.tensor([0, 9, 500, 999])) is x_t


def test_noise_and_velocity_are_a_rotation():
    schedule = chain("v")
    x0, eps, t = tokens(5, 7), tokens(5, 7, seed=1), torch.tensor([0, 1, 500, 998, 999])
    x_t, v = schedule.add_noise(x0, eps, t), schedule.target(x0, eps, t)
    torch.testing.assert_close(x_t**2 + v**2, x0**2 + eps**2, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("n", [1, 2, 3, 5, 7, 50, 333, 999, T])
def test_timesteps_start_at_the_last_and_fall_strictly(n):
    steps = chain().timesteps(n)
    assert steps[0] == T - 1 and steps[-1] >= 0 and len(steps) == n
    assert all(a > b for a, b in pairwise(steps))


def test_timesteps_are_these():
    assert chain().timesteps(5) == [999, 799, 599, 399, 199]
    assert chain().timesteps(3) == [999, 666, 333]
    assert chain().timesteps(T) == list(range(999, -1, -1))


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("kind", SCHEDULES)
@pytest.mark.parametrize("n", [1, 2, 5, 50, T])
@pytest.mark.parametrize("sampler", ["ddim", "ddpm"])
def test_sampling_with_an_oracle_returns_x0(objective, kind, n, sampler):
    schedule, x0 = chain(objective, kind=kind), tokens(2, 3, 4).double()
    generator = torch.Generator().manual_seed(3)
    got = schedule.sample(
        oracle(schedule, x0), tokens(2, 3, 4, seed=1), n, sampler=sampler, generator=generator
    )
    assert got.dtype == torch.float32
    # One step with eps divides float32 rounding by sqrt(abar) = 6e-3 (linear) or 5e-5 (cosine).
    limit = {"linear": 1e-4, "cosine": 1e-2}[kind] if (objective, n) == ("eps", 1) else 2e-6
    torch.testing.assert_close(got.double(), x0, atol=limit, rtol=0)


@pytest.mark.parametrize("objective", ["x0", "v"])
@pytest.mark.parametrize("kind", SCHEDULES)
@pytest.mark.parametrize("sampler", ["ddim", "ddpm"])
def test_sampling_with_an_oracle_returns_x0_without_terminal_signal(objective, kind, sampler):
    schedule = chain(objective, kind=kind, zero_terminal_snr=True)
    x0 = tokens(2, 5).double()
    for n in (1, 2, 12, T):  # 12: with ddpm, sigma^2 rounds to more than all that is left
        got = schedule.sample(oracle(schedule, x0), tokens(2, 5, seed=1), n, sampler=sampler)
        torch.testing.assert_close(got.double(), x0, atol=2e-6, rtol=0)


def test_last_step_returns_the_predicted_x0_untouched():
    schedule, out = chain("x0"), tokens(2, 5, seed=7)
    for sampler in ("ddim", "ddpm"):
        got = schedule.sample(lambda x, t: out, tokens(2, 5), 4, sampler=sampler)
        assert torch.equal(got, out)


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize(
    ("sampler", "n", "eta", "spread"),
    [("ddim", 50, 0.0, 0.93), ("ddim", T, 0.0, 1), ("ddim", T, 0.5, 1), ("ddpm", T, 0.0, 1)],
)
def test_sampling_gaussian_data_recovers_mean_and_spread(objective, sampler, n, eta, spread):
    """With the exact denoiser of N(mu, sd^2); a wrong variance anywhere shows in the spread.

    DDIM follows its curve in straight pieces: 50 of them lose 7% of the spread, 1,000 none of it.
    """
    schedule, mu, sd, count = chain(objective), 1.5, 0.4, 10_000

    def denoise(x_t, t):
        a, s = schedule._coefficients(t, x_t)
        x0 = mu + a * sd**2 / (a**2 * sd**2 + s**2) * (x_t - a * mu)
        return schedule.target(x0, (x_t - a * x0) / s, t)

    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(count, generator=generator)
    x0 = schedule.sample(denoise, noise, n, sampler=sampler, eta=eta, generator=generator)
    assert x0.mean().item() == pytest.approx(mu, abs=0.02)
    assert x0.std().item() == pytest.approx(spread * sd, rel=0.025)


def test_one_ancestral_step_has_the_mean_and_variance_of_the_posterior():
    """q(x_prev | x_t, x_0) of DDPM (equation 7), over a stride of several steps."""
    schedule, x0, count = chain("x0"), torch.tensor(0.7), 200_000
    x_t = torch.full((count,), 0.3)
    first, second = schedule.timesteps(3)[:2]
    seen = []

    def denoise(x, t):
        seen.append(x)
        return x0.expand(count)

    generator = torch.Generator().manual_seed(0)
    schedule.sample(denoise, x_t, 3, sampler="ddpm", generator=generator)
    now, to = schedule.abar[first].item(), schedule.abar[second].item()
    alpha = now / to
    mean = (math.sqrt(to) * (1 - alpha) * 0.7 + math.sqrt(alpha) * (1 - to) * 0.3) / (1 - now)
    spread = math.sqrt((1 - alpha) * (1 - to) / (1 - now))
    assert seen[1].mean().item() == pytest.approx(mean, abs=4 * spread / math.sqrt(count))
    assert seen[1].std().item() == pytest.approx(spread, rel=0.01)


def test_ddim_draws_no_noise_and_randomness_comes_from_the_generator_alone():
    schedule, noise = chain("v"), tokens(2, 5)

    def run(seed, **how):
        torch.manual_seed(torch.seed() % 2**32)  # the global state must not matter
        generator = torch.Generator().manual_seed(seed)
        return schedule.sample(lambda x, t: x.tanh(), noise, 10, generator=generator, **how)

    assert torch.equal(run(1), run(2))
    for how in (dict(eta=0.5), dict(sampler="ddpm")):
        assert torch.equal(run(1, **how), run(1, **how))
        assert not torch.equal(run(1, **how), run(2, **how))


def test_clip_bounds_every_x0_on_the_way():
    schedule = chain("eps")
    got = schedule.sample(lambda x, t: torch.zeros_like(x), tokens(2, 50), 5, clip=1.0)
    assert got.abs().max() <= 1
    x0 = tokens(2, 5).clamp(-1, 1).double()  # a clip that does not bite changes nothing
    got = schedule.sample(oracle(schedule, x0), tokens(2, 5, seed=1), 50, clip=3.0)
    torch.testing.assert_close(got.double(), x0, atol=2e-6, rtol=0)


def test_a_bf16_network_does_not_make_the_chain_bf16():
    schedule, out = chain("x0"), tokens(2, 5).bfloat16()
    assert schedule.sample(lambda x, t: out, tokens(2, 5), 3).dtype == torch.float32
    assert schedule.add_noise(tokens(2, 5), tokens(2, 5), torch.tensor([1, 2])).dtype == (
        torch.float32
    )


def test_weights_are_one_without_gamma():
    assert torch.equal(chain().loss_weight(torch.arange(T)), torch.ones(T))


def test_min_snr_weights_mean_the_same_error_of_x0_for_each_objective():
    """The same denoiser, whatever it predicts, has the same weighted loss."""
    t, error = torch.tensor([0, 50, 400, 700]), tokens(4, 6)
    x0, eps = tokens(4, 6, seed=1), tokens(4, 6, seed=2)
    losses = {}
    for objective in OBJECTIVES:
        schedule = chain(objective, min_snr_gamma=5.0)
        x_t = schedule.add_noise(x0, eps, t)
        wrong_x0 = x0 + 0.1 * error
        a, s = schedule._coefficients(t, x_t)
        wrong_eps = (x_t - a * wrong_x0) / s
        miss = schedule.target(wrong_x0, wrong_eps, t) - schedule.target(x0, eps, t)
        losses[objective] = schedule.loss_weight(t) * miss.square().mean(-1)
    snr = (chain().abar / (1 - chain().abar))[t].float()
    torch.testing.assert_close(
        losses["x0"], snr.clamp(max=5) * 0.01 * error.square().mean(-1), rtol=1e-4, atol=0
    )
    torch.testing.assert_close(losses["eps"], losses["x0"], rtol=5e-3, atol=0)
    torch.testing.assert_close(losses["v"], losses["x0"], rtol=5e-3, atol=0)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (dict(steps=1), "steps=1: must be"),
        (dict(steps=1e3), r"steps=1000.0: must be"),
        (dict(kind="cosin"), r"kind='cosin'.*Did you mean 'cosine'"),
        (dict(objective="epsilon"), "objective='epsilon'"),
        (dict(beta_start=0.03), r"beta_start=0.03, beta_end=0.02"),
        (dict(beta_end=1.0), "beta_end=1.0"),
        (dict(min_snr_gamma=0), "min_snr_gamma=0"),
        (dict(min_snr_gamma=float("nan")), "min_snr_gamma=nan"),
        (dict(zero_terminal_snr=True), "zero_terminal_snr=True with objective='eps'"),
        (dict(objective="v", zero_terminal_snr=True, min_snr_gamma=5.0), "never be trained"),
        (dict(steps=100), r"steps=100 with beta_end=0.02: 36% of the signal is left"),
    ],
)
def test_a_chain_that_cannot_be_meant_is_refused_with_its_value(wrong, message):
    with pytest.raises(UsageError, match=message):
        Diffusion(DiffusionConfig(**wrong))


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (dict(steps=0), "0 sampling steps"),
        (dict(steps=T + 1), "1001 sampling steps"),
        (dict(steps=5.0), r"5\.0 sampling steps"),
        (dict(sampler="dim"), r"sampler='dim'.*Did you mean 'ddim'"),
        (dict(eta=1.5), "eta=1.5"),
        (dict(sampler="ddpm", eta=0.5), "eta belongs to ddim"),
        (dict(clip=0.0), "clip=0.0"),
    ],
)
def test_a_way_of_sampling_that_cannot_be_meant_is_refused(how, message):
    with pytest.raises(UsageError, match=message):
        chain().sample(lambda x, t: x, tokens(2, 5), **dict(steps=5) | how)


def test_a_denoiser_that_returns_another_shape_is_refused():
    with pytest.raises(OralError, match=r"returned \(2, 1\) for \(2, 5\)"):
        chain().sample(lambda x, t: x[:, :1], tokens(2, 5), 5)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_clean_state_on_the_way_is_projected(objective):
    schedule, seen = chain(objective=objective), []
    flat = lambda x: x.mean(-1, keepdim=True).expand_as(x)  # noqa: E731  all values of a token alike

    def project(x0):
        seen.append(x0)
        return flat(x0)

    x0 = tokens(2, 5)
    got = schedule.sample(oracle(schedule, x0), tokens(2, 5, seed=1), 7, project=project)
    assert len(seen) == 7
    torch.testing.assert_close(got, flat(x0), atol=1e-3, rtol=1e-3)
