"""A release: the generator of a run with card, licence and hashes, small enough for git."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from oral_lib import paths, storage
from oral_lib.assets.packages import ASSETS, Asset
from oral_lib.errors import OralError, PreflightError
from oral_lib.generator import Generator
from oral_lib.lora.peft_folder import CARD
from oral_lib.models import registry
from oral_lib.prompting import card
from oral_lib.prompting.released import write_sums
from oral_lib.tasks.task import load_task

FOLDER_BYTES = 20_000_000  # of a release, at most
FILE_BYTES = 16_000_000  # of each of its files
_STATE = "training.safetensors"  # of an interrupted training


def write_release(scale: str, source: str, out: str | Path = paths.ROOT) -> Path:
    """The folder results/generators/<scale>, written from the generator of a run.

    The files of the generator are copied as they are. The folder is replaced as a whole.

    Args:
        scale: of the run.
        source: of the run.
        out: the folder of runs/ and results/.

    Raises:
        PreflightError: the run has no generator, or the repository's licence is missing.
        OralError: the generator is damaged, too large, or not the one that the published results
            were measured with.
    """
    place = paths.experiment_folder(scale, source, out) / "generator"
    model = Generator.from_pretrained(place, source=source)
    licence = paths.ROOT / "LICENSE"
    if not licence.is_file():
        raise PreflightError(f"{licence} is missing: a release is written in a clone.")
    results = paths.results_folder(scale, out)
    figures = _figures(results, paths.slug(source), model.manifest["zoo"])
    used = derived_from(model)
    weights = [path for path in storage.list_paths(place, "*.safetensors") if path.name != _STATE]
    folder = paths.release_folder(scale, out)
    with storage.replacing(folder) as temporary:
        temporary.mkdir()
        for file in (place / "config.json", place / "manifest.json", *weights):
            shutil.copyfile(file, temporary / file.name)
        text = f"{licence.read_text('utf-8').rstrip()}\n\n{card.licence_notice(used)}"
        storage.write_text(temporary / "LICENSE", text)
        write_sums(temporary)
        size = _checked_size(temporary)
        storage.write_text(temporary / CARD, card.release_card(model, scale, figures, used, size))
        _checked_size(temporary)
    return folder


def _checked_size(folder: Path) -> int:
    """Bytes of all files in `folder`. OralError if they are more than a release may have."""
    sizes = {path.name: path.stat().st_size for path in folder.iterdir()}
    largest = max(sizes, key=sizes.get)
    if sizes[largest] >= FILE_BYTES or sum(sizes.values()) > FOLDER_BYTES:
        raise OralError(
            f"the release has {sum(sizes.values()) / 1e6:.1f} MB and its file {largest} "
            f"{sizes[largest] / 1e6:.1f} MB: at most {FOLDER_BYTES / 1e6:.0f} MB and less than "
            f"{FILE_BYTES / 1e6:.0f} MB are released. Train a smaller generator."
        )
    return sum(sizes.values())


def _figures(results: Path, source: str, zoo: Sequence[Mapping[str, Any]]):
    """The published metrics of the generator; None if nothing is published.

    OralError if they were measured with another zoo.
    """
    if not (results / "metrics.csv").is_file():
        return None
    published = storage.read_json(results / "manifest.json").get(source, {})
    hashes = [sorted(entry["sha256"] for entry in listed) for listed in (zoo, published["zoo"])]
    if hashes[0] != hashes[1]:
        raise OralError(
            f"{results} has figures of another zoo than this generator's: publish this run first, "
            "with `python -m oral_lib report`."
        )
    from oral_lib.evaluation.results import read_metrics

    metrics = read_metrics(results / "metrics.csv")
    return metrics[(metrics.source == source) & (metrics.experiment == "language")]


def derived_from(model: Generator) -> list[Asset]:
    """The models and data sets that the generator was made with; none are of synthetic data."""
    names = [model.config.text_encoder]
    names += [registry.spec(base).asset for base in model.bases]
    if model.source != "made":
        for task in dict.fromkeys(entry["task"] for entry in model.manifest["zoo"]):
            entry = load_task(task).sources.get(paths.slug(model.source), {})
            names += entry.get("sets") or [entry.get("set")]
    return [ASSETS[name] for name in dict.fromkeys(names) if name in ASSETS]
