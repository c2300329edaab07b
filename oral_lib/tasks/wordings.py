"""Which held-out paraphrases a run measures: "development", or "test" for a release only.

Everything is chosen on the development paraphrases, so the test paraphrases are measured once, by
`./reproduce.sh --wordings test`. The run folder records the choice, which all its cells follow.
Imports with the standard library only.
"""

from pathlib import Path

from oral_lib import storage
from oral_lib.errors import UsageError, closest

HELD_OUT_WORDINGS = ("development", "test")
DEFAULT = HELD_OUT_WORDINGS[0]


def check_wordings(name: str) -> str:
    """`name` itself if it is one of `HELD_OUT_WORDINGS`; else UsageError with the nearest name."""
    if name not in HELD_OUT_WORDINGS:
        near = closest(str(name), HELD_OUT_WORDINGS)
        raise UsageError(f"wordings={name!r}: use one of {', '.join(HELD_OUT_WORDINGS)}.{near}")
    return name


def record(run: Path, name: str) -> None:
    """Records that the run in the folder `run` measures the wordings `name`."""
    if check_wordings(name) != recorded(run):
        storage.write_json(run / "wordings.json", {"wordings": name})


def recorded(run: Path) -> str:
    """The wordings that the run in the folder `run` measures: development unless recorded."""
    file = run / "wordings.json"
    return check_wordings(storage.read_json(file)["wordings"]) if file.exists() else DEFAULT
