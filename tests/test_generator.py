"""The generator: every token hears text and base, zeros are the base, a seed is an adapter."""

import json
import shutil
from dataclasses import asdict, replace

import pytest
import torch

from oral_lib import storage
from oral_lib.errors import OralError, PreflightError, UsageError
from oral_lib.evaluation import scoring
from oral_lib.experiments.generators import assemble
from oral_lib.generator import Generator, describe_base
from oral_lib.lora.adapter import check_adapter
from oral_lib.method import tokenization
from oral_lib.method.base_entry import BaseEntry
from oral_lib.method.config import GeneratorConfig, SamplingConfig
from oral_lib.method.denoiser import DenoiserConfig
from oral_lib.method.model import ORAL
from oral_lib.method.recurrence import RecurrenceConfig
from oral_lib.method.stored import compression
from oral_lib.method.tokenization import Layout
from oral_lib.models import loading, registry
from oral_lib.models.text_encoder import TextEncoder
from oral_lib.tasks.rows import task_rows
from oral_lib.tasks.task import load_task, task_names
from oral_lib.zoo.store import Member

torch.set_num_threads(1)
TINY = ("tiny-encoder", "tiny-causal")
SMALL = GeneratorConfig(
    k=100,  # no multiple of what torch draws at once
    components=0,
    component_rotation="none",
    recurrence=RecurrenceConfig(width=32, state=8, head=16, chunk=16),
    denoiser=DenoiserConfig(hidden=32, depth=1),
    text_encoder="tiny",
)
FEW = SamplingConfig(steps=3)
NOT_PROJECTED = replace(FEW, projection="none")
REAL = GeneratorConfig(text_encoder="tiny")  # the sizes of the lab scale
MOVIE, OTHER = "Judge if the critic liked the movie.", "Tell a gadget from a film."


def zoo_of(*loaded):
    """Made-up adapters of two tasks, far from the start and from one another."""
    members, draw = [], torch.Generator().manual_seed(0)
    for base in loaded:
        name, start = base.name, sorted(base.lora_init().items())
        for task in ("movie", "sarcasm"):
            shaken = {n: t + 0.1 + 0.2 * torch.randn(t.shape, generator=draw) for n, t in start}
            members.append(Member(name, task, 0, shaken, {"sha256": task}))
    return members


def made(config=SMALL, names=TINY, sampling=FEW):
    """An untrained generator whose every weight has left its zero start."""
    model, _ = assemble(config, zoo_of(*map(loading.load, names)), sampling=sampling)
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for value in model.network.parameters():
            value.add_(0.05 * torch.randn(value.shape, generator=draw))
    model.network = compression.compressed(model.network)  # as after saving and reading
    return model


@pytest.fixture(scope="module")
def fresh():
    return made()


@pytest.fixture(scope="module")
def trained(smoke):
    return smoke.generator()


@pytest.fixture(scope="module")
def components():
    return made(
        replace(SMALL, components=3, component_rotation="bases")
    )  # of two adapters: one more than there are


@pytest.fixture(params=["fresh", "components", "trained"])
def model(request):
    return request.getfixturevalue(request.param)


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)


def close(one, other):
    return all(torch.allclose(one[n], other[n], atol=1e-5) for n in one)


# ---------------------------------------------------------------- no leak through statistics
@pytest.mark.parametrize("name", registry.names(experiment="language"))
def test_all_zero_tokens_decode_to_the_base_model_exactly(name, request):
    base = request.getfixturevalue("smollm2") if name == "smollm2-135m" else loading.load(name)
    model, shelves = assemble(SMALL if name in TINY else REAL, zoo_of(base))
    known = model.bases[name]
    assert (shelves[name].tokens.flatten(1).norm(dim=1) > 1).all()  # no adapter is at zero
    zeros = torch.zeros(1, known.layout.l, model.config.size)
    [adapter] = tokenization.decode(known.layout, known.statistics.denormalise(zeros))
    assert equal(adapter, base.lora_init())


