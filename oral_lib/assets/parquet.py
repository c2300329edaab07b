"""Parquet files as other writers leave them: read, or refused in one line with file and row.

pandas and pyarrow are imported by the functions that use them.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from oral_lib.errors import PreflightError

if TYPE_CHECKING:
    from pandas import DataFrame, Series

# what pandas and pyarrow raise for a file that another writer left
_ERRORS = (
    ArithmeticError,
    LookupError,
    NotImplementedError,
    OSError,
    RecursionError,
    RuntimeError,
    TypeError,
    ValueError,
)


def read_table(path: Path) -> "DataFrame":
    """Content of a parquet file; its path is in the attribute "file", for messages.

    Raises:
        PreflightError: if the file is truncated, encrypted or not parquet, or a text of it is not
            UTF-8.
    """
    import pandas
    import pyarrow

    try:
        frame = pandas.read_parquet(path)
    except (*_ERRORS, pyarrow.ArrowException) as error:
        text = str(error).replace(str(path), "the file")
        reason = " ".join(f"{type(error).__name__}: {text}".split())[:160]
        raise PreflightError(
            f"{path} is truncated or not a parquet file that can be read ({reason}): replace it."
        ) from error
    return with_origin(frame, str(path))


def with_origin(frame: "DataFrame", origin: str) -> "DataFrame":
    """`frame` with `origin` in its attribute "file".

    Raises PreflightError for the first text that is not UTF-8: a parquet file may store any bytes.
    """
    import pyarrow

    for i, name in enumerate(frame.columns):
        column = frame.iloc[:, i]
        try:
            column.tolist()
        except (UnicodeDecodeError, pyarrow.ArrowException) as error:
            row = next((row for row in range(len(column)) if not _is_readable(column, row)), 0)
            raise PreflightError(
                f"{origin}: row {row}: the text in column {name!r} is not UTF-8: save it again."
            ) from error
    frame.attrs["file"] = origin
    return frame


def _is_readable(column: "Series", row: int) -> bool:
    import pyarrow

    try:
        column.iloc[row]
    except (UnicodeDecodeError, pyarrow.ArrowException):
        return False
    return True
