"""Notebooks: runs one with checked parameters, and makes each .ipynb from its .py.

papermill only warns about an unknown parameter, reads "1e-4" as a string, formats braces in paths,
and leaves an output notebook that looks complete after an interrupt. Here names, types and values
are checked before a kernel starts, and the output notebook exists only if every cell ran.

The comment of a parameter says which values are allowed (`documents.parameter`).
"""

import ast
import errno
import json
import os
import sys
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from oral_lib import paths, scales
from oral_lib.documents.parameter import Parameter
from oral_lib.documents.sentence import check_sentence
from oral_lib.documents.words import short
from oral_lib.errors import OralError, PreflightError, UsageError, closest
from oral_lib.experiments.records import EXPERIMENTS
from oral_lib.runner import environment
from oral_lib.storage import list_paths, write_json, write_text

TYPES = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}
KERNEL = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}


# ---------------------------------------------------------------- parameters
def find(name: str) -> Path:
    """The notebook file called `name` (with or without .ipynb), or at the path `name`.

    Raises UsageError, with the nearest name, if it does not exist.
    """
    folder = paths.ROOT / "notebooks"
    with suppress(OSError, ValueError):  # such as a name that is too long
        for path in (folder / f"{name}.ipynb", Path(name)):
            if path.suffix == ".ipynb" and path.is_file():
                return path.absolute()
    names = [path.stem for path in list_paths(folder, "*.ipynb")]
    raise UsageError(
        f"there is no notebook {short(name)}.{closest(name, names)} Known: {', '.join(names)}."
    )


def _escaped(path: Path) -> str:
    """`path` for papermill, which formats braces."""
    return str(path).replace("{", "{{").replace("}", "}}")


