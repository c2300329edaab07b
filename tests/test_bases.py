"""Base models: what is attached leaves no trace, and a generator hears of weights, never of names.

The real models are small enough to keep the same promises here.
"""

import errno

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers.utils import logging

from oral_lib import seeds
from oral_lib.assets import packages, sources
from oral_lib.assets.cache import weights_hash
from oral_lib.checkpoints import hugging_face
from oral_lib.errors import OralError, PreflightError, UsageError
from oral_lib.lora import peft_model
from oral_lib.lora.peft_model import put, take
from oral_lib.lora.stacked import Stack, attached
from oral_lib.method import conditioning
from oral_lib.models import loading, registry, text
from oral_lib.models.base import BaseModel
from oral_lib.models.text import CausalModel, attention
from oral_lib.models.text_encoder import TextEncoder
from oral_lib.tasks.task import load_task

torch.set_num_threads(1)
TINY = ("tiny-encoder", "tiny-causal")
TEXTS = ["a superb film", "dull and far too long but funny in this scene"]


@pytest.fixture(scope="module", params=registry.names(experiment="language"))
def base(request):
    if request.param == "smollm2-135m":
        return request.getfixturevalue("smollm2")
    return loading.load(request.param)


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
    base = loading.load(name)
    before = bits(base.model)
    with pytest.raises(ZeroDivisionError), base.attach(shaken(base.lora_init())):
        1 / 0  # noqa: B018
    assert equal(bits(base.model), before)


@pytest.mark.parametrize("name", TINY)
def test_nothing_is_random_in_an_attached_model(name):
    base = loading.load(name)
    with base.attach(shaken(base.lora_init())) as model:
        assert torch.equal(logits(model, base), logits(model, base))


@pytest.mark.parametrize("name", TINY)
def test_an_adapter_that_does_not_fit_is_refused(name, refused):
    base = loading.load(name)
    start = base.lora_init()
    first = sorted(start)[0]
    lacking = {n: t for n, t in start.items() if n != first}
    with base.attach() as model:
        before = bits(model)
        with refused(OralError, first):
            put(model, lacking)
        with refused(OralError, "base_model.model.alien"):
            put(model, start | {"base_model.model.alien.lora_A.weight": torch.ones(4, 2)})
        with refused(OralError):
            put(model, {})
        assert equal(bits(model), before)


def test_what_is_taken_is_what_was_put_in_full_precision(base):
    tensors = shaken(base.lora_init())
    with base.attach(tensors) as model:
        assert equal(take(model), tensors)


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


@pytest.mark.parametrize("name", [*TINY, "tiny-convnet", "tiny-vision-language"])
def test_the_shared_start_is_read_without_a_trace(name):
    """The model stays the same object with the same modules, and no generator is moved."""
    base = loading.load(name, source="made")
    model, modules = base.model, dict(base.model.named_modules())
    before, state = bits(model), torch.get_rng_state()
    start = base.lora_init()
    assert base.model is model and equal(bits(model), before)
    after = dict(model.named_modules())
    assert after.keys() == modules.keys() and all(after[n] is modules[n] for n in modules)
    assert not hasattr(model, "peft_config")
    assert torch.equal(torch.get_rng_state(), state)
    with base.attach(start):
        wrapped = dict(model.named_modules())
        assert equal(base.lora_init(), start)  # computed before
        assert dict(model.named_modules()).keys() == wrapped.keys()
    for tensor in start.values():
        tensor.zero_()
    again = base.lora_init()
    assert not equal(again, start) and equal(again, loading.load(name, source="made").lora_init())


def test_the_shared_start_is_what_peft_itself_starts_from(base):
    """The tensors, in PEFT's order, are those of wrapping the model under the same seed."""
    start = base.lora_init()
    with base.attach(start) as model:
        assert list(take(model)) == list(start)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seeds.integer(0, "lora-init", registry.root(base.spec).name))
        model = peft_model.wrap(base.model, base.peft_config())
        tensors = take(model)
        for name in sorted(tensors):
            if "lora_A" in name:
                torch.nn.init.kaiming_uniform_(tensors[name], a=5**0.5)
            elif "lora_B" not in name:
                tensors[name].normal_(std=0.02)
        peft_model.unload(model)
    assert equal(tensors, start)


