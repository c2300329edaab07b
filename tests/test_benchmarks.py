"""Benchmarks compare the same work, and keep from a CPU what a CPU can honestly give."""

import pandas as pd
import torch

import oral_lib
from oral_lib.evaluation import small_tables
from oral_lib.experiments import benchmarks
from oral_lib.method import tokenization
from oral_lib.method.tokenization import Layout
from oral_lib.models import loading
from oral_lib.tasks.rows import task_rows
from oral_lib.tasks.task import load_task
from oral_lib.workflow import cli


def test_the_plain_way_gives_the_same_tokens():
    start = loading.load("tiny-encoder").lora_init()
    shaken = [{n: t + i for n, t in start.items()} for i in range(2)]
    layout = Layout.of(start, 100)
    ours, plain = tokenization.encode(layout, shaken), benchmarks.encode_plain(layout, shaken)
    assert torch.equal(ours, plain)


def test_both_ways_of_sampling_give_the_same_tokens(smoke):
    found = {name: calls for name, _, *calls in benchmarks.pairs(smoke.generator(), "tiny-causal")}
    ours, plain, _ = found["sample"]
    assert torch.allclose(ours(), torch.cat(plain()), atol=1e-5)
    ours, plain, _ = found["state-space duality"]
    assert torch.allclose(ours(), plain(), atol=1e-3)


def test_both_ways_of_training_a_generator_do_the_same(smoke):
    model = smoke.generator()
    found = {name: calls for name, _, *calls in benchmarks.pairs(model, "tiny-causal")}
    ours, plain, _ = found["train generator"]
    losses = [(ours(), plain()) for _ in range(3)]
    assert all(torch.isclose(one, other, rtol=1e-2) for one, other in losses)
    assert losses[0][0] != losses[2][0]  # it learns
    kept, again = (generator.network.state_dict() for generator in (model, smoke.generator()))
    assert all(torch.equal(value, kept[name]) for name, value in again.items())


def test_a_cpu_gives_ratios_and_no_times(smoke, tmp_path):
    rows = benchmarks.rows(smoke.generator(), "tiny-encoder", repeats=1)
    table = small_tables.BENCHMARKS.append(tmp_path, rows)
    assert set(table["benchmark"]) == {
        *("encode", "state-space duality", "train generator", "sample"),
    }
    assert set(table["unit"]) == {"ratio"} and (table["value"] > 0).all()


def test_the_operations_of_a_picture_are_counted_layer_by_layer():
    base = loading.load("tiny-vit")
    found, seen = benchmarks._operations(base, 0), base.model
    tokens, width = seen.patch_embed.num_patches + 1, seen.num_features
    blocks = sum(m.weight.numel() for n, m in seen.named_modules() if hasattr(m, "in_features")
                 and n.startswith("blocks."))  # fmt: skip
    frozen = tokens * blocks + (tokens - 1) * seen.patch_embed.proj.weight.numel()
    frozen += seen.head.weight.numel()
    assert width == 64 and 4 * frozen < found < 8 * frozen


def test_a_profile_says_what_a_training_step_is_made_of():
    base, task = loading.load("tiny-encoder"), load_task("movie")
    found = benchmarks.profile(base, task, task_rows(task, "made"), size=2, steps=2, width=8)
    assert found.ms_a_step.is_monotonic_decreasing and (found.ms_a_step > 0).any()
    counts = found.set_index("kernel").kernels_a_step
    layers = len(base.lora_init()) // 2  # at most: siblings are one operation
    assert (
        1 <= counts["oral::lora"] <= layers
        and counts["oral::lora"] == counts["oral::lora_backward"]
    )
    assert counts["aten::cat"] >= 1 and counts.min() >= 0.5


def test_a_run_keeps_its_profile_beside_its_results(tmp_path, capsys):
    path = oral_lib.Run("smoke", out=tmp_path).profile("tiny-encoder")
    assert path == tmp_path / "results" / "smoke" / "profile-tiny-encoder.csv"
    assert list(pd.read_csv(path).columns) == ["kernel", "ms_a_step", "kernels_a_step"]
    where = ["--scale", "smoke", "--out", str(tmp_path)]
    assert cli.main(["profile", "--base", "tiny-encodr", *where]) == 2
    assert "'tiny-encoder'" in capsys.readouterr().err
