"""Notebooks: runs one with checked parameters, and makes each .ipynb from its .py.

papermill only warns about an unknown parameter, reads "1e-4" as a string, formats braces in paths,
and leaves an output notebook that looks complete after an interrupt. Here names and types are
checked before a kernel starts, and the output notebook exists only if every cell ran.
"""

import ast
import json
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from oral_lib import paths, scales
from oral_lib.errors import OralError, UsageError, closest
from oral_lib.experiments.records import EXPERIMENTS
from oral_lib.storage import write_text

TYPES = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}
KERNEL = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}


# ---------------------------------------------------------------- parameters
def find(name: str) -> Path:
    """The notebook file called `name` (with or without .ipynb), or at the path `name`.

    Raises UsageError, with the nearest name, if it does not exist.
    """
    folder = paths.ROOT / "notebooks"
    for path in (folder / f"{name}.ipynb", Path(name)):
        if path.suffix == ".ipynb" and path.is_file():
            return path.absolute()
    names = sorted(path.stem for path in folder.glob("*.ipynb"))
    raise UsageError(
        f"there is no notebook {name!r}.{closest(name, names)} Known: {', '.join(names)}."
    )


def _escaped(path: Path) -> str:
    """`path` for papermill, which formats braces."""
    return str(path).replace("{", "{{").replace("}", "}}")


def defaults(notebook: Path) -> dict[str, Any]:
    """The default of each parameter of a notebook; None if the default is not a literal."""
    import papermill

    values = {}
    for name, about in papermill.inspect_notebook(_escaped(notebook)).items():
        try:
            values[name] = ast.literal_eval(about["default"])
        except (ValueError, SyntaxError):
            values[name] = None
    return values


def _reject_constant(word: str) -> None:
    raise ValueError(f"{word} is not JSON")


def typed(name: str, text: str, default: Any) -> Any:
    """`text` as a value of the type of `default`.

    Args:
        name: of the parameter, for the message.
        text: JSON or a plain word.
        default: of the parameter; None accepts every type.

    Raises:
        UsageError: `text` is of another type.
    """
    try:
        value = json.loads(text, parse_constant=_reject_constant)
    except ValueError:
        value = text
    if isinstance(default, str) and not isinstance(value, str):
        return text  # a text that is also JSON, such as a folder called 12
    if isinstance(default, float) and type(value) is int:
        return float(value)
    if default is not None and type(value) is not type(default):
        kind = TYPES.get(type(default), f"a {type(default).__name__}")
        raise UsageError(f"parameter {name} must be {kind} like {default!r}, got {text!r}.")
    return value


def _check_task(name: str) -> None:
    from oral_lib.tasks.task import load_task

    load_task(name)


def _check_base(name: str) -> None:
    from oral_lib.models import registry

    registry.spec(name)


def _check_groups(names: str) -> None:
    from oral_lib.experiments import ablation_variants

    ablation_variants.check_groups(names.split())


def _check_seed(value: int) -> None:
    if not 0 <= value < 2**31:
        raise UsageError(f"parameter seed must be 0 or more and below 2**31, got {value}.")


CHECKS: dict[str, Callable[[Any], object]] = {
    "task": _check_task,
    "base": _check_base,
    "backbone": _check_base,
    "towers": _check_base,
    "groups": _check_groups,
    "seed": _check_seed,
    "scale": scales.base_plans,
    "source": paths.slug,
}


def typed_parameters(notebook: Path, texts: Mapping[str, str]) -> dict[str, Any]:
    """The parameters `texts` as typed values.

    Raises UsageError for a name, type or value that the notebook does not accept.
    """
    return check_against(notebook, defaults(notebook), texts)


