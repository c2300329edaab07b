"""The subcommands about runs: reports, notebooks, steps of the plan, work on the project.

Imports with the standard library only; a subcommand imports what it needs when it runs.
"""

import shlex
import sys
from argparse import Namespace
from pathlib import Path

from oral_lib import paths, scales
from oral_lib.errors import PreflightError, UsageError
from oral_lib.experiments.records import EXPERIMENTS
from oral_lib.runner import doctor, environment
from oral_lib.workflow import notebooks, plan
from oral_lib.workflow.parsing import (
    new_folder,
    print_note,
    refuse_unused,
    require_writable,
    short,
)


# ---------------------------------------------------------------- reporting
def do_report(args: Namespace) -> None:
    """Publishes the finished cells of a run; without a run, reports what is published."""
    from oral_lib.zoo import run_folders

    runs = [
        place[:2]
        for place in run_folders.run_places(args.scale, args.source)
        if place[2] == args.experiment and _has_cells(*place, args.out)
    ]
    if runs:
        scale, source = runs[0]
        if source == run_folders.LOCAL:
            source = run_folders.local_source(
                paths.experiment_folder(scale, source, args.out, args.experiment)
            )
        if len(runs) > 1:
            others = ", ".join(f"{scale} ({paths.slug(source)})" for scale, source in runs[1:])
            print_note(
                f"reports the run {scale} ({paths.slug(source)}); --scale and --source choose "
                f"another: {others}"
            )
        print(_run(args, scale, source).publish())
        return
    results = args.out / "results"
    published = [
        scale
        for scale in ([args.scale] if args.scale else scales.SCALES)
        if (results / scale / "metrics.csv").is_file()
    ]
    if not published:
        where = f" of scale {args.scale}" if args.scale else ""
        raise PreflightError(
            f"{args.out} has neither finished cells nor published results{where}: run "
            "./reproduce.sh first, or name the folder of runs/ and results/ with --out."
        )
    for scale in published:
        require_writable(results / scale)
    from oral_lib.report import build

    for scale in published:
        path = build.write_report(results, scale)
    print_note(
        f"no finished cells of a run: the report is made of {', '.join(published)} in {results}"
    )
    print(path)


def _has_cells(scale: str, source: str, experiment: str, out: Path) -> bool:
    folder = paths.experiment_folder(scale, source, out, experiment)
    return any(folder.glob("cells/*/metrics.csv"))


def do_judge(args: Namespace) -> None:
    """Adds rows of stored adapters to published results and prints their number."""
    folder = paths.results_folder(args.scale, args.out)
    if not (folder / "metrics.csv").is_file():
        raise PreflightError(
            f"{folder} has no published results: run ./reproduce.sh first, or name the folder of "
            "results/ with --out."
        )
    require_writable(folder)
    from oral_lib.experiments.side_tables import published
    from oral_lib.workflow import publish

    with publish.writing(folder):
        counts = published.add_chosen(folder)
    for name, count in sorted(counts.items()):
        print(f"{name}: rows of {count} cells")


def do_bench(args: Namespace) -> None:
    """Times the hot paths."""
    run = _run(args)
    if not run.record.has_splits:
        print(run.bench())
        return
    from oral_lib.evaluation.small_tables import BENCHMARKS
    from oral_lib.experiments.studies.through_base_speed import through_base_rows
    from oral_lib.workflow import publish

    for planned in run.planned:
        timings = through_base_rows(run.base(planned.base), scale=run.scale, source=run.source)
        with publish.writing(run.results):
            BENCHMARKS.append(run.results, timings)
    print(BENCHMARKS.path(run.results))


def do_profile(args: Namespace) -> None:
    """Times a training step by kernel."""
    print(_run(args).profile(args.base))


# ---------------------------------------------------------------- notebooks
def do_notebook(args: Namespace) -> None:
    """Runs a notebook."""
    notebooks.run_notebook(notebooks.find(args.name), args.output, dict(args.parameter))
    print(args.output)


def do_notebooks(args: Namespace) -> None:
    """Runs notebooks and writes them as pages."""
    from oral_lib.report import build
    from oral_lib.workflow import publish

    for name in args.names or publish.EXECUTED:
        print(publish.publish_notebook(name, args.scale, _source(args), args.out), flush=True)
    print(build.write_contents(args.out / "results"))


def do_sweep(args: Namespace) -> int:
    """Runs the cells of a sweep."""
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


def do_twins(args: Namespace) -> int:
    """Writes or checks the .ipynb twins."""
    if not args.folder.is_dir():
        raise UsageError(f"there is no folder {args.folder}: name that of the notebooks.")
    if args.check:
        differing = notebooks.differing(args.folder)
        for path in differing:
            print(f"{path} differs from its .py: run python -m oral_lib twins", file=sys.stderr)
        return 1 if differing else 0
    for path in notebooks.write_twins(args.folder):
        print(path)
    return 0


# ---------------------------------------------------------------- the machine
def do_doctor(args: Namespace) -> int:
    """Prints what is installed on this machine."""
    source = _source(args)
    nodes = plan.nodes(args.scale, source, args.out)
    checks = list(doctor.examine(nodes, source, args.out))
    print(doctor.table(checks))
    return 3 if any(check.state == "fail" for check in checks) else 0


