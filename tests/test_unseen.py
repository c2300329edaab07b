"""Unseen tasks by text: no training set has the answer, and every rival reads the sentence."""

import shutil
from dataclasses import replace
from itertools import combinations

import numpy as np
import pandas as pd
import pytest
import torch
from made_results import made_items

from oral_lib import scales, storage
from oral_lib.baselines import class_bits, multitask
from oral_lib.errors import OralError, PreflightError
from oral_lib.evaluation import bootstrap, item_tables, schema
from oral_lib.evaluation.evaluate import accuracy_of, evaluate
from oral_lib.experiments import unseen
from oral_lib.models import loading
from oral_lib.models.text_encoder import TextEncoder
from oral_lib.planning.parts import GeneratorJob
from oral_lib.report import build, pages
from oral_lib.report.tables import methods, sets
from oral_lib.tasks import binary
from oral_lib.tasks.rows import task_rows
from oral_lib.tasks.task import load_task
from oral_lib.zoo import recipes, store, training
from oral_lib.zoo.split_batches import SplitBatches, SplitRows

torch.set_num_threads(1)
BASE = "tiny-convnet-yes-no"
PAIR = binary.held_out_tasks("cifar10", "pairs")[0]
CLASSES = binary.held_out_tasks("cifar10", "classes")[0]
FIRST = binary.task_name("cifar10", {4, 8, 9})  # a task of the first release: without a set


@pytest.fixture(scope="module")
def run(short_run):
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(recipes.RECIPES, BASE, replace(recipes.RECIPES[BASE], steps=30))
        return short_run("unseen", steps=20)


@pytest.fixture(scope="module")
def cell(run):
    return run.cell(PAIR, BASE, 0)


# ---------------------------------------------------------------- what is held out
@pytest.mark.parametrize("source", ["packages", "local:x", "hub"])
def test_the_lab_measures_both_sets_and_trains_on_neither(source):
    [plan] = scales.base_plans("lab", source, "unseen")
    trained_on = {task for _, task, _ in scales.members("lab", source, "unseen")}
    assert trained_on == set(plan.tasks) and plan.cell_tasks == plan.unseen_tasks
    assert {binary.set_of(name) for name in plan.tasks} == {"train"}
    assert [binary.set_of(name) for name in plan.unseen_tasks] == ["pairs"] * 40 + ["classes"] * 40
    assert set(plan.zoo_tasks) == trained_on | {*plan.unseen_tasks} | {*plan.controls}
    of = load_task(plan.unseen_tasks[0]).of
    assert source.partition(":")[0] in load_task(of).sources


@pytest.mark.parametrize(("scale", "source"), [("lab", "local:x"), ("smoke", "made")])
def test_no_training_task_is_a_held_out_task_or_its_complement(scale, source):
    [plan] = scales.base_plans(scale, source, "unseen")
    held_out = {load_task(name).positive for name in plan.unseen_tasks}
    either_side = held_out | {binary.complement(side) for side in held_out}
    assert not {load_task(name).positive for name in plan.tasks} & either_side
    assert {binary.parse(n)[1] for n in plan.controls} <= either_side - held_out


def test_no_training_task_separates_or_names_a_held_out_class():
    classes = binary.held_out_classes()
    assert len(classes) == 3
    nouns = [noun for of in binary.NOUNS for noun in (binary.NOUNS[of][i] for i in classes)]
    for name in (name for of in binary.NOUNS for name in binary.training_tasks(of)):
        task = load_task(name)
        assert not task.positive & classes
        assert not any(noun in text for text in task.training_texts for noun in nouns)
    for name in binary.held_out_tasks("cifar10", "classes"):
        assert 0 < len(load_task(name).positive & classes) < 3
    for name in binary.held_out_tasks("cifar10", "pairs"):
        assert not load_task(name).positive & classes
    measured = set(binary.splits("classes"))
    within = {binary.canonical(frozenset(c)) for n in (1, 2) for c in combinations(classes, n)}
    assert len(within) == 6 and within <= measured


