"""Executed notebooks as pages: everything that they show, and nothing of this machine."""

import re
from pathlib import Path

import pytest

from oral_lib.report import notebook_html
from oral_lib.workflow import cli, notebooks

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted((ROOT / "results" / "notebooks").glob("*.html"))
FETCHED = re.compile(r"""<(img|script|link|iframe)\b[^>]*\b(src|href)=(?!["']?data:)""")
TEXT = r"""# A title
Inline $K_t$, and a formula:
$$ K_t = \sqrt{\bar\alpha_t}\,K_0, \qquad w_i \ge 0 $$
"""


def code(*outputs: dict, source: str = "print(1)") -> dict:
    return {"cell_type": "code", "source": [source], "outputs": list(outputs)}


def stream(name: str, *text: str) -> dict:
    return {"output_type": "stream", "name": name, "text": list(text)}


def shown(**data: str) -> dict:
    kinds = {"html": "text/html", "png": "image/png", "plain": "text/plain", "md": "text/markdown"}
    return {"output_type": "display_data", "data": {kinds[k]: v for k, v in data.items()}}


def page(*cells: dict, **replaced: str) -> str:
    return notebook_html.notebook_page({"cells": list(cells)}, "a", replaced, "about < this")


def test_a_page_has_texts_code_prints_tables_and_images():
    cells = [{"cell_type": "markdown", "source": TEXT.splitlines(keepends=True)}]
    cells += [code(stream("stdout", "x < y\n"), shown(html="<table></table>", plain="no"))]
    cells += [code(shown(png="aGVs\nbG8=", plain="a figure"), shown(md="**bold**"))]
    text = page(*cells)
    assert "<h1>A title</h1>" in text and text.count("data:image/svg+xml;base64,") == 2
    assert "x &lt; y" in text and "<table></table>" in text and "<strong>bold</strong>" in text
    assert 'src="data:image/png;base64,aGVsbG8="' in text and "a figure" not in text
    assert "about &lt; this" in text
    assert not FETCHED.search(text)


def test_a_formula_that_matplotlib_cannot_draw_is_shown_as_code():
    text = page({"cell_type": "markdown", "source": [r"$\unheard{x}$"]})
    assert r"<code>\unheard{x}</code>" in text


def test_progress_and_warnings_are_left_out_and_the_last_state_of_a_line_stays():
    outputs = (
        stream("stdout", "1%\r5"),
        stream("stderr", "a warning"),
        stream("stdout", "0%\rdone\n"),
    )
    text = page(code(*outputs))
    assert ">done</pre>" in text and "%" not in text.partition("<body>")[2]
    assert "a warning" not in text


def test_equal_notebooks_give_equal_bytes_although_tables_have_random_names():
    def styled(name: str) -> dict:
        return code(shown(html=f"<style>#{name}_row0 {{}}</style><table id='{name}'>"))

    formula = {"cell_type": "markdown", "source": ["$K$"]}
    first, second = (page(formula, styled(a), styled(b)) for a, b in (
        ("T_0a1b2", "T_fffff"), ("T_11111", "T_22222"),
    ))  # fmt: skip
    assert first == second and "T_0_row0" in first and "T_1" in first


NOTEBOOK = """\
# %% tags=["parameters"]
scale = "smoke"  # one of smoke, desk
source = "packages"
out = ""

# %%
import os
print(scale, os.path.join(out, "runs"), os.path.expanduser("~/x"))
"""


def test_the_command_writes_a_page_that_names_no_folder_of_this_machine(tmp_path, capsys):
    (tmp_path / "60_one.py").write_text(NOTEBOOK)
    notebooks.write_twins(tmp_path)
    before = (tmp_path / "60_one.ipynb").read_bytes()
    words = ["notebooks", str(tmp_path / "60_one.ipynb"), "--out", str(tmp_path)]
    assert cli.main(words) == 0
    path = tmp_path / "results" / "notebooks" / "60_one.html"
    assert str(path) in capsys.readouterr().out
    text = path.read_text()
    assert "smoke ./runs" in text and str(tmp_path) not in text and str(Path.home()) not in text
    assert "60_one" in (tmp_path / "results" / "README.md").read_text()
    assert (tmp_path / "60_one.ipynb").read_bytes() == before  # the twin stays bare


def test_the_published_pages_are_small():
    assert sum(path.stat().st_size for path in PAGES) < 10 * 2**20


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_a_published_page_names_no_folder_of_a_machine_and_fetches_nothing(path):
    text = path.read_text(encoding="utf-8")
    text = re.sub(r"base64,[A-Za-z0-9+/=]+", "", text)
    assert not re.search(r"(?<![\w.])/(home|root|tmp|work|Users|mnt)/", text)
    assert not FETCHED.search(text)
    assert "Traceback (most recent call last)" not in text
