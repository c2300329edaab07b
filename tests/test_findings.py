"""FINDINGS.md and README.md agree with results/, number by number (see `measured_numbers`)."""

from pathlib import Path

import pytest
from measured_numbers import Section, calculated, check, sections

ROOT = Path(__file__).resolve().parent.parent
PAGES = [path for name in ("FINDINGS.md", "README.md") if (path := ROOT / name).exists()]
SECTIONS = [(path, part) for path in PAGES for part in sections(path.read_text(encoding="utf-8"))]
CHECKS = [(part.title, one) for _, part in SECTIONS for one in part.checks]
EXAMPLE = """\
# Findings
## Copies
The base is right in 78.3% of 300 rows, in 95% intervals; −1,200 of `12` [figure 7](a.png "8").
<!-- desk/*.csv: method=base "task name=a b" -> mean value x100 = 78.3 -->
<!-- desk/metrics.csv: method=base "task name=a b" -> only n = 300 -->
<!-- given: 95 7 -1200 -->
"""


def test_a_section_has_the_numbers_that_a_reader_sees_and_the_checks():
    _, section = sections(EXAMPLE)
    assert section.title == "## Copies" and section.given == ["95", "7", "-1200"]
    assert section.numbers == ["78.3", "300", "95", "-1200", "7"]
    assert section.checks[0].file == "desk/*.csv" and section.checks[0].written == "78.3"
    assert section.checks[0].rows == ["method=base", "task name=a b"]
    assert unexplained(section) == []
    assert unexplained(section._replace(given=["95", "-1200"])) == ["7"]


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("method=base -> count = 3", "2"),
        ("method!=base -> count = 3", "1"),
        ("method=base,trained n>200 -> count = 3", "2"),
        ("method=base n<300 -> only value x100 = 1.00", "78.26"),
        ("method=base -> mean value = 0.1", "0.8"),
        ("-> max n = 1", "300"),
        ("-> different method = 1", "2"),
        ("method=trained -> only value = 1.0", "-0.1"),
    ],
)
def test_a_number_is_calculated_from_the_rows_that_are_named(text, number, tmp_path):
    (tmp_path / "desk").mkdir()
    for name, row in (("a", "base,100,0.7826"), ("b", "base,300,0.79\ntrained,250,-0.12")):
        (tmp_path / "desk" / f"{name}.csv").write_text(f"method,n,value\n{row}\n")
    assert calculated(check(f"desk/?.csv: {text}"), tmp_path) == number


def test_a_file_or_a_column_that_is_not_there_is_named(tmp_path):
    with pytest.raises(AssertionError, match=r"no file desk/a\.csv"):
        calculated(check("desk/a.csv: -> count = 1"), tmp_path)
    (tmp_path / "a.csv").write_text("n\n1\n2\n")
    with pytest.raises(AssertionError, match="no column 'm'"):
        calculated(check("a.csv: m=1 -> count = 1"), tmp_path)
    with pytest.raises(AssertionError, match=r"2 rows of a\.csv"):
        calculated(check("a.csv: -> only n = 1"), tmp_path)


def unexplained(section: Section) -> list[str]:
    """The numbers of a section that neither a check nor a list of given numbers has."""
    explained = {*section.given, *(one.written for one in section.checks)}
    unsigned = {number.lstrip("-") for number in explained}
    return [number for number in section.numbers if number.lstrip("-") not in unsigned]


@pytest.mark.parametrize(("title", "one"), CHECKS)
def test_every_checked_number_follows_from_the_results(title, one):
    assert calculated(one, ROOT / "results") == one.written, f"{title}: {one}"


@pytest.mark.parametrize(
    "section", [part for path, part in SECTIONS if path.name == "FINDINGS.md"],
    ids=lambda part: part.title,
)  # fmt: skip
def test_every_number_of_the_findings_is_checked_or_given(section):
    assert unexplained(section) == []


def test_a_check_is_of_a_number_that_its_section_shows():
    missing = [
        (part.title, one.written)
        for _, part in SECTIONS
        for one in part.checks
        if one.written.lstrip("-") not in {number.lstrip("-") for number in part.numbers}
    ]
    assert missing == []
