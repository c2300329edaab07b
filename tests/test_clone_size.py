"""What a release adds to a clone: the documented commands, and the kinds of files."""

import random
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
COMMANDS = re.findall(
    r"^git rev-list .*$", (ROOT / "docs" / "publishing.md").read_text("utf-8"), re.MULTILINE
)


@pytest.fixture
def repository(tmp_path):
    """A repository with two commits; the second adds 50,000 bytes, replaces and removes them."""

    def git(*words: str) -> None:
        who = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
        subprocess.run(["git", "-C", tmp_path, *who, *words], check=True, capture_output=True)

    git("init", "-b", "main")
    for seed, name in enumerate(("old", "replaced", "new")):
        (tmp_path / "outcomes").write_bytes(random.Random(seed).randbytes(50_000))
        git("add", ".")
        git("commit", "-m", name)
    return tmp_path


def test_the_documented_commands_count_every_version_that_was_committed_since(repository):
    total, largest = (command.replace("main~9", "main~2") for command in COMMANDS)
    shell = {"cwd": repository, "shell": True, "capture_output": True, "text": True, "check": True}
    assert 100_000 < int(subprocess.run(total, **shell).stdout) < 102_000
    lines = subprocess.run(largest, **shell).stdout.splitlines()
    assert [line.split()[1] for line in lines if " " in line.strip()][-2:] == ["outcomes"] * 2
    nothing = subprocess.run(total.replace("main~2", "main"), **shell).stdout
    assert int(nothing) < 100
