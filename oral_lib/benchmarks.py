"""Benchmarks of the hot paths: each beside the plain way and, on a GPU, the limit of the machine.

Warm-up, then the median of repeated runs with a synchronise on both sides. On a CPU only ratios of
one run are kept: absolute CPU times say more about the machine's other work than about the code.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from statistics import median

import torch
from torch import Tensor, nn
from transformers import get_linear_schedule_with_warmup

from oral_lib import bases, feed, scoring, tokens, zoo
from oral_lib.bases import BaseModel
from oral_lib.feed import Feed
from oral_lib.generator import Generator
from oral_lib.provenance import code_commit
from oral_lib.recipes import default
from oral_lib.recurrence import ssd, ssd_ref
from oral_lib.tasks import Split, Task
from oral_lib.tokens import Layout
from oral_lib.zoo import Run

REPEATS = 9


def seconds(call: Callable[[], object], device: torch.device, repeats: int = REPEATS) -> float:
    """Median seconds of `call` after two warm-up runs, synchronised."""

    def once() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        began = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - began

    for _ in range(2):
        once()
    return median(once() for _ in range(repeats))


def encode_plain(layout: Layout, adapters: list[dict[str, Tensor]]) -> Tensor:
    """[b, l, k] as `tokens.encode`, one token after the other: the plain way."""
    rows = []
    for adapter in adapters:
        row = []
        for name in layout.names:
            for piece in adapter[name].flatten().split(layout.k):
                row.append(torch.nn.functional.pad(piece.float(), (0, layout.k - len(piece))))
        rows.append(torch.stack(row))
    return torch.stack(rows)


def train_plain(
    base: BaseModel, run: Run, data: dict[str, Split]
) -> tuple[dict[str, Tensor], list[float]]:
    """(adapter, losses) of one run trained by PEFT, torch and transformers alone: the plain way."""
    recipe, rows = run.recipe, data[run.task.name].train
    with base.attach() as model:
        weights = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(weights, lr=recipe.lr, weight_decay=0.0)
        warmup = round(recipe.warmup * recipe.steps)
        schedule = get_linear_schedule_with_warmup(optimizer, warmup, recipe.steps)
        stream, losses = feed.batches(rows, recipe.batch, run.seed), []
        core, words = model.get_base_model(), scoring.words(base, run.task)
        how = scoring.way(base, run.task)
        for _ in range(recipe.steps):
            chosen = [rows[i] for i in next(stream)]
            answer = torch.tensor([row.label for row in chosen], device=base.device)
            batch = scoring.read(base, run.task, chosen)
            asked = words.expand(len(chosen), -1)
            loss = scoring.losses(core, base, how, batch, answer, asked).mean()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(weights, recipe.clip)
            optimizer.step()
            schedule.step()
            losses.append(loss.detach())
        return bases.take(model), torch.stack(losses).tolist()


def pairs(model: Generator, base: str) -> Iterator[tuple[str, int, Callable, Callable, Callable]]:
    """(benchmark, values, ours, plain, limit) of each hot path on the layout of `base`.

    The limit of moving values is one copy of them; that of a network is the largest square matrix
    product that takes as many operations.
    """
    known, device = model.known[base], model.kind.weight.device
    layout, b = known.layout, 8
    values = known.statistics.denormalise(torch.zeros(b, layout.l, layout.k, device=device))
    adapters = tokens.decode(layout, values)
    count = b * sum(layout.sizes)
    yield (
        "encode",
        count,
        lambda: tokens.encode(layout, adapters, device),
        lambda: encode_plain(layout, adapters),
        lambda: values.clone(),
    )
    size = {"device": device, "generator": torch.Generator(device).manual_seed(0)}
    h, p, n = 8, 64, model.config.recurrence.state
    x, dt = torch.randn(b, layout.l, h, p, **size), torch.rand(b, layout.l, h, **size)
    a = -torch.rand(h, **size)
    left, right = (torch.randn(b, layout.l, n, **size) for _ in range(2))
    yield (
        "state-space duality",
        x.numel(),
        lambda: ssd(x, dt, a, left, right),
        lambda: ssd_ref(x, dt, a, left, right),
        lambda: x.clone(),
    )
    noise = torch.randn(b, layout.l, model.config.k, **size)
    c = torch.randn(b, model.config.width, **size)
    flops = model.denoiser.flops_per_token() * b * layout.l * model.config.sampling_steps
    side = round((flops / 2) ** (1 / 3))
    square = torch.randn(side, side, device=device)
    yield (
        "sample",
        count,
        lambda: model.sample(base, c, None, noise),
        lambda: [model.sample(base, c[i : i + 1], None, noise[i : i + 1]) for i in range(b)],
        lambda: square @ square,
    )


def rows(model: Generator, base: str, repeats: int = REPEATS) -> list[dict]:
    """Rows for benchmarks.csv: speed over the plain way and share of the limit; times on a GPU."""
    device = model.kind.weight.device
    found = []
    for benchmark, count, *calls in pairs(model, base):
        took = dict(
            zip(
                ("ours", "plain", "limit"),
                (seconds(c, device, repeats) for c in calls),
                strict=True,
            )
        )
        measured = [
            ("ours", "speed over plain", took["plain"] / took["ours"], "ratio"),
            ("ours", "share of limit", took["limit"] / took["ours"], "ratio"),
        ]
        if device.type == "cuda":
            measured += [(variant, "time", 1e3 * t, "ms") for variant, t in took.items()]
        found += [_row(benchmark, base, count, repeats, device, *one) for one in measured]
    return found


def zoo_rows(
    base: BaseModel, task: Task, data: Split, sizes: Sequence[int] = (), steps: int = 16
) -> list[dict]:
    """Rows for benchmarks.csv: training adapters at once (1 and 4; on a GPU 1 to 64), beside PEFT.

    The limit is the largest square matrix product that takes as many operations as the frozen
    weights do: two passes, because nothing in the base gets a gradient of its own.
    """
    sizes = sizes or ((1, 4, 8, 16, 32, 64) if base.device.type == "cuda" else (1, 4))
    recipe, device = replace(default(base.name), steps=steps), base.device
    rows = {task.name: replace(data, train=data.train[: 64 * recipe.batch])}
    head = base.model.get_output_embeddings()  # read at one place of a row only
    linear = [m for m in base.model.modules() if isinstance(m, nn.Linear) and m is not head]
    weights = sum(m.weight.numel() for m in linear)
    values = sum(v.numel() for v in base.lora_init().values())
    plain = seconds(lambda: train_plain(base, Run(task, 0, recipe), rows), device, 3)
    found = []
    for size in sizes:
        runs = [Run(task, seed, recipe) for seed in range(size)]
        # after one warm-up, by the trainer's own clock: it waits for the device at its end
        times = [next(zoo.train(base, runs, rows, most=size)).seconds for _ in range(4)]
        took = median(times[1:])
        jobs = [(task, seed) for seed in range(size)]
        widths = Feed.of(base, jobs, rows, steps=steps, batch=recipe.batch).widths
        read = sum(widths) * recipe.batch  # tokens an adapter
        side = round((2 * read * weights) ** (1 / 3))
        square = torch.randn(side, side, device=device, dtype=next(base.model.parameters()).dtype)
        limit = seconds(lambda square=square: square @ square, device)
        measured = [
            ("speed over plain", plain / took, "ratio"),
            ("share of limit", limit / took, "ratio"),
        ]
        if device.type == "cuda":
            measured += [("time a step", 1e3 * took * size / steps, "ms")]
        found += [
            _row("train LoRAs", base.name, size * values, 3, device, f"{size} at once", *one)
            for one in measured
        ]
    return found


def _row(
    benchmark: str, case: str, values: int, repeats: int, device: torch.device,
    variant: str, metric: str, value: float, unit: str,
) -> dict:  # fmt: skip
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    return {
        "benchmark": benchmark, "variant": variant, "case": case, "values": values,
        "metric": metric, "value": value, "unit": unit, "repeats": repeats,
        "device": name, "commit": code_commit(),
    }  # fmt: skip
