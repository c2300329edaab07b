"""The protocol: all methods on the same held-out rows, controls that are truly wrong, the contract.

Baselines and evaluation keep their promises here too.
"""

import os
import shutil
import time
from dataclasses import replace
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from filelock import FileLock, Timeout
from made_intents import ONLY_HERE

from oral_lib import paths, scales, storage
from oral_lib.baselines import averages, majority
from oral_lib.baselines.router import Retrieval
from oral_lib.errors import OralError, PreflightError, UsageError
from oral_lib.evaluation import evaluate, schema, scoring, small_tables
from oral_lib.evaluation.evaluate import Outcome, accuracy_of
from oral_lib.experiments import cells as protocol
from oral_lib.experiments import conditions
from oral_lib.experiments import trials as protocol_trials
from oral_lib.experiments.conditions import Pickers, Size
from oral_lib.experiments.model_cache import ModelCache
from oral_lib.experiments.trials import Models
from oral_lib.generator import Generator
from oral_lib.models import loading, registry
from oral_lib.models.text_encoder import TextEncoder
from oral_lib.tasks.rows import Row, task_rows
from oral_lib.tasks.task import load_task, task_names
from oral_lib.workflow.run import Run
from oral_lib.zoo import store
from oral_lib.zoo.store import Member

torch.set_num_threads(1)
TASK = load_task("movie")
ROWS = task_rows(TASK, "made").test[:40]
SIZE = Size(rows=30, control_rows=20, samples=3, control_samples=2, noise_samples=2)
TASKS = ("movie", "review_topic", "sarcasm")
GENERATED = {"generated", "generated_span", "generated_free"}
WHERE = {"scale": "smoke", "wordings": "development"}
PARAPHRASES = TASK.paraphrases["development"]


def shaken(base, seed):
    draw = torch.Generator().manual_seed(seed)
    start = sorted(base.lora_init().items())
    return {n: t + 0.1 * torch.randn(t.shape, generator=draw) for n, t in start}


def member(task, seed, value):
    return Member("tiny-causal", task, seed, {"w": torch.full((2, 3), float(value))}, {})


# ---------------------------------------------------------------- baselines
@pytest.mark.parametrize("n", [1, 2, 3, 7])
def test_a_soup_of_equal_adapters_is_that_adapter(n):
    adapter = shaken(loading.load("tiny-causal"), 0)
    made = averages.soup([adapter] * n)
    assert made.keys() == adapter.keys()
    for name, tensor in adapter.items():
        torch.testing.assert_close(made[name], tensor, atol=1e-7, rtol=1e-6)


def test_a_soup_is_the_mean_and_wants_an_adapter(refused):
    made = averages.soup([{"w": torch.tensor([0.0, 2.0])}, {"w": torch.tensor([4.0, 2.0])}])
    assert made["w"].tolist() == [2.0, 2.0]
    with refused(OralError, "soup"):
        averages.soup([])


def test_the_soup_of_all_weighs_tasks_equally():
    many = [member("movie", seed, 0) for seed in range(5)] + [member("sarcasm", 0, 1)]
    assert averages.soup_all(many)["w"].unique().tolist() == [0.5]


def test_the_majority_is_that_of_the_training_rows():
    rows = [Row(f"k{i}", "text", label) for i, label in enumerate([1, 1, 0, 1])]
    train = [Row("t", "text", label) for label in (0, 0, 1)]
    said = majority.majority(train, rows, 2)
    assert said.predicted.tolist() == [0, 0, 0, 0]
    assert said.correct.tolist() == [False, False, True, False]


@pytest.mark.parametrize("name", ["tiny", "minilm-l6"])
def test_retrieval_finds_a_task_by_its_own_description(name):
    known = task_names()
    for task in known:
        told = load_task(task).description
        assert Retrieval(known, TextEncoder(name)).pick(told) == task
        others = [other for other in known if other != task]
        assert Retrieval(others, TextEncoder(name)).pick(told) in others


