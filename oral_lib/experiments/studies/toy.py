"""A toy zoo whose weight changes are drawings, so that a reader sees what a generator produces.

The base model has three linear layers of 8 x 24 weights. The weight changes B A of an adapter, one
below the other, are a drawing of 24 x 24 pixels. A task is a shape; its seeds differ in position
and size. No model is downloaded, and no adapter is trained by gradient descent.

Letters: r rank, n adapters, e size of a text embedding.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from oral_lib import method, seeds
from oral_lib.errors import UsageError, closest
from oral_lib.lora.adapter import Adapter
from oral_lib.models.text_encoder import HashedWords

SIDE, LAYERS, RANK = 24, 3, 4
SHAPE_TEXTS = {  # texts that a generator is trained on, by task
    "ring": ["Draw a ring.", "A circle with an empty middle.", "Please draw one round ring."],
    "cross": [
        "Draw a cross.",
        "Two bars that cross in the middle.",
        "Please draw one plain cross.",
    ],
    "stripes": [
        "Draw stripes.",
        "Slanted bars side by side.",
        "Please draw a few slanted stripes.",
    ],
    "square": ["Draw a square.", "A frame with four corners.", "Please draw one square frame."],
    "dot": ["Draw a dot.", "A spot in the middle, and nothing else.", "Please draw one round dot."],
}
NEW_TEXTS = {  # one further text of each task
    "ring": "I would like a ring with an empty middle.",
    "cross": "I would like a cross of two bars.",
    "stripes": "I would like slanted stripes.",
    "square": "I would like a square with four corners.",
    "dot": "I would like a small dot, a spot.",
}
_PULL = 0.03  # of the initialisation on A: adapters keep one gauge
_ROUNDS = 3  # of alternating least squares
_encoder = HashedWords()


# ---------------------------------------------------------------- the zoo
def drawing(task: str, seed: int) -> Tensor:
    """[24, 24] pixels of a task's shape, about from 0 to 1. UsageError for an unknown task.

    >>> drawing("ring", 0).shape
    torch.Size([24, 24])
    """
    if task not in SHAPE_TEXTS:
        names = ", ".join(SHAPE_TEXTS)
        raise UsageError(
            f"the toy has no task {task!r}.{closest(task, SHAPE_TEXTS)} It has {names}."
        )
    dx, dy, size = 0.07 * torch.randn(3, generator=seeds.generator(seed, "drawing", task))
    axis = torch.linspace(-1, 1, SIDE)
    x, y = (axis - dx) / (1 + size), (axis[:, None] - dy) / (1 + size)
    distance = (x**2 + y**2).sqrt()  # [24, 24]
    return {
        "ring": lambda: _line(distance - 0.6),
        "cross": lambda: torch.maximum(_line(x), _line(y)),
        "stripes": lambda: 0.5 + 0.5 * torch.sin(5 * (x + y)),
        "square": lambda: _line(torch.maximum(x.abs(), y.abs()) - 0.6),
        "dot": lambda: _line(distance / 3),
    }[task]()


def _line(distance: Tensor) -> Tensor:
    """Pixels of a soft line where `distance` is 0."""
    return torch.exp(-((distance / 0.15) ** 2))


def initial_adapter() -> dict[str, Tensor]:
    """The LoRA initialisation that the zoo shares: A random, B zero."""
    adapter = {}
    for layer in range(LAYERS):
        draw = seeds.generator(0, "toy", layer)
        adapter[f"layers.{layer}.lora_A.weight"] = torch.randn(RANK, SIDE, generator=draw) / 5
        adapter[f"layers.{layer}.lora_B.weight"] = torch.zeros(SIDE // LAYERS, RANK)
    return adapter


def adapter(task: str, seed: int) -> dict[str, Tensor]:
    """Factors whose products B A are close to `drawing(task, seed)`.

    Alternating least squares from the shared initialisation, which also pulls on A.
    """
    factors, eye = initial_adapter(), torch.eye(RANK)
    for layer, target in enumerate(drawing(task, seed).chunk(LAYERS)):  # [8, 24]
        initial = a = factors[f"layers.{layer}.lora_A.weight"]  # [r, 24]
        for _ in range(_ROUNDS):
            b = target @ a.mT @ torch.linalg.inv(a @ a.mT + 1e-3 * eye)  # [8, r]
            a = torch.linalg.solve(b.mT @ b + _PULL * eye, b.mT @ target + _PULL * initial)
        factors[f"layers.{layer}.lora_A.weight"] = a
        factors[f"layers.{layer}.lora_B.weight"] = b
    return factors


def zoo(n_seeds: int = 6) -> tuple[list[dict[str, Tensor]], list[str]]:
    """(adapters, their tasks): `n_seeds` of each task."""
    tasks = [task for task in SHAPE_TEXTS for _ in range(n_seeds)]
    numbers = [*range(n_seeds)] * len(SHAPE_TEXTS)
    return [adapter(task, seed) for task, seed in zip(tasks, numbers, strict=True)], tasks


def weight_change(adapter: Adapter) -> Tensor:
    """[24, 24]: B A of the three layers, one below the other."""
    pairs = (
        (adapter[f"layers.{i}.lora_B.weight"], adapter[f"layers.{i}.lora_A.weight"])
        for i in range(LAYERS)
    )
    return torch.cat([b @ a for b, a in pairs])


# ---------------------------------------------------------------- the generator
def embed(texts: Sequence[str]) -> Tensor:
    """[n, e] unit embeddings of texts."""
    return _encoder.encode(texts)


def config(
    recurrence: str = "mamba2", condition: str = "text", objective: str = "x0"
) -> method.GeneratorConfig:
    """The configuration of a network small enough to train in seconds.

    Args:
        recurrence: "mamba2", "lstm", "transformer" or "none".
        condition: "text", or "none": the network never reads the text.
        objective: "x0", "v" or "eps". The last two need the skip connection of the denoiser.

    Raises:
        UsageError: another value.
    """
    if condition not in ("text", "none"):
        raise UsageError(f"condition={condition!r}: use 'text' or 'none'.")
    return method.GeneratorConfig(
        k=32,
        components=16,
        recurrence=method.RecurrenceConfig(recurrence, width=64, state=16, head=32, chunk=16),
        denoiser=method.DenoiserConfig(hidden=128, depth=2, skip=objective != "x0"),
        diffusion=method.DiffusionConfig(objective=objective),
        text_encoder=_encoder.name,
        uses_text=condition == "text",
    )


def toy_model(
    config: method.GeneratorConfig, n_seeds: int = 6, seed: int = 0
) -> tuple[method.ORAL, method.TrainingSet]:
    """(network before training, its training set of `zoo(n_seeds)`); the base model is "toy"."""
    adapters, tasks = zoo(n_seeds)
    layout = method.Layout.of(initial_adapter(), config.k)
    texts = {task: embed(wordings) for task, wordings in SHAPE_TEXTS.items()}
    data = method.TrainingSet.of(layout, initial_adapter(), adapters, tasks, texts, config)
    description = embed(["three linear layers of 8 x 24 weights"])[0]
    weights = {f"layers.{i}": torch.zeros(SIDE // LAYERS, SIDE) + 1 for i in range(LAYERS)}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = method.ORAL(config, {"toy": data.base(description, method.fingerprint(weights))})
    return model, data


def nearest_shape(change: Tensor, n_seeds: int = 6) -> str:
    """The task with the trained weight change nearest to `change` [24, 24]."""
    adapters, tasks = zoo(n_seeds)
    gaps = torch.stack([(weight_change(member) - change).norm() for member in adapters])
    return tasks[int(gaps.argmin())]
