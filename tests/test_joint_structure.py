"""The study of adapters from independent starts: its zoo, its networks, its criteria."""

from dataclasses import asdict, replace

import numpy as np
import pandas as pd
import pytest
import torch

import oral_lib
from oral_lib import method
from oral_lib.errors import OralError, UsageError
from oral_lib.experiments.studies import independent_starts, joint_structure
from oral_lib.method.config import ADDED, GeneratorConfig
from oral_lib.zoo.recipes import Recipe

NAMES = (
    "trained",
    "held_out",
    "average",
    "aligned_average",
    "regression",
    *joint_structure.JOINT_SAMPLERS,
)


def frame(**changed):
    """The table of a study in which every criterion is met, with `changed` gaps."""
    gaps = {"average": -10.0, "regression": -12.0, "mamba2": -1.0, "none": -6.0} | changed
    ratio = gaps.pop("ratio", 0.3)
    rows = [
        {"task": joint_structure.ALL_TASKS, "method": m, "gap": gap, "ratio": ratio}
        for m, gap in gaps.items()
    ]
    misleading = {"task": "movie", "method": "mamba2", "gap": -50.0, "ratio": 0.0}
    return pd.DataFrame([*rows, misleading])


@pytest.mark.parametrize(
    ("changed", "failed"),
    [
        ({}, []),
        ({"average": -9.9}, ["average"]),
        ({"regression": 1.0}, ["regression"]),
        ({"mamba2": -1.1}, ["none", "mamba2"]),
        ({"mamba2": -1.1, "none": -6.2}, ["mamba2"]),
        ({"ratio": 0.29}, ["mamba2"]),
        ({"none": -5.9}, ["none"]),
    ],
)
def test_a_criterion_is_met_at_its_limit_and_not_beyond(changed, failed):
    found = joint_structure.decided(frame(**changed))
    assert len(found) == len(joint_structure.CRITERIA)
    assert sorted(found[~found.met].method) == sorted(failed)


def test_gaps_are_points_above_trained_and_means_over_tasks():
    trained = np.zeros((4, 50), dtype=bool)
    trained[:, :40] = True  # 80 percent
    half, all_right = trained[:1] & (np.arange(50) < 20), np.ones((2, 50), dtype=bool)
    correct = {
        "one": {"trained": trained, "average": half},
        "two": {"trained": trained, "average": all_right},
    }
    found = joint_structure.joint_table(correct, {("one", "average"): 0.5, ("two", "average"): 0.7})
    found = found.set_index(["method", "task"])
    assert found.loc[("average", "one"), "gap"] == pytest.approx(-40)
    assert found.loc[("average", "two"), "gap"] == pytest.approx(20)
    mean = found.loc[("average", joint_structure.ALL_TASKS)]
    assert mean.gap == pytest.approx(-10) and mean.ratio == pytest.approx(0.6)
    assert mean.n_rows == 100 and mean.gap_low < -10 < mean.gap_high
    assert (found.loc["trained"][["gap", "gap_low", "gap_high"]] == 0).all(axis=None)


def test_intervals_cover_new_rows_and_new_adapters():
    draw = np.random.default_rng(0)
    one = np.zeros((2, 400), dtype=bool)
    one[0] = True  # two adapters, right and wrong: rows say nothing, adapters everything
    trained = draw.random((1, 400)) < 0.5
    wide = joint_structure.resampled_gaps(one, trained, draw)
    narrow = joint_structure.resampled_gaps(one[:1], trained, draw)
    assert wide.std() > 30 and narrow.std() < 5
    assert joint_structure.resampled_gaps(trained, trained, draw).std() < 1e-9  # paired


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    base = oral_lib.load_base("tiny-encoder", source="made")
    task, folder = oral_lib.load_task("movie"), tmp_path_factory.mktemp("zoo")
    recipe = Recipe(steps=12, batch=8, lr=2e-2, ratio=1.0)
    options = (base, task, oral_lib.task_rows(task, "made"), range(6), recipe, folder)
    return base, independent_starts.train_independent(*options, stack_size=4), options


def test_adapters_have_starts_of_their_own_and_one_head(zoo):
    base, adapters, _ = zoo
    start = base.lora_init()
    for name, tensor in start.items():
        if "lora_" in name:
            values = torch.stack([a[name] for a in adapters])
            assert (torch.pdist(values.flatten(1)) > 0).all()
        else:
            assert all(torch.equal(a[name], tensor) for a in adapters)
    first = independent_starts.own_start(base, "movie", 0)
    again = independent_starts.own_start(base, "movie", 0)
    other = independent_starts.own_start(base, "sarcasm", 0)
    name = next(n for n in start if "lora_A" in n)
    assert torch.equal(first[name], again[name]) and not torch.equal(first[name], other[name])
    assert (adapters[0][name] - first[name]).norm() < (adapters[1][name] - first[name]).norm()


def test_a_second_call_reads_the_stacks_and_another_recipe_trains_its_own(zoo):
    _, adapters, options = zoo
    files = sorted(options[-1].iterdir())
    assert len(files) == 2
    again = independent_starts.train_independent(*options, stack_size=4)
    assert all(torch.equal(a[n], b[n]) for a, b in zip(adapters, again, strict=True) for n in a)
    changed = (*options[:4], replace(options[4], steps=2), options[-1])
    independent_starts.train_independent(*changed, stack_size=6)
    assert len(list(options[-1].iterdir())) == 3