# ---------------------------------------------------------------- evaluate
@pytest.mark.parametrize("name", ["tiny-encoder", "tiny-causal"])
def test_an_adapter_is_judged_alone_whoever_came_before(name):
    base = loading.load(name)
    base.model.float()
    adapters = [shaken(base, seed) for seed in range(3)]
    together = list(evaluate.evaluate(base, TASK, ROWS, adapters, groups=2))
    assert len({outcome.likely.sum().item() for outcome in together}) == 3
    for adapter, outcome in zip(adapters, together, strict=True):
        with base.attach(adapter) as model:
            [alone] = scoring.score(model, base, TASK, ROWS)
        torch.testing.assert_close(alone, outcome.likely, atol=1e-4, rtol=1e-4)


def test_an_outcome_knows_what_was_right():
    rows = [Row(f"k{i}", "text", label) for i, label in enumerate([0, 1, 1])]
    outcome = Outcome(torch.tensor([[2.0, 1.0], [0.0, 3.0], [1.0, 0.5]]), rows)
    assert outcome.predicted.tolist() == [0, 1, 0]
    assert outcome.correct.tolist() == [True, True, False]


@pytest.mark.parametrize("task", ["quartz", "arithmetic"])
@pytest.mark.parametrize("groups", [1, 2, 3])
def test_options_and_written_answers_are_judged_alone_too(task, groups):
    base, task = loading.load("tiny-causal"), load_task(task)
    base.model.float()
    rows = task_rows(task, "made").test[:12]
    adapters = [shaken(base, seed) for seed in range(3)]
    together = list(evaluate.evaluate(base, task, rows, adapters, groups=groups))
    assert len({outcome.likely.sum().item() for outcome in together}) == 3
    for adapter, outcome in zip(adapters, together, strict=True):
        with base.attach(adapter) as model:
            [alone] = scoring.score(model, base, task, rows)
            [said] = scoring.write_answers(model, base, task, rows) if task.labels == [] else [None]
        torch.testing.assert_close(alone, outcome.likely, atol=1e-4, rtol=1e-4)
        wanted = said and [task.extracted(text) for text in said]
        assert outcome.written == wanted


def test_answers_are_written_only_when_asked_for():
    base, task = loading.load("tiny-causal"), load_task("arithmetic")
    rows = task_rows(task, "made").test[:6]
    [silent] = evaluate.evaluate(base, task, rows, [base.lora_init()], write=False)
    [said] = evaluate.evaluate(base, task, rows, [base.lora_init()])
    assert silent.written is None and accuracy_of(silent) is None
    assert len(said.written) == 6 and accuracy_of(said) == said.correct.float().mean()
    assert torch.equal(silent.likely, said.likely) and silent.likelihood == said.likelihood < 0


def test_nothing_is_judged_where_there_is_no_adapter():
    assert list(evaluate.evaluate(loading.load("tiny-causal"), TASK, ROWS, [])) == []


def test_a_written_answer_is_right_only_if_it_is_the_answer():
    rows = [Row(f"k{i}", "text", 0, answer=a) for i, a in enumerate(("12", "7", "5"))]
    outcome = Outcome(torch.tensor([[-1.0], [-2.0], [-6.0]]), rows, ["12", "", "55"])
    assert outcome.correct.tolist() == [True, False, False]
    assert outcome.labels.tolist() == [1, 1, 1] and outcome.predicted.tolist() == [1, 0, 0]
    assert outcome.likelihood == pytest.approx(-3) and accuracy_of(outcome) == pytest.approx(1 / 3)


def test_the_likelihood_is_that_of_the_right_label_among_the_labels():
    rows = [Row(f"k{i}", "text", label) for i, label in enumerate([0, 1])]
    likely = torch.tensor([[0.5, 0.25], [0.1, 0.3]]).log()
    outcome = Outcome(likely - 4.0, rows)  # of other words there is no talk
    wanted = (torch.tensor([0.5 / 0.75, 0.3 / 0.4]).log()).mean().item()
    assert outcome.likelihood == pytest.approx(wanted) and accuracy_of(outcome) == 1.0


def test_the_majority_of_written_answers_is_the_most_frequent_one():
    rows = [Row(f"k{i}", "text", 0, answer=a) for i, a in enumerate(("3", "4", "3"))]
    train = [Row(f"t{i}", "text", 0, answer=a) for i, a in enumerate(("4", "3", "3"))]
    assert majority.majority(train, rows, 0).correct.tolist() == [True, False, True]


