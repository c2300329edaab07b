"""The zoo: one start, seeds that differ in data order alone, and runs that repeat bit for bit."""

import json
from dataclasses import replace

import pytest
import torch
from peft import PeftModel

from oral_lib import storage
from oral_lib.errors import OralError, PreflightError, UsageError
from oral_lib.evaluation import scoring
from oral_lib.models import loading
from oral_lib.tasks.rows import task_rows
from oral_lib.tasks.task import load_task
from oral_lib.zoo import batches, recipes, store, training
from oral_lib.zoo.recipes import Recipe

torch.set_num_threads(1)
TINY = ("tiny-encoder", "tiny-causal")
SHORT = Recipe(steps=6, batch=4, lr=1e-2, checkpoints=(2, 4))


@pytest.fixture(scope="module")
def data():
    return {name: task_rows(load_task(name), "made") for name in ("movie", "sarcasm")}


def trained(base, data, *jobs, recipe=SHORT):
    """The finished runs of (task, seed) `jobs` on a fresh base."""
    runs = [training.AdapterJob(load_task(task), seed, recipe) for task, seed in jobs]
    return list(training.train(loading.load(base), runs, data))


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)


@pytest.mark.parametrize("name", TINY)
def test_all_adapters_of_a_base_start_from_one_initialisation(name, data):
    still = replace(SHORT, steps=1, lr=1e-12, checkpoints=())
    jobs = [("movie", 0), ("movie", 1), ("sarcasm", 0)]
    start = loading.load(name).lora_init()
    for done in trained(name, data, *jobs, recipe=still):
        for key, tensor in done.tensors.items():
            torch.testing.assert_close(tensor, start[key], atol=1e-9, rtol=0)


@pytest.mark.parametrize("name", TINY)
def test_seeds_differ_in_the_order_of_the_data_and_nothing_else(name, data, monkeypatch):
    one, two = trained(name, data, ("movie", 0), ("movie", 1))
    assert not equal(one.tensors, two.tensors)
    order = batches.batches
    monkeypatch.setattr(
        batches, "batches", lambda rows, size, seed, mixed=False: order(rows, size, 0)
    )
    again, same = trained(name, data, ("movie", 0), ("movie", 1))
    assert equal(again.tensors, same.tensors) and again.losses == same.losses


def test_an_epoch_reads_rows_once_in_an_order_of_the_seed(data, refused):
    rows = data["movie"].validation[:103]

    def epoch(seed):
        stream = batches.batches(rows, 8, seed)
        return [i for _ in range(12) for i in next(stream)]

    assert len(set(epoch(0))) == 96  # the seven rows that fill no batch are dropped
    assert epoch(0) == epoch(0) != epoch(1)
    with refused(UsageError, "103 rows", "batch of 104"):
        next(batches.batches(rows, 104, 0))


@pytest.mark.parametrize("name", TINY)
def test_two_runs_are_equal_bit_for_bit(name, data):
    torch.manual_seed(1)
    _, one = trained(name, data, ("sarcasm", 0), ("movie", 0))
    trained(name, data, ("sarcasm", 1))  # whatever was trained before
    torch.manual_seed(2)
    _, two = trained(name, data, ("sarcasm", 0), ("movie", 0))
    assert equal(one.tensors, two.tensors) and one.losses == two.losses


def test_checkpoints_are_kept_after_the_chosen_steps_and_the_last(data):
    [done] = trained("tiny-causal", data, ("movie", 0))
    assert list(done.checkpoints) == [2, 4, 6] and len(done.losses) == 6
    assert equal(done.checkpoints[6], done.tensors)
    assert not equal(done.checkpoints[2], done.checkpoints[4])
    [shorter] = trained("tiny-causal", data, ("movie", 0), recipe=replace(SHORT, checkpoints=()))
    assert list(shorter.checkpoints) == [6] and equal(shorter.tensors, done.tensors)


@pytest.mark.parametrize("name", TINY)
def test_training_never_changes_the_base(name, data):
    base = loading.load(name)
    before = {n: v.clone() for n, v in base.model.state_dict().items()}
    [done] = training.train(base, [training.AdapterJob(load_task("movie"), 0, SHORT)], data)
    assert equal(base.model.state_dict(), before)
    assert not equal(done.tensors, base.lora_init())


def test_a_loss_that_is_not_finite_is_refused(data, refused):
    wild = replace(SHORT, lr=1e30)
    with refused(OralError, "tiny-causal movie seed 0", "lr=1e+30"):
        trained("tiny-causal", data, ("movie", 0), recipe=wild)


@pytest.mark.parametrize("name", ["steps", "batch", "lr", "clip"])
def test_a_recipe_is_checked_when_it_is_made(name, refused):
    with refused(UsageError, name, "-1"):
        replace(SHORT, **{name: -1})
    for step in (0, 7):
        with refused(UsageError, "checkpoint", str(step), "between 1 and 6"):
            replace(SHORT, checkpoints=(step,))


