"""The answers in the figure at the top of the README: before and after, for two sentences."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from oral_lib import paths, provenance
from oral_lib.models import loading
from oral_lib.prompting.answers import ask
from oral_lib.prompting.prompt import prompt
from oral_lib.prompting.routed import route
from oral_lib.tasks.rows import task_rows
from oral_lib.tasks.task import load_task

WORDS = 30  # longest input that is drawn


def hero_answers(
    base: str,
    sentences: Mapping[str, str],
    *,
    scale: str | None = None,
    source: str = "packages",
    out: str | Path = paths.ROOT,
    number: int = 4,
) -> Iterator[dict]:
    """Rows for `small_tables.ANSWERS`: what base, generated and router answer to the same inputs.

    The inputs are the first validation rows of a task that are short and, in turn, of each label.

    Args:
        base: name of a base model of the generator.
        sentences: a sentence by task.
        scale: of the generator.
        source: of base model and rows.
        out: the folder of runs/.
        number: inputs of a sentence.
    """
    where = {"base": base, "scale": scale, "source": source, "out": out}
    model = loading.load(base, source=source)
    for name, sentence in sentences.items():
        task = load_task(name)
        rows = [r for r in task_rows(task, source).validation if len(r.text.split()) <= WORDS]
        by_label = [[r for r in rows if r.label == label] for label in range(len(task.labels))]
        chosen = [row for group in zip(*by_label, strict=False) for row in group][:number]
        [generated] = prompt(sentence, **where)
        adapters = {"base": None, "generated": generated, "router": route(sentence, **where)}
        for method, lora in adapters.items():
            answers = ask(model, lora, [row.text for row in chosen], task=task, source=source)
            for row, answer in zip(chosen, answers, strict=True):
                yield {
                    "base": base,
                    "sentence": sentence,
                    "input": " ".join(row.text.split()),
                    "truth": task.labels[row.label],
                    "method": method,
                    "answer": answer.answer,
                    "probability": answer.probabilities[answer.answer],
                    "commit": provenance.code_commit(),
                }
