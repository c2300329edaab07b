"""Every variant of PEFT's LoRA is loaded as PEFT itself merges it, or refused in one line."""

import json
import re
import time
from itertools import product

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import oral_lib  # noqa: F401 - makes transformers importable beside a torchvision without CUDA
from oral_lib import lora
from oral_lib.errors import OralError
from oral_lib.lora import patterns, peft_model
from oral_lib.lora.adapter import LoraSettings, factors_by_module
from oral_lib.lora.peft_folder import CONFIG, WEIGHTS, Card

torch.set_num_threads(1)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.q, self.v, self.out_proj = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6)


class Net(nn.Module):
    """All kinds of layers that PEFT wraps."""

    def __init__(self):
        from transformers.pytorch_utils import Conv1D

        super().__init__()
        self.embed = nn.Embedding(9, 6)
        self.model = nn.ModuleDict({"layers": nn.ModuleList(Block() for _ in range(12))})
        self.mha = nn.MultiheadAttention(6, 2, batch_first=True)
        self.inner = nn.ModuleDict({"attention": nn.MultiheadAttention(6, 3, batch_first=True)})
        self.conv = nn.Conv2d(6, 4, 3)
        self.point = nn.Conv2d(4, 8, 1)
        self.line = nn.Conv1d(6, 4, 3)
        self.c_attn = Conv1D(18, 6)
        self.head = nn.Linear(6, 3)


def lora_card():
    return Card("see", "base", "generator", 0)


def net():
    torch.manual_seed(0)
    return Net().eval()


VARIANTS = {
    "list of names": {"target_modules": ["q", "v"]},
    "full names": {"target_modules": ["model.layers.1.q", "head"]},
    "regular expression": {"target_modules": r"model\.layers\.\d+\.(q|out_proj)"},
    "unsloth": {
        "target_modules": r"(?:.*?(?:layers|text).*?(?:q|out_proj|v).*?)|(?:\bmodel\.[\d]{1,}\.q)"
    },
    "excluded": {"target_modules": ["q", "v"], "exclude_modules": r".*layers\.[0-4]\.\w+"},
    "excluded names": {"target_modules": ["q", "v"], "exclude_modules": ["model.layers.3.q"]},
    "layers": {"target_modules": ["q"], "layers_to_transform": [1, 11]},
    "layers pattern": {
        "target_modules": ["q"], "layers_to_transform": 2, "layers_pattern": "layers"
    },
    "rank and alpha of a module": {
        "target_modules": ["q", "v"], "rank_pattern": {"q": 2, "layers.1.v": 5},
        "alpha_pattern": {"v": 3, "layers.11.q": 0.5},
    },
    "anchors": {
        "target_modules": ["q"],
        "rank_pattern": {"^model.layers.1.q": 3, "1[1-3].q$": 2, "(?!x)0.q": 5},
    },
    "a dot is any letter": {
        "target_modules": ["q"], "rank_pattern": {"layers_2_q": 3, "layers.2.q": 5}
    },
    "rslora": {"target_modules": ["q"], "use_rslora": True, "rank_pattern": {"layers.1.q": 7}},
    "embedding": {"target_modules": ["embed"], "rank_pattern": {"embed": 3}},
    "convolution": {"target_modules": ["conv"], "rank_pattern": {"conv": 6}, "r": 2},
    "pointwise convolution": {"target_modules": ["point"]},
    "convolution of a line": {"target_modules": ["line"]},
    "fan in, fan out": {"target_modules": ["c_attn"], "fan_in_fan_out": True},
    "attention of torch": {"target_modules": ["mha"]},
    "attention with a rank": {"target_modules": ["mha", "q"], "rank_pattern": {"mha": 2}},
    "attention with an alpha": {"target_modules": ["mha"], "alpha_pattern": {"mha": 3}},
    "attention and another out_proj": {
        "target_modules": ["mha", "attention", "q"],
        "rank_pattern": {"out_proj": 7, "attention": 3}, "alpha_pattern": {"out_proj": 1},
    },
    "out_proj of layers": {
        "target_modules": ["layers.0.out_proj"], "rank_pattern": {"out_proj": 2}
    },
    "bias": {"target_modules": ["q"], "bias": "lora_only"},
    "all biases": {"target_modules": ["q"], "bias": "all"},
    "bias of B": {"target_modules": ["q", "head"], "lora_bias": True},
    "head": {"target_modules": ["q"], "modules_to_save": ["head"]},
    "gaussian": {"target_modules": ["q"], "init_lora_weights": "gaussian"},
    "orthogonal": {"target_modules": ["q"], "init_lora_weights": "orthogonal"},
    "everything": {
        "target_modules": ["embed", "q", "conv", "line", "mha", "head"], "use_rslora": True,
        "rank_pattern": {"conv": 6, "embed": 2, "mha": 3}, "alpha_pattern": {"mha|q": 5, "line": 7},
    },
}  # fmt: skip
VARIANTS |= {
    f"{target}, r={r}, alpha={alpha}, rslora={rslora}": {
        "target_modules": [target], "r": r, "lora_alpha": alpha, "use_rslora": rslora
    }
    for target, r, alpha, rslora in product(
        ("q", "embed", "mha", "conv", "point", "c_attn"), (2, 4), (1, 16), (True, False)
    )
}  # fmt: skip
REFUSED = {
    "pissa": {"init_lora_weights": "pissa"},
    "olora": {"init_lora_weights": "olora"},
    "an initialisation that PEFT will have": {"init_lora_weights": "new"},
    "bare parameters": {"target_parameters": ["head.weight"]},
    "qalora": {"use_qalora": True},
    "tokens": {"trainable_token_indices": [1, 2]},
    "repeated layers": {"layer_replication": [[0, 1]]},
    "activated": {"alora_invocation_tokens": [1]},
    "a flag in words": {"use_rslora": "false"},
    "an alpha of true": {"lora_alpha": True},
    "a huge rank": {"r": 10**30},
    "names of other types": {"target_modules": ["q", 3]},
    "patterns of another type": {"rank_pattern": 3},
}


