"""Ways to write adapters for unseen messages: one change of the preset each, on validation rows.

    python -m oral_lib.experiments.studies.intent_ways --source local:DIR --step prepare
    python -m oral_lib.experiments.studies.intent_ways --source local:DIR --ways preset distilled

`prepare` trains a zoo and the multi-task LoRA that reads the text, without the intents of
development; it is done once a folder. Every way is then trained on seen intents and judged on the
intents of development: AUC and balanced accuracy by text, mean over tasks. No row and no text of a
test is read. A way that is done is not trained again.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from oral_lib import storage
from oral_lib.errors import UsageError, closest
from oral_lib.evaluation import bootstrap
from oral_lib.experiments.intents import rivals, scoring, stored, writer
from oral_lib.experiments.intents.cell import SplitCell, cell_of
from oral_lib.experiments.intents.methods import few_shot, prompts, shared
from oral_lib.experiments.intents.methods.from_text import Embedder
from oral_lib.experiments.intents.writer import Learning, WriterPreset
from oral_lib.experiments.intents.writing import Writing
from oral_lib.experiments.model_cache import ModelCache
from oral_lib.experiments.seen.development import assigned
from oral_lib.method.conditioning import Examples
from oral_lib.method.training.tokens import TrainingConfig
from oral_lib.models.text_encoder import HiddenStates, TextEncoder
from oral_lib.tasks.intents.family import IntentTask

WEIGHTS_FIRST = TrainingConfig(steps=1000, tokens=4096)  # of "weights first"
AVERAGED = 4  # whose adapters are averaged
TEXT_IN_INPUT = "text in the input"  # the multi-task LoRA that ways are compared with


def _of(part: str, **changes: Any) -> Callable[[WriterPreset], WriterPreset]:
    def changed(preset: WriterPreset) -> WriterPreset:
        return replace(preset, **{part: replace(getattr(preset, part), **changes)})

    return changed


def _components(number: int) -> Callable[[WriterPreset], WriterPreset]:
    def changed(preset: WriterPreset) -> WriterPreset:
        network = replace(preset.network, components=number)
        return replace(preset, network=network, wider_a=1.0)

    return changed


def _network_only(kind: str) -> Callable[[WriterPreset], WriterPreset]:
    def changed(preset: WriterPreset) -> WriterPreset:
        recurrence = replace(preset.network.recurrence, kind=kind)
        return replace(preset, network=replace(preset.network, recurrence=recurrence, linear=0))

    return changed


WAYS: dict[str, Callable[[WriterPreset], WriterPreset]] = {
    "preset": lambda preset: preset,
    "64 tasks of 8 rows": lambda preset: replace(preset, tasks=64, rows=8),
    "distilled": _of("mixture", distilled=0.4),
    "weights first": lambda preset: replace(preset, weights=WEIGHTS_FIRST),
    "no messages as texts": _of("mixture", messages_as_texts=0.0),
    "no unions": _of("mixture", unions=0.0),
    "no topics": _of("mixture", topics=0.0),
    "text noise 0": _of("training", text_noise=0.0),
    "text noise 0.5": _of("training", text_noise=0.5),
    "dropout 0.2": _of("training", dropout=0.2),
    "weight decay 0.1": _of("training", weight_decay=0.1),
    "no examples": _of("network", examples=False),
    "shared part only": _of("network", shared="only", linear=0),
    "linear map only": _of("network", shared="only"),
    "no shared part": _of("network", shared="none"),
    "rank 384": _of("network", linear=384),
    "recurrent only": _network_only("mamba2"),
    "MLP only": _network_only("none"),
    "twice the steps": lambda preset: _of("training", steps=2 * preset.training.steps)(preset),
    "64 components": _components(64),
    "256 components": _components(256),
    "scale of A of the zoo": lambda preset: replace(preset, wider_a=1.0),
    "states of the base": lambda preset: preset,  # see `_encoder`
    "states and encoder": lambda preset: preset,
}
JUDGED_TEXTS = {"first": ("train", 0), "development": ("development", 0), "other": ("train", 1)}


def prepare_study(base: str, *, scale: str, source: str, root: Path, device: str) -> None:
    """Trains what all ways need, unless it is there: the zoo, and the model that reads texts."""
    place = {"scale": scale, "source": source, "root": root, "device": device}
    rivals.train_zoo(base, development=True, **place)
    rivals.train_rivals(base, development=True, only=("described",), **place)


def _encoder(way: str, learning: Learning, encoder: TextEncoder) -> Embedder:
    """The text encoder of a way."""
    if way not in ("states of the base", "states and encoder"):
        return learning.embed
    [base] = learning.models.values()
    seen = rivals.seen_tasks(learning.family, "", 0, development=True)
    texts = [text for task in seen for text in task.texts["train"]]
    joined = encoder if way == "states and encoder" else None
    return Embedder(HiddenStates(base, texts, joined), base.device)


def train_way(
    way: str, base: str, preset: WriterPreset, cache: ModelCache, scale: str
) -> tuple[Writing, Embedder, list[float]]:
    """What writes adapters of one base model in one way, with the texts' encoder and the losses.

    Args:
        way: one of `WAYS`.
        base: the base model.
        preset: what the way changes.
        cache: the models of the folder.
        scale: of the zoo.
    """
    place = {"scale": scale, "source": cache.source, "root": cache.root, "device": cache.device}
    encoder = TextEncoder(preset.network.text_encoder, source=cache.source)
    learning = Learning.of([base], Embedder(encoder, cache.device), development=True, **place)
    learning = replace(learning, embed=_encoder(way, learning, encoder))
    network, curves = writer.train_writer(
        learning, WAYS[way](preset), label=f"{base} {way}", device=cache.device
    )
    return Writing(network, writer.SAMPLING, base), learning.embed, curves["losses"]


def _texts(tasks: Sequence[IntentTask], kind: str, number: int) -> list[str]:
    """A text of each task: that of the number, or the last."""
    return [task.texts[kind][min(number, len(task.texts[kind]) - 1)] for task in tasks]


def judge(cell: SplitCell, write: Writing, embed: Embedder) -> list[dict]:
    """Rows text, auc, balanced_accuracy: each text of `JUDGED_TEXTS`, the means of the adapters of
    three training texts and of `AVERAGED` samples of the first, and the first with 4 rows."""
    tasks, table = cell.tasks, []
    values = {
        name: write(embed(_texts(tasks, kind, number)))
        for name, (kind, number) in JUDGED_TEXTS.items()
    }
    first = embed(_texts(tasks, "train", 0))
    three = [write(embed(_texts(tasks, "train", number))) for number in range(3)]
    values["mean of 3 texts"] = torch.stack(three).mean(0)
    samples = [
        Writing(write.network, write.sampling, write.base, seed)(first) for seed in range(AVERAGED)
    ]
    values[f"mean of {AVERAGED} samples"] = torch.stack(samples).mean(0)
    if write.reads_examples:
        rows, labels = few_shot.labelled_rows(cell.family, tasks, 4)
        answers = torch.from_numpy(labels)
        vectors = rivals.message_vectors(cell.family, rows, embed)
        examples = Examples(vectors, answers, torch.ones_like(answers, dtype=torch.bool))
        values["first and 4 rows"] = write(first, None, examples)
    for text, adapters in values.items():
        scores = scoring.yes_logits(cell.model, cell.table, adapters, cell.drawn[0])
        table.append({"text": text, **_means(scores, cell.drawn[1])})
    return table


def judge_described(cell: SplitCell) -> list[dict]:
    """The rows of `judge` of the multi-task LoRA that reads the text in its input."""
    table_of = partial(prompts.PromptTable.of, cell.model)
    causal, rows = cell.model.family == "causal", []
    trained, _ = cell.rival("described")
    for name, (kind, number) in JUDGED_TEXTS.items():
        texts = _texts(cell.tasks, kind, number)
        fronts = [prompts.described(text) for text in texts] if causal else texts
        table = table_of(fronts, cell.family.messages)
        with shared.under(cell.model, trained):
            scores = prompts.pair_logits(table, np.arange(len(texts))[:, None], cell.drawn[0])
        rows.append({"text": name, **_means(scores, cell.drawn[1])})
    return rows


def _means(scores: Tensor, labels: np.ndarray) -> dict[str, float]:
    """Means over tasks, in percent, of scores [T, n] on rows with labels [n]."""
    each = [(bootstrap.auc(labels, s), bootstrap.balanced_accuracy(labels, (s > 0) == labels))
            for s in scores.numpy()]  # fmt: skip
    auc, balanced = (100 * np.mean(side) for side in zip(*each, strict=True))
    return {"auc": float(auc), "balanced_accuracy": float(balanced)}


def judge_ways(
    base: str,
    ways: Sequence[str],
    *,
    scale: str,
    source: str,
    root: Path,
    device: str,
    changes: dict[str, Any] | None = None,
) -> pd.DataFrame:
    """Rows base, way, text, auc, balanced_accuracy, loss, seconds of `ways` on one base model.

    Args:
        base: the base model, which `prepare` has prepared.
        ways: of `WAYS`, or `TEXT_IN_INPUT`.
        scale: of the preset that they change.
        source: of messages and models.
        root: the folder of the study.
        device: where to train.
        changes: fields of `ThroughBaseConfig`, or `tasks` and `rows`, for all ways.

    Raises:
        UsageError: an unknown way.
    """
    for way in ways:
        if way not in WAYS and way != TEXT_IN_INPUT:
            raise UsageError(f"unknown way {way!r}.{closest(way, [*WAYS, TEXT_IN_INPUT])}")
    changes = dict(changes or {})
    preset = writer.PRESETS[scale]
    sizes = {name: changes.pop(name) for name in ("tasks", "rows") if name in changes}
    preset = replace(preset, training=replace(preset.training, **changes), **sizes)
    cache = ModelCache(root, source, device)
    cell = cell_of("development", base, scale=scale, cache=cache, wordings="development")
    table: list[dict] = []
    facts = rivals.stream_facts(cell.family, "L2", development=True)
    for way in ways:
        here = preset if way == TEXT_IN_INPUT else WAYS[way](preset)
        zoo = stored.read_set(root, base, "train", development=True)[-1]["sha256"]
        about = {"preset": repr(here), "zoo": zoo} | facts
        if way == TEXT_IN_INPUT or here.mixture.distilled:
            teacher = stored.read_rival(root, base, "described", development=True)[-1]
            about["described"] = teacher["sha256"]
        path = root / "ways" / base / f"{way.replace(' ', '_')}.json"
        if not path.exists() or storage.read_json(path)["about"] != about:
            began, ends = time.perf_counter(), 0.0
            if way == TEXT_IN_INPUT:
                rows = judge_described(cell)
            else:
                write, embed, losses = train_way(way, base, preset, cache, scale)
                ends = float(np.mean(losses[-max(1, len(losses) // 20) :]))
                rows = judge(cell, write, embed)
            seconds = round(time.perf_counter() - began, 1)
            about_rows = {"base": base, "way": way, "loss": ends, "seconds": seconds}
            storage.write_json(path, {"about": about, "rows": [about_rows | row for row in rows]})
        judged = storage.read_json(path)["rows"]
        print(f"{base} {way}: " + "; ".join(f"{r['text']} {r['auc']:.1f}" for r in judged))
        table += judged
    return pd.DataFrame(table)


def print_ways(table: pd.DataFrame) -> None:
    """Prints AUC / balanced accuracy, a line for each way and a column for each text."""
    cells = [f"{a:.1f} / {b:.1f}" for a, b in zip(table.auc, table.balanced_accuracy, strict=True)]
    wide = table.assign(cell=cells).pivot_table(
        "cell", ["base", "way", "loss", "seconds"], "text", aggfunc="first", sort=False
    )
    print(wide.reset_index().round(3).fillna("").to_string(index=False))


def main(arguments: Sequence[str] | None = None) -> pd.DataFrame | None:
    """Runs one step; returns the table of the step "ways"."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--source", required=True, help="of messages and models")
    add("--root", type=Path, default=Path("runs/intent_ways"), help="folder of zoo and results")
    add("--scale", default="lab", help="of the presets")
    add("--base", default="smollm2-135m")
    add("--step", choices=("prepare", "ways"), default="ways")
    add("--ways", nargs="*", default=[TEXT_IN_INPUT, *WAYS], help="names; default: all")
    add("--set", nargs="*", default=[], metavar="NAME=VALUE", help="steps, lr, tasks, rows, ...")
    args = parser.parse_args(arguments)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    place = {"scale": args.scale, "source": args.source, "root": args.root, "device": device}
    if args.step == "prepare":
        prepare_study(args.base, **place)
        return None
    table = judge_ways(args.base, args.ways, changes=assigned(args.set), **place)
    print_ways(table)
    return table


if __name__ == "__main__":
    main()
