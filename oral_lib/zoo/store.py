"""The zoo on disk: trained adapters, and the facts of their base models.

`zoo/<base>/<task>/seed-<n>` is a PEFT folder with run.json: recipe, losses, validation scores and
the hash of the weights. Checkpoints are stored next to the adapter; all of a run are one sample.
`zoo/<base>/base.safetensors` and base.json are the facts of the base model.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from oral_lib import storage
from oral_lib.errors import OralError, PreflightError
from oral_lib.evaluation.evaluate import Outcome, accuracy_of, evaluate
from oral_lib.models import loading
from oral_lib.models.base import BaseModel
from oral_lib.tasks.rows import Split, full_rows
from oral_lib.tasks.task import load_task
from oral_lib.zoo.recipes import Recipe, default, recipe_of
from oral_lib.zoo.training import STACK_SIZE, AdapterJob, StackTrainer, TrainedAdapter


def folder(root: Path, base: str, task: str, seed: int) -> Path:
    """Folder of the adapter of (base, task, seed) in the zoo under `root`."""
    return root / "zoo" / base / task / f"seed-{seed}"


def train_seeds(
    base: str,
    names: Sequence[str],
    seeds: Sequence[int],
    *,
    source: str,
    root: Path,
    device: str = "cpu",
    recipe: Recipe | None = None,
) -> list[Path]:
    """Folders of the adapters of `base` on the tasks `names`, task by task; trains missing ones.

    A stack is the seeds of one task, so that an adapter does not depend on the other tasks. A stack
    with a missing adapter is trained as a whole, because a smaller one rounds differently.

    Args:
        base: name of the base model.
        names: names of the tasks.
        seeds: seeds of each task.
        source: source of models and rows.
        root: folder of the experiment.
        device: where to train.
        recipe: recipe of all tasks; None: each task has its own (`recipe_of`).

    Raises:
        PreflightError: if an adapter was trained with another recipe or version of its task.
    """
    folders = {name: [folder(root, base, name, seed) for seed in seeds] for name in names}
    recipes = {name: recipe or recipe_of(base, name, root) for name in names}
    missing = {
        name: [
            seed
            for seed, path in zip(seeds, folders[name], strict=True)
            if not _is_trained(path, name, recipes[name])
        ]
        for name in names
    }
    incomplete = [name for name in names if missing[name]]
    for labels in sorted({len(load_task(name).labels) for name in incomplete}):
        group = [name for name in incomplete if len(load_task(name).labels) == labels]
        model = loading.load(base, source=source, labels=labels, device=device)
        trainer = StackTrainer(model, max(load_task(name).max_tokens for name in group))
        for name in group:
            task = load_task(name)
            data = {name: full_rows(task, source)}
            stacks = [seeds[i : i + STACK_SIZE] for i in range(0, len(seeds), STACK_SIZE)]
            repeated = [s for stack in stacks if set(stack) & set(missing[name]) for s in stack]
            jobs = [AdapterJob(task, seed, recipes[name]) for seed in repeated]
            for stack in _stacks(trainer, jobs, data, root / "zoo" / base / name):
                _write(root, model, [a for a in stack if a.job.seed in missing[name]], data)
    stored_facts(root, base, source)
    return [path for name in names for path in folders[name]]


def train_tasks(
    base: str, names: Sequence[str], *, source: str, root: Path, device: str = "cpu"
) -> list[Path]:
    """Folders of the adapters (seed 0) of `base` on the tasks `names`; trains missing ones.

    All tasks have the same number of labels and the base model's recipe. A stack is up to
    `STACK_SIZE` tasks. It is evaluated and written when all of it is trained. A stack with a
    missing adapter is trained as a whole, because a smaller one rounds differently.

    Raises:
        PreflightError: if an adapter was trained with another recipe or version of its task.
    """
    recipe = default(base)
    folders = [folder(root, base, name, 0) for name in names]
    missing = {
        name
        for name, path in zip(names, folders, strict=True)
        if not _is_trained(path, name, recipe)
    }
    model = loading.load(base, source=source, device=device)
    trainer = StackTrainer(model)
    for first in range(0, len(names), STACK_SIZE):
        tasks = {name: load_task(name) for name in names[first : first + STACK_SIZE]}
        if not missing & tasks.keys():
            continue
        data = {name: full_rows(task, source) for name, task in tasks.items()}
        jobs = [AdapterJob(task, 0, recipe) for task in tasks.values()]
        for stack in _stacks(trainer, jobs, data, root / "zoo" / base):
            _write(root, model, [a for a in stack if a.job.task.name in missing], data)
    stored_facts(root, base, source)
    return folders


def _is_trained(path: Path, task: str, recipe: Recipe) -> bool:
    """True if `path` has an adapter. PreflightError if its recipe or version of the task differ."""
    if not (path / "run.json").exists():
        return False
    info = storage.read_json(path / "run.json")
    trained_with = Recipe.from_json(info["recipe"]), info["task_version"]
    if trained_with != (recipe, load_task(task).version):
        raise PreflightError(
            f"{path} was trained with another recipe or version of the task: remove it, or run "
            "./reproduce.sh --from-scratch."
        )
    return True


def _stacks(
    trainer: StackTrainer, jobs: Sequence[AdapterJob], data: dict[str, Split], state: Path
) -> Iterator[list[TrainedAdapter]]:
    """The adapters of `jobs`, one list a stack. The state of an interrupted stack is removed when
    the next stack is requested."""
    stack: list[TrainedAdapter] = []
    for adapter in trainer.train(jobs, data, state=state):
        stack.append(adapter)
        if len(stack) == min(STACK_SIZE, len(jobs)):
            yield stack
            jobs, stack = jobs[len(stack) :], []


def _outcomes(
    base: BaseModel, adapters: Sequence[TrainedAdapter], data: dict[str, Split]
) -> Iterator[Outcome]:
    """The outcome of each adapter on the validation rows of its task.

    Tasks that differ in their labels only are evaluated together: the model reads the same rows.
    """
    groups: dict[tuple, list[int]] = {}
    for i, adapter in enumerate(adapters):
        task = adapter.job.task
        keys = tuple((row.key, row.text) for row in data[task.name].validation)
        groups.setdefault((task.scoring, tuple(task.labels), task.max_tokens, keys), []).append(i)
    outcomes = {}
    for indices in groups.values():
        task = adapters[indices[0]].job.task
        tensors = [adapters[i].tensors for i in indices]
        group = evaluate(base, task, data[task.name].validation, tensors, write=False)
        for i, outcome in zip(indices, group, strict=True):
            outcomes[i] = replace(outcome, rows=data[adapters[i].job.task.name].validation)
    yield from (outcomes[i] for i in range(len(adapters)))


def _write(
    root: Path, base: BaseModel, adapters: Sequence[TrainedAdapter], data: dict[str, Split]
) -> None:
    """Writes adapters with their validation scores; run.json is written last."""
    for adapter, outcome in zip(adapters, _outcomes(base, adapters, data), strict=True):
        job = adapter.job
        path = folder(root, base.name, job.task.name, job.seed)
        config = {  # PEFT writes its sets in an order that differs from process to process
            key: sorted(value) if isinstance(value, set) else value
            for key, value in base.peft_config().to_dict().items()
        }
        storage.write_json(path / "adapter_config.json", config)
        storage.write_tensors(path / "adapter_model.safetensors", adapter.tensors)
        for step, tensors in adapter.checkpoints.items():
            storage.write_tensors(path / f"checkpoint-{step}.safetensors", tensors)
        info = {
            "base": base.name,
            "task": job.task.name,
            "task_version": job.task.version,
            "source": data[job.task.name].source,
            "seed": job.seed,
            "recipe": asdict(job.recipe),
            "checkpoints": sorted(adapter.checkpoints),
            "losses": [round(loss, 5) for loss in adapter.losses],
            "validation_accuracy": accuracy_of(outcome),
            "validation_likelihood": round(outcome.likelihood, 5),
            "validation_rows": len(data[job.task.name].validation),
            "seconds": round(adapter.seconds, 2),
            "sha256": storage.sha256(path / "adapter_model.safetensors"),
        }
        storage.write_json(path / "run.json", info)


@dataclass(frozen=True)
class Member:
    """One adapter of the zoo."""

    base: str
    task: str
    seed: int
    tensors: dict[str, Tensor]
    info: dict  # content of run.json


def read(root: Path, base: str, task: str, seed: int) -> Member:
    """The adapter of (base, task, seed).

    Raises:
        PreflightError: if it has not been trained, or its weights do not have the recorded hash.
    """
    path = folder(root, base, task, seed)
    if not (path / "run.json").exists():
        raise PreflightError(
            f"the zoo has no adapter of task {task!r} on {base!r} with seed {seed}: run "
            f"'python -m oral_lib zoo --base {base} --task {task}' or ./reproduce.sh first."
        )
    info = storage.read_json(path / "run.json")
    file = path / "adapter_model.safetensors"
    if storage.sha256(file) != info["sha256"]:
        raise PreflightError(
            f"{file} is damaged: its hash differs from the one in run.json; delete {path} and "
            "train it again."
        )
    return Member(base, task, seed, storage.read_tensors(file), info)


@dataclass(frozen=True)
class BaseFacts:
    """Description of a base model for the training of a generator.

    Args:
        start: LoRA initialisation of all its adapters.
        description: structure of the model in words.
        fingerprint: [f] statistics of its weights (`conditioning.fingerprint`).
        peft_config: PEFT configuration of its adapters, as JSON values.
    """

    start: dict[str, Tensor]
    description: str
    fingerprint: Tensor
    peft_config: dict


def compute_facts(base: BaseModel) -> BaseFacts:
    """The facts of a loaded base model."""
    config = {
        name: sorted(value) if isinstance(value, set) else value
        for name, value in base.peft_config().to_dict().items()
        if isinstance(value, str | int | float | bool | list | dict | set | None)
    }
    return BaseFacts(base.lora_init(), base.describe(), base.fingerprint(), config)


def stored_facts(root: Path, base: str, source: str) -> BaseFacts:
    """The facts of the base model `base`, stored in `zoo/<base>/`.

    They are computed once, on the CPU; later calls do not load the base model. `source` is where
    the base model is read from.

    Raises:
        OralError: if the stored files are damaged.
    """
    directory = root / "zoo" / base
    tensors, about = directory / "base.safetensors", directory / "base.json"
    if not about.exists():
        facts = compute_facts(loading.load(base, source=source, device="cpu"))
        start = {f"start.{name}": value for name, value in facts.start.items()}
        storage.write_tensors(tensors, start | {"fingerprint": facts.fingerprint})
        content = {"description": facts.description, "peft_config": facts.peft_config}
        storage.write_json(
            about, content | {"sha256": storage.sha256(tensors)}
        )  # last: without it nothing counts
    content = storage.read_json(about)
    if storage.sha256(tensors) != content["sha256"]:
        raise OralError(
            f"{tensors} is damaged: its hash differs from the one in {about}; delete both files."
        )
    values = storage.read_tensors(tensors)
    fingerprint = values.pop("fingerprint")
    start = {name.removeprefix("start."): value for name, value in values.items()}
    return BaseFacts(start, content["description"], fingerprint, content["peft_config"])


def trained_on(
    place: Path, manifest: Mapping[str, Any], base: str
) -> list[tuple[str, dict[str, Tensor]]]:
    """(name, tensors) of the adapters of `base` that the generator in `place` was trained on, if
    their files are next to its folder and unchanged.

    OralError if the manifest does not list them.
    """
    members = []
    for task, seed, sha256 in listed_members(place, manifest, base):
        file = folder(place.parent, base, task, seed) / "adapter_model.safetensors"
        if file.is_file() and storage.sha256(file) == sha256:
            members.append((member_name(task, seed), storage.read_tensors(file)))
    return members


def listed_members(
    place: Path, manifest: Mapping[str, Any], base: str
) -> list[tuple[str, int, str]]:
    """(task, seed, hash) of the adapters of `base` that the manifest of the generator in `place`
    lists, in the order of training. OralError if it does not list them."""
    try:
        return [
            (storage.safe_name(entry["task"]), int(entry["seed"]), entry["sha256"])
            for entry in manifest.get("zoo", ())
            if entry["base"] == storage.safe_name(base)
        ]
    except (KeyError, TypeError, ValueError) as error:
        raise OralError(
            f"manifest.json in {place} does not list what the generator was trained on "
            f"({type(error).__name__}: {error}): train or download it again."
        ) from error


def member_name(task: str, seed: int) -> str:
    """The name of an adapter of the zoo in model cards.

    >>> member_name("movie", 2)
    'movie, seed 2'
    """
    return f"{task}, seed {seed}"