def saved(folder, settings):
    """(base, what PEFT merges) of an adapter with random values, which PEFT saves in `folder`."""
    from peft import LoraConfig, PeftModel, get_peft_model

    config = LoraConfig(**{"r": 4, "lora_alpha": 6, **settings})
    model = get_peft_model(net(), config)
    draw = torch.Generator().manual_seed(1)
    for _, weight in sorted(model.named_parameters()):
        if weight.requires_grad:
            weight.data = torch.randn(weight.shape, generator=draw)
    model.save_pretrained(folder)
    merged = PeftModel.from_pretrained(net(), str(folder)).merge_and_unload()
    return net().state_dict(), merged.state_dict()


def change(factors, shape, transposed):
    """s B A in the shape of the weight."""
    a, b, scale = factors
    groups = a.shape[0] // b.shape[1]
    left = torch.block_diag(*b.flatten(1).chunk(groups)) if b.ndim > 2 else b
    product = scale * (left @ a.flatten(1))
    return (product.T if transposed else product).reshape(shape)


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.filterwarnings("ignore")
def test_weights_are_those_that_peft_merges(tmp_path, name):
    base, merged = saved(tmp_path, VARIANTS[name])
    tensors, config = lora.load(tmp_path)
    modules = factors_by_module(tensors, LoraSettings.of(config))
    moved = {n for n in base if not torch.equal(base[n], merged[n])}
    for module, factors in modules.items():
        module = module.replace(".base_layer", "")
        weight = f"{module}.weight"
        if weight not in base:
            weight = f"{module}.in_proj_weight"
        transposed = module in ("embed", "c_attn")
        found = change(factors, base[weight].shape, transposed)
        torch.testing.assert_close(found, merged[weight] - base[weight], rtol=1e-5, atol=1e-5)
        moved.discard(weight)
    for tensor_name, tensor in tensors.items():
        short = tensor_name.removeprefix("base_model.model.")
        if short.endswith(".lora_B.bias"):
            module, short = short.removesuffix(".lora_B.bias"), short.replace("lora_B.bias", "bias")
            tensor = base[short] + modules[module].scale * tensor
        short = short.replace(".base_layer", "")
        if short in base:
            torch.testing.assert_close(tensor, merged[short], rtol=1e-5, atol=1e-5)
            moved.discard(short)
    assert not moved and modules


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.filterwarnings("ignore")
def test_distance_to_the_base_is_that_of_the_merged_weights(tmp_path, name):
    settings = VARIANTS[name]
    base, merged = saved(tmp_path, settings)
    tensors, config = lora.load(tmp_path)
    nothing = {n: t * (0 if ".lora_" in n else 1) for n, t in tensors.items()}
    for n in nothing:
        short = n.removeprefix("base_model.model.").replace(".base_layer", "")
        nothing[n] = base.get(short, nothing[n])
    found = lora.distance(tensors, nothing, config).total
    wanted = sum((merged[n] - base[n]).double().square().sum() for n in base).sqrt()
    assert found == pytest.approx(float(wanted), rel=1e-5)


