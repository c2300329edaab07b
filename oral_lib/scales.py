"""The scales: which base models, tasks and seeds a run has, and what they cost.

Imports with the standard library alone.
"""

import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

from oral_lib.errors import UsageError, closest
from oral_lib.paths import slug
from oral_lib.tasks import binary


@dataclass(frozen=True)
class BasePlan:
    """One base model of a scale: its tasks, the adapters the zoo holds of each, what they cost."""

    base: str
    tasks: tuple[str, ...]
    zoo_seeds: int  # adapters of a task that the generator is trained on
    held_out: int = 0  # further ones that it never sees
    seeds: int = 1  # generator seeds, each a cell of the table
    tuned: bool = False  # learning rate and steps are chosen first
    parent: str = ""  # the model of which this is a later version
    zoo_minutes: float = 0.1  # one adapter
    cell_minutes: float = 0.2
    memory_mb: int = 2000
    experiment: str = "language"
    aligned: bool = False  # made of two other models first
    unseen: tuple[str, ...] = ()  # tasks of the zoo that no generator is trained on

    @property
    def kept(self) -> tuple[str, ...]:
        """The tasks of the zoo."""
        return self.tasks + self.unseen

    @property
    def measured(self) -> tuple[str, ...]:
        """The tasks that cells are made of: the unseen ones where there are any."""
        return self.unseen or self.tasks


PAPER_TASKS = ("sst2", "mrpc", "rte", "boolq", "winogrande", "wnli", "gsm8k")
PAPER_BASES = ("mistral-7b", "llama-2-7b", "llama-3.1-8b", "gemma-2-9b", "qwen2.5-7b")
STAND_INS = (
    *("movie", "product_matching", "corr2cause", "pararule"),
    *("quartz", "winograd_schemas", "school_maths"),
)
SPARES = ("sarcasm", "tweets", "products", "review_topic", "arithmetic")
WRITTEN = ("gsm8k", "school_maths", "arithmetic")  # an encoder cannot write an answer
TASKS = {"packages": STAND_INS + SPARES, "local": PAPER_TASKS, "hub": PAPER_TASKS}
PICTURES = {
    "packages": ("digits", "easy_vqa_shape", "easy_vqa_colour", "solar_cells"),
    "local": ("cifar10", "gtsrb", "flowers", "sign_digits"),
    "hub": ("cifar10", "gtsrb"),  # of the others no revision is known
}
PAIRS = {
    "packages": ("easy_vqa", "easy_vqa_yesno", "easy_vqa_attributes", "digit_labels"),
    "local": ("flickr8k", "easy_vqa", "nlvr"),
}  # no revision of such sets on the hub is known
LITES = ("efficientnet-lite0", "efficientnet-lite1", "efficientnet-lite2")
OWN_BACKBONES = ("vit-tiny", "convnext-atto")  # of which a local folder may have the weights
TERMS = {"gemma-3-270m": "gemma"}  # base models of terms that the user has to accept


def _lab(source: str) -> tuple[BasePlan, ...]:
    """The language models of the lab scale: four, Gemma where its terms are accepted, and two more
    where the hub has them."""
    rows = TASKS[source]
    labelled = tuple(task for task in rows if task not in WRITTEN)
    causal = BasePlan("", rows, 8, 2, 3, True, "", 0.06, 0.5, 6000)
    encoder = replace(causal, tasks=labelled, zoo_minutes=0.04, cell_minutes=0.3, memory_mb=3000)
    models = [
        replace(encoder, base="minilm-l6"),
        replace(encoder, base="minilm-l3"),
        replace(causal, base="smollm2-135m"),
        replace(causal, base="smollm2-135m-t4", parent="smollm2-135m", tuned=False),
        replace(causal, base="gemma-3-270m"),
    ]
    if source == "hub":
        models += [replace(causal, base=b) for b in ("qwen2.5-0.5b", "llama-3.2-1b")]
    agreed = os.environ.get("ORAL_ACCEPT", "").replace(",", " ").split()
    return tuple(m for m in models if TERMS.get(m.base, "") in ("", *agreed))


def _backbones(source: str) -> tuple[BasePlan, ...]:
    """The image backbones of the lab scale, with those that the user's own folder has."""
    kind, _, folder = source.partition(":")
    models = Path(folder).expanduser() / "models"
    own = [b for b in OWN_BACKBONES if kind == "local" and (models / b / "config.json").is_file()]
    cells = BasePlan("", PICTURES[kind], 8, 2, 3, True, "", 0.05, 0.5, 6000, "vision")
    return tuple(replace(cells, base=base) for base in (*LITES, *own))


