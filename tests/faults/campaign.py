"""The kill campaign: runs are killed at random moments, started again, and compared at the end.

Each world is one run with its own folder. Its kills happen at shares of its work that are spread
evenly over [0, 1), every eighth in the first seconds of a start. `campaign.json` has each kill as
soon as it has happened, so that an interrupted campaign goes on with the same command.
"""

import json
import math
import os
import queue
import random
import re
import shutil
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from oral_lib import storage
from oral_lib.runner import nodes as graph
from oral_lib.workflow import plan
from tests.faults import compare
from tests.faults.world import World, held_locks, phase, processes

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGKILL)
TARGETS = ("group", "all", "runner", "snakemake", "worker", "node", "kernel")
ENDS_RUN = ("group", "all", "runner", "snakemake")
STALLED = 900.0  # seconds without an event of a node
PROGRAM: tuple[str, ...] = ()  # arguments of Python, instead of ./reproduce.sh
MORE_WORLDS = 5  # at most
START_UP = 4.0  # seconds of a start in which every eighth kill happens
PATIENCE = 30.0  # seconds until a process of the wanted kind appears


class Kill(NamedTuple):
    """One planned kill."""

    number: int
    signal: signal.Signals
    target: str
    share: float  # of the work done
    after: float | None  # seconds after a start; None: at `share`


def planned_kills(count: int, seed: int) -> list[Kill]:
    """`count` kills; each pair of signal and target comes as often as any other, or once more."""
    draw = random.Random(seed)
    pairs = [(number, target) for number in SIGNALS for target in TARGETS]
    draw.shuffle(pairs)
    shares = [(i + draw.random()) / count for i in range(count)]
    draw.shuffle(shares)
    kills = []
    for i, share in enumerate(shares):
        number, target = pairs[i % len(pairs)]
        early = draw.uniform(0.1, START_UP) if i % 8 == 7 else None
        kills.append(Kill(i, number, target, min(share, 0.97), early))
    return kills


