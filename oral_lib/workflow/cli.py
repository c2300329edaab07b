"""The command line `python -m oral_lib`: one subcommand for each step of a run.

Imports with the standard library only; a subcommand imports what it needs when it runs.
"""

import argparse
import os
import shlex
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from oral_lib import paths, scales
from oral_lib.errors import OralError, UsageError
from oral_lib.experiments.records import EXPERIMENTS
from oral_lib.runner import doctor, worker
from oral_lib.workflow import notebooks, options, plan

CODES = "exit codes: 0 done, 1 failed, 2 usage or parameters, 3 preflight, 130 interrupted"
RUN = ("--scale", "--source", "--out")  # the options that choose a run


# ---------------------------------------------------------------- the parser
def parser() -> argparse.ArgumentParser:
    """The parser of all subcommands; each sets `call`, a function of the parsed arguments."""
    root = argparse.ArgumentParser(
        prog="python -m oral_lib",
        description="ORAL, step by step; ./reproduce.sh runs all steps in order.",
        epilog=CODES,
        allow_abbrev=False,
    )
    commands = root.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, call: Callable, about: str, *shared: str) -> argparse.ArgumentParser:
        """Adds a subcommand with the options `shared`."""
        added = commands.add_parser(
            name, help=about, description=about, epilog=CODES, allow_abbrev=False
        )
        added.set_defaults(call=call)
        options.add(added, *shared)
        return added

    about = "download and convert the models and data of a source"
    sub = command("assets", _assets, about, *RUN, "--experiment", "--offline")
    sub.add_argument("names", nargs="*", help="default: all")
    sub.add_argument("--tests", action="store_true", help="also what the tests need")

    about = "choose learning rates and steps on validation rows"
    sub = command("tune", _tune, about, *RUN, "--task")
    sub.add_argument("--base", required=True)

    sub = command("evolve", _evolve, "train a later version of a base model", *RUN)
    sub.add_argument("--base", required=True, help="such as smollm2-135m-t4")

    sub = command("align", _align, "combine two models into a two-tower model", *RUN)
    sub.add_argument("--base", required=True, help="such as towers")

    sub = command("zoo", _zoo, "train the adapters of one base model", *RUN, "--task")
    sub.add_argument("--base", required=True)
    sub.add_argument("--seeds", type=int, nargs="+", help="default: all seeds of the scale")

    about = "train a generator, or a baseline, on the zoo or on your own adapters"
    sub = command("train", _train, about, *RUN, "--experiment")
    sub.add_argument("kind", nargs="?", choices=(*scales.generators("lab"), "multitask"))
    group = sub.add_argument_group("adapters of your own (no zoo, scale or experiment)")
    group.add_argument(
        "--manifest", type=Path, metavar="FILE", help="JSON lines: path, text and optional base"
    )
    group.add_argument(
        "--save", type=Path, metavar="FOLDER", help="the new folder of the generator"
    )
    group.add_argument(
        "--text-encoder",
        default="minilm-l6",
        help="default: minilm-l6; hashed-words needs no files",
    )
    group.add_argument("--steps", type=int, help="of training")
    group.add_argument("--seed", type=int, default=0)

    sub = command("cells", _cells, "measure the cells of one base model", *RUN, "--task")
    sub.add_argument("--base", required=True)

    about = "generate a LoRA adapter from one sentence"
    sub = command("generate", _generate, about, "--scale", "--source")
    sub.add_argument("--task", required=True, metavar="TEXT", help="what the adapter has to do")
    sub.add_argument("--base", required=True, help="the base model of the adapter")
    options.add(sub, "--out", required=True, default=None, help="the new folder of the adapter")
    sub.add_argument("--generator", type=Path, help="its folder; default: of --scale and --source")
    sub.add_argument("--n", type=int, default=1, help="number of adapters")
    sub.add_argument("--seed", type=int, default=0)

    sub = command("notebook", _notebook, "run one notebook with checked parameters")
    sub.add_argument("name", help="a notebook of the project, or a path")
    sub.add_argument("output", type=Path, help="the executed notebook")
    sub.add_argument(
        "-p",
        "--parameter",
        action="append",
        nargs=2,
        default=[],
        metavar=("NAME", "VALUE"),
        help="a parameter; the value is JSON or a plain word",
    )

    about = "run the cells of a sweep file that have not run yet"
    sub = command("sweep", _sweep, about, "--out", "--jobs", "--dry-run", "--offline")
    sub.add_argument("file", type=Path, help="such as notebooks/sweeps/language.yaml")
    options.add(sub, "--scale", "--source", default=None, help="default: that of the file")

    sub = command("twins", _twins, "write notebooks/*.ipynb from notebooks/*.py")
    sub.add_argument("--check", action="store_true", help="change nothing, fail if they differ")
    sub.add_argument("--folder", type=Path, default=paths.ROOT / "notebooks")

    command("doctor", _doctor, "check what is installed on this machine", *RUN)
    about = "time the hot paths next to a plain implementation, and report again"
    command("bench", _bench, about, *RUN, "--experiment")
    sub = command("profile", _profile, "time a training step of a base model by kernel", *RUN)
    sub.add_argument("--base", required=True)
    about = "publish the finished cells: tables, figures and README.md"
    command("report", _report, about, *RUN, "--experiment")
    return root


