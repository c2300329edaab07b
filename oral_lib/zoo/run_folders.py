"""The generators on disk: which runs have one, and for which base models each makes adapters.

Nothing here imports torch.
"""

from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from oral_lib import paths, scales, storage
from oral_lib.documents.words import short
from oral_lib.errors import OralError, PreflightError, UsageError, closest
from oral_lib.models import registry

LARGEST_FIRST = tuple(reversed(scales.SCALES))
LOCAL = "local:DIR"  # a local source whose folder the run knows
SOURCE_ORDER = ("packages", LOCAL, "hub")
RESTORE = "Get its folder from the repository again: git checkout -- results/generators."


@dataclass(frozen=True, kw_only=True)
class StoredGenerator:
    """A generator on disk, as its own files describe it."""

    folder: Path
    bases: tuple[str, ...]  # the base models that it makes adapters for
    tasks: tuple[str, ...] = ()  # of the adapters that it was trained on
    scale: str = ""  # empty outside a run
    source: str = "packages"  # where its text encoder and base models are read from
    experiment: str = ""
    fault: str = ""  # why it cannot be used
    release: str = ""  # the name of a released generator

    @property
    def run(self) -> str:
        """Scale and source in words; the folder for a generator outside a run."""
        if self.release:
            return f"{self.release} (released)"
        kind = self.source.partition(":")[0]
        return f"{self.scale} ({kind})" if self.scale else str(self.folder)

    @property
    def note(self) -> str:
        """A line that says which released generator is used."""
        return f"using the released generator {self.release} ({self.folder})"

    def with_source(self, source: str) -> "StoredGenerator":
        """The same generator, with models that are read from `source`."""
        return replace(self, source=source)


def describe(folder: str | Path, **place: str) -> StoredGenerator:
    """The generator in `folder`; with the attribute `fault` if its files cannot be read.

    Args:
        folder: a folder with config.json and manifest.json of a generator.
        place: further attributes.
    """
    folder = Path(folder)
    try:
        bases = dict(storage.read_json(folder / "config.json")["bases"])
        manifest = storage.read_json(folder / "manifest.json")
        kind = str(manifest.get("source") or "packages")
        place = {"scale": str(manifest.get("scale") or ""), "source": kind} | place
        if place["source"] == "local":  # the manifest has no folder
            place["source"] = local_source(folder)
        tasks = {str(entry["task"]) for entry in manifest.get("zoo") or ()}
        return StoredGenerator(
            folder=folder, bases=tuple(sorted(bases)), tasks=tuple(sorted(tasks)), **place
        )
    except (OralError, AttributeError, KeyError, TypeError, ValueError) as error:
        reason = str(error) if isinstance(error, OralError) else "config.json or manifest.json"
        place.pop("source", None)
        return StoredGenerator(folder=folder, bases=(), fault=f"damaged: {reason}", **place)


def local_source(folder: Path) -> str:
    """The local source that the run of the generator in `folder` recorded, else packages."""
    for parent in list(folder.absolute().parents)[:2]:
        for name in ("source.json", "plan.json"):
            if (parent / name).is_file():
                return str(storage.read_json(parent / name)["source"])
    return "packages"  # a copied generator: its text encoder is the same in every source


def stored_generators(
    out: str | Path = paths.ROOT, scale: str | None = None, source: str | None = None
) -> list[StoredGenerator]:
    """The generators of all runs below `out`: the largest scale first, then by source.

    Args:
        out: the folder of runs/.
        scale: only of this scale.
        source: only of this source, which is then also where base models are read from.
    """
    listed = []
    for place in run_places(scale, source):
        folder = paths.experiment_folder(*place[:2], out, place[2]) / "generator"
        if (folder / "manifest.json").is_file():
            name, of, experiment = place
            of = "local" if of == LOCAL else of
            listed.append(describe(folder, scale=name, source=of, experiment=experiment))
    return listed


def released_generators(
    scale: str | None = None, source: str | None = None
) -> list[StoredGenerator]:
    """The released generators, sorted by name.

    Args:
        scale: only of this scale.
        source: only of this source.
    """
    folders = [path.parent for path in storage.list_paths(paths.RELEASED, "*/manifest.json")]
    listed = [describe(folder, release=folder.name) for folder in folders]
    return [
        generator
        for generator in listed
        if scale in (None, generator.scale) and source in (None, generator.source)
    ]


def released_generator(name: str) -> StoredGenerator:
    """The released generator called `name`.

    Raises:
        PreflightError: no generator is next to the library, or its files cannot be read.
        UsageError: there are others, but none of this name.
    """
    listed = {generator.release: generator for generator in released_generators()}
    if not listed:
        raise paths.nothing_released()
    if name not in listed:
        raise UsageError(
            f"no released generator {short(name)}.{closest(name, listed)} There are "
            f"{', '.join(listed)}."
        )
    if listed[name].fault:
        raise PreflightError(f"the released generator {name} is {listed[name].fault} {RESTORE}")
    return listed[name]


def run_places(
    scale: str | None = None, source: str | None = None
) -> Iterator[tuple[str, str, str]]:
    """(scale, source, experiment) of all runs that there can be, in the order of choice.

    The largest scale is first, and source packages. A local source is LOCAL unless it is `source`.
    """
    for name in LARGEST_FIRST if scale is None else (scale,):
        kinds = (source,) if source else SOURCE_ORDER
        if name == "smoke":  # generates its data, whatever the source
            kinds = ("made",) if scale or source in (None, "made") else ()
        for kind in kinds:
            for experiment in scales.EXPERIMENT_NAMES:
                yield name, kind, experiment


def find_generator(
    base: str,
    out: str | Path = paths.ROOT,
    scale: str | None = None,
    source: str | None = None,
) -> StoredGenerator:
    """The generator that makes adapters for `base`: of several the first of `stored_generators`,
    and where no run has one, a released one.

    Raises:
        PreflightError: no run below `out` has a generator, and none is released.
        UsageError: none of them makes adapters for `base`.
        OralError: one that could be chosen is damaged.
    """
    listed, experiment = stored_generators(out, scale, source), ""
    listed += released_generators(scale, source)
    with suppress(UsageError):  # a base model of one's own adapters is in no registry
        experiment = registry.spec(base).experiment
    for generator in listed:
        if generator.fault and generator.release:
            raise OralError(f"the generator in {generator.folder} is {generator.fault} {RESTORE}")
        if generator.fault and experiment in ("", generator.experiment):
            raise OralError(
                f"the generator in {generator.folder} is {generator.fault} Train it again, or "
                "choose another run with --scale, or another folder with --generator."
            )
        if base in generator.bases:
            return generator
    where = "".join([f" of scale {scale}" * bool(scale), f" from source {source}" * bool(source)])
    if not listed:
        raise PreflightError(
            f"no run{where} in {Path(out) / 'runs'} has a generator: run ./reproduce.sh to train "
            "one, name the folder of runs/ with --out, or that of a generator with --generator."
        )
    bases = sorted({name for generator in listed for name in generator.bases})
    raise UsageError(
        f"no generator{where}, in {Path(out) / 'runs'} or released, makes adapters for base model "
        f"{base!r}."
        f"{closest(base, bases)} {_known(listed)}"
    )


def _known(listed: Iterable[StoredGenerator]) -> str:
    """The base models of generators in a sentence."""
    parts = [f"{generator.run} has {', '.join(generator.bases)}" for generator in listed]
    return "; ".join(parts) + "."
