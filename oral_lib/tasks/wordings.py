"""Which held-out paraphrases a run measures: "development", or "test" for a release only.

Everything is chosen on the development paraphrases, so the test paraphrases are measured once, by
`./reproduce.sh --wordings test`. A run folder records its choice in the name of a file: cells that
were measured before that file was written are measured again. Imports with the standard library
only.
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


def record_file(run: Path, wordings: str) -> Path:
    """The file in the run folder `run` that exists if the run measures `wordings`."""
    return run / f"wordings-{wordings}.json"


def record(run: Path, wordings: str) -> None:
    """Records that the run in the folder `run` measures `wordings`; nothing if it did before."""
    file = record_file(run, check_wordings(wordings))
    for name in HELD_OUT_WORDINGS:
        if name != wordings:
            record_file(run, name).unlink(missing_ok=True)
    if not file.exists():
        storage.write_json(file, {"wordings": wordings})


def recorded(run: Path) -> str:
    """The wordings that the run in the folder `run` measures: development unless recorded."""
    return next((name for name in HELD_OUT_WORDINGS if record_file(run, name).exists()), DEFAULT)
