"""Rows of the tables next to metrics.csv, stored in the run folder until they are published.

`<root>/<table>/<name>.json` is a list of rows: of texts, costs and novelty a file a cell, of maps a
file a base model, of bytes a file an experiment.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from oral_lib import paths, scales, storage
from oral_lib.experiments.side_tables import costs, maps
from oral_lib.generator import Generator
from oral_lib.zoo import store


def write_rows(root: Path, name: str, tables: Mapping[str, Iterable[dict]]) -> None:
    """Writes the rows of each table to the file `name` of its folder under `root`."""
    for table, rows in tables.items():  # JSON has no NaN
        content = [{k: None if v != v else v for k, v in row.items()} for row in rows]
        storage.write_json(root / table / f"{name}.json", content)


def describe_adapters(
    plans: Sequence[scales.BasePlan],
    source: str,
    experiment: str,
    root: Path,
    generator: Generator,
) -> None:
    """Writes the rows of maps and bytes of a run.

    Args:
        plans: the base models of the run.
        source: its data source.
        experiment: its experiment.
        root: its folder.
        generator: its first generator.
    """
    about, everything = (experiment, paths.slug(source)), []
    for plan in plans:
        zoo = [(task, seed) for task in plan.tasks for seed in range(plan.zoo_seeds)]
        later = range(plan.zoo_seeds, plan.zoo_seeds + plan.held_out)
        held_out = [(task, seed) for task in plan.tasks for seed in later]
        held_out += [(task, 0) for task in plan.unseen_tasks]
        zoo, held_out = (
            [store.read(root, plan.base, *member) for member in part] for part in (zoo, held_out)
        )
        rows = maps.map_rows(*about, zoo, held_out, plan.cell_tasks, generator)
        write_rows(root, plan.base, {"maps": rows})
        everything += zoo
    rows = costs.byte_rows(*about, everything, generator, root / "generator")
    write_rows(root, experiment, {"bytes": rows})
