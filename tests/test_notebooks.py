"""A notebook runs with the parameters that were meant, or not at all."""

import errno
import json
import os
import runpy
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import papermill
import pytest

from oral_lib import paths, scales
from oral_lib.errors import UsageError
from oral_lib.experiments.records import EXPERIMENTS
from oral_lib.workflow import cli, notebooks

SOURCE = """\
# %% tags=["parameters"]
task = "movie"
base = "minilm-l6"
seed = 0
rate = 0.5
flag = False
out = ""
note = None
kind = "lstm"  # one of mamba2, lstm; of the recurrence
steps = 20  # 1 or more; of the sampler
scales = [1.0, 2.0]  # 0 to 4

# %%
import json, sys
from oral_lib.errors import OralError
print("python", sys.executable)
if flag:
    raise OralError("the cell's own words")
json.dump([task, seed, rate, note], open(out, "w"))
"""


@pytest.fixture
def notebook(tmp_path):
    folder = tmp_path / "a {b} c"  # braces, which papermill would fill in, and spaces
    folder.mkdir()
    (folder / "one.py").write_text(SOURCE)
    notebooks.write_twins(folder)
    return folder / "one.ipynb"


@pytest.fixture
def no_kernel(monkeypatch):
    def start(*args, **kwargs):
        raise AssertionError("a kernel would start")

    monkeypatch.setattr(papermill, "execute_notebook", start)


def command(notebook, *parameters: tuple[str, str]) -> int:
    words = [word for pair in parameters for word in ("-p", *pair)]
    return cli.main(["notebook", str(notebook), str(notebook.parent / "ran.ipynb"), *words])


def test_it_runs_with_typed_parameters_in_this_python_from_a_path_with_braces(
    notebook, capfd, monkeypatch, tmp_path
):
    monkeypatch.chdir(tmp_path)
    left = tmp_path / "left.json"
    given = [("seed", "3"), ("rate", "1e-4"), ("task", "sarcasm"), ("note", "[1]")]
    assert command(notebook, *given, ("out", str(left))) == 0
    assert json.loads(left.read_text()) == ["sarcasm", 3, 1e-4, [1]]
    assert "outputs" in (notebook.parent / "ran.ipynb").read_text()
    names = {path.name for path in notebook.parent.iterdir()}
    assert names == {"one.py", "one.ipynb", "ran.ipynb"}
    assert f"python {sys.executable}" in capfd.readouterr().out


def test_a_failing_cell_gives_1_its_error_and_no_output_notebook(notebook, capfd):
    assert command(notebook, ("flag", "true")) == 1
    message = capfd.readouterr().err.splitlines()[-1]
    assert "OralError: the cell's own words" in message and "cell 2" in message
    assert not (notebook.parent / "ran.ipynb").exists()
    assert (notebook.parent / "ran.failed.ipynb").exists()


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("sede", "3", "Did you mean 'seed'?"),
        ("seed", "three", "parameter seed must be a whole number like 0, got 'three'"),
        ("seed", "1.5", "whole number"),
        ("seed", "true", "whole number"),
        ("rate", "NaN", "parameter rate must be a number"),
        ("flag", "1", "true or false"),
        ("task", "movei", "Did you mean 'movie'?"),
        ("base", "minilm-l7", "Did you mean 'minilm-l6'?"),
        ("kind", "mamba", "kind must be one of mamba2, lstm, got 'mamba'. Did you mean 'mamba2'?"),
        ("steps", "0", "parameter steps must be 1 or more, got 0."),
        ("scales", "[1, 4.5]", "parameter scales must be 0 to 4, got 4.5."),
        ("scales", '["x"]', "parameter scales must be 0 to 4, got 'x'."),
    ],
)
def test_what_cannot_be_meant_gives_2_before_a_kernel_starts(
    notebook, no_kernel, capsys, name, value, words
):
    assert command(notebook, (name, value)) == 2
    assert words in capsys.readouterr().err