def parameters(notebook: Path) -> dict[str, Parameter]:
    """The parameters of a notebook by name. UsageError if it is not a valid notebook."""
    import nbformat
    import papermill
    from papermill.iorw import load_notebook_node
    from papermill.utils import nb_kernel_name, nb_language

    try:
        described = papermill.inspect_notebook(_escaped(notebook))
        content = load_notebook_node(str(notebook))  # no format of braces here
        nb_kernel_name(content), nb_language(content)  # ValueError if it names none
    except (nbformat.ValidationError, ValueError, AttributeError, TypeError, KeyError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UsageError(f"{notebook} is not a valid notebook ({reason}).") from error
    return {n: Parameter(n, _literal(p["default"]), p["help"]) for n, p in described.items()}


def _literal(text: str) -> Any:
    with suppress(ValueError, SyntaxError):
        return ast.literal_eval(text)


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
        text.encode()
    except UnicodeEncodeError as error:  # bytes of another encoding
        raise UsageError(
            f"parameter {name} is not UTF-8: {os.fsencode(text)!r}. Write it in UTF-8."
        ) from error
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
        raise UsageError(f"parameter {name} must be {kind} like {default!r}, got {short(text)}.")
    return value


def _check_task(name: str) -> None:
    from oral_lib.tasks.task import load_task

    load_task(name)


def _check_base(name: str) -> None:
    from oral_lib.models import registry

    if name:  # empty: the first of the scale
        registry.spec(name)


def _check_sentences(texts: list[str]) -> None:
    for text in texts:
        check_sentence(text)


def _check_pair(names: str) -> None:
    for name in names.split():
        _check_task(name)
    if len(names.split()) not in (0, 2):
        raise UsageError(f"parameter between must name two tasks or none, got {short(names)}.")


def _check_groups(names: str) -> None:
    from oral_lib.experiments import ablation_variants

    ablation_variants.check_groups(names.split())


def _check_seed(value: int) -> None:
    if not 0 <= value < 2**31:
        raise UsageError(f"parameter seed must be 0 or more and below 2**31, got {value}.")


CHECKS: dict[str, Callable[[Any], object]] = {
    "task": _check_task,
    "base": _check_base,
    "groups": _check_groups,
    "sentence": check_sentence,
    "sentences": _check_sentences,
    "between": _check_pair,
    "seed": _check_seed,
    "scale": scales.base_plans,
    "source": paths.slug,
}


def typed_parameters(notebook: Path, texts: Mapping[str, str]) -> dict[str, Any]:
    """The parameters `texts` as typed values.

    Raises UsageError for a name, type or value that the notebook does not accept.
    """
    return check_against(notebook, parameters(notebook), texts)


def check_against(
    notebook: Path, allowed: Mapping[str, Parameter], texts: Mapping[str, str]
) -> dict[str, Any]:
    """`typed_parameters` for a notebook with the parameters `allowed`."""
    values = {}
    for name, text in texts.items():
        if name not in allowed:
            raise UsageError(
                f"{notebook.name} has no parameter {name!r}.{closest(name, allowed)} "
                f"It has {', '.join(allowed) or 'none'}."
            )
        values[name] = typed(name, text, allowed[name].default)
        if name in CHECKS:
            CHECKS[name](values[name])
        allowed[name].check(values[name])
    resolved = {name: values.get(name, about.default) for name, about in allowed.items()}
    if {"scale", "source"} <= resolved.keys():
        scale = resolved["scale"]
        source = "made" if scale == "smoke" else resolved["source"]
        for record in EXPERIMENTS.values():
            if record.notebook != notebook.stem:
                continue
            if not record.shows_all_cells:
                scales.check_cell(scale, source, resolved["base"], resolved["task"], record.name)
            elif resolved.get("base"):
                scales.base_plan(scale, resolved["base"], source, record.name)
        for base in resolved.get("bases", "").split():
            scales.base_plan(scale, base, source, "language")
        if experiment := resolved.get("experiment"):
            plans = scales.base_plans(scale, source, experiment)
            if not plans:
                raise UsageError(scales.not_planned(scale, source, experiment))
            scales.base_plan(scale, resolved["base"] or plans[0].base, source, experiment)
    return values


# ---------------------------------------------------------------- running
def run_notebook(notebook: Path, output: Path, texts: Mapping[str, str]) -> None:
    """Run `notebook` and write the executed notebook to `output`.

    Whatever ends it early, the cells that ran are kept next to `output`, as NAME.failed.ipynb. If
    this process is killed, they are in a hidden file, which the next run renames.

    Args:
        notebook: the file to run.
        output: the executed notebook; exists only if every cell ran.
        texts: parameters as JSON or plain words.

    Raises:
        UsageError: a parameter or `output` is wrong; no kernel was started.
        PreflightError: `output` cannot be written; no kernel was started.
        OralError: a cell raised, or the kernel ended or did not start.
    """
    values = typed_parameters(notebook, texts)
    output = paths.full(output)
    failed = output.with_name(f"{output.stem}.failed.ipynb")
    running = _running_file(notebook, output, failed)
    try:
        _execute(notebook, running, values, f" The incomplete notebook: {failed}")
        os.replace(running, output)
        failed.unlink(missing_ok=True)
    finally:
        if running.exists():
            os.replace(running, failed)


def _running_file(notebook: Path, output: Path, failed: Path) -> Path:
    """The hidden copy of `notebook` in which it runs; one of a killed process becomes `failed`.

    Raises UsageError or PreflightError for an `output` that cannot be written.
    """
    running = output.with_name(f".{output.stem}.running.ipynb")
    try:
        if output.is_dir():
            example = output / f"{notebook.stem}.ipynb"
            raise UsageError(f"the output {output} is a folder: name a file, such as {example}.")
        if output.suffix != ".ipynb":
            raise UsageError(f"the output {output} has to end in .ipynb.")
        if output.exists() and output.samefile(notebook):
            raise UsageError(f"the output {output} is the notebook itself: name another file.")
        output.parent.mkdir(parents=True, exist_ok=True)
        if running.exists():
            os.replace(running, failed)
        running.write_bytes(notebook.read_bytes())
    except OSError as error:
        raise PreflightError(
            f"the output cannot be written to {output.parent} ({error.strerror}): name another "
            "file."
        ) from error
    return running


def _execute(notebook: Path, running: Path, values: Mapping[str, Any], kept: str) -> None:
    """Runs all cells; `running` is written after each. Errors of kernels become OralErrors.

    `kept` is the sentence that ends their messages.
    """
    import papermill
    from jupyter_client.kernelspec import NoSuchKernel
    from nbclient.exceptions import CellTimeoutError, DeadKernelError
    from papermill.exceptions import PapermillExecutionError

    # the kernel has to be of this environment, not one called python3 in the home folder, and has
    # to import the same oral_lib and to draw figures for notebooks
    os.environ.setdefault("JUPYTER_PREFER_ENV_PATH", "1")
    os.environ["PYTHONPATH"] = paths.module_path()
    for name in ("MPLBACKEND", "PYTHONSTARTUP"):
        os.environ.pop(name, None)
    try:
        # settings and start-up files of the user's IPython stay outside
        with tempfile.TemporaryDirectory() as os.environ["IPYTHONDIR"]:
            profile = Path(os.environ["IPYTHONDIR"], "profile_default")
            os.environ |= environment.home_variables(profile.with_name("home"))
            quiet = {"IPKernelApp": {"log_level": "CRITICAL"}}
            write_json(profile / "ipython_kernel_config.json", quiet)
            papermill.execute_notebook(
                _escaped(notebook),
                _escaped(running),
                values,
                progress_bar=False,  # the cells print their own progress
                stdout_file=sys.stdout,
                stderr_file=sys.stderr,
            )
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f".{kept}") from None
    except PapermillExecutionError as error:
        if error.ename == "KeyboardInterrupt":
            raise KeyboardInterrupt(f".{kept}") from error
        raise OralError(
            f"{notebook.name}, cell {error.cell_index} raised {error.ename}: {error.evalue}.{kept}"
        ) from error
    except DeadKernelError as error:
        raise OralError(
            f"the kernel of {notebook.name} was killed in cell {_last_cell(running)}, probably "
            f"because memory ran out.{kept}"
        ) from error
    except (NoSuchKernel, CellTimeoutError, RuntimeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        raise OralError(f"{notebook.name} cannot run: {reason}.{kept}") from error
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise PreflightError(f"no space left to write {running.parent}.{kept}") from error


def _last_cell(running: Path) -> int:
    """The number of the last cell that was started."""
    cells = json.loads(running.read_text(encoding="utf-8"))["cells"]
    reports = [cell["metadata"].get("papermill", {}) for cell in cells]
    return max((i for i, report in enumerate(reports) if report.get("start_time")), default=0)


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
    sources = {path.with_suffix(".ipynb"): path for path in list_paths(folder, "*.py")}
    orphans = [path for path in list_paths(folder, "*.ipynb") if path not in sources]
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
