"""Says whether the Python that runs this fits a lock: `python env/check.py [LOCK]`.

Exit code 0: it does. 1: it does not, and up to five lines say why. Standard library only, and
plain enough for an old Python to get as far as saying that it is too old.
"""

import re
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PYTHONS = ((3, 11), (3, 12))
LINES = 5


def differences(lock, python=sys.version_info[:2]):
    """What keeps this environment from fitting the text of a lock, a line each."""
    if tuple(python) not in PYTHONS:
        return ["Python {}.{} runs this; the project needs 3.11 or 3.12".format(*python)]
    found = []
    for name, wanted in re.findall(r"^([\w.-]+)==(\S+)", lock, re.MULTILINE):
        try:
            installed = version(name)
        except PackageNotFoundError:
            found.append(f"{name} {wanted} is not installed")
            continue
        # a local version such as 2.13.0+cpu is a build of 2.13.0
        if installed.split("+")[0] != wanted:
            found.append(f"{name} {installed} is installed, the lock has {wanted}")
    return found


def main(arguments):
    lock = Path(arguments[0]) if arguments else Path(__file__).with_name("lock-cpu.txt")
    if not lock.is_file():
        print(f"No lock {lock}.")
        return 1
    found = differences(lock.read_text("utf-8"))
    shown = found if len(found) <= LINES else [*found[: LINES - 1], f"... {len(found)} in all"]
    print("\n".join(shown) or f"{sys.executable} fits {lock.name}.")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
