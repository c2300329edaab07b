"""What tests and notebooks share: the notebook of styles is skipped where diffusers is missing."""

from importlib.util import find_spec
from pathlib import Path

import pytest

from oral_lib.experiments.records import EXPERIMENTS


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    stem = EXPERIMENTS["style"].notebook
    if find_spec("diffusers") is None:
        reason = "the extra `diffusion` is not installed"
        for item in items:
            if Path(item.path).name == f"{stem}.ipynb":
                item.add_marker(pytest.mark.skip(reason=reason))