def test_a_seen_class_is_in_many_training_tasks():
    seen = set(range(binary.N_CLASSES)) - binary.held_out_classes()
    for index in seen:
        assert sum(index in side for side in binary.splits("train")) > 20


def test_no_generator_and_no_rival_met_a_held_out_task(run):
    kept = set(run.planned[0].unseen_tasks)
    for kind in ("generator", "regression", "through_base"):
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
        "majority", "base", "trained", "complement", "ridge_bits", "soup_all", "multitask",
        "retrieval", "router", "regression", "generated", "generated_free",
        "generated_through_base",
    }  # fmt: skip
    value = metrics.set_index(["metric", "method", "condition"]).value["balanced_accuracy"]
    assert value["majority", "none"] == pytest.approx(0.5)
    assert value["trained", "none"] > 0.7


def test_the_table_has_the_best_and_the_mean_of_the_samples(cell):
    metrics, items = cell
    table = methods.unseen_table(items).set_index("task")
    name = PAIR
    row = table.loc[load_task(name).description]
    value = metrics.set_index(["metric", "method", "condition"]).value["balanced_accuracy"]
    assert float(row["mean"]) == pytest.approx(100 * value["generated", "matched"], abs=0.06)
    assert float(row["trained"]) == pytest.approx(100 * value["trained", "none"], abs=0.06)
    assert float(row["best"]) >= float(row["mean"])
    share = table.loc["share of the gain over chance"]
    assert share["trained"] == "100%"
    gain = (value["multitask", "matched"] - 0.5) / (value["trained", "none"] - 0.5)
    assert share["multi-task LoRA"] == f"{100 * gain:.0f}%"


def test_the_table_has_the_mean_and_the_share_of_each_set(cell):
    items = pd.concat([cell[1].assign(task=name) for name in (FIRST, CLASSES, PAIR)])
    alone = methods.unseen_table(cell[1])
    new = {"through the base", "ridge on class bits", "complement"}
    assert new <= {*alone} and "set" not in alone
    kept = cell[1][cell[1].method != "complement"]
    assert {*alone} - {*methods.unseen_table(kept)} == {"complement"}
    table = methods.unseen_table(items)
    ends = ["mean", "share of the gain over chance"]
    for part, name in {"pairs": PAIR, "classes": CLASSES, "first release": FIRST}.items():
        rows = table[table.set == part].drop(columns="set").reset_index(drop=True)
        assert list(rows.task) == [load_task(name).description, *ends]
        pd.testing.assert_frame_equal(rows.drop(columns="task"), alone.drop(columns="task"))
    assert list(table.set) == [p for p in ("pairs", "classes", "first release") for _ in range(3)]


def test_held_out_tasks_are_judged_by_set():
    profile = {
        ("trained", "none"): (0.95, 2),
        ("generated_through_base", "matched"): (0.95, 2),
        ("generated_through_base", "paraphrase"): (0.9, 2),
        ("router", "matched"): (0.6, 2),
    }
    tasks = [n for part in ("pairs", "classes") for n in binary.held_out_tasks("cifar10", part)[:5]]
    place = {"experiment": "unseen", "source": "made", "base": BASE}
    items = item_tables.join(
        made_items(place | {"task": name, "seed": 0}, profile, n=400) for name in (*tasks, FIRST)
    )
    table = sets.sets_table(items)
    assert list(table["set"].unique()) == ["pairs", "classes"] and set(table.tasks) == {5}
    of_pairs = table[table["set"] == "pairs"].set_index("method")
    assert set(of_pairs.index) == {"trained", "generated, through the base", "router"}
    assert of_pairs.loc["router", "− trained"].endswith(" below")
    assert of_pairs.loc["router", "generated, through the base − it"].endswith(" above")
    assert of_pairs.loc["generated, through the base", "− trained"].split()[-1] in (
        "equal", "undecided", "above",
    )  # fmt: skip
    assert sets.sets_table(items[items.task == FIRST]).empty