@pytest.mark.parametrize("task", task_names("language"))
@pytest.mark.parametrize("name", TINY)
def test_all_zero_tokens_score_as_the_base_model_on_every_task(name, task, trained):
    task, base, known = load_task(task), loading.load(name), trained.bases[name]
    if task.scoring == "answer" and base.family == "encoder":
        with pytest.raises(UsageError, match=f"'{task.name}' requires a written answer"):
            base.scoring_kind(task)
        return
    zeros = torch.zeros(1, known.layout.l, trained.config.size)
    [adapter] = tokenization.decode(known.layout, known.statistics.denormalise(zeros))
    rows = task_rows(task, "made").test[:60]
    with base.attach(adapter) as model:
        said = scoring.score(model, base, task, rows)
    with base.attach(base.lora_init()) as model:
        expected = scoring.score(model, base, task, rows)
    assert torch.equal(expected.argmax(-1), said.argmax(-1))
    assert torch.allclose(expected, said, atol=2e-3)  # heads are stored in half precision
    assert said.std() > 0


# ---------------------------------------------------------------- every prototype hears everything
def prototypes(model, text, base):
    """P [l, m]; `base` is a name or a BaseModel."""
    return model.trace(text, base)[0]


def all_moved(one, other):
    moved = (one - other).abs().amax(-1) / one.abs().amax()
    return bool((moved > 1e-5).all())  # a hundred times what rounding does


@pytest.mark.parametrize("name", TINY)
def test_every_prototype_moves_with_the_text(model, name):
    said = prototypes(model, MOVIE, name)
    assert len(said) == model.bases[name].layout.l
    for text in (OTHER, ""):
        assert all_moved(said, prototypes(model, text, name))


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("arm", ["fingerprint", "describe"])
def test_every_prototype_moves_with_the_base(arm, name):
    model = made(replace(SMALL, arm=arm))
    encoder = TextEncoder("tiny")
    text, given = encoder.encode([MOVIE]), torch.tensor([True])
    said = []
    for told in TINY:  # the tokens of one base, the description and weights of either
        c_model = describe_base(loading.load(told), encoder)
        c = model.network.conditions(name, text, given, c_model)
        said.append(model.network.prototypes(name, c)[0])
    assert all_moved(*said)


def grown(name):
    """A later version of a base: the same structure, one weight matrix moved a little."""
    base = loading.load(name)
    weight = list(base.adapted().values())[-1]
    weight.mul_(1 + 0.1 * torch.randn(weight.shape, generator=torch.manual_seed(0)))
    return base


@pytest.mark.parametrize("name", TINY)
def test_every_prototype_moves_when_only_a_weight_of_the_base_does(model, name):
    said = prototypes(model, MOVIE, loading.load(name))
    assert torch.equal(said, prototypes(model, MOVIE, name))  # as stored
    assert all_moved(said, prototypes(model, MOVIE, grown(name)))


@pytest.mark.parametrize("name", TINY)
def test_in_the_describe_arm_weights_are_not_heard(name):
    model = made(replace(SMALL, arm="describe"))
    assert torch.equal(prototypes(model, MOVIE, name), prototypes(model, MOVIE, grown(name)))


@pytest.mark.parametrize("name", TINY)
def test_no_two_tokens_share_a_prototype(model, name):
    said = prototypes(model, MOVIE, name)
    apart = torch.cdist(said, said) + torch.eye(len(said))
    assert apart.min() > 1e-4


# ---------------------------------------------------------------- the loss
def loss(model, k0, **changes):
    b, known = len(k0), model.bases["tiny-causal"]
    text = TextEncoder("tiny").encode([MOVIE, OTHER])
    network = model.network
    c = network.conditions("tiny-causal", text[:b], torch.ones(b, dtype=torch.bool))
    chosen = changes.get("chosen", torch.arange(known.layout.l))
    p = network.prototypes("tiny-causal", c)[:, chosen]
    noise = torch.Generator().manual_seed(3)
    t = torch.randint(1000, (b,), generator=noise)
    eps = torch.randn(k0[:, chosen].shape, generator=noise)
    return network.loss("tiny-causal", k0[:, chosen], p, c, chosen, t, eps)


