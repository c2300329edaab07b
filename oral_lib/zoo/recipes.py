"""Recipes: how an adapter is trained, and which learning rate and how many steps a task gets.

Where a scale tunes, learning rate and steps are chosen for each task and base model on validation
rows that are cut from the training rows (`tuning.py`); a run keeps what was chosen. Later versions
of a model have its recipes.
"""

from dataclasses import asdict, dataclass, replace
from pathlib import Path

from oral_lib import learning_rate, storage
from oral_lib.errors import PreflightError, UsageError
from oral_lib.models import registry


@dataclass(frozen=True)
class Recipe:
    """How one adapter is trained."""

    steps: int
    batch: int
    lr: float
    warmup: float = 0.1
    clip: float = 1.0
    ratio: float = 16.0  # learning rate of B and of heads over that of A
    checkpoints: tuple[int, ...] = ()  # steps after which one is kept, besides the last

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if name != "checkpoints" and value <= 0:
                raise UsageError(f"zoo recipe: {name} must be positive, got {value!r}.")
        if wrong := [step for step in self.checkpoints if not 0 < step <= self.steps]:
            raise UsageError(f"zoo recipe: checkpoints: {wrong[0]} is not from 1 to {self.steps}.")

    def lr_at(self, step: int) -> float:
        """Linear warm-up from zero to `lr`, then linearly to zero, where it stays."""
        warmup = round(self.warmup * self.steps)
        return learning_rate.linear_from_zero(self.lr, step, steps=self.steps, warmup=warmup)

    @property
    def kept(self) -> set[int]:
        """The steps after which a checkpoint is kept, the last step among them."""
        return {*self.checkpoints, self.steps}

    @classmethod
    def read(cls, told: dict) -> "Recipe":
        """The recipe that a run.json tells, also one of an earlier version; UsageError for names
        that this version does not know."""
        known = UNTOLD | {name: value for name, value in told.items() if name not in FORMER}
        if later := known.keys() - cls.__dataclass_fields__.keys():
            raise UsageError(f"zoo recipe: unknown {', '.join(sorted(later))}: of a later version?")
        return cls(**known | {"checkpoints": tuple(known["checkpoints"])})


UNTOLD = {"ratio": 1.0, "checkpoints": ()}  # what a recipe had before it said so
FORMER = ("keep", "every")  # which checkpoints were kept: nothing that was trained depends on it
RECIPES = {
    "minilm-l6": Recipe(steps=800, batch=16, lr=1.5e-3),
    "minilm-l3": Recipe(steps=800, batch=16, lr=1.5e-3),
    "smollm2-135m": Recipe(steps=600, batch=16, lr=1e-3),
    **{name: Recipe(steps=400, batch=32, lr=6e-3) for name in registry.LITES},
    f"{registry.LITES[0]}{registry.YES_NO}": Recipe(steps=200, batch=16, lr=1.5e-3),
    f"tiny-convnet{registry.YES_NO}": Recipe(steps=60, batch=16, lr=1e-2),
    "vit-tiny": Recipe(steps=400, batch=32, lr=1e-3),
    "convnext-atto": Recipe(steps=400, batch=32, lr=1e-3),
    "towers": Recipe(steps=1600, batch=32, lr=5e-4),
    "tiny-towers": Recipe(steps=60, batch=16, lr=5e-3, ratio=1.0),  # one rate teaches it faster
    "tiny-vision-language": Recipe(steps=120, batch=16, lr=5e-3),
    "sd-2.1": Recipe(steps=4000, batch=1, lr=1e-4, ratio=1.0),  # as in diffusers' own example
    "tiny-diffusion": Recipe(steps=50, batch=16, lr=2e-2, ratio=1.0),
    "tiny-encoder": Recipe(steps=60, batch=16, lr=1e-2),
    "tiny-causal": Recipe(steps=120, batch=16, lr=1e-2),
    "tiny-convnet": Recipe(steps=60, batch=16, lr=2e-2),
    "tiny-vit": Recipe(steps=60, batch=16, lr=1e-2),
}
OTHERS = Recipe(steps=400, batch=16, lr=5e-4)
GRID = {"lr": (0.5, 1.0, 2.0), "steps": (0.5, 1.0)}  # candidates: multiples of the recipe above
DESK = {  # what two cores can afford
    "minilm-l6": Recipe(steps=240, batch=16, lr=6e-3),
    "smollm2-135m": Recipe(steps=120, batch=8, lr=3e-3),
}


def default(base: str) -> Recipe:
    """What tuning starts from; a version of a model has the recipe of the model."""
    return RECIPES.get(registry.root(registry.spec(base)).name, OTHERS)


def candidates(base: str) -> list[Recipe]:
    """The recipes among which `tuning.tune` chooses."""
    first = default(base)
    return [
        replace(first, steps=round(s * first.steps), lr=x * first.lr)
        for s in GRID["steps"]
        for x in GRID["lr"]
    ]


def recipe_of(base: str, task: str, root: Path) -> Recipe:
    """The recipe of `task` on `base`: as tuned below `root`, else the default.

    A version of a model has the recipe of the model. PreflightError for one that was tuned with
    another `ratio` or among other candidates than there are now.
    """
    first, name = default(base), registry.root(registry.spec(base)).name
    tuned = root / "tuning" / name / f"{task}.json"
    if not tuned.exists():
        return first
    found = UNTOLD | storage.read_json(tuned)
    mend = "remove the file, or run ./reproduce.sh --from-scratch."
    if found["ratio"] != first.ratio:
        raise PreflightError(
            f"{tuned} was tuned with a ratio of {found['ratio']:g}, the recipe of {name} has "
            f"{first.ratio:g}: {mend}"
        )
    tried = {(one["steps"], one["lr"]) for one in found["candidates"]}
    if tried != {(one.steps, one.lr) for one in candidates(name)}:
        raise PreflightError(
            f"{tuned} was tuned among other steps and learning rates than {name} has now: {mend}"
        )
    return replace(first, **found["chosen"])
