"""The zoo: trained LoRA adapters, the data that a generator learns from.

Every adapter of a base model starts from the same LoRA initialisation; the seed decides the order
of the data and nothing else. Adapters are trained many at a time (`stacked.py`), each as PEFT would
train it alone. A run leaves a standard PEFT folder and `run.json` (recipe, losses, validation
score, kept checkpoints). Checkpoints of one run are one sample: seeds are the data.
"""

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from zlib import crc32

import torch
from torch import Tensor

from oral_lib import scoring, seeds, storage
from oral_lib.devices import Replay
from oral_lib.errors import OralError, PreflightError
from oral_lib.evaluate import Outcome, accuracy_of, evaluate
from oral_lib.feed import Feed
from oral_lib.lora import stacked
from oral_lib.lora.stacked import Stack
from oral_lib.models import loading
from oral_lib.models.base import BaseModel
from oral_lib.progress import bar
from oral_lib.recipes import Recipe, default, recipe_of
from oral_lib.tasks import rows as tasks
from oral_lib.tasks import task as tasks_task
from oral_lib.tasks.rows import Split
from oral_lib.tasks.task import Task

MOST = 32  # adapters of a stack
COMPILED = 50_000_000  # weights of a base from which on compiling, half a minute, pays
SAVE_EVERY = 100  # steps between states that an interrupted stack goes on from


@dataclass(frozen=True)
class Run:
    """One adapter to be trained."""

    task: Task
    seed: int
    recipe: Recipe


@dataclass(frozen=True)
class Trained:
    """One trained adapter: final tensors, kept checkpoints (oldest first), loss a step, and its
    share of the seconds that its stack took."""

    run: Run
    tensors: dict[str, Tensor]
    checkpoints: dict[int, dict[str, Tensor]]
    losses: list[float]
    seconds: float

    @property
    def finite(self) -> bool:
        """Whether no loss was lost to too high a learning rate."""
        return all(map(math.isfinite, self.losses))


class Trainer:
    """Trains stacks of S adapters of one base, one after the other, on buffers that stay in place.

    A step of a shape seen before is, on a GPU, one replayed graph: see `replay.Replay`.
    """

    def __init__(self, base: BaseModel, size: int, feed: Feed, recipe: Recipe):
        self.base, self.clip, self.how = base, recipe.clip, feed.how
        dtype = next(base.model.parameters()).dtype
        self.stack = Stack(base.lora_init(), size, base.device, dtype, recipe.ratio)
        rows, options = feed.rows[0], feed.table.options
        self.answers, self.words = feed.answers[0].clone(), feed.words_of(len(rows))
        self.option = torch.arange(options, device=base.device)
        self.read = feed.table[rows]
        self.lr = torch.zeros(size, device=base.device)
        self.loss = torch.zeros(size, device=base.device)
        self.replay = Replay(self._step, base.device)

    def begin(self, start: dict[str, Tensor], feed: Feed) -> Stack:
        """The stack, all of it as `start` says, about to read `feed`."""
        self.stack.restart(start)
        self.words.copy_(feed.words_of(len(self.words)))
        return self.stack

    def _step(self, shape: tuple[int, int]) -> None:
        batch = self.read.cut(*shape)
        found = scoring.losses(
            self.base.model, self.base, self.how, batch, self.answers, self.words, len(self.stack)
        )
        loss = found.view(len(self.stack), -1).mean(1)  # [S]
        self.loss.copy_(loss.detach())
        self.stack.update(loss.sum(), self.lr, self.clip)

    def step(self, feed: Feed, i: int, lr: Tensor) -> Tensor:
        """Step `i` of `feed` at learning rates `lr` [S]; the losses [S] before it."""
        rows = feed.rows[i]
        places = (rows[:, None] * len(self.option) + self.option).flatten()
        torch.index_select(feed.table.ids, 0, places, out=self.read.ids)
        torch.index_select(feed.table.lengths, 0, places, out=self.read.lengths)
        torch.index_select(feed.table.begins, 0, places, out=self.read.begins)
        if feed.table.pictures is not None:
            shown = feed.table.shown[rows]
            torch.index_select(feed.table.pictures, 0, shown, out=self.read.pictures)
        self.answers.copy_(feed.answers[i])
        self.lr.copy_(lr)
        self.replay((feed.widths[i], feed.tails[i]))
        return self.loss


