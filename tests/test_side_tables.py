"""The tables next to metrics.csv: free numbers, maps, bytes, and rows that follow from outcomes."""

import numpy as np
import pandas as pd
import pytest
import torch

from oral_lib import scales, storage
from oral_lib.baselines import averages
from oral_lib.baselines.router import Retrieval, Router
from oral_lib.evaluation import results, small_tables
from oral_lib.experiments.side_tables import maps, novelty, published, stored
from oral_lib.generator import Generator
from oral_lib.lora import distances
from oral_lib.zoo import store

torch.set_num_threads(1)
BASE = "tiny-encoder"


def lora(seed):
    draw = torch.Generator().manual_seed(seed)
    shapes = {"q.lora_A.weight": (2, 6), "q.lora_B.weight": (5, 2)}
    return {name: torch.randn(shape, generator=draw) for name, shape in shapes.items()}


def mixed(adapters, weights):
    pairs = list(zip(weights, adapters, strict=True))
    return {name: sum(w * a[name] for w, a in pairs) for name in adapters[0]}


# ---------------------------------------------------------------- free numbers
@pytest.mark.parametrize("n", [2, 3, 5])
def test_samples_of_a_convex_hull_have_at_most_one_free_number_less_than_it_has_corners(n):
    zoo, draw = [lora(i) for i in range(n)], np.random.default_rng(0)
    samples = [mixed(zoo, draw.dirichlet(np.ones(n))) for _ in range(12)]
    count = distances.participation(samples)
    assert 0.7 * (n - 1) < count <= n - 1 + 1e-6
    assert distances.participation([lora(i) for i in range(12)]) > n


def test_equal_samples_have_no_free_number_and_no_spread():
    train, others = [lora(i) for i in range(3)], [lora(9)]
    numbers = distances.novelty([train[0]] * 4, train, others, scale=1.0)
    assert numbers.free_numbers == 0 and numbers.spread == pytest.approx(0, abs=1e-6)
    spread = distances.novelty(train, train, others, scale=1.0).spread
    assert spread == pytest.approx(1), "the zoo itself is as far apart as the zoo"
    assert np.isnan(distances.novelty(train[:1], train, others, scale=1.0).spread)


def test_generated_adapters_have_no_more_free_numbers_than_their_construction_allows(smoke):
    generator = Generator.from_pretrained(smoke.root / "generator", source="made")
    samples = generator.generate("Is the review positive?", BASE, 8, temperature=1.0)
    assert novelty.bound(generator, BASE) == len(smoke.members(BASE)) - 1 == 3
    assert distances.participation(samples) <= 3 + 1e-3
    spanned = novelty.bound(generator, BASE, "span")
    assert spanned == generator.bases[BASE].projection.directions.shape[0] >= 3
    assert novelty.bound(generator, BASE, "none") <= generator.config.size


# ---------------------------------------------------------------- maps and bytes
def test_a_map_keeps_distances_of_adapters_in_a_plane():
    corners = [lora(1), lora(2), lora(3)]
    plane = [mixed(corners, w) for w in ((1, 0, 0), (0, 1, 0), (0, 0, 1), (0.5, 0.5, 0))]
    axes = maps.Axes(plane)
    points = [axes.coordinates(adapter) for adapter in plane]
    assert axes.share == pytest.approx(1, abs=1e-4)
    for one, a in zip(plane, points, strict=True):
        for other, b in zip(plane, points, strict=True):
            apart = sum(float((one[n] - other[n]).square().sum()) for n in one) ** 0.5
            assert float((a - b).norm()) == pytest.approx(apart, abs=1e-3)
    middle = axes.coordinates(averages.soup(plane))
    assert middle.tolist() == pytest.approx([0, 0], abs=1e-4)


def test_equal_adapters_have_a_map_of_one_point():
    axes = maps.Axes([lora(0)] * 3)
    assert axes.coordinates(lora(0)).tolist() == pytest.approx([0, 0], abs=1e-6)


def test_a_run_describes_its_adapters_in_rows_that_the_tables_accept(smoke, tmp_path):
    generator = Generator.from_pretrained(smoke.root / "generator", source="made")
    stored.describe_adapters(smoke.planned, "made", "language", smoke.root, generator)
    rows = storage.read_json(smoke.root / "maps" / f"{BASE}.json")
    table = small_tables.MAPS.append(tmp_path, rows)
    counts = table.groupby(["kind", "task"]).size().unstack()
    assert set(counts.columns) == {"movie", "sarcasm"}
    assert counts.movie.to_dict() == {
        "adapter": 2, "held_out": 1, "average": 1,
        "generated": maps.SAMPLES, "generated_span": maps.SAMPLES, "generated_free": maps.SAMPLES,
    }  # fmt: skip
    assert table.share.between(0, 1).all() and table.share.nunique() == 1
    rows = storage.read_json(smoke.root / "bytes" / "language.json")
    sizes = small_tables.BYTES.append(tmp_path, rows).set_index("what")
    members = [store.read(smoke.root, *m) for m in scales.members("smoke", "made")]
    values = sum(t.numel() for m in members for t in m.tensors.values())
    assert sizes.bytes["zoo_fp32"] == 2 * sizes.bytes["zoo_fp16"] == 4 * values
    weights = sum(Router(p.tasks, generator.encoder).values for p in smoke.planned)
    assert sizes.bytes["router"] == 4 * weights + sizes.bytes["zoo_fp16"]
    files = [*(smoke.root / "generator").glob("*.safetensors")]
    assert sizes.bytes["generator"] > sum(file.stat().st_size for file in files)


