"""Answers: raw texts or images in, what a base model answers under an adapter out.

A text is put into the template of a task, the task in whose form the adapter answers. The answer is
the most likely label, with the probability of every label, or a written text.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from peft import LoraConfig

from oral_lib.documents.words import is_blank
from oral_lib.errors import UsageError
from oral_lib.evaluation import scoring
from oral_lib.lora import peft_folder, stacked
from oral_lib.lora.adapter import Adapter, LoraSettings, factors_by_module, first_difference
from oral_lib.models import loading, registry
from oral_lib.models.base import INPUTS, BaseModel
from oral_lib.prompting.forms import read_form
from oral_lib.prompting.prompt import PromptedLora
from oral_lib.tasks.rows import Row
from oral_lib.tasks.task import Task, load_task

_LETTERS = 100_000  # of an input; a model reads far fewer
_SHOWN = 5  # labels in a printed answer
Image = str | Path | bytes


@dataclass(frozen=True)
class Answer:
    """What a base model answers to one input.

    >>> print(Answer("A fine film.", "positive", {"negative": 0.1, "positive": 0.9}))
    positive (90%), negative (10%)
    """

    text: str
    answer: str  # a label, or the answer in the written text
    probabilities: Mapping[str, float] = field(default_factory=dict)  # of the labels, sum 1
    written: str = ""  # what the model wrote, where it does not choose a label

    def __str__(self) -> str:
        if not self.probabilities:
            return self.answer or f"no answer in {self.written!r}"
        likely = sorted(self.probabilities.items(), key=lambda item: -item[1])
        parts = [f"{label} ({p:.0%})" for label, p in likely[:_SHOWN]]
        return ", ".join([*parts, *(["..."] if len(likely) > _SHOWN else [])])


def ask(
    base: str | BaseModel,
    lora: str | Path | PromptedLora | Adapter | None,
    text: str | Sequence[str] = "",
    *,
    image: Image | Sequence[Image] | None = None,
    task: str | Task | None = None,
    source: str = "packages",
    device: str = "cpu",
) -> Answer | list[Answer]:
    """The answer of a base model under an adapter to a raw text; of several texts a list.

    An encoder answers with a head that belongs to the adapter. Without an adapter its head is a
    small random draw, so its answer means nothing.

    Args:
        base: a name, or a loaded base model.
        lora: a saved folder, a generated adapter, or tensors by PEFT's saved names. None: the base
            model only.
        text: a text, or several. A model reads as many tokens as the task allows: a causal model
            the end of a long text, an encoder its beginning.
        image: a file or its bytes, or one for each text, for a task about images.
        task: the task that gives template, labels and scoring. Default: the task of the adapter,
            stored in its folder as oral.json.
        source: where a base model given by name is read from.
        device: where it computes.

    Raises:
        UsageError: an empty input, an unknown name, a task that is missing or that the base model
            cannot answer, or an adapter of another base model.
        PreflightError: the base model is not available, or an image cannot be read.
        OralError: the adapter's folder is damaged.

    >>> answer = ask("tiny-causal", None, "a superb film", task="movie")
    >>> sorted(answer.probabilities)
    ['negative', 'positive']
    """
    tensors, config, stored = _adapter(lora)
    _check_base(base, lora, config)
    task = _chosen(task, stored)
    rows = _rows(task, text, image)
    base = _loaded(base, task, source, device)
    kind = base.scoring_kind(task)
    _check_head(base, task)
    start = base.lora_init()
    if tensors is not None:
        _check_fit(base, tensors, config, start)
    answers = _answers(base, task, kind, rows, start if tensors is None else dict(tensors))
    several = not isinstance(text, str) or (image is not None and not isinstance(image, Image))
    return answers if several else answers[0]


def before_and_after(
    base: str | BaseModel,
    lora: str | Path | PromptedLora,
    text: Sequence[str] = (),
    *,
    image: Sequence[Image] | None = None,
    task: str | Task | None = None,
    source: str = "packages",
    device: str = "cpu",
) -> tuple[Task, list[tuple[Answer, Answer]]]:
    """(task, pairs): the answers of the base model only, and under the adapter. As `ask`, with the
    base model loaded once."""
    _, config, stored = _adapter(lora)
    _check_base(base, lora, config)
    task = _chosen(task, stored)
    _rows(task, text, image)  # a wrong input is refused before a model is loaded
    base = _loaded(base, task, source, device)
    before, after = (ask(base, x, text, image=image, task=task) for x in (None, lora))
    return task, list(zip(before, after, strict=True))


def base_column(base: str) -> str:
    """The heading of the answers of the base model called `base`, without an adapter."""
    headless = registry.spec(base).family in ("causal", "vision-language")
    return base if headless else f"{base} (untrained head)"


def _chosen(task: str | Task | None, stored: Task | None) -> Task:
    """The task that is named, else the one stored with the adapter. UsageError without any."""
    task = load_task(task) if isinstance(task, str) else task or stored
    if task is None:
        raise UsageError(
            "it is not known in the form of which task the adapter answers: name the task, as in "
            "task='movie' or --task movie. The command `tasks` lists them."
        )
    return task


def _loaded(base: str | BaseModel, task: Task, source: str, device: str) -> BaseModel:
    """The base model, with a class of an encoder's head for each label."""
    if isinstance(base, BaseModel):
        return base
    return loading.load(base, source=source, labels=max(2, len(task.labels)), device=device)