class Workshop:
    """Trains stacks on one base model; what was set up for a shape of stack serves the next one of
    that shape, and goes when another shape comes.

    `longest` is the most tokens that a row of any task may have.
    """

    def __init__(self, base: BaseModel, longest: int = 0):
        self.base, self.longest = base, longest
        self.trainers: dict[tuple, Trainer] = {}

    def train(
        self,
        runs: Sequence[Run],
        data: dict[str, Split],
        *,
        most: int = MOST,
        state: Path | None = None,
        strict: bool = True,
    ) -> Iterator[Trained]:
        """Trains `runs`, up to `most` at a time; `data` maps a task's name to its rows.

        Runs that are scored alike, read as many rows a step and have one clip and ratio share a
        stack. `state` is a folder for what an interrupted stack goes on from; a stack's file goes
        once all its adapters were taken. OralError when a loss is no longer finite; without
        `strict` that run is yielded as it is, since it harms no other.
        """
        base, alike = self.base, {}
        for run in runs:
            how = scoring.way(base, run.task)
            classes = (
                len(run.task.labels) if how in ("image", "question") else 0
            )  # they compete for a picture
            recipe = run.recipe
            key = (how, classes, recipe.batch, recipe.clip, recipe.ratio)
            alike.setdefault(key, []).append(run)
        with stacked.compiled(base.model) if base.weights > COMPILED else nullcontext():
            for group in alike.values():
                for first in range(0, len(group), most):
                    stack = group[first : first + most]
                    key = _key(base, stack, data) if state else 0
                    file = state / f"stack-{key:016x}.safetensors" if state else None
                    made = self._stack(stack, data, file)
                    for done in made:
                        if strict and not done.finite:
                            raise OralError(
                                f"zoo {base.name} {done.run.task.name} seed {done.run.seed}: the "
                                f"loss is no longer finite; lower lr={done.run.recipe.lr}."
                            )
                    yield from made
                    if file:
                        file.unlink(missing_ok=True)

    def _stack(
        self, runs: Sequence[Run], data: dict[str, Split], state: Path | None
    ) -> list[Trained]:
        base, recipe, began = self.base, runs[0].recipe, time.perf_counter()
        label, steps = f"zoo {base.name} {_named(runs)}", max(run.recipe.steps for run in runs)
        longest = max(self.longest, *(run.task.words for run in runs))
        jobs = [(run.task, run.seed) for run in runs]
        feed = Feed.of(base, jobs, data, steps=steps, batch=recipe.batch, longest=longest)
        trainer = self._trainer(len(runs), feed, recipe)
        stack = trainer.begin(base.lora_init(), feed)
        rates = [[run.recipe.lr_at(i) for run in runs] for i in range(steps)]
        lr = torch.tensor(rates, device=base.device)
        losses = torch.zeros(steps, len(runs), device=base.device)
        wanted = {step for run in runs for step in run.recipe.kept}
        kept: dict[int, Tensor] = {}
        if state is not None and state.exists():
            held = storage.read_tensors(state)
            stack.load(held)
            losses.copy_(held["losses"])
            kept = {int(n.split(".")[1]): v for n, v in held.items() if n.startswith("kept.")}
        with stacked.attached(base.model, stack, base.spec.alpha / base.spec.rank):
            for step in bar(range(int(stack.step), steps), label=label, unit="step"):
                losses[step] = trainer.step(feed, step, lr[step])
                done = step + 1
                if done in wanted:
                    kept[done] = stack.values.cpu().clone()
                if state is not None and done % SAVE_EVERY == 0 and done < steps:
                    held = {f"kept.{n}": v for n, v in kept.items()}
                    parts = stack.state() | held | {"losses": losses}
                    storage.write_tensors(state, {n: v.cpu() for n, v in parts.items()})
        seconds = (time.perf_counter() - began) / len(runs)
        checkpoints = {step: stack.adapters(values) for step, values in sorted(kept.items())}
        return [
            Trained(
                run,
                checkpoints[run.recipe.steps][s],
                {step: checkpoints[step][s] for step in sorted(run.recipe.kept)},
                losses[: run.recipe.steps, s].tolist(),
                seconds,
            )
            for s, run in enumerate(runs)
        ]

    def _trainer(self, size: int, feed: Feed, recipe: Recipe) -> Trainer:
        shape = (size, recipe.batch, feed.table.ids.shape[1], feed.words.shape[1])
        key = (feed.how, feed.table.options, *shape, recipe.clip, recipe.ratio)
        if key not in self.trainers:
            self.trainers.clear()  # the graphs of one trainer can fill half of a GPU
            self.trainers[key] = Trainer(self.base, size, feed, recipe)
        return self.trainers[key]


