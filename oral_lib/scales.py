"""The scales: which base models, tasks and seeds a run has, and what they cost.

The tables are in `planning`. Imports with the standard library only.
"""

from collections.abc import Iterable
from importlib.util import find_spec

from oral_lib import machine
from oral_lib.assets import packages
from oral_lib.errors import UsageError, closest
from oral_lib.paths import slug
from oral_lib.planning.parts import FOLLOWS_SEED, GENERATOR, BasePlan, GeneratorJob
from oral_lib.planning.tables import OTHER_SET, PAPER_BASES, SCALES, THROUGH_BASE

LAB_GPU_MB = 39_000  # 32 LoRAs of smollm2-135m at once take 31.1 GiB: a card of 40 GB
# in the report's order
EXPERIMENT_NAMES = ("language", "vision", "unseen", "intents", "multimodal", "style")


# ---------------------------------------------------------------- queries
def machine_scale() -> tuple[str, str]:
    """(scale, reason) for this machine: lab with a GPU of LAB_GPU_MB, else desk."""
    large, reason = machine.has_gpu(LAB_GPU_MB)
    return "lab" if large else "desk", reason


def default_scale() -> str:
    """The scale for this machine."""
    return machine_scale()[0]


def generator_jobs(
    scale: str, experiment: str = "language", source: str = "packages"
) -> tuple[GeneratorJob, ...]:
    """The networks of an experiment in the order of training: generators with their seeds first."""
    large = scale in ("lab", "paper")

    def seeded(kind: str, split: str = "") -> tuple[GeneratorJob, ...]:
        seeds = range(3 if large else 1)
        return tuple(GeneratorJob(kind=kind, seed=seed, split=split) for seed in seeds)

    if experiment == "unseen":
        baselines = (GeneratorJob(kind=kind) for kind in ("regression", "multitask"))
        return *seeded("generator"), *seeded("through_base"), *baselines
    if experiment == "intents":
        measured = {split for plan in base_plans(scale, source, experiment) for split in plan.tasks}
        splits = ("", OTHER_SET) if OTHER_SET in measured else ("",)
        judged = splits if large else splits[:1]  # one is enough at the smoke scale
        weights = [GeneratorJob(kind="weights", split=split) for split in judged]
        through_base = [job for split in splits for job in seeded("through_base", split)]
        return *through_base, *(weights if scale != "desk" else ())
    baselines = ("regression", "unconditional") if large else ("regression",)
    return (
        *seeded("generator"),
        *(seeded("through_base") if scale != "desk" and experiment in THROUGH_BASE else ()),
        *(GeneratorJob(kind=kind) for kind in baselines),
    )


def generators(
    scale: str, experiment: str = "language", source: str = "packages"
) -> tuple[str, ...]:
    """The names of `generator_jobs`."""
    return tuple(job.name for job in generator_jobs(scale, experiment, source))


def network_names() -> tuple[str, ...]:
    """The names of the networks of all experiments of the lab, each once."""
    names = [n for e in EXPERIMENT_NAMES for n in generators("lab", e, "hub")]
    return tuple(dict.fromkeys(names))


def generator_job(
    scale: str, name: str, experiment: str = "language", source: str = "packages"
) -> GeneratorJob:
    """The job called `name`; `UsageError` with the nearest name if the experiment has none."""
    jobs = {job.name: job for job in generator_jobs(scale, experiment, source)}
    if name not in jobs:
        raise UsageError(
            f"experiment {experiment!r} at scale {scale!r} trains no {name!r}."
            f"{closest(name, jobs)} It trains {', '.join(jobs)}."
        )
    return jobs[name]


def generator_of(scale: str, seed: int) -> str:
    """The name of the generator of a cell: that of its seed, or the first for further seeds."""
    name = GeneratorJob(kind=GENERATOR.kind, seed=seed).name
    return name if name in generators(scale) else GENERATOR.name


def starts_from(experiment: str, job: GeneratorJob) -> str:
    """The name of the network that the training of `job` starts from, or ""."""
    if job.kind == "through_base" and experiment in THROUGH_BASE:
        return GeneratorJob(kind=GENERATOR.kind, seed=job.seed).name
    return ""


def cell_networks(scale: str, source: str, experiment: str, task: str, seed: int) -> dict[str, str]:
    """The names of the networks that a cell measures, by kind.

    Of the kinds in `FOLLOWS_SEED` the network of the cell's seed, or the first for further seeds.
    All other kinds are measured with seed 0 only.

    Args:
        scale: of the run.
        source: of the run.
        experiment: of the run.
        task: of the cell; of intents a split.
        seed: of the cell.
    """
    jobs = generator_jobs(scale, experiment, source)
    split = task if task in {job.split for job in jobs} else ""
    names: dict[str, str] = {}
    for job in (job for job in jobs if job.split == split):  # seed 0 comes first
        if job.seed == seed or (job.seed == 0 and job.kind in FOLLOWS_SEED):
            names[job.kind] = job.name
    return names