def _towers(source: str) -> tuple[BasePlan, ...]:
    """The two-tower model of the lab scale, where the source has pictures with texts."""
    rows = PAIRS.get(source.partition(":")[0])
    if not rows:
        return ()
    cells = BasePlan("towers", rows, 8, 2, 3, True, "", 0.3, 0.8, 8000, "multimodal", True)
    return (cells,)


def _vision_language(source: str) -> tuple[BasePlan, ...]:
    """The paper's own model for pictures with texts, on what asks a question about a picture."""
    if source.partition(":")[0] != "local":  # no other source has both model and tasks
        return ()
    rows = ("easy_vqa", "nlvr")
    return (BasePlan("qwen2-vl-7b", rows, 8, 2, 3, True, "", 60.0, 30.0, 64_000, "multimodal"),)


MULTIMODAL = {
    "smoke": lambda source: (
        BasePlan(
            "tiny-towers", ("flickr8k", "easy_vqa"), 2, 1, aligned=True, experiment="multimodal"
        ),
    ),
    "lab": _towers,
    "paper": _vision_language,
}
VISION = {
    "smoke": lambda source: tuple(
        BasePlan(base, ("easy_vqa_shape", "solar_cells"), 2, 1, experiment="vision")
        for base in ("tiny-convnet", "tiny-vit")
    ),
    "lab": _backbones,
}


def _splits(base: str, of: str, told: int, held: int, **costs) -> BasePlan:
    """Tasks of yes or no: `told` to train generators, of those held out the first `held`."""
    tasks, unseen = binary.trained(of)[:told], tuple(binary.held_out(of)[:held])
    return BasePlan(base, tasks, 1, experiment="unseen", unseen=unseen, **costs)


def _lab_splits(source: str) -> tuple[BasePlan, ...]:
    """RPG's test; of ten handwritten digits where packages are all there is."""
    of = "digits" if source == "packages" else "cifar10"
    costs = {"zoo_minutes": 0.01, "cell_minutes": 0.3, "memory_mb": 12_000}
    return (_splits("efficientnet-lite0-yes-no", of, 1002, binary.HELD_OUT, **costs),)


UNSEEN = {
    "smoke": lambda source: (_splits("tiny-convnet-yes-no", "cifar10", 30, 2, zoo_minutes=0.01),),
    "lab": _lab_splits,
}
STYLES = ("pokemon", "naruto", "baroque")  # of which no revision is known: a folder has them
STYLE = {
    "smoke": lambda source: (
        BasePlan("tiny-diffusion", ("pokemon", "baroque"), 2, 1, experiment="style"),
    ),
    "paper": lambda source: (
        (BasePlan("sd-2.1", STYLES, 8, 2, 3, False, "", 30.0, 60.0, 64_000, "style"),)
        if source.startswith("local")
        else ()
    ),
}
SCALES = {
    "smoke": lambda source: (
        BasePlan("tiny-encoder", ("movie", "sarcasm"), 2, 1),
        BasePlan("tiny-causal", ("movie", "sarcasm"), 2, 1),
    ),
    "desk": lambda source: (
        BasePlan(
            "minilm-l6", ("movie", "sarcasm", "review_topic"), 3, 0, 1, False, "", 0.5, 0.9, 2500
        ),
        BasePlan("smollm2-135m", ("movie", "sarcasm"), 2, 0, 1, False, "", 1.5, 2.5, 4000),
    ),
    "lab": _lab,
    "paper": lambda source: tuple(
        BasePlan(b, PAPER_TASKS, 8, 2, 3, True, "", 60.0, 30.0, 64_000) for b in PAPER_BASES
    ),
}


EXPERIMENTS = (
    "language",
    "vision",
    "unseen",
    "multimodal",
    "style",
)  # each has a zoo, generators and a notebook of its own

CELL_NOTEBOOKS = {  # and the parameter that names the base model
    "language": ("10_language", "base"),
    "vision": ("20_vision", "backbone"),
    "unseen": ("21_unseen", ""),
    "multimodal": ("30_multimodal", "towers"),
    "style": ("22_style", "base"),
}


def default_scale() -> str:
    """The scale that fits this machine: lab where there is a GPU, desk where there is none."""
    return "lab" if shutil.which("nvidia-smi") else "desk"


def generators(scale: str, experiment: str = "language") -> tuple[str, ...]:
    """What is trained on a zoo: the generator with each of its seeds, and its baselines."""
    if experiment == "unseen":
        return ("generator", "regression", "multitask")
    seeds = 3 if scale in ("lab", "paper") else 1
    more = tuple(f"generator-{seed}" for seed in range(1, seeds))
    rest = ("regression", "unconditional") if scale in ("lab", "paper") else ("regression",)
    return ("generator", *more, *rest)


