"""The model card of a released generator, and the licences of what it was made with."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import yaml

from oral_lib.assets.packages import Asset, pins
from oral_lib.generator import Generator
from oral_lib.models import registry
from oral_lib.tasks.task import load_task

if TYPE_CHECKING:
    from pandas import DataFrame

_COLUMNS = {  # heading -> method, condition
    "base only": ("base", "none"),
    "trained": ("trained", "none"),
    "average": ("soup_task", "none"),
    "router": ("router", "matched"),
    "generated": ("generated", "matched"),
    "generated, held-out wording": ("generated", "paraphrase"),
}
_NOTICE = """\
------------------------------------------------------------------------------------------------
The generator in this folder was made with models and data of others. Their licences:
"""


def licence_notice(used: Sequence[Asset]) -> str:
    """The licences of the models and data `used`, as text."""
    lines = [f"- {_name(a)}: {a.licence}; from the package {_package(a)}" for a in used]
    return "\n".join([_NOTICE, *(lines or ["- none: models and data are synthetic"]), ""])


def release_card(
    model: Generator,
    scale: str,
    figures: "DataFrame | None",
    used: Sequence[Asset],
    size: int,
) -> str:
    """The text of README.md.

    Args:
        model: the generator.
        scale: the name of the release.
        figures: published metrics of its run; None: nothing is published.
        used: models and data that it was made with.
        size: bytes of the folder.
    """
    zoo = model.manifest["zoo"]
    tasks = {task: load_task(task) for task in dict.fromkeys(entry["task"] for entry in zoo)}
    causal = [name for name in model.bases if registry.spec(name).family == "causal"]
    first = (causal or list(model.bases))[0]
    text = next(iter(tasks.values())).description
    front = {
        "license": "apache-2.0",
        "base_model": [registry.spec(name).hub for name in model.bases],
        "tags": ["lora", "generator", "oral"],
    }
    encoder = model.config.text_encoder
    return f"""---
{yaml.safe_dump(front, sort_keys=False)}---

# The released generator `{scale}`

A sentence and a base model in, the weights of a LoRA adapter out. It was trained on
{len(zoo)} adapters (the zoo), and has {size / 1e6:.1f} MB. Texts are read by {encoder}.

## Use

```python
import oral_lib
[lora] = oral_lib.prompt({text!r}, base={first!r})
print(oral_lib.ask({first!r}, lora, "An input of your own."))
```

`prompt` uses this generator where no run has the base model. `oral_lib.pretrained({scale!r})`
loads it after a check of its hashes. `sha256sum -c SHA256SUMS` checks them without Python.

## What it was trained on

| base model | task | adapters | answers | wordings |
| --- | --- | --- | --- | --- |
{_zoo_table(zoo, tasks)}

Wordings are the sentences a task that training read; held-out wordings are others.

## Measured

{_measured(figures, zoo)}

## Limits

- An adapter answers in the form of this zoo: the labels in the table above, no others.
- It was trained on {len(tasks)} {"task" if len(tasks) == 1 else "tasks"}.
- A sentence about anything else gets an adapter of the nearest task. The saved adapter names it.
- Generated adapters are combinations of the zoo's. The simple method to compare them with is a
  router, which returns a stored adapter of the task that it picks for the sentence.
- It makes adapters for the base models above only.

## Licence

Apache-2.0, with the licences of what it was made with: see LICENSE.

| made with | licence | package |
| --- | --- | --- |
{_used_table(used)}
"""


def _zoo_table(zoo: Sequence[Mapping[str, Any]], tasks: Mapping[str, Any]) -> str:
    counts: dict[tuple[str, str], int] = {}
    for entry in zoo:
        key = entry["base"], entry["task"]
        counts[key] = counts.get(key, 0) + 1
    lines = []
    for (base, task), n in counts.items():
        answers = ", ".join(tasks[task].labels) or "a written text"
        wordings = len(tasks[task].training_texts)
        lines.append(f"| {base} | {task} | {n} | {answers} | {wordings} |")
    return "\n".join(lines)


def _measured(figures: "DataFrame | None", zoo: Sequence[Mapping[str, Any]]) -> str:
    """The accuracies of the generator's run as a table."""
    if figures is None or not len(figures):
        return "Not measured: no results of this scale are published."
    rows = figures[(figures.metric == "accuracy") & (figures.seed == 0)]
    cells = dict.fromkeys((entry["base"], entry["task"]) for entry in zoo)
    values = {(r.base, r.task, r.method, r.condition): r for r in rows.itertuples()}
    columns = {
        heading: key for heading, key in _COLUMNS.items() if any(k[2:] == key for k in values)
    }
    lines = [f"| base model | task | rows | {' | '.join(columns)} |"]
    lines.append("| --- | --- |" + " ---: |" * (len(columns) + 1))
    for base, task in cells:
        row = [values.get((base, task, *key)) for key in columns.values()]
        sizes = [r.n_items for r in row if r is not None]
        if sizes:
            texts = " | ".join("-" if r is None else f"{100 * r.value:.1f}" for r in row)
            lines.append(f"| {base} | {task} | {max(sizes)} | {texts} |")
    about = (
        "Accuracy in percent on held-out rows, of one generator: the mean over its samples, and "
        "of `trained` over the zoo's adapters. Intervals are in `metrics.csv` of this scale."
    )
    return "\n".join([about, "", *lines])


def _used_table(used: Sequence[Asset]) -> str:
    lines = [f"| {_name(asset)} | {asset.licence} | {_package(asset)} |" for asset in used]
    return "\n".join(lines or ["| synthetic models and data | - | - |"])


def _name(asset: Asset) -> str:
    return f"{asset.name} ({asset.note})"


def _package(asset: Asset) -> str:
    return f"`{asset.package}` {pins()[asset.package].version}"