def test_a_comparison_shows_what_each_adapter_said():
    base = loading.load("tiny-causal")
    table, right = evaluate.compare(
        base, TASK, ROWS, {"base": base.lora_init(), "other": shaken(base, 0)}
    )
    assert list(table) == ["text", "truth", "base", "other"] and len(table) == len(ROWS)
    assert table.text.tolist() == [row.text for row in ROWS]
    for name in ("base", "other"):
        words = table[name].str.split().str[0]
        assert set(words) <= set(TASK.labels)
        assert right[name] == pytest.approx((words == table.truth).mean())


# ---------------------------------------------------------------- trials
class Listener:
    """A generator that notes what it is asked and answers with a new adapter each time."""

    encoder = TextEncoder("tiny")

    def __init__(self, base):
        self.base, self.asked = base, []

    def generate(self, text, base, n=1, seed=0, projection="hull"):
        assert base == self.base.name
        self.asked.append((text, n, seed, projection))
        return [shaken(self.base, len(self.asked) * 100 + i) for i in range(n)]


@pytest.fixture
def planned():
    """The trials of a seed by (method, condition), the texts of each model, the zoo."""
    base = loading.load("tiny-causal")

    def plan(seed=0, only=TASKS, size=SIZE):
        zoos = [
            Member(base.name, task, number, shaken(base, 10 * i + number), {})
            for i, task in enumerate(only)
            for number in range(3)
        ]
        members, held_out = ([m for m in zoos if (m.seed == 2) == last] for last in (0, 1))
        models = Models(*(Listener(base) for _ in range(4)))
        encoder = models.generator.encoder
        about = {"seed": seed, "wordings": "development"}
        asked = conditions.questions_of(TASK, Pickers.of(only, encoder), encoder, size, **about)
        planned = protocol_trials.trials(
            TASK, base, members, held_out, models, size, asked, seed=seed
        )
        trials = {(t.method, t.condition): t for t in planned}
        heard = {name: model.asked for name, model in vars(models).items()}
        return SimpleNamespace(
            trials=trials, heard=heard, members=members, held_out=held_out, asked=asked
        )

    return plan


def same(trial, tensors):
    """Whether a trial has these very adapters, in this order."""
    return len(trial.adapters) == len(tensors) and all(
        map(lambda a, b: a is b, trial.adapters, tensors)
    )


def test_every_method_of_the_table_is_tried(planned):
    seen = planned()
    methods = {method for method, _ in seen.trials} | {"majority"}
    elsewhere = {"linear_probe", "multitask", "complement", "ridge_bits", *ONLY_HERE}
    assert methods == set(schema.METHODS) - elsewhere
    for name in ("generated", "generated_through_base"):
        conditions_of_it = {condition for method, condition in seen.trials if method == name}
        assert conditions_of_it == {"matched", "paraphrase", "mismatched", "random", "empty"}
    assert len(seen.trials["generated", "matched"].adapters) == SIZE.samples
    own = [m.tensors for m in seen.members if m.task == "movie"]
    assert same(seen.trials["retrieval", "matched"], own)
    start = loading.load("tiny-causal").lora_init()
    [base] = seen.trials["base", "none"].adapters
    assert all(torch.equal(base[n], t) for n, t in start.items())


def test_held_out_seeds_count_as_trained_and_feed_no_method(planned):
    seen = planned()
    own = [m.tensors for m in seen.members if m.task == "movie"]
    kept = [m.tensors for m in seen.held_out if m.task == "movie"]
    assert len(own) == 2 and len(kept) == 1
    assert same(seen.trials["trained", "none"], [*own, *kept])
    [soup] = seen.trials["soup_task", "none"].adapters
    for name, tensor in soup.items():
        torch.testing.assert_close(tensor, (own[0][name] + own[1][name]) / 2)
    [mixed] = seen.trials["soup_all", "none"].adapters
    wanted = averages.soup_all(seen.members)
    assert all(torch.equal(mixed[n], t) for n, t in wanted.items())
    clouds = {"gaussian": averages.gaussian(own, SIZE.noise_samples, 0)}
    clouds |= {name: averages.noised(own, x, 0) for name, x in averages.NOISE.items()}
    for name, wanted in clouds.items():
        made = seen.trials[name, "none"].adapters
        assert len(made) == SIZE.noise_samples
        for one, other in zip(made, wanted, strict=True):
            assert all(torch.equal(one[n], t) for n, t in other.items())