def test_what_is_said_about_padding_costs_nothing():
    model = made()
    known = model.bases["tiny-causal"]
    k0 = torch.randn(known.mask.shape, generator=torch.Generator().manual_seed(0))
    k0 = (k0 * known.mask)[None]
    said = loss(model, k0)
    model.network.denoiser.register_forward_hook(lambda net, told, out: out + 7.0 * ~known.mask)
    assert not known.mask.all() and torch.equal(loss(model, k0), said)
    model.network.denoiser.register_forward_hook(lambda net, told, out: out + 7.0 * known.mask)
    assert loss(model, k0) > said + 1


def test_regression_answers_at_once_and_its_loss_is_its_error():
    model = made(replace(SMALL, diffusion=None), sampling=NOT_PROJECTED)
    known = model.bases["tiny-causal"]
    network, text = model.network, TextEncoder("tiny").encode([MOVIE])
    c = network.conditions("tiny-causal", text, torch.tensor([True]))
    noise = torch.randn(1, known.layout.l, SMALL.k)
    k0 = network.sample("tiny-causal", c, noise, NOT_PROJECTED)
    assert torch.equal(k0, network.sample("tiny-causal", c, -noise, NOT_PROJECTED))
    assert loss(model, k0.clone()).item() == pytest.approx(0, abs=1e-9)
    off = k0.clone() + 2 * known.mask
    assert loss(model, off).item() == pytest.approx(4, rel=1e-4)


# ---------------------------------------------------------------- generate
@pytest.mark.parametrize("name", TINY)
def test_what_is_generated_fits_its_base_and_differs_from_it(model, name):
    start = loading.load(name).lora_init()
    for adapter in model.generate(MOVIE, name, n=2):
        check_adapter(adapter, start)
        assert all(t.dtype == torch.float32 and t.isfinite().all() for t in adapter.values())
        assert not any(torch.equal(t, start[n]) for n, t in adapter.items())
        assert not any(t.is_inference() for t in adapter.values())  # it may be trained on


def test_the_same_seed_gives_the_same_adapters(model):
    one, two = model.generate(MOVIE, "tiny-causal", 2, seed=5)
    torch.manual_seed(9)
    again = model.generate(MOVIE, "tiny-causal", 2, seed=5)
    assert equal(one, again[0]) and equal(two, again[1])
    assert not close(one, two)
    [other] = model.generate(MOVIE, "tiny-causal", seed=6)
    assert not close(one, other) and not close(two, other)


def test_adapters_do_not_depend_on_chunks_or_on_how_many_are_asked_for(model):
    five = model.generate(MOVIE, "tiny-encoder", 5, seed=1)
    chunks = model.generate(MOVIE, "tiny-encoder", 5, seed=1, chunk=2)
    assert len(five) == len(chunks) == 5
    assert all(close(*pair) for pair in zip(five, chunks, strict=True))
    [first] = model.generate(MOVIE, "tiny-encoder", 1, seed=1)
    assert close(first, five[0])


def test_temperature_sets_the_spread_of_samples(model):
    def spread(temperature):
        made = model.generate(MOVIE, "tiny-causal", 3, temperature=temperature)
        return sum(torch.stack([a[n] for a in made]).std(0).mean() for n in made[0])

    rounding = 1e-6 * spread(1.0)  # a row of a batch may be summed in another order than the next
    assert spread(0.0) < rounding < spread(0.5) < spread(1.0)
    assert spread(None) == spread(model.sampling.temperature)


def test_regression_does_not_depend_on_the_seed(smoke):
    model = smoke.generator("regression")
    [one], [two] = (model.generate(MOVIE, "tiny-causal", seed=s) for s in (0, 1))
    assert equal(one, two)
    [other] = model.generate("", "tiny-causal")
    assert not close(one, other)


