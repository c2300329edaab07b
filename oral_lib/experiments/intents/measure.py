"""One cell: all tasks of a split on one base model, every method on the same rows.

A task has twice as many negative rows as positive ones (`cell.POSITIVE`), half of them near. The
score of a row is the logit of yes minus that of no. Methods that do not depend on the generator are
measured in the cell of seed 0 only.

Letters: T tasks, n rows of each, s samples (texts of a condition), V values of an adapter.
"""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain

import numpy as np
import torch
from torch import Tensor

from oral_lib.assets import sources
from oral_lib.evaluation import many_tasks
from oral_lib.evaluation.many_tasks import Scored
from oral_lib.experiments.cells import Measurement
from oral_lib.experiments.intents import rivals, scoring
from oral_lib.experiments.intents.cell import SplitCell, cell_of
from oral_lib.experiments.intents.methods import few_shot, from_text, prompts
from oral_lib.experiments.intents.methods.prompts import PromptTable
from oral_lib.experiments.intents.methods.shared import multitask_logits, under
from oral_lib.experiments.model_cache import ModelCache
from oral_lib.experiments.side_tables.intents import method_costs, one_at_a_time, text_map
from oral_lib.method.conditioning import Examples
from oral_lib.progress import bar

_EXAMPLES = (4, 16)  # labelled rows that a generator reads
MAPPED = ("L2", "L3")  # splits whose texts are tried on the rows of every other task
MAPPED_ON_CPU = 16  # tasks, at most: a GPU is not asked for

# adapters [T, V] on the CPU, of texts [T, e] (not given: without text) and examples
Write = Callable[..., Tensor]  # (texts, given, examples=None)


# ---------------------------------------------------------------- methods
def plain_trials(cell: SplitCell) -> Iterator[Scored]:
    """Methods without text: the base model, trained and few-shot adapters."""
    start = torch.cat([v.flatten() for _, v in sorted(cell.model.lora_init().items())])
    yield adapter_trial(cell, "base", "none", [lambda: start.expand(len(cell.tasks), -1)])
    values, seconds = cell.trained
    yield adapter_trial(cell, "trained", "none", [lambda: values], seconds * len(cell.tasks))
    seen = cell.split == "L0"  # every row of its tasks was trained on
    if rivals.preset(cell.scale, cell.model.name).few_shot and not seen:
        recipes = few_shot.few_shot_recipes(
            cell.root, cell.model.name, development=cell.development
        )
        for shots, recipe in recipes.items():
            about = cell.table, cell.family, cell.tasks, shots, recipe
            make = partial(few_shot.few_shot, *about)
            yield adapter_trial(cell, f"few_shot_{shots}", "none", [make])


def text_trials(cell: SplitCell) -> Iterator[Scored]:
    """Methods that read a text, without the generator."""
    writers = text_writers(cell)
    threshold = cell.rival("regression")[1]["threshold"]
    read = partial(rivals.message_vectors, cell.family, cell.drawn[0])
    vectors, reading = timed(
        partial(read, from_text.Embedder(cell.embed.encoder, cell.embed.device))
    )
    reading *= cell.drawn[0].size / len(np.unique(cell.drawn[0]))  # each message was read once
    joint = rivals.preset(cell.scale, cell.model.name).multitask_models
    shared = cell.rival("multitask")[0] if joint else None

    def cosines(texts: Tensor) -> Tensor:
        return from_text.cosines(texts, vectors) - threshold

    def multitask(texts: Tensor) -> Tensor:
        return multitask_logits(cell.table, shared, texts, cell.drawn[0])

    scorers = {"zero_shot": cosines} | ({"multitask": multitask} if joint else {})
    for question in cell.questions:
        embedded = [cell.embed(texts) for texts in question.samples]
        for method, scorer in scorers.items():
            scores, seconds = timed(partial(_each, scorer, embedded))
            seconds += reading * len(embedded) * (method == "zero_shot")
            yield Scored(method, question.condition, stack_of(scores), scoring_s=seconds)
        for method, write in writers.items():
            makes = [partial(write, texts) for texts in embedded]
            yield adapter_trial(cell, method, question.condition, makes)


def text_writers(cell: SplitCell) -> dict[str, Callable[[Tensor], Tensor]]:
    """What writes adapters [T, V] from texts [T, e] and the zoo, by method."""
    weights, choices = cell.rival("regression")
    return {
        "retrieval": lambda e: from_text.retrieved(e, cell.zoo),
        "soup_nearest": lambda e: from_text.soup_of_nearest(e, cell.zoo),
        "mixture": lambda e: from_text.mixture(e, cell.zoo, choices["penalty"]),
        "router": lambda e: from_text.routed(e, cell.zoo, choices["penalty"]),
        "regression": lambda e: from_text.regression(e, cell.zoo, weights),
    }