def test_what_does_not_depend_on_the_generator_is_measured_with_its_first_seed_only(planned):
    later = planned(seed=1)
    seeded = ("generated", "generated_through_base")
    assert {method for method, _ in later.trials} == set(seeded)
    assert later.heard["regression"] == later.heard["unconditional"] == []
    generated = [key for key in planned().trials if key[0] in seeded]
    assert list(later.trials) == generated


def test_noisy_baselines_are_left_out_where_no_draws_are_wanted(planned):
    few = Size(rows=30, control_rows=20)
    methods = {method for method, _ in planned(size=few).trials}
    assert not methods & {"gaussian", "unconditional", *averages.NOISE} and "trained" in methods


def test_no_more_trained_adapters_are_judged_than_wanted_and_the_held_out_are_among_them(planned):
    seen = planned(size=Size(rows=30, control_rows=20, zoo_adapters=2))
    [*_, last] = [m.tensors for m in seen.members if m.task == "movie"]
    kept = [m.tensors for m in seen.held_out if m.task == "movie"]
    assert same(seen.trials["trained", "none"], [last, *kept])


def test_controls_see_fewer_rows_and_main_rows_all(planned):
    controls = {"mismatched", "random", "empty"}
    for (_, condition), trial in planned().trials.items():
        assert trial.rows == (SIZE.control_rows if condition in controls else SIZE.rows)


def test_the_generator_hears_what_the_condition_says(planned):
    heard = planned().heard
    texts = [text for text, _, _, projection in heard["generator"] if projection == "hull"]
    others = {load_task(name).description for name in ("review_topic", "sarcasm")}
    assert texts[0] == TASK.description
    assert [text for text, *_ in heard["unconditional"]] == [""]
    assert [t for t in texts if t in PARAPHRASES] == PARAPHRASES
    assert {t for t in texts if t in others} == others  # every other task, none of its own
    assert texts.count(TASK.description) == 1 and texts.count("") == 1
    nonsense = texts[-1 - SIZE.control_samples : -1]
    assert len(set(nonsense)) == SIZE.control_samples
    assert not set(nonsense) & {TASK.description, *others, *PARAPHRASES, ""}
    assert not set(texts) & set(TASK.paraphrases["train"])