NOTEBOOKS = sorted((paths.ROOT / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_parameter_cell_says_which_values_are_allowed_and_its_defaults_are(path):
    parameters = notebooks.parameters(path)
    assert parameters
    for name, about in parameters.items():
        assert about.comment, f"{path.name}: {name} has no comment"
        assert about.default is not None
        about.check(about.default)
    texts = {n: p.default if isinstance(p.default, str) else json.dumps(p.default)
             for n, p in parameters.items()}  # fmt: skip
    notebooks.typed_parameters(path, texts)
    if "scale" in parameters:
        names = {scale for scale in scales.SCALES if runs_at(path.stem, scale)}
        assert set(parameters["scale"].comment.removeprefix("one of ").split(", ")) == names


def runs_at(stem: str, scale: str) -> bool:
    """Whether a scale has the experiment of a notebook; other notebooks run at every scale."""
    names = [record.name for record in EXPERIMENTS.values() if record.notebook == stem]
    return not names or names[0] in scales.SCALES[scale]


@pytest.mark.parametrize(
    ("stem", "name", "value", "words"),
    [
        ("01_method", "recurrence", "mamba", "one of mamba2, lstm, transformer, none, got 'mamba'"),
        ("50_control", "guidance", "[1, 5]", "guidance must be 0 to 4, got 5"),
        ("50_control", "between", "movie", "must name two tasks or none, got 'movie'"),
        ("50_control", "between", "movie sarcsm", "Did you mean 'sarcasm'?"),
        ("50_control", "sentences", '["Is it good?", " "]', "empty"),
        ("50_control", "base", "tiny-vit", "scale 'smoke' has no base 'tiny-vit'"),
        ("80_novelty", "compute", "maybe", "parameter compute must be true or false"),
    ],
)
def test_a_value_that_a_notebook_cannot_use_is_refused(stem, name, value, words):
    with pytest.raises(UsageError) as caught:
        notebooks.typed_parameters(notebooks.find(stem), {name: value})
    assert words in str(caught.value)


def test_an_experiment_that_a_scale_leaves_out_is_refused():
    given = {"scale": "desk", "experiment": "vision"}
    with pytest.raises(UsageError, match="scale 'desk' has no experiment 'vision'"):
        notebooks.typed_parameters(notebooks.find("80_novelty"), given)


def test_an_interrupt_gives_130_and_no_output_notebook(notebook, monkeypatch):
    def interrupted(source, output, *args, **kwargs):
        with open(output.format(), "w") as file:
            file.write("looks whole")
        raise KeyboardInterrupt

    monkeypatch.setattr(papermill, "execute_notebook", interrupted)
    assert command(notebook) == 130
    names = {path.name for path in notebook.parent.iterdir()}
    assert names == {"one.py", "one.ipynb", "ran.failed.ipynb"}
    assert (notebook.parent / "ran.failed.ipynb").read_text() == "looks whole"


# --- the output ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("output", "code", "words"),
    [
        (".", 2, "is a folder: name a file, such as"),
        ("ran", 2, "has to end in .ipynb"),
        ("one.ipynb", 2, "is the notebook itself"),
        ("link.ipynb", 2, "is the notebook itself"),
        ("one.py/ran.ipynb", 3, "cannot be written"),
        ("a" * 248 + ".ipynb", 3, "cannot be written"),
        ("/proc/ran.ipynb", 3, "cannot be written"),
    ],
)
def test_an_output_that_cannot_be_is_refused_before_a_kernel_starts(
    notebook, no_kernel, capsys, output, code, words
):
    (notebook.parent / "link.ipynb").symlink_to(notebook)
    before = notebook.read_bytes()
    assert cli.main(["notebook", str(notebook), str(notebook.parent / output)]) == code
    [line] = capsys.readouterr().err.splitlines()
    assert words in line
    assert notebook.read_bytes() == before


def test_a_full_disk_is_seen_before_a_kernel_starts(notebook, no_kernel, capsys, monkeypatch):
    def full(*given):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    assert command(notebook) == 3
    assert "No space left on device" in capsys.readouterr().err


def test_a_missing_folder_of_the_output_is_made(notebook, tmp_path):
    output = tmp_path / "a" / "b" / "ran.ipynb"
    words = ["-p", "out", str(tmp_path / "left.json")]
    assert cli.main(["notebook", str(notebook), str(output), *words]) == 0
    assert output.is_file()


ENDS = {
    "killed": "os.kill(os.getpid(), 9)",
    "ended": "os._exit(3)",
    "interrupted": "os.kill(os.getppid(), signal.SIGINT); time.sleep(60)",
    "terminated": "os.kill(os.getppid(), signal.SIGTERM); time.sleep(60)",
}


@pytest.mark.parametrize("end", ENDS)
def test_however_it_ends_the_cells_that_ran_are_kept_and_one_line_says_what_happened(tmp_path, end):
    source = '# %%\nimport os, signal, time\nprint("the first result")\n\n# %%\n' + ENDS[end]
    (tmp_path / "two.py").write_text(source)
    notebooks.write_twins(tmp_path)
    (tmp_path / "ran.ipynb").write_text("an older result")
    words = ["notebook", str(tmp_path / "two.ipynb"), str(tmp_path / "ran.ipynb")]
    done = subprocess.run(
        [sys.executable, "-P", "-m", "oral_lib", *words],
        env={**os.environ, "PYTHONPATH": str(paths.ROOT)},
        capture_output=True,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),  # as a shell's `&` does
    )
    assert "Traceback" not in done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("oral: ")]
    stopped = end in ("interrupted", "terminated")
    assert len(lines) == 1 and done.returncode == (130 if stopped else 1)
    words = (
        "interrupted. The incomplete notebook: "
        if stopped
        else "was killed in cell 1, probably because mem"
    )
    assert words in lines[0]
    assert "the first result" in (tmp_path / "ran.failed.ipynb").read_text()
    assert (tmp_path / "ran.ipynb").read_text() == "an older result"
    assert not list(tmp_path.glob(".*"))