def train(base: BaseModel, runs: Sequence[Run], data: dict[str, Split], **how) -> Iterator[Trained]:
    """`Workshop.train` in a workshop of its own."""
    yield from Workshop(base).train(runs, data, **how)


def _key(base: BaseModel, runs: Sequence[Run], data: dict[str, Split]) -> int:
    """A number for all that decides what a stack of `runs` learns."""
    taught = {
        run.task.name: crc32(repr([(r.key, r.label) for r in data[run.task.name].train]).encode())
        for run in runs
    }
    named = (
        f"{r.task.name} {r.task.version} {taught[r.task.name]} {r.seed} {r.recipe}" for r in runs
    )
    return seeds.integer(0, base.name, *named)


def _named(runs: Sequence[Run]) -> str:
    """What a progress line says: movie seed 1; movie seeds 0-2; 3 tasks, 24 adapters."""
    names, numbers = {run.task.name for run in runs}, [run.seed for run in runs]
    if len(names) > 1:
        return f"{len(names)} tasks, {len(runs)} adapters"
    span = f"{min(numbers)}-{max(numbers)}" if len(runs) > 1 else str(numbers[0])
    return f"{names.pop()} seed{'s' if len(runs) > 1 else ''} {span}"


def folder(root: Path, base: str, task: str, seed: int) -> Path:
    """Where the zoo under `root` keeps the adapter of (base, task, seed)."""
    return root / "zoo" / base / task / f"seed-{seed}"


def train_cells(
    base: str,
    names: Sequence[str],
    seed_list: Sequence[int],
    *,
    source: str,
    root: Path,
    device: str = "cpu",
    recipe: Recipe | None = None,
) -> list[Path]:
    """Trains the adapters of `base` on the tasks called `names` that `root` lacks.

    Returns the folders of all, task by task. A stack holds the seeds of one task, so that an
    adapter does not depend on which other tasks there are. PreflightError where one was trained
    with another recipe or another version of its task. `recipe` is for all tasks, in place of each
    one's own.
    """
    wanted = {name: [folder(root, base, name, s) for s in seed_list] for name in names}
    recipes = {name: recipe or recipe_of(base, name, root) for name in names}
    for name in names:
        for held in wanted[name]:
            _check_recipe(held, name, recipes[name])
    missing = {
        name: [s for s, f in zip(seed_list, wanted[name], strict=True)
               if not (f / "run.json").exists()]
        for name in names
    }  # fmt: skip
    todo = [name for name in names if missing[name]]
    for labels in sorted({len(tasks_task.load(name).labels) for name in todo}):
        alike = [name for name in todo if len(tasks_task.load(name).labels) == labels]
        model = loading.load(base, source=source, labels=labels, device=device)
        workshop = Workshop(model, max(tasks_task.load(name).words for name in alike))
        for name in alike:
            spec, data = (
                tasks_task.load(name),
                {name: tasks.full_rows(tasks_task.load(name), source)},
            )
            # all seeds of a stack: a smaller one rounds differently
            chunks = [seed_list[i : i + MOST] for i in range(0, len(seed_list), MOST)]
            again = [s for chunk in chunks if set(chunk) & set(missing[name]) for s in chunk]
            runs = [Run(spec, s, recipes[name]) for s in again]
            for stack in _stacks(workshop, runs, data, root / "zoo" / base / name):
                _save(root, model, [d for d in stack if d.run.seed in missing[name]], data)
    return [where for name in names for where in wanted[name]]


def _check_recipe(held: Path, task: str, recipe: Recipe) -> None:
    """PreflightError if the adapter in `held`, where there is one, was trained otherwise."""
    if not (held / "run.json").exists():
        return
    info = storage.read_json(held / "run.json")
    known = Recipe.read(info["recipe"]), info["task_version"]
    if known != (recipe, tasks_task.load(task).version):
        raise PreflightError(
            f"{held} was trained with another recipe or version of the task: remove it, or "
            "run ./reproduce.sh --from-scratch."
        )


