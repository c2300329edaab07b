"""./reproduce.sh: creates the environment, runs the plan or the tests, checks the machine.

Imports with the standard library only: --help, --list and --dry-run need no environment.
"""

import argparse
import os
import re
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from oral_lib import machine, paths, scales, storage
from oral_lib.errors import OralError, PreflightError, UsageError, closest
from oral_lib.runner import checks, doctor, engine, environment, lock
from oral_lib.runner import nodes as graph
from oral_lib.runner.nodes import Node
from oral_lib.tasks import wordings
from oral_lib.workflow import options, outcome, plan
from oral_lib.workflow.parsing import Parser
from oral_lib.workflow.plan import Planner

ABOUT = """\
commands:
  run      create the environment, download models and data, run every due node, print the table
  test     create the environment, then run ruff, the import rules, pytest and all notebooks at
           the smoke scale; `test -- ARGS` passes arguments to pytest
  doctor   check this machine and print what is missing

scales:
  smoke    tiny models with random weights: checks the code in minutes, needs no download
  desk     two small models, three tasks and unseen intents: 45 minutes on 2 cores with bf16
           instructions, longer on others (the default without such a GPU)
  lab      five small models, all tasks: hours on one GPU (the default with an NVIDIA GPU of 40 GB)
  paper    the paper's models; needs GPUs of 80 GB. --list and --dry-run work anywhere

exit codes:
  0 all is done   1 a node failed (the others still ran)   2 usage or parameters
  3 preflight: Python, disk, memory, missing models or data, another run   130 interrupted

Run the same command again after any of these: finished nodes do not run again.
"""


COMMANDS = ("run", "test", "doctor")
USED_BY = {  # the commands that use an option
    "--scale": ("run", "doctor"),
    "--source": ("run", "doctor"),
    "--only": ("run", "doctor"),
    "--from-scratch": ("run",),
    "--force": ("run",),
    "--wordings": ("run",),
    "--jobs": ("run",),
    "--dry-run": ("run", "test"),
    "--list": ("run",),
    "--out": ("run", "doctor"),
    "--offline": ("run", "test"),
}


def arguments(argv: Sequence[str]) -> argparse.Namespace:
    """The parsed command line; an invalid one ends the process with exit code 2 and a message."""
    parser = Parser(
        prog="./reproduce.sh",
        description="ORAL: one sentence in, a working LoRA out. Installs and runs everything.",
        epilog=ABOUT,
    )
    add = parser.add_argument
    add("command", nargs="?", default="run", metavar=f"{{{','.join(COMMANDS)}}}")
    options.add(parser, "--scale", "--source")
    add("--only", nargs="+", metavar="PATTERN", help="these nodes and all they need ('zoo/*')")
    add("--from-scratch", action="store_true", help="remove the run folder of this scale first")
    add("--force", action="store_true", help="run the selected nodes even if they are done")
    options.add(parser, "--wordings", default=wordings.DEFAULT)
    options.add(parser, "--jobs", "--dry-run")
    add("--list", action="store_true", help="print all nodes, or the nodes of --only")
    options.add(parser, "--out", "--offline")
    for action in parser._actions:
        if action.option_strings[-1:] and action.option_strings[-1] in USED_BY:
            action.help += f" [{', '.join(USED_BY[action.option_strings[-1]])}]"
    words, extra = list(argv), []
    if "--" in words:
        words, extra = words[: words.index("--")], words[words.index("--") + 1 :]
    args = parser.parse_args(words)
    if args.command not in COMMANDS:
        parser.error(
            f"unknown command {args.command!r}.{closest(args.command, COMMANDS)} "
            f"Known: {', '.join(COMMANDS)}."
        )
    given = [word.partition("=")[0] for word in words if word.startswith("--")]
    for name in given:
        if args.command not in USED_BY.get(name, COMMANDS):
            users = " and ".join(f"`{command}`" for command in USED_BY[name])
            parser.error(f"{name} belongs to {users}: `{args.command}` does not use it")
    args.scale_is_default = "--scale" not in given
    if extra and args.command != "test":
        parser.error(f"{extra[0]!r} after --: only `test` passes arguments on")
    args.extra = extra
    args.out = paths.full(args.out)
    args.source = "made" if args.scale == "smoke" else _source(args.source)
    return args


def _source(source: str) -> str:
    """`source` with an absolute folder. Raises UsageError for an unknown source."""
    kind = paths.slug(source)
    if kind == "made":
        raise UsageError("source 'made' belongs to --scale smoke: use packages, local:DIR or hub.")
    if kind != "local":
        return source
    folder = paths.full(source.partition(":")[2])
    if not folder.is_dir():
        raise PreflightError(f"--source local: there is no folder {folder}.")
    return f"local:{folder}"


Enter = Callable[[argparse.Namespace], None]


