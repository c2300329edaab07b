"""Says whether the Python that runs this fits a lock: `python env/check.py [--files] [LOCK]`.

With --files also whether the files of the packages are there, in their sizes. Exit code 0: all is
well. 1: it is not, and up to five lines say why. Standard library only, and plain enough for an old
Python to get as far as saying that it is too old.
"""

import csv
import os
import re
import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

PYTHONS = ((3, 11), (3, 12))
LINES = 5


def differences(lock, python=sys.version_info[:2], files=False):
    """What keeps this environment from fitting the text of a lock, a line each."""
    if tuple(python) not in PYTHONS:
        return ["Python {}.{} runs this; the project needs 3.11 or 3.12".format(*python)]
    lines = []
    for name, wanted in re.findall(r"^([\w.-]+)==(\S+)", lock, re.MULTILINE):
        try:
            package = distribution(name)
        except PackageNotFoundError:
            lines.append(f"{name} {wanted} is not installed")
            continue
        # a local version such as 2.13.0+cpu is a build of 2.13.0
        if package.version.split("+")[0] != wanted:
            lines.append(f"{name} {package.version} is installed, the lock has {wanted}")
        elif files and (damaged := damaged_files(package)):
            lines.append(f"{name} {wanted} is damaged: {damaged[0]}, {len(damaged)} files in all")
    return lines


def damaged_files(package):
    """The files of a package that are missing or of another size than when it was installed."""
    root, damaged = str(package.locate_file("")), []
    for name, _, size in csv.reader((package.read_text("RECORD") or "").splitlines()):
        if not size or name.startswith(("..", "/")):  # bytecode has no size, scripts are rewritten
            continue
        try:
            whole = os.stat(os.path.join(root, name)).st_size == int(size)
        except OSError:
            whole = False
        if not whole:
            damaged.append(name)
    return damaged


def main(arguments):
    files = "--files" in arguments
    paths = [Path(word) for word in arguments if word != "--files"]
    lock = paths[0] if paths else Path(__file__).with_name("lock-cpu.txt")
    if not lock.is_file():
        print(f"No lock {lock}.")
        return 1
    lines = differences(lock.read_text("utf-8"), files=files)
    shortened = lines if len(lines) <= LINES else [*lines[: LINES - 1], f"... {len(lines)} in all"]
    print("\n".join(shortened) or f"{sys.executable} fits {lock.name}.")
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
