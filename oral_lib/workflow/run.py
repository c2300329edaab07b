"""A run: one scale, one source, one place on disk; what notebooks and commands hold on to."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from filelock import FileLock

from oral_lib import paths, provenance, scales, storage
from oral_lib.assets import sources
from oral_lib.assets.cache import MANIFEST
from oral_lib.errors import PreflightError, UsageError, closest
from oral_lib.evaluation import results
from oral_lib.experiments import benchmarks, generators, unseen
from oral_lib.experiments import cells as protocol
from oral_lib.generator import Generator
from oral_lib.models import evolution, loading
from oral_lib.models.base import BaseModel
from oral_lib.report import build, cell_figures, theme
from oral_lib.runner import nodes
from oral_lib.tasks.rows import task_rows
from oral_lib.tasks.task import load_task
from oral_lib.zoo import recipes, store, tuning
from oral_lib.zoo.store import Member


@dataclass(frozen=True)
class Run:
    """The zoo, generators and cells of an experiment at `scale` from `source`, below `out`, which
    by default is the project.

    At the smoke scale everything is made on the spot, whatever the source.
    """

    scale: str = "smoke"
    source: str = "packages"
    out: str | Path = paths.ROOT
    experiment: str = "language"

    def __post_init__(self) -> None:
        object.__setattr__(self, "source", "made" if self.scale == "smoke" else self.source)
        kind, _, folder = self.source.partition(":")
        if kind == "local" and folder:  # the same folder has one name
            own = Path(folder).expanduser().absolute()
            object.__setattr__(self, "source", f"local:{own}")
        if not scales.base_plans(self.scale, self.source, self.experiment):
            raise UsageError(scales.not_planned(self.scale, self.source, self.experiment))
        object.__setattr__(self, "out", Path(self.out or paths.ROOT).absolute())

    @property
    def root(self) -> Path:
        """The folder of this run."""
        return paths.experiment_folder(self.scale, self.source, self.out, self.experiment)

    @property
    def results(self) -> Path:
        """The folder of the published results."""
        return paths.results_folder(self.scale, self.out)

    @property
    def planned(self) -> tuple[scales.BasePlan, ...]:
        """The base models of this run, with tasks and seeds."""
        return scales.base_plans(self.scale, self.source, self.experiment)

    @property
    def device(self) -> str:
        return "cuda" if torch.cuda.is_available() else "cpu"

    def ready(self) -> "Run":
        """Trains what this run still lacks of zoo, generator and regression; returns the run."""
        self.root.mkdir(parents=True, exist_ok=True)
        with FileLock(self.root / ".ready.lock"):
            for cells in self.planned:
                if cells.aligned:
                    self.align(cells.base)
                if cells.tuned:
                    self.tune(cells.base, cells.tasks)
                if cells.parent:
                    self.evolve(cells.base)
                seeds = scales.zoo_seeds(self.scale, cells.base, self.source)
                self.train_zoo(cells.base, cells.zoo_tasks, seeds)
            for kind in scales.generators(self.scale, self.experiment):
                self.train_generator(kind)
        return self

    def _claim(self) -> None:
        """Notes whose rows the run folder is of; UsageError if they are another folder's."""
        if self.source.startswith("local:"):
            path = self.root / "source.json"
            nodes.same_source(path, self.source)
            if not path.exists():
                storage.write_json(path, {"source": self.source})

    def check(self, task: str, base: str) -> None:
        """UsageError with the nearest name unless (task, base) is a cell of this run."""
        scales.check_cell(self.scale, self.source, base, task, self.experiment)

    def train_zoo(self, base: str, names: Sequence[str], seeds: Sequence[int]) -> list[Path]:
        """Trains what is missing of `base` on the tasks `names`; the folders of all adapters."""
        self._claim()
        where = {"source": self.source, "root": self.root, "device": self.device}
        if self.experiment == "unseen":  # many tasks, one seed
            return store.train_tasks(base, names, **where)
        recipe = recipes.DESK.get(base) if self.scale == "desk" else None
        return store.train_cells(base, names, seeds, recipe=recipe, **where)

    def tune(self, base: str, names: Sequence[str]) -> list[Path]:
        """Chooses the recipes of `base` that are missing; the files of all."""
        self._claim()
        return tuning.tune(base, names, source=self.source, root=self.root, device=self.device)

    def evolve(self, base: str) -> Path:
        """Makes a later version of a model if it is missing; what is known of its drift."""
        evolution.ensure(base, self.source, self.device)
        path = self.root / "evolved" / f"{base}.json"
        storage.write_json(path, {"versions": evolution.history(base, self.source)})
        return path

    def align(self, base: str) -> Path:
        """Makes a two-tower model if it is missing; what is known of its alignment."""
        from oral_lib.models import alignment  # open_clip is slow to import, and others do without

        folder = alignment.ensure(base, self.source, self.device)
        path = self.root / "aligned" / f"{base}.json"
        told = folder / MANIFEST  # a user's own towers need none
        storage.write_json(path, storage.read_json(told) if told.exists() else {})
        return path

    def train_generator(self, kind: str) -> Path:
        """Trains one of `plan.generators` if it is missing; its folder. UsageError for another."""
        known = scales.generators(self.scale, self.experiment)
        if kind not in known:
            raise UsageError(
                f"experiment {self.experiment!r} at scale {self.scale!r} trains no {kind!r}."
                f"{closest(kind, known)} It trains {', '.join(known)}."
            )
        where = {"root": self.root, "scale": self.scale, "source": self.source}
        where["device"] = self.device
        if kind == "multitask":
            [cells] = self.planned
            return unseen.train_multitask(cells.base, cells.tasks, **where)
        if self.experiment == "unseen":
            where["configured"] = unseen.preset(self.scale, kind)
        known = scales.members(self.scale, self.source, self.experiment)
        return generators.train_from_zoo(known, kind, **where)

    def members(self, base: str) -> list[Member]:
        """The zoo of a base model that generators are trained on."""
        known = scales.members(self.scale, self.source, self.experiment)
        return [store.read(self.root, *m) for m in known if m[0] == base]

    def generator(self, kind: str = "generator") -> Generator:
        """The trained generator (or the "regression" baseline)."""
        return Generator.from_pretrained(self.root / kind, self.device)

    def base(self, name: str, labels: int = 2) -> BaseModel:
        """A base model, frozen, on this run's device."""
        return loading.load(name, source=self.source, labels=labels, device=self.device)

    def cell(self, task: str, base: str, seed: int) -> tuple[pd.DataFrame, pd.DataFrame]:
        """(metrics, items) of one cell: measured once, then read from where it was kept."""
        folder = self._cell(base, task, seed)
        self.root.mkdir(parents=True, exist_ok=True)
        self._claim()
        with FileLock(self.root / f".{folder.name}.lock"):
            if not (folder / "metrics.csv").exists():
                measure = unseen.run_cell if self.experiment == "unseen" else protocol.run_cell
                if self.experiment == "style":
                    from oral_lib.experiments import styles  # timm is slow to import

                    measure = styles.run_cell
                *measured, novelty = measure(
                    task, base, seed,
                    scale=self.scale, source=self.source, root=self.root, device=self.device,
                )  # fmt: skip
                if novelty:  # JSON has no NaN
                    row = {k: None if v != v else v for k, v in novelty.items()}
                    storage.write_json(self.root / "novelty" / f"{folder.name}.json", row)
                results.write_cell(folder, *measured)
        return results.read(folder)

    def measure(self, base: str, names: Sequence[str]) -> Path:
        """Measures the cells of `base` on the tasks `names`, one after the other in this process,
        which is much faster than a notebook each; a list of their folders, as a file.

        Cells that are older than their generator, or than another network that is measured with
        them, are measured again. UsageError for what is no cell of this run.
        """
        for task in names:
            self.check(task, base)
        seeds = range(scales.base_plan(self.scale, base, self.source).seeds)
        for task in names:
            for seed in seeds:
                made = max(map(self._trained, self._asked(seed)))
                kept = self._cell(base, task, seed) / "metrics.csv"
                if kept.exists() and kept.stat().st_mtime < made:
                    kept.unlink()
                self.cell(task, base, seed)
        path = self.root / "cells" / f"{base}.json"
        folders = [self._cell(base, t, s) for t in names for s in seeds]
        storage.write_json(path, {"cells": [folder.name for folder in folders]})
        return path

    def cells(self) -> list[Path]:
        """The folders of all cells of the scale; those that are missing are measured first.

        With those of further seeds that a sweep has added since the generator was trained.
        """
        planned = [
            (task, cells.base, seed)
            for cells in self.planned
            for task in cells.cell_tasks
            for seed in range(cells.seeds)
        ]
        for task, base, seed in planned:
            self.cell(task, base, seed)
        found = [self._cell(b, t, s) for t, b, s in planned]
        trained = self._trained("generator")
        pairs = dict.fromkeys((base, task) for task, base, _ in planned)
        for base, task in pairs:
            pattern = f"{self.experiment}--{base}--{task}--seed-*"
            for folder in sorted((self.root / "cells").glob(pattern)):
                metrics = folder / "metrics.csv"
                if folder not in found and metrics.exists():
                    found += [folder] * (metrics.stat().st_mtime >= trained)
        return found

    def _asked(self, seed: int) -> list[str]:
        """The networks whose answers a cell of `seed` holds: the baselines' stand in the first."""
        kinds = scales.generators(self.scale, self.experiment) if seed == 0 else ()
        baselines = [kind for kind in kinds if not kind.startswith("generator")]
        return [scales.generator_of(self.scale, seed), *baselines]

    def _trained(self, kind: str) -> float:
        """When the generator `kind` was finished, in seconds; PreflightError if there is none."""
        manifest = self.root / kind / "manifest.json"
        if not manifest.exists():
            raise PreflightError(
                f"no generator in {manifest.parent}: train it first with `python -m oral_lib train "
                f"{kind}`, or let ./reproduce.sh do all that is missing."
            )
        return manifest.stat().st_mtime

    def _cell(self, base: str, task: str, seed: int) -> Path:
        return paths.cell_folder(self.root, self.experiment, base, task, seed)

    def bench(self) -> Path:
        """Times the hot paths on every base model into benchmarks.csv; returns the new report."""
        path = self.results / "benchmarks.csv"
        for cells in self.planned:
            for measure in (self._bench_zoo, self._bench_generator):
                rows = measure(cells)
                with self._writing():
                    results.append_benchmarks(path, rows)
        return self.publish()

    def _bench_zoo(self, cells: scales.BasePlan) -> list[dict]:
        return benchmarks.zoo_rows(*self._bench_case(cells))

    def _bench_generator(self, cells: scales.BasePlan) -> list[dict]:
        return benchmarks.rows(self.generator(), cells.base)

    def profile(self, name: str) -> Path:
        """Where a training step of 32 adapters of the base model `name` goes, kernel by kernel; on
        a CPU of four, operator by operator. The file is profile-<base>.csv of results/<scale>."""
        case = self._bench_case(scales.base_plan(self.scale, name, self.source))
        size = 32 if self.device == "cuda" else 4
        path = self.results / f"profile-{name}.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        benchmarks.profile(*case, size).to_csv(path, index=False)
        return path

    def _bench_case(self, cells: scales.BasePlan):
        """(base model, the task of its longest rows, its rows)."""
        longest = max(map(load_task, cells.tasks), key=lambda t: t.words * (len(t.labels) > 0))
        labels = len(load_task(cells.tasks[0]).labels)
        return self.base(cells.base, labels), longest, task_rows(longest, self.source)

    def publish(self) -> Path:
        """Collects all cells into results/<scale>, writes curves, manifest, tables and figures.

        Returns results/README.md. Waits while another run writes there.
        """
        cells = self.cells()
        with self._writing():
            return self._publish(cells)

    def _writing(self) -> FileLock:
        """What experiments write together, one after the other: each reads what is there, adds its
        own and writes all."""
        self.results.mkdir(parents=True, exist_ok=True)
        return FileLock(self.out / ".report.lock")

    def _publish(self, cells: Sequence[Path]) -> Path:
        results.collect(cells, self.results)
        if rows := [storage.read_json(f) for f in sorted((self.root / "novelty").glob("*.json"))]:
            results.append_novelty(self.results / "novelty.csv", rows)
        source = paths.slug(self.source)
        curves = self.results / f"curves-{self.experiment}-{source}.csv"
        self._curves().to_csv(curves, index=False, float_format="%.5g")
        generator = storage.read_json(self.root / "generator" / "manifest.json")
        where = self.scale, self.source, self.experiment
        kinds = [k for k in scales.generators(self.scale, self.experiment) if k.startswith("gen")]
        provenance.manifest(
            self.results,
            source=source if self.experiment == "language" else f"{source}-{self.experiment}",
            seeds={
                "zoo": sorted({m["seed"] for m in generator["zoo"]}),
                "held out of training": sorted(
                    {m[2] for m in scales.members(*where, held_out=True)}
                ),
                "generator": [generators.preset(self.scale, kind)[1].seed for kind in kinds],
            },
            zoo=generator["zoo"],
            assets=sources.identities(self.source, self.experiment),
            training=generator["training"],
            generator=storage.read_json(self.root / "generator" / "config.json")["generator"],
            recipes=self._recipes(generator["zoo"]),
            tuning=self._tuning(),
            aligned=[storage.read_json(f) for f in sorted((self.root / "aligned").glob("*.json"))],
            evolved=[storage.read_json(f) for f in sorted((self.root / "evolved").glob("*.json"))],
        )
        if self.experiment in ("vision", "multimodal"):
            self._examples()
        written = build.write(self.results.parent, self.scale)
        storage.write_json(self.root / "published.json", {"report": written.name})
        return written

    def published(self) -> tuple[pd.DataFrame, pd.DataFrame]:
        """(metrics, items) of this experiment among the published results."""
        frames = results.read(self.results)
        return tuple(frame[frame.experiment == self.experiment] for frame in frames)

    def _examples(self) -> None:
        """A figure of held-out pictures and answers, on the first base model; left out, with a
        word, where the pictures are gone since they were measured."""
        _, items = self.published()
        own = (items.source == paths.slug(self.source)) & (items.base == self.planned[0].base)
        try:
            found = cell_figures.answers(items[own & (items.seed == 0)], self.source)
        except PreflightError as error:
            print(f"no figure of pictures with answers: {error}", file=sys.stderr)
            return
        if found:
            name = f"answers-{self.experiment}-{paths.slug(self.source)}"
            theme.save(cell_figures.pictures(*found), self.results / "figures", name)

    def _recipes(self, listed: Sequence[dict]) -> dict[str, dict[str, dict]]:
        """How the adapters of each base model and task were trained."""
        found: dict[str, dict[str, dict]] = {}
        for one in listed:
            info = store.read(self.root, one["base"], one["task"], one["seed"]).info
            found.setdefault(one["base"], {})[one["task"]] = info["recipe"]
        return found

    def _tuning(self) -> dict[str, dict[str, dict]]:
        """Among which recipes was chosen, by base model and task."""
        found: dict[str, dict[str, dict]] = {}
        for path in sorted((self.root / "tuning").glob("*/*.json")):
            found.setdefault(path.parent.name, {})[path.stem] = storage.read_json(path)
        return found

    def _curves(self) -> pd.DataFrame:
        """[series, step, loss] of every adapter of the zoo and of both generators."""
        parts, members = [], scales.members(self.scale, self.source, self.experiment)
        for base, task, seed in members if self.experiment != "unseen" else ():  # a thousand
            info = store.read(self.root, base, task, seed).info
            parts.append((f"zoo of {base}/{task} seed {seed}", info["losses"]))
        for kind in scales.generators(self.scale, self.experiment):
            losses = storage.read_json(self.root / kind / "manifest.json")["losses"]
            parts.append((f"generator/{kind}", losses))
        frames = [
            pd.DataFrame({"series": name, "step": range(1, len(values) + 1), "loss": values})
            for name, values in parts
        ]
        return results.thinned(pd.concat(frames, ignore_index=True))
