"""Where diffusion and recurrence are needed: adapters whose tokens make sense only together.

    python -c "from oral_lib.experiments.studies import joint_structure as j; print(j.run('lab'))"

The zoo is `independent_starts`: B fits the A of its own start, and nothing is put into a canonical
form. A mean of factors mixes gauges, and tokens that are drawn apart from each other do not fit.

What counts as success was written down before the study ran (`CRITERIA`), means over tasks:

    gauge       the average of the task's adapters and plain regression each fall at least 10
                points below trained; a sampler without projection, with a noise of its own in each
                token, stays within 1 point of trained, and lies at least 0.3 of the distance of a
                held-out adapter from the adapters it was trained on
    recurrence  with no memory ("none"), the same sampler falls at least 5 points below Mamba-2

The sampler is the network whose recurrent model reads the noised tokens. In addition, without
a limit: an average of adapters that the SVD aligns, the recurrent model that reads positions only
(as RPG), and a bidirectional Transformer. All rows are validation rows, one seed of the networks.

Letters: n adapters, i rows, l tokens.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from oral_lib import method, paths, seeds, storage
from oral_lib.baselines import averages
from oral_lib.errors import UsageError
from oral_lib.evaluation.evaluate import evaluate
from oral_lib.experiments.studies.independent_starts import train_independent
from oral_lib.lora import distances, gauge
from oral_lib.method.model import BaseEntry
from oral_lib.models import loading
from oral_lib.models.base import BaseModel
from oral_lib.models.text_encoder import TextEncoder
from oral_lib.provenance import code_commit
from oral_lib.tasks.rows import Row, task_rows
from oral_lib.tasks.task import Task, load_task
from oral_lib.zoo.recipes import Recipe

JOINT_COLUMNS = [
    *("source", "base", "task", "method", "seed", "accuracy", "gap", "gap_low", "gap_high"),
    *("ratio", "n_rows", "n_adapters", "n_train", "n_held_out", "commit"),
]
ALL_TASKS = "all"  # the mean over tasks
JOINT_SAMPLERS = {  # method -> (recurrent model, what it reads)
    "mamba2": ("mamba2", "tokens"),
    "bidirectional": ("bidirectional", "tokens"),
    "none": ("none", "tokens"),
    "mamba2_positions": ("mamba2", "positions"),
}
_RESAMPLES = 2000


@dataclass(frozen=True)
class Criterion:
    """A condition of success: `value` of the table against `limit`.

    Args:
        test: "gauge" or "recurrence".
        method: whose row is read.
        column: of the table: gap (points of accuracy above trained) or ratio.
        above: another method whose value is subtracted, or "".
        at_least: True: value >= limit. False: value <= limit.
        limit: in points, or a ratio.
    """

    test: str
    method: str
    column: str
    above: str
    at_least: bool
    limit: float


CRITERIA = (
    Criterion("gauge", "average", "gap", "", False, -10.0),
    Criterion("gauge", "regression", "gap", "", False, -10.0),
    Criterion("gauge", "mamba2", "gap", "", True, -1.0),
    Criterion("gauge", "mamba2", "ratio", "", True, 0.3),
    Criterion("recurrence", "none", "gap", "mamba2", False, -5.0),
)


@dataclass(frozen=True, kw_only=True)
class JointStudy:
    """What the study trains and measures.

    Args:
        base: an encoder.
        tasks: tasks with two labels.
        rank: of the LoRA, alpha is twice that.
        recipe: of every adapter.
        n_train: adapters of a task that networks are trained on.
        n_held_out: further adapters of a task.
        n_samples: adapters that a network generates for a task.
        rows: validation rows of a task, at most.
        network: with the recurrent model of "mamba2".
        training: of every network.
        adapters: adapters in a training step.
        steps: of sampling.
    """

    base: str
    tasks: tuple[str, ...]
    rank: int
    recipe: Recipe
    n_train: int
    n_held_out: int
    n_samples: int
    rows: int
    network: method.GeneratorConfig
    training: method.TrainingConfig
    adapters: int
    steps: int

    def config(self, name: str) -> method.GeneratorConfig:
        """The network of a method: "regression" or one of `JOINT_SAMPLERS`."""
        if name == "regression":
            return replace(self.network, diffusion=None, recurrence_reads="positions")
        kind, reads = JOINT_SAMPLERS[name]
        recurrence = replace(self.network.recurrence, kind=kind)
        return replace(self.network, recurrence=recurrence, recurrence_reads=reads)


def _network(k: int, width: int, hidden: int, depth: int, encoder: str) -> method.GeneratorConfig:
    """Raw values: the principal components of a few adapters would leave their starts out."""
    return method.GeneratorConfig(
        k=k,
        components=0,
        component_rotation="none",
        recurrence=method.RecurrenceConfig(width=width, state=width // 4, head=width // 4),
        denoiser=method.DenoiserConfig(hidden=hidden, depth=depth, skip=False),
        text_encoder=encoder,
        recurrence_reads="tokens",
    )


JOINT_STUDIES = {
    "smoke": JointStudy(
        base="tiny-encoder",
        tasks=("movie", "sarcasm"),
        rank=2,
        recipe=Recipe(steps=30, batch=8, lr=5e-3, ratio=1.0),
        n_train=16,
        n_held_out=2,
        n_samples=2,
        rows=40,
        network=_network(64, 64, 64, 1, "tiny"),
        training=method.TrainingConfig(steps=10, warmup=2, conditions=2, text_dropout=0.0),
        adapters=4,
        steps=4,
    ),
    "lab": JointStudy(
        base="minilm-l3",
        tasks=("movie", "sarcasm"),
        rank=4,
        recipe=Recipe(steps=200, batch=16, lr=2e-3, ratio=1.0),
        n_train=256,
        n_held_out=32,
        n_samples=32,
        rows=600,
        network=_network(384, 256, 768, 3, "minilm-l6"),
        training=method.TrainingConfig(
            steps=3000, warmup=100, conditions=4, text_dropout=0.0, text_noise=0.5, ema=0.995
        ),
        adapters=32,
        steps=50,
    ),
}


# ---------------------------------------------------------------- the study
def run(
    scale: str,
    source: str = "packages",
    out: str | Path = paths.ROOT,
    device: str = "",
    study: JointStudy | None = None,
) -> pd.DataFrame:
    """The table of the study, a row a task and method; `ALL_TASKS` is the mean over tasks.

    It is also written to `joint_structure.csv` in the folder of the study.

    Stacks of adapters and networks that an earlier call finished are read.

    Args:
        scale: "smoke" or "lab".
        source: of base model and rows; has no effect at the smoke scale.
        out: the folder of runs/.
        device: where to train and measure; default: the GPU if there is one.
        study: default: `JOINT_STUDIES[scale]`.

    Raises:
        UsageError: there is no study of that scale.
    """
    if scale not in JOINT_STUDIES:
        raise UsageError(f"no study of scale {scale!r}: use one of {', '.join(JOINT_STUDIES)}.")
    study, source = study or JOINT_STUDIES[scale], "made" if scale == "smoke" else source
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    folder = paths.run_folder(scale, source, out) / "joint_structure"
    base = loading.load(study.base, source=source, labels=2, device=device)
    base.spec = replace(base.spec, rank=study.rank, alpha=2 * study.rank)
    tasks = [load_task(name) for name in study.tasks]
    data = {task.name: task_rows(task, source) for task in tasks}
    numbers = range(study.n_train + study.n_held_out)
    zoo = {
        task.name: train_independent(
            base, task, data[task.name], numbers, study.recipe, folder / "zoo"
        )
        for task in tasks
    }
    trained = {name: adapters[: study.n_train] for name, adapters in zoo.items()}
    encoder = TextEncoder(study.network.text_encoder, source=source)
    written = {
        name: sampled(study, name, base, tasks, trained, encoder, folder)
        for name in ("regression", *JOINT_SAMPLERS)
    }
    correct: dict[str, dict[str, np.ndarray]] = {}
    ratios: dict[tuple[str, str], float] = {}
    for task in tasks:
        members, rows = trained[task.name], data[task.name].validation[: study.rows]
        held_out = zoo[task.name][study.n_train :]
        methods = {"trained": members[: study.n_samples], "held_out": held_out}
        methods |= {"average": [averages.soup(members)], "aligned_average": [aligned_mean(members)]}
        methods |= {name: of_task[task.name] for name, of_task in written.items()}
        correct[task.name] = {
            name: answers(base, task, rows, adapters) for name, adapters in methods.items()
        }
        for name, adapters in methods.items():
            if name != "trained":
                novelty = distances.novelty(adapters, members, held_out, 2.0)
                ratios[task.name, name] = novelty.ratio
    frame = joint_table(correct, ratios).assign(
        source=paths.slug(source), base=study.base, seed=study.training.seed,
        n_train=study.n_train, n_held_out=study.n_held_out, commit=code_commit(),
    )[JOINT_COLUMNS]  # fmt: skip
    storage.write_text(folder / "joint_structure.csv", frame.to_csv(index=False))
    return frame


def aligned_mean(adapters: Sequence[Mapping[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """The mean of `adapters` in the balanced SVD form, rotated to agree with the first."""
    return averages.soup([gauge.aligned(adapter, adapters[0]) for adapter in adapters])


def answers(
    base: BaseModel, task: Task, rows: Sequence[Row], adapters: Sequence[dict]
) -> np.ndarray:
    """bool [n, i]: which rows each adapter answers correctly."""
    outcomes = evaluate(base, task, rows, list(adapters))
    return np.stack([outcome.correct.cpu().numpy() for outcome in outcomes])


def sampled(
    study: JointStudy,
    name: str,
    base: BaseModel,
    tasks: Sequence[Task],
    trained: Mapping[str, Sequence[dict]],
    encoder: TextEncoder,
    folder: Path,
) -> dict[str, list[dict[str, torch.Tensor]]]:
    """Adapters of each task by the network of method `name`, trained on `trained` first."""
    config, device = study.config(name), base.device
    zero = {n: t * ("lora_" not in n) for n, t in base.lora_init().items()}
    layout = method.Layout.of(zero, config.k)
    texts = {task.name: encoder.encode(task.training_texts) for task in tasks}
    adapters = [adapter for task in tasks for adapter in trained[task.name]]
    of_task = [task.name for task in tasks for _ in trained[task.name]]
    data = method.TrainingSet.of(layout, zero, adapters, of_task, texts, config)
    about = encoder.encode([base.describe()])[0], base.fingerprint().cpu()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seeds.integer(study.training.seed, "joint-structure"))
        model = method.ORAL(config, {base.name: BaseEntry(layout, data.statistics, None, *about)})
    draws = study.adapters // study.training.conditions
    training = replace(study.training, draws=draws, tokens=study.adapters * layout.l)
    (folder / "networks").mkdir(parents=True, exist_ok=True)
    model, _ = method.train(
        model,
        {base.name: data},
        training,
        device=device,
        state=folder / "networks" / f"{name}.safetensors",
        key=(study.recipe, study.n_train, study.tasks),
        label=f"joint structure {name}",
    )
    sampling = method.SamplingConfig(steps=study.steps, projection="none", noise_sharing="token")
    samples = {}
    for task in tasks:
        n = 1 if config.diffusion is None else study.n_samples
        text = encoder.encode([task.description]).to(device).expand(n, -1)
        c = model.conditions(base.name, text, torch.ones(n, dtype=torch.bool, device=device))
        stream = seeds.generator(study.training.seed, "joint-samples", task.name)
        noise = torch.stack([model.noise(base.name, sampling, stream) for _ in range(n)])
        k0 = model.sample(base.name, c, noise.to(device), sampling).cpu()
        samples[task.name] = method.decode(layout, data.statistics.denormalise(k0))
    return samples


# ---------------------------------------------------------------- what is computed of it
def joint_table(
    correct: Mapping[str, Mapping[str, np.ndarray]], ratios: Mapping[tuple[str, str], float]
) -> pd.DataFrame:
    """A row a task and method, and one of the mean over tasks for each method.

    Columns: task, method, accuracy (percent), gap (points above "trained") with its paired 95%
    interval over rows and adapters, ratio, n_rows, n_adapters.

    Args:
        correct: bool [n, i] by task and method; the rows of a task are the same for all methods.
        ratios: by (task, method); see `distances.Novelty`.
    """
    rows = []
    for name in next(iter(correct.values())):
        resampled = []
        for task, of_task in correct.items():
            draw = np.random.default_rng(0)
            gaps = resampled_gaps(of_task[name], of_task["trained"], draw, name == "trained")
            resampled.append(gaps)
            rows.append(
                _row(task, name, of_task, gaps) | {"ratio": ratios.get((task, name), np.nan)}
            )
        mean = pd.DataFrame(rows[-len(correct) :]).mean(numeric_only=True).to_dict()
        low, high = np.quantile(np.mean(resampled, 0), (0.025, 0.975))
        total = sum(row["n_rows"] for row in rows[-len(correct) :])
        counts = {"n_rows": total, "n_adapters": rows[-1]["n_adapters"]}
        about = {"task": ALL_TASKS, "method": name, "gap_low": low, "gap_high": high}
        rows.append(mean | about | counts)
    return pd.DataFrame(rows)


def _row(task: str, name: str, of_task: Mapping[str, np.ndarray], gaps: np.ndarray) -> dict:
    accuracy = 100 * of_task[name].mean()
    low, high = np.quantile(gaps, (0.025, 0.975))
    gap = accuracy - 100 * of_task["trained"].mean()
    about = {"task": task, "method": name, "accuracy": accuracy, "gap": gap}
    n, i = of_task[name].shape
    return about | {"gap_low": low, "gap_high": high, "n_rows": i, "n_adapters": n}


def resampled_gaps(
    one: np.ndarray, trained: np.ndarray, draw: np.random.Generator, same: bool = False
) -> np.ndarray:
    """Differences of mean accuracy, in points, of resampled rows (the same for both) and adapters.

    Args:
        one: bool [n, i].
        trained: bool [m, i].
        draw: of the resamples.
        same: both are the same adapters: the differences are 0.
    """
    if same:
        return np.zeros(_RESAMPLES)
    items = one.shape[1]
    sides = []
    counts = draw.multinomial(items, np.full(items, 1 / items), _RESAMPLES) / items  # [r, i]
    for side in (one, trained):
        n = len(side)
        weights = draw.multinomial(n, np.full(n, 1 / n), _RESAMPLES) / n  # [r, n]
        sides.append(((weights @ side.astype(float)) * counts).sum(1))
    return 100 * (sides[0] - sides[1])


def decided(frame: pd.DataFrame) -> pd.DataFrame:
    """Each of `CRITERIA` on the mean over tasks of `frame`: its columns, value and met."""
    means = frame[frame.task == ALL_TASKS].set_index("method")
    rows = []
    for criterion in CRITERIA:
        value = float(means.loc[criterion.method, criterion.column])
        if criterion.above:
            value -= float(means.loc[criterion.above, criterion.column])
        met = value >= criterion.limit if criterion.at_least else value <= criterion.limit
        rows.append(vars(criterion) | {"value": value, "met": met})
    return pd.DataFrame(rows)