def _source(args: Namespace) -> str:
    """The source to read; the smoke scale generates its data."""
    source = "made" if args.scale == "smoke" else args.source
    paths.slug(source)
    return source


# ---------------------------------------------------------------- steps of the plan
def do_assets(args: Namespace) -> None:
    """Downloads and converts models and data."""
    from oral_lib import storage
    from oral_lib.assets import sources
    from oral_lib.assets.cache import cache_dir

    source = _source(args)
    if args.tests:
        refuse_unused(
            args, "with --tests, which fetches the assets of all experiments", "experiment"
        )
    args.experiment = args.experiment or "language"
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


def _run(args: Namespace, scale: str = "", source: str = ""):
    """The run that a command belongs to. PreflightError if its folders cannot be written."""
    scale = scale or args.scale
    source = source or args.source
    run_folder = paths.run_folder(scale, "made" if scale == "smoke" else source, args.out)
    for folder in (run_folder, paths.results_folder(scale, args.out)):
        require_writable(folder)
    from oral_lib.workflow.run import Run

    return Run(scale, source, args.out, _experiment(args))


def _experiment(args: Namespace) -> str:
    """The experiment of a command: that of its option, else the one that its base model is in."""
    if experiment := getattr(args, "experiment", ""):
        return experiment
    from oral_lib.models import registry

    return registry.spec(args.base).experiment if args.base else "language"


def _bases(args: Namespace) -> list[str]:
    """The base models of a step: the one after --base, else all of an experiment with splits.

    UsageError without --base for another experiment, whose base models take hours.
    """
    experiment = _experiment(args)
    if not args.base and not EXPERIMENTS[experiment].has_splits:
        raise UsageError(f"experiment {experiment!r}: name a base model with --base.")
    plans = scales.base_plans(args.scale, _source(args), experiment)
    return [args.base] if args.base else [plan.base for plan in plans]


def _tasks(args: Namespace, base: str = "") -> list[str]:
    """The tasks of a step: the names after --task, else all that the scale plans."""
    experiment = _experiment(args)
    if args.task and not EXPERIMENTS[experiment].has_splits:
        from oral_lib.tasks.task import load_task

        for name in args.task:
            load_task(name)
    if args.task:
        return args.task
    plan = scales.base_plan(args.scale, base or args.base, _source(args), experiment)
    return list(plan.cell_tasks if args.command == "cells" else plan.zoo_tasks)


def do_tune(args: Namespace) -> None:
    """Chooses learning rates and steps."""
    _run(args).tune(args.base, _tasks(args))


def do_evolve(args: Namespace) -> None:
    """Trains a later version of a base model."""
    print(_run(args).evolve(args.base))


def do_align(args: Namespace) -> None:
    """Combines two models into a two-tower model."""
    print(_run(args).align(args.base))


def do_cells(args: Namespace) -> None:
    """Measures the cells of a base model."""
    run = _run(args)
    if args.wordings:
        from oral_lib.tasks import wordings

        wordings.record(paths.run_folder(run.scale, run.source, run.out), args.wordings)
    for base in _bases(args):
        print(run.measure(base, _tasks(args, base)))


def do_zoo(args: Namespace) -> None:
    """Trains the adapters of a base model, or of all base models of an experiment."""
    run = _run(args)
    for base in _bases(args):
        plan = scales.base_plan(args.scale, base, _source(args), _experiment(args))
        run.train_zoo(base, _tasks(args, base), args.seeds or plan.all_seeds)


def do_rivals(args: Namespace) -> None:
    """Trains what the generators of an experiment with splits are compared with."""
    run = _run(args)
    for base in _bases(args):
        print(run.train_rivals(base))


def do_train(args: Namespace) -> None:
    """Trains a generator or baseline of a run, or a generator on a manifest."""
    if args.manifest:
        return _train_on_manifest(args)
    if not args.kind:
        raise UsageError(
            f"name what to train ({', '.join(scales.generators('lab'))}), or adapters of your own "
            "with --manifest FILE."
        )
    reason = "without --manifest: a run has its folder and its settings"
    refuse_unused(args, reason, "save", "text-encoder", "steps", "seed")
    args.scale, args.out = args.scale or scales.default_scale(), args.out or paths.ROOT
    args.experiment = args.experiment or "language"
    _run(args).train_generator(args.kind)


def _train_on_manifest(args: Namespace) -> None:
    if args.kind:
        raise UsageError(f"--manifest always trains a generator: leave out {short(args.kind)}.")
    if not args.save:
        raise UsageError("--manifest needs --save FOLDER, a new folder for the generator.")
    refuse_unused(args, "with --manifest, which belongs to no run", "scale", "out", "experiment")
    new_folder(args.save, "--save")
    from oral_lib.workflow import own_adapters

    folder, base = own_adapters.train_generator(
        args.manifest,
        args.save,
        text_encoder=args.text_encoder or "minilm-l6",
        steps=args.steps,
        seed=args.seed or 0,
        source=args.source,
    )
    command = [*environment.project_command(), "generate", "--generator", str(folder)]
    command += ["--base", base, "--text", "what the adapter has to do", "--save", "my-lora"]
    print(f"generator: {folder}\nnext: {shlex.join(command)}")
