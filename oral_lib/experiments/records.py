"""The experiments: one record each, with what it trains, measures and shows.

Imports with the standard library only: the plan and the command line read the records. The
functions of a record import what computes when they are called.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from oral_lib import scales
from oral_lib.planning.parts import GeneratorJob


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where an experiment is computed: its scale and data source, its folder, its device."""

    scale: str
    source: str
    root: Path
    device: str

    def options(self, *names: str) -> dict[str, Any]:
        """The fields called `names`, as keyword arguments."""
        return {name: getattr(self, name) for name in names}


def _train_cells(place: Place, base: str, tasks: Sequence[str], seeds: Sequence[int]) -> list[Path]:
    """A zoo of few tasks with several seeds each."""
    from oral_lib.zoo import recipes, store

    recipe = recipes.DESK.get(base) if place.scale == "desk" else None
    options = place.options("source", "root", "device")
    return store.train_seeds(base, tasks, seeds, recipe=recipe, **options)


def _train_tasks(place: Place, base: str, tasks: Sequence[str], seeds: Sequence[int]) -> list[Path]:
    """A zoo of many tasks with one seed each; `seeds` has no effect."""
    from oral_lib.zoo import store

    return store.train_tasks(base, tasks, **place.options("source", "root", "device"))


def _train_messages(
    place: Place, base: str, tasks: Sequence[str], seeds: Sequence[int]
) -> list[Path]:
    """The adapters of all tasks on messages in one folder; `tasks` and `seeds` have no effect."""
    from oral_lib.experiments.intents import rivals

    return [rivals.train_zoo(base, **place.options("scale", "source", "root", "device"))]


def _train_rivals(place: Place, base: str) -> Path:
    """The folder of all that the generators are compared with on messages."""
    from oral_lib.experiments.intents import rivals

    return rivals.train_rivals(base, **place.options("scale", "source", "root", "device"))


def _train_network(record: "Experiment", place: Place, job: GeneratorJob) -> Path:
    """A generator or baseline that learns from the adapters of the zoo; kind "through_base" goes on
    with the loss of the base models."""
    options = place.options("scale", "source", "root", "device")
    if job.kind == "through_base":
        from oral_lib.experiments.seen import through_base

        plans = scales.base_plans(place.scale, place.source, record.name)
        preset = through_base.preset(place.scale, record.name)
        return through_base.train_from_weights(plans, job, configured=preset, **options)
    from oral_lib.experiments import generators

    members = scales.members(place.scale, place.source, record.name)
    configured = record.preset(place.scale, job)
    return generators.train_from_zoo(members, job, configured=configured, **options)


def _train_unseen(record: "Experiment", place: Place, job: GeneratorJob) -> Path:
    """The same, or a generator that learns through the base model, or one LoRA for all tasks."""
    if job.kind not in ("through_base", "multitask"):
        return _train_network(record, place, job)
    from oral_lib.experiments import unseen

    [plan] = scales.base_plans(place.scale, place.source, record.name)
    options = place.options("scale", "source", "root", "device")
    if job.kind == "through_base":
        return unseen.train_generator_through_base(plan.base, plan.tasks, job, **options)
    return unseen.train_multitask(plan.base, plan.tasks, **options)


def _train_writer(record: "Experiment", place: Place, job: GeneratorJob) -> Path:
    """A generator for all base models and tasks on messages."""
    from oral_lib.experiments.intents import writer

    plans = scales.base_plans(place.scale, place.source, record.name)
    options = place.options("scale", "source", "root", "device")
    return writer.train_job(job, [plan.base for plan in plans], **options)