def test_a_configuration_comes_back_from_json_and_nothing_is_guessed(refused):
    for config in (SMALL, REAL, replace(SMALL, diffusion=None)):
        assert GeneratorConfig.from_json(json.loads(json.dumps(asdict(config)))) == config
    assert SamplingConfig.from_json(asdict(FEW)) == FEW
    content = asdict(REAL)
    with refused(OralError, "GeneratorConfig", "'arm' is missing"):
        GeneratorConfig.from_json({k: v for k, v in content.items() if k != "arm"})
    with refused(OralError, "GeneratorConfig", "'turned' is unknown"):
        GeneratorConfig.from_json(content | {"turned": True})
    with refused(OralError, "DiffusionConfig", "'matched' is unknown"):
        GeneratorConfig.from_json(content | {"diffusion": content["diffusion"] | {"matched": True}})


def test_not_turned_each_token_keeps_its_own_components():
    torch.manual_seed(0)
    layout = Layout.of({"a": torch.zeros(6, 32)}, 32)
    values, center = torch.randn(5, layout.l, 32), torch.zeros(layout.l, 32)
    fitted = replace(SMALL, k=32, components=4).fit(layout, values, center)
    energy = fitted.normalise(values).square().sum(0)  # the strongest first in every token
    assert (energy.diff(dim=1) < 0).all()
    rotated = replace(SMALL, k=32, components=4, component_rotation="tokens")
    turned = rotated.fit(layout, values, center)
    assert not (turned.normalise(values).square().sum(0).diff(dim=1) < 0).all()


def test_an_empty_text_is_the_learned_vector(fresh):
    [one] = fresh.generate("", "tiny-causal")
    [blank] = fresh.generate(" \n", "tiny-causal")
    assert equal(one, blank)
    no_text = fresh.network.condition.no_text
    kept = no_text.detach().clone()
    with torch.no_grad():
        no_text.add_(1.0)
        [moved] = fresh.generate("", "tiny-causal")
        [told] = fresh.generate(MOVIE, "tiny-causal")
        no_text.copy_(kept)
    assert not close(moved, one)
    assert equal(told, fresh.generate(MOVIE, "tiny-causal")[0])  # only without a text


def test_guidance_goes_from_no_text_over_the_text_to_beyond(model):
    [plain] = model.generate(MOVIE, "tiny-causal")
    [one] = model.generate(MOVIE, "tiny-causal", guidance=1.0)
    [none] = model.generate(MOVIE, "tiny-causal", guidance=0.0)
    [empty] = model.generate("", "tiny-causal")
    [beyond] = model.generate(MOVIE, "tiny-causal", guidance=3.0)
    assert equal(one, plain) and close(none, empty)
    assert not close(none, plain) and not close(beyond, plain)


def test_conditions_mix_from_one_text_to_another_and_an_embedding_stands_for_its_text(model):
    one, other = (model.conditions(text, "tiny-causal") for text in (MOVIE, "Which sum is right?"))
    [first], [last] = (model.sample(c, seed=3) for c in (one, other))
    assert equal(first, model.generate(MOVIE, "tiny-causal", seed=3)[0])
    assert equal(first, model.sample(one.mixed(other, 0.0), seed=3)[0])
    assert close(last, model.sample(one.mixed(other, 1.0), seed=3)[0])
    middle = one.mixed(other, 0.5)
    assert (middle.c - one.c).norm() > 0 and torch.allclose(middle.c, (one.c + other.c) / 2)
    embedded = model.conditions(model.encoder.encode([MOVIE])[0], "tiny-causal")
    assert torch.equal(embedded.c, one.c)


def test_another_base_model_may_be_described_to_the_network(fresh):
    own, other = (fresh.bases[name] for name in ("tiny-causal", "tiny-encoder"))
    same = fresh.conditions(MOVIE, "tiny-causal", (own.structure, own.fingerprint))
    wrong = fresh.conditions(MOVIE, "tiny-causal", (other.structure, other.fingerprint))
    assert torch.equal(same.c, fresh.conditions(MOVIE, "tiny-causal").c)
    assert not torch.allclose(wrong.c, same.c) and wrong.base == "tiny-causal"


