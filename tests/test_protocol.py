"""The protocol: all methods on the same held-out rows, controls that are truly wrong, the contract.

Baselines and evaluation keep their promises here too.
"""

from types import SimpleNamespace

import pandas as pd
import pytest
import torch

from oral_lib import baselines, bases, evaluate, protocol, results, scoring, tasks, zoo
from oral_lib.condition import text_encoder
from oral_lib.errors import OralError
from oral_lib.evaluate import Outcome
from oral_lib.protocol import Size
from oral_lib.zoo import Member

torch.set_num_threads(1)
TASK = tasks.load("movie")
ROWS = tasks.rows(TASK, "made").test[:40]
SIZE = Size(rows=30, control_rows=20, samples=3, control_samples=2)


def shaken(base, seed):
    draw = torch.Generator().manual_seed(seed)
    start = sorted(base.lora_init().items())
    return {n: t + 0.1 * torch.randn(t.shape, generator=draw) for n, t in start}


def member(task, seed, value):
    return Member("tiny-causal", task, seed, {"w": torch.full((2, 3), float(value))}, {})


# ---------------------------------------------------------------- baselines
@pytest.mark.parametrize("n", [1, 2, 3, 7])
def test_a_soup_of_equal_adapters_is_that_adapter(n):
    adapter = shaken(bases.load("tiny-causal"), 0)
    made = baselines.soup([adapter] * n)
    assert made.keys() == adapter.keys()
    for name, tensor in adapter.items():
        torch.testing.assert_close(made[name], tensor, atol=1e-7, rtol=1e-6)


def test_a_soup_is_the_mean_and_wants_an_adapter(refused):
    made = baselines.soup([{"w": torch.tensor([0.0, 2.0])}, {"w": torch.tensor([4.0, 2.0])}])
    assert made["w"].tolist() == [2.0, 2.0]
    with refused(OralError, "soup"):
        baselines.soup([])


def test_the_soup_of_all_weighs_tasks_equally():
    many = [member("movie", seed, 0) for seed in range(5)] + [member("sarcasm", 0, 1)]
    assert baselines.soup_all(many)["w"].unique().tolist() == [0.5]


def test_the_majority_is_that_of_the_training_rows():
    rows = [tasks.Row(f"k{i}", "text", label) for i, label in enumerate([1, 1, 0, 1])]
    train = [tasks.Row("t", "text", label) for label in (0, 0, 1)]
    said = baselines.majority(train, rows, 2)
    assert said.predicted.tolist() == [0, 0, 0, 0]
    assert said.correct.tolist() == [False, False, True, False]


@pytest.mark.parametrize("name", ["tiny", "minilm-l6"])
def test_retrieval_finds_a_task_by_its_own_description(name):
    known = tasks.names()
    for task in known:
        told = tasks.load(task).description
        assert baselines.nearest_task(told, known, text_encoder(name)) == task
        others = [other for other in known if other != task]
        assert baselines.nearest_task(told, others, text_encoder(name)) in others


# ---------------------------------------------------------------- evaluate
@pytest.mark.parametrize("name", ["tiny-encoder", "tiny-causal"])
def test_an_adapter_is_judged_alone_whoever_came_before(name):
    base = bases.load(name)
    base.model.float()
    adapters = [shaken(base, seed) for seed in range(3)]
    together = list(evaluate.evaluate(base, TASK, ROWS, adapters, groups=2))
    assert len({outcome.likely.sum().item() for outcome in together}) == 3
    for adapter, outcome in zip(adapters, together, strict=True):
        with base.attach(adapter) as model:
            [alone] = scoring.score(model, base, TASK, ROWS)
        torch.testing.assert_close(alone, outcome.likely, atol=1e-4, rtol=1e-4)


def test_an_outcome_knows_what_was_right():
    rows = [tasks.Row(f"k{i}", "text", label) for i, label in enumerate([0, 1, 1])]
    outcome = Outcome(torch.tensor([[2.0, 1.0], [0.0, 3.0], [1.0, 0.5]]), rows)
    assert outcome.predicted.tolist() == [0, 1, 0]
    assert outcome.correct.tolist() == [True, True, False]


def test_a_comparison_shows_what_each_adapter_said():
    base = bases.load("tiny-causal")
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

    config = SimpleNamespace(text_encoder="tiny")

    def __init__(self, base):
        self.base, self.asked = base, []

    def generate(self, text, base, n=1, seed=0, **_):
        assert base == self.base.name
        self.asked.append((text, n, seed))
        return [shaken(self.base, len(self.asked) * 100 + i) for i in range(n)]


@pytest.fixture
def planned():
    """(plan by (method, condition), what the generator heard, and the regression), of a seed."""
    base = bases.load("tiny-causal")
    members = [
        Member(base.name, task, seed, shaken(base, 10 * i + seed), {})
        for i, task in enumerate(("movie", "review_topic", "sarcasm"))
        for seed in range(2)
    ]

    def plan(seed=0, only=("movie", "review_topic", "sarcasm")):
        generator, regression = Listener(base), Listener(base)
        some = [m for m in members if m.task in only]
        found = protocol.trials(
            TASK, base, some, generator, regression, SIZE, seed=seed, source="made"
        )
        return {(t.method, t.condition): t for t in found}, generator.asked, regression.asked, some

    return plan


