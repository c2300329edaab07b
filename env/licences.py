"""Writes env/licences.csv: the licence of every locked package, model and data set.

`python env/licences.py` reads the metadata of the installed packages and the table of assets. A
package that is not installed here, as of the other lock, keeps its row.
"""

import csv
import re
import sys
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

ENV = Path(__file__).resolve().parent
TABLE = ENV / "licences.csv"
FIELDS = ("kind", "name", "licence", "stated in")


def locked() -> list[str]:
    """The names of the packages of both locks."""
    texts = [path.read_text("utf-8") for path in sorted(ENV.glob("lock-*.txt"))]
    names = {name for text in texts for name in re.findall(r"^([\w.-]+)==", text, re.MULTILINE)}
    return sorted(names, key=str.lower)


def licence(package: Distribution) -> tuple[str, str]:
    """(licence, where it is stated): in the metadata, as newer or older packages do, or a file."""
    about = package.metadata
    if expression := about.get("License-Expression"):
        return expression, "License-Expression"
    classes = [text for text in about.get_all("Classifier", []) if text.startswith("License ::")]
    named = [text.rpartition(" :: ")[2] for text in classes]
    lines = (about.get("License") or "").strip().splitlines()
    if len(lines) == 1 and len(lines[0]) < 60 and lines[0] != "UNKNOWN":
        return lines[0], "License"
    if named:
        return " / ".join(named), "Classifier"
    for file in package.files or ():
        if re.match(r"(licen[cs]e|copying)", file.name, re.IGNORECASE):
            first = file.locate().read_text("utf-8").strip().splitlines()[0]
            return first.strip(), file.name
    return "not stated", ""


def rows() -> list[dict[str, str]]:
    """The rows of the table. Ends the program with the names that no row can be made for."""
    sys.path.insert(0, str(ENV.parent))
    from oral_lib.assets.packages import ASSETS

    before = {}
    if TABLE.exists():
        with TABLE.open(encoding="utf-8", newline="") as file:
            before = {row["name"]: row for row in csv.DictReader(file)}
    table, missing = [], []
    for name in locked():
        try:
            text, place = licence(distribution(name))
        except PackageNotFoundError:
            table += [before[name]] if name in before else []
            missing += [] if name in before else [name]
            continue
        table.append(dict(zip(FIELDS, ("package", name, text, place), strict=True)))
    if missing:
        sys.exit(f"install these first, their licences are unknown: {', '.join(missing)}")
    for asset in ASSETS.values():
        kind = "model" if asset.is_model else "data set"
        values = (kind, asset.name, asset.licence, f"{asset.package}: {asset.note}")
        table.append(dict(zip(FIELDS, values, strict=True)))
    return table


def main() -> None:
    table = rows()
    with TABLE.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(table)
    print(f"{TABLE.name}: {len(table)} rows")


if __name__ == "__main__":
    main()