@pytest.mark.filterwarnings("ignore")
def test_the_first_pattern_counts_and_its_place_is_not_lost_in_a_file(tmp_path):
    saved(tmp_path / "a", {"target_modules": ["q"]})
    tensors, config = lora.load(tmp_path / "a")
    config.alpha_pattern = {"model.layers.1.q": 9, ".*q": 2}
    modules = factors_by_module(tensors, LoraSettings.of(config))
    assert [modules[f"model.layers.{i}.q"].scale for i in range(3)] == [0.5, 2.25, 0.5]
    with pytest.raises(OralError, match="Several patterns"):
        lora.save(tmp_path / "b", tensors, config, lora_card())
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.filterwarnings("ignore")
def test_other_variants_are_refused_in_one_line(tmp_path, name):
    saved(tmp_path, {"target_modules": ["q"]})
    config = json.loads((tmp_path / CONFIG).read_text()) | REFUSED[name]
    (tmp_path / CONFIG).write_text(json.dumps(config))
    with pytest.raises(OralError, match=next(iter(REFUSED[name])).split("_")[0]) as caught:
        lora.load(tmp_path)
    assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)


@pytest.mark.filterwarnings("ignore")
def test_dora_is_loaded_and_no_distance_is_computed(tmp_path):
    saved(tmp_path, {"target_modules": ["q"], "use_dora": True})
    tensors, config = lora.load(tmp_path)
    with pytest.raises(OralError, match="DoRA"):
        lora.distance(tensors, tensors, config)


@pytest.mark.filterwarnings("ignore")
def test_files_of_older_and_newer_peft_are_read(tmp_path):
    saved(tmp_path, {"target_modules": ["q"]})
    config = json.loads((tmp_path / CONFIG).read_text())
    kept = ("peft_type", "r", "lora_alpha", "target_modules", "bias", "fan_in_fan_out")
    old = {key: config[key] for key in kept} | {"enable_lora": None, "merge_weights": False}
    for content in (old, config | {"use_rslora_two": False}):
        (tmp_path / CONFIG).write_text(json.dumps(content))
        tensors, read = lora.load(tmp_path)
        assert (read.r, read.lora_alpha, len(tensors)) == (4, 6, 24)


@pytest.mark.filterwarnings("ignore")
def test_no_patterns_and_floats_of_8_bits_are_read(tmp_path):
    saved(tmp_path / "a", {"target_modules": ["q"]})
    config = json.loads((tmp_path / "a" / CONFIG).read_text()) | {"rank_pattern": None}
    (tmp_path / "a" / CONFIG).write_text(json.dumps(config))
    tensors = load_file(tmp_path / "a" / WEIGHTS)
    name = min(tensors)
    save_file(tensors | {name: tensors[name].to(torch.float8_e4m3fn)}, tmp_path / "a" / WEIGHTS)
    tensors, settings = lora.load(tmp_path / "a")
    lora.save(tmp_path / "b", tensors, settings, lora_card())
    assert lora.distance(tensors, tensors, settings).total == 0


