"""The experiment intents as a run: what is trained, measured again and published.

What computes is replaced: `tests/test_intents_rivals.py` and the notebook have the real parts.
"""

import sys
from types import SimpleNamespace

import pandas as pd
import pytest
from made_results import made_items

import oral_lib
from oral_lib import scales, storage
from oral_lib.errors import PreflightError, UsageError
from oral_lib.evaluation import item_tables, results, small_tables
from oral_lib.experiments.cells import Measurement
from oral_lib.report import build
from oral_lib.report.intents.results import IntentsResults
from oral_lib.workflow import cli

PROFILE = {
    ("trained", "none"): (0.9, 1),
    ("few_shot_4", "none"): (0.7, 1),
    ("zero_shot", "matched"): (0.8, 1),
    ("generated_through_base", "matched"): (0.85, 1),
    ("generated_through_base", "rows_4"): (0.8, 1),
}


def measurement(split, base, seed) -> Measurement:
    """Made items of two tasks of a split."""
    places = [
        {"experiment": "intents", "source": "made", "base": base, "task": f"{split}/made.{name}",
         "seed": seed}
        for name in ("alarm", "weather")
    ]  # fmt: skip
    items = item_tables.join(made_items(place, PROFILE, n=40) for place in places)
    rows = item_tables.summarise(
        items, family="intents", base_version="t0", commit="abc", balanced=True
    )
    cost = {"source": "made", "base": base, "split": split, "method": "trained"}
    cost |= {"condition": "none"}
    cost |= {"ms_adapter": 1.0, "ms_row": 2.0, "flops_row": 3.0, "bytes": float("nan")}
    cost |= {"device": "cpu", "commit": "abc"}
    return Measurement(rows, items, {"intents_costs": [cost]})


@pytest.fixture
def calls(monkeypatch):
    """The calls of what trains and measures, which are replaced by stand-ins."""
    made = []

    def trained(folder):
        def train(base, *, scale, source, root, device):
            made.append((folder, base))
            about = {"recipe": {"steps": 3}, "files": {"described": "its hash"}}
            storage.write_json(root / folder / base / "described.json", about)
            storage.write_json(root / folder / base / "manifest.json", about)
            return root / folder / base

        return train

    def train(job, bases, *, scale, source, root, device):
        made.append((job.name, *bases))
        config = {"generator": {"width": 8}, "bases": {base: {} for base in bases}}
        storage.write_json(root / job.name / "config.json", config)
        content = {"kind": job.name, "losses": [2.0, 1.0], "training": {"steps": 2}}
        storage.write_json(root / job.name / "manifest.json", content)
        return root / job.name

    def run_cell(split, base, seed, *, scale, cache, wordings, networks):
        assert networks == scales.cell_networks("smoke", "made", "intents", split, seed)
        made.append((split, base, seed))
        return measurement(split, base, seed)

    modules = {
        "rivals": SimpleNamespace(train_zoo=trained("zoo"), train_rivals=trained("rivals")),
        "writer": SimpleNamespace(train_job=train),
        "writing": SimpleNamespace(writings=lambda names, base, seed, cache: names),
        "measure": SimpleNamespace(run_cell=run_cell),
    }
    package = SimpleNamespace(__path__=[], **modules)
    monkeypatch.setitem(sys.modules, "oral_lib.experiments.intents", package)
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, f"oral_lib.experiments.intents.{name}", module)
    return made


@pytest.fixture
def run(tmp_path):
    return oral_lib.Run("smoke", out=tmp_path, experiment="intents")


BASES = ("tiny-encoder", "tiny-causal")


def test_ready_trains_zoo_and_rivals_of_each_base_model_and_one_network_for_all(calls, run):
    run.ready()
    steps = [(step, base) for base in BASES for step in ("zoo", "rivals")]
    assert calls == steps + [(name, *BASES) for name in scales.generators("smoke", "intents")]