def main(
    argv: Sequence[str] | None = None,
    planner: Planner = plan.nodes,
    enter: Enter = lambda args: None,
) -> int:
    """The exit code, after doing what the command line says.

    Args:
        argv: default: the arguments of the process.
        planner: (scale, source, out) -> the nodes in order.
        enter: called before anything needs more than the standard library; may replace this
            process by another Python.
    """
    try:
        return _dispatch(arguments(options.start(argv)), planner, enter)
    except OralError as error:
        print(f"oral: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("\noral: interrupted. Run the same command again to continue.", file=sys.stderr)
        return 130
    except BrokenPipeError:  # of `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if refusal := storage.system_refusal(error):
            print(f"oral: {refusal}", file=sys.stderr)
            return refusal.exit_code
        raise


def _dispatch(args: argparse.Namespace, planner: Planner, enter: Enter) -> int:
    unsaid = args.command == "test" or args.only == [plan.QUICKSTART]  # the same at each scale
    if args.scale_is_default and not unsaid and not os.environ.get(environment.READY):
        _print_scale()
    planned = planner(args.scale, args.source, args.out)
    _check_only(args, planned)
    chosen = graph.select(planned, args.only)
    wanted = graph.with_needs(planned, chosen)
    forced = {node.name for node in (wanted if args.from_scratch else chosen if args.force else ())}
    run = paths.run_folder(args.scale, args.source, args.out)
    if args.wordings != wordings.recorded(run):
        forced |= {node.name for node in wanted if plan.measures_cells(node)}
    if args.list:
        return _list(wanted if args.only else planned)
    if args.command == "doctor":
        enter(args)
        examined = list(doctor.examine(wanted, args.source, args.out))
        print(doctor.table(examined))
        return 3 if any(check.state == "fail" for check in examined) else 0
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
            return outcome.print_failures(args, wanted, failed)
    else:
        what = "the one node is" if len(wanted) == 1 else f"all {len(wanted)} nodes are"
        print(f"nothing to do: {what} done")
        outcome.print_other_commits(args)
    outcome.print_results(args, wanted)
    return 0


def _print_scale() -> None:
    """Says on stderr which scale was chosen for this machine, and how to choose another."""
    scale, reason = scales.machine_scale()
    why = reason
    if scale != "lab":
        detail = "" if reason == machine.NO_TOOL else f" ({reason})"
        why = f"there is no NVIDIA GPU of 40 GB or more{detail}; --scale lab overrides"
    print(f"oral: scale {scale}, since {why}", file=sys.stderr, flush=True)


def _check_only(args: argparse.Namespace, nodes: Sequence[Node]) -> None:
    """Raises UsageError if --only selects an experiment that the scale leaves out, and
    PreflightError if it selects the quickstart and no generator is released."""
    planned = scales.experiments(args.scale, args.source)
    for pattern in args.only or ():
        name = re.match(r"\w*", pattern)[0]
        if name in scales.EXPERIMENT_NAMES and name not in planned:
            missing = scales.not_planned(args.scale, args.source, name)
            raise UsageError(f"--only {pattern!r}: {missing}")
    if plan.QUICKSTART in (args.only or ()) and plan.QUICKSTART not in {n.name for n in nodes}:
        if args.scale == "smoke":
            raise UsageError(
                "--only quickstart: the scale smoke downloads nothing, and the quickstart reads a "
                "real model. Leave out --scale smoke."
            )
        raise paths.nothing_released()


def _list(nodes: Sequence[Node]) -> int:
    width = max(len(node.name) for node in nodes)
    for node in nodes:
        gpu = f", {node.gpu} GPU" if node.gpu else ""
        duration = graph.duration(60 * node.minutes)
        print(f"{node.name:{width}}  {duration:>10}, {node.memory_mb / 1000:.1f} GB{gpu}")
    return 0


def _dry_run(wanted: Sequence[Node], reasons: dict[str, str]) -> int:
    for node in wanted:
        if node.name in reasons:
            print(f"{node.name}: {reasons[node.name]}\n    python {shlex.join(node.command)}")
    minutes = sum(node.minutes for node in wanted if node.name in reasons)
    duration = graph.duration(60 * minutes)
    nodes = _nodes(len(wanted))
    print(f"{len(reasons)} of {len(wanted)} {nodes} would run, about {duration} one by one")
    return 0


def _nodes(number: int) -> str:
    return "node" if number == 1 else "nodes"


def _test(args: argparse.Namespace, enter: Enter) -> int:
    steps = checks.steps(args.extra, args.offline)
    if args.dry_run:
        print("\n".join(f"{step.name}: python {shlex.join(step.command)}" for step in steps))
        return 0
    enter(args)
    failed = checks.run_checks(steps)
    print(f"FAILED: {', '.join(failed)}" if failed else "all checks passed")
    return 1 if failed else 0


def _run(args: argparse.Namespace, wanted: list[Node], forced: set[str]) -> dict[str, str]:
    """The failed nodes with the reason, after running the due nodes under the lock."""
    if args.scale == "paper":
        _check_models(args.scale, args.source)
    folder = paths.run_folder(args.scale, args.source, args.out)
    with lock.hold(args.out / "runs") as locked:
        if args.from_scratch and folder.exists():
            shutil.rmtree(folder)
        if missing := graph.missing_inputs(wanted):
            raise PreflightError(f"{missing[0]} is missing: get the whole repository.")
        graph.same_source(folder / "plan.json", args.source)
        if moved := graph.settle_times(wanted):
            print(
                f"{moved} files have times in the future (was the clock set back?): they get the "
                "present time, in their order. --force runs a node whose notebook you have edited."
            )
        _check_assets(wanted, args.source, args.offline)
        for node in wanted:
            unpublished = any(not Path(path).exists() for path in node.published)
            for path in node.outputs if unpublished or node.name in forced else ():
                Path(path).unlink(missing_ok=True)
        wordings.record(folder, args.wordings)
        due = graph.due(wanted)
        began = time.monotonic()
        print(
            f"{len(due)} of {len(wanted)} {_nodes(len(wanted))} to run; logs in {folder / 'logs'}",
            flush=True,
        )
        failed = engine.run_nodes(
            wanted,
            due,
            folder,
            args.source,
            jobs=args.jobs,
            locked=locked,
            environment=_environment(args),
        )
        done, duration = len(due) - len(failed), graph.duration(time.monotonic() - began)
        print(f"{done} {_nodes(done)} done in {duration}")
        return failed


def _environment(args: argparse.Namespace) -> dict[str, str]:
    """The environment variables of the nodes; the hub is offline unless it is the source."""
    defaults = {"TOKENIZERS_PARALLELISM": "false"}
    # threads that wait sleep: on shared cores they would take most of the time from each other
    defaults |= {"OMP_WAIT_POLICY": "passive"}
    defaults |= {"PYTHONWARNINGS": "ignore::FutureWarning"}  # of libraries, about each other
    defaults |= {"JUPYTER_PREFER_ENV_PATH": "1"}  # or a kernel in the home folder could run
    variables = defaults | dict(os.environ)
    variables |= {"PYTHONPATH": paths.module_path(), "PYTHONUNBUFFERED": "1"}
    if args.offline or args.source != "hub":
        variables |= checks.HUB_OFFLINE
    run = paths.run_folder(args.scale, args.source, args.out)
    return variables | environment.home_variables(run / ".home")


def _check_models(scale: str, source: str) -> None:
    from oral_lib.models import registry

    bases = [plan.base for plan in scales.base_plans(scale, source)]
    if missing := [base for base in bases if not registry.in_reach(base, source)]:
        raise PreflightError(
            f"--scale {scale} needs base models that are not available here: "
            f"{', '.join(missing)}. --dry-run shows the plan; --scale desk runs with models from "
            "Python packages."
        )


def _check_assets(wanted: Sequence[Node], source: str, offline: bool) -> None:
    """Makes an assets node due again if an asset is missing. Raises PreflightError if offline."""
    from oral_lib.assets import sources
    from oral_lib.assets.cache import cache_dir

    for node in wanted:
        experiment, _, step = node.name.rpartition("/")
        if node.name == plan.QUICKSTART:
            from oral_lib.prompting import quickstart
            from oral_lib.zoo import run_folders

            place = run_folders.released_generator(quickstart.RELEASE)
            missing = quickstart.missing_assets(place, source) if offline else []
        elif step == "assets":
            missing = sources.missing(source, experiment or "language")
        else:
            continue
        if missing and offline:
            raise PreflightError(
                f"--offline, but these are not in {cache_dir()}: {', '.join(missing)}. "
                "Run once without --offline."
            )
        for path in node.outputs if missing else ():
            Path(path).unlink(missing_ok=True)


def _enter(args: argparse.Namespace) -> None:
    """Continues in a Python that fits a lock, created if necessary (except by `doctor`)."""
    creates = args.command != "doctor"
    python = (
        environment.prepare_environment(offline=args.offline) if creates else environment.best()
    )
    os.environ.pop(environment.READY, None)
    if python != sys.executable:
        sys.stdout.flush()
        os.environ[environment.READY] = "1"
        # packages in a PYTHONPATH of the user would come before the environment's
        os.environ["PYTHONPATH"] = str(paths.ROOT)
        os.execv(python, [python, "-P", "-m", "oral_lib.workflow.reproduce", *sys.argv[1:]])


if __name__ == "__main__":
    sys.exit(main(enter=_enter))
