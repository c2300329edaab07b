import torch

from oral_lib.errors import OralError
from oral_lib.method.projection import ZooProjection, convex_weights, simplex, span


def drawn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_the_span_of_a_zoo_holds_its_adapters_strongest_directions_first():
    draw = torch.Generator().manual_seed(0)
    directions = torch.randn(3, 4, 5, generator=draw)
    shares = torch.randn(7, 3, generator=draw) * torch.tensor([10.0, 3.0, 1.0])
    codes = torch.einsum("bs,slr->blr", shares, directions)
    found = span(codes, 1024)
    assert (
        found.shape == (3, 4, 5) and found.dtype == torch.float32
    )  # seven adapters, three of them
    flat = found.flatten(1)
    torch.testing.assert_close(flat @ flat.mT, torch.eye(3), atol=1e-5, rtol=0)
    own = codes.flatten(1) @ flat.mT
    torch.testing.assert_close(own @ flat, codes.flatten(1), atol=1e-4, rtol=1e-4)
    energy = own.square().sum(0)
    assert energy[0] > energy[1] > energy[2]
    torch.testing.assert_close(span(codes, 2), found[:2])
    assert span(torch.zeros(2, 4, 5), 8).shape == (0, 4, 5)


def test_no_adapter_would_bring_a_mixture_nearer():
    """The largest gain that going towards one adapter promises bounds what is left to be gained,
    and the square of the distance to the nearest mixture (the gap of Frank and Wolfe)."""
    # as in a zoo: tasks far apart, adapters of a task near one another
    for n, s in ((24, 40), (24, 6), (3, 40), (1, 5)):
        points = 5 * drawn(n // 8 + 1, s, seed=1)[torch.arange(n) // 8] + drawn(n, s, seed=2)
        targets = torch.cat([points[:4] + 0.5 * drawn(min(n, 4), s, seed=3), 3 * drawn(4, s)])
        found = convex_weights(points, targets, 5000)
        assert found.shape == (len(targets), n) and found.min() >= 0
        torch.testing.assert_close(found.sum(1), torch.ones(len(targets)))
        found, points, targets = found.double(), points.double(), targets.double()
        slope = (found @ points - targets) @ points.mT
        gap = (found * slope).sum(1) - slope.min(1).values
        assert gap.max() < 0.002**2 * points.square().sum(1).mean()


def test_the_usual_number_of_rounds_comes_near_enough():
    """On a zoo of twelve tasks with eight seeds each, within half a percent of an adapter."""
    points = 2 * drawn(12, 95, seed=1).repeat_interleave(8, 0) + drawn(96, 95, seed=2)
    between = 0.6 * points[8:40] + 0.4 * points[9:41] + 0.3 * drawn(32, 95, seed=3)
    exact, usual = (
        convex_weights(points, between, 5000) @ points,
        convex_weights(points, between) @ points,
    )
    assert (exact - usual).norm(dim=1).max() < 5e-3 * points.norm(dim=1).mean()


def test_points_far_apart_or_all_alike_are_mixed_as_well():
    far = torch.tensor([[1e4, 0.0], [-1e4, 0.0], [0.0, 1e4]])
    torch.testing.assert_close(convex_weights(far, far), torch.eye(3), atol=1e-4, rtol=0)
    alike = torch.ones(4, 3)
    torch.testing.assert_close(convex_weights(alike, torch.zeros(2, 3)) @ alike, torch.ones(2, 3))


def test_the_simplex_is_reached_by_the_shortest_way():
    values = torch.tensor([[0.2, 0.3, 0.5], [2.0, 0.0, -1.0], [0.6, 0.6, -5.0], [-3.0, -3.0, -3.0]])
    wanted = torch.tensor([[0.2, 0.3, 0.5], [1.0, 0.0, 0.0], [0.5, 0.5, 0.0], [1 / 3] * 3])
    torch.testing.assert_close(simplex(values), wanted)
    # of the nearest point none lies nearer, wherever one goes on the simplex
    values = 2 * drawn(50, 7)
    near, others = simplex(values), torch.softmax(3 * drawn(200, 7, seed=1), 1)
    slope = ((values - near)[:, None] * (others[None] - near[:, None])).sum(-1)
    assert slope.max() < 1e-5


def test_the_answer_of_the_best_denoiser_is_left_as_it_is():
    """E[x_0 | x_t] over a zoo of equally likely adapters is a mixture by their likelihoods."""
    zoo = drawn(6, 4, 3)
    mixtures = ZooProjection.of(zoo)
    for level in (0.9, 0.5, 0.1):  # how much of the signal is left
        noised = level**0.5 * zoo[[2]] + (1 - level) ** 0.5 * drawn(1, 4, 3, seed=5)
        distance = (noised - level**0.5 * zoo).flatten(1).square().sum(1)
        likely = torch.softmax(-distance / (2 * (1 - level)), 0)
        best = torch.einsum("n,nlr->lr", likely, zoo)[None]
        for way in ("hull", "span"):
            torch.testing.assert_close(mixtures.nearest(best, way), best, atol=1e-3, rtol=0)


def test_nothing_is_nearer_than_the_nearest_mixture_and_with_any_shares_it_is_nearer():
    zoo, asked = drawn(6, 8, 3), 2 * drawn(5, 8, 3, seed=1)
    mixtures = ZooProjection.of(zoo)
    ways = ("hull", "span")
    far = [(mixtures.nearest(asked, way) - asked).flatten(1).norm(dim=1) for way in ways]
    assert (far[0] > far[1]).all()
    within = mixtures.nearest(asked, "hull")
    torch.testing.assert_close(mixtures.nearest(within, "hull"), within, atol=1e-3, rtol=0)
    torch.testing.assert_close(mixtures.nearest(within, "span"), within, atol=1e-4, rtol=0)
    flat = zoo.flatten(1)
    some = torch.softmax(2 * drawn(300, 6, seed=2), 1) @ flat
    nearest = torch.cdist(asked.flatten(1), some).min(1).values
    assert (far[0] <= nearest + 1e-4).all()


def test_directions_that_do_not_fit_the_places_are_refused(refused):
    with refused(OralError, "coordinates [n, s]"):
        ZooProjection(drawn(3, 4, 5), drawn(7, 2))
    with refused(OralError, "directions [s, l, r]"):
        ZooProjection(drawn(3, 4), drawn(7, 3))


def test_few_directions_hold_what_fits_into_them():
    zoo = drawn(6, 8, 3)
    two = ZooProjection.of(zoo, 2)
    assert two.directions.shape == (2, 8, 3) and two.coordinates.shape == (6, 2)
    back = two.nearest(zoo, "hull").flatten(1)
    assert torch.linalg.matrix_rank(back) == 2
