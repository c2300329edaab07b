"""Vision from zoo to report: the same run, protocol and contract as for language."""

from dataclasses import replace

import pytest
import torch
from made_intents import ONLY_HERE

from oral_lib import paths, scales, storage
from oral_lib.baselines import linear_probe
from oral_lib.evaluation import schema
from oral_lib.evaluation.evaluate import accuracy_of, evaluate
from oral_lib.models import loading
from oral_lib.tasks.rows import task_rows
from oral_lib.tasks.task import load_task

torch.set_num_threads(1)
TASK, BASE = "solar_cells", "tiny-convnet"


@pytest.fixture(scope="module")
def run(short_run):
    return short_run("vision", steps=40)


def test_vision_has_a_zoo_and_generators_of_its_own(run):
    assert run.root == paths.run_folder("smoke", "made", run.out) / "vision"
    listed = storage.read_json(run.root / "generator" / "manifest.json")["zoo"]
    told = {(one["base"], one["task"], one["seed"]) for one in listed}
    assert told == set(scales.members("smoke", "made", "vision"))
    assert set(run.generator().bases) == {"tiny-convnet", "tiny-vit"}  # layouts differ


def test_a_vision_cell_keeps_the_contract_and_has_every_method(run):
    metrics, items = run.cell(TASK, BASE, 0)
    schema.check_items(items, schema.check_metrics(metrics))
    assert set(metrics.experiment) == set(metrics.family) == {"vision"}
    absent = {"unconditional", "multitask", "copy_oldest", "copy_newest", "retrained"}
    absent |= {"complement", "ridge_bits", "generated_through_base", *ONLY_HERE}
    assert set(metrics.method) == set(schema.METHODS) - absent
    assert set(metrics.metric) == {"accuracy", "auc", "calibrated_accuracy"}  # two classes
    value = metrics[metrics.metric == "accuracy"].set_index(["method", "condition"]).value
    assert value["trained", "none"] > value["base", "none"] + 0.3
    three, _ = run.cell("easy_vqa_shape", BASE, 0)
    assert set(three.metric) == {"accuracy"}


def test_a_generated_adapter_brings_its_head(run):
    task, base = load_task(TASK), loading.load(BASE)
    [made] = run.generator().generate(task.description, BASE, 1, 0)
    start = base.lora_init()
    assert made.keys() == start.keys()
    head = f"base_model.model.{base.head}.weight"
    assert not torch.equal(made[head], start[head])


def test_what_is_published_stands_beside_language_and_never_mixes_with_it(run):
    run.publish()
    assert (run.root / "published.json").exists()
    metrics, items = run.published()
    assert set(metrics.task) == {"solar_cells", "easy_vqa_shape"} and len(items)
    contents = (run.results.parent / "README.md").read_text("utf-8")
    assert "(smoke/vision-made.md)" in contents
    text = (run.results / "vision-made.md").read_text("utf-8")
    assert "linear probe" in text.lower()
    assert (run.results / "tables" / "main-vision-made.csv").exists()
    assert (run.results / "figures" / "loss-vision-made.png").exists()
    assert (run.results / "figures" / "answers-vision-made.png").exists()
    assert "(figures/answers-vision-made.png)" in text
    assert set(storage.read_json(run.results / "manifest.json")) == {"made-vision"}


# ---------------------------------------------------------------- the linear probe
def test_a_probe_is_a_head_alone_and_reads_what_the_features_say():
    task, base = load_task("easy_vqa_shape"), loading.load("tiny-vit")
    data = task_rows(task, "made")
    data = replace(data, train=data.train[:400], validation=data.validation[:100])
    made, start = linear_probe.linear_probe(base, task, data), base.lora_init()
    head = f"base_model.model.{base.head}"
    moved = {name for name in start if not torch.equal(made[name], start[name])}
    assert moved == {f"{head}.weight", f"{head}.bias"}
    assert torch.equal(made[f"{head}.weight"][3:], start[f"{head}.weight"][3:])
    probed, plain = evaluate(base, task, data.test[:200], [made, start])
    assert accuracy_of(probed) > accuracy_of(plain) + 0.3


def test_a_probe_is_logistic_regression():
    from sklearn.linear_model import LogisticRegression

    draw = torch.Generator().manual_seed(0)
    x = torch.randn(200, 5, generator=draw)
    y = (x[:, 0] + 0.5 * torch.randn(200, generator=draw) > 0).long() + (x[:, 1] > 1).long()
    weight, bias = linear_probe.fit_head(x, y, 3, 0.01)
    # sklearn: C sum(losses) + |w|^2 / 2
    other = LogisticRegression(C=1 / (2 * 0.01 * 200), tol=1e-8, max_iter=1000).fit(x, y)
    told = torch.tensor(other.predict_proba(x))
    torch.testing.assert_close((x @ weight.T + bias).softmax(1).double(), told, atol=2e-3, rtol=0)
