"""From a sentence to adapters that PEFT loads."""

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from torch import Tensor

from oral_lib import paths
from oral_lib.documents.sentence import check_sentence
from oral_lib.documents.words import short
from oral_lib.errors import UsageError
from oral_lib.generator import Generator
from oral_lib.lora import distances, peft_folder
from oral_lib.method import tokenization
from oral_lib.models import registry
from oral_lib.prompting import forms, released
from oral_lib.tasks.task import Task, load_task
from oral_lib.zoo import run_folders, store
from oral_lib.zoo.run_folders import StoredGenerator

_LABELS = 4  # of a task, in a note


@dataclass(frozen=True)
class PromptedLora:
    """A generated adapter.

    Args:
        tensors: by their names in PEFT's saved state dict, float32.
        config: the PEFT configuration.
        card: the text, generator and seed it comes from, and the nearest adapter of the zoo.
        task: the task of that nearest adapter, in whose form this adapter answers (`ask`), without
            its wordings; None if it is unknown.

    >>> card = peft_folder.Card("Is it good news?", "my/base", "generator-1", seed=0)
    >>> lora = PromptedLora({"q.lora_A.weight": torch.ones(2, 4)}, {"peft_type": "LORA"}, card)
    >>> lora
    PromptedLora(base='my/base', text='Is it good news?', nearest='', values=8)
    """

    tensors: dict[str, Tensor]
    config: dict
    card: peft_folder.Card
    task: Task | None = None

    def __repr__(self) -> str:
        entry, card = registry.by_hub(self.card.base), self.card
        base = entry.name if entry else card.base
        values = sum(tensor.numel() for tensor in self.tensors.values())
        return (
            f"PromptedLora(base={base!r}, text={short(card.text)}, nearest={card.nearest!r}, "
            f"values={values:,})"
        )

    def save(self, folder: str | Path, *, overwrite: bool = False) -> Path:
        """The path of the PEFT folder, written with a model card and, if the task is known, with
        oral.json, the form of its answers. UsageError if it exists already, unless `overwrite`."""
        form = forms.form_of(self.task) if self.task else None
        place = dict(form=form, overwrite=overwrite)
        return peft_folder.save(folder, self.tensors, self.config, self.card, **place)


def prompt(
    task: str,
    *,
    base: str,
    n: int = 1,
    seed: int = 0,
    guidance: float | None = None,
    temperature: float | None = None,
    generator: str | Path | None = None,
    scale: str | None = None,
    source: str | None = None,
    out: str | Path = paths.ROOT,
    device: str = "cpu",
) -> list[PromptedLora]:
    """`n` adapters for the task that a sentence describes.

    A line on stderr names the task of the zoo that they do.

    Args:
        task: the sentence.
        base: name of the base model.
        n: number of adapters.
        seed: the same seed gives the same adapters.
        guidance: see `SamplingConfig`; None: as stored with the generator.
        temperature: the same.
        generator: folder of a generator. Default: one that ./reproduce.sh trained, of several that
            of the largest scale. Where no run has the base model: a released one (`pretrained`),
            which a line on stderr names.
        scale: only a generator of this scale.
        source: only a generator of this source; also where its text encoder is read from.
            Default: the source of the generator.
        out: the folder of runs/, as ./reproduce.sh --out has it.
        device: where to sample.

    Raises:
        UsageError: an empty or unreadable sentence, or no generator here has the base model.
        PreflightError: there is no generator yet.

    The generator below is that of `./reproduce.sh --scale smoke`.

    >>> generator = "runs/smoke/made/generator"
    >>> [lora] = prompt("Is it good news?", base="tiny-causal", scale="smoke", generator=generator)
    >>> lora.card.text, lora.config["r"]
    ('Is it good news?', 4)
    """
    check_sentence(task)
    source = "made" if scale == "smoke" else source
    if generator:
        place = run_folders.describe(generator, **({"source": source} if source else {}))
    else:
        place = run_folders.find_generator(base, out, scale, source)
        if place.release:
            print(f"note: {place.note}", file=sys.stderr)
    loras = prompt_from(place, task, base, n, seed, guidance, temperature, device)
    if tasks := {lora.task.name: lora.task for lora in loras if lora.task}:
        print(f"note: {_does(list(tasks.values()), n)}", file=sys.stderr)
    return loras


def prompt_from(
    place: StoredGenerator,
    text: str,
    base: str,
    n: int = 1,
    seed: int = 0,
    guidance: float | None = None,
    temperature: float | None = None,
    device: str = "cpu",
) -> list[PromptedLora]:
    """`prompt`, with the generator of `place`."""
    if place.release or (place.folder / released.SUMS).is_file():
        released.check_files(place.folder)
    model = Generator.from_pretrained(place.folder, device, source=place.source)
    adapters = model.generate(text, base, n, seed, guidance=guidance, temperature=temperature)
    config = model.bases[base].peft_config
    members = stored_zoo(place.folder, model, base)
    options = model.chosen_sampling(None, {"guidance": guidance, "temperature": temperature})
    loader = f"oral_lib.load_base({json.dumps(base)}).model"
    loras = []
    for number, tensors in enumerate(adapters, 1):
        name, far = distances.nearest(tensors, members, config) if members else ("", None)
        card = peft_folder.Card(
            text=text,
            base=config.get("base_model_name_or_path") or base,
            # the base model of one's own adapters is not in the registry
            loader="" if "adapters" in model.manifest else loader,
            generator=f"{model.manifest['sha256'][:12]} ({model.manifest.get('scale', 'custom')})",
            seed=seed,
            sample=number,
            samples=n,
            sampling=", ".join(f"{name}={value}" for name, value in asdict(options).items()),
            nearest=name,
            distance=far.total if far else None,
        )
        loras.append(PromptedLora(tensors, config, card, _task_of(name)))
    return loras


def stored_zoo(folder: Path, model: Generator, base: str) -> list[tuple[str, dict[str, Tensor]]]:
    """(name, tensors) of the adapters of `base` that a generator was trained on.

    They are read from the zoo next to `folder`, or else decoded from what the generator stores. The
    list is empty if it stores no adapters.
    """
    if members := store.trained_on(folder, model.manifest, base):
        return members
    entry, listed = model.bases[base], store.listed_members(folder, model.manifest, base)
    projection = entry.projection
    if projection is None or len(projection.coordinates) != len(listed):
        return []
    directions = projection.directions  # [s, l, r]
    codes = (projection.coordinates @ directions.flatten(1)).unflatten(1, directions.shape[1:])
    values = entry.statistics.denormalise(codes).cpu()  # [n, l, k]
    names = [store.member_name(task, seed) for task, seed, _ in listed]
    return list(zip(names, tokenization.decode(entry.layout, values), strict=True))


def _task_of(member: str) -> Task | None:
    """The task of an adapter of the zoo by the adapter's name; None for an unknown task."""
    try:
        return forms.without_wordings(load_task(member.rpartition(", seed ")[0]))
    except UsageError:
        return None


def _does(tasks: list[Task], n: int) -> str:
    """A line that says which tasks of the zoo `n` generated adapters do."""
    parts = []
    for task in tasks:
        labels = " / ".join(task.labels)
        if len(task.labels) > _LABELS:
            labels = f"{len(task.labels)} labels"
        parts.append(f"{task.name} ({labels})" if labels else task.name)
    does = "this adapter does task" if n == 1 else "these adapters do task"
    return (
        f"{does} {' or '.join(parts)}, the nearest that the zoo has; if that is not your task, "
        f"{'it' if n == 1 else 'they'} will not help."
    )