def test_conditions_of_two_base_models_are_not_mixed(fresh, refused):
    one, other = (fresh.conditions(MOVIE, name) for name in ("tiny-causal", "tiny-encoder"))
    with refused(UsageError, "'tiny-causal' and 'tiny-encoder'"):
        one.mixed(other, 0.5)


def test_padding_stays_zero_in_a_sample(fresh):
    _, states, _ = fresh.trace(MOVIE, "tiny-encoder")
    mask = fresh.bases["tiny-encoder"].mask
    assert (states[:, ~mask] == 0).all() and (states[:, mask] != 0).any()


def test_a_look_ends_at_what_generate_returns(model):
    p, states, steps = model.trace(MOVIE, "tiny-causal", seed=4)
    known, n = model.bases["tiny-causal"], model.sampling.steps
    assert p.shape == (known.layout.l, model.config.width)
    assert states.shape == (n + 1, known.layout.l, model.config.size)
    assert len(steps) == n + 1 and steps[0] == model.network.diffusion.steps - 1 and steps[-1] == 0
    [seen] = tokenization.decode(known.layout, known.statistics.denormalise(states[-1:]))
    assert close(seen, model.generate(MOVIE, "tiny-causal", seed=4)[0])


def test_regression_has_no_way_to_look_at(smoke, refused):
    with refused(UsageError, "regression"):
        smoke.generator("regression").trace(MOVIE, "tiny-causal")


def test_a_known_base_may_be_given_as_a_model():
    fresh = made(sampling=NOT_PROJECTED)  # projection would take small differences away
    [named] = fresh.generate(MOVIE, "tiny-causal")
    [given] = fresh.generate(MOVIE, loading.load("tiny-causal"))
    [later] = fresh.generate(MOVIE, grown("tiny-causal"))
    assert equal(named, given) and not close(named, later)


def test_what_cannot_be_generated_is_refused(fresh, refused):
    for n in (0, -3):
        with refused(UsageError, f"n={n}"):
            fresh.generate(MOVIE, "tiny-causal", n)
    for temperature in (-0.1, 1.1, float("nan")):
        with refused(UsageError, f"temperature={temperature}"):
            fresh.generate(MOVIE, "tiny-causal", temperature=temperature)
    with refused(UsageError, "'tiny-casual'", "Did you mean 'tiny-causal'?"):
        fresh.generate(MOVIE, "tiny-casual")
    base = loading.load("tiny-causal")
    thin = type(base)(replace(base.spec, rank=2), base.model, base.tokenizer)
    with refused(UsageError, "'tiny-causal'", "layout"):
        fresh.generate(MOVIE, thin)


def test_weights_that_are_no_numbers_are_never_returned(refused):
    model = made()
    with torch.no_grad():
        model.network.enter.bias.fill_(float("nan"))
    with refused(OralError, "NaN"):
        model.generate(MOVIE, "tiny-causal")


# ---------------------------------------------------------------- on disk
def test_a_generator_comes_back_as_it_was(model, tmp_path):
    model.save_pretrained(tmp_path)
    back = Generator.from_pretrained(tmp_path)
    assert equal(back.network.state_dict(), model.network.state_dict())
    assert back.config == model.config and back.network.types == model.network.types
    assert back.sampling == model.sampling
    assert back.manifest["zoo"] == model.manifest["zoo"] and not back.network.training
    for name, known in model.bases.items():
        assert back.bases[name].layout == known.layout
        assert back.bases[name].peft_config == known.peft_config
        assert equal(back.generate(MOVIE, name)[0], model.generate(MOVIE, name)[0])


def test_bases_keep_their_statistics_whatever_their_order(fresh, tmp_path):
    network = ORAL(SMALL, dict(reversed(fresh.bases.items())))
    Generator(network, {"zoo": []}).save_pretrained(tmp_path)
    back = Generator.from_pretrained(tmp_path)
    for name, known in fresh.bases.items():
        assert torch.equal(back.bases[name].center, known.center)
        assert torch.equal(back.bases[name].fingerprint, known.fingerprint)


