"""The pages in docs: commands, options and variables in them exist, and all are documented."""

import argparse
import re
import shlex
from fnmatch import fnmatch
from xml.etree import ElementTree

import pandas as pd
import pytest

import oral_lib
from oral_lib.assets import packages
from oral_lib.paths import ROOT
from oral_lib.storage import list_paths
from oral_lib.workflow import cli, reproduce

DOCS = ROOT / "docs"
PAGES = list_paths(DOCS, "*.md")
NAMES = [page.name for page in PAGES]
CLI = (DOCS / "cli.md").read_text(encoding="utf-8")
INTERNAL = {"ORAL_ENV_READY", "ORAL_EVENTS", "ORAL_PLAN"}  # set by one process for the next
CODE = [*list_paths(ROOT / "oral_lib", "**/*.py"), ROOT / "reproduce.sh"]


def commands():
    """The parser of each subcommand by name."""
    [action] = [a for a in cli.parser()._actions if isinstance(a, argparse._SubParsersAction)]
    return action.choices


def options(parser):
    """The option names of a parser, without those for help."""
    names = {name for action in parser._actions for name in action.option_strings}
    return names - {"-h", "--help", "--version"}


def reproduce_options():
    return {*reproduce.USED_BY}


def section(title):
    """The text of a section of cli.md up to the next heading."""
    match = re.search(rf"^#+ {re.escape(title)}\n(.*?)(?=^#|\Z)", CLI, re.M | re.S)
    assert match, f"docs/cli.md has no section {title!r}"
    return match[1]


def option_rows(text):
    """The options in the first column of the tables of a section."""
    cells = re.findall(r"^\| ([^|]*) \|", text, re.M)
    return {name for cell in cells for name in re.findall(r"`(--?[a-z][a-z-]*)`", cell)}


def blocks(text):
    """The command lines in the code blocks of a page, without comments."""
    for kind, block in re.findall(r"^```(\w*)\n(.*?)^```$", text, re.M | re.S):
        if kind:
            continue
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words:
                yield words


@pytest.mark.parametrize("name", sorted(commands()))
def test_every_command_is_documented_with_all_its_options(name):
    assert option_rows(section(f"`{name}`")) == options(commands()[name])


def test_every_documented_command_exists():
    titles = re.findall(r"^### `(\w+)`$", CLI, re.M)
    assert sorted(titles) == sorted(commands())


def test_every_option_of_the_script_is_documented():
    assert option_rows(section("reproduce.sh")) == reproduce_options()
    named = re.findall(r"^\| `(\w+)`(?: \(default\))? \|", section("reproduce.sh"), re.M)
    assert named == list(reproduce.COMMANDS)


def test_every_public_name_is_documented():
    cells = re.findall(r"^\| ([^|]*) \|", section("From Python"), re.M)
    named = [name for cell in cells for name in re.findall(r"`(\w+)`", cell)]
    assert sorted(named) == sorted({*oral_lib.__all__} - {"__version__"})


def test_every_environment_variable_is_documented():
    in_code = {
        name
        for path in CODE
        for name in re.findall(r"\bORAL_[A-Z_]*[A-Z]\b", path.read_text(encoding="utf-8"))
    }
    documented = set(re.findall(r"^\| `([A-Z_]+)` \|", section("Environment variables"), re.M))
    assert {name for name in documented if name.startswith("ORAL_")} == in_code - INTERNAL
    scripts = "".join(path.read_text(encoding="utf-8") for path in CODE)
    assert all(name in scripts for name in documented)


@pytest.mark.parametrize("name", sorted({*NAMES} - {"reliability.md"}))  # it has tools of tests
def test_every_option_and_variable_that_a_page_names_exists(name):
    text = (DOCS / name).read_text(encoding="utf-8")
    text = re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)  # see the test of command lines
    every = reproduce_options().union({"--help"}, *map(options, commands().values()))
    named = {option for code in re.findall(r"`([^`\n]+)`", text) for option in option_words(code)}
    assert named - every == set()
    assert set(re.findall(r"\bORAL_[A-Z]+\b", text)) <= set(re.findall(r"`(ORAL_[A-Z]+)`", CLI))


def option_words(code):
    """The long options in a piece of code that is not a command of another program."""
    if re.match(r"(pip|conda|nvidia|git|papermill|python (?!-m oral_lib))", code):
        return []
    return re.findall(r"(?<![\w-])--[a-z][a-z-]*", code)


@pytest.mark.parametrize("name", NAMES)
def test_every_command_line_of_a_page_is_valid(name, tmp_path):
    for words in blocks((DOCS / name).read_text(encoding="utf-8")):
        words = [f"local:{tmp_path}" if word == "local:DIR" else word for word in words]
        if words[:3] == ["python", "-m", "oral_lib"]:
            cli.parser().parse_args(words[3:])
        elif words[0] == "oral":
            cli.parser().parse_args(words[1:])
        elif words[0] == "./reproduce.sh":
            reproduce.arguments(words[1:])


@pytest.mark.parametrize("name", NAMES)
def test_every_file_that_a_page_links_exists(name):
    links = re.findall(r"\]\(([^)\s]+)\)", (DOCS / name).read_text(encoding="utf-8"))
    for link in links:
        path, _, anchor = link.partition("#")
        if ":" in path:
            continue
        target = (DOCS / path).resolve() if path else DOCS / name
        assert target.exists(), link
        if anchor:
            titles = re.findall(r"^#+ (.+)$", target.read_text(encoding="utf-8"), re.M)
            slugs = [re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles]
            assert anchor in slugs, link


