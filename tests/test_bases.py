"""Base models: what is attached leaves no trace, and a generator hears of weights, never of names.

The real models are small enough to keep the same promises here.
"""

import pytest
import torch
from transformers.utils import logging

from oral_lib import bases, tasks
from oral_lib.bases import BaseModel
from oral_lib.errors import OralError, UsageError

torch.set_num_threads(1)
TINY = ("tiny-encoder", "tiny-causal")
TEXTS = ["a superb film", "dull and far too long but funny in this scene"]


@pytest.fixture(scope="module", params=bases.names())
def base(request):
    if request.param == "smollm2-135m":
        return request.getfixturevalue("smollm2")
    return bases.load(request.param)


def shaken(tensors, by=0.1):
    """An adapter that is not the base model."""
    draw = torch.Generator().manual_seed(0)
    return {n: t + by * torch.randn(t.shape, generator=draw) for n, t in sorted(tensors.items())}


@torch.inference_mode()
def logits(model, base):
    return model(**base.tokens(TEXTS)).logits


def bits(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)


# ---------------------------------------------------------------- attach
def test_what_was_attached_leaves_no_trace(base):
    before, said = bits(base.model), logits(base.model, base)
    with base.attach(shaken(base.lora_init())) as model:
        assert not torch.equal(logits(model, base), said)
    assert equal(bits(base.model), before)  # bit for bit, the encoder's head too
    assert torch.equal(logits(base.model, base), said)
    kinds = {type(module).__module__.split(".")[0] for module in base.model.modules()}
    assert "peft" not in kinds
    assert not any(p.requires_grad for p in base.model.parameters())


@pytest.mark.parametrize("name", TINY)
def test_an_error_inside_detaches_too(name):
    base = bases.load(name)
    before = bits(base.model)
    with pytest.raises(ZeroDivisionError), base.attach(shaken(base.lora_init())):
        1 / 0  # noqa: B018
    assert equal(bits(base.model), before)


@pytest.mark.parametrize("name", TINY)
def test_nothing_is_random_in_an_attached_model(name):
    base = bases.load(name)
    with base.attach(shaken(base.lora_init())) as model:
        assert torch.equal(logits(model, base), logits(model, base))


@pytest.mark.parametrize("name", TINY)
def test_an_adapter_that_does_not_fit_is_refused(name, refused):
    base = bases.load(name)
    start = base.lora_init()
    first = sorted(start)[0]
    lacking = {n: t for n, t in start.items() if n != first}
    with base.attach() as model:
        before = bits(model)
        with refused(OralError, first):
            bases.put(model, lacking)
        with refused(OralError, "base_model.model.alien"):
            bases.put(model, start | {"base_model.model.alien.lora_A.weight": torch.ones(4, 2)})
        with refused(OralError):
            bases.put(model, {})
        assert equal(bits(model), before)


def test_what_is_taken_is_what_was_put_in_full_precision(base):
    tensors = shaken(base.lora_init())
    with base.attach(tensors) as model:
        assert equal(bases.take(model), tensors)


# ---------------------------------------------------------------- the shared start
def test_the_shared_start_is_the_base_model(base):
    start = base.lora_init()
    assert all((t == 0).all() for n, t in start.items() if "lora_B" in n)
    assert all((t != 0).any() for n, t in start.items() if "lora_A" in n)
    with torch.inference_mode():
        said = base.model.base_model(**base.tokens(TEXTS)).last_hidden_state
        with base.attach(start) as model:
            core = model.get_base_model().base_model
            assert torch.equal(core(**base.tokens(TEXTS)).last_hidden_state, said)


@pytest.mark.parametrize("name", [*TINY, "minilm-l6"])
def test_the_shared_start_is_the_same_in_every_process(name):
    torch.manual_seed(1)
    one = bases.load(name).lora_init()
    torch.manual_seed(2)
    state = torch.get_rng_state()
    base = bases.load(name)
    after_load = torch.get_rng_state()
    assert equal(base.lora_init(), one)
    assert torch.equal(torch.get_rng_state(), after_load)  # and draws nothing from others
    if name in TINY:
        assert torch.equal(after_load, state)


def test_bases_do_not_share_a_start():
    one, other = (bases.load(name).lora_init() for name in TINY)
    ends = [next(t for n, t in sorted(x.items()) if "lora_A" in n) for x in (one, other)]
    assert not torch.equal(*ends)