def test_the_shared_start_is_refused_while_an_adapter_is_attached(refused):
    base, start = (loading.load("tiny-causal") for _ in range(2))
    with base.attach(start.lora_init()), refused(OralError, "tiny-causal", "attach"):
        base.lora_init()


@pytest.mark.parametrize("name", [*TINY, "minilm-l6", "minilm-l3"])
def test_the_shared_start_is_the_same_in_every_process(name):
    torch.manual_seed(1)
    one = loading.load(name).lora_init()
    torch.manual_seed(2)
    state = torch.get_rng_state()
    base = loading.load(name)
    after_load = torch.get_rng_state()
    assert equal(base.lora_init(), one)
    assert torch.equal(torch.get_rng_state(), after_load)  # and draws nothing from others
    if name in TINY:
        assert torch.equal(after_load, state)


def test_bases_do_not_share_a_start():
    one, other = (loading.load(name).lora_init() for name in TINY)
    ends = [next(t for n, t in sorted(x.items()) if "lora_A" in n) for x in (one, other)]
    assert not torch.equal(*ends)


# ---------------------------------------------------------------- fingerprint and description
def test_a_fingerprint_is_deterministic(base):
    seen = base.fingerprint()
    assert seen.shape == (conditioning.FINGERPRINT,) and seen.dtype == torch.float32
    assert seen.isfinite().all() and seen.std() > 0
    torch.manual_seed(5)
    assert torch.equal(base.fingerprint(), seen)
    if base.name != "smollm2-135m":  # it is loaded once
        assert torch.equal(loading.load(base.name).fingerprint(), seen)


def test_a_fingerprint_does_not_depend_on_the_order_of_modules(base, monkeypatch):
    seen, weights = base.fingerprint(), base.adapted()
    monkeypatch.setattr(base, "adapted", lambda: dict(reversed(weights.items())))
    assert torch.equal(base.fingerprint(), seen)


@pytest.mark.parametrize("name", TINY)
def test_a_fingerprint_moves_with_every_adapted_weight(name):
    base = loading.load(name)
    seen = base.fingerprint()
    assert len(base.adapted()) > 10
    for weight in base.adapted().values():
        kept = weight.clone()
        weight.mul_(1 + 0.05 * torch.randn(weight.shape, generator=torch.manual_seed(0)))
        assert (base.fingerprint() - seen).norm() > 1e-3 * seen.norm()
        weight.copy_(kept)
    assert torch.equal(base.fingerprint(), seen)


def test_no_two_bases_share_a_fingerprint():
    names = (*TINY, "minilm-l6", "minilm-l3")
    prints = torch.stack([loading.load(name).fingerprint() for name in names])
    prints = torch.nn.functional.normalize(prints, dim=-1)
    assert (prints @ prints.T - torch.eye(len(names))).abs().max() < 0.9


def test_a_fingerprint_is_refused_while_an_adapter_is_attached(refused):
    base = loading.load("tiny-causal")
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
    base = loading.load("tiny-causal")
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
    task = load_task("movie")
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
    encoder = loading.load("tiny-encoder")
    before = encoder.tokens(["superb " + "film " * 100])["input_ids"]
    loading.load("tiny-causal")
    assert torch.equal(encoder.tokens(["superb " + "film " * 100])["input_ids"], before)


def test_loading_leaves_the_verbosity_of_transformers_alone():
    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    loading.load("minilm-l6")
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before


@pytest.mark.parametrize("labels", [2, 3])
@pytest.mark.parametrize("name", ["tiny-encoder", "minilm-l6", "minilm-l3"])
def test_an_encoder_has_a_head_of_as_many_classes_as_labels(name, labels):
    base = loading.load(name, labels=labels)
    heads = {t.shape[0] for n, t in base.lora_init().items() if "lora_" not in n}
    assert heads == {labels}
    assert logits(base.model, base).shape[-1] == labels


