"""The command line `python -m oral_lib`, also called `oral`: the parser and the exit codes.

Imports with the standard library only; a subcommand imports what it needs when it runs.
"""

import os
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from oral_lib import __version__, paths, scales, storage
from oral_lib.errors import OralError, memory_fault
from oral_lib.experiments.records import EXPERIMENTS
from oral_lib.runner import worker
from oral_lib.workflow import options
from oral_lib.workflow.commands import adapters, quickstart, runs
from oral_lib.workflow.parsing import SEEDS, Parser, path, program, whole

CODES = """\
exit codes:
  0    done
  1    failed, or a damaged file
  2    a wrong command, option, value or name
  3    something is missing that the command requires: a model, data, a generator, disk, permission
  130  interrupted"""
RUN = ("--scale", "--source", "--out")  # the options that choose a run
COMMAND_GROUPS = {
    "use": "commands for users",
    "plan": "steps of the plan, which ./reproduce.sh runs in order",
    "work": "commands for work on the project",
}
EXPERIMENT_HELP = "default: the one that the base model is in, else language"
TEXT_HELP = "what the adapter has to do; - reads the text from standard input"
SAVE_HELP = "the new folder of the adapter"


# ---------------------------------------------------------------- the parser
class _Commands:
    """Adds subcommands to a parser, and lists them by group in its help."""

    def __init__(self, root: Parser):
        self.root, self.lines = root, {group: [] for group in COMMAND_GROUPS}
        self.parsers = root.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(
        self, group: str, name: str, call: Callable, about: str, example: str, *shared: str
    ) -> Parser:
        """Adds a subcommand with the options `shared`; `example` is its command line."""
        self.lines[group].append(f"  {name:10} {about}")
        sections = [
            f"{title}:\n" + "\n".join(self.lines[key]) for key, title in COMMAND_GROUPS.items()
        ]
        self.root.description = "\n\n".join(["ORAL: one sentence in, a LoRA out.", *sections])
        epilog = f"example:\n  {self.root.prog} {example}\n\n{CODES}"
        added = self.parsers.add_parser(name, description=about, epilog=epilog)
        added.set_defaults(call=call, example=example)
        options.add(added, *shared)
        return added


def parser() -> Parser:
    """The parser of all subcommands; each sets `call`, a function of the parsed arguments."""
    root = Parser(prog=program(), epilog=CODES)
    root.add_argument("--version", action="version", version=f"oral {__version__}")
    added = _Commands(root)
    _add_uses(added)
    _add_steps(added)
    _add_work(added)
    return root