def test_every_folder_and_module_of_the_library_is_in_the_layout():
    layout = (DOCS / "layout.md").read_text(encoding="utf-8")
    table = layout.partition("## oral_lib")[2].partition("## results")[0]
    cells = re.findall(r"^\| ([^|]*) \|", table, re.M)
    named = [name for cell in cells for name in re.findall(r"`([\w./]+)`", cell)]
    library = list_paths(ROOT / "oral_lib", "*")
    folders = {f"{path.name}/" for path in library if (path / "__init__.py").exists()}
    modules = {path.name for path in library if path.suffix == ".py" and path.name[0] != "_"}
    assert sorted(named) == sorted(folders | modules)


def test_every_notebook_is_in_the_list():
    named = re.findall(r"^\| `(\d\d_\w+)` \|", (DOCS / "sweeps.md").read_text("utf-8"), re.M)
    assert named == sorted(path.stem for path in list_paths(ROOT / "notebooks", "*.py"))


def test_every_file_of_the_results_is_in_the_layout():
    layout = (DOCS / "layout.md").read_text(encoding="utf-8").partition("## results")[2]
    cells = re.findall(r"^\| ([^|]*) \|", layout, re.M)
    names = [name.rstrip("/") for cell in cells for name in re.findall(r"`([^`]+)`", cell)]
    patterns = [re.sub("<.*?>", "*", name) for name in names]
    for scale in ("desk", "lab"):
        for path in list_paths(ROOT / "results" / scale, "*"):
            earlier = path.name == "items.parquet"  # of results that were published before
            assert earlier or any(fnmatch(path.name, name) for name in patterns), path.name


def test_every_page_is_in_the_contents():
    contents = (DOCS / "README.md").read_text(encoding="utf-8")
    assert {name for name in NAMES if f"]({name})" not in contents} == {"README.md"}


def accuracy(scale, cell, method, condition, metric="accuracy"):
    """The mean of a measurement over seeds, in percent with one decimal."""
    frame = pd.read_csv(ROOT / "results" / scale / "metrics.csv")
    rows = frame[frame["method"].eq(method) & frame["condition"].eq(condition)]
    rows = rows[rows["metric"].eq(metric)]
    for column, value in cell.items():
        rows = rows[rows[column].eq(value)]
    return f"{100 * rows['value'].mean():.1f}"


def test_the_limits_have_the_accuracies_that_were_measured():
    limits = " ".join((DOCS / "limits.md").read_text(encoding="utf-8").split())
    pairs = re.findall(r"\| (\S+), (\w+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|", limits)
    assert len(pairs) == 5
    for base, task, *values in pairs:
        cell = {"base": base, "task": task}
        texts = ("matched", "random", "empty")
        assert values == [accuracy("desk", cell, "generated", text) for text in texts]
    cell = {"experiment": "multimodal", "source": "local", "task": "easy_vqa"}
    measured = [accuracy("lab", cell, method, "none") for method in ("soup_task", "trained")]
    assert "average of the adapters {}, adapters {}".format(*measured) in limits
    of_texts = {"multitask": "matched", "trained": "none", "regression": "matched"}
    cell = {"experiment": "unseen"}
    values = [accuracy("lab", cell, name, of_texts[name], "balanced_accuracy") for name in of_texts]
    generated = accuracy("lab", cell, "generated", "matched", "balanced_accuracy")
    assert "{}, trained {}, mean of 20 tasks".format(*values) in limits
    assert f"{values[2]} and {generated}, mean of 20 tasks" in limits


def test_the_packages_of_the_data_have_the_pinned_versions():
    named = dict(re.findall(r"`([\w-]+)` (\d[\w.]*\w)", (DOCS / "data.md").read_text("utf-8")))
    pinned = {name: pin.version for name, pin in packages.pins().items()}
    shipped = {asset.package for asset in packages.ASSETS.values()}
    assert named == {name: pinned[name] for name in shipped}


def test_the_limits_have_the_distances_that_were_measured():
    novelty = pd.read_csv(ROOT / "results" / "lab" / "novelty.csv")
    novelty = novelty[novelty["method"] == "generated"]
    cells = novelty.groupby(["experiment", "source", "base", "task"])["ratio"].mean()
    limits = (DOCS / "limits.md").read_text(encoding="utf-8")
    for (experiment, source), ratios in cells.groupby(["experiment", "source"]):
        numbers = f"{len(ratios)} | {ratios.median():.2f} | {ratios.max():.2f}"
        assert f"| {experiment}, `{source}` | {numbers} | {(ratios < 0.1).sum()} |" in limits


def test_the_image_of_the_method_is_text_and_needs_no_other_file():
    file = DOCS / "images" / "how-it-works.svg"
    image = file.read_text(encoding="utf-8")
    root = ElementTree.fromstring(image)
    texts = [node.text for node in root.iter("{http://www.w3.org/2000/svg}text")]
    assert len(texts) > 20 and {"One sentence", "Projection on the hull", "LoRA"} <= {*texts}
    assert "href" not in image and "@import" not in image
    colours = re.findall(r"#[0-9a-f]{6}", image)
    assert "prefers-color-scheme: dark" in image and len(set(colours)) > 5


def test_the_speeds_are_among_the_benchmarks():
    page = (DOCS / "speed.md").read_text(encoding="utf-8")
    table = pd.read_csv(ROOT / "results" / "lab" / "benchmarks.csv")
    values = table.loc[table["metric"].eq("adapters an hour"), "value"].round().astype(int)
    rows = re.findall(r"^\| .* \| H100, \w+ \| (.*) \| \d+ \|$", page, re.M)
    named = [re.match(r"[\d,]+", cell)[0] for row in rows for cell in row.split(" | ")]
    assert len(named) == 12
    assert {int(number.replace(",", "")) for number in named} <= {*values}
