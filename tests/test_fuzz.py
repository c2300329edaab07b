"""Hostile files are read or refused in one clear line: a short form of `python -m tests.fuzz`."""

import json
import sys
from pathlib import Path
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from tests.fuzz import guard  # noqa: E402
from tests.fuzz.__main__ import FAULTS  # noqa: E402
from tests.fuzz.targets import SHARES, TARGETS  # noqa: E402

INPUTS = 60  # of a target


@pytest.fixture(scope="module")
def root():
    with guard.watched() as folder:
        yield folder


@pytest.mark.parametrize("name", TARGETS)
def test_a_mutated_file_is_read_or_refused_in_one_line(root, name):
    for number in range(INPUTS // 2):
        kind, words = guard.outcome(root, name, Random(f"short {name} {number}"))
        assert kind in ("read", "refused"), (number, kind, words)


@pytest.mark.parametrize("name", TARGETS)
def test_hypothesis_comes_upon_no_other_outcome(root, name):
    @settings(
        max_examples=INPUTS // 2,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.randoms(use_true_random=False))
    def outcome_of(draw):
        kind, words = guard.outcome(root, name, draw)
        assert kind in ("read", "refused"), (kind, words)

    outcome_of()


def _faults():
    return json.loads(FAULTS.read_text()) if FAULTS.exists() else []


@pytest.mark.parametrize("fault", _faults(), ids=lambda f: f"{f['target']}-{f['number']}")
def test_an_input_that_failed_once_is_read_or_refused(root, fault):
    draw = Random(f"{fault['seed']} {fault['target']} {fault['number']}")
    kind, words = guard.outcome(root, fault["target"], draw)
    assert kind in ("read", "refused"), (kind, words)


def test_faults_are_noticed(root, monkeypatch):
    (root / "outside").mkdir(exist_ok=True)

    def writes(folder, draw):
        (Path.home() / "never-written").write_text("")

    def reads(folder, draw):
        (folder.parent / "outside" / "x").read_text()

    def connects(folder, draw):
        import socket

        socket.create_connection(("127.0.0.1", 9))

    def hangs(folder, draw):
        import re

        re.match("(a+)+!", "a" * 40)

    def fails(folder, draw):
        raise KeyError("x")

    monkeypatch.setattr(guard, "LIMIT", 0.2)
    trials = {writes: "forbidden", reads: "forbidden", connects: "forbidden", hangs: "late"}
    for trial, kind in (trials | {fails: "traceback"}).items():
        monkeypatch.setitem(TARGETS, "trial", trial)
        assert guard.outcome(root, "trial", Random(0))[0] == kind
    assert not (Path.home() / "never-written").exists()


def test_every_target_has_a_share():
    assert SHARES.keys() == TARGETS.keys() and sum(SHARES.values()) == 100