def _adapter(
    lora: str | Path | PromptedLora | Adapter | None,
) -> tuple[Adapter | None, LoraConfig | None, Task | None]:
    """(tensors, PEFT configuration, task) of an adapter in any form, as far as they are known."""
    if lora is None:
        return None, None, None
    if isinstance(lora, PromptedLora):
        return lora.tensors, peft_folder.lora_config(lora.config), lora.task
    if isinstance(lora, str | Path):
        tensors, config = peft_folder.load(lora)
        return tensors, config, read_form(lora)
    return lora, None, None


def _rows(
    task: Task, text: str | Sequence[str], image: Image | Sequence[Image] | None
) -> list[Row]:
    """The inputs as rows of `task`, without truth."""
    texts = [text] if isinstance(text, str) else list(text)
    images = [image] if image is None or isinstance(image, Image) else list(image)
    needed = INPUTS.get(task.scoring, "texts")
    if task.scoring in ("option", "match", "style"):
        raise UsageError(
            f"task {task.name!r} compares rows of its own data (scoring {task.scoring!r}): it "
            "answers no single text. Name another task."
        )
    if "images" in needed and image is None:
        raise UsageError(
            f"task {task.name!r} is about {needed}: name a file with image= (--image)."
        )
    if "images" not in needed and image is not None:
        raise UsageError(f"task {task.name!r} is about texts: leave out the image.")
    if task.scoring == "image":
        texts = [""] * len(images)
    if len(images) == 1:
        images *= len(texts)
    if len(images) != len(texts):
        raise UsageError(f"{len(texts)} texts and {len(images)} images: give one for each.")
    if not texts:
        raise UsageError("there is no text: give one or more.")
    rows = []
    for number, (words, file) in enumerate(zip(texts, images, strict=True), 1):
        if task.scoring != "image":
            _check_text(words, number, len(texts))
        content = b"" if file is None else _file_bytes(file)
        # a base model caches images by key
        key = f"input {number} {hashlib.sha256(content).hexdigest()[:16]}" if content else number
        rows.append(Row(str(key), words, 0, image=content))
    return rows


def _check_text(text: str, number: int, total: int) -> None:
    """UsageError for a text that a tokenizer cannot read."""
    name = "the text" if total == 1 else f"text {number} of {total}"
    if not isinstance(text, str) or is_blank(text):
        raise UsageError(f"{name} is empty: give what the adapter has to answer.")
    if len(text) > _LETTERS:
        raise UsageError(f"{name} has {len(text):,} letters, at most {_LETTERS:,} are read.")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UsageError(f"{name} has half of a character (a surrogate): leave it out.") from error


def _file_bytes(image: Image) -> bytes:
    if isinstance(image, bytes):
        return image
    try:
        return Path(image).read_bytes()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"the image {str(image)!r} cannot be read ({reason}).") from error


def _check_head(base: BaseModel, task: Task) -> None:
    """UsageError unless the head of an encoder has a class for each label."""
    if base.task_type == "SEQ_CLS" and base.labels != len(task.labels):
        raise UsageError(
            f"task {task.name!r} has {len(task.labels)} labels and the head of {base.name!r} "
            f"{base.labels} classes: load it with labels={len(task.labels)}."
        )


def _check_base(
    base: str | BaseModel,
    lora: str | Path | PromptedLora | Adapter | None,
    config: LoraConfig | None,
) -> None:
    """UsageError if the configuration of an adapter names another base model of the registry.

    The versions of a base model count as one.
    """
    entry = registry.spec(base) if isinstance(base, str) else base.spec
    made_for = config and registry.by_hub(config.base_model_name_or_path or "")
    if made_for and registry.origin(made_for) != registry.origin(entry):
        name = "the adapter"
        if isinstance(lora, str | Path):
            name = Path(lora).absolute().name
        raise UsageError(
            f"{name} was made for {made_for.name}, not {entry.name}: use --base {made_for.name}."
        )


def _check_fit(
    base: BaseModel, tensors: Adapter, config: LoraConfig | None, start: Adapter
) -> None:
    """UsageError unless the adapter has the layers, shapes and scale of the base model's."""
    difference = first_difference(tensors, {name: t.shape for name, t in start.items()})
    if not difference and config:
        expected = base.spec.alpha / base.spec.rank
        for module, factors in factors_by_module(tensors, LoraSettings.of(config)).items():
            if factors.scale != expected:
                difference = f"module {module!r} has the scale {factors.scale}, not {expected}"
    if difference:
        raise UsageError(
            f"the adapter does not fit base model {base.name!r} and this task: {difference}. Name "
            "the base model that it was made for."
        )


def _answers(
    base: BaseModel, task: Task, kind: str, rows: Sequence[Row], tensors: dict[str, torch.Tensor]
) -> list[Answer]:
    """The answers to `rows`, computed as in the evaluation of a task."""
    dtype = next(base.model.parameters()).dtype
    stack = stacked.Stack(tensors, 1, base.device, dtype)
    with stacked.attached(base.model, stack, base.spec.alpha / base.spec.rank) as model:
        if kind == "answer":
            [texts] = scoring.write_answers(model, base, task, rows)
            pairs = zip(rows, texts, strict=True)
            return [Answer(row.text, task.extracted(text), written=text) for row, text in pairs]
        [likely] = scoring.score(model, base, task, rows)
    answers = []
    for row, values in zip(rows, likely.softmax(-1).tolist(), strict=True):
        probabilities = dict(zip(task.labels, values, strict=True))
        answers.append(Answer(row.text, max(probabilities, key=probabilities.get), probabilities))
    return answers
