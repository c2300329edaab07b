"""The zoo of intents and the trained rivals of the generator.

A set of the zoo is "train" (the tasks of training, and random unions), "train-L3" (the same without
the message set that L3 judges), or a split, whose adapters are trained on the rows of its own
tasks. `stored` says where they are.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from oral_lib import scales, seeds
from oral_lib.errors import OralError
from oral_lib.experiments import generators
from oral_lib.experiments.intents import adapters, stored
from oral_lib.experiments.intents.messages import MessageTable
from oral_lib.experiments.intents.methods import few_shot, from_text, shared
from oral_lib.experiments.intents.methods.from_text import Embedder, TextZoo
from oral_lib.experiments.intents.stream import Mixture, TaskStream
from oral_lib.lora.stacked import Stack
from oral_lib.models import loading
from oral_lib.models.base import BaseModel
from oral_lib.models.text_encoder import TextEncoder
from oral_lib.tasks.intents.family import (
    MESSAGE,
    SPLITS,
    IntentFamily,
    IntentTask,
    draw_rows,
    load_family,
    training_unions,
)
from oral_lib.tasks.intents.texts import topics
from oral_lib.zoo.recipes import Recipe

_OTHER_SET = "L3"  # the split whose message set is out of training
_LARGE = 1_000_000  # values of an adapter above which a zoo is stored in bfloat16
_SPOKEN = 16  # training messages of an intent that the regression reads as texts
_CHOSEN_ON = 24  # seen tasks that the penalty of the mixture is chosen on


# ---------------------------------------------------------------- presets
@dataclass(frozen=True, kw_only=True)
class RivalPreset:
    """What is trained on a base model, and how."""

    zoo: Recipe
    multitask: Recipe
    described: Recipe
    zoo_unions: int = 60  # random unions in the zoo
    few_shot: tuple[Recipe, ...] = ()  # candidates; the choice is made on development tasks
    regression_steps: int = 3000
    multitask_models: bool = True  # whether to train multi-task LoRAs


def preset(scale: str, base: str) -> RivalPreset:
    """The preset of a base model at a scale."""
    large = base.startswith("smollm2")
    lr = 1e-3 if large else 1.5e-3
    if scale == "smoke":
        few = (Recipe(steps=8, batch=8, lr=1e-2, ratio=4.0),)
        zoo = Recipe(steps=20, batch=8, lr=1e-2, ratio=4.0)
        joint = Recipe(steps=20, batch=32, lr=1e-2, ratio=4.0)
        return RivalPreset(
            zoo=zoo, multitask=joint, described=joint, zoo_unions=4, few_shot=few,
            regression_steps=60,
        )  # fmt: skip
    if scale == "desk":
        zoo = Recipe(steps=20, batch=8, lr=1e-2)
        return RivalPreset(
            zoo=zoo, multitask=zoo, described=zoo, zoo_unions=0, multitask_models=False
        )
    few = tuple(Recipe(steps=60, batch=16, lr=factor * lr) for factor in (1, 3))
    joint = Recipe(steps=1600 if large else 4000, batch=256, lr=lr)
    return RivalPreset(
        zoo=Recipe(steps=150, batch=16, lr=lr), multitask=joint, described=joint, few_shot=few
    )


# ---------------------------------------------------------------- tasks
def seen_tasks(
    family: IntentFamily, split: str, unions: int, *, development: bool = False
) -> tuple[IntentTask, ...]:
    """The tasks of training of a model that is judged on `split`, and random unions of them.

    Args:
        family: the intents.
        split: "L3" leaves out its message set.
        unions: number of random unions.
        development: leave out the intents of development, too.
    """
    about = {"without": scope_of(split) or "L2", "development": development}
    drawn = training_unions(family, unions, 0, **about) if unions else ()
    return (*family.tasks("train", **about), *drawn)


def scope_of(split: str) -> str:
    """ "L3" for the split with models of its own, else ""."""
    return _OTHER_SET if split == _OTHER_SET else ""


def suffixed(name: str, split: str) -> str:
    """The name of a set or model that is judged on `split`: "train", or "train-L3" for L3."""
    return f"{name}-{_OTHER_SET}" if split == _OTHER_SET else name


def zoo_sets(
    family: IntentFamily, unions: int, *, development: bool = False
) -> dict[str, tuple[IntentTask, ...]]:
    """The tasks of each set of the zoo; sets without tasks are left out."""
    if development:
        seen = seen_tasks(family, "", unions, development=True)
        return {"train": seen, "development": family.tasks("development")}
    sets = {split: family.tasks(split) for split in ("L1", "L2", _OTHER_SET)}
    sets = {name: tasks for name, tasks in sets.items() if tasks}
    scopes = ("", _OTHER_SET) if _OTHER_SET in sets else ("",)
    return {suffixed("train", scope): seen_tasks(family, scope, unions) for scope in scopes} | sets


def _texts_hash(tasks: Sequence[IntentTask]) -> int:
    return seeds.integer(0, *(f"{t.name} {t.positive} {t.near} {t.texts['train']}" for t in tasks))


def _messages_hash(family: IntentFamily) -> int:
    return seeds.integer(0, *(f"{m.key} {m.text} {m.part}" for m in family.messages))


def stream_facts(family: IntentFamily, split: str, *, development: bool = False) -> dict[str, int]:
    """Hashes of all that a stream of training tasks is drawn from: messages, texts and topics."""
    seen = seen_tasks(family, scope_of(split), 0, development=development)
    return {
        "messages": _messages_hash(family),
        "texts": _texts_hash(seen),
        "phrases": seeds.integer(0, *family.phrases.values()),
        "topics": seeds.integer(0, *map(repr, topics())),
    }


@dataclass(frozen=True)
class Loaded:
    """What training reads, each loaded when it is first used."""

    base: str
    scale: str
    source: str
    device: str

    @cached_property
    def family(self) -> IntentFamily:
        return load_family(self.source, self.scale)

    @cached_property
    def model(self) -> BaseModel:
        return loading.load(self.base, source=self.source, device=self.device)

    @cached_property
    def table(self) -> MessageTable:
        return MessageTable.of(self.model, self.family.messages, MESSAGE)

    @cached_property
    def embed(self) -> Embedder:
        return Embedder(text_encoder(self.scale, self.source), self.device)


# ---------------------------------------------------------------- the zoo
def train_zoo(
    base: str,
    *,
    scale: str,
    source: str,
    root: Path,
    device: str = "cpu",
    development: bool = False,
) -> Path:
    """The folder of the zoo of a base model, with all sets trained that are not current.

    Args:
        base: name of the base model.
        scale: of the run.
        source: where base model and messages are read from.
        root: the folder of the run.
        device: to train on.
        development: a zoo without the intents of development, for choices.
    """
    options, loaded = preset(scale, base), Loaded(base, scale, source, device)
    folder = stored.zoo_folder(Path(root), base, development=development)
    about = {"base": base, "scale": scale, "recipe": asdict(options.zoo)}
    about["messages"] = _messages_hash(loaded.family)
    sets = zoo_sets(loaded.family, options.zoo_unions, development=development)
    left_out = {*SPLITS} - {*scales.base_plan(scale, base, source, "intents").tasks, "train"}
    for name in left_out if not development else ():
        sets.pop(name, None)
    for name, tasks in sets.items():
        here = about | {"tasks": [task.name for task in tasks], "about": _texts_hash(tasks)}
        stored.ensure(folder, name, here, partial(_zoo_set, loaded, tasks, options.zoo, name))
    return stored.finish(folder, about, [*sets])


def _zoo_set(
    loaded: Loaded, tasks: Sequence[IntentTask], recipe: Recipe, name: str
) -> tuple[dict[str, Tensor], dict]:
    base, family, table = loaded.model, loaded.family, loaded.table
    began = time.perf_counter()
    rows, labels = adapters.training_rows(family, tasks, recipe.steps, recipe.batch, table.lengths)
    values = adapters.train_stack(
        base,
        table,
        base.lora_init(),
        rows,
        labels,
        label=f"zoo {name}",
        **adapters.options_of(recipe),
    )
    seconds = (time.perf_counter() - began) / len(tasks)
    stack = Stack(base.lora_init(), 1)
    facts = {
        "seconds_adapter": round(seconds, 4),
        "names": stack.names,
        "shapes": [[*shape] for shape in stack.shapes],
    }
    small = values.shape[1] <= _LARGE
    return {"values": values if small else values.to(torch.bfloat16)}, facts


# ---------------------------------------------------------------- all trained rivals
def text_encoder(scale: str, source: str) -> TextEncoder:
    """The encoder whose embeddings all methods share that read a text."""
    return TextEncoder(generators.preset(scale).network.text_encoder, source=source)


def train_rivals(
    base: str,
    *,
    scale: str,
    source: str,
    root: Path,
    device: str = "cpu",
    development: bool = False,
    only: Sequence[str] = (),
) -> Path:
    """The folder of the trained rivals on a base model, with all trained that are not current.

    Choices are made on validation rows: recipes of few-shot LoRAs on development tasks, penalty of
    the mixture and threshold of the cosine on seen tasks. The zoo must have been trained.

    Args:
        base: name of the base model.
        scale: of the run.
        source: where base model, text encoder and messages are read from.
        root: the folder of the run.
        device: to train on.
        development: rivals without the intents of development, for choices.
        only: names of files, for studies that need no others.
    """
    root, options, dev = Path(root), preset(scale, base), {"development": development}
    folder = stored.rivals_folder(root, base, **dev)
    loaded = Loaded(base, scale, source, device)
    family = loaded.family
    about = {"base": base, "scale": scale, "messages": _messages_hash(family)}
    about["text_encoder"] = generators.preset(scale).network.text_encoder
    sets = zoo_sets(family, options.zoo_unions, **dev)
    jobs: dict[str, tuple[dict, Callable]] = {}
    for scope in ("", _OTHER_SET):
        members = sets.get(suffixed("train", scope))
        if not members:
            continue
        seen = {"mixture": asdict(Mixture())} | stream_facts(family, scope, **dev)
        if options.multitask_models:
            stream = partial(TaskStream.of, family, without=scope or "L2", **dev)
            for kind, make in (("described", _described), ("multitask", _multitask)):
                recipe = getattr(options, kind)
                here = about | seen | {"recipe": asdict(recipe)}
                jobs[suffixed(kind, scope)] = here, partial(make, loaded, stream, recipe)
        _, info = stored.read_file(stored.zoo_folder(root, base, **dev), suffixed("train", scope))
        here = about | {"zoo": info["sha256"], "about": _texts_hash(members)}
        here |= {"steps": options.regression_steps, "spoken": _SPOKEN}
        make = partial(_from_text, root, loaded, members, scope, options.regression_steps, dev)
        jobs[suffixed("regression", scope)] = here, make
    if candidates := options.few_shot:
        here = about | {"candidates": [asdict(recipe) for recipe in candidates]}
        jobs["few_shot"] = here, partial(_few_shot, loaded, candidates)
    jobs = {name: job for name, job in jobs.items() if not only or name in only}
    for name, (here, make) in jobs.items():
        stored.ensure(folder, name, here, make)
    return stored.finish(folder, about, [*jobs])


def _described(
    loaded: Loaded, stream: Callable[[], TaskStream], recipe: Recipe
) -> tuple[dict[str, Tensor], dict]:
    return shared.train_described(loaded.model, stream(), recipe), {}


def _multitask(
    loaded: Loaded, stream: Callable[[], TaskStream], recipe: Recipe
) -> tuple[dict[str, Tensor], dict]:
    return shared.train_multitask_head(loaded.model, stream(), recipe, loaded.embed), {}


def _few_shot(loaded: Loaded, candidates: Sequence[Recipe]) -> tuple[dict[str, Tensor], dict]:
    return few_shot.few_shot_choice(loaded.table, loaded.family, candidates)


def text_zoo(
    root: Path,
    base: str,
    tasks: Sequence[IntentTask],
    split: str,
    embed: Embedder,
    *,
    development: bool = False,
) -> TextZoo:
    """The zoo of seen tasks of models that are judged on `split`, with the tasks' texts."""
    name = suffixed("train", split)
    names, values, _ = stored.read_set(root, base, name, development=development)
    if names != [task.name for task in tasks]:
        raise OralError(f"the zoo {name!r} of {base} is of other tasks: train it again.")
    return TextZoo.of(names, values, [task.texts["train"] for task in tasks], embed)