@pytest.mark.parametrize(
    ("names", "notes"),
    [
        ([FIRST], ["sentence embedding. The opposite of a held-out task (yes and no exchanged)"]),
        ([PAIR, CLASSES], ["Pairs: the opposite of a held-out task is held out", "Classes: held"]),
        ([PAIR, FIRST], ["Pairs: the opposite", "First release: the opposite"]),
    ],
)
def test_the_page_says_whether_the_training_set_has_opposites(cell, names, notes, tmp_path):
    metrics, items = (pd.concat([f.assign(task=name) for name in names]) for f in cell)
    text = pages.page(tmp_path, build.SourceResults("unseen", "made", metrics, items))
    assert all(note in text for note in notes)
    assert ("is in the training set, as in RPG's test" in text) == (FIRST in names)
    assert "trained 97.2, best of ten 92.9, mean 90.0" in text


# ---------------------------------------------------------------- one LoRA for all tasks
def test_the_multitask_adapter_answers_as_it_was_trained_to(run):
    base = loading.load(BASE)
    base.model.float()
    task = load_task(PAIR)
    rows = task_rows(task, "made").test[:20]
    text = TextEncoder("tiny").encode([task.description])[0]
    made = multitask.multitask_adapter(run.root, base, text)
    assert made.keys() == base.lora_init().keys()
    [outcome] = evaluate(base, task, rows, [made])
    head = torch.nn.Linear(len(text), base.model.num_features + 1)
    held = storage.read_tensors(run.root / "multitask" / "multitask.safetensors")
    head.load_state_dict({n: held[f"head.{n}"] for n in ("weight", "bias")})
    with base.attach(made) as model, torch.inference_mode():
        features = multitask.features(model.get_base_model(), base, base.images(rows))
        said = multitask.yes_logits(features, head, text[None])[:, 0]
    likely = outcome.likely[:, 1] - outcome.likely[:, 0]
    torch.testing.assert_close(likely, said, atol=1e-3, rtol=1e-3)
    losses = storage.read_json(run.root / "multitask" / "manifest.json")["losses"]
    assert np.mean(losses[-10:]) < np.mean(losses[:5])


def test_without_a_multitask_lora_it_is_said_what_to_do(tmp_path, refused):
    with refused(PreflightError, "multitask", "./reproduce.sh"):
        multitask.multitask_adapter(tmp_path, loading.load(BASE), torch.zeros(64))


def test_a_multitask_lora_that_does_not_fit_or_is_damaged_is_refused(run, tmp_path, refused):
    shutil.copytree(run.root / "multitask", tmp_path / "multitask")
    base, text = loading.load(BASE), torch.zeros(64)
    multitask.multitask_adapter(tmp_path, base, text)
    file, manifest = (
        tmp_path / "multitask" / n for n in ("multitask.safetensors", "manifest.json")
    )
    tensors = storage.read_tensors(file)
    dropped = next(name for name in tensors if ".lora_" in name)
    storage.write_tensors(file, {n: t for n, t in tensors.items() if n != dropped})
    with refused(PreflightError, "is damaged"):
        multitask.multitask_adapter(tmp_path, base, text)
    digest = {"sha256": storage.sha256(file)}
    storage.write_json(manifest, storage.read_json(manifest) | digest)
    with refused(OralError, "other tensors than", BASE):
        multitask.multitask_adapter(tmp_path, base, text)


def test_one_lora_is_trained_on_the_splits_of_one_data_set_only(tmp_path, refused):
    names = [binary.training_tasks(family)[0] for family in ("cifar10", "digits")]
    where = {"scale": "smoke", "source": "made", "root": tmp_path}
    with refused(OralError, "cifar10", "digits"):
        unseen.train_multitask(BASE, names, **where)
    assert not (tmp_path / "multitask").exists()


# ---------------------------------------------------------------- complement and class bits
def made_member(positive, seed=0):
    """An adapter that is linear in the class bits of its task."""
    stream = torch.Generator().manual_seed(seed)
    bits = torch.tensor([float(i in positive) for i in range(binary.N_CLASSES)])
    maps = torch.randn(2, 6, binary.N_CLASSES, generator=stream)
    tensors = {"a.lora_A.weight": maps[0] @ bits, "head.weight": (maps[1] @ bits).view(2, 3)}
    name = binary.task_name("cifar10", positive)
    return store.Member("base", name, 0, {n: t + 1 for n, t in tensors.items()}, {})


