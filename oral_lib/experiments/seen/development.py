"""Choices about training through the base models, on validation rows only.

    python -m oral_lib.experiments.seen.development --source local:DIR --step prepare
    python -m oral_lib.experiments.seen.development --source local:DIR --name slow --set lr=1e-4

`prepare` trains a small zoo with the default recipes, a generator and regression; it is done once a
folder. Every further call trains one network through the base models and prints a table: accuracy
on validation rows and mean log-likelihood by base model, task and method. Texts are a task's
description and its paraphrases for development. No test row and no test paraphrase is read.
"""

import argparse
import time
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from oral_lib import devices, storage
from oral_lib.baselines import averages
from oral_lib.baselines.router import Router
from oral_lib.errors import UsageError
from oral_lib.evaluation.evaluate import evaluate
from oral_lib.experiments import generators
from oral_lib.experiments.seen import through_base
from oral_lib.generator import Generator
from oral_lib.method.training.through_base import ThroughBaseConfig
from oral_lib.models import loading
from oral_lib.models.base import BaseModel
from oral_lib.planning.parts import GENERATOR, BasePlan, GeneratorJob
from oral_lib.scales import base_plan
from oral_lib.tasks.rows import full_rows
from oral_lib.tasks.task import Task, load_task
from oral_lib.zoo import store


def plans_of(
    bases: Sequence[str], tasks: Sequence[str], zoo_seeds: int, scale: str, source: str
) -> list[BasePlan]:
    """The plans of a run, cut to `tasks` (default: all) and to `zoo_seeds` adapters and one more
    that generators do not learn from."""
    plans = [base_plan(scale, base, source) for base in bases]
    return [
        replace(
            plan,
            tasks=tuple(name for name in plan.tasks if not tasks or name in tasks),
            zoo_seeds=zoo_seeds,
            held_out=1,
        )
        for plan in plans
    ]


def train_zoo_and_networks(
    plans: Sequence[BasePlan], *, scale: str, source: str, root: Path, device: str, steps: int = 0
) -> None:
    """Trains the zoo of `plans`, a generator and regression in `root`, if they are missing.

    Args:
        plans: base models, tasks and seeds.
        scale: of the presets.
        source: of rows and models.
        root: a folder of their own.
        device: where to train.
        steps: of generator and regression; 0: as the preset of the scale.
    """
    place = {"source": source, "root": root, "device": device}
    for plan in plans:
        store.train_seeds(plan.base, plan.tasks, plan.all_seeds, **place)
    members = [
        (plan.base, task, seed)
        for plan in plans
        for task in plan.tasks
        for seed in range(plan.zoo_seeds)
    ]
    for job in (GENERATOR, GeneratorJob(kind="regression")):
        configured = generators.preset(scale, job)
        if steps:
            training = replace(configured.training, steps=steps)
            configured = replace(configured, training=training)
        generators.train_from_zoo(members, job, scale=scale, configured=configured, **place)


def compare_methods(
    plans: Sequence[BasePlan],
    networks: Mapping[str, Generator],
    *,
    source: str,
    root: Path,
    device: str,
    rows: int = 300,
    samples: int = 4,
) -> pd.DataFrame:
    """Accuracy and log-likelihood on validation rows: base, task, method, text, accuracy, stderr,
    likelihood.

    Answers are not written, so tasks with written answers have a likelihood only. Values are means
    over adapters; `stderr` is that of the difference to "trained" over rows, both in percent.

    Args:
        plans: base models and tasks.
        networks: by method.
        source: of rows and models.
        root: the folder with the zoo.
        device: where to measure.
        rows: validation rows of a task, at most.
        samples: adapters that are generated from each text.
    """
    encoder = next(iter(networks.values())).encoder
    table = []
    for plan in plans:
        tasks = [load_task(name) for name in plan.tasks]
        model = loading.load(plan.base, source=source, labels=len(tasks[0].labels), device=device)
        router = Router(plan.tasks, encoder)
        zoo = {
            task.name: [
                store.read(root, plan.base, task.name, seed).tensors for seed in plan.all_seeds
            ]
            for task in tasks
        }
        for task in tasks:
            adapters = _adapters(task, model, plan, zoo, router, networks, samples)
            table += _scored(task, model, adapters, source, rows)
    return pd.DataFrame(table)


def _adapters(
    task: Task,
    model: BaseModel,
    plan: BasePlan,
    zoo: Mapping[str, Sequence[dict]],
    router: Router,
    networks: Mapping[str, Generator],
    samples: int,
) -> dict[tuple[str, str], list[dict]]:
    """The adapters of a task by method and text ("none", "matched" or "paraphrase")."""
    n, name = plan.zoo_seeds, task.name
    adapters = {
        ("trained", "none"): zoo[name][:n],
        ("held_out", "none"): zoo[name][n:],
        ("soup_task", "none"): [averages.soup(zoo[name][:n])],
    }
    questions = {"matched": [task.description], "paraphrase": task.paraphrases["development"][:2]}
    for condition, texts in questions.items():
        picks = [router.pick(text) for text in texts]
        adapters["router", condition] = [a for pick in picks for a in zoo[pick][:n]]
        for method, network in networks.items():
            count = 1 if network.network.diffusion is None else samples
            adapters[method, condition] = [
                adapter for text in texts for adapter in network.generate(text, plan.base, count)
            ]
    return adapters