def test_every_method_of_the_table_is_tried(planned):
    found, _, _, members = planned()
    methods = {method for method, _ in found} | {"majority"}
    wanted = {"base", "trained", "soup_task", "soup_all", "retrieval", "regression", "generated"}
    assert methods == wanted | {"majority"}
    told = {condition for method, condition in found if method == "generated"}
    assert told == {"matched", "paraphrase", "mismatched", "random", "empty"}
    assert len(found["generated", "matched"].adapters) == SIZE.samples
    own = [m.tensors for m in members if m.task == "movie"]
    assert all(a is b for a, b in zip(found["trained", "none"].adapters, own, strict=True))
    assert all(a is b for a, b in zip(found["retrieval", "matched"].adapters, own, strict=True))
    start = bases.load("tiny-causal").lora_init()
    [base] = found["base", "none"].adapters
    assert all(torch.equal(base[n], t) for n, t in start.items())


def test_controls_see_fewer_rows_and_main_rows_all(planned):
    found, *_ = planned()
    controls = {"paraphrase", "mismatched", "random", "empty"}
    for (_, condition), trial in found.items():
        assert trial.rows == (SIZE.control_rows if condition in controls else SIZE.rows)


def test_the_generator_hears_what_the_condition_says(planned):
    _, asked, regression, _ = planned()
    texts = [text for text, _, _ in asked]
    others = [tasks.load(name).description for name in ("review_topic", "sarcasm")]
    assert texts[0] == TASK.description and [text for text, *_ in regression] == texts[:1]
    assert [t for t in texts if t in TASK.paraphrases["test"]] == TASK.paraphrases["test"]
    assert [t for t in texts if t in others] == others  # every other task, none of its own
    assert texts.count(TASK.description) == 1 and texts.count("") == 1
    nonsense = texts[-1 - SIZE.control_samples : -1]
    assert len(set(nonsense)) == SIZE.control_samples
    assert not set(nonsense) & {TASK.description, *others, *TASK.paraphrases["test"], ""}
    assert not set(texts) & set(TASK.paraphrases["train"])


def test_no_two_questions_share_their_noise(planned):
    _, asked, *_ = planned()
    seeds = [seed for _, _, seed in asked]
    assert len(set(seeds)) == len(seeds)
    assert planned()[1] == asked
    again = planned(seed=1)[1]
    assert not {seed for _, _, seed in again} & set(seeds)


def test_a_zoo_of_one_task_has_no_mismatched_row(planned):
    found, *_ = planned(only=("movie",))
    assert ("generated", "mismatched") not in found and ("generated", "random") in found


def test_random_words_are_whole_words_drawn_by_the_seed():
    for name in ("tiny", "minilm-l6"):
        encoder = text_encoder(name)
        words = protocol.random_words(encoder, 0).split()
        assert len(words) == protocol.RANDOM_WORDS
        assert all(word.isalpha() and word in encoder.tokenizer.get_vocab() for word in words)
        assert protocol.random_words(encoder, 0).split() == words
        assert protocol.random_words(encoder, 1).split() != words


# ---------------------------------------------------------------- a cell
@pytest.fixture(scope="module")
def cell(smoke):
    return smoke.cell("movie", "tiny-encoder", 0)


def test_the_rows_of_a_cell_keep_the_contract(cell):
    metrics, items = cell
    results.check(metrics)
    results.check_items(items, metrics)
    assert set(metrics.method) == {
        "majority", "base", "trained", "soup_task", "soup_all", "retrieval", "regression",
        "generated",
    }  # fmt: skip
    assert set(metrics.source) == {"made"} and set(metrics.family) == {"language"}


def test_all_methods_answer_the_same_held_out_rows(cell, smoke):
    _, items = cell
    size = protocol.SIZES["smoke", "encoder"]
    held = [row.key for row in tasks.rows(TASK, "made").test[: size.rows]]
    for _, part in items.groupby(["method", "condition", "sample"]):
        assert sorted(part.item) == sorted(held)
    assert not set(items.item) & {row.key for row in tasks.rows(TASK, "made").train}


def test_a_cell_says_what_a_plain_evaluation_says(cell, smoke):
    _, items = cell
    base, size = smoke.base("tiny-encoder"), protocol.SIZES["smoke", "encoder"]
    rows = tasks.rows(TASK, "made").test[: size.rows]
    for seed in range(2):
        adapter = zoo.read(smoke.root, "tiny-encoder", "movie", seed).tensors
        with base.attach(adapter) as model:
            said = scoring.score(model, base, TASK, rows)[0].argmax(-1).tolist()
        part = items[(items.method == "trained") & (items["sample"] == seed)]
        found = dict(zip(part.item, part.predicted, strict=True))
        assert [found[row.key] for row in rows] == said


def test_retrieval_on_a_known_task_is_the_trained_adapters(cell):
    metrics, _ = cell
    value = metrics[metrics.metric == "accuracy"].set_index("method").value
    assert value["retrieval"] == value["trained"]


def test_two_runs_of_a_cell_are_equal(cell, smoke):
    where = {"scale": "smoke", "source": "made", "root": smoke.root}
    metrics, items = protocol.run_cell("movie", "tiny-encoder", 0, **where)
    pd.testing.assert_frame_equal(items, cell[1])
    timeless = [name for name in results.COLUMNS if name not in ("wall_s", "commit")]
    pd.testing.assert_frame_equal(
        metrics[timeless], cell[0][timeless], check_exact=False, rtol=1e-5, check_dtype=False
    )


def test_another_seed_of_a_cell_changes_what_is_generated_and_nothing_else(cell, smoke):
    where = {"scale": "smoke", "source": "made", "root": smoke.root}
    _, items = protocol.run_cell("movie", "tiny-encoder", 1, **where)
    fixed = ~items.method.isin(["generated"])
    pd.testing.assert_frame_equal(
        items[fixed].drop(columns="seed"), cell[1][fixed].drop(columns="seed")
    )
    assert not items[~fixed].score.equals(cell[1][~fixed].score)