def test_the_name_of_a_base_may_hold_a_dot(monkeypatch, tmp_path):
    for name in ("tiny-v1.5", "tiny.v2"):
        entry = replace(registry.spec("tiny-causal"), name=name)
        monkeypatch.setitem(registry.REGISTRY, name, entry)
    model = made(names=["tiny-v1.5", "tiny.v2"])
    model.save_pretrained(tmp_path)
    back = Generator.from_pretrained(tmp_path)
    one, two = (back.generate(MOVIE, name)[0] for name in ("tiny-v1.5", "tiny.v2"))
    assert equal(one, model.generate(MOVIE, "tiny-v1.5")[0]) and not close(one, two)


@pytest.fixture
def folder(fresh, tmp_path):
    fresh.save_pretrained(tmp_path / "generator")
    return tmp_path / "generator"


def test_a_folder_without_a_generator_is_refused(folder, refused):
    with refused(PreflightError, "nowhere", "reproduce.sh"):
        Generator.from_pretrained(folder / "nowhere")
    (folder / "manifest.json").unlink()  # written last: without it nothing counts
    with refused(PreflightError, str(folder)):
        Generator.from_pretrained(folder)


def test_a_flipped_byte_is_found(folder, refused):
    file = folder / "generator.safetensors"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with refused(OralError, str(file), "damaged"):
        Generator.from_pretrained(folder)


@pytest.mark.parametrize("content", [{}, [], {"sha256": 3}])
def test_a_manifest_that_says_nothing_is_refused(folder, content, refused):
    storage.write_json(folder / "manifest.json", content)
    with refused(OralError, str(folder)):
        Generator.from_pretrained(folder)


@pytest.mark.parametrize("name", ["generator.safetensors", "config.json"])
def test_a_missing_or_cut_file_is_found(folder, name, refused):
    content = (folder / name).read_bytes()
    (folder / name).unlink()
    with refused(OralError, name):
        Generator.from_pretrained(folder)
    (folder / name).write_bytes(content[: len(content) // 2])
    with refused(OralError, name):
        Generator.from_pretrained(folder)


@pytest.mark.parametrize("number", [1, 99, None])
def test_another_format_is_refused(folder, number, refused):
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(content | {"format": number}))
    with refused(OralError, f"format {number}", str(folder), "train the generator again"):
        Generator.from_pretrained(folder)


@pytest.mark.parametrize("fault", ["width", "unknown", "base", "layout", "k"])
def test_a_configuration_that_does_not_fit_the_weights_is_refused(folder, fault, refused):
    content = json.loads((folder / "config.json").read_text())
    if fault == "width":
        content["generator"]["recurrence"]["width"] = 64
    elif fault == "unknown":
        content["generator"]["colour"] = "red"
    elif fault == "base":
        content["bases"].pop("tiny-causal")
    elif fault == "layout":
        content["bases"]["tiny-causal"]["layout"]["tensors"].pop()
    else:
        content["generator"]["k"] = 50
    (folder / "config.json").write_text(json.dumps(content))
    with refused(OralError):
        Generator.from_pretrained(folder)


def test_a_saved_generator_can_be_moved(folder, fresh, tmp_path):
    shutil.move(folder, tmp_path / "else where")
    back = Generator.from_pretrained(tmp_path / "else where")
    assert equal(back.network.state_dict(), fresh.network.state_dict())


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"recurrence": replace(SMALL.recurrence, width=34, head=17)}, "recurrence.width=34"),
        ({"k": 0}, "k=0"),
        ({"arm": "describ"}, "'describe'"),
        ({"components": 101}, "components=101"),
        ({"components": 3, "component_rotation": "base"}, "'bases'"),
        ({"component_rotation": "tokens"}, "no effect with components=0"),
        ({"uses_text": 1}, "uses_text=1"),
        ({"diffusion": None, "reads_token_mean": True}, "no effect with diffusion=None"),
    ],
)
def test_a_configuration_is_checked_when_it_is_made(changes, word, refused):
    with refused(UsageError, word):
        replace(SMALL, **changes)


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"temperature": 1.5}, "temperature=1.5"),
        ({"noise_sharing": "adaptr"}, "'adapter'"),
        ({"projection": "hul"}, "'hull'"),
        ({"guidance": float("inf")}, "guidance=inf"),
        ({"steps": 0}, "steps=0"),
        ({"steps": 1001}, "steps=1001"),
        ({"temprature": 0.5}, "'temperature'"),
    ],
)
def test_sampling_is_checked_before_anything_is_sampled(changes, word, fresh, refused):
    with refused(UsageError, word):
        fresh.generate(MOVIE, "tiny-causal", **changes)


