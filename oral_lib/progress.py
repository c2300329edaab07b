"""A progress bar that is live on a terminal and plain lines in a log."""

import io
import sys
import time
from collections.abc import Iterable

from tqdm import tqdm

LOG_SECONDS = 10.0
_KNOWN = "{desc} {n_fmt}/{total_fmt} {percentage:.0f}% {rate_fmt} {remaining} left{postfix}"
_UNKNOWN = "{desc} {n_fmt} {rate_fmt} {elapsed} so far{postfix}"


class _Lines(tqdm):
    """tqdm that prints whole lines, at most one every LOG_SECONDS and one at the end."""

    def __init__(self, *args, **kwargs):
        self.said, self.shown = time.monotonic(), None
        super().__init__(*args, **kwargs)

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        now = time.monotonic()
        # close() disables the bar, then displays it once more: the line at the end
        if (self.disable and self.n != self.shown) or now - self.said >= LOG_SECONDS:
            self.said, self.shown = now, self.n
            print(self, file=sys.stderr, flush=True)


def bar(
    iterable: Iterable | None = None, *, total: int | None = None, label: str, unit: str = "it"
) -> tqdm:
    """A tqdm bar on stderr over `iterable` (or moved by `update`), named `label`.

    Where stderr is no terminal (papermill, Snakemake, CI) it prints a line at most every ten
    seconds with the share done, rate and time left, and one at the end. Unit "B" counts bytes.
    """
    if total is None and hasattr(iterable, "__len__"):
        total = len(iterable)
    shared = {"iterable": iterable, "total": total, "desc": label, "unit": unit}
    if unit == "B":
        shared |= {"unit_scale": True, "unit_divisor": 1024}
    if sys.stderr.isatty():
        return tqdm(**shared, file=sys.stderr, dynamic_ncols=True)
    return _Lines(
        **shared,
        file=io.StringIO(),  # swallows tqdm's cursor moves
        bar_format=_UNKNOWN if total is None else _KNOWN,
        miniters=1,  # a step count adapted to a fast start would keep a slow end silent
    )
