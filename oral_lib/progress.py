"""A progress bar on a terminal, plain lines in a log."""

import io
import sys
import time
from collections.abc import Iterable

from tqdm import tqdm

LOG_SECONDS = 10.0
_WITH_TOTAL = "{desc} {n_fmt}/{total_fmt} {percentage:.0f}% {rate_fmt} {remaining} left{postfix}"
_WITHOUT_TOTAL = "{desc} {n_fmt} {rate_fmt} {elapsed} so far{postfix}"


class _Lines(tqdm):
    """tqdm that prints whole lines, at most one every LOG_SECONDS and one at the end."""

    def __init__(self, *args, **kwargs):
        self.printed_at, self.printed_n = time.monotonic(), None
        super().__init__(*args, **kwargs)

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        now = time.monotonic()
        # close() disables the bar, then displays it once more: the last line
        if (self.disable and self.n != self.printed_n) or now - self.printed_at >= LOG_SECONDS:
            self.printed_at, self.printed_n = now, self.n
            print(self, file=sys.stderr, flush=True)


def bar(
    iterable: Iterable | None = None, *, total: int | None = None, label: str, unit: str = "it"
) -> tqdm:
    """A tqdm bar on stderr over `iterable`, or advanced by `update`.

    If stderr is not a terminal (papermill, Snakemake, CI), it prints a line at most every
    `LOG_SECONDS` and one at the end: share done, rate and time left.

    Args:
        iterable: what is iterated over; None: advanced by `update`.
        total: number of items; None: the length of `iterable` if it has one.
        label: name of the bar.
        unit: unit of an item; "B" counts bytes.
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
        file=io.StringIO(),  # discards tqdm's cursor movements
        bar_format=_WITHOUT_TOTAL if total is None else _WITH_TOTAL,
        miniters=1,  # a value adapted to a fast start would print no line at a slow end
    )