def _measure_split(split: str, base: str, seed: int, **options: Any) -> tuple:
    """All tasks of a split, with the networks of the split and seed."""
    from oral_lib.experiments.intents import measure, writing

    cache = options["cache"]
    names = scales.cell_networks(options["scale"], cache.source, "intents", split, seed)
    networks = writing.writings(names, base, seed, cache)
    return measure.run_cell(split, base, seed, networks=networks, **options)


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """What distinguishes one experiment from the others.

    Args:
        name: one of `scales.EXPERIMENT_NAMES`.
        notebook: file stem of the notebook of its cells.
        shows_all_cells: one notebook shows all cells; it has no parameter `task`.
        main: its files are stored in the run folder itself and its nodes have no prefix.
        cells: the module of `oral_lib.experiments` with `run_cell`.
        measure_cell: measures a cell in place of that `run_cell`.
        presets: the module of `oral_lib.experiments` with `preset`.
        preset_options: further arguments of that `preset`.
        train_zoo: trains the missing adapters of (place, base model, tasks, seeds) and returns
            the folders of all.
        train_rivals: trains what generators are compared with, of (place, base model); returns its
            folder. An experiment with it has splits in place of tasks: its zoo has one folder, with
            a manifest, for each base model.
        train_network: trains a network of (record, place, job); returns its folder.
        zoo_curves: the training losses of single adapters are published.
        shows_images: a figure of test images with answers is published.
        requires_diffusers: the optional package diffusers has to be installed.
    """

    name: str
    notebook: str
    shows_all_cells: bool = False
    main: bool = False
    cells: str = "cells"
    measure_cell: Callable[..., tuple] | None = None
    presets: str = "generators"
    preset_options: Mapping[str, int] = field(default_factory=dict)
    train_zoo: Callable[[Place, str, Sequence[str], Sequence[int]], list[Path]] = _train_cells
    train_rivals: Callable[[Place, str], Path] | None = None
    train_network: Callable[["Experiment", Place, GeneratorJob], Path] = _train_network
    zoo_curves: bool = True
    shows_images: bool = False
    requires_diffusers: bool = False

    @property
    def has_splits(self) -> bool:
        """Whether a cell has all tasks of a split."""
        return self.train_rivals is not None

    @property
    def prefix(self) -> str:
        """What the names of its nodes begin with."""
        return "" if self.main else f"{self.name}/"

    @property
    def options(self) -> list[str]:
        """The option that selects it on the command line; none for the main experiment."""
        return [] if self.main else ["--experiment", self.name]

    def publication(self, source: str) -> str:
        """Its entry in the manifest of published results; `source` is a slug."""
        return source if self.main else f"{source}-{self.name}"

    def run_cell(self, task: str, base: str, seed: int, **options: Any) -> tuple:
        """(metrics, items, further tables) of one cell; `options`: scale, cache, wordings."""
        measure_cell = self.measure_cell or self._module(self.cells).run_cell
        return measure_cell(task, base, seed, **options)

    def preset(self, scale: str, job: GeneratorJob) -> Any:
        """The configurations of a generator of this experiment."""
        return self._module(self.presets).preset(scale, job, **self.preset_options)

    def _module(self, name: str):
        return import_module(f"oral_lib.experiments.{name}")


EXPERIMENTS = {
    record.name: record
    for record in (
        Experiment(name="language", notebook="10_language", main=True),
        Experiment(name="vision", notebook="20_vision", shows_images=True),
        Experiment(
            name="unseen",
            notebook="21_unseen",
            shows_all_cells=True,
            cells="unseen",
            presets="unseen",
            train_zoo=_train_tasks,
            train_network=_train_unseen,
            zoo_curves=False,  # of hundreds of adapters
        ),
        Experiment(
            name="intents",
            notebook="23_intents",
            shows_all_cells=True,
            measure_cell=_measure_split,
            train_zoo=_train_messages,
            train_rivals=_train_rivals,
            train_network=_train_writer,
            zoo_curves=False,
        ),
        Experiment(
            name="multimodal",
            notebook="30_multimodal",
            shows_images=True,
            preset_options={"hidden": 256},  # its zoo has 20 MB, a wider network as many: D-DIF-9
        ),
        Experiment(name="style", notebook="22_style", cells="styles", requires_diffusers=True),
    )
}
