"""What ./reproduce.sh prints at its end: failures, the table of results, the next command.

Imports with the standard library only.
"""

import argparse
import shlex
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from oral_lib import paths, scales, storage
from oral_lib.runner import environment
from oral_lib.runner import nodes as graph
from oral_lib.runner.nodes import Node
from oral_lib.workflow import plan


def print_failures(args: argparse.Namespace, wanted: Sequence[Node], failed: dict) -> int:
    """Prints the failed nodes with the last lines of their logs; returns the exit code 1."""
    folder = paths.run_folder(args.scale, args.source, args.out)
    for name, reason in failed.items():
        log = folder / "logs" / f"{name}.log"
        print(f"FAILED {name}: it {reason}. Its log: {log}")
        with suppress(OSError):
            lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
            print("\n".join(f"    {line}" for line in lines[-5:]))
    waiting = [name for name in graph.due(wanted) if name not in failed]
    if waiting:
        print(f"not run, because they need a failed node: {', '.join(waiting)}")
    print("next: remove the cause, then run the same command again; finished nodes are kept")
    return 1


def print_other_commits(args: argparse.Namespace) -> None:
    """Prints a line if the published results name another commit than the present code.

    Nodes are due by the age of their files, which a changed default does not touch.
    """
    from oral_lib import provenance

    path = paths.results_folder(args.scale, args.out) / "manifest.json"
    commit = provenance.code_commit().removesuffix("-dirty")
    entries = storage.read_json(path) if path.exists() and commit != "unknown" else {}
    slug = paths.slug(args.source)
    of_source = [entry for name, entry in entries.items() if name.split("-")[0] == slug]
    commits = {entry["commit"].removesuffix("-dirty") for entry in of_source}
    if others := sorted(other[:7] for other in commits - {commit}):
        print(
            f"their results name commit {', '.join(others)}, the code here is {commit[:7]}: "
            "--from-scratch runs everything with the present code"
        )


def print_results(args: argparse.Namespace, wanted: Sequence[Node]) -> None:
    """Prints the short table, the path of the report, and the next command."""
    if [node.name for node in wanted] == [plan.QUICKSTART]:
        print(f"answers: {wanted[0].outputs[0]}")  # the node says itself what comes next
        return
    metrics = paths.results_folder(args.scale, args.out) / "metrics.csv"
    if any(str(metrics) in node.published for node in wanted):
        from oral_lib.evaluation import results
        from oral_lib.report.tables import methods

        print(methods.short_table(*results.read(metrics.parent)))
        print(f"report: {metrics.parent.parent / 'README.md'}")
    where = ["--out", str(args.out)] if args.out != paths.ROOT else []
    if args.scale == "smoke":
        script = "./reproduce.sh" if Path.cwd() == paths.ROOT else str(paths.ROOT / "reproduce.sh")
        print("next:", shlex.join([script, *where]), "  # the same with real models and data")
        return
    command = [*environment.project_command(), "generate", "--text"]
    command += ["Decide whether a product review is positive or negative."]
    plans = scales.base_plans(args.scale, args.source)
    base = [plan.base for plan in plans if not plan.parent][-1]
    command += ["--base", base, "--save", "my-lora"]
    if len(list((args.out / "runs").glob("*/*/generator"))) > 1:  # of several runs this one
        command += ["--scale", args.scale, "--source", args.source]
    print("next:", shlex.join([*command, *where]))