def prompt_trials(cell: SplitCell) -> Iterator[Scored]:
    """Methods with the text in the input: the prompted base model and the multi-task LoRA."""
    causal = cell.model.family == "causal"
    texts = sorted({text for q in cell.questions for sample in q.samples for text in sample})
    fronts = [prompts.described(text) for text in texts] if causal else texts
    table = PromptTable.of(cell.model, fronts, cell.family.messages)
    number = {text: i for i, text in enumerate(texts)}
    joint = rivals.preset(cell.scale, cell.model.name).multitask_models
    trained = cell.rival("described")[0] if joint else None
    for question in cell.questions:
        index = [np.array([[number[text]] for text in sample]) for sample in question.samples]
        if causal:
            yield prompt_trial(cell, "prompted", question.condition, table, index)
            about = cell.model, cell.family, cell.tasks, question.samples
            with_four = prompts.prompts_with_examples(*about)
            yield prompt_trial(cell, "prompted_4", question.condition, *with_four)
        if joint:
            with under(cell.model, trained):
                yield prompt_trial(cell, "multitask_described", question.condition, table, index)


def prompt_trial(
    cell: SplitCell, method: str, condition: str, table: PromptTable, index: Sequence[np.ndarray]
) -> Scored:
    """The scores of the cell's rows behind the texts `index` [s] of [T, 1] of `table`."""
    scores, seconds = timed(partial(_each, partial(_behind, table, cell.drawn[0]), index))
    length = float(np.mean([table.total(each, cell.drawn[0]) for each in index]))
    return Scored(method, condition, stack_of(scores), scoring_s=seconds, tokens=length)


def _behind(table: PromptTable, rows: np.ndarray, texts: np.ndarray) -> Tensor:
    return prompts.pair_logits(table, texts, rows)


def _each(call: Callable, inputs: Sequence) -> list:
    return [call(each) for each in inputs]


def generated_trials(cell: SplitCell, method: str, write: Write) -> Iterator[Scored]:
    """The generator under every condition, with text, with labelled rows, and with both."""
    given = torch.ones(len(cell.tasks), dtype=torch.bool)
    for question in cell.questions:
        has_text = given & (question.condition != "empty")
        makes = [partial(write, cell.embed(texts), has_text, None) for texts in question.samples]
        yield adapter_trial(cell, method, question.condition, makes)
    matched = cell.embed(cell.questions[0].samples[0])
    if not getattr(write, "reads_examples", False):
        return
    for shots in _EXAMPLES:
        rows, labels = few_shot.labelled_rows(cell.family, cell.tasks, shots)
        vectors = rivals.message_vectors(cell.family, rows, cell.embed)
        labels = torch.from_numpy(labels)
        examples = Examples(vectors, labels, torch.ones_like(labels, dtype=torch.bool))
        for name, has_text in ((f"matched_{shots}", given), (f"rows_{shots}", ~given)):
            makes = [partial(write, matched, has_text, examples)]
            yield adapter_trial(cell, method, name, makes)


def adapter_trial(
    cell: SplitCell,
    method: str,
    condition: str,
    makes: Sequence[Callable[[], Tensor]],
    seconds: float = 0.0,
) -> Scored:
    """The scores of the adapters [T, V] that each of `makes` returns.

    Args:
        cell: the cell.
        method: its name.
        condition: its condition.
        makes: one function a sample.
        seconds: what the adapters have taken before.
    """
    scores, scoring_s = [], 0.0
    for make in makes:
        values, making = timed(make)
        score = partial(scoring.yes_logits, cell.model, cell.table, values, cell.drawn[0])
        each, taken = timed(score)
        scores.append(each)
        seconds, scoring_s = seconds + making, scoring_s + taken
    return Scored(
        method, condition, stack_of(scores), making_s=seconds, scoring_s=scoring_s, adapters=True
    )


def timed(call: Callable):
    """(result, seconds); results on the CPU are complete when it returns."""
    began = time.perf_counter()
    result = call()
    return result, time.perf_counter() - began


def stack_of(scores: Sequence[Tensor]) -> np.ndarray:
    """Scores [s, T, n]."""
    return torch.stack([*scores]).double().numpy()


