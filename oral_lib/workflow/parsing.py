"""The parser of a command line: one-line errors with the nearest valid word, types of values.

Standard library only.
"""

import argparse
import os
import re
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn, TextIO

from oral_lib import paths
from oral_lib.documents.words import short
from oral_lib.errors import PreflightError, UsageError, closest

SEEDS = (0, 2**63 - 1)


def program() -> str:
    """How this process was started: `oral`, or `python -m oral_lib`."""
    return "oral" if Path(sys.argv[0]).name == "oral" else "python -m oral_lib"


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line and exit code 2, with the nearest option or command."""

    def __init__(self, **settings) -> None:
        super().__init__(
            formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False, **settings
        )

    def error(self, message: str) -> NoReturn:
        """Prints one line and ends the process with exit code 2."""
        line = " ".join(message.split())
        line += "" if line.endswith((".", "?")) else "."
        self.exit(2, f"oral: {line} See {self.prog} --help.\n")

    def _print_message(self, message: str, file: TextIO | None = None) -> None:
        print(message, end="", file=file or sys.stderr, flush=True)  # argparse hides a full disk

    def parse_known_args(self, args: Sequence[str] | None = None, namespace=None) -> tuple:
        """argparse's result. An unknown option is an error, before a missing one."""
        words = list(sys.argv[1:] if args is None else args)
        self._check_options(words)
        parsed, extra = super().parse_known_args(words, namespace)
        if extra:
            if extra[0].startswith("-"):
                self.error(f"unknown option {short(extra[0])}")
            hint = "put a text of several words in quotes"
            self.error(f"{short(extra[0])} is one argument too many: {hint}")
        return parsed, extra

    def _check_options(self, words: Sequence[str]) -> None:
        names = self._option_string_actions
        for word in words:
            option = word.partition("=")[0]
            if word == "--" or (self._subparsers and not word.startswith("-")):
                return  # the rest is not for this parser
            if re.fullmatch(r"--\w[\w-]*", option) and option not in names:
                self.error(f"unknown option {short(option)}.{closest(option, names)}")

    def _check_value(self, action: argparse.Action, value: object) -> None:
        if action.choices is None or value in action.choices:
            return
        choices = [str(choice) for choice in action.choices]
        kind = "command" if action.dest == "command" else action.metavar or action.dest
        self.error(
            f"unknown {kind} {short(str(value))}.{closest(str(value), choices)} "
            f"Known: {', '.join(choices)}"
        )


# ---------------------------------------------------------------- types of values
def whole(least: int, most: int) -> Callable[[str], int]:
    """The type of the whole numbers from `least` to `most`.

    >>> whole(1, 9)("7")
    7
    """

    def convert(text: str) -> int:
        if not re.fullmatch("[-+]?[0-9]{1,20}", text) or not least <= int(text) <= most:
            expected = f"a whole number from {least} to {most}"
            raise argparse.ArgumentTypeError(f"{short(text)} is not {expected}")
        return int(text)

    return convert


def path(text: str) -> Path:
    """The path `text`, `~` being the home folder; an empty text is an error.

    Raises PreflightError if there is no such home folder.
    """
    if not text.strip() or "\0" in text:
        raise argparse.ArgumentTypeError(f"{text!r} is not the name of a file or folder")
    return paths.full(text) if text.startswith("~") else Path(text)


def refuse_unused(args: argparse.Namespace, reason: str, *names: str) -> None:
    """Raises UsageError if one of the options `names`, whose default is None, was used."""
    for name in names:
        if getattr(args, name.replace("-", "_")) is not None:
            raise UsageError(f"--{name} has no effect {reason}: leave it out.")


def new_folder(folder: Path, option: str) -> Path:
    """`folder`, if it is new or empty and can be written; else UsageError."""
    try:
        if folder.is_dir() and any(folder.iterdir()):
            raise UsageError(f"{folder} is not empty: name a new folder with {option}.")
        nearest = _nearest(folder)
        if not nearest.is_dir():
            raise UsageError(f"{nearest} is a file: name a new folder with {option}.")
    except OSError as error:
        name = short(str(folder))
        raise UsageError(f"{option} {name} cannot be used: {error.strerror}.") from error
    if not _is_writable(nearest):
        raise UsageError(f"{nearest} cannot be written: name a new folder with {option}.")
    return folder


def require_writable(folder: Path) -> None:
    """Raises PreflightError unless `folder` can be written, or created."""
    nearest = _nearest(folder)
    if not nearest.is_dir():
        raise PreflightError(f"{nearest} is a file: name another folder with --out.")
    if not _is_writable(nearest):
        raise PreflightError(f"{nearest} cannot be written: name another folder with --out.")


def _is_writable(folder: Path) -> bool:
    """Whether a file can be created in `folder`; permissions do not tell, as in /proc."""
    if not os.access(folder, os.W_OK | os.X_OK):
        return False
    try:
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def _nearest(folder: Path) -> Path:
    """`folder`, or the closest folder above it that exists, as an absolute path."""
    folder = folder.absolute()
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return folder


def print_note(text: str) -> None:
    """Prints a remark, on the stream of errors."""
    print(f"note: {text}", file=sys.stderr, flush=True)
