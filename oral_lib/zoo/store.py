"""zoo.store."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from torch import Tensor

from oral_lib import storage
from oral_lib.errors import OralError, PreflightError
from oral_lib.evaluation.evaluate import Outcome, accuracy_of, evaluate
from oral_lib.models import loading
from oral_lib.models.base import BaseModel
from oral_lib.tasks.rows import Split, full_rows
from oral_lib.tasks.task import load_task
from oral_lib.zoo.recipes import Recipe, default, recipe_of
from oral_lib.zoo.training import MOST, AdapterJob, StackTrainer, Trained


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
    for labels in sorted({len(load_task(name).labels) for name in todo}):
        alike = [name for name in todo if len(load_task(name).labels) == labels]
        model = loading.load(base, source=source, labels=labels, device=device)
        workshop = StackTrainer(model, max(load_task(name).words for name in alike))
        for name in alike:
            spec, data = (
                load_task(name),
                {name: full_rows(load_task(name), source)},
            )
            # all seeds of a stack: a smaller one rounds differently
            chunks = [seed_list[i : i + MOST] for i in range(0, len(seed_list), MOST)]
            again = [s for chunk in chunks if set(chunk) & set(missing[name]) for s in chunk]
            runs = [AdapterJob(spec, s, recipes[name]) for s in again]
            for stack in _stacks(workshop, runs, data, root / "zoo" / base / name):
                _save(root, model, [d for d in stack if d.run.seed in missing[name]], data)
    base_facts(root, base, source)
    return [where for name in names for where in wanted[name]]


def _check_recipe(held: Path, task: str, recipe: Recipe) -> None:
    """PreflightError if the adapter in `held`, where there is one, was trained otherwise."""
    if not (held / "run.json").exists():
        return
    info = storage.read_json(held / "run.json")
    known = Recipe.read(info["recipe"]), info["task_version"]
    if known != (recipe, load_task(task).version):
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
    workshop = StackTrainer(model)
    for first in range(0, len(names), MOST):
        some = {name: load_task(name) for name in names[first : first + MOST]}
        if not missing & some.keys():
            continue
        data = {name: full_rows(task, source) for name, task in some.items()}
        runs = [AdapterJob(task, 0, recipe) for task in some.values()]
        for stack in _stacks(workshop, runs, data, root / "zoo" / base):
            _save(root, model, [d for d in stack if d.run.task.name in missing], data)
    base_facts(root, base, source)
    return where


def _stacks(
    workshop: StackTrainer, runs: Sequence[AdapterJob], data: dict[str, Split], state: Path
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
class BaseFacts:
    """What the training of a generator requires of a base model.

    Args:
        start: the LoRA initialisation that all its adapters share.
        description: its structure in words.
        fingerprint: [f] of its weights.
        peft_config: the PEFT configuration of its adapters, as JSON values.
    """

    start: dict[str, Tensor]
    description: str
    fingerprint: Tensor
    peft_config: dict


def facts_of(base: BaseModel) -> BaseFacts:
    """The facts of a loaded base model."""
    config = {
        name: sorted(value) if isinstance(value, set) else value
        for name, value in base.peft_config().to_dict().items()
        if isinstance(value, str | int | float | bool | list | dict | set | None)
    }
    return BaseFacts(base.lora_init(), base.describe(), base.fingerprint(), config)


def base_facts(root: Path, base: str, source: str) -> BaseFacts:
    """The facts of the base model called `base`, from beside its zoo.

    They are computed once, on the CPU, and written to base.safetensors and base.json; after that no
    base model is loaded. Damaged files are refused with OralError.
    """
    where = root / "zoo" / base
    tensors, about = where / "base.safetensors", where / "base.json"
    if not about.exists():
        facts = facts_of(loading.load(base, source=source))
        start = {f"start.{name}": value for name, value in facts.start.items()}
        storage.write_tensors(tensors, start | {"fingerprint": facts.fingerprint})
        content = {"description": facts.description, "peft_config": facts.peft_config}
        storage.write_json(about, content | {"sha256": storage.sha256(tensors)})  # written last
    content = storage.read_json(about)
    if storage.sha256(tensors) != content["sha256"]:
        raise OralError(f"{tensors} is damaged: its hash is not the one in {about}; delete both.")
    values = storage.read_tensors(tensors)
    fingerprint = values.pop("fingerprint")
    start = {name.removeprefix("start."): value for name, value in values.items()}
    return BaseFacts(start, content["description"], fingerprint, content["peft_config"])


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