def generator_of(scale: str, seed: int) -> str:
    """The generator that makes the adapters of a cell; a further cell draws from the first."""
    name = f"generator-{seed}"
    return name if name in generators(scale) else "generator"


def cells_of(
    scale: str, source: str = "packages", experiment: str = "language"
) -> tuple[BasePlan, ...]:
    """The base models of an experiment at a scale with the tasks that `source` has rows of; none
    where the scale leaves the experiment out.

    `UsageError` with the nearest name if there is no such scale, or where it has no such source.
    """
    if scale not in SCALES:
        raise UsageError(
            f"unknown scale {scale!r}.{closest(scale, SCALES)} Known: {', '.join(SCALES)}."
        )
    kind = slug(source)
    if scale == "desk" and kind != "packages":
        raise UsageError(f"scale 'desk' runs from source 'packages' alone, got {source!r}.")
    if experiment not in EXPERIMENTS:
        known = f"{closest(experiment, EXPERIMENTS)} Known: {', '.join(EXPERIMENTS)}."
        raise UsageError(f"unknown experiment {experiment!r}.{known}")
    if experiment != "language":
        known = {"vision": VISION, "unseen": UNSEEN, "multimodal": MULTIMODAL, "style": STYLE}
        known = known[experiment]
        return known.get(scale, lambda source: ())("packages" if kind == "made" else source)
    return SCALES[scale]("packages" if kind == "made" else kind)


def not_planned(scale: str, source: str, experiment: str) -> str:
    """What to say of an experiment that is not planned."""
    there = ", ".join(experiments(scale, source)) or "none"
    extra = " It wants diffusers: pip install '.[diffusion]'." * (experiment == "style")
    return (
        f"scale {scale!r} has no experiment {experiment!r} from source {source!r}; it has {there}."
        f"{extra}"
    )


def experiments(scale: str, source: str = "packages") -> list[str]:
    """The experiments that a scale has; the smoke scale has styles where diffusers is installed."""
    left_out = "style" if scale == "smoke" and find_spec("diffusers") is None else ""
    return [n for n in EXPERIMENTS if n != left_out and cells_of(scale, source, n)]


def base_of(scale: str, base: str, source: str = "packages", experiment: str = "") -> BasePlan:
    """The entry of `base` in a scale, or in one experiment of it; `UsageError` with the nearest
    name if it has none."""
    known = _bases(scale, source, (experiment,) if experiment else EXPERIMENTS)
    if base not in known and base in TERMS and scale == "lab":
        raise UsageError(
            f"{base} comes under terms of use: read https://ai.google.dev/{TERMS[base]}/terms, and "
            f"if you accept them set ORAL_ACCEPT={TERMS[base]} and run the same command again."
        )
    if base not in known:
        near = f"{closest(base, known)} It has {', '.join(known)}."
        if scale == "lab" and base in _bases(scale, "hub"):
            near = " --source hub has it."
        raise UsageError(f"scale {scale!r} has no base {base!r} from {slug(source)!r}.{near}")
    return known[base]


def _bases(scale: str, source: str, some: Iterable[str] = EXPERIMENTS) -> dict[str, BasePlan]:
    return {c.base: c for name in some for c in cells_of(scale, source, name)}


def check_cell(scale: str, source: str, base: str, task: str, experiment: str = "") -> None:
    """`UsageError` with the nearest name unless (base, task) is a cell of the scale, or of one
    experiment of it."""
    known = base_of(scale, base, source, experiment).measured
    if task not in known:
        raise UsageError(
            f"scale {scale!r} from source {slug(source)!r} has no task {task!r} on {base!r}."
            f"{closest(task, known)} It has {', '.join(known)}."
        )


def zoo_seeds(scale: str, base: str, source: str = "packages") -> list[int]:
    """All seeds of a task that the zoo of `base` holds; the held-out ones come last."""
    cells = base_of(scale, base, source)
    return list(range(cells.zoo_seeds + cells.held_out))


def members(
    scale: str, source: str, experiment: str = "language", *, held_out: bool = False
) -> list[tuple[str, str, int]]:
    """(base, task, seed) of every adapter that generators are trained on, or of those held out."""
    return [
        (cells.base, task, seed)
        for cells in cells_of(scale, source, experiment)
        for task in cells.tasks
        for seed in (
            range(cells.zoo_seeds, cells.zoo_seeds + cells.held_out)
            if held_out
            else range(cells.zoo_seeds)
        )
    ]
