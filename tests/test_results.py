import os
import subprocess

import numpy as np
import pandas as pd
import pytest
from made_results import PROFILE, cell, made, made_items

from oral_lib import provenance, storage
from oral_lib.errors import OralError, PreflightError
from oral_lib.evaluation import bootstrap, item_tables, results, schema

SMALL = {("majority", "none"): (0.5, 1), ("trained", "none"): (0.8, 2)}
SMALL[("generated", "matched")] = (0.8, 3)


@pytest.fixture(scope="module")
def sound() -> tuple[pd.DataFrame, pd.DataFrame]:
    return made(profile=SMALL, n=40)


def test_columns_are_those_of_the_contract(sound):
    contract = (
        "experiment, family, task, source, base, base_version, method, condition, metric, "
        "higher_is_better, value, stderr, ci_low, ci_high, n_items, n_samples, seed, wall_s, commit"
    )
    assert list(sound[0].columns) == contract.split(", ")


def test_a_row_is_summed_up_from_its_items(sound):
    metrics, items = sound
    row = metrics[(metrics.method == "generated") & (metrics.metric == "accuracy")].iloc[0]
    own = items[items.method == "generated"]
    assert row.value == pytest.approx(own.correct.mean())
    assert (row.n_items, row.n_samples) == (40, 3)
    assert row.ci_low < row.value < row.ci_high
    assert set(metrics.metric) == {"accuracy", "auc", "calibrated_accuracy"}
    assert metrics[(metrics.method == "majority") & (metrics.metric == "auc")].value.item() == 0.5


def test_more_than_two_labels_have_no_auc():
    random = np.random.default_rng(0)
    rows = {"item": [str(i) for i in range(30)], "labels": np.arange(30) % 3}
    rows["logits"] = random.normal(size=(30, 3))
    items = item_tables.label_items(cell(), "base", "none", **rows)
    metrics = item_tables.summarise(items, family="vision", base_version="1", commit="abc")
    assert list(metrics.metric) == ["accuracy"]


def test_written_answers_count_as_right_or_wrong_and_have_no_auc():
    right = np.arange(30) % 3 == 0
    rows = {"item": [str(i) for i in range(30)], "correct": right, "sample": 2}
    items = item_tables.answer_items(cell(task="gsm8k"), "generated", "matched", **rows)
    assert (items.label == 1).all() and items.score.isna().all()
    assert items.predicted.sum() == 10 and (items["sample"] == 2).all()
    metrics = item_tables.summarise(items, family="language", base_version="t0", commit="abc")
    assert metrics.metric.tolist() == ["accuracy"] and metrics.value.item() == pytest.approx(1 / 3)


@pytest.mark.parametrize("method", schema.METHODS)
def test_every_method_can_be_measured_written_and_read(method, tmp_path):
    condition = "matched" if method in schema.PROMPTED else "none"
    metrics, items = made(profile={(method, condition): (0.8, 2)}, n=20)
    again, outcomes = results.read(results.write_cell(tmp_path / "cell", metrics, items))
    assert set(again.method) == {method} and len(outcomes) == 40


@pytest.mark.parametrize("condition", ["none", "matched", "paraphrase", "random"])
def test_the_average_of_a_task_is_of_the_named_one_or_of_the_one_that_a_text_names(condition):
    metrics, _ = made(profile={("soup_task", condition): (0.8, 1)}, n=20)
    assert set(schema.check_metrics(metrics).condition) == {condition}


def test_calibrated_accuracy_forgives_a_lost_threshold():
    """An adapter that calls everything 1 but ranks the items well has kept its skill."""
    labels = np.arange(200) % 2
    lost = np.stack([np.zeros(200), 40 + labels + np.linspace(0, 0.1, 200)], axis=1)
    rows = {"item": [f"{i:03d}" for i in range(200)], "labels": labels}
    items = item_tables.label_items(cell(), "generated", "matched", logits=lost, **rows)
    metrics = item_tables.summarise(items, family="language", base_version="t0", commit="abc")
    found = metrics.set_index("metric").value
    assert found.accuracy == 0.5 and found.calibrated_accuracy == 1 and found.auc == 1