def check_against(
    notebook: Path, default: Mapping[str, Any], texts: Mapping[str, str]
) -> dict[str, Any]:
    """`typed_parameters` for a notebook whose parameters have the values `default`."""
    values = {}
    for name, text in texts.items():
        if name not in default:
            raise UsageError(
                f"{notebook.name} has no parameter {name!r}.{closest(name, default)} "
                f"It has {', '.join(default) or 'none'}."
            )
        values[name] = typed(name, text, default[name])
        if name in CHECKS:
            CHECKS[name](values[name])
    resolved = {**default, **values}
    if {"scale", "source"} <= resolved.keys():
        scale = resolved["scale"]
        source = "made" if scale == "smoke" else resolved["source"]
        for record in EXPERIMENTS.values():
            if record.notebook == notebook.stem and record.base_parameter:
                base = resolved[record.base_parameter]
                scales.check_cell(scale, source, base, resolved["task"], record.name)
        for base in resolved.get("bases", "").split():
            scales.base_plan(scale, base, source, "language")
    return values


# ---------------------------------------------------------------- running
def run_notebook(notebook: Path, output: Path, texts: Mapping[str, str]) -> None:
    """Run `notebook` and write the executed notebook to `output`.

    Args:
        notebook: the file to run.
        output: the executed notebook; exists only if every cell ran.
        texts: parameters as JSON or plain words.

    Raises:
        UsageError: a parameter is wrong; no kernel was started.
        OralError: a cell raised. The incomplete notebook is next to `output`, as
            NAME.failed.ipynb.
    """
    values = typed_parameters(notebook, texts)
    import papermill
    from papermill.exceptions import PapermillExecutionError

    output = output.absolute()
    output.parent.mkdir(parents=True, exist_ok=True)
    running = output.with_name(f".{output.stem}.running.ipynb")
    failed = output.with_name(f"{output.stem}.failed.ipynb")
    failed.unlink(missing_ok=True)
    # the kernel has to be of this environment, not one called python3 in the home folder, and has
    # to import the same oral_lib
    os.environ.setdefault("JUPYTER_PREFER_ENV_PATH", "1")
    os.environ["PYTHONPATH"] = paths.module_path()
    try:
        papermill.execute_notebook(
            _escaped(notebook),
            _escaped(running),
            values,
            progress_bar=False,  # the cells print their own progress
            stdout_file=sys.stdout,
            stderr_file=sys.stderr,
        )
    except PapermillExecutionError as error:
        if error.ename == "KeyboardInterrupt":
            raise KeyboardInterrupt from error
        os.replace(running, failed)
        raise OralError(
            f"{notebook.name}, cell {error.cell_index} raised {error.ename}: {error.evalue}. "
            f"The incomplete notebook: {failed}"
        ) from error
    else:
        os.replace(running, output)
    finally:
        running.unlink(missing_ok=True)


# ---------------------------------------------------------------- .ipynb from .py
def twin(source: Path) -> str:
    """The text of the notebook made from the percent file `source`.

    Raises OralError if `source` has no code cell.
    """
    import jupytext

    document = jupytext.reads(source.read_text(encoding="utf-8"), fmt="py:percent")
    if not any(cell.cell_type == "code" for cell in document.cells):
        raise OralError(
            f"{source} is not a percent notebook: it needs code cells that begin with '# %%'."
        )
    cells = []
    for number, cell in enumerate(document.cells):
        content = {
            "cell_type": cell.cell_type,
            "id": f"cell-{number:03}",  # jupytext draws random ids
            "metadata": dict(cell.metadata),
            "source": cell.source.splitlines(keepends=True),
        }
        if cell.cell_type == "code":
            content |= {"execution_count": None, "outputs": []}
        cells.append(content)
    metadata = {"kernelspec": KERNEL, "language_info": {"name": "python"}}
    notebook = {"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(notebook, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def differing(folder: Path) -> list[Path]:
    """The notebooks in `folder` that differ from their .py files or have none."""
    sources = {path.with_suffix(".ipynb"): path for path in sorted(folder.glob("*.py"))}
    orphans = [path for path in sorted(folder.glob("*.ipynb")) if path not in sources]
    return orphans + [
        path
        for path, source in sources.items()
        if not path.exists() or path.read_bytes() != twin(source).encode()
    ]


def write_twins(folder: Path) -> list[Path]:
    """The notebooks in `folder` that were written because they differed from their .py files.

    Equal notebooks keep their modification time: nodes that read them do not become due.
    """
    changed = [path for path in differing(folder) if path.with_suffix(".py").exists()]
    for path in changed:
        write_text(path, twin(path.with_suffix(".py")))
    return changed