def test_a_kernel_that_cannot_start_gives_one_line(notebook, capsys):
    content = json.loads(notebook.read_text())
    content["metadata"]["kernelspec"] |= {"name": "no-such"}
    notebook.write_text(json.dumps(content))
    assert command(notebook) == 1
    assert "one.ipynb cannot run: No such kernel named no-such" in capsys.readouterr().err


def test_what_a_killed_process_left_is_kept_by_the_next_run(notebook, tmp_path):
    (notebook.parent / ".ran.running.ipynb").write_text("the cells of the killed run")
    assert command(notebook, ("flag", "true")) == 1
    assert "the cells of" not in (notebook.parent / "ran.failed.ipynb").read_text()
    (notebook.parent / ".ran.running.ipynb").write_text("the cells of the killed run")
    assert (
        command(notebook, ("seed", "x")) == 2
    )  # nothing is touched before the parameters are right
    assert (notebook.parent / ".ran.running.ipynb").exists()


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b"{", b"\xff", b'{"cells": 3}', b'{"nbformat": 4}',
     b'{"nbformat": 3, "worksheets": [], "metadata": {}}'],
)  # fmt: skip
def test_a_file_that_is_no_notebook_is_refused(notebook, no_kernel, capsys, content):
    notebook.write_bytes(content)
    assert command(notebook) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert "one.ipynb is not a valid notebook" in line


def test_a_parameter_in_another_encoding_is_refused(notebook, no_kernel, capsys):
    assert command(notebook, ("out", os.fsdecode(b"caf\xe9"))) == 2
    assert "the argument b'caf\\xe9' after 'out' is not UTF-8" in capsys.readouterr().err
    with pytest.raises(UsageError, match="parameter name is not UTF-8"):
        notebooks.typed("name", "caf\udce9", "")


@pytest.mark.parametrize("there", [True, False])
def test_the_notebook_of_styles_is_skipped_where_diffusers_is_missing(there):
    hook = runpy.run_path(str(paths.ROOT / "conftest.py"))["pytest_collection_modifyitems"]
    hook.__globals__["find_spec"] = {"diffusers": there or None}.get
    skipped = []
    items = [
        SimpleNamespace(path=path, add_marker=lambda mark, stem=path.stem: skipped.append(stem))
        for path in (paths.ROOT / "notebooks").glob("*.ipynb")
    ]
    hook(items)
    assert skipped == ([] if there else ["22_style"])


def test_an_unknown_notebook_is_refused(capsys):
    assert cli.main(["notebook", "10_langage", "x.ipynb"]) == 2
    assert "there is no notebook '10_langage'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "default", "value"),
    [
        ("12", "a text", "12"),
        ('"12"', "a text", "12"),
        ("/a/{b}", "", "/a/{b}"),
        ("2", 0.5, 2.0),
        ("true", False, True),
        ("[1, 2]", [0], [1, 2]),
        ("anything", None, "anything"),
        ("NaN", None, "NaN"),
    ],
)
def test_a_value_takes_the_type_of_its_default(text, default, value):
    found = notebooks.typed("name", text, default)
    assert found == value and type(found) is type(value)


def test_a_value_of_another_type_is_refused_with_the_value():
    with pytest.raises(UsageError, match=r"a list like \[0\], got '3'"):
        notebooks.typed("name", "3", [0])
