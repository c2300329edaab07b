"""The command line `python -m oral_lib`: a subcommand for each step that a person or the plan runs.

Imports with the standard library alone; a subcommand imports what it needs when it runs.
"""

import argparse
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from oral_lib import paths, scales
from oral_lib.errors import OralError, UsageError
from oral_lib.runner import doctor, worker
from oral_lib.workflow import notebooks, plan, reproduce

CODES = "exit codes: 0 done, 1 failed, 2 usage or parameters, 3 preflight, 130 interrupted"


def parser() -> argparse.ArgumentParser:
    """The parser of all subcommands; each sets `call`, which takes the parsed arguments."""
    root = argparse.ArgumentParser(
        prog="python -m oral_lib",
        description="ORAL, step by step; ./reproduce.sh runs all steps in order.",
        epilog=CODES,
        allow_abbrev=False,
    )
    commands = root.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, call, about: str, *, run: bool = True) -> argparse.ArgumentParser:
        made = commands.add_parser(
            name, help=about, description=about, epilog=CODES, allow_abbrev=False
        )
        made.set_defaults(call=call)
        if run:
            made.add_argument(
                "--scale", choices=tuple(scales.SCALES), default=scales.default_scale()
            )
            made.add_argument("--source", default="packages", help="packages, local:DIR or hub")
            made.add_argument(
                "--out", type=Path, default=paths.ROOT, help="holds runs/ and results/"
            )
        return made

    def experiment(made: argparse.ArgumentParser) -> None:
        made.add_argument("--experiment", choices=scales.EXPERIMENTS, default="language")

    one = command("assets", _assets, "fetch and convert the models and data that a source needs")
    one.add_argument("names", nargs="*", help="some of them instead of all")
    experiment(one)
    one.add_argument("--tests", action="store_true", help="and what the tests read")
    one.add_argument("--offline", action="store_true", help="fail instead of fetching")

    one = command("tune", _tune, "choose learning rates and steps on validation rows")
    one.add_argument("--base", required=True)
    one.add_argument("--task", nargs="+", help="instead of all that the scale has for it")

    one = command("evolve", _evolve, "make a later version of a model by training it further")
    one.add_argument("--base", required=True, help="such as smollm2-135m-t4")

    one = command("align", _align, "make a two-tower model out of two others")
    one.add_argument("--base", required=True, help="such as towers")

    one = command("zoo", _zoo, "train the adapters of one base model")
    one.add_argument("--base", required=True)
    one.add_argument("--task", nargs="+", help="instead of all that the scale has for it")
    one.add_argument("--seeds", type=int, nargs="+", help="instead of the scale's")

    one = command("train", _train, "train the generator, or a baseline of it, on the zoo")
    one.add_argument("kind", choices=(*scales.generators("lab"), "multitask"))
    experiment(one)

    one = command("cells", _cells, "measure the cells of one base model in one process")
    one.add_argument("--base", required=True)
    one.add_argument("--task", nargs="+", help="instead of all that the scale has for it")

    one = command("generate", _generate, "make a LoRA adapter from one sentence", run=False)
    one.add_argument("--task", required=True, metavar="TEXT", help="what the adapter is to do")
    one.add_argument("--base", required=True, help="the base model it is for")
    one.add_argument("--out", type=Path, required=True, help="the folder to write")
    one.add_argument("--generator", type=Path, help="its folder; else the one of --scale, --source")
    one.add_argument("--n", type=int, default=1, help="how many")
    one.add_argument("--seed", type=int, default=0)
    one.add_argument("--scale", choices=tuple(scales.SCALES), default=scales.default_scale())
    one.add_argument("--source", default="packages")

    one = command("notebook", _notebook, "run one notebook with checked parameters", run=False)
    one.add_argument("name", help="a notebook of the project, or a path")
    one.add_argument("output", type=Path, help="the executed notebook")
    one.add_argument(
        "-p",
        "--parameter",
        action="append",
        nargs=2,
        default=[],
        metavar=("NAME", "VALUE"),
        help="a parameter; the value is JSON, or a plain word",
    )

    one = command("sweep", _sweep, "run the cells of a sweep file that were not run yet", run=False)
    one.add_argument("file", type=Path, help="such as notebooks/sweeps/language.yaml")
    one.add_argument("--scale", choices=tuple(scales.SCALES), help="instead of the file's")
    one.add_argument("--source", help="instead of the file's")
    one.add_argument("--out", type=Path, default=paths.ROOT, help="holds runs/ and results/")
    one.add_argument("--jobs", type=reproduce.jobs, default=1, metavar="N", help="at a time (1)")
    one.add_argument("--dry-run", action="store_true", help="say what would run, and why")
    one.add_argument("--offline", action="store_true", help="fail instead of fetching")

    one = command("twins", _twins, "make notebooks/*.ipynb from notebooks/*.py", run=False)
    one.add_argument("--check", action="store_true", help="change nothing, fail if they differ")
    one.add_argument("--folder", type=Path, default=paths.ROOT / "notebooks")

    command("doctor", _doctor, "say what this machine has and lacks")
    experiment(command("bench", _bench, "time the hot paths beside the plain way, report again"))
    one = command("profile", _profile, "where a training step of a base model goes, by kernel")
    one.add_argument("--base", required=True)
    about = "publish the finished cells: tables, figures and README.md"
    experiment(command("report", _report, about))
    return root


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a subcommand; returns its exit code and leaves one line about anything that fails."""
    args = parser().parse_args(argv)
    try:
        return args.call(args) or 0
    except OralError as error:
        print(f"oral: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("oral: interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        where = _keep_traceback()
        print(f"oral: {type(error).__name__}: {error} (traceback: {where})", file=sys.stderr)
        return 1


def _keep_traceback() -> str:
    """Puts the traceback where it can be read later; under a worker that is the node's log."""
    if os.environ.get(worker.EVENTS):
        traceback.print_exc()
        return "above"
    path = Path("oral-error.log").absolute()
    try:
        path.write_text(traceback.format_exc(), encoding="utf-8")
    except OSError:
        traceback.print_exc()
        return "above"
    return str(path)