@pytest.mark.parametrize("offset", [0.0, 500.0])
def test_rounded_scores_keep_the_order_of_items(offset):
    random = np.random.default_rng(0)
    labels = np.arange(400) % 2
    logits = np.stack([np.zeros(400), offset + random.normal(size=400) + labels], axis=1)
    rows = {"item": [f"{i:03d}" for i in range(400)], "labels": labels}
    score = item_tables.label_items(cell(), "base", "none", logits=logits, **rows).score.to_numpy()
    assert bootstrap.auc(labels, score) == pytest.approx(
        bootstrap.auc(labels, logits[:, 1]), abs=5e-4
    )
    assert 100 < len(np.unique(score)) < 400


def test_a_row_of_items_takes_about_one_byte_and_a_half(tmp_path):
    """The outcomes of a whole scale are to be kept: ten million rows and more."""
    profile = {("trained", "none"): (0.8, 10), ("generated", "matched"): (0.8, 20)}
    _, items = made(profile=profile, n=1000)
    items.to_parquet(tmp_path / "items.parquet", **results.PACKED)
    assert (tmp_path / "items.parquet").stat().st_size < 1.7 * len(items)
    assert results.read_items(tmp_path / "items.parquet").equals(items)
    assert items.memory_usage(deep=True).sum() < 40 * len(items)
    copies = items[items.method == "trained"].assign(method="router", condition="matched")
    schema.items_frame(pd.concat([items, copies])).to_parquet(tmp_path / "b", **results.PACKED)
    more = (tmp_path / "b").stat().st_size - (tmp_path / "items.parquet").stat().st_size
    assert more < 0.2 * len(copies)  # a router's answers are outcomes of stored adapters


def test_items_of_an_older_file_with_plain_words_are_read(sound, tmp_path):
    words = [name for name, kind in schema.ITEM_COLUMNS.items() if kind == "category"]
    plain = sound[1].astype(dict.fromkeys(words, str)).astype({"label": "int64"})
    plain.sample(frac=1, random_state=0).to_parquet(tmp_path / "items.parquet")
    assert results.read_items(tmp_path / "items.parquet").equals(sound[1])


BROKEN = {
    "unknown method": ("method", "magic"),
    "unknown condition": ("condition", "whispered"),
    "path as a source": ("source", "local:/home/me"),
    "text where none is read": ("condition", "matched"),
    "share above one": ("value", 86.0),
    "interval above the value": ("ci_low", 0.999),
    "interval below the value": ("ci_high", 0.001),
    "nan": ("value", np.nan),
    "infinite": ("stderr", np.inf),
    "negative error": ("stderr", -0.1),
    "negative time": ("wall_s", -1.0),
    "no items": ("n_items", 0),
    "half a sample": ("n_samples", 1.5),
    "negative seed": ("seed", -1),
    "empty name": ("task", " "),
    "missing commit": ("commit", None),
    "direction": ("higher_is_better", False),
    "direction as a word": ("higher_is_better", "yes"),
}


@pytest.mark.parametrize(("column", "value"), BROKEN.values(), ids=BROKEN.keys())
def test_contract_refuses_a_broken_row_and_names_it(sound, column, value):
    broken = sound[0].copy()
    place = broken.index[broken.method == "trained"][0]
    broken[column] = broken[column].astype(object)
    broken.loc[place, column] = value
    with pytest.raises(OralError, match=rf"Row {place} \(.*method=.*\): {column} "):
        schema.check_metrics(broken)


def test_contract_refuses_duplicates_and_wrong_columns(sound):
    metrics = sound[0]
    with pytest.raises(OralError, match="repeats an earlier row"):
        schema.check_metrics(pd.concat([metrics, metrics.tail(1)]))
    with pytest.raises(
        OralError, match=r"missing columns \['value'\].*unknown columns \['worth'\]"
    ):
        schema.check_metrics(metrics.rename(columns={"value": "worth"}))


