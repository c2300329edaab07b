"""The parts of a plan: a base model with its tasks and seeds, and a network to train.

Imports with the standard library only.
"""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class BasePlan:
    """One base model of a scale: its tasks, the number of adapters of each, and their cost.

    Costs are estimates for one process on the machine that the scale is meant for.
    """

    base: str
    tasks: tuple[str, ...]  # whose adapters the generators are trained on; of intents the splits
    zoo_seeds: int  # adapters of a task that the generators are trained on; 0: not in folders
    held_out: int = 0  # further adapters of a task that no generator is trained on
    seeds: int = 1  # generator seeds, each a cell of the table
    tuned: bool = False  # learning rate and steps are chosen on validation rows first
    parent: str = ""  # the model of which this is a later version
    aligned: bool = False  # combined from two other models first
    unseen_tasks: tuple[str, ...] = ()  # tasks of the zoo that no generator is trained on
    controls: tuple[str, ...] = ()  # further tasks of the zoo, neither trained on nor measured
    zoo_minutes: float = 0.1  # of one adapter
    cell_minutes: float = 0.2
    memory_mb: int = 2000

    @property
    def zoo_tasks(self) -> tuple[str, ...]:
        """All tasks of the zoo."""
        return self.tasks + self.unseen_tasks + self.controls

    @property
    def all_seeds(self) -> list[int]:
        """All seeds of a task in the zoo; the held-out seeds come last."""
        return list(range(self.zoo_seeds + self.held_out))

    @property
    def cell_tasks(self) -> tuple[str, ...]:
        """The tasks that have cells: the unseen tasks where there are any."""
        return self.unseen_tasks or self.tasks


@dataclass(frozen=True, kw_only=True)
class GeneratorJob:
    """One network to train: its kind, its seed, and the split of tasks that it is measured on.

    "generator" learns from the adapters of a zoo; "regression", "unconditional" and "multitask" are
    its baselines. "through_base" learns from the loss of the base models on the rows of tasks.
    "weights" is the generator of intents that learns from adapters.
    """

    kind: str
    seed: int = 0
    split: str = ""  # the only split that it is measured on; empty: all others

    @property
    def name(self) -> str:
        """Its name in commands and the name of its folder.

        >>> GeneratorJob(kind="through_base", split="L3", seed=1).name
        'through_base-L3-1'
        """
        return "-".join([self.kind, *filter(None, [self.split, self.seed and str(self.seed)])])


GENERATOR = GeneratorJob(kind="generator")
FOLLOWS_SEED = ("generator", "through_base")  # kinds with a network for each seed of a cell
