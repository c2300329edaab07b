"""A clock that was set back: nothing loops, nothing is skipped without a word, times keep order."""

import os
import time
from datetime import timedelta
from itertools import pairwise
from pathlib import Path

import pytest

from oral_lib import paths
from oral_lib.errors import PreflightError
from oral_lib.runner import engine, nodes
from oral_lib.runner.nodes import Node
from tests.faults import fake

DAY = timedelta(days=1).total_seconds()


@pytest.fixture
def plan(tmp_path):
    """a -> b -> c, all done; `source` is an input that no node makes."""
    names = ["source", "a", "b", "c"]
    files = {name: str(tmp_path / name) for name in names}
    for i, name in enumerate(names):
        Path(files[name]).touch()
        set_time(files[name], i - 1000)
    return [
        Node(name, (files[name],), ("-c", "pass"), inputs=(files[before],))
        for before, name in pairwise(names)
    ]


def set_time(path: str | Path, seconds: float) -> None:
    """Sets the time of `path` to `seconds` from now."""
    os.utime(path, (time.time() + seconds,) * 2)


def test_times_in_the_future_become_present_in_their_order(plan):
    a, b, c = plan
    for seconds, path in ((DAY, a.outputs[0]), (DAY + 1, b.outputs[0]), (DAY + 2, c.outputs[0])):
        set_time(path, seconds)
    assert nodes.due(plan) == {}
    assert nodes.settle_times(plan) == 3
    assert nodes.due(plan) == {} and nodes.settle_times(plan) == 0
    set_time(a.inputs[0], 0)  # edited now: seen at once, not after a day
    assert list(nodes.due(plan)) == ["a", "b", "c"]


def test_what_was_due_before_is_due_after(plan):
    a, b, c = plan
    set_time(a.outputs[0], DAY)  # a ran again, then the clock was set back, then a kill
    assert list(nodes.due(plan)) == ["b", "c"]
    nodes.settle_times(plan)
    assert list(nodes.due(plan)) == ["b", "c"]
    set_time(b.outputs[0], DAY)
    set_time(c.outputs[0], DAY)
    nodes.settle_times(plan)
    assert nodes.due(plan) == {}


def test_a_node_that_ends_after_the_clock_was_set_back_is_newer_than_what_it_read(plan):
    a, b, c = plan
    set_time(a.outputs[0], DAY)
    Path(b.outputs[0]).touch()  # b has run, on the day before a
    nodes.settle_times(plan, b)
    assert list(nodes.due(plan)) == ["c"]
    Path(c.outputs[0]).touch()
    nodes.settle_times(plan, c)
    assert nodes.due(plan) == {}


def test_a_time_that_cannot_be_changed_is_named(plan, monkeypatch):
    set_time(plan[0].inputs[0], DAY)

    def refuses(*_, **__):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(nodes.os, "utime", refuses)
    with pytest.raises(PreflightError, match=r"source has a time in the future.*set the clock"):
        nodes.settle_times(plan)


def test_a_clock_set_back_during_a_run_loops_and_skips_nothing(tmp_path, capfd):
    files = paths.run_folder("smoke", "made", tmp_path)
    tomorrow = f"for i in range(3): os.utime({str(files)!r} + f'/a-{{i}}.txt', (2**32, 2**32))"
    (tmp_path / "b.does").write_text(tomorrow)  # as if a had run before the clock was set back
    assert fake.main(["--out", str(tmp_path)]) == 0
    assert fake.main(["--out", str(tmp_path)]) == 0
    assert "nothing to do: all 5 nodes are done" in capfd.readouterr().out
    ran = (tmp_path / "logs" / "ran.txt").read_text().split()
    assert sorted(ran) == sorted(fake.NEEDS)


def test_a_run_says_that_it_changes_times(tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(engine, "run_nodes", lambda *_, **__: {})
    file = paths.run_folder("smoke", "made", tmp_path) / "a-0.txt"
    file.parent.mkdir(parents=True)
    file.touch()
    set_time(file, DAY)
    assert fake.main(["--out", str(tmp_path)]) == 0
    assert "1 files have times in the future (was the clock set back?)" in capfd.readouterr().out
    assert file.stat().st_mtime <= time.time()
