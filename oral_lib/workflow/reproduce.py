"""./reproduce.sh: sets up, runs the plan, tests, examines. `main` returns the exit code.

Imports with the standard library alone, so that --help, --list and --dry-run answer at once and
anywhere.
"""

import argparse
import os
import re
import shlex
import shutil
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from oral_lib import paths, scales
from oral_lib.errors import OralError, PreflightError, UsageError, closest
from oral_lib.runner import checks, doctor, engine, environment, lock
from oral_lib.runner import nodes as graph
from oral_lib.runner.nodes import Node
from oral_lib.workflow import plan
from oral_lib.workflow.plan import Planner

ABOUT = """\
commands:
  run      set up, make the models and data ready, run every node that is due, show the table
  test     set up, then ruff, pytest, all notebooks at smoke scale, twins; `test -- ARGS` for pytest
  doctor   look at this machine and say what is missing

scales:
  smoke    tiny models made on the spot: proves the code in minutes, needs no download
  desk     two small models, three tasks: half an hour on 2 cores that multiply bf16, an hour on
           others (the default without GPU)
  lab      five small models, all tasks: hours on one GPU (the default where there is one)
  paper    the paper's models; needs GPUs of 80 GB. --list and --dry-run work anywhere

exit codes:
  0 all is done   1 a node failed (the others still ran)   2 usage or parameters
  3 preflight: Python, disk, memory, missing models or data, another run   130 interrupted

Run the same command again after any of these: what is finished is kept.
"""


