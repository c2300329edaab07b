"""Benchmarks of the hot paths, compared with a plain implementation and the limit of the hardware.

Warm-up, then the median of repeated runs, synchronised before and after. On a CPU only ratios
within one run are stored: absolute CPU times depend on other processes of the machine.
"""

import copy
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from statistics import median

import pandas as pd
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity
from torch.profiler import profile as profiler
from transformers import get_linear_schedule_with_warmup

from oral_lib import devices
from oral_lib.evaluation import scoring
from oral_lib.experiments import generators
from oral_lib.generator import Generator
from oral_lib.lora import peft_model, stacked
from oral_lib.method import tokenization
from oral_lib.method.recurrence import ssd, ssd_ref
from oral_lib.method.tokenization import Layout
from oral_lib.method.training.tokens import StepDraw, Trainer, TrainingConfig, step_loss
from oral_lib.method.training.training_set import TrainingSet
from oral_lib.models.base import BaseModel
from oral_lib.provenance import code_commit
from oral_lib.tasks.rows import Split
from oral_lib.tasks.task import Task
from oral_lib.zoo.batches import StackBatches, batches, noise_indices
from oral_lib.zoo.recipes import Recipe
from oral_lib.zoo.training import AdapterJob, StackStep

REPEATS = 9
CASE = Recipe(steps=400, batch=16, lr=1e-3)  # of the adapters in `zoo_rows`


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
    """[b, l, k] as `tokenization.encode`, one token after the other."""
    rows = []
    for adapter in adapters:
        row = []
        for name in layout.names:
            for piece in adapter[name].flatten().split(layout.k):
                row.append(torch.nn.functional.pad(piece.float(), (0, layout.k - len(piece))))
        rows.append(torch.stack(row))
    return torch.stack(rows)


def train_plain(
    base: BaseModel, run: AdapterJob, data: dict[str, Split]
) -> tuple[dict[str, Tensor], list[float]]:
    """(adapter, losses) of one run, trained with PEFT, torch and transformers only."""
    recipe, rows = run.recipe, data[run.task.name].train
    with base.attach() as model:
        trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
        parameters = list(trained.values())
        lora_a = [p for n, p in trained.items() if ".lora_A" in n]
        others = [p for n, p in trained.items() if ".lora_A" not in n]
        groups = [{"params": lora_a, "lr": recipe.lr / recipe.ratio}, {"params": others}]
        optimizer = torch.optim.AdamW(groups, lr=recipe.lr, weight_decay=0.0)
        warmup = round(recipe.warmup * recipe.steps)
        schedule = get_linear_schedule_with_warmup(optimizer, warmup, recipe.steps)
        core, answer_ids = model.get_base_model(), base.answer_ids(run.task)
        kind, losses = base.scoring_kind(run.task), []
        indices = batches(rows, recipe.batch, run.seed, mixed=kind == "match")
        noise = noise_indices(base, recipe.batch, run.seed) if kind == "style" else None
        for _ in range(recipe.steps):
            chosen = [rows[i] for i in next(indices)]
            answer = next(noise) if noise else [row.label for row in chosen]
            answer = torch.as_tensor(answer, device=base.device)
            batch = base.encode_rows(run.task, chosen)
            ids = answer_ids.expand(len(chosen), -1)
            loss = scoring.losses(core, base, kind, batch, answer, ids).mean()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, recipe.clip)
            optimizer.step()
            schedule.step()
            losses.append(loss.detach())
        return peft_model.take(model), torch.stack(losses).tolist()


