"""How fast a generator is trained through a base model, next to the training of a zoo.

Both steps read the same rows under S adapters. The step of a zoo also updates the S adapters. The
other step writes them with a network, whose gradient and update it adds. The aim is 70% of the
zoo's steps a second.

Letters: S adapters of a step, n rows of an adapter, v values of an adapter.
"""

from contextlib import nullcontext
from dataclasses import replace

import torch

from oral_lib.experiments.benchmarks import seconds, timing_row
from oral_lib.experiments.intents import writer
from oral_lib.experiments.intents.adapters import StackTraining
from oral_lib.experiments.intents.batches import StreamBatches
from oral_lib.experiments.intents.messages import MessageTable
from oral_lib.experiments.intents.methods.from_text import Embedder
from oral_lib.experiments.intents.stream import TaskStream
from oral_lib.lora import stacked
from oral_lib.method.training.through_base import ThroughBaseTrainer
from oral_lib.models.base import BaseModel
from oral_lib.models.text_encoder import TextEncoder
from oral_lib.tasks.intents.family import MESSAGE, load_family
from oral_lib.zoo.training import COMPILED

_ZOO = 4  # made adapters: the scale of tensors changes no time
_RATIO = 16.0  # the learning rate of B over that of A, of the zoo


def through_base_rows(base: BaseModel, *, scale: str, source: str) -> list[dict]:
    """Rows of benchmarks.csv for one base model: steps of both kinds at equal S and n.

    On a CPU only the ratio is stored.

    Args:
        base: the base model, on the device.
        scale: a key of `writer.PRESETS`, which sets S, n and the network.
        source: where messages and text encoder are read from.
    """
    device, on_gpu = base.device, base.device.type == "cuda"
    repeats, block = (5, 20) if on_gpu else (3, 2)
    preset = writer.PRESETS[scale]
    training = replace(preset.training, steps=block)
    stream = TaskStream.of(load_family(source, scale), mixture=preset.mixture)
    drawn = stream.steps(block, preset.tasks, preset.rows, writer.MOST_EXAMPLES)
    table = MessageTable.of(base, stream.messages, MESSAGE)
    widths = [table.width(rows) for rows in drawn.rows]
    start = base.lora_init()
    zoo = StackTraining(table, start, preset.tasks, preset.rows, clip=1.0, ratio=_RATIO)
    rows, labels = (torch.from_numpy(part.copy()).to(device) for part in (drawn.rows, drawn.labels))
    rate = torch.full((preset.tasks,), 1e-4, device=device)

    def zoo_steps() -> None:
        for i in range(block):
            zoo.step(rows[i], labels[i], rate, widths[i])

    encoder = TextEncoder(preset.network.text_encoder, source=source)
    texts = Embedder(encoder, device)(stream.all_texts).to(device)
    adapters = zoo.stack.values[:1].cpu() + 0.02 * torch.randn(_ZOO, zoo.stack.values.shape[1])
    entry = writer.entry_of(base, preset.network, adapters, encoder, preset.wider_a)
    network = writer.initial_network(preset.network, {base.name: entry}, 0)
    batches = StreamBatches(table, drawn, texts, preset.network.examples)
    trainer = ThroughBaseTrainer(network, {base.name: batches}, training, device)

    def generator_steps() -> None:
        for i in range(block):
            trainer.step(i)

    measured = {}
    ways = {"zoo": (zoo.stack, zoo_steps), "through base": (batches.stack, generator_steps)}
    compiled = stacked.compiled(base.model) if base.weights > COMPILED else nullcontext()
    with compiled:
        for name, (stack, steps) in ways.items():
            before = 0
            if on_gpu:
                torch.cuda.empty_cache()
                before = torch.cuda.memory_reserved(device)
            with stacked.attached(base.model, stack, base.spec.alpha / base.spec.rank):
                steps()
                steps()  # the second time of a width is captured
                time = seconds(steps, device, repeats) / block
                after = torch.cuda.memory_reserved(device) if on_gpu else 0
                measured[name] = time, after - before
    values = zoo.stack.values.numel()
    case = f"{base.name}, {preset.tasks} adapters x {preset.rows} rows"
    about = "train through base", case, values, repeats, device
    ratio = measured["zoo"][0] / measured["through base"][0]
    table_rows = [timing_row(*about, "through base", "speed over the zoo's step", ratio, "ratio")]
    if on_gpu:
        for name, (time, peak) in measured.items():
            table_rows.append(timing_row(*about, name, "time a step", 1e3 * time, "ms"))
            table_rows.append(timing_row(*about, name, "memory", peak / 2**30, "GiB"))
    return table_rows
