"""What the command lines share: how they start, and their options. Standard library only."""

import argparse
import getpass
import io
import os
import signal
import sys
from collections.abc import Sequence
from itertools import pairwise

from oral_lib import machine, paths, scales
from oral_lib.errors import UsageError
from oral_lib.tasks.wordings import HELD_OUT_WORDINGS
from oral_lib.workflow.parsing import path, whole


def start(argv: Sequence[str] | None = None) -> list[str]:
    """The arguments `argv`, default `sys.argv`, after the streams were made ready to print.

    Raises UsageError for an argument that is not UTF-8.
    """
    if argv is None:
        for number in (signal.SIGINT, signal.SIGTERM):  # a shell may ignore SIGINT
            signal.signal(number, signal.default_int_handler)
    _open_streams()
    paths.full(paths.ROOT)  # refuses a checkout whose path is not UTF-8
    machine.limit_threads()
    # figures: no window, and no settings of the user
    os.environ |= {"MPLBACKEND": "agg", "MATPLOTLIBRC": os.devnull}
    try:
        getpass.getuser()
    except (KeyError, OSError):  # a user without a name, as in containers: torch looks it up
        os.environ["LOGNAME"] = f"user-{os.getuid()}"
    words = list(sys.argv[1:] if argv is None else argv)
    for before, word in pairwise(["", *words]):
        try:
            word.encode()
        except UnicodeEncodeError as error:
            after = f" after {before!r}" if before else ""
            raise UsageError(
                f"the argument {os.fsencode(word)!r}{after} is not UTF-8: write it in UTF-8."
            ) from error
    return words


def _open_streams() -> None:
    """Opens closed standard streams, and lets stdout escape what a terminal cannot show.

    The next file that is opened would take the place of a closed stream.
    """
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number, which is this one
            setattr(sys, name, open(number, mode, encoding="utf-8", closefd=False))  # noqa: SIM115
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")


AUTO = "auto"  # argparse passes a default that is a string through `type`, if it is needed


def scale(text: str) -> str:
    """The scale called `text`; AUTO is the one for this machine."""
    return scales.default_scale() if text == AUTO else text


def add(parser: argparse.ArgumentParser, *names: str, **changes) -> None:
    """Adds the options called `names`; `changes` replace arguments of `add_argument`."""
    settings = {
        "--scale": {
            "choices": tuple(scales.SCALES),
            "default": AUTO,
            "type": scale,
            "help": "default: lab with an NVIDIA GPU of 40 GB, else desk",
        },
        "--source": {"default": "packages", "help": "packages (default), local:DIR or hub"},
        "--out": {
            "type": path,
            "default": paths.ROOT,
            "metavar": "DIR",
            "help": "the folder of runs/ and results/",
        },
        "--experiment": {"choices": scales.EXPERIMENT_NAMES, "default": "language"},
        "--task": {"nargs": "+", "help": "default: all that the scale plans for the base model"},
        "--wordings": {
            "choices": HELD_OUT_WORDINGS,
            "help": "held-out paraphrases to measure (default: development; test: for a release)",
        },
        "--jobs": {
            "type": whole(1, 10_000),
            "default": 1,
            "metavar": "N",
            "help": "nodes at a time (default: 1)",
        },
        "--dry-run": {"action": "store_true", "help": "print what would run, and why"},
        "--offline": {"action": "store_true", "help": "fail instead of downloading"},
    }
    for name in names:
        parser.add_argument(name, **settings[name] | changes)
