"""Training a generator: interrupted or not it is the same, and it reads what it should alone."""

from dataclasses import replace

import pytest
import torch
from made_adapters import SMALL

from oral_lib import scales, seeds, storage
from oral_lib.errors import OralError, UsageError
from oral_lib.experiments import generators
from oral_lib.experiments.generators import Preset, assemble
from oral_lib.generator import Generator
from oral_lib.method.config import SamplingConfig
from oral_lib.method.training import tokens as training
from oral_lib.method.training.optimizer import AveragedAdamW
from oral_lib.method.training.tokens import TrainingConfig
from oral_lib.models import loading
from oral_lib.models.text_encoder import TextEncoder
from oral_lib.scales import GENERATOR, GeneratorJob
from oral_lib.tasks.task import load_task
from oral_lib.zoo import store
from oral_lib.zoo.store import Member

torch.set_num_threads(1)
TEN = TrainingConfig(steps=10, warmup=3, conditions=3, draws=2, tokens=96)
SEEDS = {"movie": 2, "sarcasm": 3}


def members(seed=0):
    """A made-up zoo with two adapters of one task and three of another."""
    start, found = loading.load("tiny-causal").lora_init(), []
    for task, n in SEEDS.items():
        for i in range(n):
            draw = seeds.generator(seed, task, i)
            shaken = {n: t + 0.2 * torch.randn(t.shape, generator=draw) for n, t in start.items()}
            found.append(Member("tiny-causal", task, i, shaken, {"sha256": f"{seed}-{task}-{i}"}))
    return found


@pytest.fixture(scope="module")
def zoo_members():
    return members()


def run(zoo_members, config=SMALL, how=TEN, **options):
    """(trained generator, losses) of a new generator on the zoo."""
    model, data = assemble(config, zoo_members)
    return training.train(model.network, data, how, key=model.manifest, **options)


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)


# ---------------------------------------------------------------- exact resume
@pytest.mark.parametrize("diffusion", [True, False])
def test_ten_steps_are_five_an_interruption_and_five(diffusion, zoo_members, tmp_path):
    config = replace(SMALL, diffusion=SMALL.diffusion if diffusion else None)
    torch.manual_seed(1)
    whole, losses = run(zoo_members, config, state=tmp_path / "whole.safetensors")
    torch.manual_seed(2)  # nobody else's randomness counts
    path = tmp_path / "cut.safetensors"
    half, first = run(zoo_members, config, state=path, until=5)
    resumed, both = run(zoo_members, config, state=path)
    assert len(first) == 5 and first == losses[:5] and both == losses and len(losses) == 10
    assert equal(resumed.state_dict(), whole.state_dict())
    assert not equal(half.state_dict(), whole.state_dict())
    ends = [storage.read_tensors(tmp_path / f"{name}.safetensors") for name in ("whole", "cut")]
    assert equal(*ends)  # weights, averages, moments of the optimiser, losses, step
    kinds = {name.split(".")[0] for name in ends[0]}
    assert kinds == {"model", "ema", "optimizer", "losses", "step", "run"}


def test_a_finished_training_is_not_trained_again(zoo_members, tmp_path):
    path = tmp_path / "state.safetensors"
    whole, losses = run(zoo_members, state=path)
    before = path.read_bytes()
    again, same = run(zoo_members, state=path)
    assert equal(again.state_dict(), whole.state_dict()) and same == losses
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "change",
    [
        {"config": replace(SMALL, k=64)},
        {"config": replace(SMALL, diffusion=None)},
        {"how": replace(TEN, lr=1e-4)},
        {"how": replace(TEN, seed=1)},
        {"zoo_members": members(seed=1)},
    ],
    ids=["shape", "objective", "recipe", "seed", "zoo"],
)
def test_a_state_of_another_training_is_refused(change, zoo_members, tmp_path, refused):
    path = tmp_path / "state.safetensors"
    run(zoo_members, state=path, until=5)
    with refused(OralError, str(path), "delete it"):
        run(**{"zoo_members": zoo_members, "state": path} | change)


def test_a_broken_state_is_refused(zoo_members, tmp_path, refused):
    path = tmp_path / "state.safetensors"
    run(zoo_members, state=path, until=1)
    path.write_bytes(path.read_bytes()[:-9])
    with refused(OralError, str(path)):
        run(zoo_members, state=path)


