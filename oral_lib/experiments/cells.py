"""One cell (task, base model, seed): every method and condition on the same held-out rows.

Held-out rows are drawn once and shared by all methods, so any two rows of the table can be compared
item by item.
"""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from oral_lib import scales
from oral_lib.baselines import linear_probe, majority
from oral_lib.evaluation import item_tables
from oral_lib.evaluation.evaluate import Matched, Outcome, evaluate
from oral_lib.experiments.conditions import Question, questions_of, size_of, text_rows
from oral_lib.experiments.model_cache import ModelCache
from oral_lib.experiments.side_tables import costs, novelty
from oral_lib.experiments.trials import Models, Trial, trials
from oral_lib.models import contrastive
from oral_lib.models.base import BaseModel
from oral_lib.progress import bar
from oral_lib.tasks.rows import Row, full_rows
from oral_lib.tasks.task import Task, load_task
from oral_lib.zoo import store


class Measurement(NamedTuple):
    """What a cell measures.

    Args:
        metrics: rows of `schema.COLUMNS`.
        items: rows of `schema.ITEM_COLUMNS`.
        tables: rows of further tables of results, by the stem of the table's file.
    """

    metrics: pd.DataFrame
    items: pd.DataFrame
    tables: Mapping[str, Sequence[dict]]