# ---------------------------------------------------------------- the cell
def run_cell(
    split: str,
    base: str,
    seed: int,
    *,
    scale: str,
    cache: ModelCache,
    wordings: str,
    networks: Mapping[str, Write] | None = None,
) -> Measurement:
    """All tasks of a split on one base model, with rows of intents_costs and intents_map.

    Args:
        split: "L0", "L1", "L2" or "L3"; "development" for choices, on validation rows.
        base: name of the base model.
        seed: of the generator.
        scale: of the run.
        cache: the models of the run.
        wordings: the paraphrases to measure, one of `wordings.HELD_OUT_WORDINGS`.
        networks: what writes adapters, by method.

    Raises:
        PreflightError: zoo or rivals were not trained.
    """
    cell = cell_of(split, base, scale=scale, cache=cache, wordings=wordings)
    trials: list[Iterable[Scored]] = []
    if seed == 0:
        trials += [plain_trials(cell), text_trials(cell), prompt_trials(cell)]
    trials += [generated_trials(cell, name, write) for name, write in (networks or {}).items()]
    label = f"{base} {split} seed {seed}"
    planned = [*bar(chain.from_iterable(trials), label=label, unit="trial")]
    about = {
        "experiment": "intents", "source": sources.parse_source(cache.source)[0], "base": base,
        "seed": seed,
    }  # fmt: skip
    rows, labels = cell.drawn
    names = [task.name for task in cell.tasks]
    keys = [message.key for message in cell.family.messages]
    items = many_tasks.items_of(about, names, keys, rows, labels, planned)
    metrics = many_tasks.metrics_of(about, names, labels, planned, cell.model.spec.version)
    return Measurement(
        metrics, items, further_tables(cell, about["source"], planned, networks or {})
    )


def further_tables(
    cell: SplitCell, source: str, planned: Sequence[Scored], networks: Mapping[str, Write]
) -> dict[str, list[dict]]:
    """The rows of intents_costs (seed 0) and of intents_map (where a GPU scores all pairs)."""
    if not any(trial.method == "base" for trial in planned):
        return {}
    text = cell.embed(cell.questions[0].samples[0][:1])
    one_ms = {name: one_at_a_time(write, text) for name, write in text_writers(cell).items()}
    for name, write in networks.items():
        one_ms[name] = one_at_a_time(partial(write, given=torch.tensor([True])), text)
    values, zoo = cell.trained[0].shape[1], cell.zoo
    tasks = 2 * zoo.values.numel() + 4 * zoo.matched.numel()  # adapters in float16
    trained = {  # in float16, as all adapters
        name: 2 * sum(tensor.numel() for tensor in cell.rival(file)[0].values())
        for name, file in (("multitask", "multitask"), ("multitask_described", "described"))
        if rivals.preset(cell.scale, cell.model.name).multitask_models
    }
    directions = len(from_text.principal(zoo)[1]) + 1
    weights = sum(tensor.numel() for tensor in cell.rival("regression")[0].values())
    sizes = {f"few_shot_{shots}": 2 * values for shots in few_shot.SHOTS} | trained
    sizes |= {"trained": 2 * values, "retrieval": tasks, "soup_nearest": tasks}
    sizes["mixture"] = tasks + 4 * len(zoo.values) * zoo.matched.shape[1]
    sizes["regression"] = 2 * directions * values + 4 * weights
    sizes["router"] = sizes["mixture"]
    sizes["zero_shot"] = 4 * sum(p.numel() for p in cell.embed.encoder.model.parameters())
    sizes |= {name: getattr(write, "stored_bytes", math.nan) for name, write in networks.items()}
    texts = [cell.family.messages[row].text for row in cell.drawn[0].ravel()]
    read = cell.embed.encoder.tokenizer(texts)["input_ids"]
    tokens = float(cell.table.lengths[cell.drawn[0]].mean()), float(np.mean([*map(len, read)]))
    about = source, cell.model, cell.split, planned
    costs = method_costs(*about, tokens, sizes, one_ms, cell.embed.encoder)
    tables = {"intents_costs": costs}
    few = len(cell.tasks) <= MAPPED_ON_CPU
    if cell.split in MAPPED and (few or cell.model.device.type == "cuda"):
        for write in (networks[name] for name in networks if name == "generated_through_base"):
            texts = cell.embed(cell.questions[0].samples[0])
            values = write(texts, torch.ones(len(texts), dtype=torch.bool), None)
            rows = np.tile(cell.drawn[0].ravel(), (len(texts), 1))
            scores = scoring.yes_logits(cell.model, cell.table, values, rows).numpy()
            scores = scores.reshape(len(texts), *cell.drawn[0].shape)
            names = [task.name for task in cell.tasks]
            about = source, cell.model.name, cell.split, names
            tables["intents_map"] = text_map(*about, scores, cell.drawn[1])
    return tables
