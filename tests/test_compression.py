"""The file of a generator: few bytes, the same ones every time, and the same samples."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from oral_lib import method
from oral_lib.experiments.studies import file_sizes
from oral_lib.generator import Generator
from oral_lib.method.stored import compression
from oral_lib.tasks.rows import task_rows
from oral_lib.tasks.task import load_task
from tests.fuzz.targets import adapter_tensors

torch.set_num_threads(1)
CONFIG = method.GeneratorConfig(
    k=8,
    components=6,
    recurrence=method.RecurrenceConfig(width=64, state=4, head=8, chunk=8),
    denoiser=method.DenoiserConfig(hidden=64, depth=1),
)


def network(adapters, config=CONFIG):
    """A network for a zoo of `adapters`, whose weights are not zero."""
    start, tasks = adapter_tensors(), ["cheerful", "formal"] * len(adapters)
    texts = {task: torch.randn(2, 64) for task in tasks[:2]}
    layout = method.Layout.of(start, config.k)
    data = method.TrainingSet.of(layout, start, adapters, tasks[: len(adapters)], texts, config)
    model = method.ORAL(config, {"mine": data.base(torch.randn(64), torch.randn(64))})
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight))
    return model.eval()


def zoo(n):
    return [adapter_tensors(seed) for seed in range(1, n + 1)]


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"components": 0, "component_rotation": "none"},
        {"denoiser": method.DenoiserConfig(kind="conv", hidden=64, channels=(2, 4, 2))},
        {"reads_token_mean": True},
        {"diffusion": None},
        {"arm": "describe"},
    ],
    ids=str,
)
def test_a_generator_that_was_read_is_saved_to_the_same_bytes(changes, tmp_path):
    Generator(network(zoo(4), replace(CONFIG, **changes))).save_pretrained(tmp_path / "a")
    Generator.from_pretrained(tmp_path / "a").save_pretrained(tmp_path / "b")
    assert files(tmp_path / "a") == files(tmp_path / "b")


def test_a_restored_value_is_half_a_step_away_at_most():
    model = network(zoo(4))
    stored, restored = compression.compress(model), compression.compressed(model).state_dict()
    for name, limit in (("denoiser.blocks.0.0.weight", 7), ("denoiser.time.layers.2.weight", 127)):
        groups, back = (s[name].unflatten(1, (-1, 64)) for s in (model.state_dict(), restored))
        step = groups.abs().amax(-1, keepdim=True) / limit
        assert ((groups - back).abs() <= 0.51 * step).all() and not torch.equal(groups, back)
        assert stored[f"{name}.scale"].shape == step.shape[:2]
    rows, back = model.entries[0].basis, restored["entries.0.basis"]
    assert ((rows - back).abs() <= 0.51 * rows.abs().amax(-1, keepdim=True) / 127).all()
    assert not torch.equal(rows, back)


def test_only_directions_that_the_zoo_spans_are_stored():
    model = network(zoo(3))
    values = sum(tensor.numel() for tensor in adapter_tensors().values())
    assert model.entries[0].basis.shape[1] == 6
    assert compression.compress(model)["entries.0.basis"].shape == (3, values)
    back = compression.compressed(model).entries[0]
    assert back.basis.shape == model.entries[0].basis.shape and not back.basis[:, 3:].any()
    assert torch.equal(back.mask, model.entries[0].mask)
    assert back.directions.shape == model.entries[0].directions.shape


def test_a_zoo_without_any_direction_is_saved_and_read(tmp_path):
    Generator(network([adapter_tensors()] * 2)).save_pretrained(tmp_path)
    back = Generator.from_pretrained(tmp_path)
    entry = back.bases["mine"]
    assert entry.layout.l and not entry.basis.any() and not entry.mask.any()
    values = entry.statistics.denormalise(torch.ones(1, *entry.mask.shape))
    assert torch.equal(values[0], entry.center)


def test_a_center_beyond_half_precision_stays_exact():
    model = network(zoo(3))
    model.entries[0].center.mul_(1e6)
    assert compression.compress(model)["entries.0.center"].dtype == torch.float32
    assert torch.equal(compression.compressed(model).entries[0].center, model.entries[0].center)


def test_a_restored_network_does_not_share_memory_with_the_file():
    # a view into a file is aligned differently, and products then round differently
    model = network(zoo(3))
    stored = compression.compress(model)
    bases = {"mine": (model.bases["mine"].layout, {})}
    back = compression.restore(model.config, bases, stored).state_dict()
    memory = {t.untyped_storage().data_ptr() for t in stored.values() if t.numel()}
    assert not memory & {t.untyped_storage().data_ptr() for t in back.values() if t.numel()}


def test_a_file_at_smoke_is_a_third_of_its_values_in_single_precision(smoke):
    generator = smoke.generator()
    single = sum(4 * tensor.numel() for tensor in generator.network.state_dict().values())
    assert file_sizes.saved_bytes(generator) < single / 3


def test_files_of_a_run_hold_what_the_run_sampled_from(smoke):
    folder = smoke.root / "generator"
    stored = compression.compress(Generator.from_pretrained(folder, source="made").network)
    written = load_file(folder / "generator.safetensors")
    assert written.keys() == stored.keys()
    assert all(torch.equal(written[name], stored[name]) for name in stored)


def test_less_precision_hardly_moves_a_generated_adapter(smoke):
    task = load_task("movie")
    rows = task_rows(task, "made").test[:100]
    table = file_sizes.change_rows(smoke.generator(), smoke.base("tiny-encoder"), task, rows, 2)
    exact, half, compressed = table
    assert exact["changed"] == exact["distance"] == exact["points"] == 0
    # the network in memory was read from a file, so compressing it changes nothing more
    assert compressed["changed"] == compressed["distance"] == 0
    assert 0 < half["distance"] < 0.01 and half["changed"] <= 4


@pytest.mark.parametrize(
    ("experiment", "bytes_a_value"),
    [("vision", 2), ("multimodal", 4)],  # a zoo of 32 adapters is smaller than the network
)
def test_at_lab_the_file_is_smaller_than_the_zoo(experiment, bytes_a_value):
    [row] = file_sizes.size_table("lab", [experiment], ["packages"]).to_dict("records")
    assert row["generator"] < bytes_a_value * row["values"]
    assert row["zoo_fp32"] == 2 * row["zoo_fp16"] == 4 * row["values"]
