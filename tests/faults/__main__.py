"""The kill campaign on the command line.

    python -m tests.faults --kills 50 --seed 0 --workers 7 --out DIR

Each start of a run is `./reproduce.sh --scale smoke`. Exit code 0: nothing was lost and nothing
differs; 1: something was; 130: interrupted. The same command goes on where it was stopped.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.faults.campaign import Campaign
from tests.faults.compare import CLOCKS, LEFT_OUT


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code, after running or continuing a campaign."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    add = parser.add_argument
    add("--kills", type=int, default=50)
    add("--seed", type=int, default=0)
    cores = len(os.sched_getaffinity(0))
    add("--workers", type=int, default=max(1, cores // 2), help="runs at a time, on 2 cores each")
    add("--only", nargs="+", default=[], metavar="PATTERN", help="nodes of the runs; default: all")
    add("--out", type=Path, required=True, help="folder of the campaign")
    add("--python", default=sys.executable, help="Python of the runs; default: this one")
    add("--per-world", type=int, default=10, help="kills of a run at most")
    add("--exceptions", action="store_true", help="print what is not compared, and why")
    args = parser.parse_args(argv)
    if args.exceptions:
        for pattern, reason in LEFT_OUT.items():
            print(f"{pattern}: not compared: {reason}")
        for pattern, (_, reason) in CLOCKS.items():
            print(f"{pattern}: compared without {reason}")
        return 0
    if args.kills < 1 or args.workers < 1 or args.per_world < 1:
        parser.error("--kills, --workers and --per-world must be 1 or more")
    campaign = Campaign(
        args.out.absolute(),
        args.kills,
        args.seed,
        args.workers,
        args.only,
        args.python,
        args.per_world,
    )
    try:
        clean = campaign.run()
    except KeyboardInterrupt:
        print("interrupted; the same command goes on", file=sys.stderr)
        return 130
    path = campaign.write_summary()
    print(campaign.summary(), f"\n{path}", sep="")
    return 0 if clean else 1


if __name__ == "__main__":
    sys.exit(main())