def _source(args: argparse.Namespace) -> str:
    """The source to read: what the smoke scale needs is made on the spot."""
    source = "made" if args.scale == "smoke" else args.source
    paths.slug(source)
    return source


def _assets(args: argparse.Namespace) -> None:
    from oral_lib import storage
    from oral_lib.assets import sources
    from oral_lib.assets.cache import cache_dir

    source = _source(args)
    if args.experiment == "style":
        from oral_lib.models import latent_diffusion

        latent_diffusion.need_diffusers()
    for experiment in scales.EXPERIMENTS if args.tests else [args.experiment]:
        how = {"source": source, "experiment": experiment, "offline": args.offline}
        sources.prepare(args.names or None, **how)
    if args.tests:
        sources.lm_eval_wheel(offline=args.offline)
    if not args.names:
        done = {"source": source, "cache": str(cache_dir())}
        out = args.out.absolute()
        folder = paths.experiment_folder(args.scale, source, out, args.experiment)
        storage.write_json(folder / "assets.json", done)
    print(f"models and data of source {source} are ready")


def _run(args: argparse.Namespace):
    from oral_lib.workflow.run import Run

    experiment = getattr(args, "experiment", "")
    if not experiment:  # a base model takes part in one alone
        from oral_lib.models import registry

        experiment = registry.spec(args.base).experiment
    return Run(args.scale, args.source, args.out, experiment)


def _tasks(args: argparse.Namespace) -> list[str]:
    if args.task:
        from oral_lib.tasks.task import load_task

        for name in args.task:
            load_task(name)
        return args.task
    cells = scales.base_plan(args.scale, args.base, _source(args))
    return list(cells.cell_tasks if args.command == "cells" else cells.zoo_tasks)


def _tune(args: argparse.Namespace) -> None:
    _run(args).tune(args.base, _tasks(args))


def _evolve(args: argparse.Namespace) -> None:
    print(_run(args).evolve(args.base))


def _align(args: argparse.Namespace) -> None:
    print(_run(args).align(args.base))


def _cells(args: argparse.Namespace) -> None:
    print(_run(args).measure(args.base, _tasks(args)))


def _zoo(args: argparse.Namespace) -> None:
    seeds = args.seeds or scales.zoo_seeds(args.scale, args.base, _source(args))
    _run(args).train_zoo(args.base, _tasks(args), seeds)


def _train(args: argparse.Namespace) -> None:
    _run(args).train_generator(args.kind)


def _generate(args: argparse.Namespace) -> None:
    if args.n < 1:
        raise UsageError(f"--n {args.n} makes no adapter: use 1 or more.")
    if args.out.is_file() or (args.out.is_dir() and any(args.out.iterdir())):
        raise UsageError(f"{args.out} is in use: name another folder with --out.")
    from oral_lib import generator

    made = generator.prompt(
        args.task,
        base=args.base,
        n=args.n,
        seed=args.seed,
        generator=args.generator,
        scale=args.scale,
        source=args.source,
    )
    for place, lora in enumerate(made):
        print(lora.save(args.out if args.n == 1 else args.out / f"sample-{place}"))


def _notebook(args: argparse.Namespace) -> None:
    given = dict(args.parameter)
    notebooks.run(notebooks.find(args.name), args.output, given)
    print(args.output)


def _sweep(args: argparse.Namespace) -> int:
    from oral_lib.workflow import sweeps

    return sweeps.run(
        args.file,
        scale=args.scale,
        source=args.source,
        out=args.out,
        jobs=args.jobs,
        dry_run=args.dry_run,
        offline=args.offline,
    )


def _twins(args: argparse.Namespace) -> int:
    if args.check:
        wrong = notebooks.differing(args.folder)
        for path in wrong:
            print(f"{path} is not what its .py says: run python -m oral_lib twins", file=sys.stderr)
        return 1 if wrong else 0
    for path in notebooks.write(args.folder):
        print(path)
    return 0


def _doctor(args: argparse.Namespace) -> int:
    source = _source(args)
    found = list(doctor.examine(plan.nodes(args.scale, source, args.out), source, args.out))
    print(doctor.table(found))
    return 3 if any(check.state == "fail" for check in found) else 0


def _report(args: argparse.Namespace) -> None:
    print(_run(args).publish())


def _bench(args: argparse.Namespace) -> None:
    print(_run(args).bench())


def _profile(args: argparse.Namespace) -> None:
    print(_run(args).profile(args.base))
