"""The small tables of results: what they refuse, and which older rows a new row replaces."""

import pandas as pd
import pytest

from oral_lib.errors import OralError
from oral_lib.evaluation import small_tables
from oral_lib.evaluation.small_tables import BENCHMARKS, BYTES, COSTS, MAPS, NOVELTY, TEXTS

TABLES = [BENCHMARKS, NOVELTY, TEXTS, MAPS, BYTES, COSTS]
WORDS = {"source": "packages", "method": "generated", "condition": "matched", "kind": "adapter"}


def row(table: small_tables.SmallTable, **more) -> dict:
    """A valid row of the table."""
    values = {name: "a" if kind is str else kind(1) for name, kind in table.columns.items()}
    words = WORDS | {"what": "generator"}
    return values | {name: word for name, word in words.items() if name in values} | more


every_table = pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)


@every_table
def test_rows_are_written_read_and_replaced(table, tmp_path):
    assert table.read(tmp_path).empty and list(table.read(tmp_path)) == list(table.columns)
    number = next(name for name, kind in reversed(table.columns.items()) if kind is not str)
    name = next(name for name, kind in table.columns.items() if kind is str)
    first = table.append(tmp_path, [row(table), row(table, **{name: "b"})])
    assert first.to_dict("records") == [row(table), row(table, **{name: "b"})]
    if number in table.key:
        return
    second = table.append(tmp_path, [row(table, **{number: 2})])
    assert second[number].tolist() == [2, 1]
    assert table.read(tmp_path).equals(second)


@every_table
def test_the_bytes_do_not_depend_on_the_order_of_the_rows(table, tmp_path):
    rows = [row(table, **{table.key[0]: word}) for word in "cab"]
    for name, lines in (("one", rows), ("two", rows[::-1])):
        for line in lines:
            table.append(tmp_path / name, [line])
    one, two = (table.path(tmp_path / name).read_bytes() for name in ("one", "two"))
    assert one == two


@every_table
def test_a_broken_value_is_refused_and_named(table, tmp_path):
    for column, kind in table.columns.items():
        if kind is str:
            value, message = " ", f"{column} ' ' is missing"
        elif column in table.unknown:
            value, message = -1.0, f"{column} '-1.0' must be 0 or above"
        else:
            value, message = float("nan"), f"{column} 'nan' must be"
        with pytest.raises(OralError, match=message):
            table.append(tmp_path, [row(table, **{column: value})])
        if kind is int:
            with pytest.raises(OralError, match=f"{column} '1.5' must be a whole number"):
                table.append(tmp_path, [row(table, **{column: 1.5})])
    for column in ("method", "condition", "kind", "what", "source"):
        if column in table.allowed or (column in table.columns and column in WORDS):
            with pytest.raises(OralError, match=f"{column} 'magic' must be one of"):
                table.append(tmp_path, [row(table, **{column: "magic"})])
    with pytest.raises(OralError, match="repeats an earlier row"):
        table.append(tmp_path, [row(table), row(table)])
    with pytest.raises(OralError, match=r"missing columns \['commit'\]|missing columns"):
        table.append(tmp_path, [{"task": "a"}])
    assert not table.path(tmp_path).exists()


def test_fewer_samples_or_points_leave_none_of_the_older_ones(tmp_path):
    for table, number in ((TEXTS, "sample"), (MAPS, "number")):
        table.append(tmp_path, [row(table, **{number: i}) for i in range(3)])
        table.append(tmp_path, [row(table, base="b")])
        table.append(tmp_path, [row(table, **{number: 7})])
        assert table.read(tmp_path)[number].tolist() == [7, 1]


def test_coordinates_may_be_negative_and_sizes_may_not(tmp_path):
    assert MAPS.append(tmp_path, [row(MAPS, x=-1.5)]).x.item() == -1.5
    with pytest.raises(OralError, match="bytes '-1' must be 0 or above"):
        BYTES.append(tmp_path, [row(BYTES, bytes=-1)])


def test_novelty_of_an_earlier_version_has_no_spread_and_no_free_numbers(tmp_path):
    later = ["spread", "free_numbers", "bound"]
    old = pd.DataFrame([row(NOVELTY, samples=float("nan"))]).drop(columns=later)
    old.to_csv(NOVELTY.path(tmp_path), index=False)
    assert NOVELTY.read(tmp_path)[[*later, "samples"]].isna().all(axis=None)
    both = NOVELTY.append(tmp_path, [row(NOVELTY, method="generated_span")])
    assert both.spread.isna().tolist() == [True, False]