def pairs(model: Generator, base: str) -> Iterator[tuple[str, int, Callable, Callable, Callable]]:
    """(benchmark, values, ours, plain, limit) of each hot path on the layout of `base`.

    The limit of moving values is one copy of the values. The limit of a network is a square matrix
    product with as many operations.
    """
    network = model.network
    entry, device = network.bases[base], network.device
    layout, b = entry.layout, 8
    values = entry.statistics.denormalise(torch.zeros(b, *entry.mask.shape, device=device))
    adapters = tokenization.decode(layout, values)
    count = b * sum(layout.sizes)
    yield (
        "encode",
        count,
        lambda: tokenization.encode(layout, adapters, device),
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
    yield _training_pair(model, base)
    noise = torch.randn(b, layout.l, model.config.size, **size)
    c = torch.randn(b, model.config.width, **size)
    flops = network.denoiser.flops_per_token() * b * layout.l * model.sampling.steps
    side = round((flops / 2) ** (1 / 3))
    square = torch.randn(side, side, device=device)
    yield (
        "sample",
        count,
        lambda: network.sample(base, c, noise, model.sampling),
        lambda: [
            network.sample(base, c[i : i + 1], noise[i : i + 1], model.sampling) for i in range(b)
        ],
        lambda: square @ square,
    )


def _training_pair(model: Generator, base: str) -> tuple[str, int, Callable, Callable, Callable]:
    """A training step of a generator on one base model, and one that computes its conditions one
    after the other; the limit is the denoiser's matrix products in three passes."""
    network = model.network
    device, entry = network.device, network.bases[base]
    config = generators.LAB if device.type == "cuda" else TrainingConfig()
    size = {"device": device, "generator": torch.Generator(device).manual_seed(0)}
    tokens = torch.randn(config.draws, *entry.mask.shape, **size) * entry.mask.to(device)
    texts = torch.randn(1, 2, entry.structure.shape[0], **size)
    members = torch.arange(config.draws, device=device)[None]
    data = {base: TrainingSet(tokens, members, texts, entry.layout, entry.statistics)}
    ours, plain = (Trainer(copy.deepcopy(network), data, config, device) for _ in range(2))
    draws, length = config.rows(entry.layout.l)

    def one_by_one() -> Tensor:
        plain.model.zero_grad(set_to_none=True)
        plain.optimizer.set_rates(config.lr_at(0), config.average_rate(0))
        total = torch.zeros((), device=device)
        step = StepDraw.of(plain.model, base, data[base], config, 0)
        for i in range(config.conditions):
            draw = step.part(i)
            with torch.autocast(device.type, torch.bfloat16, enabled=plain.half):
                loss = step_loss(plain.model, plain.data, {base: draw})
            (loss / config.conditions).backward()
            total += loss.detach() / config.conditions
        plain.optimizer.update()
        return total

    values = config.conditions * draws * length * model.config.size
    flops = 3 * network.denoiser.flops_per_token() * config.conditions * draws * length
    side = round((flops / 2) ** (1 / 3))
    dtype = torch.bfloat16 if ours.half else torch.float32
    square = torch.randn(side, side, device=device, dtype=dtype)
    return "train generator", values, lambda: ours.step(0), one_by_one, lambda: square @ square


def rows(model: Generator, base: str, repeats: int = REPEATS) -> list[dict]:
    """Rows of benchmarks.csv: speed over the plain implementation and share of the limit, on a GPU
    also times."""
    device = model.network.device
    table = []
    for benchmark, count, *calls in pairs(model, base):
        times = dict(
            zip(
                ("ours", "plain", "limit"),
                (seconds(c, device, repeats) for c in calls),
                strict=True,
            )
        )
        numbers = [
            ("ours", "speed over plain", times["plain"] / times["ours"], "ratio"),
            ("ours", "share of limit", times["limit"] / times["ours"], "ratio"),
        ]
        if device.type == "cuda":
            numbers += [(variant, "time", 1e3 * t, "ms") for variant, t in times.items()]
        table += [
            timing_row(benchmark, base, count, repeats, device, *number) for number in numbers
        ]
    return table


def zoo_rows(
    base: BaseModel, task: Task, data: Split, sizes: Sequence[int] = (), *, width: int = 64
) -> list[dict]:
    """Rows of benchmarks.csv: a step that trains S adapters at once, and a step of PEFT's loop.

    A batch is 16 rows of `width` tokens, with LoRA on all linear layers; or 16 images, with texts
    for models of both, with LoRA on the base model's own targets. The limit is the measured peak of
    matrix products. Operations are counted as two passes of the frozen weights, which get no
    gradient, and three of LoRA. An adapter takes 400 steps; set-up (compilation, graphs) is a row
    of its own.

    Args:
        base: the base model.
        task: a task whose rows are longer than `width` tokens, or have images.
        data: its rows.
        sizes: numbers of adapters S; default: 1 to 64 on a GPU, 1 and 4 on a CPU.
        width: tokens of a row.
    """
    device, on_gpu = base.device, base.device.type == "cuda"
    sizes = sizes or ((1, 2, 4, 8, 16, 32, 64) if on_gpu else (1, 4))
    repeats, case = 5 if on_gpu else 3, f"{base.name}, {', '.join(base.spec.targets)}"
    if base.reads == "texts":
        case = f"{base.name}, all linear layers"
    base, task, rows = _case(base, task, data, width)
    recipe, batch = CASE, CASE.batch
    values = sum(v.numel() for v in base.lora_init().values())
    flops = batch * _operations(base, width)
    peak, block = _peak(base), 10 if on_gpu else 2

    def plain(steps: int) -> float:
        run = AdapterJob(task, 0, replace(recipe, steps=steps))
        return seconds(lambda: train_plain(base, run, rows), device, repeats)

    plain_time = (plain(3 * block) - plain(block)) / (2 * block)  # without set-up
    table = []

    def add(variant: str, count: int, step_time: float, size: int, *more: tuple) -> None:
        numbers = [("speed over plain", size * plain_time / step_time, "ratio")]
        numbers += [("share of limit", size * flops / step_time / peak, "ratio")]
        if on_gpu:
            numbers += [("time a step", 1e3 * step_time, "ms"), *more]
            numbers += [("adapters an hour", 3600 * size / (recipe.steps * step_time), "1/h")]
        table.extend(
            timing_row("train LoRAs", case, count, repeats, device, variant, *number)
            for number in numbers
        )

    add("plain", values, plain_time, 1)
    for size in sizes:
        began = time.perf_counter()
        with _stepping(base, task, rows, size, block) as steps:
            steps()
            if on_gpu:
                torch.cuda.synchronize(device)
                torch.cuda.reset_peak_memory_stats(device)
            set_up = time.perf_counter() - began
            step_time = seconds(steps, device, repeats) / block
        memory = torch.cuda.max_memory_reserved(device) / 2**30 if on_gpu else 0.0
        more = ("set-up", set_up, "s"), ("memory", memory, "GiB")
        add(f"{size} at once", size * values, step_time, size, *more)
        del steps
        if on_gpu:
            torch.cuda.empty_cache()
    if on_gpu:
        table.append(timing_row("matrix product", "8192 cubed, bfloat16", 8192**2, repeats, device,
                          "limit", "speed", peak / 1e12, "TFLOP/s"))  # fmt: skip
    return table


def _case(base: BaseModel, task: Task, data: Split, width: int):
    """(base, task, rows by task) of `zoo_rows`: the longest rows. For a model of text only they are
    cut to `width` tokens, and LoRA is on all linear layers."""
    if base.reads == "texts":
        spec = replace(base.spec, targets=base.linears)
        base = type(base)(spec, base.model, base.tokenizer)
        task = replace(task, max_tokens=width)
    longest = sorted(data.train, key=lambda row: -len(row.text))[: 16 * CASE.batch]
    return base, task, {task.name: replace(data, train=tuple(longest))}


@contextmanager
def _stepping(base: BaseModel, task: Task, rows: dict[str, Split], size: int, steps: int):
    """A function that trains `size` adapters at once for `steps` steps, as a zoo does."""
    jobs = [(task, seed) for seed in range(size)]
    stack_batches = StackBatches.of(base, jobs, rows, steps=steps, batch=CASE.batch)
    trainer = StackStep(base, size, stack_batches, CASE)
    lr, start = torch.full((size,), CASE.lr, device=base.device), base.lora_init()

    def call() -> None:
        for i in range(steps):
            trainer.step(stack_batches, i, lr)

    with (
        stacked.compiled(base.model),
        stacked.attached(
            base.model, trainer.begin(start, stack_batches), base.spec.alpha / base.spec.rank
        ),
    ):
        yield call


def profile(
    base: BaseModel, task: Task, data: Split, size: int = 32, steps: int = 5, *, width: int = 64
) -> pd.DataFrame:
    """The time of a training step of `zoo_rows` by kernel, longest first; on a CPU by operator.

    The columns are kernel, ms_a_step and kernels_a_step, measured by torch's profiler over `steps`
    steps after as many warm-up steps.

    Args:
        base: the base model.
        task: a task with long rows.
        data: its rows.
        size: adapters trained at once.
        steps: profiled steps.
        width: tokens of a row.
    """
    on_gpu = base.device.type == "cuda"
    activity = ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU
    with _stepping(*_case(base, task, data, width), size, steps) as call:
        call()
        with profiler(activities=[activity]) as profiled:
            call()
            if on_gpu:
                torch.cuda.synchronize(base.device)
    time_name = "self_device_time_total" if on_gpu else "self_cpu_time_total"  # microseconds
    table = [
        {
            "kernel": event.key,
            "ms_a_step": round(getattr(event, time_name) / 1e3 / steps, 4),
            "kernels_a_step": event.count / steps,
        }
        for event in profiled.key_averages()
        if getattr(event, time_name)
    ]
    return pd.DataFrame(table).sort_values("ms_a_step", ascending=False, ignore_index=True)


def _operations(base: BaseModel, width: int) -> int:
    """Operations of a training step on one row with `width` tokens of text.

    The frozen weights take part in two passes (they get no gradient), LoRA in three.
    """
    frozen, lora = base.forward_flops(width)
    return 2 * frozen + 3 * lora


def _peak(base: BaseModel) -> float:
    """Measured operations a second of a large square matrix product in the dtype of `base`."""
    side = 8192 if base.device.type == "cuda" else 1024
    square = torch.randn(side, side, device=base.device, dtype=next(base.model.parameters()).dtype)
    return 2 * side**3 / seconds(lambda: square @ square, base.device)


def timing_row(
    benchmark: str, case: str, values: int, repeats: int, device: torch.device,
    variant: str, metric: str, value: float, unit: str,
) -> dict:  # fmt: skip
    return {
        "benchmark": benchmark, "variant": variant, "case": case, "values": values,
        "metric": metric, "value": value, "unit": unit, "repeats": repeats,
        "device": devices.device_name(device), "commit": code_commit(),
    }  # fmt: skip