def test_a_cell_is_measured_again_when_its_rivals_or_its_network_change(calls, run):
    run.ready()
    calls.clear()
    for split in ("L2", "L3"):
        run.cell(split, "tiny-causal", 0)
    assert calls == [("L2", "tiny-causal", 0), ("L3", "tiny-causal", 0)]
    changes = {
        "rivals/tiny-encoder": [],
        "rivals/tiny-causal": ["L2", "L3"],
        "zoo/tiny-causal": ["L2", "L3"],
        "through_base": ["L2"],
        "through_base-L3": ["L3"],
        "weights": ["L2"],
    }
    for folder, due in changes.items():
        calls.clear()
        storage.write_json(run.root / folder / "manifest.json", {"training": folder, "losses": []})
        for split in ("L2", "L3"):
            run.cell(split, "tiny-causal", 0)
        assert [split for split, *_ in calls] == due, folder


def test_without_rivals_a_cell_names_the_command_that_trains_them(calls, run):
    run.train_zoo("tiny-causal", ["L2"], [])
    for name in scales.generators("smoke", "intents"):
        run.train_generator(name)
    with pytest.raises(PreflightError, match="oral_lib rivals --base tiny-causal"):
        run.cell("L2", "tiny-causal", 0)
    with pytest.raises(UsageError, match="trains no 'regression'"):
        run.train_generator("regression")


def test_the_commands_of_the_plan_train_measure_and_publish_all_base_models(calls, run, tmp_path):
    where = ["--experiment", "intents", "--scale", "smoke", "--out", str(tmp_path)]
    networks = [("train", name) for name in scales.generators("smoke", "intents")]
    for words in [("zoo",), ("rivals",), *networks, ("cells",), ("report",)]:
        assert cli.main([*words, *where]) == 0
    for base in BASES:
        listed = storage.read_json(run.root / "cells" / f"{base}.json")["cells"]
        assert listed == [f"intents--{base}--{split}--seed-0" for split in ("L0", "L1", "L2", "L3")]
    folder = tmp_path / "results" / "smoke"
    metrics, items = results.read(folder, "intents", "made")
    assert (folder / "items-intents-made.parquet").is_file()
    assert set(items.base) == set(BASES) and items.task.nunique() == 8
    assert set(zip(metrics.method, metrics.condition, strict=True)) == set(PROFILE)
    costs = small_tables.INTENTS_COSTS.read(folder)
    assert set(costs.base) == set(BASES) and costs.bytes.isna().all()
    assert not costs.duplicated(["base", "split", "method"]).any() and len(costs) == 8
    entry = storage.read_json(folder / "manifest.json")["made-intents"]
    assert entry["seeds"]["generator"] == [0] and entry["training"] == {"steps": 2}
    assert entry["rivals"] == {base: {"described": {"recipe": {"steps": 3}}} for base in BASES}
    assert entry["recipes"] == {base: {"steps": 3} for base in BASES}
    curves = pd.read_csv(folder / "curves-intents-made.csv")
    assert set(curves.series) == {f"generator/{n}" for n in scales.generators("smoke", "intents")}


def test_all_cells_are_read_as_two_tables(calls, run):
    metrics, items = run.ready().measured()
    assert len(metrics[metrics.metric == "auc"]) == 2 * 4 * 2 * len(PROFILE)
    assert len(items) == 2 * 4 * 2 * len(PROFILE) * 40


def test_findings_are_means_over_tasks_by_base_model_and_split(calls, run, monkeypatch):
    def refused(*_):
        raise AssertionError("cells of intents are not judged one by one")

    monkeypatch.setattr(build, "judged", refused)
    _, items = run.ready().measured()
    items = items[items.task.str.startswith("L2/")]
    text = run.findings(items)
    assert text == IntentsResults("made", items[:0], items).findings
    assert [f"**L2, {base}.**" in text for base in BASES] == [True, True]


def test_the_benchmark_of_splits_compares_both_kinds_of_training(tmp_path, capsys):
    words = ["bench", "--experiment", "intents", "--scale", "smoke", "--out", str(tmp_path)]
    assert cli.main(words) == 0
    timings = small_tables.BENCHMARKS.read(capsys.readouterr().out.strip().rpartition("/")[0])
    assert set(timings.benchmark) == {"train through base"} and len(timings) == len(BASES)
    assert (timings.value > 0).all() and set(timings.unit) == {"ratio"}
