"""Progress is readable in a log: whole lines, not too many, the last one complete."""

import re

import pytest

from oral_lib import progress


@pytest.fixture
def clock(monkeypatch):
    """A clock that tests move by hand."""
    now = [1000.0]
    monkeypatch.setattr("oral_lib.progress.time.monotonic", lambda: now[0])
    monkeypatch.setattr("tqdm.std.time", lambda: now[0])
    return now


def test_a_log_gets_a_line_at_most_every_ten_seconds_and_one_at_the_end(capsys, clock):
    steps = progress.bar(range(100), label="score rows", unit="row")
    for step in steps:
        clock[0] += 0.5
        steps.set_postfix(loss=step)  # redraws a bar on a terminal, must not fill a log
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert out == "" and "\r" not in err and "\x1b" not in err
    assert 4 <= len(lines) <= 6
    assert re.match(r"score rows \d+/100 \d+% +2\.00row/s 00:\d\d left", lines[0])
    assert lines[-1].startswith("score rows 100/100 100%")


def test_a_short_job_says_one_line(capsys, clock):
    assert list(progress.bar(iter("abc"), total=3, label="quick")) == ["a", "b", "c"]
    assert capsys.readouterr().err.count("\n") == 1


def test_nested_bars_do_not_move_the_cursor(capsys):
    for _ in progress.bar(range(2), label="outer"):
        list(progress.bar(range(2), label="inner"))
    assert [line.split()[0] for line in capsys.readouterr().err.splitlines()] == [
        "inner",
        "inner",
        "outer",
    ]


def test_bytes_and_unknown_totals_are_counted(capsys):
    with progress.bar(label="download", unit="B") as moving:
        moving.update(5 * 1024**2)
    assert capsys.readouterr().err.startswith("download 5.00M ")


def test_a_job_that_fails_still_says_how_far_it_came(capsys):
    with pytest.raises(RuntimeError), progress.bar(total=4, label="train") as steps:
        steps.update(3)
        raise RuntimeError
    assert "train 3/4 75%" in capsys.readouterr().err


def test_a_terminal_gets_a_live_bar(capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    list(progress.bar(range(3), label="live"))
    assert "\rlive: 100%" in capsys.readouterr().err