# ---------------------------------------------------------------- fingerprint and description
def test_a_fingerprint_is_deterministic(base):
    seen = base.fingerprint()
    assert seen.shape == (bases.FINGERPRINT,) and seen.dtype == torch.float32
    assert seen.isfinite().all() and seen.std() > 0
    torch.manual_seed(5)
    assert torch.equal(base.fingerprint(), seen)
    if base.name != "smollm2-135m":  # it is loaded once
        assert torch.equal(bases.load(base.name).fingerprint(), seen)


def test_a_fingerprint_does_not_depend_on_the_order_of_modules(base, monkeypatch):
    seen, weights = base.fingerprint(), base.adapted()
    monkeypatch.setattr(base, "adapted", lambda: dict(reversed(weights.items())))
    assert torch.equal(base.fingerprint(), seen)


@pytest.mark.parametrize("name", TINY)
def test_a_fingerprint_moves_with_every_adapted_weight(name):
    base = bases.load(name)
    seen = base.fingerprint()
    assert len(base.adapted()) > 10
    for weight in base.adapted().values():
        kept = weight.clone()
        weight.mul_(1 + 0.05 * torch.randn(weight.shape, generator=torch.manual_seed(0)))
        assert (base.fingerprint() - seen).norm() > 1e-3 * seen.norm()
        weight.copy_(kept)
    assert torch.equal(base.fingerprint(), seen)


def test_no_two_bases_share_a_fingerprint():
    prints = [bases.load(name).fingerprint() for name in (*TINY, "minilm-l6")]
    prints = torch.nn.functional.normalize(torch.stack(prints), dim=-1)
    assert (prints @ prints.T - torch.eye(3)).abs().max() < 0.9


def test_a_fingerprint_is_refused_while_an_adapter_is_attached(refused):
    base = bases.load("tiny-causal")
    with base.attach(), refused(OralError, "tiny-causal", "attach"):
        base.fingerprint()


def test_a_description_holds_the_structure_and_never_the_name(base):
    told = base.describe().lower()
    config = base.model.config
    for fact in (config.num_hidden_layers, config.hidden_size, config.vocab_size, base.spec.rank):
        assert str(fact) in told
    hub = base.spec.hub.lower()
    for secret in {base.name, hub, *hub.split("/"), base.name.split("-")[0]}:
        assert secret not in told


def test_a_description_does_not_depend_on_the_weights():
    base = bases.load("tiny-causal")
    told = base.describe()
    for weight in base.adapted().values():
        weight.zero_()
    assert base.describe() == told


# ---------------------------------------------------------------- tokens and loading
def test_prompts_are_padded_on_the_right(base):
    batch = base.tokens(["film", "a superb film of the actor"])
    assert batch["attention_mask"][0].tolist() == sorted(batch["attention_mask"][0], reverse=True)
    assert 0 < batch["attention_mask"][0].sum() < batch["attention_mask"][1].sum()


def test_too_long_a_text_keeps_what_matters(base):
    task = tasks.load("movie")
    long = "film " * 200
    text = task.prompt(long) if base.family == "causal" else "superb " + long
    ids = base.tokens([text], 50)["input_ids"][0]
    assert len(ids) == 50
    told = base.tokenizer.decode(ids).lower()
    if base.family == "causal":
        assert told.replace(" ", "").endswith("sentiment:")
    else:
        assert "superb" in told


def test_loading_a_base_does_not_change_another():
    encoder = bases.load("tiny-encoder")
    before = encoder.tokens(["superb " + "film " * 100])["input_ids"]
    bases.load("tiny-causal")
    assert torch.equal(encoder.tokens(["superb " + "film " * 100])["input_ids"], before)


def test_loading_leaves_the_verbosity_of_transformers_alone():
    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    bases.load("minilm-l6")
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before


@pytest.mark.parametrize("labels", [2, 3])
def test_an_encoder_has_a_head_of_as_many_classes_as_labels(labels):
    base = bases.load("tiny-encoder", labels=labels)
    heads = {t.shape[0] for n, t in base.lora_init().items() if "lora_" not in n}
    assert heads == {labels}
    assert logits(base.model, base).shape[-1] == labels


def test_an_unknown_base_suggests_the_nearest(refused):
    with refused(UsageError, "'smollm-135m'", "Did you mean 'smollm2-135m'?"):
        bases.load("smollm-135m")


def test_a_new_base_is_one_entry(monkeypatch):
    entry = bases.BaseSpec("tiny-v1.5", "causal", None, "tiny-v1.5", ("q_proj",), rank=2)
    monkeypatch.setitem(bases.REGISTRY, entry.name, entry)
    base = bases.load("tiny-v1.5")
    assert isinstance(base, BaseModel) and "tiny-v1.5" in bases.names()
    assert {t.shape[0] for n, t in base.lora_init().items() if "lora_A" in n} == {2}