def _scored(
    task: Task,
    model: BaseModel,
    adapters: Mapping[tuple[str, str], Sequence[dict]],
    source: str,
    n: int,
) -> list[dict]:
    """The rows of a task in the table of `compare_methods`."""
    rows, scores, likelihoods = full_rows(task, source).validation[:n], {}, {}
    answered = model.scoring_kind(task) != "answer"
    unique = {id(a): a for part in adapters.values() for a in part}  # the router picks from the zoo
    scored = evaluate(model, task, rows, list(unique.values()), write=False)
    outcome_of = dict(zip(unique, scored, strict=True))
    for key, tensors in adapters.items():
        outcomes = [outcome_of[id(tensor)] for tensor in tensors]
        likelihoods[key] = np.mean([outcome.likelihood for outcome in outcomes])
        if answered:
            correct = torch.stack([outcome.correct.float() for outcome in outcomes])
            scores[key] = 100 * correct.mean(0).numpy()  # [items]
    table = []
    for (method, condition), likelihood in likelihoods.items():
        line = {"base": model.name, "task": task.name, "method": method, "text": condition}
        if answered:
            mine, trained = scores[method, condition], scores["trained", "none"]
            line |= {"accuracy": mine.mean()}
            line |= {"stderr": (mine - trained).std() / len(mine) ** 0.5}
        table.append(line | {"likelihood": likelihood})
    return table


def configured(
    scale: str, changes: Sequence[str], network: Sequence[str], experiment: str = "language"
) -> through_base.ThroughBase:
    """The preset of a scale with changes written as NAME=VALUE.

    Args:
        scale: of the preset.
        changes: of `ThroughBaseConfig`, or of `tasks` and `rows`.
        network: of `GeneratorConfig`.
        experiment: of the preset.

    Raises:
        UsageError: an unknown name.
    """
    preset = through_base.preset(scale, experiment)
    numbers = assigned(changes)
    sizes = {name: numbers.pop(name) for name in ("tasks", "rows") if name in numbers}
    if unknown := numbers.keys() - {f.name for f in fields(ThroughBaseConfig)}:
        raise UsageError(f"--set {sorted(unknown)[0]}: there is no such field of the training.")
    training = replace(preset.training, **numbers)
    return replace(preset, training=training, network=assigned(network), **sizes)


def assigned(changes: Sequence[str]) -> dict[str, Any]:
    """Values by name of options NAME=VALUE: numbers where they are numbers, else words.

    >>> assigned(["lr=1e-3", "steps=200", "shared=added"])
    {'lr': 0.001, 'steps': 200, 'shared': 'added'}
    """
    return {name: _value(text) for name, _, text in (each.partition("=") for each in changes)}


def _value(text: str) -> Any:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def main(arguments: Sequence[str] | None = None) -> pd.DataFrame | None:
    """Runs one step; returns the table of the step "compare"."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--source", required=True, help="of rows and models")
    add("--root", type=Path, default=Path("runs/development"), help="folder of zoo and networks")
    add("--scale", default="lab", help="of the presets and the plan")
    add("--bases", default="minilm-l6,smollm2-135m")
    add("--tasks", default="", help="names, separated by commas; default: all")
    add("--zoo-seeds", type=int, default=4)
    add("--weights-steps", type=int, default=2000, help="of generator and regression")
    add("--step", choices=("prepare", "compare"), default="compare")
    add("--name", default="trial", help="of the network trained through the base models")
    add("--set", nargs="*", default=[], metavar="NAME=VALUE", help="steps, lr, tasks, rows, ...")
    add("--network", nargs="*", default=[], metavar="NAME=VALUE", help="shared=added, ...")
    add("--validation-rows", type=int, default=300)
    add("--samples", type=int, default=4)
    args = parser.parse_args(arguments)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    began = time.perf_counter()
    tasks = [name for name in args.tasks.split(",") if name]
    plans = plans_of(args.bases.split(","), tasks, args.zoo_seeds, args.scale, args.source)
    place = {"source": args.source, "root": args.root, "device": device}
    if args.step == "prepare":
        train_zoo_and_networks(plans, scale=args.scale, steps=args.weights_steps, **place)
        name = devices.device_name(torch.device(device))
        print(f"prepared in {time.perf_counter() - began:.0f} s on {name}")
        return None
    preset = configured(args.scale, args.set, args.network)
    job = GeneratorJob(kind="through_base", split=args.name)
    folder = through_base.train_from_weights(
        plans, job, scale=args.scale, configured=preset, start=GENERATOR.name, **place
    )
    trained = time.perf_counter() - began
    names = {
        "generated": "generator",
        "regression": "regression",
        "generated_through_base": folder.name,
    }
    networks = {
        method: Generator.from_pretrained(args.root / name, device, source=args.source)
        for method, name in names.items()
    }
    sizes = {"rows": args.validation_rows, "samples": args.samples}
    table = compare_methods(plans, networks, **sizes, **place)
    losses = storage.read_json(folder / "manifest.json")["losses"]
    ends = np.mean(losses[:20]), np.mean(losses[-20:])
    table.to_csv(folder / "validation.csv", index=False)
    show(table)
    print(f"{len(losses)} steps, loss {ends[0]:.3f} to {ends[1]:.3f}; training {trained:.0f} s")
    return table


def show(table: pd.DataFrame) -> None:
    """Prints accuracy and likelihood, a column for each method and text, and paired differences."""
    columns = ["method", "text"]
    order = dict.fromkeys(map(tuple, table[columns].itertuples(index=False)))
    for value in ("accuracy", "stderr", "likelihood"):
        wide = table.pivot_table(value, ["base", "task"], columns, sort=False)
        wide = wide[[key for key in order if key in wide]]
        wide.columns = [f"{method.removeprefix('generated_')} {text}" for method, text in wide]
        wide.index = [" ".join(key) for key in wide.index]
        wide.loc["mean"] = wide.mean()
        print(f"\n{value}\n{wide.T.round(3 if value == 'likelihood' else 1).to_string()}")


if __name__ == "__main__":
    main()