@pytest.mark.parametrize(("seconds", "times"), [(1e-9, 5), (3600, 1)])
def test_a_state_is_written_as_often_as_asked_and_at_the_end(
    seconds, times, zoo_members, tmp_path, monkeypatch
):
    written, store = [], AveragedAdamW.store
    monkeypatch.setattr(training, "CHECK_EVERY", 2)
    monkeypatch.setattr(AveragedAdamW, "store", lambda *a: written.append(a[3]) or store(*a))
    run(zoo_members, how=replace(TEN, save_every=seconds), state=tmp_path / "state.safetensors")
    assert len(written) == times and written[-1] == 10


# ---------------------------------------------------------------- what a step does
def test_a_loss_that_leaves_the_numbers_is_refused(zoo_members, tmp_path, refused, monkeypatch):
    monkeypatch.setattr(training, "CHECK_EVERY", 5)
    path = tmp_path / "state.safetensors"
    with refused(OralError, "generator", "step 5", "lr"):
        run(zoo_members, how=replace(TEN, lr=1e30, warmup=0, clip=1e30), state=path)
    assert not path.exists()
    model, shelves = assemble(SMALL, zoo_members)
    poisoned = {
        name: replace(shelf, tokens=shelf.tokens * torch.nan) for name, shelf in shelves.items()
    }
    with refused(OralError, "nan"):
        training.train(model.network, poisoned, TEN)


@pytest.mark.parametrize("kind", ["generator", "regression"])
def test_training_learns(kind, smoke):
    losses = storage.read_json(smoke.root / kind / "manifest.json")["losses"]
    assert sum(losses[-20:]) < 0.9 * sum(losses[:20])


def test_another_seed_is_another_training(zoo_members):
    """The losses of a first step, before which all trainings have the same network."""
    losses = [run(zoo_members, how=replace(TEN, seed=s), until=1)[1] for s in (0, 0, 1, 2)]
    assert losses[0] == losses[1]
    assert len({tuple(curve) for curve in losses}) == 3


def test_another_seed_is_another_first_network(zoo_members):
    models = [assemble(SMALL, zoo_members, seed=s)[0] for s in (0, 0, 1)]
    first, again, other = (model.network.state_dict() for model in models)
    assert equal(first, again)
    drawn = {name for name in first if not torch.equal(first[name], other[name])}
    assert "condition.fuse.1.weight" in drawn
    assert not any(name.startswith("known.") for name in drawn)  # facts of the zoo


@pytest.mark.parametrize(("dropout", "learned"), [(0.0, False), (0.9, True)])
def test_dropped_texts_teach_the_vector_that_stands_for_no_text(dropout, learned, zoo_members):
    trained, _ = run(zoo_members, how=replace(TEN, text_dropout=dropout, ema=0.0), until=3)
    assert bool(trained.condition.no_text.abs().sum() > 0) == learned


def test_noise_on_the_texts_is_heard(zoo_members):
    plain, again, noisy = (
        run(zoo_members, how=replace(TEN, text_noise=noise), until=4)[1] for noise in (0, 0, 0.5)
    )
    assert plain == again and plain[-1] != noisy[-1]


def test_the_average_forgets_nothing_but_what_it_should(zoo_members, tmp_path):
    def parts(ema, until):
        path = tmp_path / f"{ema}-{until}.safetensors"
        run(zoo_members, how=replace(TEN, ema=ema), state=path, until=until)
        state = storage.read_tensors(path)
        name = "condition.fuse.1.weight"
        return state[f"model.{name}"], state[f"ema.{name}"]

    assert torch.equal(*parts(0.0, 3))  # no memory: the weights themselves
    assert torch.equal(*parts(0.9, 1))  # the first step begins the average
    now, kept = parts(0.9, 3)
    first, _ = parts(0.9, 1)
    assert 0 < (kept - now).norm() < (first - now).norm()


def test_every_weight_is_trained_and_no_statistic(zoo_members):
    before = assemble(SMALL, zoo_members)[0].network
    after, _ = run(zoo_members, how=replace(TEN, text_dropout=0.5))
    assert equal(dict(after.named_buffers()), dict(before.named_buffers()))
    was = dict(before.named_parameters())
    assert [n for n, p in after.named_parameters() if torch.equal(p, was[n])] == []


