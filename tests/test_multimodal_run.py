"""Multimodal from alignment to report: the same run, protocol and contract as for language."""

import numpy as np
import pandas as pd
import pytest
import torch
from made_intents import ONLY_HERE

import oral_lib
from oral_lib import scales, storage
from oral_lib.assets import sources
from oral_lib.evaluation import item_tables, schema
from oral_lib.report.tables import methods
from oral_lib.tasks.rows import task_rows
from oral_lib.tasks.task import load_task

torch.set_num_threads(1)
BASE = "tiny-towers"


@pytest.fixture(scope="module")
def run(short_run):
    return short_run("multimodal", steps=40)


def test_the_run_says_how_its_base_was_aligned(run):
    told = storage.read_json(run.align(BASE))
    assert told["pictures"] == 250 and told["recall_after"] != told["recall_before"]
    listed = storage.read_json(run.root / "generator" / "manifest.json")["zoo"]
    found = {(one["base"], one["task"], one["seed"]) for one in listed}
    assert found == set(scales.members("smoke", "made", "multimodal"))


def test_a_cell_of_matching_has_recall_both_ways_and_no_majority(run):
    metrics, items = run.cell("flickr8k", BASE, 0)
    schema.check_items(items, schema.check_metrics(metrics))
    absent = {"unconditional", "copy_oldest", "copy_newest", "retrained"}
    absent |= {"linear_probe", "majority", "multitask", "complement", "ridge_bits"}
    absent |= {"generated_through_base", *ONLY_HERE}
    assert set(metrics.method) == set(schema.METHODS) - absent
    ways = ("text_to_image", "image_to_text")
    recalls = {f"{way}_recall@{k}" for way in ways for k in (1, 5, 10)}
    assert set(metrics.metric) == {"accuracy"} | recalls
    one = metrics[(metrics.method == "trained")].set_index("metric")
    own = items[items.method == "trained"]
    for way in ways:
        part = own[own["item"].astype(str).str.startswith(way)]
        for k in (1, 5, 10):
            row = one.loc[f"{way}_recall@{k}"]
            assert row.value == pytest.approx((part.predicted < k).mean(), abs=1e-5)
            assert row.n_items == part["item"].nunique()
    assert one.loc["accuracy"].value > 0.5  # of a hundred texts and pictures in six classes
    assert one.loc["text_to_image_recall@10"].value >= one.loc["text_to_image_recall@1"].value


def test_a_cell_of_questions_keeps_the_contract(run):
    metrics, items = run.cell("easy_vqa", BASE, 0)
    schema.check_items(items, schema.check_metrics(metrics))
    assert {"majority", "base", "trained", "generated", "regression"} <= set(metrics.method)
    value = metrics[metrics.metric == "accuracy"].set_index(["method", "condition"]).value
    assert value["trained", "none"] > max(value["base", "none"], value["majority", "none"]) + 0.3


def test_a_generated_adapter_spans_both_towers_and_brings_the_fusion(run):
    task, base = load_task("easy_vqa"), run.base(BASE)
    [made] = run.generator().generate(task.description, BASE, 1, 0)
    start = base.lora_init()
    assert made.keys() == start.keys()
    changed = {n for n in start if not torch.equal(made[n], start[n])}
    for part in ("clip.visual.trunk", "clip.text.transformer", "fuse.weight", "answer.weight"):
        assert any(part in name for name in changed)


def test_examples_of_matching_name_a_text_for_every_picture(run):
    task, base = load_task("flickr8k"), run.base(BASE)
    rows = list({r.image: r for r in task_rows(task, "made").test}.values())[:8]
    trained = next(m.tensors for m in run.members(BASE) if m.task == task.name)
    said, right = oral_lib.compare(base, task, rows, {"base": base.lora_init(), "trained": trained})
    assert list(said.columns) == ["text", "truth", "base", "trained"] and len(said) == 8
    texts = {row.text for row in rows}
    assert all(cell.rpartition(" (")[0] in texts for cell in said.trained)
    agreed = said.trained.str.rpartition(" (")[0] == said.truth
    assert right["trained"] > right["base"] and agreed.mean() > 0.5


def test_what_is_published_has_a_table_of_recall(run):
    run.publish()
    metrics, items = run.published()
    assert set(metrics.task) == {"flickr8k", "easy_vqa"} and len(items)
    text = (run.results / "multimodal-made.md").read_text("utf-8")
    assert "recall@1 over the queries of both" in text
    table = pd.read_csv(run.results / "tables" / "parts-multimodal-made.csv")
    assert set(table.metric) == set(metrics[schema.of_parts(metrics)].metric)
    wanted = metrics[(metrics.method == "trained") & (metrics.metric == table.metric[0])].value
    assert float(table.trained[0]) == pytest.approx(100 * wanted.item(), abs=0.06)
    manifest = storage.read_json(run.results / "manifest.json")["made-multimodal"]
    assert manifest["aligned"][0]["name"] == BASE and manifest["tuning"] == {}
    assert (run.results / "figures" / "answers-multimodal-made.png").exists()


# ---------------------------------------------------------------- kinds of questions
def test_each_kind_of_question_has_an_accuracy_of_its_own():
    cell = {"experiment": "multimodal", "source": "made", "base": "b", "task": "t", "seed": 0}
    names = [f"q{i}" for i in range(6)]
    kinds = dict(zip(names, ["colour"] * 4 + ["shape"] * 2, strict=True))
    logits, labels = np.eye(3)[[0, 1, 2, 0, 1, 1]], [0, 1, 2, 2, 0, 1]
    items = item_tables.label_items(cell, "base", "none", item=names, labels=labels, logits=logits)
    metrics = item_tables.summarise(items, family="multimodal", base_version="t0", kinds=kinds)
    value = metrics.set_index("metric").value
    assert value["accuracy_colour"] == 0.75 and value["accuracy_shape"] == 0.5
    assert value["accuracy"] == pytest.approx(4 / 6, abs=1e-5)
    table = methods.parts_table(metrics, "made")
    assert table.base.tolist() == ["75.0", "50.0"] and table.n.tolist() == [4, 2]


def test_questions_that_packages_ship_are_fetched_beside_a_local_folder(tmp_path):
    wanted = sources._required(f"local:{tmp_path}", "multimodal")
    assert "easy_vqa" in wanted and "easy_vqa_labels" not in wanted
    assert {"efficientnet-lite0", "minilm-l6"} <= set(wanted)
    assert "easy_vqa" not in sources._required(f"local:{tmp_path}", "language")


@pytest.mark.parametrize("name", ["easy_vqa", "easy_vqa_yesno", "easy_vqa_attributes"])
def test_questions_of_a_package_have_the_kind_that_their_answer_says(name):
    task = load_task(name)
    split = task_rows(task, "packages")
    for row in split.test:
        answer = task.labels[row.label]
        wanted = (
            "yes_no" if answer in ("yes", "no") else "shape" if row.kind == "shape" else "colour"
        )
        assert row.kind == wanted and row.text.endswith("?")
        assert (answer in ("circle", "rectangle", "triangle")) == (row.kind == "shape")
