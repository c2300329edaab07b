"""The scales: which base models, tasks and seeds a run has, and what they cost.

`SCALES` has one table a scale: for each experiment a function from a source to its base models.
Imports with the standard library only.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from importlib.util import find_spec

from oral_lib import machine
from oral_lib.assets import packages
from oral_lib.errors import UsageError, closest
from oral_lib.paths import full, slug
from oral_lib.tasks import binary


@dataclass(frozen=True, kw_only=True)
class BasePlan:
    """One base model of a scale: its tasks, the number of adapters of each, and their cost.

    Costs are estimates for one process on the machine that the scale is meant for.
    """

    base: str
    tasks: tuple[str, ...]  # whose adapters the generators are trained on
    zoo_seeds: int  # adapters of a task that the generators are trained on
    held_out: int = 0  # further adapters of a task that no generator is trained on
    seeds: int = 1  # generator seeds, each a cell of the table
    tuned: bool = False  # learning rate and steps are chosen on validation rows first
    parent: str = ""  # the model of which this is a later version
    aligned: bool = False  # combined from two other models first
    unseen_tasks: tuple[str, ...] = ()  # tasks of the zoo that no generator is trained on
    zoo_minutes: float = 0.1  # of one adapter
    cell_minutes: float = 0.2
    memory_mb: int = 2000

    @property
    def zoo_tasks(self) -> tuple[str, ...]:
        """All tasks of the zoo."""
        return self.tasks + self.unseen_tasks

    @property
    def cell_tasks(self) -> tuple[str, ...]:
        """The tasks that have cells: the unseen tasks where there are any."""
        return self.unseen_tasks or self.tasks


@dataclass(frozen=True, kw_only=True)
class GeneratorJob:
    """One network to train on a zoo: a kind of generator and its seed."""

    kind: str  # "generator", "regression", "unconditional" or "multitask"
    seed: int = 0

    @property
    def name(self) -> str:
        """Its name in commands and the name of its folder: the kind, with the seed unless 0."""
        return f"{self.kind}-{self.seed}" if self.seed else self.kind


GENERATOR = GeneratorJob(kind="generator")


# ---------------------------------------------------------------- tasks
PAPER_TASKS = ("sst2", "mrpc", "rte", "boolq", "winogrande", "wnli", "gsm8k")
SUBSTITUTES = (  # for the paper's tasks, in the same order
    *("movie", "product_matching", "corr2cause", "pararule"),
    *("quartz", "winograd_schemas", "school_maths"),
)
EXTRA_TASKS = ("sarcasm", "tweets", "products", "review_topic", "arithmetic")
FREE_FORM = ("gsm8k", "school_maths", "arithmetic")  # an encoder cannot generate an answer
LANGUAGE_TASKS = {"packages": SUBSTITUTES + EXTRA_TASKS, "local": PAPER_TASKS, "hub": PAPER_TASKS}
IMAGE_TASKS = {
    "packages": ("digits", "easy_vqa_shape", "easy_vqa_colour", "solar_cells"),
    "local": ("cifar10", "gtsrb", "flowers", "sign_digits"),
    "hub": ("cifar10", "gtsrb"),  # the other data sets have no pinned revision
}
PAIR_TASKS = {
    "packages": ("easy_vqa", "easy_vqa_yesno", "easy_vqa_attributes", "digit_labels"),
    "local": ("flickr8k", "easy_vqa", "nlvr"),
}  # data sets of image-text pairs have no pinned revision on the hub
STYLE_TASKS = ("pokemon", "naruto", "baroque")  # no pinned revision: read from a local folder

# ---------------------------------------------------------------- base models
PAPER_BASES = ("mistral-7b", "llama-2-7b", "llama-3.1-8b", "gemma-2-9b", "qwen2.5-7b")
HUB_BASES = ("qwen2.5-0.5b", "llama-3.2-1b")
_LITES = ("efficientnet-lite0", "efficientnet-lite1", "efficientnet-lite2")
LOCAL_BACKBONES = ("vit-tiny", "convnext-atto")  # used where a local folder has their weights


FULL = {"zoo_seeds": 8, "held_out": 2, "seeds": 3, "tuned": True}  # of the lab and the paper
PAPER_COST = {"zoo_minutes": 60.0, "cell_minutes": 30.0, "memory_mb": 64_000}


def _lab_language(source: str) -> tuple[BasePlan, ...]:
    """Four models, Gemma where its terms are accepted, and two more where the hub has them."""
    names = LANGUAGE_TASKS[source]
    labelled = tuple(task for task in names if task not in FREE_FORM)
    costs = {"zoo_minutes": 0.04, "cell_minutes": 0.6, "memory_mb": 3000}
    encoder = BasePlan(base="minilm-l6", tasks=labelled, **FULL, **costs)
    costs = {"zoo_minutes": 0.06, "cell_minutes": 1.0, "memory_mb": 6000}
    causal = BasePlan(base="smollm2-135m", tasks=names, **FULL, **costs)
    models = [
        encoder,
        replace(encoder, base="minilm-l3"),
        causal,
        replace(causal, base="smollm2-135m-t4", parent="smollm2-135m", tuned=False),
        replace(causal, base="gemma-3-270m"),
    ]
    if source == "hub":
        models += [replace(causal, base=base) for base in HUB_BASES]
    return tuple(m for m in models if packages.accepted(m.base))


def _lab_vision(source: str) -> tuple[BasePlan, ...]:
    """The image backbones, with those whose weights the local folder has."""
    kind, _, folder = source.partition(":")
    names = list(_LITES)
    if kind == "local":
        models = full(folder) / "models"
        names += [name for name in LOCAL_BACKBONES if (models / name / "config.json").is_file()]
    costs = {"zoo_minutes": 0.05, "cell_minutes": 1.0, "memory_mb": 6000}
    return tuple(BasePlan(base=name, tasks=IMAGE_TASKS[kind], **FULL, **costs) for name in names)


def _lab_multimodal(source: str) -> tuple[BasePlan, ...]:
    """The two-tower model, where the source has image-text pairs."""
    names = PAIR_TASKS.get(source.partition(":")[0])
    if not names:
        return ()
    costs = {"zoo_minutes": 0.3, "cell_minutes": 1.6, "memory_mb": 8000}
    return (BasePlan(base="towers", tasks=names, aligned=True, **FULL, **costs),)


def _unseen(base: str, family: str, n_tasks: int, n_unseen: int, **costs: float) -> BasePlan:
    """The plan of binary tasks over the classes of `family`.

    Args:
        base: the backbone, with a head of two classes.
        family: the task whose ten classes are split into yes and no.
        n_tasks: tasks that generators are trained on.
        n_unseen: held-out tasks that are measured.
        costs: `zoo_minutes`, `cell_minutes` and `memory_mb`.
    """
    return BasePlan(
        base=base,
        tasks=binary.training_tasks(family)[:n_tasks],
        zoo_seeds=1,
        unseen_tasks=tuple(binary.held_out(family)[:n_unseen]),
        **costs,
    )


def _lab_unseen(source: str) -> tuple[BasePlan, ...]:
    """RPG's test, on ten handwritten digits where the source has no CIFAR-10."""
    family = "digits" if source == "packages" else "cifar10"
    costs = {"zoo_minutes": 0.01, "cell_minutes": 0.3, "memory_mb": 12_000}
    return (_unseen(f"{_LITES[0]}-yes-no", family, 1002, binary.HELD_OUT, **costs),)