def test_an_unknown_base_suggests_the_nearest(refused):
    with refused(UsageError, "'smollm-135m'", "Did you mean 'smollm2-135m'?"):
        loading.load("smollm-135m")


def test_a_new_base_is_one_entry(monkeypatch):
    entry = registry.BaseSpec("tiny-v1.5", "causal", None, "tiny-v1.5", ("q_proj",), rank=2)
    monkeypatch.setitem(registry.REGISTRY, entry.name, entry)
    base = loading.load("tiny-v1.5")
    assert isinstance(base, BaseModel) and "tiny-v1.5" in registry.names()
    assert {t.shape[0] for n, t in base.lora_init().items() if "lora_A" in n} == {2}


# ---------------------------------------------------------------- the registry
PAPER = ("mistral-7b", "llama-2-7b", "llama-3.1-8b", "gemma-2-9b", "qwen2.5-7b")


def test_the_packages_offer_the_models_that_need_no_terms(monkeypatch):
    monkeypatch.delenv("ORAL_ACCEPT", raising=False)
    assert set(registry.names(experiment="language")) == {
        "minilm-l6",
        "minilm-l3",
        "smollm2-135m",
        *TINY,
    }
    lites = {f"efficientnet-lite{n}" for n in range(3)}
    assert set(registry.names(experiment="vision")) == {*lites, "tiny-convnet", "tiny-vit"}
    yes_no = {"efficientnet-lite0-yes-no", "tiny-convnet-yes-no"}
    assert set(registry.names(experiment="unseen")) == yes_no
    monkeypatch.setenv("ORAL_ACCEPT", "gemma")
    assert set(registry.names(experiment="language")) - {"gemma-3-270m"} == {
        "minilm-l6",
        "minilm-l3",
        "smollm2-135m",
        *TINY,
    }


def test_the_hub_offers_more_and_a_folder_what_it_holds(monkeypatch, tmp_path):
    monkeypatch.delenv("ORAL_ACCEPT", raising=False)
    there = set(registry.names("hub"))
    assert there >= {"qwen2.5-0.5b", "llama-3.2-1b", "mistral-7b"} and "gemma-2-9b" not in there
    (tmp_path / "models" / "qwen2.5-0.5b").mkdir(parents=True)
    (tmp_path / "models" / "qwen2.5-0.5b" / "config.json").write_text("{}")
    assert set(registry.names(f"local:{tmp_path}")) - set(registry.names()) == {"qwen2.5-0.5b"}


def test_a_version_is_in_reach_where_its_first_is():
    assert registry.in_reach("smollm2-135m-t4") and registry.in_reach("tiny-causal-t1", "made")
    assert not registry.in_reach("qwen2.5-0.5b")
    told = [(entry.name, entry.version) for entry in registry.lineage("smollm2-135m-t2")]
    assert told == [("smollm2-135m", "t0"), ("smollm2-135m-t1", "t1"), ("smollm2-135m-t2", "t2")]


def test_every_model_has_its_weights_pinned_somewhere():
    for name in registry.REGISTRY:
        first = registry.lineage(name)[0]
        if first.asset and first.family not in ("vision", "diffusion"):
            repo, revision = sources.HUB[first.asset]
            assert first.hub == repo and len(revision) == 40
        elif first.asset and first.asset not in packages.ASSETS:  # only a folder may have it
            assert sources.HUB[first.asset] == (first.hub, "")


def test_a_model_out_of_reach_says_how_to_have_it(refused, monkeypatch):
    monkeypatch.delenv("ORAL_ACCEPT", raising=False)
    with refused(PreflightError, "llama-3.2-1b", "--source hub", "local:DIR"):
        loading.load("llama-3.2-1b")
    with refused(PreflightError, "Gemma Terms", "ORAL_ACCEPT=gemma"):
        loading.load("gemma-3-270m")


