"""Rows of maps.csv: the zoo of a base model in two dimensions, with averages and samples.

The axes are the two leading principal axes of the zoo's adapters, as vectors of all their values.
Averages, held-out adapters and samples are projected on the same axes.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from oral_lib import seeds
from oral_lib.baselines import averages
from oral_lib.experiments.trials import PROJECTION_OF
from oral_lib.generator import Generator
from oral_lib.lora.adapter import Adapter
from oral_lib.method import projection
from oral_lib.provenance import code_commit
from oral_lib.tasks.task import load_task
from oral_lib.zoo.store import Member

SAMPLES = 5  # of a task and projection


class Axes:
    """The two leading principal axes of adapters, computed from all their values.

    Args:
        adapters: adapters with the same names and shapes.

    >>> draw = torch.Generator().manual_seed(0)
    >>> adapters = [{"w": torch.randn(4, 5, generator=draw)} for _ in range(6)]
    >>> axes = Axes(adapters)
    >>> axes.coordinates(adapters[0])  # along both axes, in units of a weight
    tensor([0.6443, 4.2211])
    """

    def __init__(self, adapters: Sequence[Adapter]):
        values = torch.stack([_flat(adapter) for adapter in adapters])  # [n, v]
        self.mean = values.mean(0)
        values -= self.mean
        directions = projection.span(values[:, None], 2)[:, 0]  # [at most 2, v], orthonormal
        along = values @ directions.mT  # [n, at most 2]
        first = along[along.abs().argmax(0), torch.arange(len(directions))]  # fixes the signs
        self.directions = pad(directions * first.sign()[:, None], (0, 0, 0, 2 - len(directions)))
        self.share = float(along.square().sum() / values.square().sum().clamp_min(1e-30))

    def coordinates(self, adapter: Adapter) -> Tensor:
        """[2] the coordinates of an adapter along the axes, in units of a weight."""
        return self.directions @ (_flat(adapter) - self.mean)


def _flat(adapter: Adapter) -> Tensor:
    return torch.cat([adapter[name].float().flatten() for name in sorted(adapter)])


def map_rows(
    experiment: str,
    source: str,
    members: Sequence[Member],
    held_out: Sequence[Member],
    tasks: Sequence[str],
    generator: Generator,
) -> list[dict]:
    """The rows of one base model.

    Args:
        experiment: name of the experiment.
        source: slug of the data source.
        members: the adapters of the base model that the generator was trained on.
        held_out: further trained adapters of the base model.
        tasks: the tasks that samples are generated for, from their descriptions.
        generator: the generator.
    """
    base = members[0].base
    axes = Axes([member.tensors for member in members])
    about = {"experiment": experiment, "source": source, "base": base}
    more = {"share": axes.share, "commit": code_commit()}
    table = []
    for kind, task, number, adapter in _points(members, held_out, tasks, generator):
        x, y = axes.coordinates(adapter).tolist()
        point = {"kind": kind, "task": task, "number": number, "x": x, "y": y}
        table.append(about | point | more)
    return table


def _points(
    members: Sequence[Member],
    held_out: Sequence[Member],
    tasks: Sequence[str],
    generator: Generator,
) -> Iterator[tuple[str, str, int, Adapter]]:
    """(kind, task, number, adapter) of every point of a map."""
    by_task: dict[str, list[Adapter]] = {}
    for member in members:
        by_task.setdefault(member.task, []).append(member.tensors)
        yield "adapter", member.task, member.seed, member.tensors
    for member in held_out:
        yield "held_out", member.task, member.seed, member.tensors
    for task, adapters in by_task.items():
        if len(adapters) > 1:
            yield "average", task, 0, averages.soup(adapters)
    for task in tasks:
        text, seed = load_task(task).description, seeds.integer(0, "map", task)
        for method, way in {"generated": None, **PROJECTION_OF}.items():
            samples = generator.generate(text, members[0].base, SAMPLES, seed, projection=way)
            for number, adapter in enumerate(samples):
                yield method, task, number, adapter