def train_tasks(
    base: str, names: Sequence[str], *, source: str, root: Path, device: str = "cpu"
) -> list[Path]:
    """Trains one adapter (seed 0) of each of many tasks of as many labels, `MOST` tasks a stack,
    where `root` lacks it; the folders of all. All have the recipe of the base model.

    A stack is judged and kept once all of it is trained; one that was kept in part is trained anew,
    since a smaller one rounds differently. PreflightError where an adapter was trained with another
    recipe or another version of its task.
    """
    where = [folder(root, base, name, 0) for name in names]
    missing = {n for n, path in zip(names, where, strict=True) if not (path / "run.json").exists()}
    recipe, model = default(base), loading.load(base, source=source, device=device)
    for name, held in zip(names, where, strict=True):
        _check_recipe(held, name, recipe)
    workshop = Workshop(model)
    for first in range(0, len(names), MOST):
        some = {name: tasks_task.load(name) for name in names[first : first + MOST]}
        if not missing & some.keys():
            continue
        data = {name: tasks.full_rows(task, source) for name, task in some.items()}
        runs = [Run(task, 0, recipe) for task in some.values()]
        for stack in _stacks(workshop, runs, data, root / "zoo" / base):
            _save(root, model, [d for d in stack if d.run.task.name in missing], data)
    return where


def _stacks(
    workshop: Workshop, runs: Sequence[Run], data: dict[str, Split], state: Path
) -> Iterator[list[Trained]]:
    """The adapters of `runs`, `MOST` at a time, once all of them are trained; what an interrupted
    stack would go on from goes only when the next is asked for."""
    made: list[Trained] = []
    for done in workshop.train(runs, data, state=state):
        made.append(done)
        if len(made) == min(MOST, len(runs)):
            yield made
            runs, made = runs[len(made) :], []


def _judged(base: BaseModel, made: Sequence[Trained], data: dict[str, Split]) -> Iterator[Outcome]:
    """How each adapter answers the validation rows of its own task. Tasks that ask the same of the
    same rows are answered together: they differ in what is right alone."""
    alike: dict[tuple, list[int]] = {}
    for place, done in enumerate(made):
        task = done.run.task
        keys = tuple((row.key, row.text) for row in data[task.name].validation)
        alike.setdefault((task.scoring, tuple(task.labels), task.words, keys), []).append(place)
    judged = {}
    for places in alike.values():
        task = made[places[0]].run.task
        adapters = [made[place].tensors for place in places]
        said = evaluate(base, task, data[task.name].validation, adapters, write=False)
        for place, outcome in zip(places, said, strict=True):
            judged[place] = replace(outcome, rows=data[made[place].run.task.name].validation)
    yield from (judged[place] for place in range(len(made)))


def _save(root: Path, base: BaseModel, made: Sequence[Trained], data: dict[str, Split]) -> None:
    for done, judged in zip(made, _judged(base, made, data), strict=True):
        _keep(root, base, done, data[done.run.task.name], judged)


def _keep(root: Path, base: BaseModel, done: Trained, data: Split, judged: Outcome) -> None:
    where = folder(root, base.name, done.run.task.name, done.run.seed)
    where.mkdir(parents=True, exist_ok=True)
    base.peft_config().save_pretrained(where)
    storage.write_tensors(where / "adapter_model.safetensors", done.tensors)
    for step, tensors in done.checkpoints.items():
        storage.write_tensors(where / f"checkpoint-{step}.safetensors", tensors)
    storage.write_json(
        where / "run.json",
        {
            "base": base.name,
            "task": done.run.task.name,
            "task_version": done.run.task.version,
            "source": data.source,
            "seed": done.run.seed,
            "recipe": asdict(done.run.recipe),
            "checkpoints": sorted(done.checkpoints),
            "losses": [round(x, 5) for x in done.losses],
            "validation_accuracy": accuracy_of(judged),
            "validation_likelihood": round(judged.likelihood, 5),
            "validation_rows": len(data.validation),
            "seconds": round(done.seconds, 2),
            "sha256": storage.sha256(where / "adapter_model.safetensors"),
        },
    )


@dataclass(frozen=True)
class Member:
    """One adapter of the zoo as a generator reads it."""

    base: str
    task: str
    seed: int
    tensors: dict[str, Tensor]
    info: dict


def read(root: Path, base: str, task: str, seed: int) -> Member:
    """The adapter of (base, task, seed), hash-checked; `PreflightError` if it was not trained."""
    where = folder(root, base, task, seed)
    if not (where / "run.json").exists():
        raise PreflightError(
            f"the zoo has no adapter of task {task!r} on {base!r} with seed {seed}: run "
            f"'python -m oral_lib zoo --base {base} --task {task}' or ./reproduce.sh first."
        )
    info = storage.read_json(where / "run.json")
    file = where / "adapter_model.safetensors"
    if storage.sha256(file) != info["sha256"]:
        raise PreflightError(
            f"{file} is damaged: its hash is not the one in run.json; delete {where}."
        )
    return Member(base, task, seed, storage.read_tensors(file), info)
