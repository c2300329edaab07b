"""What the subcommands of `python -m oral_lib` do, each a function of the parsed arguments.

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
from oral_lib.workflow.parsing import new_folder, refuse_unused, require_writable, short


def print_note(text: str) -> None:
    """Prints a remark, on the stream of errors."""
    print(f"note: {text}", file=sys.stderr, flush=True)


# ---------------------------------------------------------------- generating
def do_generate(args: Namespace) -> None:
    """Generates adapters from a sentence and prints their folders."""
    text = _text(args)
    save, out = _adapter_folder(args)
    if args.generator:
        refuse_unused(args, "with --generator, which is not of a run", "scale")
    new_folder(save, "--save")
    place = _generator(args, out)
    from oral_lib.prompting import prompt

    adapters = prompt.prompt(
        text,
        base=args.base,
        n=args.n,
        seed=args.seed,
        generator=place.folder,
        source=place.source,
    )
    for number, adapter in enumerate(adapters, 1):
        print(adapter.save(save if args.n == 1 else save / f"sample-{number}"))


def _text(args: Namespace) -> str:
    """The checked text of --text, of its older name --task, or of standard input."""
    from oral_lib.documents import sentence

    if args.text is not None and args.task is not None:
        raise UsageError("--task is the older name of --text: use one of them.")
    if args.text is None and args.task is None:
        raise UsageError('--text is missing: describe the task, as in --text "Is it spam?".')
    if args.task is not None:
        print_note("--task is called --text now; in other commands --task is the name of a task")
    text = args.task if args.text is None else args.text
    if text == "-":
        try:
            text = sys.stdin.buffer.read(1 << 24).decode().strip()
        except UnicodeDecodeError as error:
            raise UsageError(f"standard input is not UTF-8: {error.reason}.") from error
    return sentence.check_sentence(text)


def _adapter_folder(args: Namespace) -> tuple[Path, Path]:
    """(the new folder of the adapter, the folder of runs/).

    The older spelling `--out my-lora` is accepted where the folder cannot be that of runs/.
    """
    if args.save:
        if args.generator:
            refuse_unused(args, "with --generator and --save", "out")
        return args.save, args.out or paths.ROOT
    if not args.out:
        raise UsageError("--save is missing: name a new folder for the adapter.")
    if any((args.out / name).exists() for name in ("runs", "results")):
        raise UsageError(
            f"--save is missing: name a new folder for the adapter. --out {args.out} is the "
            "folder of runs/ and results/."
        )
    print_note(f"--out {args.out} is read as --save: --out is the folder of runs/ and results/ now")
    return args.out, paths.ROOT


def _generator(args: Namespace, out: Path):
    """The generator to use; a note says which."""
    from oral_lib.zoo import run_folders

    if args.generator:
        source = {"source": args.source} if args.source else {}
        return run_folders.describe(args.generator, **source)
    place = run_folders.find_generator(args.base, out, args.scale, args.source)
    runs = run_folders.stored_generators(out, args.scale, args.source)
    others = [one.run for one in runs if args.base in one.bases and one != place]
    more = f"; --scale and --source choose another: {', '.join(others)}" if others else ""
    print_note(f"the generator is that of the run {place.run} in {place.folder.parent}{more}")
    return place


def do_bases(args: Namespace) -> None:
    """Lists the base models of the generators here."""
    from oral_lib.workflow import listings
    from oral_lib.zoo import run_folders

    out = args.out or paths.ROOT
    where = out / "runs"
    if args.generator:
        refuse_unused(args, "with --generator", "scale", "source", "out")
        where, listed = args.generator, [run_folders.describe(args.generator)]
        if not (args.generator / "config.json").is_file():
            raise PreflightError(f"no generator in {args.generator}: name its folder.")
    else:
        listed = run_folders.stored_generators(out, args.scale, args.source)
    print("\n".join(listings.base_lines(listed, where)))


def do_tasks(args: Namespace) -> None:
    """Lists the tasks, or shows single ones."""
    from oral_lib.tasks.task import load_task
    from oral_lib.workflow import listings

    blocks = [listings.task_detail(load_task(name), args.source) for name in args.names]
    blocks = blocks or [listings.task_lines(args.source)]
    print("\n\n".join("\n".join(lines) for lines in blocks))


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


def do_bench(args: Namespace) -> None:
    """Times the hot paths."""
    print(_run(args).bench())


def do_profile(args: Namespace) -> None:
    """Times a training step by kernel."""
    print(_run(args).profile(args.base))


# ---------------------------------------------------------------- notebooks
def do_notebook(args: Namespace) -> None:
    """Runs a notebook."""
    notebooks.run_notebook(notebooks.find(args.name), args.output, dict(args.parameter))
    print(args.output)


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

    experiment = getattr(args, "experiment", "")
    if not experiment:  # a base model belongs to one experiment
        from oral_lib.models import registry

        experiment = registry.spec(args.base).experiment
    return Run(scale, source, args.out, experiment)


def _tasks(args: Namespace) -> list[str]:
    """The tasks of a step: the names after --task, else all that the scale plans."""
    if args.task:
        from oral_lib.tasks.task import load_task

        for name in args.task:
            load_task(name)
        return args.task
    base = scales.base_plan(args.scale, args.base, _source(args))
    return list(base.cell_tasks if args.command == "cells" else base.zoo_tasks)


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
    print(_run(args).measure(args.base, _tasks(args)))


def do_zoo(args: Namespace) -> None:
    """Trains the adapters of a base model."""
    seeds = args.seeds or scales.zoo_seeds(args.scale, args.base, _source(args))
    _run(args).train_zoo(args.base, _tasks(args), seeds)


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