def arguments(argv: Sequence[str]) -> argparse.Namespace:
    """The parsed command line; ends with exit code 2 and a message if it cannot be meant."""
    parser = argparse.ArgumentParser(
        prog="./reproduce.sh",
        description="ORAL: one sentence in, a working LoRA out. Sets up and runs everything.",
        epilog=ABOUT,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("command", nargs="?", choices=("run", "test", "doctor"), default="run")
    add("--scale", choices=tuple(scales.SCALES), default=scales.default_scale())
    add("--source", default="packages", help="packages (default), local:DIR or hub")
    add("--only", nargs="+", metavar="PATTERN", help="these nodes and what they need ('zoo/*')")
    add("--from-scratch", action="store_true", help="remove this scale's run folder first")
    add("--force", action="store_true", help="run the selected nodes though they are done")
    add("--jobs", type=jobs, default=1, metavar="N", help="nodes at a time (1)")
    add("--dry-run", action="store_true", help="say what would run, and why")
    add("--list", action="store_true", help="show all nodes, or those of --only")
    add("--out", type=Path, default=paths.ROOT, metavar="DIR", help="put runs/ and results/ there")
    add("--offline", action="store_true", help="fetch nothing: fail if something is missing")
    words, extra = list(argv), []
    if "--" in words:
        words, extra = words[: words.index("--")], words[words.index("--") + 1 :]
    known = list(parser._option_string_actions)
    for word in words:
        if word.startswith("--") and word.partition("=")[0] not in known:
            parser.error(f"unknown option {word!r}.{closest(word, known)}")
    args = parser.parse_args(words)
    if extra and args.command != "test":
        parser.error(f"only `test` passes arguments on, so {extra[0]!r} after -- has no use")
    args.extra = extra
    args.out = args.out.expanduser().absolute()
    args.source = "made" if args.scale == "smoke" else _source(args.source)
    return args


def jobs(text: str) -> int:
    """How many nodes at a time; argparse's own error for what is no such number."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of nodes: use 1 or more")
    return int(text)


def _source(source: str) -> str:
    """`source` with its folder made absolute; `UsageError` if there is no such source."""
    kind = paths.slug(source)
    if kind == "made":
        raise UsageError("source 'made' belongs to --scale smoke; use packages, local:DIR or hub.")
    if kind != "local":
        return source
    folder = Path(source.partition(":")[2]).expanduser().absolute()
    if not folder.is_dir():
        raise PreflightError(f"--source local: there is no folder {folder}.")
    return f"local:{folder}"


Enter = Callable[[argparse.Namespace], None]


def main(
    argv: Sequence[str] | None = None,
    planner: Planner = plan.nodes,
    enter: Enter = lambda args: None,
) -> int:
    """Does what the command line says and returns the exit code.

    `planner` gives the nodes; `enter` is called before anything needs more than the standard
    library, and may replace this process by one of the right Python.
    """
    try:
        return _do(arguments(sys.argv[1:] if argv is None else argv), planner, enter)
    except OralError as error:
        print(f"oral: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("\noral: interrupted. The same command goes on from here.", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `| head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _do(args: argparse.Namespace, planner: Planner, enter: Enter) -> int:
    everything = planner(args.scale, args.source, args.out)
    _check_experiments(args)
    chosen = graph.select(everything, args.only)
    wanted = graph.with_needs(everything, chosen)
    forced = {node.name for node in (wanted if args.from_scratch else chosen if args.force else ())}
    if args.list:
        return _list(wanted if args.only else everything)
    if args.command == "doctor":
        enter(args)
        found = list(doctor.examine(wanted, args.source, args.out))
        print(doctor.table(found))
        return 3 if any(check.state == "fail" for check in found) else 0
    if args.command == "test":
        return _test(args, enter)
    reasons = graph.due(wanted, forced)
    if args.dry_run:
        return _dry_run(wanted, reasons)
    if reasons:
        doctor.preflight(wanted, args.out)
    enter(args)
    if reasons:
        failed = _run(args, wanted, forced)
        if failed:
            return _tell_failures(args, wanted, failed)
    else:
        print(f"nothing to do: all {len(wanted)} nodes are done")
        _tell_commits(args)
    _close(args, wanted)
    return 0


def _check_experiments(args: argparse.Namespace) -> None:
    """UsageError where --only asks for an experiment that is not planned here."""
    for pattern in args.only or ():
        name, there = re.match(r"\w*", pattern)[0], scales.experiments(args.scale, args.source)
        if name in scales.EXPERIMENTS and name not in there:
            missing = scales.not_planned(args.scale, args.source, name)
            raise UsageError(f"--only {pattern!r}: {missing}")


def _list(nodes: Sequence[Node]) -> int:
    width = max(len(node.name) for node in nodes)
    for node in nodes:
        gpu = f", {node.gpu} GPU" if node.gpu else ""
        print(f"{node.name:{width}}  {node.minutes:5.1f} min, {node.memory_mb / 1000:.1f} GB{gpu}")
    return 0


def _dry_run(wanted: Sequence[Node], reasons: dict[str, str]) -> int:
    for node in wanted:
        if node.name in reasons:
            print(f"{node.name}: {reasons[node.name]}\n    python {shlex.join(node.command)}")
    minutes = sum(node.minutes for node in wanted if node.name in reasons)
    print(
        f"{len(reasons)} of {len(wanted)} nodes would run, about {minutes:.0f} minutes one by one"
    )
    return 0


def _test(args: argparse.Namespace, enter: Enter) -> int:
    todo = checks.steps(args.extra, args.offline)
    if args.dry_run:
        print("\n".join(f"{step.name}: python {shlex.join(step.command)}" for step in todo))
        return 0
    enter(args)
    failed = checks.run(todo)
    print(f"FAILED: {', '.join(failed)}" if failed else "all checks passed")
    return 1 if failed else 0


def _run(args: argparse.Namespace, wanted: list[Node], forced: set[str]) -> dict[str, str]:
    """Runs what is due under the lock; returns the failed nodes and why."""
    if args.scale == "paper":
        _models_in_reach(args.scale, args.source)
    folder = paths.run_folder(args.scale, args.source, args.out)
    with lock.held(args.out / "runs") as locked:
        if args.from_scratch and folder.exists():
            shutil.rmtree(folder)
        if lacking := graph.lacking(wanted):
            raise PreflightError(f"{lacking[0]} is not there: get the whole repository.")
        graph.same_source(folder / "plan.json", args.source)
        _check_assets(wanted, args.source, args.offline)
        for node in wanted:
            lost = any(not Path(path).exists() for path in node.published)
            for path in node.outputs if lost or node.name in forced else ():
                Path(path).unlink(missing_ok=True)
        todo = graph.due(wanted)
        began = time.monotonic()
        print(f"{len(todo)} of {len(wanted)} nodes to run; logs in {folder / 'logs'}", flush=True)
        failed = engine.run(
            wanted,
            todo,
            folder,
            args.source,
            jobs=args.jobs,
            locked=locked,
            environment=_environment(args),
        )
        print(f"{len(todo) - len(failed)} nodes done in {engine.clock(time.monotonic() - began)}")
        return failed


def _environment(args: argparse.Namespace) -> dict[str, str]:
    """What the nodes see: the project, and no hub unless asked for."""
    path = os.pathsep.join(filter(None, [str(paths.ROOT), os.environ.get("PYTHONPATH")]))
    own = {"TOKENIZERS_PARALLELISM": "false"}
    own |= {"PYTHONWARNINGS": "ignore::FutureWarning"}  # of libraries, about one another
    own |= {"JUPYTER_PREFER_ENV_PATH": "1"}  # else a kernel in the home folder could run instead
    given = own | dict(os.environ) | {"PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}
    if args.offline or args.source != "hub":
        given |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    return given


def _models_in_reach(scale: str, source: str) -> None:
    from oral_lib.models import registry

    missing = [
        c.base for c in scales.base_plans(scale, source) if not registry.in_reach(c.base, source)
    ]
    if missing:
        raise PreflightError(
            f"--scale {scale} needs base models that are not in reach: {', '.join(missing)}. "
            "--dry-run shows the plan; --scale desk runs with what packages ship."
        )


def _check_assets(wanted: Sequence[Node], source: str, offline: bool) -> None:
    """Has missing assets fetched again although their node is done; `PreflightError` if offline."""
    from oral_lib.assets import sources
    from oral_lib.assets.cache import cache_dir

    for node in wanted:
        first, _, last = node.name.rpartition("/")
        if last != "assets":
            continue
        missing = sources.missing(source, first or "language")
        if missing and offline:
            raise PreflightError(
                f"--offline, but these are not in {cache_dir()}: {', '.join(missing)}. "
                "Run once without --offline."
            )
        for path in node.outputs if missing else ():
            Path(path).unlink(missing_ok=True)


def _tell_failures(args: argparse.Namespace, wanted: Sequence[Node], failed: dict) -> int:
    folder = paths.run_folder(args.scale, args.source, args.out)
    for name, why in failed.items():
        log = folder / "logs" / f"{name}.log"
        print(f"FAILED {name}: it {why}. Its log: {log}")
        with suppress(OSError):
            words = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
            print("\n".join(f"    {line}" for line in words[-5:]))
    waiting = [name for name in graph.due(wanted) if name not in failed]
    if waiting:
        print(f"not run, because they need a failed node: {', '.join(waiting)}")
    print("next: mend it, then run the same command again; what is finished is kept")
    return 1


def _tell_commits(args: argparse.Namespace) -> None:
    """Says so where the published results name another commit than the code has: a node is due by
    the age of its files, and a default that has changed since makes none of them older."""
    from oral_lib import provenance, storage

    path = paths.results_folder(args.scale, args.out) / "manifest.json"
    now = provenance.code_commit().removesuffix("-dirty")
    entries = storage.read_json(path) if path.exists() and now != "unknown" else {}
    mine = [one for name, one in entries.items() if name.split("-")[0] == paths.slug(args.source)]
    made = {one["commit"].removesuffix("-dirty") for one in mine}
    if others := sorted(commit[:7] for commit in made - {now}):
        print(
            f"their results name commit {', '.join(others)}, the code here is {now[:7]}: "
            "--from-scratch makes all of it with that"
        )


def _close(args: argparse.Namespace, wanted: Sequence[Node]) -> None:
    """The short table, the path of the report, and the next command to type."""
    metrics = paths.results_folder(args.scale, args.out) / "metrics.csv"
    if any(str(metrics) in node.published for node in wanted):
        from oral_lib.evaluation import results
        from oral_lib.report import tables

        print(tables.short_table(*results.read(metrics.parent)))
        print(f"report: {metrics.parent.parent / 'README.md'}")
    if args.scale == "smoke":
        print("next: ./reproduce.sh   # the same with real models and data")
        return
    command = [sys.executable, "-m", "oral_lib", "generate", "--task"]
    command += ["Decide whether a product review is positive or negative."]
    released = [c.base for c in scales.base_plans(args.scale, args.source) if not c.parent]
    command += ["--base", released[-1], "--out", "my-lora"]
    usual = (paths.ROOT, "packages", scales.default_scale())
    if (args.out, args.source, args.scale) != usual:
        folder = paths.run_folder(args.scale, args.source, args.out) / "generator"
        command += ["--generator", str(folder)]
    print("next:", shlex.join(command))


def _enter(args: argparse.Namespace) -> None:
    """Goes on in a Python that fits the locks, made if need be (but `doctor` makes nothing)."""
    examining = args.command == "doctor"
    python = environment.best() if examining else environment.prepare(offline=args.offline)
    os.environ.pop(environment.READY, None)
    if python != sys.executable:
        sys.stdout.flush()
        os.environ[environment.READY] = "1"
        os.execv(python, [python, "-P", "-m", "oral_lib.workflow.reproduce", *sys.argv[1:]])


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM):  # a shell may have had SIGINT ignored
        signal.signal(number, signal.default_int_handler)
    sys.exit(main(enter=_enter))
