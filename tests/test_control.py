"""Control by text and what a sample is: measured on a short run, counted on invented outcomes."""

import numpy as np
import pandas as pd
import pytest
from made_results import cell, made_items

from oral_lib.errors import UsageError
from oral_lib.experiments.studies import control, samples
from oral_lib.report.studies import composition, curves
from oral_lib.tasks.task import load_task

BASE = "tiny-encoder"


@pytest.fixture(scope="module")
def bench(smoke):
    parts = smoke.base(BASE), smoke.generator(), smoke.members(BASE), smoke.source
    return control.Bench(*parts, n_rows=40, n_samples=2)


def matched(bench, task):
    """Accuracies of the samples for the task's own text."""
    return bench.accuracy(bench.samples(bench.conditions(load_task(task).description)), task)


def test_guidance_goes_from_no_text_to_the_text(bench):
    rows = control.guidance(bench, [0, 1, 3])
    assert len(rows) == len(bench.tasks) * 3 * 2 and rows.accuracy.between(0, 1).all()
    empty = bench.samples(bench.conditions(""))
    for task in bench.tasks:
        of = rows[rows.task == task].groupby("guidance").accuracy.apply(list)
        assert of[0.0] == bench.accuracy(empty, task) and of[1.0] == matched(bench, task)


def test_a_mix_of_two_descriptions_ends_at_either(bench):
    first, second = bench.tasks
    rows = control.interpolation(bench, first, second, [0, 0.5, 1])
    assert set(rows.mixed) == {"texts", "conditions"} and len(rows) == 2 * 3 * 2 * 2
    for task, weight in ((first, 0.0), (second, 1.0)):
        end = rows[(rows.task == task) & (rows.weight == weight)]
        assert end.groupby("mixed").accuracy.apply(list).tolist() == [matched(bench, task)] * 2


def test_a_mix_with_an_unknown_task_is_refused(bench, refused):
    with refused(UsageError, "no task 'sarcsm'", "Did you mean 'sarcasm'?"):
        control.interpolation(bench, "movie", "sarcsm", [0])


def test_a_right_description_changes_nothing_and_a_wrong_one_is_read(bench):
    rows = control.wrong_base(bench)
    assert set(rows.described) == {"right", "wrong structure", "wrong fingerprint", "both wrong"}
    assert set(rows.other) == {"tiny-causal"}
    for task in bench.tasks:
        right = rows[(rows.described == "right") & (rows.task == task)]
        assert right.accuracy.tolist() == matched(bench, task)
    entries = bench.generator.bases
    wrong = entries["tiny-causal"].structure, entries["tiny-causal"].fingerprint
    one, other = (bench.conditions("a text", c_model=c_model) for c_model in (None, wrong))
    assert not one.c.allclose(other.c)


def test_a_sentence_has_its_nearest_task_distance_and_accuracies(bench, monkeypatch):
    zoo = [member.tensors for member in bench.members if member.task == "sarcasm"]
    monkeypatch.setattr(control.Bench, "samples", lambda self, conditions, **changes: zoo[:1])
    [row] = control.sentences(bench, ["Is it a joke?"]).to_dict("records")
    assert (row["sentence"], row["nearest"]) == ("Is it a joke?", "sarcasm")
    assert row["distance"] < 1e-3  # a copy
    assert {row["router"], row["retrieval"]} <= set(bench.tasks)
    assert [row["sarcasm"]] == bench.accuracy(zoo[:1], "sarcasm")


def test_weights_of_a_copy_are_those_of_its_adapter(bench, monkeypatch):
    zoo = [member.tensors for member in bench.members]
    monkeypatch.setattr(control.Bench, "samples", lambda self, conditions, **changes: zoo)
    rows = samples.weights(bench)
    first = rows[rows.text_of == bench.tasks[0]]
    table = first.pivot_table("weight", "sample", ["task", "seed"], sort=False).to_numpy()
    assert np.allclose(table, np.eye(len(zoo)), atol=0.02) and (first.outside < 0.02).all()


def test_a_sample_of_the_hull_is_its_convex_weights_and_others_lie_outside(bench):
    hull, free = (samples.weights(bench, projection=name) for name in ("hull", "none"))
    for rows in (hull, free):
        total = rows.groupby(["text_of", "sample"]).weight.sum()
        assert np.allclose(total, 1, atol=1e-4) and (rows.weight >= 0).all()
    assert (hull.outside < 0.01).all() and (free.outside > 0.01).all()


def overlap(n_zoo=3, **changes):
    """Overlaps of a made cell with `n_zoo` adapters of the zoo and one held-out adapter."""
    profile = {("trained", "none"): (0.8, n_zoo + 1), ("generated", "matched"): (0.8, 2)}
    items = made_items(cell(), profile, n=400)
    for (method, sample), source in changes.get("copies", {}).items():
        rows = (items.method == method) & (items["sample"] == sample)
        given = (items.method == "trained") & (items["sample"] == source)
        items.loc[rows, "correct"] = items.loc[given, "correct"].to_numpy()
    return composition.error_overlap(items, held_out=1)


def test_a_copy_errs_on_the_rows_of_its_adapter_and_another_seed_on_others():
    rows = overlap(copies={("generated", 0): 1})
    value = rows.set_index(["kind", "sample"]).overlap
    assert value["generated", 0] == 1.0 and 0 < value["generated", 1] < 1
    assert 0 < value["held_out", 0] < 1 and len(value) == 3


def test_overlap_is_the_intersection_over_the_union():
    rows = [
        cell()
        | {"method": method, "condition": condition, "sample": 0, "item": str(i), "correct": right}
        for method, condition, correct in (
            ("trained", "none", [0, 0, 0, 1]),
            ("generated", "matched", [1, 0, 0, 0]),
        )
        for i, right in enumerate(correct)
    ]  # fmt: skip
    [row] = composition.error_overlap(pd.DataFrame(rows), held_out=0).to_dict("records")
    assert row["kind"] == "generated" and row["overlap"] == 2 / 4


def test_weights_are_summed_by_task_and_counted():
    parts = [("movie", 0, 0.6), ("movie", 1, 0.2), ("sarcasm", 0, 0.2)]
    rows = [
        {"text_of": "movie", "sample": 0, "task": t, "seed": s, "weight": w, "outside": 0.1}
        for t, s, w in parts
    ]
    [row] = composition.weights_table(pd.DataFrame(rows)).to_dict("records")
    assert row["own task"] == pytest.approx(0.8) and row["largest adapter"] == 0.6
    assert row["adapters, effective"] == pytest.approx(1 / (0.36 + 0.04 + 0.04))


def test_figures_say_how_many_samples_they_have(bench):
    references = control.references(bench)
    figures = [
        curves.guidance_figure(control.guidance(bench, [0, 1]), references),
        curves.interpolation_figure(control.interpolation(bench, *bench.tasks, [0, 1]), references),
        curves.wrong_base_figure(control.wrong_base(bench), references),
        composition.weights_figure(samples.weights(bench)),
        composition.overlap_figure(overlap()),
    ]
    for figure in figures:
        assert "n" in figure.get_supxlabel() and figure._repr_png_()[:4] == b"\x89PNG"
