"""Unseen tasks by text: nobody met what was held out, and every rival is told the sentence."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from oral_lib import scales, storage
from oral_lib.errors import OralError, PreflightError
from oral_lib.evaluation import bootstrap, schema
from oral_lib.evaluation.evaluate import accuracy_of, evaluate
from oral_lib.experiments import unseen
from oral_lib.models import loading
from oral_lib.models.text_encoder import TextEncoder
from oral_lib.report.tables import methods
from oral_lib.tasks import binary
from oral_lib.tasks.rows import task_rows
from oral_lib.tasks.task import load_task
from oral_lib.zoo import recipes, store, training

torch.set_num_threads(1)
BASE = "tiny-convnet-yes-no"


@pytest.fixture(scope="module")
def run(short_run):
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(recipes.RECIPES, BASE, replace(recipes.RECIPES[BASE], steps=30))
        return short_run("unseen", steps=20)


@pytest.fixture(scope="module")
def cell(run):
    return run.cell(binary.held_out("cifar10")[0], BASE, 0)


# ---------------------------------------------------------------- what is held out
@pytest.mark.parametrize("source", ["packages", "local:x", "hub"])
def test_the_lab_trains_on_1002_tasks_and_asks_for_twenty_others(source):
    [cells] = scales.base_plans("lab", source, "unseen")
    told = {task for _, task, _ in scales.members("lab", source, "unseen")}
    unseen_tasks = set(cells.unseen_tasks)
    assert len(told) == 1002 and len(unseen_tasks) == 20 and not told & unseen_tasks
    assert told | unseen_tasks == {*cells.zoo_tasks} and cells.cell_tasks == cells.unseen_tasks
    of = load_task(cells.unseen_tasks[0]).of
    assert source.partition(":")[0] in load_task(of).sources


def test_no_generator_and_no_rival_met_a_held_out_task(run):
    kept = set(run.planned[0].unseen_tasks)
    for kind in ("generator", "regression"):
        listed = storage.read_json(run.root / kind / "manifest.json")["zoo"]
        assert {one["task"] for one in listed} == set(run.planned[0].tasks)
        assert not {one["task"] for one in listed} & kept
    about = storage.read_json(run.root / "multitask" / "manifest.json")
    assert about["tasks"] == len(run.planned[0].tasks)


def test_many_tasks_share_a_stack_and_each_becomes_what_it_would_alone(run):
    name = run.planned[0].tasks[1]
    held = store.read(run.root, BASE, name, 0)
    base, task = loading.load(BASE), load_task(name)
    recipe = recipes.Recipe.from_json(held.info["recipe"])
    [alone] = training.train(
        base, [training.AdapterJob(task, 0, recipe)], {name: task_rows(task, "made")}
    )
    start = base.lora_init()
    for key, tensor in alone.tensors.items():
        moved = (tensor - start[key]).norm()
        assert (tensor - held.tensors[key]).norm() < 0.2 * moved + 1e-6, key  # bfloat16


def test_each_adapter_is_judged_on_the_validation_rows_of_its_own_task(run):
    model, kept = loading.load(BASE), set()
    for member in run.members(BASE)[:3]:
        task = load_task(member.task)
        rows = task_rows(task, "made").validation
        [alone] = evaluate(model, task, rows, [member.tensors])
        info = member.info
        assert info["validation_accuracy"] == pytest.approx(accuracy_of(alone))
        assert info["validation_likelihood"] == pytest.approx(alone.likelihood, abs=1e-4)
        assert info["validation_rows"] == len(rows)
        kept.add(info["validation_accuracy"])
    assert len(kept) > 1


def test_tasks_about_other_rows_are_judged_apart():
    model, names = loading.load(BASE), binary.training_tasks("cifar10")[:2]
    known = [load_task(name) for name in names]
    data = {task.name: task_rows(task, "made") for task in known}
    fewer = data[names[1]].validation[:30]
    data[names[1]] = replace(data[names[1]], validation=fewer)
    recipe = replace(recipes.RECIPES[BASE], steps=3)
    made = list(
        training.train(model, [training.AdapterJob(task, 0, recipe) for task in known], data)
    )
    for done, judged in zip(made, store._outcomes(model, made, data), strict=True):
        rows = data[done.job.task.name].validation
        [alone] = evaluate(model, done.job.task, rows, [done.tensors])
        assert judged.rows == rows and judged.likely.shape[0] == len(rows)
        assert accuracy_of(judged) == pytest.approx(accuracy_of(alone))


def test_a_zoo_of_another_recipe_is_not_gone_on_with(run, monkeypatch, refused):
    monkeypatch.setitem(recipes.RECIPES, BASE, replace(recipes.RECIPES[BASE], lr=1e-5))
    names = [m.task for m in run.members(BASE)[:2]]
    with refused(PreflightError, "another recipe"):
        store.train_tasks(BASE, names, source="made", root=run.root)


def test_an_adapter_that_was_lost_is_made_again_as_it_was(run, tmp_path, monkeypatch):
    monkeypatch.setitem(
        recipes.RECIPES, BASE, recipes.Recipe.from_json(run.members(BASE)[0].info["recipe"])
    )
    shutil.copytree(run.root / "zoo", tmp_path / "zoo")
    names = run.planned[0].zoo_tasks
    lost = store.folder(tmp_path, BASE, names[1], 0)
    others = {name: store.folder(tmp_path, BASE, name, 0) / "run.json" for name in names[2:4]}
    kept = {name: file.stat().st_mtime_ns for name, file in others.items()}
    shutil.rmtree(lost)
    store.train_tasks(BASE, names, source="made", root=tmp_path)
    again, before = (store.read(root, BASE, names[1], 0) for root in (tmp_path, run.root))
    assert all(torch.equal(again.tensors[n], t) for n, t in before.tensors.items())
    assert {name: file.stat().st_mtime_ns for name, file in others.items()} == kept


def test_a_multitask_lora_of_other_tasks_is_trained_again(run, tmp_path):
    shutil.copytree(run.root / "multitask", tmp_path / "multitask")
    names, file = run.planned[0].tasks, tmp_path / "multitask" / "manifest.json"
    how = {"scale": "smoke", "source": "made", "root": tmp_path}
    before = file.stat().st_mtime_ns
    assert unseen.train_multitask(BASE, names, **how) == file.parent
    assert file.stat().st_mtime_ns == before
    unseen.train_multitask(BASE, names[1:], **how)
    assert storage.read_json(file)["tasks"] == len(names) - 1


def test_a_task_and_its_complement_have_one_lora_under_mirrored_heads():
    base, yes = loading.load(BASE), {0, 3}
    base.model.float()
    names = [binary.task_name("cifar10", yes), binary.task_name("cifar10", set(range(10)) - yes)]
    recipe = replace(recipes.RECIPES[BASE], steps=6)
    runs = [training.AdapterJob(load_task(name), 0, recipe) for name in names]
    data = {name: task_rows(load_task(name), "made") for name in names}
    one, other = (done.tensors for done in training.train(base, runs, data))
    start = base.lora_init()
    for name, tensor in one.items():
        mirrored = other[name] if ".lora_" in name else other[name].flip(0)
        assert (tensor - mirrored).norm() < 0.01 * (tensor - start[name]).norm(), name


# ---------------------------------------------------------------- a cell
def test_a_cell_keeps_the_contract_and_has_every_rival(cell):
    metrics, items = cell
    schema.check_items(items, schema.check_metrics(metrics))
    assert set(metrics.method) == {
        "majority", "base", "trained", "soup_all", "multitask", "retrieval", "router", "regression",
        "generated", "generated_free",
    }  # fmt: skip
    value = metrics.set_index(["metric", "method", "condition"]).value["balanced_accuracy"]
    assert value["majority", "none"] == pytest.approx(0.5)
    assert value["trained", "none"] > 0.7


def test_the_table_has_the_best_and_the_mean_of_the_samples(cell):
    metrics, items = cell
    table = methods.unseen_table(items).set_index("task")
    name = binary.held_out("cifar10")[0]
    row = table.loc[load_task(name).description]
    value = metrics.set_index(["metric", "method", "condition"]).value["balanced_accuracy"]
    assert float(row["mean"]) == pytest.approx(100 * value["generated", "matched"], abs=0.06)
    assert float(row["trained"]) == pytest.approx(100 * value["trained", "none"], abs=0.06)
    assert float(row["best"]) >= float(row["mean"])
    share = table.loc["share of the gain over chance"]
    assert share["trained"] == "100%"
    gain = (value["multitask", "matched"] - 0.5) / (value["trained", "none"] - 0.5)
    assert share["multi-task LoRA"] == f"{100 * gain:.0f}%"


# ---------------------------------------------------------------- one LoRA for all tasks
def test_the_multitask_adapter_answers_as_it_was_trained_to(run):
    base = loading.load(BASE)
    base.model.float()
    task = load_task(binary.held_out("cifar10")[0])
    rows = task_rows(task, "made").test[:20]
    text = TextEncoder("tiny").encode([task.description])[0]
    made = unseen.multitask_adapter(run.root, base, text)
    assert made.keys() == base.lora_init().keys()
    [outcome] = evaluate(base, task, rows, [made])
    head = torch.nn.Linear(len(text), base.model.num_features + 1)
    held = storage.read_tensors(run.root / "multitask" / "multitask.safetensors")
    head.load_state_dict({n: held[f"head.{n}"] for n in ("weight", "bias")})
    with base.attach(made) as model, torch.inference_mode():
        features = unseen.features(model.get_base_model(), base, base.images(rows))
        said = unseen.yes_logits(features, head, text[None])[:, 0]
    likely = outcome.likely[:, 1] - outcome.likely[:, 0]
    torch.testing.assert_close(likely, said, atol=1e-3, rtol=1e-3)
    losses = storage.read_json(run.root / "multitask" / "manifest.json")["losses"]
    assert np.mean(losses[-10:]) < np.mean(losses[:5])


def test_without_a_multitask_lora_it_is_said_what_to_do(tmp_path, refused):
    with refused(PreflightError, "multitask", "./reproduce.sh"):
        unseen.multitask_adapter(tmp_path, loading.load(BASE), torch.zeros(64))


def test_a_multitask_lora_that_does_not_fit_or_is_damaged_is_refused(run, tmp_path, refused):
    shutil.copytree(run.root / "multitask", tmp_path / "multitask")
    base, text = loading.load(BASE), torch.zeros(64)
    unseen.multitask_adapter(tmp_path, base, text)
    file, manifest = (
        tmp_path / "multitask" / n for n in ("multitask.safetensors", "manifest.json")
    )
    tensors = storage.read_tensors(file)
    dropped = next(name for name in tensors if ".lora_" in name)
    storage.write_tensors(file, {n: t for n, t in tensors.items() if n != dropped})
    with refused(PreflightError, "is damaged"):
        unseen.multitask_adapter(tmp_path, base, text)
    digest = {"sha256": storage.sha256(file)}
    storage.write_json(manifest, storage.read_json(manifest) | digest)
    with refused(OralError, "other tensors than", BASE):
        unseen.multitask_adapter(tmp_path, base, text)


def test_one_lora_is_trained_on_the_splits_of_one_data_set_only(tmp_path, refused):
    names = [binary.training_tasks(family)[0] for family in ("cifar10", "digits")]
    where = {"scale": "smoke", "source": "made", "root": tmp_path}
    with refused(OralError, "cifar10", "digits"):
        unseen.train_multitask(BASE, names, **where)
    assert not (tmp_path / "multitask").exists()


# ---------------------------------------------------------------- balanced accuracy
def test_balanced_accuracy_is_the_mean_of_the_classes_and_lies_in_its_interval():
    labels = np.array([0] * 90 + [1] * 10)
    always_no = labels == 0
    assert bootstrap.balanced_accuracy(labels, always_no) == 0.5
    right = always_no.copy()
    right[90:95] = True
    found, error = bootstrap.bootstrap_balanced(labels, right)
    assert found.value == pytest.approx(0.75) and found.low < 0.75 < found.high <= 1
    assert error == pytest.approx(0.5 * (0.25 / 10) ** 0.5, rel=0.2)
    perfect, _ = bootstrap.bootstrap_balanced(labels, np.ones(100, bool))
    assert tuple(perfect) == (1.0, 1.0, 1.0)