# ---------------------------------------------------------------- what is on the shelf
def test_every_adapter_of_a_task_is_drawn_as_often_as_any_other(zoo_members):
    _, shelves = assemble(SMALL, zoo_members)
    table = shelves["tiny-causal"].members
    assert [sorted(set(row)) for row in table.tolist()] == [[0, 1], [2, 3, 4]]
    for row in table:
        assert row.bincount().unique().tolist() in ([2], [0, 2], [3], [0, 3])


def test_only_training_wordings_are_read(zoo_members):
    _, shelves = assemble(SMALL, zoo_members)
    encoder = TextEncoder("tiny")
    for task, seen in zip(SEEDS, shelves["tiny-causal"].texts, strict=True):
        wanted = encoder.encode(load_task(task).training_texts)
        torch.testing.assert_close(seen, wanted, atol=1e-5, rtol=0)
        unseen = encoder.encode(load_task(task).paraphrases["development"])
        assert (unseen @ seen.T).max() < 0.999


def test_tokens_on_the_shelf_have_unit_size_round_the_start(zoo_members):
    model, shelves = assemble(SMALL, zoo_members)
    known, held = model.bases["tiny-causal"], shelves["tiny-causal"].tokens
    assert held.shape == (5, *known.mask.shape)
    assert held[:, known.mask].square().mean().item() == pytest.approx(1, rel=0.05)
    assert (held[:, ~known.mask] == 0).all()


def zoo_of(tasks_of):
    """Adapters that go one way a base model and task, and a little to all sides."""
    zoo = []
    for name, of in tasks_of.items():
        start = loading.load(name).lora_init()
        for task in of:
            way = seeds.generator(0, name, task)
            way = {n: 0.1 * torch.randn(t.shape, generator=way) for n, t in start.items()}
            for i in range(3):
                draw = seeds.generator(i, name, task)
                tensors = {n: t + way[n] + 0.02 * torch.randn(t.shape, generator=draw)
                           for n, t in start.items()}  # fmt: skip
                zoo.append(Member(name, task, i, tensors, {"sha256": f"{name}-{task}-{i}"}))
    return zoo


def codes(zoo, rotation, components=8):
    """(mean components [r] by base model and task, tokens by base model)."""
    _, shelves = assemble(replace(SMALL, components=components, component_rotation=rotation), zoo)
    found = {}
    for name, held in shelves.items():
        of = dict.fromkeys(m.task for m in zoo if m.base == name)
        for task, rows in zip(of, held.members, strict=True):
            found[name, task] = held.tokens[rows].mean((0, 1))
    return found, {name: held.tokens for name, held in shelves.items()}


def test_a_task_has_the_same_components_in_all_base_models():
    """The first base model leads; the second shares two tasks with it, the third one with each."""
    zoo = zoo_of({
        "tiny-causal": ("movie", "quartz", "tweets", "products"),
        "tiny-encoder": ("movie", "quartz", "sarcasm"),
        "tiny-vit": ("sarcasm", "tweets"),
    })  # fmt: skip
    alike, tokens = codes(zoo, "bases")
    apart, before = codes(zoo, "tokens")
    pairs = [("movie", 0, 1), ("quartz", 0, 1), ("sarcasm", 1, 2), ("tweets", 0, 2)]
    names = ("tiny-causal", "tiny-encoder", "tiny-vit")
    near = [
        [
            torch.cosine_similarity(found[names[i], t], found[names[j], t], dim=0)
            for t, i, j in pairs
        ]
        for found in (alike, apart)
    ]
    assert min(near[0]) > 0.95 and min(near[1]) < 0.8, near
    assert torch.equal(tokens["tiny-causal"], before["tiny-causal"])
    assert not torch.allclose(tokens["tiny-vit"], before["tiny-vit"], atol=0.1)


def test_base_models_without_a_common_task_keep_their_components():
    zoo = zoo_of({"tiny-causal": ("movie", "quartz"), "tiny-encoder": ("sarcasm", "tweets")})
    tokens, before = codes(zoo, "bases")[1], codes(zoo, "tokens")[1]
    assert all(torch.equal(tokens[name], before[name]) for name in before)
    assert codes(zoo, "none", components=0)[1]["tiny-causal"].shape[-1] == SMALL.k


