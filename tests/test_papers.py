"""The papers of the house agree with what was measured and with the code."""

import re
import tomllib
from dataclasses import fields
from pathlib import Path

import yaml

import oral_lib
from oral_lib.evaluation import small_tables
from oral_lib.method.config import GeneratorConfig, SamplingConfig
from oral_lib.method.denoiser import DenoiserConfig
from oral_lib.method.diffusion import DiffusionConfig
from oral_lib.method.recurrence import RecurrenceConfig
from oral_lib.method.training import TrainingConfig

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_readme_shows_the_table_that_the_report_wrote():
    grids = [f"lab/tables/grid-{name}-local.md" for name in ("language", "vision", "multimodal")]
    grids += [f"lab/tables/grid-{name}-packages.md" for name in ("vision", "multimodal")]
    for name in ("desk/tables/main-language-packages.md", "lab/tables/overview.md", *grids):
        table = (ROOT / "results" / name).read_text(encoding="utf-8")
        assert table.strip() in README


def test_every_file_that_the_readme_links_is_there():
    links = re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", README)
    missing = [link for link in links if ":" not in link and not (ROOT / link).exists()]
    assert links and missing == []


def test_every_choice_has_an_id_of_its_own():
    text = (ROOT / "DEVIATIONS.md").read_text(encoding="utf-8")
    named = re.findall(r"^\| \[?(D-[A-Z]{3}-\d+)\b", text, flags=re.MULTILINE)
    assert len(named) > 30 and len(set(named)) == len(named)
    assert set(re.findall(r"D-[A-Z]{3}-\d+", text)) == set(
        named
    )  # no id is cited that is not there


def test_every_choice_that_is_linked_has_a_file_under_its_id():
    text = (ROOT / "DEVIATIONS.md").read_text(encoding="utf-8")
    links = re.findall(r"^\| \[([^]]+)\]\(([^)]+)\)", text, flags=re.MULTILINE)
    for choice, path in links:
        assert path == f"docs/decisions/{choice}.md"
        assert (ROOT / path).read_text(encoding="utf-8").startswith(f"# {choice}: ")


def test_version_and_licence_are_the_same_everywhere():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert project["version"] == oral_lib.__version__ == citation["version"]
    assert project["license"] == citation["license"] == "Apache-2.0"
    assert "Apache License" in (ROOT / "LICENSE").read_text(encoding="utf-8")[:200]


def test_the_report_shows_every_benchmark():
    for path in (ROOT / "results").glob("*/benchmarks.csv"):
        report = path.with_name("training.md").read_text(encoding="utf-8")
        for case in set(small_tables.BENCHMARKS.read(path.parent)["case"]):
            assert f"| {case} |" in report, f"{path.parent.name}: {case}"


def test_a_setting_that_a_paper_names_is_a_field():
    configs = {
        cls.__name__: {field.name for field in fields(cls)}
        for cls in (
            GeneratorConfig, SamplingConfig, DenoiserConfig, RecurrenceConfig, DiffusionConfig,
            TrainingConfig,
        )
    }  # fmt: skip
    named = {
        (*match, path.name)
        for path in [ROOT / "DEVIATIONS.md", *(ROOT / "docs").rglob("*.md")]
        for match in re.findall(r"`(\w+Config)\.(\w+)`", path.read_text(encoding="utf-8"))
    }
    assert named
    assert [n for n in sorted(named) if n[1] not in configs.get(n[0], ())] == []
