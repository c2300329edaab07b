"""Generators of seen tasks that are trained on through the base models."""

import shutil
from collections import Counter
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch

from oral_lib import scales, storage
from oral_lib.errors import PreflightError, UsageError
from oral_lib.evaluation import scoring
from oral_lib.evaluation.evaluate import evaluate
from oral_lib.experiments.seen import development, through_base
from oral_lib.generator import Generator
from oral_lib.lora.stacked import Stack
from oral_lib.models import alignment, loading
from oral_lib.planning.parts import GeneratorJob
from oral_lib.tasks.rows import task_rows
from oral_lib.tasks.task import load_task
from oral_lib.zoo.task_batches import ZooBatches, turns

torch.set_num_threads(1)
TASKS = {  # by base model: tasks of one or more kinds of scoring and numbers of classes
    "tiny-encoder": ("movie", "winogrande"),
    "tiny-causal": ("movie", "winogrande", "arithmetic"),
    "tiny-convnet": ("easy_vqa_shape", "solar_cells"),
    "tiny-towers": ("flickr8k", "easy_vqa"),
}
SIZE, ROWS, STEPS = 4, 6, 8


@cache
def loaded(name):
    if name == "tiny-towers":
        alignment.ensure(name, "made")
    base = loading.load(name, source="made")
    base.model.float()
    return base


@cache
def rows_of(name):
    return task_rows(load_task(name), "made")


def batches_of(base_name, size=SIZE, steps=STEPS):
    """(the batches of the tasks of a base model, its tasks)."""
    tasks = [load_task(name) for name in TASKS[base_name]]
    data = {task.name: rows_of(task.name) for task in tasks}
    texts = {task.name: torch.randn(2 + i, 5) for i, task in enumerate(tasks)}
    sizes = {"steps": steps, "size": size, "rows": ROWS}
    return ZooBatches(loaded(base_name), tasks, data, texts, **sizes), tasks, texts


# ---------------------------------------------------------------- the tasks of a step
@pytest.mark.parametrize("base", TASKS)
def test_each_adapter_of_a_step_has_the_loss_of_its_own_rows(base):
    batches, tasks, _ = batches_of(base)
    model, kinds = batches.base, Counter()
    values = batches.stack.values + 0.02 * torch.randn_like(batches.stack.values)
    values.requires_grad_(True)
    for step in range(len(tasks)):
        key = batches.draw(step)
        group = batches.groups[key[0]]
        with batches.attached():
            losses = batches.losses(values, key)
        [gradient] = torch.autograd.grad(losses.sum(), values)
        assert (gradient.norm(dim=1) > 0).all()
        n, kind = len(group.rows.answers) // SIZE, group.batches.scoring_kind
        adapters = Stack(model.lora_init(), SIZE).adapters(values)
        for s, adapter in enumerate(adapters):
            own = slice(s * n, (s + 1) * n)
            rows = group.batches.table[group.batches.rows[batches.turns[step][1]][own]]
            about = rows.cut(*key[1:]), group.rows.answers[own], group.rows.answer_ids[own]
            with model.attach(adapter) as adapted, torch.no_grad():
                core = adapted.get_base_model()
                expected = scoring.losses(core, model, kind, *about).mean()
            torch.testing.assert_close(losses[s], expected, rtol=1e-3, atol=1e-4)
        kinds[kind] += 1
    assert set(kinds) == {model.scoring_kind(task) for task in tasks}


def test_an_adapter_has_a_text_of_the_task_whose_rows_it_answers():
    batches, tasks, texts = batches_of("tiny-encoder")
    drawn = set()
    for step in range(STEPS):
        batches.draw(step)
        for s in range(SIZE):
            wordings = texts[tasks[s % len(tasks)].name]
            [same] = (wordings == batches.text[s]).all(1).nonzero()
            drawn.add((s % len(tasks), int(same)))
    assert len(drawn) == sum(map(len, texts.values()))


def test_a_step_depends_on_its_number_only():
    one, other = (batches_of("tiny-causal", steps=STEPS)[0] for _ in "ab")
    for step in (3, 1, 2):
        one.draw(step)
    assert one.draw(4) == other.draw(4)
    group = one.turns[4][0]
    rows = [part.groups[group].rows for part in (one, other)]
    assert torch.equal(rows[0].batch.ids, rows[1].batch.ids)
    assert torch.equal(rows[0].answers, rows[1].answers)


def test_every_task_has_the_same_share_of_the_steps():
    assert Counter(group for group, _ in turns([5, 1, 2], 80)) == {0: 50, 1: 10, 2: 20}
    assert [group for group, _ in turns([1, 1], 4)] == [0, 1, 0, 1]
    batches, tasks, _ = batches_of("tiny-causal", size=2, steps=2)  # fewer steps than tasks
    assert len(batches.groups) == len(tasks) == 3 and batches.groups.count(None) == 1