def base_plans(
    scale: str, source: str = "packages", experiment: str = "language"
) -> tuple[BasePlan, ...]:
    """The base models of an experiment; none where the scale leaves it out.

    Args:
        scale: a key of `SCALES`.
        source: "packages", "hub" or "local:DIR"; only tasks with rows from it are planned.
        experiment: one of `EXPERIMENT_NAMES`.

    Raises:
        UsageError: unknown scale, source or experiment, or a source that the scale does not have.
    """
    if scale not in SCALES:
        raise UsageError(
            f"unknown scale {scale!r}.{closest(scale, SCALES)} Known: {', '.join(SCALES)}."
        )
    kind = slug(source)
    if scale == "desk" and kind != "packages":
        raise UsageError(f"scale 'desk' runs from source 'packages' only, got {source!r}.")
    if experiment not in EXPERIMENT_NAMES:
        raise UsageError(
            f"unknown experiment {experiment!r}.{closest(experiment, EXPERIMENT_NAMES)} "
            f"Known: {', '.join(EXPERIMENT_NAMES)}."
        )
    if kind == "made":
        source = "packages"
    elif experiment == "language":
        source = kind
    return SCALES[scale].get(experiment, lambda source: ())(source)


def not_planned(scale: str, source: str, experiment: str) -> str:
    """The message about an experiment that a scale leaves out."""
    planned = ", ".join(experiments(scale, source)) or "none"
    message = f"scale {scale!r} has no experiment {experiment!r} from source {source!r}; "
    message += f"it has {planned}."
    if experiment == "style":
        message += " It requires diffusers: pip install '.[diffusion]'."
    return message


def experiments(scale: str, source: str = "packages") -> list[str]:
    """The experiments of a scale; the smoke scale has styles only if diffusers is installed."""
    left_out = "style" if scale == "smoke" and find_spec("diffusers") is None else ""
    return [
        name for name in EXPERIMENT_NAMES if name != left_out and base_plans(scale, source, name)
    ]


def base_plan(scale: str, base: str, source: str = "packages", experiment: str = "") -> BasePlan:
    """The plan of `base`, in one experiment of a scale or in any.

    Raises:
        UsageError: with the nearest name if the scale has no such base, or with the licence that
            the user has to accept first.
    """
    plans = _plans_by_base(scale, source, (experiment,) if experiment else EXPERIMENT_NAMES)
    if base in plans:
        return plans[base]
    terms = packages.TERMS.get(base)
    if terms and scale == "lab" and base not in PAPER_BASES:
        raise UsageError(
            f"{base} is subject to {terms.name}: read {terms.url}, and if you accept them set "
            f"ORAL_ACCEPT={terms.key} and run the same command again."
        )
    hint = f"{closest(base, plans)} It has {', '.join(plans)}."
    if scale == "lab" and base in _plans_by_base(scale, "hub"):
        hint = " --source hub has it."
    raise UsageError(f"scale {scale!r} has no base {base!r} from {slug(source)!r}.{hint}")


def _plans_by_base(
    scale: str, source: str, names: Iterable[str] = EXPERIMENT_NAMES
) -> dict[str, BasePlan]:
    plans: dict[str, BasePlan] = {}
    for plan in (plan for name in names for plan in base_plans(scale, source, name)):
        plans.setdefault(plan.base, plan)  # the experiment that the registry names comes first
    return plans


def check_cell(scale: str, source: str, base: str, task: str, experiment: str = "") -> None:
    """Raises UsageError, with the nearest name, unless the scale has a cell (base, task)."""
    tasks = base_plan(scale, base, source, experiment).cell_tasks
    if task not in tasks:
        raise UsageError(
            f"scale {scale!r} from source {slug(source)!r} has no task {task!r} on {base!r}."
            f"{closest(task, tasks)} It has {', '.join(tasks)}."
        )


def zoo_seeds(scale: str, base: str, source: str = "packages") -> list[int]:
    """All seeds of a task in the zoo of `base`; the held-out seeds come last."""
    return base_plan(scale, base, source).all_seeds


def members(
    scale: str, source: str, experiment: str = "language", *, held_out: bool = False
) -> list[tuple[str, str, int]]:
    """(base, task, seed) of every adapter that generators are trained on.

    With `held_out`, of the adapters of the same tasks that no generator is trained on.
    """
    return [
        (plan.base, task, seed)
        for plan in base_plans(scale, source, experiment)
        for task in plan.tasks
        for seed in (
            range(plan.zoo_seeds, plan.zoo_seeds + plan.held_out)
            if held_out
            else range(plan.zoo_seeds)
        )
    ]