# ---------------------------------------------------------------- the architectures of the paper
SMALL = {
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.2,
}
KINDS = {
    "mistral-7b": transformers.MistralConfig,
    "llama-2-7b": transformers.LlamaConfig,
    "llama-3.1-8b": transformers.LlamaConfig,
    "gemma-2-9b": transformers.Gemma2Config,
    "qwen2.5-7b": transformers.Qwen2Config,
    "gemma-3-270m": transformers.Gemma3TextConfig,
    "qwen2.5-0.5b": transformers.Qwen2Config,
    "llama-3.2-1b": transformers.LlamaConfig,
}


def large(name, **sizes):
    """A tiny random model of the architecture of `name`, under its registry entry."""
    tokenizer = text.word_tokenizer()
    tokenizer.padding_side = "right"
    config = KINDS[name](**SMALL | sizes, vocab_size=len(tokenizer), pad_token_id=0)
    if hasattr(config, "head_dim"):
        config.head_dim = 12
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    model.name_or_path = registry.spec(name).hub
    return CausalModel(registry.spec(name), model, tokenizer)


@pytest.fixture(params=KINDS)
def architecture(request):
    return large(request.param)


def test_the_paper_has_an_entry_for_each_of_its_models():
    assert set(PAPER) <= set(KINDS) and set(KINDS) <= set(registry.REGISTRY)


def test_an_adapter_fits_every_architecture_and_leaves_no_trace(architecture):
    before, said = bits(architecture.model), logits(architecture.model, architecture)
    start = architecture.lora_init()
    assert len(start) == 2 * 2 * SMALL["num_hidden_layers"]  # A and B of two modules a layer
    with architecture.attach(shaken(start)) as model:
        assert equal(take(model), shaken(start))
        assert not torch.allclose(logits(model, architecture), said, atol=1e-3)
    assert equal(bits(architecture.model), before)


def test_every_architecture_is_told_by_its_structure_and_its_weights(architecture):
    told = architecture.describe()
    assert "48" in told and "key-value heads" in told and architecture.spec.hub not in told
    seen = architecture.fingerprint()
    assert seen.shape == (conditioning.FINGERPRINT,) and seen.isfinite().all()
    other = large(architecture.name, hidden_size=72)
    assert other.describe() != told and not torch.allclose(other.fingerprint(), seen, atol=0.1)


def test_attention_is_fused_on_a_gpu_unless_a_model_caps_its_logits():
    told = {name: attention(kind(), "cuda") for name, kind in KINDS.items()}
    assert {name for name, how in told.items() if how == "eager"} == {"gemma-2-9b"}
    assert attention(transformers.BertConfig(), "cuda") == "sdpa"
    assert attention(transformers.BertConfig(), "cpu") == "eager"


def test_adapters_are_stacked_on_every_architecture_as_peft_attaches_them(architecture):
    start, config = architecture.lora_init(), architecture.peft_config()
    adapters = [shaken(start, 0.1), shaken(start, 0.2)]
    stack = Stack(start, 2)
    with torch.no_grad():
        for name, part in stack.parts.items():
            part.copy_(torch.stack([adapter[name] for adapter in adapters]))
    batch = architecture.tokens(TEXTS)
    twice = {name: torch.cat([value, value]) for name, value in batch.items()}
    scale = config.lora_alpha / config.r
    with torch.inference_mode(), attached(architecture.model, stack, scale) as model:
        together = model(**twice).logits.chunk(2)
    for adapter, seen in zip(adapters, together, strict=True):
        with architecture.attach(adapter) as model:
            torch.testing.assert_close(logits(model, architecture), seen, atol=1e-4, rtol=1e-3)


def test_frequencies_of_positions_are_not_rounded():
    exact = loading.load("tiny-causal", source="made", dtype=torch.float32).model
    half = loading.load("tiny-causal", source="made", dtype=torch.bfloat16).model
    assert half.dtype == torch.bfloat16
    wanted = {n: v for n, v in exact.named_buffers() if "inv_freq" in n}
    assert wanted
    for name, value in wanted.items():
        assert torch.equal(half.get_buffer(name), value)


# ---------------------------------------------------------------- a user's own files
@pytest.fixture
def own(tmp_path):
    """(source, folder) of a small language model that the user put there himself."""
    base, folder = loading.load("tiny-causal"), tmp_path / "models" / "smollm2-135m"
    base.model.save_pretrained(folder)
    base.tokenizer.save_pretrained(folder)
    return f"local:{tmp_path}", folder


