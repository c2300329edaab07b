"""Notebook twins: `NAME.py` (percent format) is what people edit, `NAME.ipynb` is made from it.

The twin holds no output and nothing random, so the same source gives the same bytes everywhere.
"""

import json
from pathlib import Path

from oral_lib.errors import OralError
from oral_lib.storage import write_text

KERNEL = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}


def twin(source: Path) -> str:
    """The text of the notebook made from the percent file `source`; `OralError` if it is none."""
    import jupytext

    made = jupytext.reads(source.read_text(encoding="utf-8"), fmt="py:percent")
    if not any(cell.cell_type == "code" for cell in made.cells):
        raise OralError(f"{source} is no percent notebook: it needs cells that begin with '# %%'.")
    cells = []
    for place, cell in enumerate(made.cells):
        # jupytext draws random ids; a place in the file is as good a name
        kept = {
            "cell_type": cell.cell_type,
            "id": f"cell-{place:03}",
            "metadata": dict(cell.metadata),
            "source": cell.source.splitlines(keepends=True),
        }
        if cell.cell_type == "code":
            kept |= {"execution_count": None, "outputs": []}
        cells.append(kept)
    metadata = {"kernelspec": KERNEL, "language_info": {"name": "python"}}
    notebook = {"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(notebook, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def differing(folder: Path) -> list[Path]:
    """The notebooks in `folder` that are not what their sources say, or have no source."""
    sources = sorted(folder.glob("*.py"))
    wanted = {path.with_suffix(".ipynb"): path for path in sources}
    orphans = [path for path in sorted(folder.glob("*.ipynb")) if path not in wanted]
    return orphans + [
        path
        for path, source in wanted.items()
        if not path.exists() or path.read_bytes() != twin(source).encode()
    ]


def write(folder: Path) -> list[Path]:
    """Makes every twin in `folder` anew; returns those that changed. Orphans are left alone."""
    changed = [path for path in differing(folder) if path.with_suffix(".py").exists()]
    for path in changed:  # equal ones keep their age, or every node that reads them would run
        write_text(path, twin(path.with_suffix(".py")))
    return changed