def test_ridge_on_class_bits_is_exact_where_adapters_are_linear_in_them():
    members = [made_member(side) for side in binary.splits("train")]
    ridge = class_bits.RidgeOfBits(members)
    assert ridge.penalty == min(class_bits.RIDGE_PENALTIES)
    for side in binary.splits("pairs")[:5]:
        assert float(ridge.shares(side).sum()) == pytest.approx(1)
        expected, predicted = made_member(side).tensors, ridge.adapter(side)
        for name, tensor in expected.items():
            torch.testing.assert_close(predicted[name], tensor, atol=2e-2, rtol=1e-2)


def test_the_penalty_has_the_least_error_of_adapters_that_are_left_out():
    sides = binary.splits("train")[:20]
    members = [made_member(side) for side in sides]
    for i, member in enumerate(members):  # noise that no bit predicts
        for tensor in member.tensors.values():
            tensor += 3 * torch.randn(tensor.shape, generator=torch.Generator().manual_seed(i))
    left_out = {}
    for penalty in class_bits.RIDGE_PENALTIES:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(class_bits, "RIDGE_PENALTIES", (penalty,))
            left_out[penalty] = sum(
                float((class_bits.RidgeOfBits(others).adapter(side)[n] - t).square().sum())
                for i, side in enumerate(sides)
                for others in [members[:i] + members[i + 1 :]]
                for n, t in members[i].tensors.items()
            )
    assert class_bits.RidgeOfBits(members).penalty == min(left_out, key=left_out.get)


def test_a_class_that_no_adapter_knows_changes_nothing_in_the_ridge():
    ridge = class_bits.RidgeOfBits([made_member(side) for side in binary.splits("train")])
    [known], [new] = {0}, binary.held_out_classes() - {*sorted(binary.held_out_classes())[1:]}
    one, other = ridge.adapter(frozenset({known})), ridge.adapter(frozenset({known, new}))
    assert all(torch.allclose(one[name], other[name]) for name in one)


def test_ridge_on_class_bits_refuses_other_tasks_and_too_few(refused):
    members = [made_member(side) for side in binary.splits("train")[:2]]
    with refused(OralError, "movie"):
        class_bits.RidgeOfBits([members[0], replace(members[1], task="movie")])
    with refused(OralError, "two"):
        class_bits.RidgeOfBits(members[:1])


def test_the_complement_with_exchanged_rows_gives_the_other_answer():
    base, task = loading.load(BASE), load_task(PAIR)
    stream = torch.Generator().manual_seed(0)
    adapter = {
        name: tensor + 0.1 * torch.randn(tensor.shape, generator=stream)
        for name, tensor in base.lora_init().items()
    }
    rows = task_rows(task, "made").test[:10]
    both = [adapter, class_bits.exchanged(adapter)]
    one, other = evaluate(base, task, rows, both)
    torch.testing.assert_close(one.likely, other.likely.flip(1))
    assert all(torch.equal(class_bits.exchanged(both[1])[n], t) for n, t in adapter.items())


def test_the_complement_is_trained_for_held_out_pairs_only(run, cell):
    metrics, _ = cell
    value = metrics.set_index(["metric", "method"]).value["balanced_accuracy"]
    assert value["complement"] == pytest.approx(value["trained"], abs=0.1)
    [other] = [n for n in run.planned[0].unseen_tasks if binary.set_of(n) == "classes"]
    metrics, _ = run.cell(other, BASE, 0)
    assert "complement" not in set(metrics.method)


# ---------------------------------------------------------------- through the base model
@pytest.fixture
def batches():
    model = loading.load(BASE)
    model.model.float()
    rows = SplitRows.of(binary.training_tasks("cifar10")[:6], model, TextEncoder("tiny"), "made")
    return SplitBatches(model, rows, size=4, rows=5, seed=3)


