"""The router's adapter for a sentence: a stored one, to compare a generated adapter with."""

from pathlib import Path

from oral_lib import paths, seeds
from oral_lib.baselines.router import Router, draw
from oral_lib.documents.sentence import check_sentence
from oral_lib.errors import PreflightError
from oral_lib.generator import Generator
from oral_lib.lora import peft_folder
from oral_lib.prompting import forms
from oral_lib.prompting.prompt import PromptedLora, stored_zoo
from oral_lib.tasks.task import load_task
from oral_lib.zoo import run_folders


def route(
    text: str,
    *,
    base: str,
    seed: int = 0,
    scale: str | None = None,
    source: str | None = None,
    out: str | Path = paths.ROOT,
) -> PromptedLora:
    """The stored adapter that the router returns for a sentence.

    A ridge classifier on embeddings of all training wordings picks a task; one of its adapters is
    drawn. Nothing is generated. The generator only says which adapters there are.

    Args:
        text: the sentence.
        base: name of the base model.
        seed: of the draw.
        scale: only with a generator of this scale.
        source: only with a generator of this source.
        out: the folder of runs/.

    Raises:
        UsageError: an empty or unreadable sentence, or no generator has the base model.
        PreflightError: there is no generator, or its adapters are not stored.
    """
    check_sentence(text)
    place = run_folders.find_generator(base, out, "smoke" if source == "made" else scale, source)
    model = Generator.from_pretrained(place.folder, source=place.source)
    members = stored_zoo(place.folder, model, base)
    if not members:
        raise PreflightError(
            f"the adapters of {base!r} are not stored with the generator in {place.folder}: the "
            "router returns one of them. Use a generator with a projection."
        )
    tasks = {name: name.rpartition(", seed ")[0] for name, _ in members}
    picked = Router(list(dict.fromkeys(tasks.values())), model.encoder).pick(text)
    zoo = [(name, tensors) for name, tensors in members if tasks[name] == picked]
    [number] = draw(len(zoo), 1, seeds.integer(seed, "route"))
    name, tensors = zoo[number]
    config = model.bases[base].peft_config
    card = peft_folder.Card(
        text=text,
        base=config.get("base_model_name_or_path") or base,
        generator=f"none: a stored adapter ({place.run})",
        seed=seed,
        nearest=name,
        distance=0.0,
    )
    return PromptedLora(tensors, config, card, forms.without_wordings(load_task(picked)))