def test_the_smoke_study_has_every_method_and_runs_again_from_its_files(tmp_path):
    small = replace(joint_structure.JOINT_STUDIES["smoke"], rows=16)
    found = joint_structure.run("smoke", out=tmp_path, study=small)
    assert list(found.columns) == joint_structure.JOINT_COLUMNS
    assert found.groupby("task").method.apply(tuple).to_dict() == dict.fromkeys(
        (*small.tasks, joint_structure.ALL_TASKS), NAMES
    )
    assert len(joint_structure.decided(found)) == len(joint_structure.CRITERIA)
    again = joint_structure.run("smoke", out=tmp_path, study=small)
    pd.testing.assert_frame_equal(found, again)
    with pytest.raises(UsageError, match="no study of scale 'desk'"):
        joint_structure.run("desk")


# ---------------------------------------------------------------- the option of the network
def joint_gauge(n, seed):
    """n adapters whose factors share a random sign: B A is the same, each factor is not."""
    signs = torch.randn(n, generator=torch.Generator().manual_seed(seed)).sign()
    a, b = torch.linspace(0.5, 1.5, 8), torch.linspace(-1, 1, 8)
    return [
        {"q.lora_A.weight": s * a[None].clone(), "q.lora_B.weight": s * b[:, None].clone()}
        for s in signs
    ]


def signs_agree(kind, reads="tokens"):
    """The share of 64 samples in which A and B have the same sign."""
    zoo = joint_gauge(32, 0)
    start = {n: t * 0 for n, t in zoo[0].items()}
    texts = {"one": torch.nn.functional.normalize(torch.ones(1, 8), dim=-1)}
    config = GeneratorConfig(
        k=8,
        components=0,
        component_rotation="none",
        recurrence=method.RecurrenceConfig(kind, width=32, state=8, head=16, chunk=8),
        denoiser=method.DenoiserConfig(hidden=32, depth=1, skip=False),
        recurrence_reads=reads,
    )
    layout = method.Layout.of(start, 8)
    data = method.TrainingSet.of(layout, start, zoo, ["one"] * 32, texts, config)
    torch.manual_seed(0)
    model = method.ORAL(config, {"toy": data.base(torch.ones(8), torch.zeros(64))})
    training = method.TrainingConfig(
        steps=400, lr=5e-3, warmup=20, conditions=1, draws=64, tokens=128, text_dropout=0.0,
        text_noise=0.0, ema=0.9,
    )  # fmt: skip
    model, _ = method.train(model, {"toy": data}, training)
    c = model.conditions("toy", texts["one"].expand(64, -1), torch.ones(64, dtype=torch.bool))
    noise = torch.randn(64, 2, 8, generator=torch.Generator().manual_seed(1))
    sampling = method.SamplingConfig(steps=20, projection="none", noise_sharing="token")
    k0 = data.statistics.denormalise(model.sample("toy", c, noise, sampling))
    clean = data.statistics.denormalise(data.tokens)
    sides = torch.einsum("blk,lk->bl", k0, clean[0]).sign()
    return float((sides[:, 0] == sides[:, 1]).float().mean())


def test_tokens_that_share_a_sign_need_a_recurrence_that_reads_them():
    assert signs_agree("mamba2") > 0.9 and signs_agree("bidirectional") > 0.9
    assert 0.3 < signs_agree("none") < 0.7
    assert 0.3 < signs_agree("mamba2", "positions") < 0.7


def test_every_token_moves_every_prediction_and_the_option_is_checked():
    config = GeneratorConfig(
        k=8,
        components=0,
        component_rotation="none",
        recurrence=method.RecurrenceConfig(width=32, state=8, head=16, chunk=8),
        denoiser=method.DenoiserConfig(hidden=32, depth=1, skip=False),
        recurrence_reads="tokens",
    )
    zoo = joint_gauge(4, 0)
    layout = method.Layout.of(zoo[0], 8)
    texts = {"one": torch.ones(1, 8)}
    data = method.TrainingSet.of(layout, zoo[0], zoo, ["one"] * 4, texts, config)
    model = method.ORAL(config, {"toy": data.base(torch.ones(8), torch.zeros(64))})
    for parameter in model.denoiser.parameters():
        torch.nn.init.normal_(parameter)
    c = model.conditions("toy", texts["one"], torch.tensor([True]))
    u, t = model.prototypes("toy", c), torch.tensor([300])
    x = torch.randn(1, 2, 8)
    before = model.predict(x, t, u, c)
    for token in (0, 1):
        moved = x.clone()
        moved[:, token] += 1
        assert (model.predict(moved, t, u, c) != before).any(-1).all()
    with pytest.raises(UsageError, match="noise_sharing='token'"):
        model.check("toy", method.SamplingConfig(projection="none"))
    with pytest.raises(UsageError, match="no effect with diffusion=None"):
        replace(config, diffusion=None)
    with pytest.raises(UsageError, match="recurrence_reads='token'"):
        replace(config, recurrence_reads="token")


def test_a_configuration_of_an_earlier_file_has_the_defaults_of_later_options():
    stored = asdict(GeneratorConfig())
    for name in ADDED:
        del stored[name]
    assert GeneratorConfig.from_json(stored) == GeneratorConfig()
    del stored["arm"]
    with pytest.raises(OralError, match="'arm' is missing"):
        GeneratorConfig.from_json(stored)