def test_items_must_bear_out_the_rows(sound):
    metrics, items = sound
    better = metrics.assign(value=metrics.value.where(metrics.method != "generated", 0.99))
    for frame, rows, message in (
        (items, better, "is not the mean of its items"),
        (items[items.method != "trained"], metrics, "has no items"),
        (items[items["sample"] == 0], metrics, "is not"),
        (pd.concat([items, items.head(1)]), metrics, "repeats an earlier item"),
        (items.assign(correct=True), metrics, "predicted equals label"),
        (items.assign(label=np.nan), metrics, "label 'nan' is missing"),
    ):
        with pytest.raises(OralError, match=message):
            schema.check_items(frame, rows)


def test_samples_on_different_items_are_refused(sound):
    items = sound[1]
    ragged = items.drop(items.index[(items.method == "trained") & (items["sample"] == 1)][0])
    with pytest.raises(OralError, match="trained/none were scored on different items"):
        item_tables.summarise(ragged, family="language", base_version="1", commit="abc")


def test_cell_is_written_whole_or_not_at_all(sound, tmp_path, monkeypatch):
    metrics, items = sound
    folder = results.write_cell(tmp_path / "cells" / "one", metrics, items)
    again, outcomes = results.read(folder)
    assert np.allclose(again.value, metrics.value, rtol=1e-5) and len(outcomes) == len(items)

    def fail(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(pd.DataFrame, "to_parquet", fail)
    for name in ("one", "two"):
        with pytest.raises(KeyboardInterrupt):
            results.write_cell(tmp_path / "cells" / name, metrics, items)
    assert [path.name for path in (tmp_path / "cells").iterdir()] == ["one"]
    assert results.read(folder)[0].equals(again)


def test_cell_with_a_broken_row_is_not_written(sound, tmp_path):
    metrics, items = sound
    with pytest.raises(OralError):
        results.write_cell(tmp_path / "cell", metrics.assign(method="magic"), items)
    assert not (tmp_path / "cell").exists()


def test_half_written_files_are_refused_in_one_line(sound, tmp_path):
    folder = results.write_cell(tmp_path / "cell", *sound)
    parquet = folder / "items.parquet"
    parquet.write_bytes(parquet.read_bytes()[:100])
    with pytest.raises(OralError, match="truncated or invalid items table"):
        results.read(folder)
    (folder / "metrics.csv").unlink()
    with pytest.raises(OralError, match="truncated or invalid table"):
        results.read(folder)


def network(root, name: str, weights: str = "a", **config) -> None:
    storage.write_json(root / name / "config.json", {"generator": config})
    storage.write_json(root / name / "manifest.json", {"sha256": weights})


def test_a_cell_is_current_for_the_very_networks_that_it_was_measured_with(sound, tmp_path):
    for name in ("generator", "regression"):
        network(tmp_path, name)
    folder, names = tmp_path / "cell", ["generator", "regression"]
    hashes = results.network_hashes(tmp_path, names)
    assert set(hashes) == set(names) and not results.is_current(folder, hashes)
    results.write_cell(folder, *sound, hashes)
    assert results.is_current(folder, hashes)
    os.utime(tmp_path / "generator" / "manifest.json", (0, 0))  # a date is not what matters
    assert results.is_current(folder, results.network_hashes(tmp_path, names))
    assert not results.is_current(folder, results.network_hashes(tmp_path, names[:1]))
    network(tmp_path, "regression", "b")
    assert not results.is_current(folder, results.network_hashes(tmp_path, names))
    network(tmp_path, "regression", "a")
    assert results.is_current(folder, results.network_hashes(tmp_path, names))
    network(tmp_path, "generator", temperature=0.5)  # other settings, equal weights
    assert not results.is_current(folder, results.network_hashes(tmp_path, names))


def test_a_cell_without_hashes_or_without_its_items_is_not_current(sound, tmp_path):
    folder = results.write_cell(tmp_path / "cell", *sound)
    assert results.is_current(folder, {}) and not results.is_current(folder, {"generator": "a"})
    (folder / "cell.json").unlink()  # as an earlier version of the code wrote it
    assert not results.is_current(folder, {})
    results.write_cell(folder, *sound)
    (folder / "items.parquet").unlink()
    assert not results.is_current(folder, {})


def test_a_network_that_was_not_trained_has_no_hash_and_the_command_is_named(tmp_path, refused):
    with refused(PreflightError, "no generator in", "oral_lib train regression"):
        results.network_hashes(tmp_path, ["regression"])


def contents(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def collected(tmp_path, cells, name="results") -> dict[str, bytes]:
    results.collect(cells, tmp_path / name)
    return contents(tmp_path / name)


def test_collecting_twice_changes_no_byte_and_neither_does_the_order(sound, tmp_path):
    one = results.write_cell(tmp_path / "one", *sound)
    two = results.write_cell(tmp_path / "two", *made(cell(task="sarcasm"), profile=SMALL, n=40))
    first = collected(tmp_path, [one, two])
    assert set(first) == {"metrics.csv", "items-language-packages.parquet"}
    assert collected(tmp_path, [one, two]) == first
    assert collected(tmp_path, [two, one], "other") == first
    assert collected(tmp_path, [two]) == first


@pytest.fixture
def three(sound, tmp_path) -> list:
    """The folders of three cells that differ in experiment or source."""
    cells = [sound]
    cells.append(made(cell(experiment="vision", task="digits"), profile=SMALL, n=40))
    cells.append(made(cell(source="local"), profile=SMALL, n=40))
    return [results.write_cell(tmp_path / str(i), *one) for i, one in enumerate(cells)]


def test_measuring_one_experiment_again_writes_no_file_of_another(three, tmp_path):
    before = collected(tmp_path, three)
    names = {f"items-{name}.parquet" for name in ("language-packages", "language-local")}
    assert set(before) == {"metrics.csv", "items-vision-packages.parquet", *names}
    ages = {name: (tmp_path / "results" / name).stat().st_mtime_ns for name in before}
    new = made(cell(experiment="vision", task="digits"), profile=SMALL, n=50)
    results.collect([results.write_cell(tmp_path / "new", *new)], tmp_path / "results")
    after = contents(tmp_path / "results")
    assert after.keys() == before.keys()
    for name in names:
        assert (tmp_path / "results" / name).stat().st_mtime_ns == ages[name]
    assert after["items-vision-packages.parquet"] != before["items-vision-packages.parquet"]
    rows, lines = (data["metrics.csv"].splitlines() for data in (after, before))
    assert [row for row in rows if b"vision" not in row] == [
        line for line in lines if b"vision" not in line
    ]


def test_one_experiment_or_one_source_can_be_read(three, sound, tmp_path):
    results.collect(three, tmp_path / "results")
    metrics, items = results.read(tmp_path / "results")
    assert metrics.groupby(results.SOURCE).ngroups == 3 and len(items) == 3 * len(sound[1])
    for wanted, n in (
        ({}, 3), ({"experiment": "language"}, 2), ({"source": "packages"}, 2),
        ({"experiment": "language", "source": "packages"}, 1), ({"experiment": "style"}, 0),
    ):  # fmt: skip
        rows, outcomes = results.read(tmp_path / "results", **wanted)
        for name, value in wanted.items():
            assert set(rows[name]) <= {value} and set(outcomes[name]) <= {value}
        assert (len(rows), len(outcomes)) == (n * len(sound[0]), n * len(sound[1]))
    one = results.read(tmp_path / "results", "language", "packages")[1]
    assert one.equals(sound[1])


def test_the_single_file_of_an_earlier_version_is_read_and_then_split(three, tmp_path):
    folder = tmp_path / "results"
    split = collected(tmp_path, three)
    items = results.read(folder)[1]
    for name in split.keys() - {"metrics.csv"}:
        (folder / name).unlink()
    items.to_parquet(folder / "items.parquet")
    for wanted in ({}, {"experiment": "language"}, {"experiment": "vision", "source": "packages"}):
        rows = items
        for name, value in wanted.items():
            rows = rows[rows[name] == value]
        assert results.read(folder, **wanted)[1].equals(schema.items_frame(rows))
    assert collected(tmp_path, three[:1]) == split


def test_collecting_replaces_a_cell_and_keeps_the_others(sound, tmp_path):
    one = results.write_cell(tmp_path / "one", *sound)
    two = results.write_cell(tmp_path / "two", *made(cell(seed=1), profile=SMALL, n=40))
    results.collect([one, two], tmp_path / "results")
    less = {("majority", "none"): (0.5, 1)}  # the cell now holds fewer rows: none may be left over
    new = results.write_cell(tmp_path / "new", *made(cell(), profile=less, n=30))
    results.collect([new], tmp_path / "results")
    metrics, items = results.read(tmp_path / "results")
    assert set(metrics[metrics.seed == 0].method) == {"majority"}
    assert set(metrics[metrics.seed == 1].method) == {method for method, _ in SMALL}
    assert len(items[items.seed == 0]) == 30


def test_samples_of_far_seeds_are_never_taken_for_one_another(tmp_path):
    many = {("generated", "matched"): (0.7, 5)}
    cells = [made(cell(seed=seed), profile=many, n=30) for seed in (0, 2**16)]
    folders = [results.write_cell(tmp_path / str(i), *one) for i, one in enumerate(cells)]
    results.collect(folders, tmp_path / "results")
    _, items = results.read(tmp_path / "results")
    assert item_tables.matrix(items, "generated", "matched").shape == (10, 30)


def test_methods_are_stored_in_the_order_of_the_tables(tmp_path):
    folder = results.write_cell(tmp_path / "cell", *made(n=20, n_control=20))
    methods = results.read(folder)[0].method.drop_duplicates().tolist()
    assert methods == list(dict.fromkeys(method for method, _ in PROFILE))


def test_words_that_look_like_missing_values_survive(sound, tmp_path):
    metrics, items = sound
    named = {"task": "null", "base": "nan"}
    folder = tmp_path / "cell"
    results.write_cell(folder, metrics.assign(**named), items.assign(**named))
    assert set(results.read(folder)[0].task) == {"null"}


def test_thinned_curves_keep_their_ends_and_their_mean():
    long = pd.DataFrame({"series": "a", "step": range(1, 401), "loss": np.linspace(4, 1, 400)})
    short = pd.DataFrame({"series": "b", "step": [1, 2, 3], "loss": [3.0, 2.0, 1.0]})
    thin = results.thinned(pd.concat([long, short]), points=50)
    assert thin[thin.series == "b"].reset_index(drop=True).equals(short)
    own = thin[thin.series == "a"]
    assert len(own) == 50 and own.step.iloc[-1] == 400
    assert own.loss.mean() == pytest.approx(long.loss.mean())


def test_manifest_says_what_ran_where_and_keeps_other_sources(tmp_path):
    for source in ("packages", "hub"):
        content = provenance.manifest(
            tmp_path, source=source, seeds={"zoo": [0, 1]}, assets={"m": "sha"}, config={"rank": 8}
        )
    assert set(content) == {"packages", "hub"}
    entry = content["packages"]
    assert entry["seeds"] == {"zoo": [0, 1]} and entry["config"] == {"rank": 8}
    assert entry["hardware"]["cores"] >= 1 and entry["hardware"]["memory_gib"] > 0
    assert entry["versions"]["torch"] and entry["commit"]


def test_commit_is_dirty_only_when_code_differs(tmp_path, monkeypatch):
    def git(*words):
        who = ["-c", "user.name=a", "-c", "user.email=a@b"]
        subprocess.run(["git", "-C", tmp_path, *who, *words], check=True, capture_output=True)

    code, result = tmp_path / "lib" / "provenance.py", tmp_path / "results" / "metrics.csv"
    for path in (code, result):
        path.parent.mkdir()
        path.write_text("1")
    monkeypatch.setattr(provenance, "__file__", str(code))
    assert provenance.code_commit() == "unknown"
    git("init")
    git("add", ".")
    git("commit", "-m", "all")
    commit = provenance.code_commit()
    assert len(commit) == 40
    result.write_text("2")
    assert provenance.code_commit() == commit
    code.write_text("2")
    assert provenance.code_commit() == f"{commit}-dirty"


def test_made_items_are_the_same_each_time():
    """The other tests lean on it."""
    assert made_items(cell(), SMALL, n=10).equals(made_items(cell(), SMALL, n=10))
