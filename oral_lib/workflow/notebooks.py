"""Runs one notebook with papermill, after checking all that papermill lets pass.

papermill only warns of an unknown parameter, takes "1e-4" for a string, formats braces in paths,
and leaves an output notebook that looks whole after an interrupt. Here names and types are refused
before a kernel starts, and the output notebook is there only when every cell ran.
"""

import ast
import json
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from oral_lib import scales
from oral_lib.errors import OralError, UsageError, closest
from oral_lib.paths import ROOT, slug
from oral_lib.storage import write_text

KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}


def find(name: str) -> Path:
    """The notebook file called `name` (with or without .ipynb), or at the path `name`."""
    folder = ROOT / "notebooks"
    for path in (folder / f"{name}.ipynb", Path(name)):
        if path.suffix == ".ipynb" and path.is_file():
            return path.absolute()
    known = sorted(path.stem for path in folder.glob("*.ipynb"))
    raise UsageError(
        f"there is no notebook {name!r}.{closest(name, known)} Known: {', '.join(known)}."
    )


def _unformatted(path: Path) -> str:
    """`path` for papermill, which would fill in the braces."""
    return str(path).replace("{", "{{").replace("}", "}}")


def defaults(notebook: Path) -> dict[str, Any]:
    """The parameters of a notebook and their defaults (None when a default is no plain value)."""
    import papermill

    found = {}
    for name, about in papermill.inspect_notebook(_unformatted(notebook)).items():
        try:
            found[name] = ast.literal_eval(about["default"])
        except (ValueError, SyntaxError):
            found[name] = None
    return found


def _no_constant(word: str) -> None:
    raise ValueError(f"{word} is not JSON")


def typed(name: str, text: str, default: Any) -> Any:
    """`text` as a value of the type of `default`, read as JSON; `UsageError` if it is none."""
    try:
        value = json.loads(text, parse_constant=_no_constant)
    except ValueError:
        value = text
    if isinstance(default, str) and not isinstance(value, str):
        return text  # a text that happens to be JSON, such as a folder called 12
    if isinstance(default, float) and type(value) is int:
        return float(value)
    if default is not None and type(value) is not type(default):
        kind = KINDS.get(type(default), f"a {type(default).__name__}")
        raise UsageError(f"parameter {name} must be {kind} like {default!r}, got {text!r}.")
    return value


def _known_task(value: str) -> None:
    from oral_lib.tasks.task import load_task

    load_task(value)


def _known_base(value: str) -> None:
    from oral_lib.models import registry

    registry.spec(value)


def _known_groups(value: str) -> None:
    from oral_lib.experiments import ablation_variants

    ablation_variants.check_groups(value.split())


def _from_zero(value: int) -> None:
    if not 0 <= value < 2**31:
        raise UsageError(f"parameter seed must be 0 or more and below 2**31, got {value}.")


CHECKS: dict[str, Callable[[Any], object]] = {
    "task": _known_task,
    "base": _known_base,
    "backbone": _known_base,
    "towers": _known_base,
    "groups": _known_groups,
    "seed": _from_zero,
    "scale": scales.base_plans,
    "source": slug,
}


def check(notebook: Path, given: Mapping[str, str]) -> dict[str, Any]:
    """The given parameters as typed values; `UsageError` for what the notebook could not mean."""
    return checked(notebook, defaults(notebook), given)


def checked(notebook: Path, known: Mapping[str, Any], given: Mapping[str, str]) -> dict[str, Any]:
    """`check` with the notebook's `defaults` at hand."""
    values = {}
    for name, text in given.items():
        if name not in known:
            raise UsageError(
                f"{notebook.name} has no parameter {name!r}.{closest(name, known)} "
                f"It has {', '.join(known) or 'none'}."
            )
        values[name] = typed(name, text, known[name])
        if name in CHECKS:
            CHECKS[name](values[name])
    chosen = {**known, **values}
    if {"scale", "source"} <= chosen.keys():
        source = "made" if chosen["scale"] == "smoke" else chosen["source"]
        for experiment, (stem, called) in scales.CELL_NOTEBOOKS.items():
            if stem == notebook.stem and called:
                where = chosen["scale"], source, chosen[called], chosen["task"]
                scales.check_cell(*where, experiment)
        for base in chosen.get("bases", "").split():
            scales.base_plan(chosen["scale"], base, source, "language")
    return values


def run(notebook: Path, output: Path, given: Mapping[str, str]) -> None:
    """Runs `notebook` with the parameters `given` and leaves the executed one at `output`.

    `UsageError` before a kernel starts; `OralError` with the cell's error when one fails, the
    notebook as far as it came then lies beside `output` as NAME.failed.ipynb.
    """
    values = check(notebook, given)
    import papermill
    from papermill.exceptions import PapermillExecutionError

    output = output.absolute()
    output.parent.mkdir(parents=True, exist_ok=True)
    running = output.with_name(f".{output.stem}.running.ipynb")
    failed = output.with_name(f"{output.stem}.failed.ipynb")
    failed.unlink(missing_ok=True)
    # a kernel called python3 in the home folder must not take the place of this environment's,
    # and it must find the same oral_lib
    os.environ.setdefault("JUPYTER_PREFER_ENV_PATH", "1")
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    os.environ["PYTHONPATH"] = os.pathsep.join(paths)
    try:
        papermill.execute_notebook(
            _unformatted(notebook),
            _unformatted(running),
            values,
            progress_bar=False,  # the cells' own progress is passed on
            stdout_file=sys.stdout,
            stderr_file=sys.stderr,
        )
    except PapermillExecutionError as error:
        if error.ename == "KeyboardInterrupt":
            raise KeyboardInterrupt from error
        os.replace(running, failed)
        raise OralError(
            f"{notebook.name}, cell {error.cell_index} raised {error.ename}: {error.evalue}. "
            f"The notebook as far as it came: {failed}"
        ) from error
    else:
        os.replace(running, output)
    finally:
        running.unlink(missing_ok=True)


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
