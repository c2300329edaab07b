"""Recipes: the training hyperparameters of an adapter, by base model and task.

At scales that tune, learning rate and steps are selected for each task and base model on validation
rows, which are taken from the training rows (`tuning.py`). Later versions of a model use its
recipes.
"""

from dataclasses import asdict, dataclass, replace
from pathlib import Path

from oral_lib import learning_rate, storage
from oral_lib.errors import PreflightError, UsageError
from oral_lib.models import registry


@dataclass(frozen=True)
class Recipe:
    """Training hyperparameters of one adapter."""

    steps: int
    batch: int  # rows of a step
    lr: float  # highest learning rate, of B and of heads
    warmup: float = 0.1  # share of the steps
    clip: float = 1.0  # maximum gradient norm
    ratio: float = 16.0  # learning rate of B and of heads divided by the learning rate of A
    checkpoints: tuple[int, ...] = ()  # steps after which a checkpoint is saved, except the last

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if name != "checkpoints" and value <= 0:
                raise UsageError(f"zoo recipe: {name} must be positive, got {value!r}.")
        if invalid := [step for step in self.checkpoints if not 0 < step <= self.steps]:
            raise UsageError(
                f"zoo recipe: checkpoint {invalid[0]} must be between 1 and {self.steps}."
            )

    def lr_at(self, step: int) -> float:
        """Learning rate of a step: linear warm-up from zero, then linear decay to zero."""
        warmup = round(self.warmup * self.steps)
        return learning_rate.linear_from_zero(self.lr, step, steps=self.steps, warmup=warmup)

    @property
    def checkpoint_steps(self) -> set[int]:
        """Steps after which a checkpoint is saved, including the last step."""
        return {*self.checkpoints, self.steps}

    @classmethod
    def from_json(cls, content: dict) -> "Recipe":
        """The recipe in a run.json, also of an earlier version.

        Raises UsageError for fields that this version does not have.
        """
        fields = ADDED_FIELDS | {n: value for n, value in content.items() if n not in OLD_FIELDS}
        if unknown := fields.keys() - cls.__dataclass_fields__.keys():
            raise UsageError(
                f"zoo recipe: unknown fields {', '.join(sorted(unknown))}: written by a later "
                "version? Update this one."
            )
        return cls(**fields | {"checkpoints": tuple(fields["checkpoints"])})


ADDED_FIELDS = {"ratio": 1.0, "checkpoints": ()}  # values of recipes written before these fields
OLD_FIELDS = ("keep", "every")  # selected checkpoints; trained adapters do not depend on them
RECIPES = {
    "minilm-l6": Recipe(steps=800, batch=16, lr=1.5e-3),
    "minilm-l3": Recipe(steps=800, batch=16, lr=1.5e-3),
    "smollm2-135m": Recipe(steps=600, batch=16, lr=1e-3),
    **{name: Recipe(steps=400, batch=32, lr=6e-3) for name in registry.LITES},
    f"{registry.LITES[0]}{registry.YES_NO}": Recipe(steps=1500, batch=32, lr=3e-3),
    f"tiny-convnet{registry.YES_NO}": Recipe(steps=60, batch=16, lr=1e-2),
    "vit-tiny": Recipe(steps=400, batch=32, lr=1e-3),
    "convnext-atto": Recipe(steps=400, batch=32, lr=1e-3),
    "towers": Recipe(steps=1600, batch=32, lr=5e-4),
    "tiny-towers": Recipe(steps=60, batch=16, lr=5e-3, ratio=1.0),  # learns faster with one rate
    "tiny-vision-language": Recipe(steps=120, batch=16, lr=5e-3),
    "sd-2.1": Recipe(steps=4000, batch=1, lr=1e-4, ratio=1.0),  # as in the example of diffusers
    "tiny-diffusion": Recipe(steps=50, batch=16, lr=2e-2, ratio=1.0),
    "tiny-encoder": Recipe(steps=60, batch=16, lr=1e-2),
    "tiny-causal": Recipe(steps=120, batch=16, lr=1e-2),
    "tiny-convnet": Recipe(steps=60, batch=16, lr=2e-2),
    "tiny-vit": Recipe(steps=60, batch=16, lr=1e-2),
}
OTHERS = Recipe(steps=400, batch=16, lr=5e-4)  # of base models that are not in RECIPES
# candidates of tuning, as multiples of the default recipe
GRID = {"lr": (0.5, 1.0, 2.0), "steps": (0.5, 1.0)}
DESK = {  # shorter recipes for two CPU cores
    "minilm-l6": Recipe(steps=240, batch=16, lr=6e-3),
    "smollm2-135m": Recipe(steps=120, batch=8, lr=3e-3),
}


def default(base: str) -> Recipe:
    """The recipe of a base model before tuning. Versions of a model share the model's recipe."""
    return RECIPES.get(registry.root(registry.spec(base)).name, OTHERS)


def candidates(base: str) -> list[Recipe]:
    """The recipes from which `tuning.tune` selects."""
    first = default(base)
    return [
        replace(first, steps=round(s * first.steps), lr=x * first.lr)
        for s in GRID["steps"]
        for x in GRID["lr"]
    ]


def recipe_of(base: str, task: str, root: Path) -> Recipe:
    """The recipe of `task` on `base`: the tuned one below `root` if it exists, else the default.

    Raises:
        PreflightError: if it was tuned with another `ratio`, or among other candidates.
    """
    first, name = default(base), registry.root(registry.spec(base)).name
    file = root / "tuning" / name / f"{task}.json"
    if not file.exists():
        return first
    tuned = ADDED_FIELDS | storage.read_json(file)
    remedy = "remove the file, or run ./reproduce.sh --from-scratch."
    if tuned["ratio"] != first.ratio:
        raise PreflightError(
            f"{file} was tuned with a ratio of {tuned['ratio']:g}, the recipe of {name} has "
            f"{first.ratio:g}: {remedy}"
        )
    tried = {(candidate["steps"], candidate["lr"]) for candidate in tuned["candidates"]}
    if tried != {(candidate.steps, candidate.lr) for candidate in candidates(name)}:
        raise PreflightError(
            f"{file} was tuned among other steps and learning rates than {name} has now: {remedy}"
        )
    return replace(first, **tuned["chosen"])