def _paper_multimodal(source: str) -> tuple[BasePlan, ...]:
    """The paper's vision-language model; only a local folder has both model and tasks."""
    if not source.startswith("local"):
        return ()
    return (BasePlan(base="qwen2-vl-7b", tasks=("easy_vqa", "nlvr"), **FULL, **PAPER_COST),)


def _paper_style(source: str) -> tuple[BasePlan, ...]:
    """Stable Diffusion 2.1; only a local folder has both model and tasks."""
    if not source.startswith("local"):
        return ()
    costs = PAPER_COST | {"zoo_minutes": 30.0, "cell_minutes": 60.0}
    return (BasePlan(base="sd-2.1", tasks=STYLE_TASKS, **FULL | {"tuned": False}, **costs),)


# ---------------------------------------------------------------- the scales
SMOKE: dict[str, Callable[[str], tuple[BasePlan, ...]]] = {
    "language": lambda source: tuple(
        BasePlan(base=base, tasks=("movie", "sarcasm"), zoo_seeds=2, held_out=1)
        for base in ("tiny-encoder", "tiny-causal")
    ),
    "vision": lambda source: tuple(
        BasePlan(base=base, tasks=("easy_vqa_shape", "solar_cells"), zoo_seeds=2, held_out=1)
        for base in ("tiny-convnet", "tiny-vit")
    ),
    "unseen": lambda source: (_unseen("tiny-convnet-yes-no", "cifar10", 30, 2, zoo_minutes=0.01),),
    "multimodal": lambda source: (
        BasePlan(
            base="tiny-towers",
            tasks=("flickr8k", "easy_vqa"),
            zoo_seeds=2,
            held_out=1,
            aligned=True,
        ),
    ),
    "style": lambda source: (
        BasePlan(base="tiny-diffusion", tasks=("pokemon", "baroque"), zoo_seeds=2, held_out=1),
    ),
}
_DESK = {
    "language": lambda source: (
        BasePlan(
            base="minilm-l6",
            tasks=("movie", "sarcasm", "review_topic"),
            zoo_seeds=3,
            held_out=1,
            zoo_minutes=0.5,
            cell_minutes=1.3,
            memory_mb=2500,
        ),
        BasePlan(
            base="smollm2-135m",
            tasks=("movie", "sarcasm"),
            zoo_seeds=2,
            held_out=1,
            zoo_minutes=1.5,
            cell_minutes=3.5,
            memory_mb=4000,
        ),
    ),
}
_LAB = {
    "language": _lab_language,
    "vision": _lab_vision,
    "unseen": _lab_unseen,
    "multimodal": _lab_multimodal,
}
PAPER = {
    "language": lambda source: tuple(
        BasePlan(base=base, tasks=PAPER_TASKS, **FULL, **PAPER_COST) for base in PAPER_BASES
    ),
    "multimodal": _paper_multimodal,
    "style": _paper_style,
}
SCALES = {"smoke": SMOKE, "desk": _DESK, "lab": _LAB, "paper": PAPER}
LAB_GPU_MB = 39_000  # 32 LoRAs of smollm2-135m at once take 31.1 GiB: a card of 40 GB
EXPERIMENT_NAMES = ("language", "vision", "unseen", "multimodal", "style")  # in the report's order


