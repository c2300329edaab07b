"""python -m tests.fuzz --inputs 100000 --seed 0 [--target adapter] [--summary FILE]

An input is fixed by seed, target and number. A fault is added to tests/fuzz/inputs/faults.json,
which `tests/test_fuzz.py` runs again.
"""

import argparse
import json
import sys
import time
from collections import Counter
from pathlib import Path
from random import Random

import torch

from tests.fuzz import guard
from tests.fuzz.targets import SHARES, TARGETS

FAULTS = Path(__file__).parent / "inputs" / "faults.json"


def _brief(words: str, root: Path) -> str:
    """A message without the paths of this machine."""
    words = words.replace(str(root), "...").replace(str(FAULTS.parents[3]), ".")
    return words if len(words) <= 200 else f"{words[:120]}...{words[-60:]}"


def main(arguments: list[str] | None = None) -> int:
    """0 if every input was read or refused in one clear line, else 1."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--inputs", type=int, default=100_000, help="of all targets together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--target", choices=TARGETS, help="only this target")
    parser.add_argument("--summary", type=Path, help="a JSON file for the counts")
    parser.add_argument("--first", type=int, default=0, help="number of the first input")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    shares = {options.target: 100} if options.target else SHARES
    summary, faults = {"seed": options.seed, "inputs": options.inputs, "targets": {}}, []
    begin = time.monotonic()
    with guard.watched() as root:
        for name, share in shares.items():
            counts, start, slowest = Counter(), time.monotonic(), 0.0
            for number in range(options.first, options.first + options.inputs * share // 100):
                before = time.monotonic()
                draw = Random(f"{options.seed} {name} {number}")
                kind, words = guard.outcome(root, name, draw)
                slowest = max(slowest, time.monotonic() - before)
                counts[kind] += 1
                if kind not in ("read", "refused"):
                    faults.append(
                        {"target": name, "seed": options.seed, "number": number, "kind": kind,
                         "words": _brief(words, root)}
                    )  # fmt: skip
            seconds = round(time.monotonic() - start, 1)
            row = dict(sorted(counts.items())) | {"seconds": seconds, "slowest": round(slowest, 2)}
            summary["targets"][name] = row
            print(f"{name}: {row}", flush=True)
    summary |= {"seconds": round(time.monotonic() - begin, 1), "faults": len(faults)}
    for fault, times in Counter((f["target"], f["kind"], f["words"][:200]) for f in faults).items():
        print(f"fault, {times} times: {fault}")
    if faults:
        known_faults = json.loads(FAULTS.read_text()) if FAULTS.exists() else []
        one_a_kind = {(f["target"], f["kind"], f["words"][-60:]): f for f in faults}
        FAULTS.parent.mkdir(exist_ok=True)
        FAULTS.write_text(json.dumps([*known_faults, *one_a_kind.values()], indent=1) + "\n")
    if options.summary:
        options.summary.write_text(json.dumps(summary | {"list": faults}, indent=1) + "\n")
    seconds = summary["seconds"]
    print(f"{options.inputs} inputs, seed {options.seed}, {seconds} s, {len(faults)} faults")
    return bool(faults)


if __name__ == "__main__":
    sys.exit(main())
