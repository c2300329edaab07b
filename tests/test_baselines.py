"""Baselines know the task's adapters and learn nothing; their draws depend on the seed alone."""

import pytest
import torch

import oral_lib  # noqa: F401 - makes transformers importable beside a torchvision without CUDA
from oral_lib.baselines import averages, majority
from oral_lib.errors import OralError
from oral_lib.tasks.rows import Row

torch.set_num_threads(1)


def zoo(n: int = 8) -> list[dict[str, torch.Tensor]]:
    draw = torch.Generator().manual_seed(0)
    start = torch.randn(40, 50, generator=draw)
    return [
        {"a": start + 0.1 * torch.randn(40, 50, generator=draw), "b": torch.full((5,), 3.0)}
        for _ in range(n)
    ]


def test_a_gaussian_has_the_mean_and_spread_of_each_weight():
    adapters = zoo()
    drawn = torch.stack([one["a"] for one in averages.gaussian(adapters, 400, seed=1)])
    known = torch.stack([one["a"] for one in adapters])
    error = (drawn.mean(0) - known.mean(0)) / (known.std(0) / 400**0.5)
    assert error.std() == pytest.approx(1, abs=0.1)
    assert (drawn.std(0) / known.std(0)).mean() == pytest.approx(1, abs=0.02)


def test_a_weight_that_all_adapters_share_is_kept():
    [one] = averages.gaussian(zoo(), 1, seed=1)
    assert torch.equal(one["b"], torch.full((5,), 3.0))


@pytest.mark.parametrize("amplitude", averages.NOISE.values())
def test_noise_is_relative_to_the_spread_of_each_tensor(amplitude):
    adapter = {"small": 0.01 * torch.randn(200, 200), "large": 5 * torch.randn(200, 200) + 70}
    [made] = averages.noised([adapter], amplitude, seed=0)
    for name, tensor in adapter.items():
        moved = (made[name] - tensor).std() / tensor.std()
        assert moved == pytest.approx(amplitude, rel=0.02)


def test_noise_differs_between_adapters_and_leaves_them_as_they_are():
    same = zoo(1) * 2
    before = same[0]["a"].clone()
    one, other = averages.noised(same, 0.1, seed=0)
    assert not torch.equal(one["a"], other["a"]) and torch.equal(same[0]["a"], before)


@pytest.mark.parametrize(
    "make",
    [
        lambda adapters, seed: averages.gaussian(adapters, 3, seed),
        lambda adapters, seed: averages.noised(adapters, 1.0, seed),
    ],
    ids=["gaussian", "noise"],
)
def test_the_same_seed_makes_the_same_adapters_and_another_seed_others(make):
    adapters = [{"a": one["a"].bfloat16()} for one in zoo(3)]
    first, again, other = (make(adapters, seed) for seed in (5, 5, 6))
    assert len(first) == 3 and first[0]["a"].dtype == torch.bfloat16
    for one, same, different in zip(first, again, other, strict=True):
        assert torch.equal(one["a"], same["a"]) and not torch.equal(one["a"], different["a"])


def test_a_gaussian_of_one_adapter_is_refused():
    with pytest.raises(OralError, match="at least two"):
        averages.gaussian(zoo(1), 1, seed=0)


def test_the_most_frequent_answer_is_given_where_answers_are_written():
    train = [Row(str(i), "q", 0, answer=answer) for i, answer in enumerate(["7", "12", "12", "3"])]
    rows = [Row("a", "q", 0, answer="12"), Row("b", "q", 0, answer="7")]
    outcome = majority.majority(train, rows, 1)
    assert outcome.written == ["12", "12"]
    assert outcome.predicted.tolist() == [1, 0] and outcome.correct.tolist() == [True, False]
