"""The first five minutes: a released generator, one sentence, an adapter, three answers."""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from oral_lib import storage
from oral_lib.assets import sources
from oral_lib.assets.packages import ASSETS
from oral_lib.models import registry
from oral_lib.prompting import answers
from oral_lib.prompting.answers import Answer
from oral_lib.prompting.prompt import prompt_from
from oral_lib.zoo.run_folders import StoredGenerator

RELEASE = "desk"  # the released generator that is used, whatever the scale
SENTENCE = "Is this opinion about a film positive or negative?"
OPINIONS = (  # examples, no measurement: the adapter changes the answers to the first two
    "Leaks treacle from every pore.",
    "The actors deserve a better script.",
    "A moving story, superbly acted.",
)


@dataclass(frozen=True)
class Quickstart:
    """What a first look shows: the adapter's folder, and each input's two answers."""

    base: str
    folder: Path
    task: str
    pairs: list[tuple[Answer, Answer]]


def first_base(place: StoredGenerator) -> str:
    """The base model of a first look: a causal one if the generator has any."""
    causal = [name for name in place.bases if registry.spec(name).family == "causal"]
    return (causal or list(place.bases))[0]


def missing_assets(place: StoredGenerator, source: str) -> list[str]:
    """The assets that a first look reads and that are not on this machine."""
    return [
        name
        for name in _assets(place)
        if not (sources.is_stored(name) or sources.local_model(name, source))
    ]


def _assets(place: StoredGenerator) -> list[str]:
    encoder = storage.read_json(place.folder / "config.json")["generator"]["text_encoder"]
    return [x for x in (encoder, registry.spec(first_base(place)).asset) if x in ASSETS]


def first_look(
    place: StoredGenerator,
    save: Path,
    *,
    source: str,
    offline: bool = False,
    say: Callable[[str], None] = print,
) -> Quickstart:
    """An adapter for `SENTENCE`, written to save/lora, and its answers, to save/answers.json.

    Args:
        place: the generator.
        save: a folder, which may exist.
        source: where the models are read from.
        offline: download nothing.
        say: is called with a line after each step.

    Raises:
        PreflightError: a model cannot be downloaded.
        OralError: the generator is damaged.
    """
    base, began = first_base(place), time.monotonic()

    def done(step: str, what: str) -> None:
        nonlocal began
        say(f"{step} ({time.monotonic() - began:.1f} s): {what}")
        began = time.monotonic()

    names = _assets(place)
    if names:
        sources.prepare(names, source=source, offline=offline)
    done("1 of 3, models", f"{' and '.join(names) or base} ready")
    [lora] = prompt_from(place.with_source(source), SENTENCE, base)
    folder = lora.save(save / "lora", overwrite=True)
    size = _bytes(folder.iterdir()) / 1e6
    done(
        "2 of 3, generate",
        f"the released generator {place.release} wrote a LoRA of {size:.1f} MB for {base}, no "
        "training",
    )
    texts = list(OPINIONS)
    task, pairs = answers.before_and_after(base, folder, texts, task=lora.task, source=source)
    done("3 of 3, ask", f"{len(texts)} inputs, answered by {base} without and with the LoRA")
    content = [
        {
            "input": before.text,
            "base": dict(before.probabilities),
            "lora": dict(after.probabilities),
        }
        for before, after in pairs
    ]
    about = {"sentence": SENTENCE, "base": base, "task": task.name, "generator": place.release}
    storage.write_json(save / "answers.json", about | {"answers": content})
    return Quickstart(base, folder, task.name, pairs)


def _bytes(files: Iterable[Path]) -> int:
    return sum(file.stat().st_size for file in files)
