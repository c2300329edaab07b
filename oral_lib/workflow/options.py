"""The command-line options that several commands share. Standard library only."""

import argparse
from pathlib import Path

from oral_lib import paths, scales


def jobs(text: str) -> int:
    """The number of nodes at a time; argparse's own error unless it is a whole number from 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of nodes: use 1 or more")
    return int(text)


def add(parser: argparse.ArgumentParser, *names: str, **changes) -> None:
    """Adds the options called `names`; `changes` replace arguments of `add_argument`."""
    settings = {
        "--scale": {
            "choices": tuple(scales.SCALES),
            "default": scales.default_scale(),
            "help": "default: lab with an NVIDIA GPU, else desk",
        },
        "--source": {"default": "packages", "help": "packages (default), local:DIR or hub"},
        "--out": {
            "type": Path,
            "default": paths.ROOT,
            "metavar": "DIR",
            "help": "the folder of runs/ and results/",
        },
        "--experiment": {"choices": scales.EXPERIMENT_NAMES, "default": "language"},
        "--task": {"nargs": "+", "help": "default: all that the scale plans for the base model"},
        "--jobs": {
            "type": jobs,
            "default": 1,
            "metavar": "N",
            "help": "nodes at a time (default: 1)",
        },
        "--dry-run": {"action": "store_true", "help": "print what would run, and why"},
        "--offline": {"action": "store_true", "help": "fail instead of downloading"},
    }
    for name in names:
        parser.add_argument(name, **settings[name] | changes)
