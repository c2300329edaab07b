"""The bytes of a generator's file and of its zoo, and what compression changes.

    python -c "from oral_lib.experiments.studies import file_sizes as f; print(f.size_table('lab'))"

Sizes depend on layouts and numbers of adapters only, so `size_table` trains nothing: it saves a
generator of random adapters. `change_table` compares the answers of a generator's adapters
before and after its network is compressed; it trains the generator first.
"""

import copy
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import pandas as pd
import torch

from oral_lib import paths, scales, seeds
from oral_lib.evaluation.evaluate import evaluate
from oral_lib.experiments import generators
from oral_lib.experiments.records import EXPERIMENTS
from oral_lib.generator import Generator
from oral_lib.lora import distances
from oral_lib.method.conditioning import FINGERPRINT
from oral_lib.method.config import GeneratorConfig
from oral_lib.method.model import ORAL
from oral_lib.method.stored import compression
from oral_lib.method.tokenization import Layout
from oral_lib.method.training.tokens import train
from oral_lib.method.training.training_set import TrainingSet
from oral_lib.models import loading, registry, two_tower
from oral_lib.models.base import BaseModel
from oral_lib.scales import BasePlan
from oral_lib.tasks.rows import Row, task_rows
from oral_lib.tasks.task import Task, load_task
from oral_lib.zoo import store

EMBEDDING = 384  # numbers of the default text encoder
DATA_SOURCES = ("packages", "local:data")  # of the published results


def size_table(
    scale: str, names: Sequence[str] = (), sources: Sequence[str] = DATA_SOURCES
) -> pd.DataFrame:
    """Bytes of the generator and of the zoo of each experiment and source.

    The columns are experiment, source, adapters, values (numbers of all adapters), zoo_fp32,
    zoo_fp16 and generator (all files that `Generator.save_pretrained` writes).

    Args:
        scale: of the plan; its base models are read from the cache.
        names: experiments; default: all of the scale whose generator learns from a zoo.
        sources: of its data; `desk` and `smoke` have only the first.

    Raises:
        PreflightError: a base model is not in the cache.
    """
    rows = []
    for source in sources if scale == "lab" else sources[:1]:
        planned = scales.experiments(scale, source)
        for experiment in names or [n for n in planned if not EXPERIMENTS[n].has_splits]:
            plans = scales.base_plans(scale, source, experiment)
            counts = [len(plan.tasks) * plan.zoo_seeds for plan in plans]
            configured = EXPERIMENTS[experiment].preset(scale, scales.GENERATOR)
            network = random_network(configured.network, plans)
            values = sum(
                count * sum(network.bases[plan.base].layout.sizes)
                for count, plan in zip(counts, plans, strict=True)
            )
            about = {"experiment": experiment, "source": paths.slug(source)}
            about |= {"adapters": sum(counts)}
            about |= {"values": values, "zoo_fp32": 4 * values, "zoo_fp16": 2 * values}
            rows.append(about | {"generator": saved_bytes(Generator(network))})
    return pd.DataFrame(rows)


def saved_bytes(generator: Generator) -> int:
    """Bytes of the folder that `generator` is saved to."""
    with tempfile.TemporaryDirectory() as folder:
        generator.save_pretrained(folder)
        return sum(path.stat().st_size for path in Path(folder).iterdir())


def random_network(config: GeneratorConfig, plans: Iterable[BasePlan]) -> ORAL:
    """An untrained network of `config`, for zoos of random adapters."""
    entries = {}
    for plan in plans:
        start = _base(plan.base).lora_init()
        layout, stream = Layout.of(start, config.k), seeds.generator(0, "sizes", plan.base)
        zoo = [
            {n: t + 0.1 * torch.randn(t.shape, generator=stream) for n, t in start.items()}
            for _ in range(len(plan.tasks) * plan.zoo_seeds)
        ]
        texts = {task: torch.zeros(1, EMBEDDING) for task in plan.tasks}
        tasks = [task for task in plan.tasks for _ in range(plan.zoo_seeds)]
        data = TrainingSet.of(layout, start, zoo, tasks, texts, config)
        entries[plan.base] = data.base(torch.zeros(EMBEDDING), torch.zeros(FINGERPRINT))
    return ORAL(config, entries)


