"""Versions of a model: made once, in order, on text that no task asks about, never in silence.

What is promised of versions is shown on the tiny causal model; the real ones are too slow here.
"""

import re
import shutil
from dataclasses import replace
from itertools import chain

import pytest
import torch

from oral_lib import storage
from oral_lib.assets import sources
from oral_lib.errors import OralError, PreflightError, UsageError
from oral_lib.models import evolution, loading, registry, text
from oral_lib.models.registry import Evolution
from oral_lib.tasks.rows import FILLER, task_rows
from oral_lib.tasks.task import load_task, task_names

torch.set_num_threads(1)
T1, T2 = "tiny-causal-t1", "tiny-causal-t2"
REAL = registry.spec("smollm2-135m-t1").evolution


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A cache with both tiny versions; only to be read."""
    cache = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ORAL_CACHE", str(cache))
        evolution.ensure(T2, "made")
    return cache


@pytest.fixture
def cache(made, monkeypatch):
    monkeypatch.setenv("ORAL_CACHE", str(made))
    return made


@pytest.fixture
def empty(tmp_path, monkeypatch):
    monkeypatch.setenv("ORAL_CACHE", str(tmp_path))
    return tmp_path


def weights(name):
    return loading.load(name, source="made", dtype=torch.float32).model.state_dict()


# ---------------------------------------------------------------- made, and found again
def test_a_version_that_is_not_made_is_never_made_by_loading_it(empty, refused, monkeypatch):
    monkeypatch.setattr(evolution, "train_version", lambda *_, **__: pytest.fail("it trains"))
    for name in (T1, "smollm2-135m-t4"):
        with pytest.MonkeyPatch.context() as patch:
            if name != T1:  # its hash needs the model that it comes from
                patch.delenv("ORAL_CACHE")
                patch.setattr(loading, "folder_fault", lambda _: "not there")
                patch.setattr(sources, "folder_fault", lambda _: None)
            command = f"python -m oral_lib evolve --base {name} first"
            words = (f"{name} has not been created", command)
            with refused(PreflightError, *words):
                loading.load(name)
    assert not list(empty.rglob("*.safetensors"))


def test_making_again_does_nothing(cache, monkeypatch):
    monkeypatch.setattr(evolution, "train_version", lambda *_, **__: pytest.fail("it trains"))
    assert evolution.ensure(T2, "made") == loading.version_dir(T2, "made")
    assert evolution.ensure(T1) == loading.version_dir(T1)  # tiny models are made alike everywhere


def test_an_interrupted_chain_goes_on_after_its_last_version(empty, cache, monkeypatch):
    monkeypatch.setenv("ORAL_CACHE", str(empty))
    whole, trained = evolution.train_version, []

    def train(model, rows, recipe, *, label):
        trained.append(label)
        if len(trained) == 2:
            raise KeyboardInterrupt
        return whole(model, rows, recipe, label=label)

    monkeypatch.setattr(evolution, "train_version", train)
    with pytest.raises(KeyboardInterrupt):
        evolution.ensure(T2, "made")
    assert loading.load(T1, source="made").name == T1
    evolution.ensure(T2, "made")
    assert trained == [f"evolve {T1}", f"evolve {T2}", f"evolve {T2}"]
    assert not list(empty.rglob("*.tmp"))
    again = weights(T2)
    monkeypatch.setenv("ORAL_CACHE", str(cache))
    for name, value in weights(T2).items():  # the same as made in one go
        torch.testing.assert_close(again[name], value, atol=1e-6, rtol=1e-5)


def test_damage_is_named_with_the_command_that_mends_it(cache, empty, refused, monkeypatch):
    shutil.copytree(cache / "models", empty / "models")
    monkeypatch.setenv("ORAL_CACHE", str(empty))
    file = loading.version_dir(T1, "made") / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    with refused(PreflightError, "is damaged", f"evolve --base {T1}"):
        loading.load(T1, source="made")
    evolution.ensure(T1, "made")
    assert loading.load(T1, source="made").name == T1


def test_another_recipe_or_another_start_is_another_version(cache, monkeypatch):
    place, entry = loading.version_dir(T1), registry.spec(T1)
    slower = replace(entry, evolution=replace(entry.evolution, lr=1e-4))
    with monkeypatch.context() as patch:
        patch.setitem(registry.REGISTRY, T1, slower)
        assert loading.version_dir(T1) != place
    monkeypatch.setattr(text, "FILLER", (*FILLER, "unheard"))
    assert loading.version_dir(T1) != place


def test_an_own_copy_of_a_version_is_taken_as_it_is(cache, tmp_path, monkeypatch):
    source, own = f"local:{tmp_path}", tmp_path / "models" / "smollm2-135m-t4"
    shutil.copytree(loading.version_dir(T1), own)
    monkeypatch.setattr(evolution, "train_version", lambda *_, **__: pytest.fail("it trains"))
    assert evolution.ensure("smollm2-135m-t4", source) == own
    assert loading.load("smollm2-135m-t4", source=source).spec.version == "t4"
    assert evolution.history("smollm2-135m-t4", source) == []  # how it was made is not known


def test_the_command_names_the_source_where_it_matters(cache, tmp_path, refused, monkeypatch):
    monkeypatch.setattr(loading, "version_dir", lambda *_: tmp_path / "none")
    with refused(PreflightError, f"--base {T1} --source hub"):
        loading.made_dir(T1, "hub")


def test_only_versions_can_be_made(refused):
    with refused(UsageError, "'minilm-l6'", "smollm2-135m-t1"):
        evolution.ensure("minilm-l6")


# ---------------------------------------------------------------- what a version is
def test_a_version_is_the_next_step_and_tells_its_drift(cache):
    one, two = evolution.history(T2, "made")
    assert (one["version"], two["version"], two["parent"]) == ("t1", "t2", T1)
    assert 0 < one["relative_change"] < two["relative_change"] < 1
    assert one["perplexity_before"] > one["perplexity_after"] == two["perplexity_before"]
    assert two["perplexity_before"] > two["perplexity_after"]
    assert len(one["losses"]) == one["recipe"]["steps"] and one["device"].startswith("cpu")
    before, after = weights("tiny-causal"), weights(T2)
    moved = sum((after[n] - before[n]).double().square().sum() for n in before)
    whole = sum(value.double().square().sum() for value in before.values())
    assert (moved / whole).sqrt().item() == pytest.approx(two["relative_change"], rel=1e-5)


def test_every_weight_moves(cache):
    before, after = weights("tiny-causal"), weights(T1)
    assert before.keys() == after.keys()
    assert all(not torch.equal(before[name], after[name]) for name in before)


def test_a_version_is_loaded_as_it_was_trained(empty):
    base = loading.load("tiny-causal", source="made", dtype=torch.float32)
    evolution.evolve(base, "t1")
    assert base.spec == registry.spec(T1) and not any(
        p.requires_grad for p in base.model.parameters()
    )
    evolution.ensure(T1, "made")
    for name, value in weights(T1).items():
        torch.testing.assert_close(base.model.state_dict()[name], value, atol=1e-6, rtol=1e-5)
    text = ["a superb film of the actor"]
    ids = loading.load(T1, source="made").tokens(text)["input_ids"]
    assert torch.equal(ids, base.tokens(text)["input_ids"])


def test_versions_share_structure_and_start_and_differ_in_their_weights(cache):
    one, other = loading.load("tiny-causal"), loading.load(T2)
    assert one.describe() == other.describe()
    start = other.lora_init()
    assert all(torch.equal(value, start[name]) for name, value in one.lora_init().items())
    assert not torch.allclose(one.fingerprint(), other.fingerprint(), atol=0.1)
    assert other.peft_config().base_model_name_or_path == T2


def test_a_version_comes_after_the_one_before_and_in_full_precision(refused):
    base = loading.load("tiny-causal", dtype=torch.float32)
    with refused(UsageError, "followed by t1", "'t2'"):
        evolution.evolve(base, "t2")
    with refused(UsageError, "no version"):
        evolution.evolve(loading.load("tiny-encoder"), "t1")
    base.model.bfloat16()
    with refused(UsageError, "float32"):
        evolution.evolve(base, "t1")


def test_a_training_that_runs_away_is_not_kept(empty, refused, monkeypatch):
    entry = registry.spec(T1)
    wild = replace(entry, evolution=replace(entry.evolution, lr=1e30))
    monkeypatch.setitem(registry.REGISTRY, T1, wild)
    with refused(OralError, T1, "perplexity", "lr"):
        evolution.ensure(T1, "made")
    assert not list(empty.rglob("*.safetensors"))


# ---------------------------------------------------------------- the text
def bare(text):
    return " ".join(re.findall(r"\w+", text.casefold()))


@pytest.mark.parametrize("name", [n for n in task_names() if "packages" in load_task(n).sources])
def test_the_text_holds_no_test_row_of_any_task_and_of_other_rows_short_lines_alone(name):
    read = {bare(text) for text in evolution.texts(REAL)}
    split = task_rows(load_task(name), "packages")
    assert not read & {bare(row.text) for row in split.test}
    both = read & {bare(row.text) for row in (*split.validation, *split.train)}
    assert all(len(text.split()) < 6 for text in both) and len(both) < 10  # "Yes!" stands anywhere


def test_held_out_text_is_never_read_and_no_version_reads_what_another_did():
    rows = torch.arange(40)[:, None]
    recipe = Evolution(("made",), steps=4, batch=2, length=1, held_out=8)
    read = [evolution.stretch(rows, recipe, t).flatten().tolist() for t in range(1, 6)]
    assert sorted(chain(*read[:4])) == list(range(8, 40))
    assert read[4] == read[0]  # the text has ended


def test_all_real_versions_read_new_text():
    tokenizer = loading.load("tiny-causal").tokenizer  # words, fewer than there are tokens
    rows = evolution.packed(tokenizer, REAL)
    assert len(rows) - REAL.held_out >= 4 * REAL.steps * REAL.batch


def test_rows_are_all_the_text_in_order(cache):
    tokenizer, recipe = loading.load(T1).tokenizer, registry.spec(T1).evolution
    rows = evolution.packed(tokenizer, recipe)
    assert rows.shape[1] == recipe.length
    first = evolution.texts(recipe)[0]
    assert tokenizer.decode(rows[0]).startswith(tokenizer.decode(tokenizer(first).input_ids))
    assert evolution.texts(recipe) == evolution.texts(recipe)
    assert evolution.texts(recipe) != evolution.texts(replace(recipe, seed=1))


def test_too_little_text_is_said(refused):
    tokenizer = loading.load("tiny-causal").tokenizer
    with refused(UsageError, "held out"):
        evolution.packed(tokenizer, replace(registry.spec(T1).evolution, held_out=10_000))


def test_a_recipe_that_cannot_be_is_refused(refused):
    with refused(UsageError, "steps", "0"):
        Evolution(steps=0)


def test_a_manifest_is_plain_json_beside_safetensors(cache):
    folder = loading.version_dir(T1)
    assert storage.read_json(folder / "manifest.json")["files"].keys() >= {"model.safetensors"}
    assert not [f for f in folder.iterdir() if f.suffix not in (".json", ".safetensors")]
