"""A run: the zoo, generators and cells of one experiment; what notebooks and commands call."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import pandas as pd
import torch

from oral_lib import paths, scales, storage
from oral_lib.assets.cache import MANIFEST
from oral_lib.errors import UsageError
from oral_lib.evaluation import item_tables, results, small_tables
from oral_lib.experiments import ablations, benchmarks, generators
from oral_lib.experiments.ablation_study import Study
from oral_lib.experiments.ablation_variants import check_groups
from oral_lib.experiments.model_cache import ModelCache
from oral_lib.experiments.records import EXPERIMENTS, Experiment, Place
from oral_lib.experiments.side_tables import stored
from oral_lib.generator import Generator
from oral_lib.models import evolution, loading
from oral_lib.models.base import BaseModel
from oral_lib.report import build
from oral_lib.runner import nodes
from oral_lib.tasks.rows import task_rows
from oral_lib.tasks.task import load_task
from oral_lib.tasks.wordings import check_wordings, recorded
from oral_lib.workflow import publish
from oral_lib.zoo import store, summary, tuning
from oral_lib.zoo.store import Member


@dataclass(frozen=True)
class Run:
    """One experiment at one scale, with what it trains and measures.

    Every step computes only what is missing in the folder of the run.

    Args:
        scale: "smoke", "desk", "lab" or "paper". The smoke scale generates its data, whatever the
            source.
        source: "packages", "hub" or "local:DIR".
        out: the folder of runs/ and results/ (default: the repository).
        experiment: one of `scales.EXPERIMENT_NAMES`.
        wordings: the held-out paraphrases that cells measure, "development" or "test". Default:
            those that the run folder records (`./reproduce.sh --wordings`), else "development".

    Raises:
        UsageError: unknown scale, source, experiment or wordings, or the scale leaves it out.

    >>> run = Run("smoke")
    >>> [plan.base for plan in run.planned]
    ['tiny-encoder', 'tiny-causal']
    """

    scale: str = "smoke"
    source: str = "packages"
    out: str | Path = paths.ROOT
    experiment: str = "language"
    wordings: str = ""

    def __post_init__(self) -> None:
        if self.wordings:
            check_wordings(self.wordings)
        object.__setattr__(self, "source", "made" if self.scale == "smoke" else self.source)
        kind, _, folder = self.source.partition(":")
        if kind == "local" and folder:  # one name for each folder
            absolute = paths.full(folder)
            object.__setattr__(self, "source", f"local:{absolute}")
        if not scales.base_plans(self.scale, self.source, self.experiment):
            raise UsageError(scales.not_planned(self.scale, self.source, self.experiment))
        object.__setattr__(self, "out", Path(self.out or paths.ROOT).absolute())

    # ------------------------------------------------------------ where and what
    @property
    def root(self) -> Path:
        """The folder of this run."""
        return paths.experiment_folder(self.scale, self.source, self.out, self.experiment)

    @property
    def measured_wordings(self) -> str:
        """The held-out paraphrases that cells measure."""
        return self.wordings or recorded(paths.run_folder(self.scale, self.source, self.out))

    @property
    def results(self) -> Path:
        """The folder of the published results."""
        return paths.results_folder(self.scale, self.out)

    @property
    def record(self) -> Experiment:
        """What distinguishes this experiment from the others."""
        return EXPERIMENTS[self.experiment]

    @property
    def planned(self) -> tuple[scales.BasePlan, ...]:
        """The base models of this run, with tasks and seeds."""
        return scales.base_plans(self.scale, self.source, self.experiment)

    @property
    def device(self) -> str:
        """ "cuda" with an NVIDIA GPU, else "cpu"."""
        return "cuda" if torch.cuda.is_available() else "cpu"

    @cached_property
    def _cache(self) -> ModelCache:
        """The models that the cells of this run share."""
        return ModelCache(self.root, self.source, self.device)

    @property
    def _place(self) -> Place:
        return Place(scale=self.scale, source=self.source, root=self.root, device=self.device)

    def check(self, task: str, base: str) -> None:
        """Raises UsageError, with the nearest name, unless this run has a cell (task, base)."""
        scales.check_cell(self.scale, self.source, base, task, self.experiment)

    # ------------------------------------------------------------ training
    def ready(self) -> "Run":
        """This run, after training all that is missing of its zoo and generators."""
        self.root.mkdir(parents=True, exist_ok=True)
        with storage.file_lock(self.root / ".ready.lock"):
            for plan in self.planned:
                if plan.aligned:
                    self.align(plan.base)
                if plan.tuned:
                    self.tune(plan.base, plan.tasks)
                if plan.parent:
                    self.evolve(plan.base)
                self.train_zoo(plan.base, plan.zoo_tasks, plan.all_seeds)
                if self.record.has_splits:
                    self.train_rivals(plan.base)
            for name in scales.generators(self.scale, self.experiment, self.source):
                self.train_generator(name)
        return self

    def train_zoo(self, base: str, tasks: Sequence[str], seeds: Sequence[int]) -> list[Path]:
        """The folders of the adapters of `base`, after training the missing ones."""
        self._record_source()
        return self.record.train_zoo(self._place, base, tasks, seeds)

    def train_rivals(self, base: str) -> Path:
        """The folder of what generators are compared with on `base`, after training it."""
        self._record_source()
        return self.record.train_rivals(self._place, base)

    def tune(self, base: str, tasks: Sequence[str]) -> list[Path]:
        """The files of the recipes of `base`, after choosing the missing ones."""
        self._record_source()
        return tuning.tune(base, tasks, source=self.source, root=self.root, device=self.device)

    def evolve(self, base: str) -> Path:
        """The file of the drift of a later version of a model, trained if it is missing."""
        evolution.ensure(base, self.source, self.device)
        path = self.root / "evolved" / f"{base}.json"
        storage.write_json(path, {"versions": evolution.history(base, self.source)})
        return path

    def align(self, base: str) -> Path:
        """The file of the alignment of a two-tower model, trained if it is missing."""
        from oral_lib.models import alignment  # imports open_clip, which is slow

        manifest = alignment.ensure(base, self.source, self.device) / MANIFEST
        path = self.root / "aligned" / f"{base}.json"
        # a user's two-tower model has no manifest
        storage.write_json(path, storage.read_json(manifest) if manifest.exists() else {})
        return path

    def train_generator(self, name: str) -> Path:
        """The folder of a generator or baseline, trained if it is missing.

        Raises:
            UsageError: `name` is none of `scales.generators`.
        """
        job = scales.generator_job(self.scale, name, self.experiment, self.source)
        return self.record.train_network(self.record, self._place, job)

    def _record_source(self) -> None:
        """Record the local data source of this run folder.

        Raises UsageError if the folder was created from another source.
        """
        if self.source.startswith("local:"):
            path = self.root / "source.json"
            nodes.same_source(path, self.source)
            if not path.exists():
                storage.write_json(path, {"source": self.source})

    # ------------------------------------------------------------ what was trained
    def members(self, base: str) -> list[Member]:
        """The adapters of a base model that the generators are trained on."""
        members = scales.members(self.scale, self.source, self.experiment)
        return [store.read(self.root, *member) for member in members if member[0] == base]

    def show_zoo(self, base: str) -> pd.DataFrame:
        """A base model's zoo, one row for each task and recipe.

        Columns: number of adapters, then means of validation accuracy and log-likelihood (where
        they exist; of a style minus the squared error of denoising) and of the last loss.
        """
        return summary.of_members(self.members(base))

    def generator(self, kind: str = "generator") -> Generator:
        """The trained generator, or the baseline "regression"."""
        return Generator.from_pretrained(self.root / kind, self.device, source=self.source)

    def base(self, name: str, labels: int = 2) -> BaseModel:
        """A frozen base model on the device of this run."""
        return loading.load(name, source=self.source, labels=labels, device=self.device)

    def ablation_study(
        self,
        *,
        bases: Sequence[str] = (),
        tasks: Sequence[str] = (),
        rows: int = 200,
        samples: int = 10,
        steps: int | None = None,
        seed: int = 0,
        device: str | None = None,
    ) -> Study:
        """What the variants of an ablation share; missing adapters of the zoo are trained.

        Args:
            bases: base models that share a generator; default: the first of the scale.
            tasks: measured tasks; default: those scored without writing an answer.
            rows: validation rows of a task.
            samples: adapters generated for a task.
            steps: of each training; default: as long as the scale trains.
            seed: of training and samples.
            device: default: that of the run.
        """
        for name, value in {"rows": rows, "samples": samples, "steps": steps or 1}.items():
            if value < 1:
                raise UsageError(f"ablations: {name}={value}: must be 1 or more.")
        measured = ablations.measured_tasks(self.scale, self.source, bases, tasks)
        self.root.mkdir(parents=True, exist_ok=True)
        with storage.file_lock(self.root / ".ready.lock"):
            for name in measured:
                plan = scales.base_plan(self.scale, name, self.source, "language")
                self.train_zoo(name, plan.tasks, list(range(plan.zoo_seeds)))
        default = generators.preset(self.scale)
        return Study(
            source=self.source,
            bases=tuple(measured),
            tasks=measured,
            config=default.network,
            sampling=default.sampling,
            training=replace(default.training, seed=seed, steps=steps or default.training.steps),
            rows=rows,
            samples=samples,
            members=tuple(m for name in measured for m in self.members(name)),
            facts={name: store.stored_facts(self.root, name, self.source) for name in measured},
            device=device or self.device,
        )

    def ablate(self, groups: Sequence[str], **options) -> pd.DataFrame:
        """Measures the missing variants of `groups` into results/<scale>/ablations.csv; all rows of
        the study. `options`: see `ablation_study`."""
        names = check_groups(groups)
        study = self.ablation_study(**options)
        path = self.results / "ablations.csv"
        return ablations.measure_variants(study, self.root / "ablations", path, names)

    # ------------------------------------------------------------ measuring
    def cell(self, task: str, base: str, seed: int) -> tuple[pd.DataFrame, pd.DataFrame]:
        """(metrics, items) of one cell.

        Read from its files if they were measured with the present networks and wordings, else
        measured.

        Raises:
            PreflightError: a generator or baseline of the cell was not trained.
        """
        folder = self._cell_folder(base, task, seed)
        self.root.mkdir(parents=True, exist_ok=True)
        self._record_source()
        with storage.file_lock(self.root / f".{folder.name}.lock"):
            networks, wordings = self._network_hashes(base, task, seed), self.measured_wordings
            if not results.is_current(folder, networks, wordings):
                about = {"scale": self.scale, "cache": self._cache, "wordings": wordings}
                *frames, tables = self.record.run_cell(task, base, seed, **about)
                stored.write_rows(self.root, folder.name, tables)
                results.write_cell(folder, *frames, networks, wordings)
        return results.read(folder)

    def measure(self, base: str, tasks: Sequence[str]) -> Path:
        """The file that lists the cells of `base` on `tasks`, after measuring the missing ones.

        All cells are measured in this process, much faster than in a notebook each. A cell that was
        measured with another network than the present one is measured again.

        Raises:
            UsageError: this run has no such cell.
            PreflightError: a generator or baseline was not trained.
        """
        for task in tasks:
            self.check(task, base)
        seeds = range(scales.base_plan(self.scale, base, self.source, self.experiment).seeds)
        folders = []
        for task in tasks:
            for seed in seeds:
                self.cell(task, base, seed)
                folders.append(self._cell_folder(base, task, seed))
                for name in ("metrics.csv", "items.parquet"):
                    (folders[-1] / name).touch()  # nodes are due by age
        path = self.root / "cells" / f"{base}.json"
        storage.write_json(path, {"cells": [folder.name for folder in folders]})
        return path

    def cells(self) -> list[Path]:
        """The folders of all planned cells, after measuring the missing ones.

        Cells of further seeds, added by a sweep, follow if they measure the present generator.
        """
        planned = [
            (plan.base, task, seed)
            for plan in self.planned
            for task in plan.cell_tasks
            for seed in range(plan.seeds)
        ]
        for base, task, seed in planned:
            self.cell(task, base, seed)
        folders = [self._cell_folder(*cell) for cell in planned]
        for base, task in dict.fromkeys((base, task) for base, task, _ in planned):
            pattern = f"{self.experiment}--{base}--{task}--seed-*"
            for folder in storage.list_paths(self.root / "cells", pattern):
                seed = folder.name.rpartition("-")[2]
                if folder not in folders and seed.isdecimal():
                    networks = self._network_hashes(base, task, int(seed))
                    current = results.is_current(folder, networks, self.measured_wordings)
                    folders += [folder] * current
        return folders

    def _network_hashes(self, base: str, task: str, seed: int) -> dict[str, str]:
        """Hashes of all that a cell measures: its networks, with splits also zoo and rivals."""
        place = self.scale, self.source, self.experiment
        names = [*scales.cell_networks(*place, task, seed).values()]
        names += [f"{step}/{base}" for step in ("zoo", "rivals")] * self.record.has_splits
        return results.network_hashes(self.root, names)

    def _cell_folder(self, base: str, task: str, seed: int) -> Path:
        return paths.cell_folder(self.root, self.experiment, base, task, seed)

    def measured(self) -> tuple[pd.DataFrame, pd.DataFrame]:
        """(metrics, items) of all cells, after measuring the missing ones."""
        metrics, items = zip(*map(results.read, self.cells()), strict=True)
        return pd.concat(metrics, ignore_index=True), item_tables.join(items)

    def findings(self, items: pd.DataFrame, by_cell: bool = True) -> str:
        """The judgements of `items` in words: a summary, and `by_cell` each cell."""
        held_out = max(plan.held_out for plan in self.planned)
        place = self.experiment, self.source
        return build.findings_of(*place, items, held_out=held_out, by_cell=by_cell)

    # ------------------------------------------------------------ publishing
    def publish(self) -> Path:
        """The path of results/README.md, after adding all cells of this run to the results."""
        where = self.scale, self.source, self.experiment, self.root, self.results
        cells = self.cells()
        if not self.record.has_splits:
            about = self.planned, self.source, self.experiment, self.root
            stored.describe_adapters(*about, self._cache.generator("generator"))
        return publish.publish(*where, cells, self.measured_wordings)

    def published(self) -> tuple[pd.DataFrame, pd.DataFrame]:
        """(metrics, items) of this experiment among the published results."""
        return publish.published(self.results, self.experiment)

    # ------------------------------------------------------------ benchmarks
    def bench(self) -> Path:
        """The path of the new report, after timing the hot paths on every base model."""
        for plan in self.planned:
            self._store_times(benchmarks.zoo_rows(*self._longest_task(plan)))
            self._store_times(benchmarks.rows(self.generator(), plan.base))
        return self.publish()

    def _store_times(self, timings: list[dict]) -> None:
        with publish.writing(self.results):
            small_tables.BENCHMARKS.append(self.results, timings)

    def profile(self, name: str) -> Path:
        """The file results/<scale>/profile-<name>.csv: time of a training step by kernel.

        A step trains 32 adapters of the base model `name` on a GPU; on a CPU 4, timed by operator.
        """
        task = self._longest_task(scales.base_plan(self.scale, name, self.source))
        path = self.results / f"profile-{name}.csv"
        adapters = 32 if self.device == "cuda" else 4
        storage.write_text(path, benchmarks.profile(*task, adapters).to_csv(index=False))
        return path

    def _longest_task(self, plan: scales.BasePlan):
        """(base model, its task with the longest rows, the rows)."""
        tasks = [load_task(name) for name in plan.tasks]
        longest = max(tasks, key=lambda task: task.max_tokens * (len(task.labels) > 0))
        return self.base(plan.base, len(tasks[0].labels)), longest, task_rows(longest, self.source)
