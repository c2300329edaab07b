"""The subcommands about generated adapters, the base models and the tasks they are for.

Imports with the standard library only; a subcommand imports what it needs when it runs.
"""

import shlex
import sys
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from oral_lib import paths
from oral_lib.errors import PreflightError, UsageError
from oral_lib.workflow.parsing import (
    new_folder,
    print_note,
    program,
    refuse_unused,
    require_writable,
)

if TYPE_CHECKING:
    from oral_lib.tasks.task import Task


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
    names = [save] if args.n == 1 else [save / f"sample-{i}" for i in range(1, args.n + 1)]
    size = 0
    for adapter, name in zip(adapters, names, strict=True):
        folder = adapter.save(name)
        size += sum(file.stat().st_size for file in folder.iterdir())
        if not sys.stdout.isatty():  # for scripts; people read the lines below
            print(folder)
    several = f"{args.n} adapters, " if args.n > 1 else ""
    print(f"saved: {save} ({several}{size / 1e6:.1f} MB)", file=sys.stderr)
    if ask := _ask_line(args.base, names[0], adapters[0].task, place.source):
        print(f"next: {ask}", file=sys.stderr)


def _ask_line(base: str, folder: Path, task: "Task | None", source: str) -> str:
    """The command line of `ask` for an adapter; empty if it answers no single input."""
    if task is None or task.scoring in ("option", "match", "style"):
        return ""
    words = [program(), "ask", "--base", base, "--lora", shlex.quote(str(folder))]
    words += ["--source", shlex.quote(source)] if source not in ("packages", "made") else []
    words += [] if task.scoring == "image" else ["--text", '"..."']
    words += ["--image", "FILE"] if task.scoring in ("image", "question") else []
    return " ".join(words)


def do_ask(args: Namespace) -> None:
    """Prints what a base model answers without and with an adapter."""
    texts = [_standard_input() if text == "-" else text for text in args.text or ()]
    if not texts and not args.image:
        raise UsageError('--text is missing: give what to answer, as in --text "A fine film.".')
    if args.lora is None and args.task is None:
        raise UsageError(
            "--lora is missing: name the folder of an adapter. To ask the base model only, name "
            "the form of the answer with --task, such as --task movie."
        )
    if args.lora and not args.lora.is_dir():
        raise paths.no_adapter(args.lora)
    from oral_lib.prompting import answers
    from oral_lib.workflow import listings

    inputs = {"image": args.image, "task": args.task, "source": args.source}
    names = (answers.base_column(args.base),)
    if args.lora is None:
        rows = [(answer,) for answer in answers.ask(args.base, None, texts, **inputs)]
    else:
        task, rows = answers.before_and_after(args.base, args.lora, texts, **inputs)
        names = (*names, f"with {args.lora.name or args.lora}")
        print(f"answers in the form of task {task.name}: {listings.label_list(task)}")
    print("\n".join(listings.answer_lines(rows, names, args.image)))


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
    return sentence.check_sentence(_standard_input() if text == "-" else text)


def _standard_input() -> str:
    """The text on standard input. UsageError if it is not UTF-8."""
    try:
        return sys.stdin.buffer.read(1 << 24).decode().strip()
    except UnicodeDecodeError as error:
        raise UsageError(f"standard input is not UTF-8: {error.reason}.") from error


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
    if place.release:
        print_note(place.note)
        return place
    others = [one.run for one in runs if args.base in one.bases and one != place]
    more = f"; --scale and --source choose another: {', '.join(others)}" if others else ""
    print_note(f"the generator is that of the run {place.run} in {place.folder.parent}{more}")
    return place


def do_release(args: Namespace) -> None:
    """Writes the release of a run's generator and prints its folder."""
    source = "made" if args.scale == "smoke" else args.source
    folder = paths.release_folder(args.scale, args.out)
    require_writable(folder)
    from oral_lib.prompting import release

    print(release.write_release(args.scale, source, args.out))


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
        listed += run_folders.released_generators(args.scale, args.source)
    print("\n".join(listings.base_lines(listed, where)))


def do_tasks(args: Namespace) -> None:
    """Lists the tasks, or shows single ones."""
    from oral_lib.tasks.task import load_task
    from oral_lib.workflow import listings
    from oral_lib.zoo import run_folders

    blocks = [listings.task_detail(load_task(name), args.source) for name in args.names]
    if not blocks:
        generators = run_folders.stored_generators() + run_folders.released_generators()
        blocks = [listings.task_lines(args.source, generators)]
    print("\n\n".join("\n".join(lines) for lines in blocks))