def test_a_new_generator_is_the_same_every_time(zoo_members):
    torch.manual_seed(1)
    one, _ = assemble(SMALL, zoo_members)
    state = torch.get_rng_state()
    two, _ = assemble(SMALL, zoo_members)
    assert equal(one.network.state_dict(), two.network.state_dict())
    assert torch.equal(torch.get_rng_state(), state)


# ---------------------------------------------------------------- facts of base models
def test_facts_of_a_base_model_are_computed_once_and_come_back_as_they_were(tmp_path, monkeypatch):
    base, written = loading.load("tiny-causal"), store.stored_facts(tmp_path, "tiny-causal", "made")
    monkeypatch.setattr(loading, "load", None)
    for facts in (written, store.stored_facts(tmp_path, "tiny-causal", "made")):
        assert equal(facts.start, base.lora_init())
        assert facts.description == base.describe()
        assert torch.equal(facts.fingerprint, base.fingerprint())
        assert facts.peft_config["base_model_name_or_path"] == base.spec.hub
        assert sorted(facts.peft_config["target_modules"]) == sorted(base.spec.targets)


def test_damaged_facts_of_a_base_model_are_refused(tmp_path, refused):
    store.stored_facts(tmp_path, "tiny-causal", "made")
    file = tmp_path / "zoo" / "tiny-causal" / "base.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with refused(OralError, str(file), "damaged"):
        store.stored_facts(tmp_path, "tiny-causal", "made")


def test_a_zoo_is_stored_with_the_facts_of_its_base_model(smoke):
    for plan in smoke.planned:
        stored = smoke.root / "zoo" / plan.base
        assert (stored / "base.json").exists() and (stored / "base.safetensors").exists()


def test_training_a_generator_loads_no_base_model(trained_as, tmp_path, monkeypatch):
    store.stored_facts(tmp_path, "tiny-causal", "made")
    monkeypatch.setattr(loading, "load", None)
    assert "tiny-causal" in trained_as("generator").bases


# ---------------------------------------------------------------- configurations and folders
@pytest.mark.parametrize("scale", ["smoke", "desk", "lab", "paper"])
def test_kinds_of_a_generator_differ_in_what_they_are_called_after(scale):
    default = generators.preset(scale)
    network, how = default.network, default.training
    for seed in (1, 2):
        seeded = replace(default, training=replace(how, seed=seed))
        assert generators.preset(scale, GeneratorJob(kind="generator", seed=seed)) == seeded
    for kind, change in {
        "regression": {"diffusion": None},
        "unconditional": {"uses_text": False},
    }.items():
        assert generators.preset(scale, GeneratorJob(kind=kind)) == replace(
            default, network=replace(network, **change)
        )
    assert network.diffusion and network.uses_text and how.seed == 0 and how.text_dropout < 0.5


@pytest.fixture
def trained_as(zoo_members, tmp_path, monkeypatch):
    """kind -> the generator that is trained and kept as such, on the made-up zoo."""
    held = {(m.base, m.task, m.seed): m for m in zoo_members}
    monkeypatch.setattr(store, "read", lambda root, *name: held[name])
    preset = generators.preset

    def short(scale, job):
        full = preset(scale, job)
        same = {"diffusion": full.network.diffusion, "uses_text": full.network.uses_text}
        training = replace(TEN, seed=full.training.seed)
        return replace(full, network=replace(SMALL, **same), training=training)

    monkeypatch.setattr(generators, "preset", short)

    def train(name):
        where = {"root": tmp_path, "scale": "smoke", "source": "made"}
        job = scales.generator_job("lab", name)
        folder = generators.train_from_zoo(list(held), job, **where)
        return Generator.from_pretrained(folder)

    return train


def test_one_that_is_never_told_a_text_gives_the_same_adapter_whatever_it_is_told(trained_as):
    texts = ("Judge if the critic liked the movie.", "Tell a gadget from a film.", "")
    deaf, hearing = trained_as("unconditional"), trained_as("generator")
    one, other, none = (deaf.generate(text, "tiny-causal")[0] for text in texts)
    assert equal(one, other) and equal(one, none)
    assert torch.equal(*(deaf.trace(text, "tiny-causal")[0] for text in texts[:2]))
    [told], [untold] = (hearing.generate(text, "tiny-causal") for text in texts[:2])
    assert not equal(told, untold)


