"""Other factors, the same weights: dW is kept, and the balanced form is one for all of them."""

import pytest
import torch

from oral_lib.errors import OralError
from oral_lib.lora import gauge
from oral_lib.lora.adapter import factors

HEAD = "base_model.model.classifier.weight"


def pair(module: str, a: tuple[int, ...], b: tuple[int, ...], draw) -> dict[str, torch.Tensor]:
    stem = f"base_model.model.{module}"
    return {
        f"{stem}.lora_A.weight": torch.randn(a, generator=draw),
        f"{stem}.lora_B.weight": torch.randn(b, generator=draw),
    }


@pytest.fixture
def adapter():
    """Two linear layers of one shape, one narrower than the rank, a convolution and a head."""
    draw = torch.Generator().manual_seed(0)
    made = pair("layer.0.query", (4, 12), (10, 4), draw)
    made |= pair("layer.1.query", (4, 12), (10, 4), draw)
    made |= pair("layer.1.narrow", (4, 3), (10, 4), draw)
    made |= pair("stem.conv", (4, 5, 3, 3), (6, 4, 1, 1), draw)
    return made | {HEAD: torch.randn(2, 12, generator=draw)}


def changes(adapter) -> list[torch.Tensor]:
    """dW of every module."""
    return [
        adapter[b].flatten(1).double() @ adapter[a].flatten(1).double()
        for a, b in factors(adapter).items()
    ]


def close(one, other, tolerance=1e-5) -> bool:
    return all(torch.allclose(x, y, atol=tolerance) for x, y in zip(one, other, strict=True))


@pytest.mark.parametrize("form", [gauge.balanced, lambda a: gauge.rotated(a, 3)])
def test_other_factors_make_the_same_weights_and_leave_the_head_alone(adapter, form):
    made = form(adapter)
    assert made.keys() == adapter.keys()
    assert all(made[n].shape == t.shape and made[n].dtype == t.dtype for n, t in adapter.items())
    assert close(changes(made), changes(adapter))
    assert torch.equal(made[HEAD], adapter[HEAD])
    moved = [n for n in adapter if not torch.allclose(made[n], adapter[n], atol=1e-2)]
    assert set(moved) == adapter.keys() - {HEAD}


def test_the_balanced_form_is_the_same_whatever_the_gauge_it_came_in(adapter):
    once = gauge.balanced(adapter)
    for other in (once, gauge.rotated(adapter, 1), gauge.rotated(adapter, 2)):
        again = gauge.balanced(other)
        assert close([again[n] for n in adapter], [once[n] for n in adapter])


def test_balanced_factors_are_of_equal_size_with_their_columns_at_right_angles(adapter):
    made = gauge.balanced(adapter)
    for a, b in factors(made).items():
        left, right = made[b].flatten(1), made[a].flatten(1)
        inner, outer = left.mT @ left, right @ right.mT
        assert torch.allclose(inner, outer, atol=1e-4)
        assert torch.allclose(inner, inner.diagonal().diag(), atol=1e-4)
        assert (inner.diagonal().diff() <= 1e-4).all()


def test_turning_keeps_the_size_of_the_factors_and_differs_by_seed(adapter):
    one, other = gauge.rotated(adapter, 0), gauge.rotated(adapter, 1)
    for name in factors(adapter):
        assert one[name].norm().item() == pytest.approx(adapter[name].norm().item(), rel=1e-5)
        assert not torch.allclose(one[name], other[name], atol=1e-2)
    assert all(torch.equal(gauge.rotated(adapter, 0)[n], one[n]) for n in one)


def test_an_untrained_adapter_has_a_balanced_form(adapter):
    zero = {n: torch.zeros_like(t) if "lora_B" in n else t for n, t in adapter.items()}
    made = gauge.balanced(zero)
    assert all(t.isfinite().all() for t in made.values()) and close(changes(made), changes(zero))


def test_alignment_undoes_any_rotation_and_keeps_the_weight_change(adapter):
    wanted = gauge.balanced(adapter)
    for seed in range(3):
        result = gauge.aligned(gauge.rotated(adapter, seed), adapter)
        assert close(changes(result), changes(adapter))
        assert all(torch.allclose(result[n], wanted[n], atol=1e-3) for n in wanted)


def test_aligned_factors_average_to_the_mean_weight_change_where_plain_ones_cancel(adapter):
    turned = [gauge.rotated(adapter, seed) for seed in range(8)]

    def error(adapters):
        mean = {n: torch.stack([one[n] for one in adapters]).mean(0) for n in adapter}
        off = zip(changes(mean), changes(adapter), strict=True)
        return max((one - other).norm() / other.norm() for one, other in off)

    assert error(turned) > 0.5
    assert error([gauge.aligned(one, turned[0]) for one in turned]) < 1e-3


def test_adapters_of_other_shapes_cannot_be_aligned(adapter):
    name = "base_model.model.layer.0.query.lora_B.weight"
    with pytest.raises(OralError, match=r"layer\.0\.query"):
        gauge.aligned(adapter, adapter | {name: adapter[name][:5]})


def test_factors_that_are_no_matrices_are_refused(adapter):
    name = "base_model.model.stem.conv.lora_B.weight"
    with pytest.raises(OralError, match=r"stem\.conv"):
        gauge.balanced(adapter | {name: adapter[name].flatten(1).view(6, 2, 2, 1)})
    del adapter[name]
    with pytest.raises(OralError, match="next to it"):
        factors(adapter)