# ---------------------------------------------------------------- queries
def machine_scale() -> tuple[str, str]:
    """(scale, reason) for this machine: lab with a GPU of LAB_GPU_MB, else desk."""
    large, reason = machine.has_gpu(LAB_GPU_MB)
    return "lab" if large else "desk", reason


def default_scale() -> str:
    """The scale for this machine."""
    return machine_scale()[0]


def generator_jobs(scale: str, experiment: str = "language") -> tuple[GeneratorJob, ...]:
    """The networks that are trained on a zoo: the generator with each of its seeds first."""
    if experiment == "unseen":
        kinds = ("generator", "regression", "multitask")
        return tuple(GeneratorJob(kind=kind) for kind in kinds)
    large = scale in ("lab", "paper")
    baselines = ("regression", "unconditional") if large else ("regression",)
    return (
        *(GeneratorJob(kind="generator", seed=seed) for seed in range(3 if large else 1)),
        *(GeneratorJob(kind=kind) for kind in baselines),
    )


def generators(scale: str, experiment: str = "language") -> tuple[str, ...]:
    """The names of `generator_jobs`."""
    return tuple(job.name for job in generator_jobs(scale, experiment))


def generator_job(scale: str, name: str, experiment: str = "language") -> GeneratorJob:
    """The job called `name`; `UsageError` with the nearest name if the experiment has none."""
    jobs = {job.name: job for job in generator_jobs(scale, experiment)}
    if name not in jobs:
        raise UsageError(
            f"experiment {experiment!r} at scale {scale!r} trains no {name!r}."
            f"{closest(name, jobs)} It trains {', '.join(jobs)}."
        )
    return jobs[name]


def generator_of(scale: str, seed: int) -> str:
    """The name of the generator of a cell: that of its seed, or the first for further seeds."""
    name = GeneratorJob(kind="generator", seed=seed).name
    return name if name in generators(scale) else "generator"


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
    return {plan.base: plan for name in names for plan in base_plans(scale, source, name)}


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
    plan = base_plan(scale, base, source)
    return list(range(plan.zoo_seeds + plan.held_out))


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
