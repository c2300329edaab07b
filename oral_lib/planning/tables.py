"""The tables of the scales: for each experiment a function from a source to its base models.

Imports with the standard library only.
"""

from collections.abc import Callable
from dataclasses import replace

from oral_lib.assets import packages
from oral_lib.paths import full
from oral_lib.planning.parts import BasePlan
from oral_lib.tasks import binary

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
MEASURED_SPLITS = ("L0", "L1", "L2", "L3")  # of the experiment intents: `tasks/intents`
OTHER_SET = "L3"  # the split whose networks are trained on one set of messages only
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


def _unseen(
    base: str, family: str, n_tasks: int = 0, n_unseen: int = 0, seeds: int = 1, **costs: float
) -> BasePlan:
    """The plan of binary tasks over the classes of `family`.

    The zoo also has the complements of the held-out pairs, to measure what they would give away.

    Args:
        base: the backbone, with a head of two classes.
        family: the task whose ten classes are split into yes and no.
        n_tasks: tasks that generators are trained on; 0: all.
        n_unseen: measured tasks of each set of held-out tasks; 0: all.
        seeds: of the generators.
        costs: `zoo_minutes`, `cell_minutes` and `memory_mb`.
    """
    pairs, classes = (binary.held_out_tasks(family, part) for part in binary.HELD_OUT_SETS)
    pairs, classes = pairs[: n_unseen or None], classes[: n_unseen or None]
    return BasePlan(
        base=base,
        tasks=binary.training_tasks(family)[: n_tasks or None],
        zoo_seeds=1,
        seeds=seeds,
        unseen_tasks=pairs + classes,
        controls=tuple(binary.complement_task(name) for name in pairs),
        **costs,
    )


def _lab_unseen(source: str) -> tuple[BasePlan, ...]:
    """RPG's test, on ten handwritten digits where the source has no CIFAR-10."""
    family = "digits" if source == "packages" else "cifar10"
    costs = {"zoo_minutes": 0.05, "cell_minutes": 0.1, "memory_mb": 20_000}
    return (_unseen(f"{_LITES[0]}-yes-no", family, seeds=3, **costs),)


def _intents(
    *bases: str, splits: tuple[str, ...] = MEASURED_SPLITS, **rest
) -> tuple[BasePlan, ...]:
    """The plans of base models that answer whether a message is about an intent.

    Args:
        bases: their names.
        splits: the splits that are measured, each a cell.
        rest: `seeds`, `zoo_minutes`, `cell_minutes` and `memory_mb`.
    """
    return tuple(BasePlan(base=base, tasks=splits, zoo_seeds=0, **rest) for base in bases)


def _lab_intents(source: str) -> tuple[BasePlan, ...]:
    """Two encoders, and one causal model with LoRA on two and on all linear layers.

    The messages of packages are one set: there is no split with another.
    """
    splits = MEASURED_SPLITS[:3] if source == "packages" else MEASURED_SPLITS
    about = {"splits": splits, "seeds": 3, "zoo_minutes": 1.0, "cell_minutes": 1.0}
    return (
        *_intents("minilm-l6", "minilm-l3", **about, memory_mb=12_000),
        *_intents("smollm2-135m", "smollm2-135m-all", **about, memory_mb=40_000),
    )


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
    "unseen": lambda source: (_unseen("tiny-convnet-yes-no", "cifar10", 29, 1, zoo_minutes=0.01),),
    "intents": lambda source: _intents("tiny-encoder", "tiny-causal", zoo_minutes=0.05),
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
    "intents": lambda source: _intents(
        "minilm-l6", splits=("L2",), zoo_minutes=5.0, cell_minutes=3.0, memory_mb=3000
    ),
}
_LAB = {
    "language": _lab_language,
    "vision": _lab_vision,
    "unseen": _lab_unseen,
    "intents": _lab_intents,
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
# experiments whose generators are also trained on through the base models, at all scales but desk
THROUGH_BASE = ("language",)
