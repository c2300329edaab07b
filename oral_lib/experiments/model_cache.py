"""What the cells of a run share: its base models, generators and zoo, each loaded once.

A generator or zoo that was written again is loaded again: these entries are compared by hash.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from torch import Tensor

from oral_lib import storage
from oral_lib.baselines import averages
from oral_lib.evaluation import results
from oral_lib.experiments.conditions import Pickers
from oral_lib.generator import Generator
from oral_lib.models import loading
from oral_lib.models.base import BaseModel
from oral_lib.models.text_encoder import TextEncoder
from oral_lib.tasks.task import wordings_hash
from oral_lib.zoo import store
from oral_lib.zoo.store import Member

BASES = 2  # base models in memory at a time


@dataclass(frozen=True)
class Zoo:
    """Adapters of one base model with one seed a task."""

    members: tuple[Member, ...]

    @cached_property
    def average(self) -> dict[str, Tensor]:
        """The mean of all adapters."""
        return averages.soup([member.tensors for member in self.members])


class ModelCache:
    """Base models, generators and zoo of one run folder.

    Args:
        root: the folder of the run, which has the zoo and a folder for each trained network.
        source: where base models and rows come from.
        device: where models are loaded to.
    """

    def __init__(self, root: Path, source: str, device: str = "cpu"):
        self.root, self.source, self.device = Path(root), source, str(device)
        self._bases: OrderedDict[tuple[str, int], BaseModel] = OrderedDict()
        self._generators: dict[str, tuple[str, Generator]] = {}
        self._zoo: tuple[list, Zoo] | None = None
        self._pickers: dict[tuple, Pickers] = {}

    def base(self, name: str, labels: int) -> BaseModel:
        """The base model called `name` with a head of `labels` classes (0: none)."""
        key = name, labels
        if key not in self._bases:
            self._bases[key] = loading.load(
                name, source=self.source, labels=labels, device=self.device
            )
        self._bases.move_to_end(key)
        while len(self._bases) > BASES:
            self._bases.popitem(last=False)
        return self._bases[key]

    def has(self, name: str) -> bool:
        """Whether the network called `name` (`GeneratorJob.name`) was trained."""
        return (self.root / name / "manifest.json").exists()

    def generator(self, name: str) -> Generator:
        """The generator called `name`; PreflightError if it was not trained."""
        folder = self.root / name
        digest = results.network_hash(folder)
        if self._generators.get(name, ("",))[0] != digest:
            model = Generator.from_pretrained(folder, self.device, source=self.source)
            self._generators[name] = digest, model
        return self._generators[name][1]

    def zoo(self, base: str, names: Sequence[str], seed: int = 0) -> Zoo:
        """The adapters of `base` on the tasks `names`; PreflightError if one was not trained."""
        folders = [store.folder(self.root, base, name, seed) for name in names]
        files = [folder / "run.json" for folder in folders]
        key = [(file, storage.sha256(file) if file.exists() else "") for file in files]
        if self._zoo is None or self._zoo[0] != key:
            members = tuple(store.read(self.root, base, name, seed) for name in names)
            self._zoo = key, Zoo(members)
        return self._zoo[1]

    def pickers(self, names: Sequence[str], encoder: TextEncoder) -> Pickers:
        """Router and retrieval over the tasks `names`, fitted once."""
        key = tuple(names), encoder.name, wordings_hash(names)
        if key not in self._pickers:
            self._pickers[key] = Pickers.of(names, encoder)
        return self._pickers[key]
