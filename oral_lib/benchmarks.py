"""Benchmarks of the hot paths: each beside the plain way and, on a GPU, the limit of the machine.

Warm-up, then the median of repeated runs with a synchronise on both sides. On a CPU only ratios of
one run are kept: absolute CPU times say more about the machine's other work than about the code.
"""

import time
from collections.abc import Callable, Iterator
from statistics import median

import torch
from torch import Tensor

from oral_lib import tokens
from oral_lib.generator import Generator
from oral_lib.provenance import code_commit
from oral_lib.recurrence import ssd, ssd_ref
from oral_lib.tokens import Layout

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
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
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
        found += [
            {
                "benchmark": benchmark, "variant": variant, "case": base, "values": count,
                "metric": metric, "value": value, "unit": unit, "repeats": repeats,
                "device": name, "commit": code_commit(),
            }
            for variant, metric, value, unit in measured
        ]  # fmt: skip
    return found