# ---------------------------------------------------------------- the network
def test_training_goes_on_from_the_generator_and_lowers_the_loss(smoke):
    manifest = storage.read_json(smoke.root / "through_base" / "manifest.json")
    parent = storage.read_json(smoke.root / "generator" / "manifest.json")
    assert manifest["start"] == {"name": "generator", "sha256": parent["sha256"]}
    assert manifest["zoo"] == parent["zoo"]
    losses = manifest["losses"]
    assert len(losses) == through_base.ZOO_PRESETS["smoke"].training.steps
    assert np.mean(losses[-5:]) < 0.9 * np.mean(losses[:5])
    generator = smoke.generator("through_base")
    assert generator.sampling == through_base.ONE_STEP


def test_a_network_trained_through_the_base_answers_validation_rows_better(smoke):
    def likelihood(name):
        networks = smoke.generator(name)
        values = []
        for plan in smoke.planned:
            for task in map(load_task, plan.tasks):
                rows = task_rows(task, smoke.source).validation
                adapters = networks.generate(
                    task.description, plan.base, 2, sampling=through_base.ONE_STEP
                )
                outcomes = evaluate(smoke.base(plan.base), task, rows, adapters)
                values += [outcome.likelihood for outcome in outcomes]
        return np.mean(values)

    assert likelihood("through_base") > likelihood("generator") + 0.05


def test_added_parts_start_untrained_and_keep_what_the_generator_writes(smoke):
    parent = Generator.from_pretrained(smoke.root / "generator", source="made").network
    with_shared = through_base.started(parent, {"shared": "added"}, seed=0)
    assert all(part.requires_grad for part in with_shared.parameters())
    [base, *_] = parent.bases
    text = torch.randn(2, len(parent.bases[base].structure))
    c = parent.conditions(base, text, torch.tensor([True, True]))
    noise = torch.randn(2, parent.bases[base].layout.l, parent.config.size)
    written = [network.write(base, c, noise) for network in (parent, with_shared)]
    torch.testing.assert_close(*written)
    with pytest.raises(UsageError, match="shared='all'"):
        through_base.started(parent, {"shared": "all"}, seed=0)


def test_a_network_is_trained_again_only_if_what_it_learns_from_has_changed(smoke, tmp_path):
    for name in ("zoo", "generator"):
        shutil.copytree(smoke.root / name, tmp_path / name)
    preset = through_base.preset("smoke")
    preset = replace(preset, training=replace(preset.training, steps=2, warmup=0))
    about = {"scale": "smoke", "source": "made", "root": tmp_path}
    job = GeneratorJob(kind="through_base")
    plans = scales.base_plans("smoke", "made")

    def train(configured=preset):
        folder = through_base.train_from_weights(plans, job, configured=configured, **about)
        return (folder / "manifest.json").stat().st_mtime_ns

    first = train()
    assert train() == first
    assert train(replace(preset, rows=4)) > first
    shutil.rmtree(tmp_path / "generator")
    with pytest.raises(PreflightError, match="no generator"):
        train()


# ---------------------------------------------------------------- a cell, and choices
def test_a_cell_has_the_rows_of_the_method_under_the_conditions_of_the_generator(smoke):
    from oral_lib.experiments import cells
    from oral_lib.experiments.model_cache import ModelCache

    where = {"scale": "smoke", "wordings": "development"}
    cache = ModelCache(smoke.root, "made")
    metrics, items, _ = cells.run_cell("movie", "tiny-encoder", 0, cache=cache, **where)
    by_method = metrics.groupby("method").condition.agg(set)
    assert by_method["generated_through_base"] == by_method["generated"]
    one, other = (
        items[(items.method == name) & (items.condition == "matched")]
        for name in ("generated", "generated_through_base")
    )
    assert list(one["item"]) == list(other["item"]) and len(one)


def test_choices_read_validation_rows_only(smoke, tmp_path, monkeypatch):
    read = []
    rows_of = development.full_rows

    def no_test_rows(task, source):
        split = rows_of(task, source)
        read.append(task.name)
        return replace(split, test=())

    monkeypatch.setattr(development, "full_rows", no_test_rows)
    names = {"generated": "generator", "generated_through_base": "through_base"}
    networks = {method: smoke.generator(name) for method, name in names.items()}
    plans = development.plans_of(["tiny-encoder"], ["movie"], 2, "smoke", "made")
    place = {"source": "made", "root": smoke.root, "device": "cpu"}
    table = development.compare_methods(plans, networks, rows=50, samples=1, **place)
    assert read == ["movie"] and set(table.base) == {"tiny-encoder"}
    assert set(table.method) == {*networks, "trained", "held_out", "soup_task", "router"}
    assert table.accuracy.between(0, 100).all()
    preset = development.configured("smoke", ["lr=1e-4", "steps=7", "rows=3"], ["shared=added"])
    assert (preset.training.lr, preset.training.steps, preset.rows) == (1e-4, 7, 3)
    assert preset.network == {"shared": "added"}
    with pytest.raises(UsageError, match="no such field"):
        development.configured("smoke", ["speed=1"], [])