def test_regression_router_and_retrieval_answer_the_texts_of_the_generator(planned):
    seen = planned()
    texts = [text for text, _, _, projection in seen.heard["generator"] if projection == "hull"]
    assert [text for text, *_ in seen.heard["regression"]] == texts
    assert [text for question in seen.asked for text in question.texts] == texts
    pickers = Pickers.of(TASKS, Listener.encoder)
    zoo = {name: [m.tensors for m in seen.members if m.task == name] for name in TASKS}
    for question in seen.asked:
        for method in ("router", "retrieval"):
            picks = [getattr(pickers, method).pick(text) for text in question.texts]
            assert list(getattr(question, method)) == picks
            adapters = seen.trials[method, question.condition].adapters
            each = len(adapters) // len(picks)
            for i, adapter in enumerate(adapters):
                assert any(adapter is stored for stored in zoo[picks[i // each]]), "a stored one"
        soups = seen.trials["soup_task", question.condition].adapters
        for name, soup in zip(question.router, soups, strict=True):
            wanted = averages.soup(zoo[name])
            assert all(torch.equal(soup[n], tensor) for n, tensor in wanted.items())


def test_an_average_of_the_task_itself_is_scored_once(planned):
    seen = planned()
    assert seen.asked[0].router == ("movie",)
    [plain], [matched] = (seen.trials["soup_task", c].adapters for c in ("none", "matched"))
    assert plain is matched


def test_other_projections_start_from_the_noise_of_the_default(planned):
    asked = planned().heard["generator"]
    default = [call[:3] for call in asked if call[3] == "hull"]
    for projection in ("span", "none"):
        calls = [call[:3] for call in asked if call[3] == projection]
        assert calls == default[: len(calls)] and len(calls) == 1 + len(PARAPHRASES)


def test_only_so_many_other_tasks_are_told_of_as_are_wanted(planned):
    two = Size(rows=30, control_rows=20, other_tasks=2)
    names = [name for name in task_names() if load_task(name).scoring == "label"]
    known = {load_task(name).description for name in names} - {TASK.description}
    calls = planned(only=tuple(names), size=two).heard["generator"]
    texts = [text for text, *_, projection in calls if projection == "hull"]
    assert len([t for t in texts if t in known]) == 2


def test_no_two_questions_share_their_noise(planned):
    asked = planned().heard["generator"]
    seeds = [seed for _, _, seed, projection in asked if projection == "hull"]
    assert len(set(seeds)) == len(seeds)
    assert planned().heard["generator"] == asked
    again = planned(seed=1).heard["generator"]
    assert not {seed for _, _, seed, _ in again} & set(seeds)


def test_a_zoo_of_one_task_has_no_mismatched_row(planned):
    found = planned(only=("movie",)).trials
    assert ("generated", "mismatched") not in found and ("generated", "random") in found


@pytest.mark.parametrize("scale", scales.SCALES)
def test_every_cell_of_every_scale_has_a_size(scale):
    tiny = {family: loading.load(f"tiny-{family}") for family in ("encoder", "causal")}
    for cells in scales.base_plans(scale, "hub" if scale == "paper" else "packages"):
        base = tiny[registry.spec(cells.base).family]
        for task in map(load_task, cells.tasks):
            size = conditions.size_of(scale, base, task)
            assert size.control_rows <= size.rows
            if scale in ("lab", "paper"):
                assert size.noise_samples and size.samples == 10
                assert (size.rows < 200) == (task.scoring == "answer")  # dear: few rows


def test_random_words_are_whole_words_drawn_by_the_seed():
    for name in ("tiny", "minilm-l6"):
        encoder = TextEncoder(name)
        words = conditions.random_words(encoder, 0).split()
        assert len(words) == conditions.RANDOM_WORDS
        assert all(word.isalpha() and word in encoder.tokenizer.get_vocab() for word in words)
        assert conditions.random_words(encoder, 0).split() == words
        assert conditions.random_words(encoder, 1).split() != words


# ---------------------------------------------------------------- a cell
@pytest.fixture(scope="module")
def cell(smoke):
    return smoke.cell("movie", "tiny-encoder", 0)


def test_the_rows_of_a_cell_keep_the_contract(cell):
    metrics, items = cell
    schema.check_metrics(metrics)
    schema.check_items(items, metrics)
    assert set(metrics.method) == {
        "majority", "base", "trained", "soup_task", "soup_all", "retrieval", "router", "regression",
        "gaussian", "noise_small", "noise_large", "generated_through_base", *GENERATED,
    }  # fmt: skip
    assert set(metrics.source) == {"made"} and set(metrics.family) == {"language"}


def test_all_methods_answer_the_same_held_out_rows(cell, smoke):
    _, items = cell
    size = conditions.SIZES["smoke"]["encoder"]
    held = [row.key for row in task_rows(TASK, "made").test[: size.rows]]
    for _, part in items.groupby(["method", "condition", "sample"]):
        assert sorted(part.item) == sorted(held)
    assert not set(items.item) & {row.key for row in task_rows(TASK, "made").train}


def test_a_cell_says_what_a_plain_evaluation_says(cell, smoke):
    _, items = cell
    base, size = smoke.base("tiny-encoder"), conditions.SIZES["smoke"]["encoder"]
    rows = task_rows(TASK, "made").test[: size.rows]
    for seed in range(3):  # the last was held out
        adapter = store.read(smoke.root, "tiny-encoder", "movie", seed).tensors
        with base.attach(adapter) as model:
            likely = scoring.score(model, base, TASK, rows)[0]
        margin = dict(zip([row.key for row in rows], likely[:, 1] - likely[:, 0], strict=True))
        part = items[(items.method == "trained") & (items["sample"] == seed)]
        assert sorted(part.item) == sorted(margin)
        assert sum(abs(m) > 0.1 for m in margin.values()) > 0.8 * len(margin)
        for item, score, predicted in zip(part.item, part.score, part.predicted, strict=True):
            assert score == pytest.approx(float(margin[item]), abs=0.1)  # bfloat16, other batches
            if abs(margin[item]) > 0.1:
                assert predicted == int(margin[item] > 0)


def test_retrieval_on_a_known_task_is_the_trained_adapters_that_a_generator_has_seen(cell):
    answers = cell[1].set_index(["method", "condition", "sample", "item"]).score
    found, trained = answers["retrieval", "matched"], answers["trained", "none"]
    assert sorted(found.index.unique("sample")) == [0, 1]
    assert sorted(trained.index.unique("sample")) == [0, 1, 2]
    pd.testing.assert_series_equal(found, trained[found.index])


def test_two_runs_of_a_cell_are_equal(cell, smoke):
    where = WHERE | {"cache": ModelCache(smoke.root, "made")}
    metrics, items, tables = protocol.run_cell("movie", "tiny-encoder", 0, **where)
    pd.testing.assert_frame_equal(items, cell[1])
    timeless = [name for name in schema.COLUMNS if name not in ("wall_s", "commit")]
    pd.testing.assert_frame_equal(
        metrics[timeless], cell[0][timeless], check_exact=False, rtol=1e-5, check_dtype=False
    )
    for name, rows in tables.items():
        file = smoke.root / name / "language--tiny-encoder--movie--seed-0.json"
        changing = {"commit", "seconds"}
        for row, stored in zip(rows, storage.read_json(file), strict=True):
            wanted = {key: value for key, value in row.items() if key not in changing}
            numbers = {key: value for key, value in wanted.items() if isinstance(value, float)}
            assert {k: stored[k] for k in numbers} == pytest.approx(numbers, rel=1e-4, nan_ok=True)
            words = wanted.keys() - numbers
            assert {k: stored[k] for k in words} == {k: wanted[k] for k in words}


def test_another_seed_of_a_cell_says_only_what_is_generated_and_from_other_noise(cell, smoke):
    where = WHERE | {"cache": ModelCache(smoke.root, "made")}
    metrics, items, _ = protocol.run_cell("movie", "tiny-encoder", 1, **where)
    schema.check_metrics(metrics)
    first = cell[1][cell[1].method == "generated"]
    assert set(items.method) == {"generated", "generated_through_base"}
    items = items[items.method == "generated"]
    assert len(items) == len(first)
    key = ["method", "condition", "sample", "item"]
    one, other = (frame.set_index(key).sort_index() for frame in (first, items))
    assert one.index.equals(other.index) and one.label.equals(other.label)
    assert not one.score.equals(other.score)


def test_a_cell_says_how_far_generated_adapters_are_from_those_that_were_read(
    cell, smoke, tmp_path
):
    where = WHERE | {"cache": ModelCache(smoke.root, "made")}
    rows = protocol.run_cell("movie", "tiny-encoder", 0, **where).tables["novelty"]
    small_tables.NOVELTY.append(tmp_path, rows)  # which checks it
    assert {row["method"] for row in rows} == GENERATED
    for row in rows:
        assert (row["n_generated"], row["n_train"], row["n_held_out"]) == (3, 2, 1)
        assert row["ratio"] == pytest.approx(row["generated"] / row["held_out"], rel=0.5)
        assert row["spread"] == pytest.approx(row["samples"] / row["seeds"], rel=0.5)
    bounds = {row["method"]: row["bound"] for row in rows}
    assert bounds["generated"] == 3, "the convex hull of four adapters"
    assert bounds["generated_span"] == 4


def test_novelty_is_unknown_where_no_adapter_was_held_out(smoke, monkeypatch):
    whole = scales.members
    monkeypatch.setattr(
        scales, "members",
        lambda scale, source, which, *, held_out=False: (
            [] if held_out else whole(scale, source, which)
        ),
    )  # fmt: skip
    where = WHERE | {"cache": ModelCache(smoke.root, "made")}
    _, items, tables = protocol.run_cell("movie", "tiny-encoder", 0, **where)
    assert tables["novelty"] == []
    assert set(items[items.method == "trained"]["sample"]) == {0, 1}


def test_no_generator_was_trained_on_an_adapter_that_its_cells_call_held_out(smoke):
    kept = [store.read(smoke.root, *m) for m in scales.members("smoke", "made", held_out=True)]
    assert {m.seed for m in kept} == {2}
    for kind in scales.generators("smoke"):
        read = storage.read_json(smoke.root / kind / "manifest.json")["zoo"]
        assert read and not {m.info["sha256"] for m in kept} & {m["sha256"] for m in read}


def test_a_cell_of_written_answers_keeps_the_contract(smoke, monkeypatch):
    """On a task that the zoo of the smoke scale does not have: its adapters stand in."""
    monkeypatch.setattr(
        scales, "members",
        lambda scale, source, which, *, held_out=False: [
            ("tiny-causal", task, 2 if held_out else seed)
            for task in ("arithmetic", "movie")
            for seed in range(1 if held_out else 2)
        ],
    )  # fmt: skip
    read = store.read
    monkeypatch.setattr(
        store, "read",
        lambda root, base, task, seed: replace(read(root, base, "movie", seed), task=task),
    )  # fmt: skip
    few = Size(
        rows=6,
        control_rows=4,
        samples=2,
        control_samples=1,
        other_tasks=1,
        noise_samples=1,
        zoo_adapters=1,
    )
    monkeypatch.setitem(conditions.SIZES["smoke"], "answer", few)
    where = WHERE | {"cache": ModelCache(smoke.root, "made")}
    metrics, items, tables = protocol.run_cell("arithmetic", "tiny-causal", 0, **where)
    schema.check_metrics(metrics)
    schema.check_items(items, metrics)
    assert set(metrics.metric) == {"accuracy"}
    assert [row["n_held_out"] for row in tables["novelty"]] == [1, 1, 1]
    assert {"majority", "trained", "gaussian", "generated"} <= set(metrics.method)
    assert set(items.label) == {1}
    counts = items.groupby(["method", "condition", "sample"]).size()
    assert counts["generated", "empty"].tolist() == [4] and counts["trained", "none"].tolist() == [
        6
    ]


def test_without_a_generator_no_cell_is_measured_and_it_is_said_which(tmp_path, refused):
    with refused(PreflightError, "no generator in", "oral_lib train generator"):
        Run("smoke", out=tmp_path).measure("tiny-encoder", ["movie"])


def test_all_cells_of_a_base_are_measured_once_and_again_only_for_another_generator(
    smoke, tmp_path, monkeypatch
):
    shutil.copytree(smoke.root, paths.run_folder("smoke", "made", tmp_path))
    run, seen = Run("smoke", out=tmp_path), []
    shutil.rmtree(run.root / "cells", ignore_errors=True)
    few = Size(rows=10, control_rows=10, samples=1, control_samples=1)
    monkeypatch.setitem(conditions.SIZES["smoke"], "encoder", few)
    measure = protocol.run_cell

    def counted(task, *rest, **more):
        seen.append(task)
        return measure(task, *rest, **more)

    monkeypatch.setattr(protocol, "run_cell", counted)
    path = run.measure("tiny-encoder", ["movie", "sarcasm"])
    folders = [run.root / "cells" / name for name in storage.read_json(path)["cells"]]
    assert seen == ["movie", "sarcasm"] and all((f / "metrics.csv").exists() for f in folders)
    run.measure("tiny-encoder", ["movie", "sarcasm"])
    assert seen == ["movie", "sarcasm"]
    os.utime(run.root / "generator" / "manifest.json", (time.time() + 50,) * 2)
    run.measure("tiny-encoder", ["movie", "sarcasm"])
    assert seen == ["movie", "sarcasm"], "the generator is older, but the same"
    for kind in ("generator", "regression"):
        manifest = run.root / kind / "manifest.json"
        storage.write_json(manifest, storage.read_json(manifest) | {"losses": [0.0]})
        del seen[:]
        run.measure("tiny-encoder", ["movie"])
        assert seen == ["movie"], f"another {kind}"
        os.utime(folders[1] / "metrics.csv", (time.time() + 100,) * 2)
        run.cell("sarcasm", "tiny-encoder", 0)
        assert seen == ["movie", "sarcasm"], "however new its files are"


def trained_again(folder) -> None:
    """Changes a trained network and its manifest as another training would."""
    generator = Generator.from_pretrained(folder, source="made")
    with torch.no_grad():
        generator.network.denoiser.leave.bias.add_(1)
    generator.save_pretrained(folder)


def test_a_generator_that_was_trained_again_is_loaded_again_by_the_same_process(smoke, tmp_path):
    shutil.copytree(smoke.root / "generator", tmp_path / "generator")
    cache = ModelCache(tmp_path, "made")
    first = cache.generator("generator")
    assert cache.generator("generator") is first
    os.utime(tmp_path / "generator" / "manifest.json", (0, 0))
    assert cache.generator("generator") is first
    trained_again(tmp_path / "generator")
    second = cache.generator("generator")
    assert second is not first and cache.generator("generator") is second
    assert second.manifest["sha256"] != first.manifest["sha256"]
    shutil.rmtree(tmp_path / "generator")
    with pytest.raises(PreflightError, match="no generator in"):
        cache.generator("generator")


def test_an_adapter_that_was_trained_again_is_read_again_and_the_average_with_it(smoke, tmp_path):
    shutil.copytree(smoke.root / "zoo", tmp_path / "zoo")
    cache, names = ModelCache(tmp_path, "made"), ("movie", "sarcasm")
    first = cache.zoo("tiny-encoder", names)
    assert cache.zoo("tiny-encoder", names) is first
    folder = store.folder(tmp_path, "tiny-encoder", "movie", 0)
    file = folder / "adapter_model.safetensors"
    storage.write_tensors(file, {n: t + 1 for n, t in storage.read_tensors(file).items()})
    info = storage.read_json(folder / "run.json") | {"sha256": storage.sha256(file)}
    storage.write_json(folder / "run.json", info)
    second = cache.zoo("tiny-encoder", names)
    for name, tensor in second.average.items():
        torch.testing.assert_close(tensor, first.average[name] + 0.5)


def test_base_models_are_loaded_once_and_only_the_last_ones_stay(monkeypatch, tmp_path):
    loaded = []

    def load(name, *, labels, **_):
        loaded.append((name, labels))
        return SimpleNamespace()

    monkeypatch.setattr(loading, "load", load)
    cache = ModelCache(tmp_path, "made")
    one = cache.base("one", 2)
    assert cache.base("two", 2) is not one and cache.base("one", 2) is one
    cache.base("one", 3)
    assert cache.base("one", 2) is one and loaded == [("one", 2), ("two", 2), ("one", 3)]
    cache.base("two", 2)
    assert loaded[3:] == [("two", 2)]


def test_what_is_no_cell_or_no_training_of_a_run_is_refused_before_anything_starts(
    smoke, tmp_path, refused
):
    with refused(UsageError, "has no task 'review_topic' on 'tiny-encoder'"):
        smoke.measure("tiny-encoder", ["review_topic"])
    with refused(UsageError, "trains no 'multitask'", "generator, through_base, regression"):
        smoke.train_generator("multitask")
    with refused(UsageError, "scale 'desk' has no experiment 'vision'", "it has language"):
        Run("desk", out=tmp_path, experiment="vision")
    for scale in ("desk", "lab"):  # the smoke scale makes its rows
        assert not (tmp_path / "runs" / scale).exists()


def test_two_local_folders_never_share_what_was_trained(tmp_path, monkeypatch, refused):
    monkeypatch.setattr("oral_lib.scales.check_cell", lambda *cell: None)
    monkeypatch.setattr("oral_lib.zoo.tuning.tune", lambda *names, **how: [])
    one, two = (Run("lab", f"local:{tmp_path / name}", tmp_path) for name in ("one", "two"))
    one.tune("minilm-l6", ["sst2"])
    one.tune("minilm-l6", ["sst2"])
    with refused(UsageError, "another folder with --out", str(tmp_path / "one")):
        two.tune("minilm-l6", ["sst2"])
    monkeypatch.chdir(tmp_path)
    assert Run("lab", "local:one", tmp_path) == one


def test_what_experiments_publish_together_is_written_by_one_of_them_at_a_time(
    smoke, tmp_path, monkeypatch
):
    run = replace(smoke, out=tmp_path)
    monkeypatch.setattr(Run, "cells", lambda self: [])
    monkeypatch.setattr("oral_lib.experiments.side_tables.stored.describe_adapters", lambda *a: 0)
    monkeypatch.setattr("oral_lib.experiments.model_cache.ModelCache.generator", lambda *a: 0)
    held = []

    def collect(cells, folder):
        with pytest.raises(Timeout), FileLock(tmp_path / "runs" / ".report.lock", timeout=0):
            pass
        held.append(folder)
        raise OralError("enough")

    monkeypatch.setattr("oral_lib.evaluation.results.collect", collect)
    with pytest.raises(OralError, match="enough"):
        run.publish()
    assert held == [run.results]
    with FileLock(tmp_path / "runs" / ".report.lock", timeout=0):  # free again
        pass
