"""The committed .ipynb is its .py, byte for byte, and nothing else."""

import json

import nbformat
import pytest

from oral_lib.errors import OralError
from oral_lib.paths import ROOT
from oral_lib.workflow import notebooks

SOURCE = """\
# ---
# jupyter:
#   jupytext:
#     text_representation:
#       jupytext_version: 1.19.6
# ---

# %% [markdown]
# # A claim — with an umlaut: ü

# %% tags=["parameters"]
task = "movie"

# %%
print(task)
# a comment

"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "one.py").write_text(SOURCE, encoding="utf-8")
    return tmp_path


def test_a_twin_is_a_valid_notebook_without_output_that_runs_in_python3(folder):
    notebook = nbformat.reads(notebooks.twin(folder / "one.py"), as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.outputs == [] and cell.execution_count is None for cell in code)
    assert code[0].metadata.tags == ["parameters"]
    assert notebook.metadata.kernelspec.name == "python3"
    assert "# A claim — with an umlaut: ü" in notebook.cells[0].source


def test_the_same_source_gives_the_same_bytes(folder):
    text = notebooks.twin(folder / "one.py")
    assert text == notebooks.twin(folder / "one.py")
    assert [cell["id"] for cell in json.loads(text)["cells"]] == [
        "cell-000",
        "cell-001",
        "cell-002",
    ]
    assert "jupytext" not in text


def test_write_makes_what_differs_and_leaves_the_age_of_the_rest(folder):
    assert notebooks.differing(folder) == [folder / "one.ipynb"]
    assert notebooks.write_twins(folder) == [folder / "one.ipynb"]
    assert notebooks.differing(folder) == notebooks.write_twins(folder) == []
    (folder / "one.py").write_text(SOURCE + "\n# %%\n1 + 1\n", encoding="utf-8")
    assert notebooks.differing(folder) == [folder / "one.ipynb"]


def test_a_saved_output_and_a_notebook_without_source_are_found(folder):
    notebooks.write_twins(folder)
    notebook = json.loads((folder / "one.ipynb").read_text())
    notebook["cells"][1]["execution_count"] = 3
    (folder / "one.ipynb").write_text(json.dumps(notebook))
    (folder / "two.ipynb").write_text("{}")
    assert notebooks.differing(folder) == [folder / "two.ipynb", folder / "one.ipynb"]
    assert notebooks.write_twins(folder) == [folder / "one.ipynb"]
    assert (folder / "two.ipynb").read_text() == "{}"


def test_a_python_file_without_cells_is_refused(tmp_path):
    (tmp_path / "plain.py").write_text("# %% [markdown]\n# words alone\n")
    with pytest.raises(OralError, match="is not a percent notebook"):
        notebooks.twin(tmp_path / "plain.py")


def test_an_empty_folder_has_nothing_to_do(tmp_path):
    assert notebooks.differing(tmp_path) == notebooks.write_twins(tmp_path) == []


def test_the_notebooks_of_the_project_are_in_sync():
    assert notebooks.differing(ROOT / "notebooks") == []