class Campaign:
    """All worlds of a campaign, and its file campaign.json.

    Args:
        folder: of the campaign; each world is a folder in it.
        kills: number of kills.
        seed: of the kills.
        workers: worlds at a time.
        only: patterns of nodes; empty: all nodes of the smoke scale.
        python: the Python of the runs.
        per_world: kills of a world at most, unless there are fewer worlds than workers.
    """

    def __init__(
        self,
        folder: Path,
        kills: int,
        seed: int,
        workers: int,
        only: Sequence[str] = (),
        python: str = sys.executable,
        per_world: int = 10,
    ) -> None:
        self.folder, self.path = folder, folder / "campaign.json"
        self.workers, self.python = workers, python
        scale = [] if PROGRAM else ["--scale", "smoke"]
        self.command = [*scale, "--jobs", "2", *(["--only", *only] if only else [])]
        planned = plan.nodes("smoke", "made", folder / "undisturbed" / "out")
        self.nodes = len(graph.with_needs(planned, graph.select(planned, only)))
        self.kills = planned_kills(kills, seed)
        self.worlds = max(1, min(kills, max(workers - 1, math.ceil(kills / per_world))))
        settings = {"kills": kills, "seed": seed, "only": list(only), "worlds": self.worlds}
        self.state = {"settings": settings, "kills": {}, "worlds": {}}
        if self.path.exists():
            self.state = storage.read_json(self.path)
            if self.state["settings"] != settings:
                raise SystemExit(
                    f"{self.path} is of another campaign ({self.state['settings']}): name another "
                    "folder with --out."
                )
        self.lock = threading.RLock()
        self.stop = threading.Event()
        self.began = time.monotonic()
        self.before = len(self.state["kills"])
        self.slots: queue.Queue[int] = queue.Queue()
        for slot in range(workers):
            self.slots.put(slot)

    # ------------------------------------------------------------ the campaign
    def run(self) -> bool:
        """Whether every world ended as the undisturbed one, without a fault."""
        self.folder.mkdir(parents=True, exist_ok=True)
        deal = {"undisturbed": []}
        for place in range(self.worlds):
            deal[f"world-{place:02}"] = self.kills[place :: self.worlds]
        self._run_all(deal)
        for number in range(MORE_WORLDS):  # for kills that came too late in their world
            name, left = f"more-{number:02}", self._left(self.kills)
            if left or name in self.state["worlds"]:
                self._run_all({name: [k._replace(share=0.9 * k.share, after=None) for k in left]})
        for name in self.state["worlds"]:
            self._compare(name)
        self._save()
        return not self.faults()

    def _run_all(self, deal: Mapping[str, Sequence[Kill]]) -> None:
        """Runs the worlds of `deal` with their kills."""
        pool = ThreadPoolExecutor(self.workers)
        tasks = [pool.submit(self._in_slot, name, kills) for name, kills in deal.items()]
        try:
            for task in tasks:
                task.result()
        except BaseException:
            self.stop.set()
            raise
        finally:
            pool.shutdown(cancel_futures=True)

    def _left(self, kills: Sequence[Kill]) -> list[Kill]:
        """Those of `kills` that have not happened, in the order of their shares."""
        left = [kill for kill in kills if str(kill.number) not in self.state["kills"]]
        return sorted(left, key=lambda kill: kill.share)

    def faults(self) -> list[str]:
        """Everything that went wrong, a line each."""
        lines = [
            f"kill {number} ({kill['signal']} to {kill['target']}): {fault}"
            for number, kill in sorted(self.state["kills"].items(), key=lambda item: int(item[0]))
            for fault in kill["faults"]
        ]
        for name, world in sorted(self.state["worlds"].items()):
            lines += [f"{name}: {fault}" for fault in world.get("faults", ())]
            lines += [f"{name}: {node} was done and ran again" for node in world["lost"]]
            lines += [f"{name}: {path} differs" for path in world.get("differing", ())]
        missing = len(self.kills) - len(self.state["kills"])
        return lines + ([f"{missing} planned kills have not happened"] if missing else [])

    def _in_slot(self, name: str, kills: Sequence[Kill]) -> None:
        slot = self.slots.get()
        cores = sorted(os.sched_getaffinity(0))
        mine = {cores[(2 * slot + i) % len(cores)] for i in (0, 1)}
        try:
            if not self._entry(name)["done"]:
                folder = self.folder / name
                world = World(folder, self.command, mine, self.python, PROGRAM)
                self._live(name, world, self._left(kills))
        finally:
            self.slots.put(slot)

    def _entry(self, name: str) -> dict:
        empty = {"done": False, "starts": 0, "reported": {}, "lost": [], "faults": [], "seconds": 0}
        with self.lock:
            return self.state["worlds"].setdefault(name, empty)

    def _save(self) -> None:
        with self.lock:
            storage.write_json(self.path, self.state)

    # ------------------------------------------------------------ one world
    def _live(self, name: str, world: World, waiting: list[Kill]) -> None:
        """Runs a world to its end, with the kills `waiting` on the way."""
        entry = self._entry(name)
        world.close()  # what an interrupted campaign left
        world.starts, world.reported = entry["starts"], entry["reported"]
        world.lost = entry["lost"]
        began, before = time.monotonic(), entry["seconds"]
        expected = False  # whether the present start may end with exit code 1
        try:
            while not self.stop.is_set():
                code = world.ended()
                if world.leader is None or code is not None:
                    if code is not None:
                        world.reader.join()
                        if code == 0:
                            entry["done"] = True
                            break
                        if not expected:
                            entry["faults"].append(f"start {world.starts} ended with {code}")
                            if len(entry["faults"]) > 3:
                                break
                    world.start()
                    expected, fresh, stalled = False, True, time.monotonic()
                if waiting and self._due(waiting[0], world, fresh):
                    kill = waiting.pop(0)
                    record = self._kill(kill, world)
                    if record is None:  # the run ended before
                        waiting.insert(0, kill)
                    else:
                        expected = True
                        fresh = False
                        record |= {"world": name, "start": world.starts}
                        with self.lock:
                            self.state["kills"][str(kill.number)] = record
                        self._report(record)
                        stalled = time.monotonic()
                if waiting and fresh and waiting[0].after and world.running:
                    fresh = time.monotonic() - world.began < START_UP
                entry |= {"starts": world.starts, "seconds": before + time.monotonic() - began}
                self._save()
                if time.monotonic() - stalled > STALLED:
                    entry["faults"].append(f"start {world.starts} did not end in {STALLED:.0f} s")
                    break
                time.sleep(0.1)
        finally:
            world.close()
            entry |= {"starts": world.starts, "seconds": before + time.monotonic() - began}
            self._save()
        if entry["done"]:
            entry["faults"] += [f"{path} is still locked" for path in held_locks(world.folder)]
            litter = [path for path in world.out.rglob(".*.tmp") if path.exists()]
            entry["litter"] = len(litter)
            self._print(f"{name}: done after {world.starts} starts")

    def _due(self, kill: Kill, world: World, fresh: bool) -> bool:
        if kill.after is not None and fresh:
            return time.monotonic() - world.began >= kill.after
        return world.progress(self.nodes) >= kill.share

    def _kill(self, kill: Kill, world: World) -> dict | None:
        """The record of a kill; None if the run ended before there was such a process."""
        end = time.monotonic() + PATIENCE
        target = kill.target
        while not (pids := world.find(target)):
            if world.ended() is not None:
                return None
            if time.monotonic() > end:
                target = "group"
            time.sleep(0.05)
        if target not in ENDS_RUN:
            pids = [random.Random(kill.number).choice(pids)]
        record = {
            "signal": kill.signal.name,
            "target": target,
            "share": round(world.progress(self.nodes), 3),
            "seconds": round(time.monotonic() - world.began, 2),
            "phase": phase(world.running, world.done_in_this_start()),
            "running": sorted(world.running),
            "faults": [],
        }
        must_end = world.kill(target, kill.signal, pids)
        if target in ENDS_RUN:
            code = self._exit_code(world, 180.0 if target == "snakemake" else 30.0)
            record["code"] = code
            if fault := _wrong_code(code, kill.signal, target, bool(record["running"])):
                record["faults"].append(fault)
            must_end = must_end or {process.pid for process in processes(world.mark)}
        gone = world.seconds_until_gone(must_end)
        record["gone"] = None if gone is None else round(gone, 1)
        if gone is None:
            left = [p for p in processes(world.mark) if p.pid in must_end]
            record["faults"] += [f"still alive: {' '.join(p.words)[:200]}" for p in left]
        if target in ENDS_RUN:
            world.leader.wait()
            world.reader.join(10)
            record["faults"] += [f"{path} is still locked" for path in held_locks(world.folder)]
            log = (world.folder / f"start-{world.starts:02}.log").read_text(errors="replace")
            if re.search(r"^ *\d+\.\d\d (Traceback|\w*Error\b)", log, re.MULTILINE):
                record["faults"].append(f"a traceback in start-{world.starts:02}.log")
        return record

    def _exit_code(self, world: World, limit: float) -> int | None:
        end = time.monotonic() + limit
        while world.ended() is None and time.monotonic() < end:
            time.sleep(0.05)
        return world.ended()

    # ------------------------------------------------------------ what comes out
    def _compare(self, name: str) -> None:
        entry, undisturbed = self._entry(name), self._entry("undisturbed")
        if (
            name != "undisturbed"
            and entry["done"]
            and undisturbed["done"]
            and "differing" not in entry
        ):
            out = self.folder / name / "out"
            compared, differing = compare.compare(self.folder / "undisturbed" / "out", out)
            entry |= {"compared": compared, "differing": differing}
            if not differing and not entry["faults"]:
                shutil.rmtree(self.folder / name / "cache", ignore_errors=True)

    def _report(self, record: dict) -> None:
        done, total = len(self.state["kills"]), len(self.kills)
        seconds = time.monotonic() - self.began
        rate = (done - self.before) / seconds
        left = (total - done) / rate / 60 if rate else math.inf
        self._print(
            f"{done}/{total} kills, {60 * rate:.1f} a minute, {left:.1f} min left: "
            f"{record['world']} at {record['share']:.0%} ({record['phase']}), {record['signal']} "
            f"to {record['target']}, gone in {record['gone']} s"
            + "".join(f"\n    FAULT: {fault}" for fault in record["faults"])
        )

    def _print(self, line: str) -> None:
        with self.lock:
            print(line, flush=True)

    def summary(self) -> str:
        """The campaign in Markdown: what was killed when, and what was lost."""
        kills = list(self.state["kills"].values())
        worlds = [w for name, w in self.state["worlds"].items() if name != "undisturbed"]
        labels = ("start-up", "between nodes", "zoo", "training", "cells", "notebooks", "report")
        lines = ["| killed during | " + " | ".join(n.name for n in SIGNALS) + " | all |"]
        lines.append("| --- |" + " --- |" * (len(SIGNALS) + 1))
        for label in labels:
            here = Counter(k["signal"] for k in kills if k["phase"] == label)
            counts = [here[number.name] for number in SIGNALS]
            lines.append(f"| {label} | {' | '.join(map(str, counts))} | {sum(counts)} |")
        lines.append("\n| killed | " + " | ".join(n.name for n in SIGNALS) + " | slowest end |")
        lines.append("| --- |" + " --- |" * (len(SIGNALS) + 1))
        for target in TARGETS:
            mine = [k for k in kills if k["target"] == target]
            counts = [sum(k["signal"] == number.name for k in mine) for number in SIGNALS]
            slowest = max((k["gone"] for k in mine if k["gone"] is not None), default=0.0)
            lines.append(f"| {target} | {' | '.join(map(str, counts))} | {slowest:.1f} s |")
        tenths = Counter(min(9, int(10 * k["share"])) for k in kills)
        lines.append("\n| share of the work done | kills |\n| --- | --- |")
        lines += [f"| {10 * i} to {10 * i + 10}% | {tenths[i]} |" for i in range(10)]
        lost = sum(len(w["lost"]) for w in worlds)
        starts, done = sum(w["starts"] for w in worlds), sum(w["done"] for w in worlds)
        compared = sum(w.get("compared", 0) for w in worlds)
        differing = sum(len(w.get("differing", ())) for w in worlds)
        lines.append(
            f"\n{len(kills)} kills in {len(worlds)} runs ({done} complete), {starts} starts. "
            f"Finished nodes that ran again: {lost}. Files compared: {compared}, different: "
            f"{differing}. Faults: {len(self.faults())}."
        )
        lines += [f"- {fault}" for fault in self.faults()]
        return "\n".join(lines) + "\n"

    def write_summary(self) -> Path:
        """The path of summary.md."""
        path = self.folder / "summary.md"
        storage.write_text(path, self.summary())
        return path


def _wrong_code(code: int | None, number: signal.Signals, target: str, started: bool) -> str:
    """What is wrong with the exit code of a run whose `target` got the signal `number`."""
    if code is None:
        return "the run did not end"
    if target == "snakemake":
        allowed = {1, 0}
    elif number == signal.SIGKILL:
        allowed = {-signal.SIGKILL}
    elif target == "all":
        allowed = {130, 1, 0, -number}
    else:
        allowed = {130} if started else {130, -number, 128 + number}
    return "" if code in allowed else f"exit code {code}, expected one of {sorted(allowed)}"


def load(folder: Path) -> dict:
    """The content of the campaign.json of a finished or interrupted campaign."""
    return json.loads((folder / "campaign.json").read_text(encoding="utf-8"))