def test_sampling_options_without_effect_are_refused(smoke, refused):
    for changes in ({"steps": 3}, {"temperature": 0.5}, {"guidance": 2.0}):
        with refused(UsageError, next(iter(changes)), "no effect on plain regression"):
            smoke.generator("regression").generate(MOVIE, "tiny-causal", **changes)
    without_text = made(replace(SMALL, uses_text=False))
    with refused(UsageError, "guidance=2.0", "uses no text"):
        without_text.generate(MOVIE, "tiny-causal", guidance=2.0)
    reads = made(replace(SMALL, reads_token_mean=True))
    with refused(UsageError, "noise_sharing='adapter'", "'token'"):
        reads.generate(MOVIE, "tiny-causal")


def test_without_the_zoo_there_is_no_projection(refused):
    whole = made(names=["tiny-encoder"])
    entry = whole.bases["tiny-encoder"]
    about = entry.structure, entry.fingerprint, entry.peft_config
    bare = Generator(
        ORAL(SMALL, {"tiny-encoder": BaseEntry(entry.layout, entry.statistics, None, *about)})
    )
    for projection in ("hull", "span"):
        with refused(UsageError, "'tiny-encoder'", "projection='none'"):
            bare.generate(MOVIE, "tiny-encoder", projection=projection)
    [adapter] = bare.generate(MOVIE, "tiny-encoder", sampling=NOT_PROJECTED)
    assert all(tensor.isfinite().all() for tensor in adapter.values())


def test_an_unknown_text_encoder_is_named_when_it_is_loaded(refused):
    model = Generator(ORAL(replace(SMALL, text_encoder="minilm"), made().bases))
    with refused(UsageError, "'minilm'", "'minilm-l6'"):
        model.generate(MOVIE, "tiny-causal")


def test_one_draw_of_noise_serves_all_tokens_of_an_adapter(model):
    stream = torch.Generator().manual_seed(0)
    length = model.bases["tiny-causal"].layout.l
    one, two = (model.network.noise("tiny-causal", FEW, stream) for _ in range(2))
    assert one.shape == (length, model.config.size)
    assert (one == one[:1]).all() and not (one == two).any()
    shared = model.generate(MOVIE, "tiny-causal")
    each = model.generate(MOVIE, "tiny-causal", noise_sharing="token")
    assert not equal(shared[0], each[0])  # and sampling heeds it
    apart = replace(FEW, noise_sharing="token")
    own = model.network.noise("tiny-causal", apart, stream)
    assert own.shape == one.shape and own.unique(dim=0).shape == own.shape


@pytest.mark.parametrize("reads", [False, True])
def test_tokens_depend_on_each_other_where_their_mean_is_read_and_nowhere_else(reads, tmp_path):
    members, apart = zoo_of(loading.load("tiny-encoder")), replace(FEW, noise_sharing="token")
    model, _ = assemble(replace(SMALL, reads_token_mean=reads), members, sampling=apart)
    with torch.no_grad():
        model.network.denoiser.leave.weight.normal_()  # it starts at zero
    network = model.network = compression.compressed(model.network)
    known = model.bases["tiny-encoder"]
    length, size, m = known.layout.l, model.config.size, model.config.width
    x, t = torch.randn(2, length, size), torch.tensor([3, 3])
    p, c = torch.randn(2, length, m), torch.randn(2, m)
    before = network.predict(x, t, p, c)
    x[0, 0] += 1
    changed = (network.predict(x, t, p, c) != before).any(-1)
    assert changed[0, 0] and not changed[1].any()  # adapters do not depend on each other
    assert bool(changed[0, 1:].all()) == bool(changed[0, 1:].any()) == reads
    model.save_pretrained(tmp_path)
    back = Generator.from_pretrained(tmp_path)
    assert back.config.reads_token_mean == reads and back.sampling == apart
    assert equal(back.network.state_dict(), network.state_dict())
    made, again = (m.generate(MOVIE, "tiny-encoder", seed=3)[0] for m in (model, back))
    assert equal(made, again)
    if reads:
        network.predict(x, t, p, c).square().mean().backward()
        assert network.mean.weight.grad.abs().sum() > 0