# ---------------------------------------------------------------- published results
@pytest.fixture
def release(smoke, tmp_path):
    """The published results of a smoke run as the first release wrote them, and what it left out.

    It measured no router, and other methods from the task's own text only.
    """
    folders = []
    for task in ("movie", "sarcasm"):
        smoke.cell(task, BASE, 0)
        folders.append(smoke.root / "cells" / f"language--{BASE}--{task}--seed-0")
    results.collect(folders, tmp_path)
    metrics, items = results.read(tmp_path)

    def later(frame):
        measured_first = (frame.method == "retrieval") & (frame.condition == "matched")
        averages_first = (frame.method == "soup_task") & (frame.condition == "none")
        chosen = frame.method.isin(["router", "retrieval", "soup_task"])
        return chosen & ~measured_first & ~averages_first

    rest = items[later(items)]
    results.items_path(tmp_path, "language", "made").unlink()
    (tmp_path / "metrics.csv").unlink()
    cell = tmp_path / "cell"
    results.write_cell(cell, metrics[~later(metrics)], items[~later(items)])
    results.collect([cell], tmp_path)
    manifest = storage.read_json(smoke.root / "generator" / "manifest.json")
    config = storage.read_json(smoke.root / "generator" / "config.json")["generator"]
    about = {"zoo": manifest["zoo"], "generator": config, "seeds": {"held out of training": [2]}}
    storage.write_json(tmp_path / "manifest.json", {"made": about, "made-language": about})
    return tmp_path, metrics, rest


KEY = ["task", "method", "condition", "sample", "item"]


def test_rows_that_follow_from_stored_outcomes_are_those_that_a_measurement_gives(release):
    folder, metrics, measured = release
    counts = published.add_chosen(folder)
    assert counts["router matched"] == counts["soup_task matched"] == 2
    _, items = results.read(folder)
    wanted = measured.set_index(KEY)[["predicted", "score"]].sort_index()
    derived = items[items.method.isin(["router", "retrieval", "soup_task"])]
    derived = derived.set_index(KEY)[["predicted", "score"]].sort_index()
    for key in derived.index.droplevel(["sample", "item"]).unique():
        if key in wanted.index.droplevel(["sample", "item"]).unique():
            pd.testing.assert_frame_equal(derived.loc[key], wanted.loc[key], check_index_type=False)
    new = results.read_metrics(folder / "metrics.csv")
    merged = new.merge(metrics, on=["task", "method", "condition", "metric"], suffixes=("", "_old"))
    assert len(merged) == len(new), "no row without a measurement"
    assert (merged.value - merged.value_old).abs().max() < 2e-6
    assert (merged.n_samples == merged.n_samples_old).all()


def test_texts_of_published_samples_are_those_that_were_measured(release, smoke):
    folder, _, _ = release
    published.add_chosen(folder)
    table = small_tables.TEXTS.read(folder)
    for task in ("movie", "sarcasm"):
        name = f"language--{BASE}--{task}--seed-0.json"
        measured = pd.DataFrame(storage.read_json(smoke.root / "texts" / name))
        key = ["condition", "sample"]
        one = table[table.task == task].set_index(key).sort_index()
        other = measured.set_index(key).sort_index()
        for column in ("text_of", "router", "retrieval"):
            assert one[column].to_dict() == other[column].to_dict()


def test_a_second_run_changes_nothing(release):
    folder, _, _ = release
    published.add_chosen(folder)
    before = {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}
    published.add_chosen(folder)
    assert before == {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}


def test_there_is_no_row_where_another_task_is_picked(release, monkeypatch):
    folder, _, _ = release

    class Stubborn:
        def __init__(self, names, encoder):
            self.names, self.encoder = tuple(names), encoder

        def pick(self, text):
            return "sarcasm"

    def of(cls, names, encoder):
        return cls(Stubborn(names, encoder), Retrieval(names, encoder))

    monkeypatch.setattr(published.Pickers, "of", classmethod(of))
    published.add_chosen(folder)
    new = results.read_metrics(folder / "metrics.csv")
    assert set(new[new.method == "router"].task) == {"sarcasm"}
    texts = small_tables.TEXTS.read(folder)
    assert set(texts.router) == {"sarcasm"} and set(texts.task) == {"movie", "sarcasm"}