def score_trials(
    model: BaseModel,
    task: Task,
    rows: Sequence[Row],
    cell: dict,
    planned: Sequence[Trial],
    majority_outcome: Outcome | None = None,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """(metrics, items) of all trials; an adapter that several trials share is scored once.

    Args:
        model: the base model.
        task: the task of the cell.
        rows: held-out rows, shuffled: the first n are a random sample.
        cell: experiment, source, base, task and seed.
        planned: the trials.
        majority_outcome: the outcome of the most frequent label, not scored with the base model.
    """
    tables = []
    if majority_outcome is not None:
        tables.append(_items(cell, "majority", "none", 0, majority_outcome))
    seconds = {(trial.method, trial.condition): trial.seconds for trial in planned}
    outcome_of: dict[tuple[int, int], Outcome] = {}  # retrieval often shares trained adapters
    unique = {(id(a), trial.rows): a for trial in planned for a in trial.adapters}
    label = f"{model.name} {task.name} seed {cell['seed']}"
    progress = bar(total=len(unique), label=label, unit="adapter")
    for n in sorted({trial.rows for trial in planned}):
        adapters = {key: a for key, a in unique.items() if key[1] == n}
        began = time.perf_counter()
        outcomes = evaluate(model, task, rows[:n], list(adapters.values()))
        for key, outcome in zip(adapters, outcomes, strict=True):
            outcome_of[key] = outcome
            progress.update()
        each = (time.perf_counter() - began) / len(adapters)
        for trial in (trial for trial in planned if trial.rows == n):
            seconds[trial.method, trial.condition] += each * len(trial.adapters)
    progress.close()
    for trial in planned:
        for sample, adapter in enumerate(trial.adapters):
            outcome = outcome_of[id(adapter), trial.rows]
            tables.append(_items(cell, trial.method, trial.condition, sample, outcome))
    items = item_tables.join(tables)
    kinds = {row.key: row.kind for row in rows if row.kind}  # a metric for each kind of items
    for outcome in outcome_of.values():
        kinds |= outcome.queries if isinstance(outcome, Matched) else {}
    metrics = item_tables.summarise(
        items,
        family=task.family,
        base_version=model.spec.version,
        wall_s={key: round(value, 3) for key, value in seconds.items()},
        balanced=task.metric == "balanced_accuracy",
        kinds=kinds if len(set(kinds.values())) > 1 else {},
        depths=contrastive.DEPTHS if task.scoring == "match" else (),
    )
    return metrics, items


def _items(cell: dict, method: str, condition: str, sample: int, outcome: Outcome) -> pd.DataFrame:
    if isinstance(outcome, Matched):
        ranks = outcome.predicted.numpy()
        return item_tables.rank_items(
            cell, method, condition, sample=sample, item=list(outcome.queries), ranks=ranks
        )
    about = {"sample": sample, "item": [row.key for row in outcome.rows]}
    if outcome.written is None:
        about |= {"labels": outcome.labels.numpy(), "logits": outcome.likely.numpy()}
        return item_tables.label_items(cell, method, condition, **about)
    about["correct"] = outcome.correct.numpy()
    return item_tables.answer_items(cell, method, condition, **about)


# ---------------------------------------------------------------- a cell
def models_of(cache: ModelCache, scale: str, experiment: str, task: str, seed: int) -> Models:
    """The networks of a cell; PreflightError if one other than "unconditional" was not trained."""
    names = scales.cell_networks(scale, cache.source, experiment, task, seed)
    through_base = names.get("through_base")
    unconditional = cache.has("unconditional")
    return Models(
        cache.generator(names["generator"]),
        cache.generator("regression"),
        cache.generator("unconditional") if unconditional else None,
        through_base and cache.generator(through_base),
    )


def zoo_of(
    root: Path, task: str, base: str, *, scale: str, source: str, experiment: str
) -> tuple[list[store.Member], list[store.Member]]:
    """(zoo of a base model, held-out adapters of a task on it).

    Args:
        root: the folder of the run.
        task: the task of the cell.
        base: the base model of the cell.
        scale: of the run.
        source: of the run.
        experiment: of the run.
    """
    zoo = scales.members(scale, source, experiment)
    held_out = scales.members(scale, source, experiment, held_out=True)
    return (
        [store.read(root, *member) for member in zoo if member[0] == base],
        [store.read(root, *member) for member in held_out if member[:2] == (base, task)],
    )


def run_cell(
    task: str, base: str, seed: int, *, scale: str, cache: ModelCache, wordings: str
) -> Measurement:
    """One cell, measured with the zoo and networks of a run.

    Args:
        task: name of the task.
        base: name of the base model.
        seed: of the generator and of its samples.
        scale: of the run.
        cache: the models of the run.
        wordings: the paraphrases to measure, one of `wordings.HELD_OUT_WORDINGS`.

    Returns:
        Metrics and items of `schema`; rows of the tables texts, costs and novelty. Novelty has no
        rows without held-out adapters.
    """
    spec, source = load_task(task), cache.source
    data = full_rows(spec, source, ("train", "validation", "test"))
    model = cache.base(base, len(spec.labels))
    experiment = model.spec.experiment
    models = models_of(cache, scale, experiment, task, seed)
    about = {"scale": scale, "source": source, "experiment": experiment}
    members, held_out = zoo_of(cache.root, task, base, **about)
    size = size_of(scale, model, spec)
    rows = data.test[: size.rows]
    encoder = models.generator.encoder
    pickers = cache.pickers(list(dict.fromkeys(m.task for m in members)), encoder)
    questions = questions_of(spec, pickers, encoder, size, seed=seed, wordings=wordings)
    planned = list(trials(spec, model, members, held_out, models, size, questions, seed=seed))
    if model.reads == "images" and seed == 0:
        began = time.perf_counter()
        probe = linear_probe.linear_probe(model, spec, data)
        about = {"rows": size.rows, "seconds": time.perf_counter() - began}
        planned.append(Trial(method="linear_probe", condition="none", adapters=[probe], **about))
    outcome = None
    if seed == 0 and spec.scoring != "match":
        outcome = majority.majority(data.train, rows, len(spec.labels))
    cell = {
        "experiment": experiment, "source": data.source, "base": base, "task": task, "seed": seed,
    }  # fmt: skip
    metrics, items = score_trials(model, spec, rows, cell, planned, outcome)
    tables = side_tables(
        cell, model, models, planned, members, held_out, questions, len(data.train)
    )
    return Measurement(metrics, items, tables)


def side_tables(
    cell: dict,
    model: BaseModel,
    models: Models,
    planned: Sequence[Trial],
    members: Sequence[store.Member],
    held_out: Sequence[store.Member],
    questions: Sequence[Question],
    n_train: int,
) -> dict[str, list[dict]]:
    """The rows of the tables texts, costs and novelty of a cell.

    Args:
        cell: experiment, source, base, task and seed.
        model: the base model.
        models: the networks of the cell.
        planned: its trials.
        members: the zoo of the base model.
        held_out: adapters of the task that no generator was trained on.
        questions: its texts.
        n_train: training rows of the task.
    """
    ratio = model.spec.alpha / model.spec.rank
    zoo = [member for member in members if member.task == cell["task"]]
    return {
        "texts": text_rows(cell, questions),
        "costs": costs.cost_rows(cell, planned, zoo, questions, n_train, model.device),
        "novelty": novelty.novelty_rows(cell, planned, members, held_out, ratio, models.generator),
    }