def test_a_denoiser_starts_as_wide_as_there_are_components():
    members = zoo_of(loading.load("tiny-encoder"))  # two of them
    for asked in (2, 32):
        config = replace(SMALL, components=asked, component_rotation="bases")
        model, _ = assemble(config, members)
        size = (
            model.network.denoiser.enter.weight[:, :2].square().mean() * 3 * 2
        )  # of a draw for two: 1
        assert 0.6 < size < 1.5, asked


@pytest.mark.parametrize("projection", ["hull", "span"])
@pytest.mark.parametrize(
    "changes", [{}, {"components": 3, "component_rotation": "bases"}, {"diffusion": None}]
)
def test_what_is_made_is_a_mixture_of_zoo_adapters_with_the_same_shares_everywhere(
    changes, projection, tmp_path
):
    sampling = replace(FEW, projection=projection)
    model = made(replace(SMALL, **changes), ["tiny-encoder"], sampling)
    known = model.bases["tiny-encoder"]

    def told(*these):
        return known.statistics.normalise(tokenization.encode(known.layout, these)).flatten(1)

    zoo = told(*(m.tensors for m in zoo_of(loading.load("tiny-encoder"))))

    def far(adapter):  # the part of it that is no mixture, and the shares of the rest
        own = told(adapter)
        shares = torch.linalg.lstsq(zoo.mT, own.mT).solution
        return (shares.mT @ zoo - own).norm() / own.norm(), shares

    [mixed] = model.generate(MOVIE, "tiny-encoder")
    model.save_pretrained(tmp_path)
    assert equal(mixed, Generator.from_pretrained(tmp_path).generate(MOVIE, "tiny-encoder")[0])
    rest, shares = far(mixed)
    [free] = model.generate(MOVIE, "tiny-encoder", projection="none")
    assert rest < 1e-3 < 0.1 < far(free)[0]
    between = shares.min() > -1e-3 and abs(shares.sum() - 1) < 1e-3
    assert between == (projection == "hull")


def test_examples_of_a_task_change_the_adapter_in_any_order_and_without_a_sentence():
    model = made(replace(SMALL, examples=True), sampling=NOT_PROJECTED)
    rows = [("a superb film", 1), ("the battery died", 0), ("wooden acting", 1)]
    plain, told = model.generate(MOVIE, TINY[0]), model.generate(MOVIE, TINY[0], examples=rows)
    turned = model.generate(MOVIE, TINY[0], examples=rows[::-1])
    shown = model.generate("", TINY[0], examples=rows)
    name = next(iter(told[0]))
    assert not torch.allclose(told[0][name], plain[0][name])
    assert torch.allclose(told[0][name], turned[0][name], atol=1e-5)
    assert not torch.allclose(shown[0][name], model.generate("", TINY[0])[0][name])


@pytest.mark.parametrize("label", [-1, 99, "yes", True])
def test_an_example_needs_the_number_of_its_label(label):
    model = made(replace(SMALL, examples=True))
    with pytest.raises(UsageError, match="label"):
        model.generate(MOVIE, TINY[0], examples=[("a superb film", label)])


def test_a_generator_without_a_reader_of_examples_refuses_them():
    with pytest.raises(UsageError, match="reads no examples"):
        made().generate(MOVIE, TINY[0], examples=[("a superb film", 1)])