def _add_uses(added: _Commands) -> None:
    """The commands for users."""
    about = "a first look: the released generator, one sentence, three answers"
    example = "quickstart --save first-look"
    sub = added.add("use", "quickstart", quickstart.do_quickstart, about, example, "--offline")
    options.add(sub, "--source", default=None, help="where models are read from")
    about = "the folder of the adapter and answers.json"
    sub.add_argument("--save", type=path, required=True, metavar="FOLDER", help=about)

    about = "generate a LoRA adapter from one sentence"
    example = 'generate --text "Is the review positive?" --base smollm2-135m --save my-lora'
    sub = added.add("use", "generate", adapters.do_generate, about, example)
    sub.add_argument("--text", metavar="TEXT", help=TEXT_HELP)
    sub.add_argument("--task", metavar="TEXT", help="the older name of --text")
    sub.add_argument("--base", required=True, help="the base model of the adapter: see `bases`")
    sub.add_argument("--save", type=path, metavar="FOLDER", help=SAVE_HELP)
    sub.add_argument("--generator", type=path, metavar="FOLDER", help="default: that of a run")
    about = "choose among the runs (default: the largest scale that has the base model)"
    group = sub.add_argument_group(about)
    options.add(group, "--scale", "--source", "--out", default=None)
    sub.add_argument("--n", type=whole(1, 1000), default=1, help="number of adapters")
    sub.add_argument("--seed", type=whole(*SEEDS), default=0, help="same seed, same adapters")

    about = "answer inputs with a base model, without and with an adapter"
    example = 'ask --base smollm2-135m --lora my-lora --text "Leaks treacle from every pore."'
    sub = added.add("use", "ask", adapters.do_ask, about, example, "--source")
    sub.add_argument("--base", required=True, help="the base model of the adapter")
    sub.add_argument("--lora", type=path, metavar="FOLDER", help="a saved adapter (PEFT)")
    help_text = "what to answer; - reads it from standard input; several times for several inputs"
    sub.add_argument("--text", action="append", metavar="TEXT", help=help_text)
    help_text = "an image to answer about, for tasks of images; several times as --text"
    sub.add_argument("--image", action="append", type=path, metavar="FILE", help=help_text)
    help_text = "the task whose form the answer has (default: the one stored with the adapter)"
    sub.add_argument("--task", metavar="NAME", help=help_text)

    about = "list the base models that adapters can be generated for"
    sub = added.add("use", "bases", adapters.do_bases, about, "bases")
    sub.add_argument("--generator", type=path, metavar="FOLDER", help="list this generator only")
    options.add(sub, "--scale", "--source", default=None, help="runs of this only")
    options.add(sub, "--out", default=None)

    about = "list the tasks, or show single ones"
    sub = added.add("use", "tasks", adapters.do_tasks, about, "tasks movie", "--source")
    sub.add_argument("names", nargs="*", metavar="NAME", help="default: all, in a list")

    about = "train a generator on your own adapters, or one of a run"
    example = "train --manifest adapters.jsonl --save my-generator"
    sub = added.add("use", "train", runs.do_train, about, example, "--source")
    options.add(sub, "--scale", "--out", "--experiment", default=None)
    kinds = scales.network_names()
    sub.add_argument("kind", nargs="?", choices=kinds, metavar="KIND", help=", ".join(kinds))
    group = sub.add_argument_group("adapters of your own (no zoo, scale or experiment)")
    group.add_argument(
        "--manifest", type=path, metavar="FILE", help="JSON lines: path, text and optional base"
    )
    group.add_argument(
        "--save", type=path, metavar="FOLDER", help="the new folder of the generator"
    )
    encoders = "default: minilm-l6; hashed-words needs no files"
    group.add_argument("--text-encoder", help=encoders)
    group.add_argument("--steps", type=whole(1, 10**9), help="of training")
    group.add_argument("--seed", type=whole(*SEEDS), help="default: 0")

    about = "publish finished cells, or write the report of published results again"
    sub = added.add("use", "report", runs.do_report, about, "report", "--experiment")
    options.add(sub, "--scale", default=None, help="default: the largest with finished cells")
    options.add(sub, "--source", default=None, help="default: the first with finished cells")
    options.add(sub, "--out")

    about, example = "run one notebook with checked parameters", "notebook 10_language out.ipynb"
    sub = added.add("use", "notebook", runs.do_notebook, about, f"{example} -p task sarcasm")
    sub.add_argument("name", help="a notebook of the project, or a path")
    sub.add_argument("output", type=path, help="the executed notebook")
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
    example, shared = "sweep notebooks/sweeps/language.yaml --dry-run", ("--out", "--jobs")
    sub = added.add(
        "use", "sweep", runs.do_sweep, about, example, *shared, "--dry-run", "--offline"
    )
    sub.add_argument("file", type=path, help="such as notebooks/sweeps/language.yaml")
    options.add(sub, "--scale", "--source", default=None, help="default: that of the file")

    about = "check what is installed on this machine"
    added.add("use", "doctor", runs.do_doctor, about, "doctor --scale desk", *RUN)