def test_a_users_own_model_is_read(own):
    source, _ = own
    base = loading.load("smollm2-135m", source=source)
    assert equal(bits(base.model), bits(loading.load("tiny-causal").model))


def test_weights_of_another_model_are_never_replaced_by_random_ones(own, refused):
    source, folder = own
    weights = load_file(folder / "model.safetensors")
    save_file({f"module.{n}": v for n, v in weights.items()}, folder / "model.safetensors")
    with refused(OralError, str(folder), "does not fit"):
        loading.load("smollm2-135m", source=source)
    (folder / "model.safetensors").write_bytes(b"half")
    with refused(OralError, str(folder), "does not hold a complete smollm2-135m"):
        loading.load("smollm2-135m", source=source)


def test_pickled_weights_are_never_read(own, refused):
    source, folder = own
    (folder / "model.safetensors").unlink()
    torch.save(bits(loading.load("tiny-causal").model), folder / "pytorch_model.bin")
    with refused(OralError, str(folder), "pickled weights are never read"):
        loading.load("smollm2-135m", source=source)
    with refused(PreflightError, str(folder), "has no *.safetensors file"):
        weights_hash(folder)


def test_a_text_encoder_without_all_its_weights_is_refused(tmp_path, refused):
    base, folder = loading.load("tiny-encoder"), tmp_path / "models" / "minilm-l6"
    base.model.bert.save_pretrained(folder)
    base.tokenizer.save_pretrained(folder)
    weights = load_file(folder / "model.safetensors")
    TextEncoder("minilm-l6", source=f"local:{tmp_path}")
    less = {n: v for n, v in weights.items() if not n.startswith("encoder.layer.1.")}
    save_file(less, folder / "model.safetensors", {"format": "pt"})
    with refused(OralError, str(folder), "encoder.layer.1.", "does not fit"):
        TextEncoder("minilm-l6", source=f"local:{tmp_path}")


def test_a_task_of_more_labels_than_the_head_has_classes_is_refused(refused):
    with refused(UsageError, "'gtsrb' has 43 labels", "'tiny-convnet'"):
        loading.load("tiny-convnet").scoring_kind(load_task("gtsrb"))


# ---------------------------------------------------------------- faults that are not the files'
FAULTS = [
    torch.OutOfMemoryError("CUDA out of memory"),
    MemoryError(),
    OSError(errno.ENOMEM, "Cannot allocate memory"),
    AttributeError("a bug"),
    RuntimeError("another bug"),
]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: type(fault).__name__)
def test_too_little_memory_and_bugs_are_never_told_as_damaged_files(own, fault, monkeypatch):
    source, _ = own

    def fails(*args, **options):
        raise fault

    for module, name in ((text, "AutoModelForCausalLM"), (hugging_face, "AutoTokenizer")):
        with monkeypatch.context() as patch:
            patch.setattr(getattr(module, name), "from_pretrained", fails)
            with pytest.raises(type(fault)) as caught:
                loading.load("smollm2-135m", source=source)
            assert caught.value is fault


@pytest.mark.parametrize(
    ("name", "whole"),
    [
        ("config.json", "smollm2-135m"),
        ("tokenizer.json", "tokenizer of smollm2-135m"),
        ("model.safetensors", "smollm2-135m"),
    ],
)
def test_a_file_that_is_cut_off_is_named_as_damage(own, name, whole, refused):
    source, folder = own
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: len(content) // 2])
    with refused(OralError, str(folder), f"does not hold a complete {whole}", "again"):
        loading.load("smollm2-135m", source=source)


def test_weights_of_other_shapes_are_refused_by_name(own, refused):
    source, folder = own
    weights = load_file(folder / "model.safetensors")
    name = next(n for n in weights if "q_proj" in n)
    weights[name] = weights[name][:3].clone()
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with refused(OralError, str(folder), name, "does not fit"):
        loading.load("smollm2-135m", source=source)
