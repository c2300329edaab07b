r"""Numbers of a Markdown page, and the rows of results that they come from.

A comment in the page says how a number follows from a CSV file of `results/`:

    <!-- lab/metrics.csv: task=movie method=base metric=auc -> mean value x100 = 93.1 -->
    <!-- lab/tables/judged-*-local.csv: what=generated state=equal,undecided p<0.05 -> count = 7 -->

Before the arrow: the file, or a pattern of several, then the rows. `=` is followed by one or more
allowed texts, `!=` by refused ones; `<` and `>` compare numbers. A value with a space is quoted:
`"base model=minilm-l6"`. After the arrow: `count`, or `only`, `mean`, `median`, `sum`, `min`, `max`
or `different` (how many values) of a column, perhaps times 100, and the number as the page writes
it. It is compared with as many digits as it has.

A number that no file has, such as one that a paper reports, is listed: `<!-- given: 95 97.2 -->`.
"""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pandas as pd

COMMENT = re.compile(r"<!--\s*(.*?)\s*-->", re.DOTALL)
NUMBER = re.compile(r"(?<![\w.−-])[+−-]?\d[\d,]*(?:\.\d+)?(?![\w-])")
CALCULATIONS = {
    "mean": pd.Series.mean, "median": pd.Series.median, "sum": pd.Series.sum, "min": pd.Series.min,
    "max": pd.Series.max,
}  # fmt: skip


class Check(NamedTuple):
    """A number of a page: the file and rows that it follows from, the calculation, its text."""

    file: str
    rows: list[str]
    calculation: list[str]
    written: str


class Section(NamedTuple):
    """What stands below one heading: the numbers that a reader sees, the checks, the given ones."""

    title: str
    numbers: list[str]
    checks: list[Check]
    given: list[str]


def sections(text: str) -> Iterator[Section]:
    """The sections of a Markdown page, one a heading."""
    for part in filter(str.strip, re.split(r"^(?=#+ )", text, flags=re.MULTILINE)):
        comments = COMMENT.findall(part)
        seen = re.sub(
            r"```.*?```|`[^`\n]*`|!?\[|\]\([^)]*\)", " ", COMMENT.sub("", part), flags=re.S
        )
        given = [c.partition(":")[2].split() for c in comments if c.startswith("given:")]
        yield Section(
            title=part.partition("\n")[0],
            numbers=[plain(number) for number in NUMBER.findall(seen)],
            checks=[check(comment) for comment in comments if "->" in comment],
            given=[plain(number) for numbers in given for number in numbers],
        )


def check(comment: str) -> Check:
    """The check that a comment writes down."""
    left, _, right = comment.partition("->")
    file, _, rows = left.partition(":")
    calculation, _, written = right.rpartition("=")
    return Check(file.strip(), shlex.split(rows), calculation.split(), plain(written))


def plain(number: str) -> str:
    """A number without signs of typography: `−1,200` is -1200, and `+3` is 3."""
    return number.strip().replace("−", "-").replace(",", "").removeprefix("+").rstrip("%")


def calculated(one: Check, results: Path) -> str:
    """The number that follows from the files, with as many digits as the written one."""
    files = sorted(results.glob(one.file))
    assert files, f"there is no file {one.file} in results/"
    tables = (pd.read_csv(f, dtype=str, keep_default_na=False) for f in files)
    rows = pd.concat(tables, ignore_index=True)
    for condition in one.rows:
        rows = rows[_selected(rows, condition)]
    kind, *rest = one.calculation
    if kind == "count":
        value = len(rows)
    elif kind == "different":
        value = rows[rest[0]].nunique()
    elif kind == "only":
        assert len(rows) == 1, f"{len(rows)} rows of {one.file} are {one.rows}, not one"
        value = float(rows[rest[0]].iloc[0])
    else:
        value = CALCULATIONS[kind](pd.to_numeric(rows[rest[0]]))
    value *= 100 if "x100" in rest else 1
    digits = len(one.written.partition(".")[2])
    return plain(f"{value:.{digits}f}")


def _selected(rows: pd.DataFrame, condition: str) -> pd.Series:
    column, sign, value = re.fullmatch(r"(.+?)(!=|=|<|>)(.*)", condition).groups()
    assert column in rows, f"no column {column!r}; there are {', '.join(rows)}"
    if sign in ("=", "!="):
        return rows[column].isin(value.split(",")) ^ (sign == "!=")
    numbers = pd.to_numeric(rows[column], errors="coerce")
    return numbers < float(value) if sign == "<" else numbers > float(value)