def test_a_generator_of_other_wordings_is_trained_again(trained_as, tmp_path, monkeypatch):
    first = trained_as("generator")
    made = (tmp_path / "generator" / "manifest.json").stat().st_mtime_ns
    trained_as("generator")
    assert (tmp_path / "generator" / "manifest.json").stat().st_mtime_ns == made
    task = load_task("movie")
    more = task.paraphrases | {"train": ["Is it a good film?", *task.paraphrases["train"]]}
    other = replace(task, paraphrases=more)
    for module in ("oral_lib.tasks.task", "oral_lib.experiments.generators"):
        monkeypatch.setattr(
            f"{module}.load_task", lambda name: other if name == "movie" else load_task(name)
        )
    again = trained_as("generator")
    assert again.manifest["wordings"] != first.manifest["wordings"]
    assert not equal(again.network.state_dict(), first.network.state_dict())


def test_generators_of_other_seeds_are_other_generators(trained_as):
    first, second = trained_as("generator"), trained_as("generator-1")
    assert second.manifest["training"] == first.manifest["training"] | {"seed": 1}
    assert not equal(first.network.state_dict(), second.network.state_dict())
    [one], [other] = (model.generate("A text.", "tiny-causal") for model in (first, second))
    assert not equal(one, other)


def test_the_learning_rate_warms_up_and_falls_to_nothing():
    how = TrainingConfig(steps=100, warmup=10, lr=2.0)
    rates = [how.lr_at(step) for step in range(100)]
    assert rates[0] == pytest.approx(0.2) and max(rates) == pytest.approx(2.0)
    assert rates[:10] == sorted(rates[:10]) and rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[-1] < 0.01 and min(rates) > 0


@pytest.mark.parametrize(
    ("length", "rows"),
    [(50, (4, 50)), (150, (4, 150)), (300, (2, 300)), (600, (1, 600)), (9000, (1, 600))],
)
def test_a_step_reads_whole_adapters_as_long_as_they_fit(length, rows):
    assert TrainingConfig(conditions=8, draws=4, tokens=4800).rows(length) == rows


@pytest.mark.parametrize(
    ("name", "value"),
    [("steps", 0), ("lr", -1), ("tokens", 0), ("text_dropout", 1.1), ("ema", 1.5), ("clip", 0)],
)
def test_a_training_is_checked_when_it_is_made(name, value, refused):
    with refused(UsageError, name, str(value)):
        replace(TEN, **{name: value})


@pytest.mark.parametrize("kind", ["generator", "regression"])
def test_a_trained_folder_says_what_it_was_made_of(kind, smoke):
    folder = smoke.root / kind
    manifest = storage.read_json(folder / "manifest.json")
    held = {(m["base"], m["task"], m["seed"]): m["sha256"] for m in manifest["zoo"]}
    members = [m for base in ("tiny-encoder", "tiny-causal") for m in smoke.members(base)]
    assert held == {(m.base, m.task, m.seed): m.info["sha256"] for m in members}
    assert len(manifest["losses"]) == manifest["training"]["steps"]
    assert manifest["kind"] == kind and manifest["scale"] == "smoke"
    assert not (folder / "training.safetensors").exists()
    assert bool(smoke.generator(kind).config.diffusion) == (kind == "generator")


def test_a_trained_folder_is_kept_unless_the_zoo_or_the_configuration_is_another(
    zoo_members, tmp_path, monkeypatch
):
    held = {(m.base, m.task, m.seed): m for m in zoo_members}
    monkeypatch.setattr(store, "read", lambda root, *name: held[name])
    sampling = SamplingConfig()
    monkeypatch.setattr(
        generators,
        "preset",
        lambda *_: Preset(network=SMALL, sampling=sampling, training=how),
    )

    def made():
        names, where = list(held), {"root": tmp_path, "scale": "smoke", "source": "made"}
        generators.train_from_zoo(names, GENERATOR, **where)
        return (tmp_path / "generator" / "manifest.json").stat().st_mtime_ns

    how = replace(TEN, steps=2)
    first = made()
    assert made() == first
    how = replace(TEN, steps=3)
    second = made()
    assert second > first and made() == second
    held.pop(("tiny-causal", "sarcasm", 2))
    assert made() > second
