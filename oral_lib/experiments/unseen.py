"""Unseen binary tasks by text: RPG's test (arXiv 2501.11587) without its answers, with sentences.

A LoRA with its head is trained for splits of ten classes into yes and no (`tasks/binary.py`).
Generators are trained on the splits of the set "train" and measured on two sets of held-out splits:
"pairs" (splits of seen classes, held out with their complements) and "classes" (splits that
separate three classes which no training task separates or names). The metric is balanced accuracy,
since most splits are uneven.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from oral_lib import scales, seeds, storage
from oral_lib.baselines import class_bits, majority, multitask
from oral_lib.experiments import generators
from oral_lib.experiments.cells import Measurement, score_trials
from oral_lib.experiments.conditions import Pickers, Question, Size, text_rows
from oral_lib.experiments.generators import Preset
from oral_lib.experiments.model_cache import ModelCache
from oral_lib.experiments.side_tables import costs
from oral_lib.experiments.trials import Trial, generated_trial
from oral_lib.generator import Generator
from oral_lib.method.training.through_base import ThroughBaseConfig, train_through_base
from oral_lib.method.training.tokens import train
from oral_lib.models import loading
from oral_lib.planning.parts import GENERATOR, GeneratorJob
from oral_lib.tasks import binary
from oral_lib.tasks.rows import task_rows
from oral_lib.tasks.task import Task, load_task, wordings_hash
from oral_lib.zoo import store
from oral_lib.zoo.split_batches import SplitBatches, SplitRows

_SIZES = {
    "smoke": Size(rows=100, control_rows=50, samples=3, control_samples=1),
    "lab": Size(rows=1500, control_rows=500, samples=10, control_samples=2),
}


# ---------------------------------------------------------------- configurations
@dataclass(frozen=True, kw_only=True)
class ThroughBasePreset:
    """How a generator is trained through the base model, after a training on the zoo's tokens.

    Args:
        tokens: steps of the training on tokens; 0: none.
        tasks: adapters of a step.
        rows: images that each adapter answers in a step.
        training: of the training through the base model.
    """

    tokens: int
    tasks: int
    rows: int
    training: ThroughBaseConfig


THROUGH_BASE_PRESETS = {
    "smoke": ThroughBasePreset(
        tokens=0, tasks=8, rows=8, training=ThroughBaseConfig(steps=60, lr=1e-3, warmup=10)
    ),
    "lab": ThroughBasePreset(
        tokens=1000, tasks=32, rows=32, training=ThroughBaseConfig(steps=3000, lr=3e-4, ema=0.995)
    ),
}


def preset(scale: str, job: GeneratorJob = GENERATOR) -> Preset:
    """The configurations of `generators.preset`, changed for a zoo of many similar tasks.

    Training has more steps and less embedding noise, because two sentences may differ in one word.
    The projection is "span": an unseen adapter need not be a convex combination of the zoo. A
    network that is trained through the base model has a shared part, is not projected, and samples
    as it is trained: in one step, with noise of its own in each token.
    """
    default = generators.preset(scale, job)
    changes = {"steps": 3000, "conditions": 32, "tokens": 6400, "text_noise": 0.5}
    if scale == "smoke":
        changes = {"steps": 200, "conditions": 8, "draws": 1}
    sampling = replace(default.sampling, projection="span")
    network = default.network
    if job.kind == "through_base":
        sampling = replace(sampling, projection="none", steps=1, noise_sharing="token")
        sampling = replace(sampling, temperature=1.0)
        network = replace(network, shared="added")
        changes["steps"] = max(1, THROUGH_BASE_PRESETS[scale].tokens)
    training = replace(default.training, **changes)
    return Preset(network=network, sampling=sampling, training=training)


# ---------------------------------------------------------------- training
def train_multitask(
    base: str, names: Sequence[str], *, scale: str, source: str, root: Path, device: str = "cpu"
) -> Path:
    """The folder of the multi-task LoRA on the tasks `names`, trained if it is missing.

    Args:
        base: name of the backbone.
        names: the tasks that the zoo is trained on.
        scale: of the run.
        source: where images and text encoder are read from.
        root: the folder of the run.
        device: to train on.
    """
    encoder = generators.preset(scale).network.text_encoder
    about = {"scale": scale, "source": source, "root": root, "device": device}
    return multitask.train_text_head(base, names, text_encoder=encoder, **about)


def train_generator_through_base(
    base: str,
    names: Sequence[str],
    job: GeneratorJob,
    *,
    scale: str,
    source: str,
    root: Path,
    device: str = "cpu",
) -> Path:
    """The folder of the generator `job`, trained through the base model unless it is current.

    The zoo has the statistics of the tokens, and the training on tokens that comes first. The rows
    are the training rows of the tasks `names`.

    Args:
        base: name of the backbone.
        names: the tasks to train on.
        job: its name is the name of the folder.
        scale: a key of `THROUGH_BASE_PRESETS`.
        source: where images, backbone and text encoder are read from.
        root: the folder of the run, with the zoo.
        device: to train on.

    Raises:
        OralError: training diverged.
    """
    folder, configured = root / job.name, preset(scale, job)
    through = THROUGH_BASE_PRESETS[scale]
    training = replace(through.training, seed=job.seed)
    members = [store.read(root, base, name, 0) for name in names]
    about = {
        "kind": job.name,
        "scale": scale,
        "source": source.partition(":")[0],
        "wordings": wordings_hash(names),
        "zoo_sha256": [member.info["sha256"] for member in members],
        "configured": asdict(configured),
        "training": asdict(replace(through, training=training)),
    }
    about = json.loads(json.dumps(about))  # as it is read from the manifest
    manifest = folder / "manifest.json"
    if manifest.exists() and about.items() <= storage.read_json(manifest).items():
        return folder
    facts = {base: store.stored_facts(root, base, source)}
    options = {"sampling": configured.sampling, "facts": facts, "source": source}
    generator, data = generators.assemble(configured.network, members, seed=job.seed, **options)
    network, label = generator.network, f"{job.name} ({scale})"
    folder.mkdir(parents=True, exist_ok=True)
    states = [folder / f"{part}.safetensors" for part in ("tokens", "through-base")]
    where = {"device": device, "key": about, "label": label}
    losses: list[float] = []
    if through.tokens:
        network, losses = train(network, data, configured.training, state=states[0], **where)
        network.requires_grad_(True)
    model = loading.load(base, source=source, device=device)
    rows = SplitRows.of(names, model, generator.encoder, source)
    sizes = {"size": through.tasks, "rows": through.rows, "seed": job.seed}
    batches = {base: SplitBatches(model, rows, **sizes)}
    network, curves = train_through_base(network, batches, training, state=states[1], **where)
    losses = [round(x, 6) for x in (*losses, *(sum(step) for step in curves["losses"]))]
    manifest = generator.manifest | about | {"losses": losses, "norms": curves["norms"]}
    Generator(network, manifest, generator.sampling, source=source).save_pretrained(folder)
    for state in states:
        state.unlink(missing_ok=True)
    return folder


# ---------------------------------------------------------------- one unseen task
def run_cell(
    task: str, base: str, seed: int, *, scale: str, cache: ModelCache, wordings: str
) -> Measurement:
    """One unseen task, with rows of the tables texts and costs.

    Args:
        task: name of a held-out task.
        base: name of the backbone.
        seed: of the generated samples.
        scale: of the run.
        cache: the models of the run.
        wordings: the paraphrases to measure, one of `wordings.HELD_OUT_WORDINGS`.
    """
    spec, size, source = load_task(task), _SIZES[scale], cache.source
    names = scales.base_plan(scale, base, source).tasks
    model = cache.base(base, len(spec.labels))
    planned_networks = scales.cell_networks(scale, source, "unseen", task, seed)
    networks = {
        kind: cache.generator(name)
        for kind, name in planned_networks.items()
        if kind != "multitask"
    }
    encoder = networks["generator"].encoder
    data = task_rows(spec, source)
    rows = data.test[: size.rows]
    questions = unseen_questions(spec, names, size, seed, cache.pickers(names, encoder), wordings)

    def generated(question: Question, method: str, kind: str, n: int = 0, **options) -> Trial:
        about = {"method": method, "condition": question.condition, "rows": question.rows}
        texts, n = question.texts, n or question.n
        return generated_trial(networks[kind], texts, base, n, seed=seed, **about, **options)

    planned = []
    if seed == 0:
        text = encoder.encode([spec.description])[0]
        planned += _plain_trials(spec, base, names, cache, size)
        adapter = multitask.multitask_adapter(cache.root, model, text)
        planned.append(_trial("multitask", "matched", [adapter], size.rows))
        planned.append(_trial("base", "none", [model.lora_init()], size.rows))
        planned += _picked_trials(questions, names, cache.zoo(base, names).members)
        planned += [generated(question, "regression", "regression", 1) for question in questions]
        for question in questions[:2]:
            planned.append(generated(question, "generated_free", "generator", projection="none"))
    for question in questions:
        planned.append(generated(question, "generated", "generator"))
        planned.append(generated(question, "generated_through_base", "through_base"))
    cell = {"experiment": "unseen", "source": data.source, "base": base, "task": task, "seed": seed}
    frequent = majority.majority(data.train, rows, len(spec.labels)) if seed == 0 else None
    trained = [store.read(cache.root, base, task, 0)]
    labelled = len(data.train)
    tables = {
        "texts": text_rows(cell, questions),
        "costs": costs.cost_rows(cell, planned, trained, questions, labelled, model.device),
    }
    return Measurement(*score_trials(model, spec, rows, cell, planned, frequent), tables)


def _trial(method: str, condition: str, adapters: list, rows: int) -> Trial:
    return Trial(method=method, condition=condition, adapters=adapters, rows=rows)


def _plain_trials(
    task: Task, base: str, names: Sequence[str], cache: ModelCache, size: Size
) -> list[Trial]:
    """The trials of methods that read no text: trained, complement, class bits and average.

    The complement of a task is never trained on. Where the zoo has its adapter, it is measured with
    the head rows exchanged: what a training set with complements would hold.
    """
    zoo = cache.zoo(base, names)
    ridge = class_bits.RidgeOfBits(zoo.members)
    adapters = {
        "trained": store.read(cache.root, base, task.name, 0).tensors,
        "soup_all": zoo.average,
        "ridge_bits": ridge.adapter(task.positive),
    }
    opposite = binary.complement_task(task.name)
    if (store.folder(cache.root, base, opposite, 0) / "run.json").exists():
        opposite = store.read(cache.root, base, opposite, 0).tensors
        adapters["complement"] = class_bits.exchanged(opposite)
    return [_trial(method, "none", [adapter], size.rows) for method, adapter in adapters.items()]


def _picked_trials(
    questions: Sequence[Question], names: Sequence[str], members: Sequence[store.Member]
) -> list[Trial]:
    """The trials of router and retrieval: the stored adapter of the task picked for each text."""
    trials = []
    for question in questions:
        for method, picks in (("router", question.router), ("retrieval", question.retrieval)):
            chosen = [members[names.index(name)].tensors for name in picks]
            trials.append(_trial(method, question.condition, chosen, question.rows))
    return trials


def unseen_questions(
    task: Task, names: Sequence[str], size: Size, seed: int, pickers: Pickers, wordings: str
) -> list[Question]:
    """The texts of a cell by condition: as `conditions.questions_of`, without random words."""
    other, n = names[seeds.integer(seed, task.name) % len(names)], size.control_samples
    paraphrases = task.paraphrases[wordings]
    few, wrong = max(1, n // 2), load_task(other).description
    return [
        Question.of("matched", [task.description], [task.name], size.samples, size.rows, pickers),
        Question.of("paraphrase", paraphrases, [task.name], few, size.rows, pickers),
        Question.of("mismatched", [wrong], [other], n, size.control_rows, pickers),
        Question.of("empty", [""], ["empty"], n, size.control_rows, pickers),
    ]
