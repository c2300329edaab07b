"""Kills at any moment lose no finished node, leave no process and no lock, and change no result.

The long form is the campaign, `python -m tests.faults`: fifty kills of a full smoke run.
"""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from oral_lib import paths
from tests.faults import campaign, compare, fake
from tests.faults.world import World, descendants, held_locks, processes

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
NODES = len(fake.NEEDS)


@pytest.fixture
def world(tmp_path):
    made = World(tmp_path, [], os.sched_getaffinity(0), sys.executable, ("-m", "tests.faults.fake"))
    yield made
    made.close()


def until(condition, seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def finish(world: World) -> None:
    """Starts the run again and waits for its end."""
    world.start()
    assert world.leader.wait(60) == 0
    world.reader.join()


def check_end(world: World) -> None:
    """Nothing that was reported done ran again, and the results are complete."""
    assert world.lost == [] and len(world.reported) == NODES
    files = sorted(path.name for path in paths.run_folder("smoke", "made", world.out).glob("*.txt"))
    assert files == sorted(f"{name}-{i}.txt" for name in fake.NEEDS for i in range(3))
    assert held_locks(world.folder) == []


@pytest.mark.parametrize(
    ("target", "number", "share"),
    [("group", signal.SIGTERM, 0.3), ("all", signal.SIGKILL, 0.5)],
    ids=("SIGTERM", "SIGKILL"),
)
def test_a_killed_run_leaves_nothing_behind_and_goes_on(world, target, number, share):
    world.start()
    until(lambda: world.progress(NODES) > share)
    must_end = world.kill(target, number, world.find(target))
    assert len(must_end) >= 3  # leader, Snakemake, worker
    world.leader.wait(20)
    assert world.seconds_until_gone(must_end) is not None
    world.reader.join()
    assert held_locks(world.folder) == []
    assert world.leader.returncode == (130 if number == signal.SIGTERM else -signal.SIGKILL)
    assert "Traceback" not in (world.folder / "start-01.log").read_text()
    finish(world)
    check_end(world)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=lambda n: n.name)
def test_a_killed_worker_takes_its_node_with_it(tmp_path, number):
    worker = subprocess.Popen(
        [
            *(sys.executable, "-m", "oral_lib.runner.worker", "b", str(tmp_path / "log")),
            *("-c", "import time; print('here', flush=True); time.sleep(60)"),
        ],
        env=os.environ | {"ORAL_FAULTS_WORLD": str(tmp_path), "PYTHONPATH": str(paths.ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert worker.stdout.readline() == "here\n"
    node = descendants(worker.pid, processes(str(tmp_path)))
    assert len(node) == 1
    worker.send_signal(number)
    worker.communicate(timeout=10)
    until(lambda: not processes(str(tmp_path)), 8)


def test_a_node_killed_after_its_last_output_counts_as_done(world):
    """Whatever Snakemake has noted: files are whole or missing."""
    world.out.mkdir()
    code = "import threading\nthreading.Timer(0.6, lambda: open(out / 'now', 'w')).start()"
    (world.out / "a.does").write_text(code + "\nimport atexit; atexit.register(time.sleep, 30)")
    world.start()
    until((world.out / "now").exists)
    world.kill("all", signal.SIGKILL, world.find("all"))
    world.leader.wait()
    world.reader.join()
    finish(world)
    assert (world.out / "logs" / "ran.txt").read_text().split().count("a") == 1


def test_the_plan_of_kills_covers_a_run_and_is_the_same_for_a_seed():
    kills = campaign.planned_kills(50, seed=3)
    assert kills == campaign.planned_kills(50, seed=3) != campaign.planned_kills(50, seed=4)
    assert {(k.signal, k.target) for k in kills} == {
        (number, target) for number in campaign.SIGNALS for target in campaign.TARGETS
    }
    assert sorted(int(10 * k.share) for k in kills) == sorted(5 * list(range(10)))
    assert sum(k.after is not None for k in kills) == 6


@pytest.mark.parametrize(
    ("name", "one", "two", "equal"),
    [
        ("runs/zoo/run.json", '{"loss": 1, "seconds": 2}', '{"seconds": 3, "loss": 1}', True),
        ("runs/zoo/run.json", '{"loss": 1}', '{"loss": 2}', False),
        ("runs/other.json", '{"seconds": 2}', '{"seconds": 3}', False),
        ("results/smoke/metrics.csv", "value,wall_s\n1,2\n", "value,wall_s\n1,3\n", True),
        ("results/smoke/metrics.csv", "value,wall_s\n1,2\n", "value,wall_s\n2,2\n", False),
        ("runs/logs/a.log", "0:01", "0:02", True),
        ("results/README.md", "a", "b", False),
    ],
)
def test_only_what_a_clock_decides_is_left_out(tmp_path, name, one, two, equal):
    for folder, text in (("one", one), ("two", two)):
        path = tmp_path / folder / name
        path.parent.mkdir(parents=True)
        path.write_text(text)
    _, differing = compare.compare(tmp_path / "one", tmp_path / "two")
    assert differing == ([] if equal else [name])
    (tmp_path / "two" / "more.txt").touch()
    assert "more.txt" in compare.compare(tmp_path / "one", tmp_path / "two")[1]


def test_a_campaign_kills_resumes_and_compares(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(campaign, "PROGRAM", ("-m", "tests.faults.fake"))
    monkeypatch.setattr(campaign.plan, "nodes", fake.planner)
    monkeypatch.setattr(campaign, "PATIENCE", 0)  # the fake plan has no kernels
    first = campaign.Campaign(tmp_path, 2, seed=5, workers=2)
    assert first.run(), first.faults()
    said = capsys.readouterr().out
    assert re.search(r"2/2 kills, [\d.]+ a minute, 0.0 min left: world-00", said)
    summary = first.write_summary().read_text()
    assert "Finished nodes that ran again: 0. Files compared: 1" in summary
    again = campaign.Campaign(tmp_path, 2, seed=5, workers=2)
    assert again.run(), again.faults()
    assert again.state == first.state
    with pytest.raises(SystemExit, match="of another campaign"):
        campaign.Campaign(tmp_path, 2, seed=6, workers=2)
    assert isinstance(first.path, Path) and compare.contents(tmp_path / "undisturbed" / "out")
