"""Compares the files of two runs byte for byte, except where a clock takes part.

What a clock, a random number or the folder's own path decides is listed here, with the reason. All
other files are compared by their SHA-256.
"""

import csv
import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path

LEFT_OUT = {  # pattern of a path -> why its content is not compared
    r"(^|/)logs/": "what nodes print has durations and times of day",
    r"(^|/)\.snakemake/": "Snakemake's records of starts and ends",
    r"\.lock$": "a lock names the process that held it last",
    r"(^|/)\.[^/]*\.tmp(/|$)": "left by a killed process, never read",
}


def _json_without(*keys: str) -> Callable[[bytes], bytes]:
    def drop(value):
        if isinstance(value, dict):
            return {k: drop(v) for k, v in value.items() if k not in keys}
        return [drop(v) for v in value] if isinstance(value, list) else value

    return lambda data: json.dumps(drop(json.loads(data)), sort_keys=True).encode()


def _csv_without(column: str) -> Callable[[bytes], bytes]:
    def drop(data: bytes) -> bytes:
        rows = list(csv.DictReader(data.decode().splitlines()))
        return json.dumps([{k: v for k, v in row.items() if k != column} for row in rows]).encode()

    return drop


def _notebook(data: bytes) -> bytes:
    """Sources and outputs of a notebook, without times, rates and random names."""
    cells = []
    for cell in json.loads(data)["cells"]:
        outputs = [
            {"text": o.get("text"), "data": o.get("data"), "type": o["output_type"]}
            for o in cell.get("outputs", ())
            if o.get("name") != "stderr"
        ]
        cells.append([cell["cell_type"], cell["source"], outputs])
    text = json.dumps(cells, sort_keys=True)
    return re.sub(r"\bT_[0-9a-f]{5}|(?<= at )0x[0-9a-f]+|(?<= in )\d+(?= s\b)", "", text).encode()


CLOCKS = {  # pattern of a path -> (what is compared of its content, what is left out)
    r"/run\.json$": (_json_without("seconds"), "the duration of a training"),
    r"/aligned/[^/]*\.json$": (_json_without("seconds"), "the duration of a training"),
    r"^results/[^/]*/manifest\.json$": (
        _json_without("seconds", "date"),
        "the date of the report, the duration of an alignment",
    ),
    r"(^|/)metrics\.csv$": (_csv_without("wall_s"), "the column wall_s, a duration"),
    r"\.ipynb$": (
        _notebook,
        "times of cells and of the alignment, progress lines with rates, ids of cells, of styled "
        "tables and of objects",
    ),
}


def contents(out: Path) -> dict[str, str]:
    """The hash of what is compared of each file under `out`, by relative path."""
    hashes = {}
    for path in sorted(out.rglob("*")):
        name = str(path.relative_to(out))
        if not path.is_file() or any(re.search(pattern, name) for pattern in LEFT_OUT):
            continue
        data = path.read_bytes()
        for pattern, (reduced, _) in CLOCKS.items():
            if re.search(pattern, name):
                data = reduced(data)
        if name.endswith((".json", ".ipynb")):  # plan and parameters name the folder itself
            data = data.replace(str(out).encode(), b"OUT")
        hashes[name] = hashlib.sha256(data).hexdigest()
    return hashes


def compare(expected: Path, out: Path) -> tuple[int, list[str]]:
    """(number of compared files, those that differ or are in one folder only)."""
    one, two = contents(expected), contents(out)
    names = sorted(one.keys() | two.keys())
    return len(names), [name for name in names if one.get(name) != two.get(name)]