def _from_text(
    root: Path,
    loaded: Loaded,
    members: Sequence[IntentTask],
    scope: str,
    steps: int,
    dev: dict,
) -> tuple[dict[str, Tensor], dict]:
    """The regression on weights, and the choices of mixture and cosine."""
    family, table, embed = loaded.family, loaded.table, loaded.embed
    zoo = text_zoo(root, loaded.base, members, scope, embed, **dev)
    spoken, spoken_of = [], []
    for z, task in enumerate(members):
        if len(task.positive) == 1:
            rows = family.rows_of(task.positive, "train")[:_SPOKEN]
            spoken += [family.messages[row].text for row in rows]
            spoken_of += [z] * len(rows)
    weights = from_text.train_regression(
        zoo, embed(spoken), torch.tensor(spoken_of), steps=steps, device=table.base.device
    )
    penalty, scores = choose_penalty(table, family, members, zoo)
    facts = {"penalty": penalty, "penalty_scores": scores}
    return weights, facts | {"threshold": choose_threshold(family, members, embed)}


def choose_penalty(
    table: MessageTable, family: IntentFamily, members: Sequence[IntentTask], zoo: TextZoo
) -> tuple[float, dict[str, float]]:
    """(penalty of the mixture, score of each), by validation rows of seen tasks left out."""
    single = [z for z, task in enumerate(members) if len(task.positive) == 1]
    left_out = single[:: max(4, -(-len(single) // _CHOSEN_ON))]  # a quarter at most
    tasks = [members[z] for z in left_out]
    intents = {i for task in tasks for i in task.positive}
    rest = zoo.without([z for z, task in enumerate(members) if intents & {*task.positive}])
    scores = {
        penalty: few_shot.validation_score(
            table, family, tasks, from_text.mixture(zoo.matched[left_out], rest, penalty)
        )
        for penalty in from_text.MIXTURE_PENALTIES
    }
    best = max(scores, key=scores.get)
    return best, {str(penalty): round(score, 5) for penalty, score in scores.items()}


def choose_threshold(family: IntentFamily, members: Sequence[IntentTask], embed: Embedder) -> float:
    """The cosine from which a message is about a text, by validation rows of seen tasks."""
    tasks = [task for task in members if len(task.positive) == 1]
    drawn = [draw_rows(family, task, "validation", *few_shot.CHOICE_ROWS, 0) for task in tasks]
    rows, labels = (np.stack(side) for side in zip(*drawn, strict=True))
    scores = from_text.cosines(
        embed([task.texts["train"][0] for task in tasks]), message_vectors(family, rows, embed)
    )
    return from_text.best_threshold(scores.numpy(), labels)


def message_vectors(family: IntentFamily, rows: np.ndarray, embed: Embedder) -> Tensor:
    """Embeddings [T, n, e] of the messages `rows` [T, n]."""
    distinct, place = np.unique(rows, return_inverse=True)
    vectors = embed([family.messages[row].text for row in distinct])
    return vectors[torch.from_numpy(place.reshape(rows.shape))]