# ---------------------------------------------------------------- patterns of strangers
ENDLESS = [
    "([a-z_.0-9]+)+!", "(a+)+$", "(.*)*x", "(.*.*)*x", "(a|a)*!", "(.|.)(.|.)(.|.)" * 20,
    "a?" * 40 + "a" * 40, ".*.*.*.*.*.*.*.*!", "(?:(?:.+)+)+!", r"(\w+\s?)+!", "(.{1,60}){1,60}!",
    r"(.*)\1!", "(?=(.+)+!)x", "(?<=x)(.*a){20}!", "(((((((a*)*)*)*)*)*)*)*!", "((a?){60}){60}!",
    "a{99999999999999999999}", "x" * 5000, "(a", "*", "[z-a]", "(?P<a>",
]  # fmt: skip
FIELDS = ["rank_pattern", "alpha_pattern", "target_modules", "exclude_modules", "layers_pattern"]
FIELDS += ["modules_to_save"]


@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("pattern", ENDLESS)
@pytest.mark.filterwarnings("ignore")
def test_a_pattern_that_never_ends_is_refused_at_once(tmp_path, field, pattern):
    place = "base_model.model.model.layers.0.self_attn.q_proj.lora_"
    tensors = {place + "A.weight": torch.ones(2, 8), place + "B.weight": torch.ones(6, 2)}
    save_file(tensors, tmp_path / WEIGHTS)
    value = {pattern: 2} if field.endswith("k_pattern") or field.startswith("alpha") else pattern
    value = [pattern] if field == "modules_to_save" else value
    config = {"peft_type": "LORA", "r": 2, "target_modules": ["q_proj"], "layers_to_transform": 1}
    (tmp_path / CONFIG).write_text(json.dumps(config | {field: value}))
    start = time.monotonic()
    with pytest.raises(OralError) as caught:
        lora.load(tmp_path)
    assert time.monotonic() - start < 5
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600
    assert pattern[:20] in str(caught.value).replace("\\\\", "\\")


def test_many_patterns_for_many_modules_are_refused_before_any_is_matched():
    names = [f"layers.{i}.attention.q_proj" for i in range(2000)]
    settings = LoraSettings(ranks={f"layers.{i}.*.*proj": 3 for i in range(3000)})
    tensors = {f"{n}.lora_A.weight": torch.ones(8, 1) for n in names}
    tensors |= {f"{n}.lora_B.weight": torch.ones(1, 8) for n in names}
    start = time.monotonic()
    with pytest.raises(OralError, match="3000 patterns for 2000 modules"):
        factors_by_module(tensors, settings)
    assert time.monotonic() - start < 5


def test_a_rank_for_each_module_of_a_large_model_is_looked_up():
    names = [f"model.layers.{i}.attention.{m}" for i in range(80) for m in "qkvoudg"]
    settings = LoraSettings.of({"rank_pattern": {n: 1 + i % 3 for i, n in enumerate(names)}})
    assert [settings.rank(n) for n in names] == [1 + i % 3 for i in range(len(names))]


@pytest.mark.parametrize("field", ["rank_pattern", "target_modules", "exclude_modules"])
def test_a_pattern_that_passes_the_check_ends_in_time(field):
    worst = ["a." * 32, "a" * 64, "1." * 32, "layers.1." * 7, "q_proj" * 10]
    for pattern in (".*.*.*!", "[a-z.]+[a-z.]+[a-z.]+!", ".*(a|aa|aaa).*!", "(.*a){2}!", r"\d+.*!"):
        patterns.check(field, pattern)
        expression = patterns.expression(field, pattern)
        start = time.monotonic()
        for name in worst:
            expression.match(name)
        assert time.monotonic() - start < 0.5, pattern


def test_peft_matches_no_pattern_that_never_ends():
    from peft import LoraConfig

    for change in ({"target_modules": "(.*.*)*!"}, {"rank_pattern": {"(q+)+!": 2}}):
        config = LoraConfig(**{"target_modules": ["q"], **change})
        with pytest.raises(OralError, match=re.escape("*" if "target_modules" in change else "+!")):
            peft_model.wrap(net(), config)


@pytest.mark.filterwarnings("ignore")
def test_what_peft_saves_is_left_as_it_is(tmp_path):
    saved(tmp_path, VARIANTS["everything"])
    tensors, _ = lora.load(tmp_path)
    assert all(torch.equal(t, tensors[n]) for n, t in load_file(tmp_path / WEIGHTS).items())