def flat_start(batches, noise=0.05):
    start = torch.cat([t.flatten() for _, t in sorted(batches.model.lora_init().items())])
    stream = torch.Generator().manual_seed(0)
    return start + noise * torch.randn(4, len(start), generator=stream)


def test_a_step_draws_training_tasks_with_rows_of_their_own_and_only_the_step_decides(batches):
    assert batches.draw(7) == 5
    first = {n: getattr(batches, n).clone() for n in ("text", "tasks", "images", "labels")}
    assert len(set(batches.tasks.tolist())) == 4 and bool(batches.given.all())
    for s, task in enumerate(batches.tasks.tolist()):
        assert (batches.data.texts[task] == batches.text[s]).all(1).any()
        for i in range(5 * s, 5 * s + 5):
            same = (batches.data.images == batches.images[i]).all(1)
            expected = batches.data.answers[task, batches.data.labels[same]]
            assert int(batches.labels[i]) in expected.long().tolist()
    batches.draw(8)
    assert not torch.equal(first["images"], batches.images)
    batches.draw(7)
    assert all(torch.equal(tensor, getattr(batches, name)) for name, tensor in first.items())


def test_each_loss_is_that_of_its_adapter_alone_and_its_gradient_a_difference(batches):
    batches.draw(0)
    values = flat_start(batches).requires_grad_()
    each = batches.losses(values, 5)
    adapters = batches.stack.adapters(values)
    for s, adapter in enumerate(adapters):
        rows = slice(5 * s, 5 * s + 5)
        with batches.model.attach(adapter) as attached, torch.inference_mode():
            images = batches.model.normalised(batches.images[rows])
            logits = attached.get_base_model()(images)
        alone = torch.nn.functional.cross_entropy(logits.float(), batches.labels[rows])
        assert each[s].item() == pytest.approx(alone.item(), abs=1e-4)
    [gradient] = torch.autograd.grad(each.sum(), values)
    direction = gradient / gradient.norm(dim=1, keepdim=True)
    step = 1e-2
    with torch.no_grad():
        ahead, behind = (batches.losses(values + x * direction, 5) for x in (step, -step))
    torch.testing.assert_close(
        (ahead - behind) / (2 * step), gradient.norm(dim=1), rtol=0.05, atol=1e-3
    )


def test_a_training_through_the_base_may_begin_on_tokens_and_is_not_repeated(
    run, tmp_path, monkeypatch
):
    shutil.copytree(run.root / "zoo", tmp_path / "zoo")
    names, job = run.planned[0].tasks[:6], GeneratorJob(kind="through_base", seed=1)
    short = replace(unseen.THROUGH_BASE_PRESETS["smoke"], tokens=2)
    short = replace(short, training=replace(short.training, steps=3))
    monkeypatch.setitem(unseen.THROUGH_BASE_PRESETS, "smoke", short)
    about = {"scale": "smoke", "source": "made", "root": tmp_path}
    folder = unseen.train_generator_through_base(BASE, names, job, **about)
    file = folder / "manifest.json"
    manifest, written = storage.read_json(file), file.stat().st_mtime_ns
    assert folder.name == "through_base-1" and len(manifest["losses"]) == 2 + 3
    assert {entry["task"] for entry in manifest["zoo"]} == set(names)
    assert unseen.train_generator_through_base(BASE, names, job, **about) == folder
    assert file.stat().st_mtime_ns == written
    unseen.train_generator_through_base(BASE, names[1:], job, **about)
    assert len(storage.read_json(file)["zoo"]) == 5
    assert not [path for path in folder.iterdir() if path.name.startswith(("tokens", "through"))]


def test_a_generator_that_is_trained_through_the_base_learns(run):
    manifest = storage.read_json(run.root / "through_base" / "manifest.json")
    losses = manifest["losses"]
    assert np.mean(losses[-10:]) < 0.98 * np.mean(losses[:10])
    assert len(manifest["norms"]) == manifest["training"]["training"]["steps"]


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