# ---------------------------------------------------------------- exit codes
def main(argv: Sequence[str] | None = None) -> int:
    """The exit code of a subcommand; an error is printed in one line.

    Args:
        argv: default: the arguments of the process.
    """
    try:
        args = parser().parse_args(options.start(argv))
        return args.call(args) or 0
    except OralError as error:
        print(f"oral: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt as error:
        print(f"oral: interrupted{error}", file=sys.stderr)
        return 130
    except Exception as error:
        where = _write_traceback()
        print(f"oral: {type(error).__name__}: {error} (traceback: {where})", file=sys.stderr)
        return 1


def _write_traceback() -> str:
    """Where the traceback was written: to a file, or under a worker to the log of the node."""
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


# ---------------------------------------------------------------- the subcommands
def _source(args: argparse.Namespace) -> str:
    """The source to read; the smoke scale generates its data."""
    source = "made" if args.scale == "smoke" else args.source
    paths.slug(source)
    return source


def _assets(args: argparse.Namespace) -> None:
    from oral_lib import storage
    from oral_lib.assets import sources
    from oral_lib.assets.cache import cache_dir

    source = _source(args)
    if EXPERIMENTS[args.experiment].requires_diffusers:
        from oral_lib.models import latent_diffusion

        latent_diffusion.need_diffusers()
    for experiment in EXPERIMENTS if args.tests else [args.experiment]:
        sources.prepare(
            args.names or None, source=source, experiment=experiment, offline=args.offline
        )
    if args.tests:
        sources.lm_eval_wheel(offline=args.offline)
    if not args.names:
        out = args.out.absolute()
        folder = paths.experiment_folder(args.scale, source, out, args.experiment)
        content = {"source": source, "cache": str(cache_dir())}
        storage.write_json(folder / "assets.json", content)
    print(f"models and data of source {source} are ready")


def _run(args: argparse.Namespace):
    from oral_lib.workflow.run import Run

    experiment = getattr(args, "experiment", "")
    if not experiment:  # a base model belongs to one experiment
        from oral_lib.models import registry

        experiment = registry.spec(args.base).experiment
    return Run(args.scale, args.source, args.out, experiment)


def _tasks(args: argparse.Namespace) -> list[str]:
    if args.task:
        from oral_lib.tasks.task import load_task

        for name in args.task:
            load_task(name)
        return args.task
    base = scales.base_plan(args.scale, args.base, _source(args))
    return list(base.cell_tasks if args.command == "cells" else base.zoo_tasks)


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
    if args.manifest:
        return _train_on_manifest(args)
    if args.save:
        raise UsageError("--save belongs to --manifest: a run stores its generator in its folder.")
    if not args.kind:
        raise UsageError(
            f"name what to train ({', '.join(scales.generators('lab'))}), or adapters of your own "
            "with --manifest FILE."
        )
    _run(args).train_generator(args.kind)


def _train_on_manifest(args: argparse.Namespace) -> None:
    if args.kind:
        raise UsageError(f"--manifest always trains a generator: leave out {args.kind!r}.")
    if not args.save:
        raise UsageError("--manifest needs --save FOLDER, a new folder for the generator.")
    from oral_lib.workflow import own_adapters

    folder, base = own_adapters.train_generator(
        args.manifest,
        args.save,
        text_encoder=args.text_encoder,
        steps=args.steps,
        seed=args.seed,
        source=args.source,
    )
    command = ["python", "-m", "oral_lib", "generate", "--generator", str(folder), "--base", base]
    command += ["--task", "what the adapter has to do", "--out", "my-lora"]
    print(f"generator: {folder}\nnext: {shlex.join(command)}")


def _generate(args: argparse.Namespace) -> None:
    if args.n < 1:
        raise UsageError(f"--n {args.n}: use 1 or more adapters.")
    if args.out.is_file() or (args.out.is_dir() and any(args.out.iterdir())):
        raise UsageError(f"{args.out} is not empty: name another folder with --out.")
    from oral_lib import generator

    adapters = generator.prompt(
        args.task,
        base=args.base,
        n=args.n,
        seed=args.seed,
        generator=args.generator,
        scale=args.scale,
        source=args.source,
    )
    for number, adapter in enumerate(adapters):
        print(adapter.save(args.out if args.n == 1 else args.out / f"sample-{number}"))


def _notebook(args: argparse.Namespace) -> None:
    notebooks.run_notebook(notebooks.find(args.name), args.output, dict(args.parameter))
    print(args.output)


def _sweep(args: argparse.Namespace) -> int:
    from oral_lib.workflow import sweeps

    return sweeps.run_sweep(
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
        differing = notebooks.differing(args.folder)
        for path in differing:
            print(f"{path} differs from its .py: run python -m oral_lib twins", file=sys.stderr)
        return 1 if differing else 0
    for path in notebooks.write_twins(args.folder):
        print(path)
    return 0


def _doctor(args: argparse.Namespace) -> int:
    source = _source(args)
    nodes = plan.nodes(args.scale, source, args.out)
    checks = list(doctor.examine(nodes, source, args.out))
    print(doctor.table(checks))
    return 3 if any(check.state == "fail" for check in checks) else 0


def _report(args: argparse.Namespace) -> None:
    print(_run(args).publish())


def _bench(args: argparse.Namespace) -> None:
    print(_run(args).bench())


def _profile(args: argparse.Namespace) -> None:
    print(_run(args).profile(args.base))