def test_a_recipe_of_an_earlier_version_is_read_as_it_was_meant(refused):
    told = {"steps": 6, "batch": 4, "lr": 1e-2, "warmup": 0.1, "keep": 3, "every": 10, "clip": 1.0}
    assert Recipe.from_json(told) == Recipe(steps=6, batch=4, lr=1e-2, ratio=1.0)
    with refused(UsageError, "unknown fields moment"):
        Recipe.from_json(told | {"moment": 0.9})


# ---------------------------------------------------------------- on disk
def test_a_cut_off_stack_goes_on_with_the_same_task_and_rows_alone(data):
    base = loading.load("tiny-causal")

    def key(task="movie", rows=None, **more):
        spec = replace(load_task(task), **more)
        return training.state_key(
            base, [training.AdapterJob(spec, 0, SHORT)], {task: rows or data[task]}
        )

    fewer = replace(data["movie"], train=data["movie"].train[1:])
    others = [key("sarcasm"), key(version=99), key(rows=fewer)]
    assert key() == key() and len({key(), *others}) == 4


@pytest.fixture
def cell(tmp_path, monkeypatch):
    """A zoo of two short runs, and the seeds that are written from now on."""
    monkeypatch.setitem(recipes.RECIPES, "tiny-causal", SHORT)
    seeds, write = [], store._write

    def counted(root, base, adapters, data):
        seeds.extend(adapter.job.seed for adapter in adapters)
        write(root, base, adapters, data)

    monkeypatch.setattr(store, "_write", counted)

    def fill():
        seeds.clear()
        store.train_seeds("tiny-causal", ["movie"], [0, 1], source="made", root=tmp_path)
        return seeds

    assert fill() == [0, 1]
    return tmp_path, fill


def test_only_what_is_missing_is_written_and_it_is_what_was_there(cell):
    root, fill = cell
    assert fill() == []
    kept = store.read(root, "tiny-causal", "movie", 1)
    where = store.folder(root, "tiny-causal", "movie", 1)
    (where / "run.json").unlink()  # written last: without it the run did not end
    (where / "adapter_model.safetensors").unlink()  # `kept` is a view of it
    (where / "adapter_model.safetensors").write_bytes(b"half")
    assert fill() == [1]
    assert equal(store.read(root, "tiny-causal", "movie", 1).tensors, kept.tensors)


def test_an_adapter_of_another_recipe_is_never_taken_for_this_one(cell, monkeypatch, refused):
    root, fill = cell
    monkeypatch.setitem(recipes.RECIPES, "tiny-causal", replace(SHORT, lr=2 * SHORT.lr))
    where = store.folder(root, "tiny-causal", "movie", 0)
    with refused(PreflightError, str(where), "another recipe", "--from-scratch"):
        fill()


def test_an_adapter_from_before_there_was_a_ratio_is_one_of_another_recipe(cell, refused):
    root, fill = cell
    where = store.folder(root, "tiny-causal", "movie", 0) / "run.json"
    kept = where.read_text()
    content = json.loads(kept)
    del content["recipe"]["ratio"]
    where.write_text(json.dumps(content))
    with refused(PreflightError, "another recipe"):
        fill()
    where.write_text(kept)
    assert fill() == []


def test_a_damaged_or_missing_adapter_is_refused(cell, refused):
    root, _ = cell
    file = store.folder(root, "tiny-causal", "movie", 0) / "adapter_model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with refused(PreflightError, str(file), "damaged"):
        store.read(root, "tiny-causal", "movie", 0)
    with refused(PreflightError, "'movie'", "seed 7", "--base tiny-causal --task movie"):
        store.read(root, "tiny-causal", "movie", 7)


def test_a_run_says_how_it_was_made(cell):
    root, _ = cell
    info = store.read(root, "tiny-causal", "movie", 1).info
    assert (
        Recipe.from_json(info["recipe"]) == SHORT and info["seed"] == 1 and info["source"] == "made"
    )
    assert info["checkpoints"] == [2, 4, 6] and len(info["losses"]) == 6
    where = store.folder(root, "tiny-causal", "movie", 1)
    last = storage.read_tensors(where / "checkpoint-6.safetensors")
    assert equal(last, store.read(root, "tiny-causal", "movie", 1).tensors)


@pytest.mark.parametrize("name", TINY)
def test_an_adapter_of_the_zoo_loads_in_peft_alone_and_scores_as_recorded(name, smoke):
    task, base = load_task("movie"), loading.load(name)
    where = store.folder(smoke.root, name, "movie", 0)
    info = store.read(smoke.root, name, "movie", 0).info
    assert info["validation_accuracy"] > 0.7  # it learned, so the score means something
    rows = task_rows(task, "made").validation
    assert len(rows) == info["validation_rows"]
    model = PeftModel.from_pretrained(base.model, str(where)).eval()
    said = scoring.score(model, base, task, rows)[0].argmax(-1)
    right = (said == torch.tensor([row.label for row in rows])).float().mean().item()
    assert right == pytest.approx(info["validation_accuracy"], abs=0.005)