def change_table(root: Path, scale: str, rows: int, samples: int) -> pd.DataFrame:
    """`change_rows` of each cell of the language experiment, on validation rows.

    The generator is trained first, because a run keeps only the compressed network.

    Args:
        root: folder of a run from source "packages", with its zoo.
        scale: of the run.
        rows: validation rows of a task.
        samples: adapters of a task.
    """
    zoo = [store.read(root, *member) for member in scales.members(scale, "packages")]
    plans, preset = scales.base_plans(scale), generators.preset(scale)
    facts = {plan.base: store.stored_facts(root, plan.base, "packages") for plan in plans}
    options = {"sampling": preset.sampling, "facts": facts, "seed": preset.training.seed}
    untrained, data = generators.assemble(preset.network, zoo, **options)
    network, _ = train(untrained.network, data, preset.training)
    generator = Generator(network, sampling=preset.sampling, encoder=untrained.encoder)
    table = []
    for plan in plans:
        base = loading.load(plan.base)
        for task in map(load_task, plan.tasks):
            chosen = task_rows(task, "packages").validation[:rows]
            table += change_rows(generator, base, task, chosen, samples)
    return pd.DataFrame(table)


def change_rows(
    generator: Generator, base: BaseModel, task: Task, rows: Sequence[Row], samples: int
) -> list[dict]:
    """What less precision changes in the generated adapters of one cell.

    A row has base, task, rows, samples, variant, accuracy (percent), and the differences from the
    exact network: points of accuracy, changed (predictions that differ) and distance
    (||dW - dW'|| / ||dW||, the largest of the samples). The variants are "exact", "half" (every
    tensor rounded to float16) and "compressed".

    Args:
        generator: its network is not compressed.
        base: the base model.
        task: the task; its description is the text.
        rows: labelled rows.
        samples: adapters.
    """
    networks = {
        "exact": generator.network,
        "half": _half(generator.network),
        "compressed": compression.compressed(generator.network),
    }
    config, start, table = generator.bases[base.name].peft_config, base.lora_init(), []
    for variant, network in networks.items():
        sampler = Generator(network, sampling=generator.sampling, encoder=generator.encoder)
        adapters = sampler.generate(task.description, base.name, samples)
        outcomes = list(evaluate(base, task, rows, adapters))
        accuracy = 100 * sum(o.correct.float().mean().item() for o in outcomes) / samples
        if variant == "exact":
            exact, expected, reference = adapters, outcomes, accuracy
        table.append(
            {
                "base": base.name,
                "task": task.name,
                "rows": len(rows),
                "samples": samples,
                "variant": variant,
                "accuracy": accuracy,
                "points": accuracy - reference,
                "changed": sum(
                    int((a.predicted != b.predicted).sum())
                    for a, b in zip(outcomes, expected, strict=True)
                ),
                "distance": max(
                    distances.distance(a, b, config).total
                    / distances.distance(b, start, config).total
                    for a, b in zip(adapters, exact, strict=True)
                ),
            }
        )
    return table


@torch.no_grad()
def _half(network: ORAL) -> ORAL:
    """A copy of `network` whose values are rounded to float16."""
    rounded = copy.deepcopy(network)
    for tensor in rounded.state_dict().values():
        tensor.copy_(tensor.half())
    return rounded


def _base(name: str) -> BaseModel:
    """The base model `name` or, as that has the same adapters, the model it is made of."""
    spec = registry.spec(name)
    if not spec.alignment:
        return loading.load(registry.lineage(name)[0].name)
    image = loading.load(spec.alignment.image)
    text = loading.load(spec.alignment.text, words=spec.family)
    with tempfile.TemporaryDirectory() as folder:
        two_tower.write_config(Path(folder), spec, image, text)
        return two_tower.from_released(Path(folder), spec, image, text)
