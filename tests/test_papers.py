"""The papers of the house agree with what was measured and with the code."""

import re
import tomllib
from dataclasses import fields
from pathlib import Path

import pytest
import yaml

import oral_lib
from oral_lib.evaluation import small_tables
from oral_lib.method.config import GeneratorConfig, SamplingConfig
from oral_lib.method.denoiser import DenoiserConfig
from oral_lib.method.diffusion import DiffusionConfig
from oral_lib.method.recurrence import RecurrenceConfig
from oral_lib.method.training.tokens import TrainingConfig

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


FINDINGS = ROOT / "FINDINGS.md"


def test_the_readme_is_read_in_five_minutes():
    assert len(README.splitlines()) <= 250


def test_the_readme_names_no_commit_and_links_decisions_once():
    text = re.sub(r"\]\([^)]*\)", "]", README)
    assert re.findall(r"\b(?=[0-9a-f]*\d)(?=[0-9a-f]*[a-f])[0-9a-f]{7,40}\b", text) == []
    assert len(re.findall(r"DEVIATIONS\.md|docs/decisions|\bD-[A-Z]{3}-\d+", README)) <= 1


def test_the_findings_are_short():
    assert not FINDINGS.exists() or len(FINDINGS.read_text("utf-8").splitlines()) <= 150


@pytest.mark.parametrize("page", ["README.md", "FINDINGS.md", "results/README.md"])
def test_every_file_that_a_page_links_is_there(page):
    path = ROOT / page
    if not path.exists():
        pytest.skip(f"{page} has not been written")
    text = path.read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)|\bsrc=\"([^\"]+)\"", text)
    links = [link for pair in links for link in pair if link and ":" not in link]
    missing = [link for link in links if not (path.parent / link).exists()]
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
