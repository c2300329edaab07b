"""A notebook runs with the parameters that were meant, or not at all."""

import json
import runpy
from types import SimpleNamespace

import papermill
import pytest

from oral_lib import paths
from oral_lib.errors import UsageError
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
    import sys

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
    ],
)
def test_what_cannot_be_meant_gives_2_before_a_kernel_starts(
    notebook, no_kernel, capsys, name, value, words
):
    assert command(notebook, (name, value)) == 2
    assert words in capsys.readouterr().err


def test_an_interrupt_gives_130_and_no_output_notebook(notebook, monkeypatch):
    def interrupted(source, output, *args, **kwargs):
        with open(output.format(), "w") as file:
            file.write("looks whole")
        raise KeyboardInterrupt

    monkeypatch.setattr(papermill, "execute_notebook", interrupted)
    assert command(notebook) == 130
    assert {path.name for path in notebook.parent.iterdir()} == {"one.py", "one.ipynb"}


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
