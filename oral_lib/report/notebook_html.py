"""An executed notebook as one HTML page with its images, which needs no network to be read.

The page has the text, the code and the outputs of every cell. What a cell prints to stderr, such as
progress bars, is left out.
"""

import base64
import html
import io
import re
from collections.abc import Iterator, Mapping
from functools import partial

from markdown_it import MarkdownIt
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.mathtext import MathTextParser
from mdit_py_plugins.dollarmath import dollarmath_plugin
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer

from oral_lib.report.figures.theme import styled

_STYLE = """\
body { max-width: 60rem; margin: 2rem auto; padding: 0 1rem; font: 16px/1.5 system-ui, sans-serif; }
pre { padding: .6rem .8rem; overflow-x: auto; font-size: 13px; line-height: 1.4; }
.highlight pre { background: #f5f5f5; border-left: 3px solid #0173b2; }
pre.output { margin-left: 1.5rem; }
div.output { margin-left: 1.5rem; overflow-x: auto; }
table { border-collapse: collapse; font-size: 13px; }
th, td { padding: .2rem .6rem; border-bottom: 1px solid #ddd; text-align: right; }
img { max-width: 100%; }
img.formula { display: block; margin: 1rem auto; }
footer { margin-top: 3rem; color: #666; font-size: 13px; }
"""
_CODE = HtmlFormatter(style="friendly", cssclass="highlight")
_POINTS = 12  # of the letters of a formula
_LONG = {r"\ge": r"\geq", r"\le": r"\leq", r"\text": r"\mathrm"}  # commands of TeX, of mathtext
_SHORT = re.compile(r"\\(ge|le|text)(?![a-zA-Z])")
_STYLER = re.compile(r"\bT_[0-9a-f]{5}(?=_|\b)")  # the id of a styled table, drawn at random


def notebook_page(notebook: Mapping, title: str, replaced: Mapping[str, str], about: str) -> str:
    """The HTML of an executed notebook.

    Args:
        notebook: the notebook as JSON.
        title: the title of the page.
        replaced: texts of the page and what to write for them, such as the folder of the project.
        about: the footer of the page, plain text.
    """
    cells = "\n".join(_cell(cell) for cell in notebook["cells"])
    for text, other in replaced.items():
        cells = cells.replace(html.escape(text), html.escape(other)).replace(text, other)
    ids = {name: f"T_{i}" for i, name in enumerate(dict.fromkeys(_STYLER.findall(cells)))}
    cells = _STYLER.sub(lambda match: ids[match[0]], cells)
    style = _STYLE + _CODE.get_style_defs(".highlight")
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f"<title>{html.escape(title)}</title>\n<style>\n{style}\n</style>\n</head>\n<body>\n"
        f"{cells}\n<footer>{html.escape(about)}</footer>\n</body>\n</html>\n"
    )


def _cell(cell: Mapping) -> str:
    text = "".join(cell["source"])
    if cell["cell_type"] == "markdown":
        return _markdown(text)
    if cell["cell_type"] != "code" or not text.strip():
        return ""
    return "\n".join([highlight(text, PythonLexer(), _CODE), *_outputs(cell["outputs"])])


def _outputs(outputs: list[Mapping]) -> Iterator[str]:
    """The outputs of a cell but for stderr; what is printed in pieces is joined."""
    printed = ""
    for output in outputs:
        if output["output_type"] == "stream":
            printed += "".join(output["text"]) * (output["name"] == "stdout")
            continue
        if printed:
            yield _printed(printed)
            printed = ""
        yield _shown(output["data"])
    if printed:
        yield _printed(printed)


def _printed(text: str) -> str:
    lines = (line.rstrip("\r").rpartition("\r")[2] for line in text.split("\n"))
    text = html.escape("\n".join(lines).rstrip())
    return f'<pre class="output">{text}</pre>'


def _shown(data: Mapping) -> str:
    """The richest form of a value that a cell shows."""
    for kind in ("image/png", "image/jpeg"):
        if kind in data:
            encoded = "".join("".join(data[kind]).split())
            return f'<div class="output">{_image(kind, encoded)}</div>'
    for kind in ("text/html", "image/svg+xml"):
        if kind in data:
            return f'<div class="output">{"".join(data[kind])}</div>'
    if "text/markdown" in data:
        return f'<div class="output">{_markdown("".join(data["text/markdown"]))}</div>'
    return _printed("".join(data["text/plain"]))


def _image(kind: str, encoded: str, **attributes: str) -> str:
    more = "".join(f' {name}="{html.escape(value)}"' for name, value in attributes.items())
    return f'<img src="data:{kind};base64,{encoded}"{more}>'


# ---------------------------------------------------------------- texts and formulas
def _markdown(text: str) -> str:
    reader = MarkdownIt("commonmark").enable("table")
    reader.use(partial(dollarmath_plugin, renderer=_formula))
    return reader.render(text)


def _formula(text: str, options: Mapping) -> str:
    """A formula of TeX as an image; as code where matplotlib does not know a command of it."""
    text, font = " ".join(text.split()), FontProperties(size=_POINTS)
    drawn = f"${_SHORT.sub(lambda match: _LONG[match[0]], text)}$"
    try:
        size = MathTextParser("path").parse(drawn, 72, font)
    except ValueError:
        return f"<code>{html.escape(text)}</code>"
    width, height, depth = (round(float(x), 2) + 1 for x in size[:3])
    data = io.BytesIO()
    with styled():
        figure = Figure(figsize=(width / 72, height / 72))
        figure.text(0, depth / height, drawn, fontproperties=font)
        figure.savefig(data, format="svg", metadata={"Date": None}, transparent=True)
    look = f"width: {width / _POINTS:.2f}em"
    if not options["display_mode"]:
        look += f"; vertical-align: {-depth / _POINTS:.2f}em"
    encoded, attributes = base64.b64encode(data.getvalue()).decode(), {"style": look, "alt": text}
    if options["display_mode"]:
        attributes["class"] = "formula"
    return _image("image/svg+xml", encoded, **attributes)