def _add_steps(added: _Commands) -> None:
    """The steps of the plan."""
    about = "download and convert the models and data of a source"
    sub = added.add(
        "plan",
        *("assets", runs.do_assets, about, "assets --source packages"),
        *(*RUN, "--offline"),
    )
    options.add(sub, "--experiment", default=None)
    sub.add_argument("names", nargs="*", metavar="NAME", help="default: all")
    sub.add_argument("--tests", action="store_true", help="also what the tests need")

    splits = [name for name, record in EXPERIMENTS.items() if record.has_splits]
    steps = (
        ("align", runs.do_align, "combine two models into a two-tower model", "towers"),
        ("evolve", runs.do_evolve, "train a later version of a base model", "smollm2-135m-t4"),
        (
            "tune",
            runs.do_tune,
            "choose learning rates and steps on validation rows",
            "minilm-l6",
        ),
        ("zoo", runs.do_zoo, "train the adapters of one base model", "minilm-l6"),
        ("rivals", runs.do_rivals, "train what generators of intents compare with", "minilm-l6"),
        ("cells", runs.do_cells, "measure the cells of one base model", "minilm-l6"),
    )
    for name, call, about, base in steps:
        example = f"{name} --base {base} --scale lab"
        sub = added.add("plan", name, call, about, example, *RUN)
        if name in ("zoo", "rivals", "cells"):
            sub.add_argument("--base", default="", help=f"such as {base}; default: all, one by one")
            changes = {"choices": splits, "default": splits[0]} if name == "rivals" else {}
            options.add(sub, "--experiment", **{"default": None, "help": EXPERIMENT_HELP} | changes)
        else:
            sub.add_argument("--base", required=True, help=f"such as {base}")
        if name in ("tune", "zoo", "cells"):
            options.add(sub, "--task")
        if name == "cells":
            about = "recorded for the whole run (default: as recorded, else development)"
            options.add(sub, "--wordings", help=about)
        if name == "zoo":
            about = "default: all seeds of the scale"
            sub.add_argument("--seeds", type=whole(*SEEDS), nargs="+", help=about)


def _add_work(added: _Commands) -> None:
    """The commands for work on the project."""
    about = "write the generator of a run to results/generators, with card and licence"
    added.add("work", "release", adapters.do_release, about, "release --scale desk", *RUN)
    about = "add router, retrieval and average to published results, from stored outcomes"
    added.add("work", "judge", runs.do_judge, about, "judge --scale lab", "--scale", "--out")
    about = "time the hot paths next to a plain implementation, and report again"
    shared = (*RUN, "--experiment")
    added.add("work", "bench", runs.do_bench, about, "bench --scale desk", *shared)
    about = "time a training step of a base model by kernel"
    example = "profile --base smollm2-135m --scale lab"
    sub = added.add("work", "profile", runs.do_profile, about, example, *RUN)
    sub.add_argument("--base", required=True, help="such as smollm2-135m")
    about = "run notebooks and write them as pages with their images"
    example = "notebooks 00_quickstart 01_method"
    sub = added.add("work", "notebooks", runs.do_notebooks, about, example, "--source", "--out")
    options.add(sub, "--scale", default="smoke", help="default: smoke")
    about = "default: the introduction, and a notebook of each experiment"
    sub.add_argument("names", nargs="*", metavar="NAME", help=about)
    about = "write notebooks/*.ipynb from notebooks/*.py"
    sub = added.add("work", "twins", runs.do_twins, about, "twins --check")
    sub.add_argument("--check", action="store_true", help="change nothing, fail if they differ")
    sub.add_argument("--folder", type=path, default=paths.ROOT / "notebooks")


# ---------------------------------------------------------------- exit codes
def main(argv: Sequence[str] | None = None) -> int:
    """The exit code of a subcommand; an error is printed in one line.

    Args:
        argv: default: the arguments of the process.
    """
    try:
        words = options.start(argv)
        if words[:1] == ["help"]:
            words = [*words[1:2], "--help"]
        args = parser().parse_args(words)
        code = args.call(args) or 0
        sys.stdout.flush()  # a full disk or a closed pipe is an error of this command
        return code
    except OralError as error:
        print(f"oral: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt as error:
        print(f"oral: interrupted{error}", file=sys.stderr)
        return 130
    except BrokenPipeError:  # of `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if refusal := storage.system_refusal(error) or memory_fault(error):
            print(f"oral: {refusal}", file=sys.stderr)
            return refusal.exit_code
        where = _write_traceback()
        print(f"oral: {type(error).__name__}: {error} (traceback: {where})", file=sys.stderr)
        return 1


def _write_traceback() -> str:
    """Where the traceback was written: to a file, or under a worker to the log of the node."""
    if os.environ.get(worker.EVENTS):
        traceback.print_exc()
        return "above"
    file = Path("oral-error.log").absolute()
    try:
        file.write_text(traceback.format_exc(), encoding="utf-8")
    except OSError:
        traceback.print_exc()
        return "above"
    return str(file)
