"""Any PEFT adapter becomes tokens and comes back bit for bit."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

import oral_lib  # noqa: F401 - makes transformers importable beside a torchvision without CUDA
from oral_lib.errors import OralError, UsageError
from oral_lib.method.tokenization import Layout, decode, encode

torch.set_num_threads(1)
quick = settings(max_examples=60, deadline=None, derandomize=True)

BITS = {torch.float32: torch.int32, torch.bfloat16: torch.int16, torch.float16: torch.int16}
LLAMA = "base_model.model.model.layers.{}.self_attn.{}"
BERT = "base_model.model.bert.encoder.layer.{}.attention.self.{}"


def drawn(shape, dtype, seed):
    """Any finite bit pattern of `dtype`: subnormal, negative zero, largest."""
    bits = BITS[dtype]
    limits = torch.iinfo(bits)
    draw = torch.Generator().manual_seed(seed)
    words = torch.randint(limits.min, limits.max, shape, generator=draw).to(bits)
    values = words.view(dtype) if shape else words.reshape(1).view(dtype)[0]
    return torch.where(values.isfinite(), values, torch.full((), -0.0, dtype=dtype))


def same_bits(one, other):
    return one.keys() == other.keys() and all(
        one[name].dtype == other[name].dtype
        and one[name].shape == other[name].shape
        and torch.equal(
            one[name].view(BITS[one[name].dtype]), other[name].view(BITS[one[name].dtype])
        )
        for name in one
    )


@st.composite
def adapters(draw):
    """Two adapters of one odd kind: any rank, modules, heads, shapes and dtypes."""
    dtype = st.sampled_from(list(BITS))
    plan = {}
    for stem in draw(st.sets(st.sampled_from([LLAMA, BERT]), max_size=2)):
        modules = draw(st.sets(st.sampled_from(["q_proj", "query", "v.dense"]), min_size=1))
        for layer in draw(st.sets(st.sampled_from([0, 1, 2, 10, 31]), min_size=1, max_size=3)):
            for module in modules:
                r, width, out = draw(st.tuples(*[st.integers(1, 9)] * 3))
                kernel = draw(st.sampled_from([(), (3, 3), (1, 2)]))
                name, kind = stem.format(layer, module), draw(dtype)
                plan[f"{name}.lora_A.weight"] = (r, width, *kernel), kind
                plan[f"{name}.lora_B.weight"] = (out, r, *(1 for _ in kernel)), kind
                if draw(st.booleans()):
                    plan[f"{name}.lora_magnitude_vector"] = (out,), draw(dtype)
    shapes = st.lists(st.integers(0, 7), max_size=4).map(tuple)
    for name in draw(st.sets(st.sampled_from(["classifier.weight", "score.bias", "gate.7"]))):
        plan[f"base_model.model.{name}"] = draw(shapes), draw(dtype)
    plan["base_model.model.scalar"] = draw(st.sampled_from([(), (1,)])), draw(dtype)
    names, seed = draw(st.permutations(sorted(plan))), draw(st.integers(0, 10**6))
    return [
        {name: drawn(*plan[name], seed + 100 * copy + i) for i, name in enumerate(names)}
        for copy in range(2)
    ]


ks = st.one_of(st.just(1), st.integers(2, 12), st.just(1000))


def small():
    """Two layers whose tensors fill 1, 2 and 3 tokens of 4 values."""
    return {
        f"base_model.model.layers.{i}.{m}": torch.arange(n, dtype=torch.float32) + i + 1
        for i in (0, 1)
        for m, n in (("q.lora_A.weight", 4), ("q.lora_B.weight", 6), ("v.lora_A.weight", 9))
    }


@quick
@given(adapters(), ks)
def test_any_adapter_comes_back_bit_for_bit(pair, k):
    layout = Layout.of(pair[0], k)
    values = encode(layout, pair)
    assert values.shape == (2, layout.l, k) and values.dtype == torch.float32
    back = decode(layout, values)
    assert all(same_bits(was, now) for was, now in zip(pair, back, strict=True))


@quick
@given(adapters(), ks)
def test_the_mask_tells_values_from_padding(pair, k):
    layout = Layout.of(pair[0], k)
    values = encode(layout, pair)
    assert not values[:, ~layout.mask].any()
    assert layout.mask.sum() == sum(tensor.numel() for tensor in pair[0].values())
    noisy = torch.where(layout.mask, values, torch.nan)
    back = decode(layout, noisy)
    assert all(same_bits(was, now) for was, now in zip(pair, back, strict=True))


@quick
@given(adapters(), ks)
def test_no_two_tokens_share_a_position(pair, k):
    layout = Layout.of(pair[0], k)
    assert layout.positions.shape == (layout.l, 3)
    assert len(layout.positions.unique(dim=0)) == layout.l
    assert layout.positions.min() >= 0 and layout.positions[:, 2].max() < len(layout.types)
    starts = layout.positions[:, 1] == 0
    assert starts.sum() == sum(size > 0 for size in layout.sizes)
    assert (layout.owner.diff() >= 0).all()  # tokens of a tensor stand together


@quick
@given(adapters(), ks)
def test_a_layout_survives_json_and_any_order_of_the_dict(pair, k):
    layout = Layout.of(pair[0], k)
    assert Layout.from_json(layout.to_json()) == layout
    assert Layout.of(dict(reversed(pair[0].items())), k) == layout
    assert Layout.of(pair[0], k + 1) != layout


def test_tensors_stand_in_the_order_of_layers():
    names = [LLAMA.format(i, "q_proj.lora_A.weight") for i in (0, 2, 10)]
    tensors = {name: torch.ones(2) for name in [*reversed(names), "base_model.model.score.weight"]}
    layout = Layout.of(tensors, 4)
    assert layout.names == ("base_model.model.score.weight", *names)
    assert layout.positions[:, 0].tolist() == [0, 1, 3, 11]
    assert layout.types == ("score.weight", "self_attn.q_proj.lora_A")
    stages = [f"base_model.model.blocks.1.{i}.conv.lora_A.weight" for i in (2, 10)]
    assert Layout.of(dict.fromkeys(reversed(stages), torch.ones(2)), 4).names == tuple(stages)


def test_towers_of_one_model_keep_their_types_apart():
    names = [f"base_model.model.{tower}.layers.0.q.lora_A.weight" for tower in ("text", "vision")]
    layout = Layout.of(dict.fromkeys(names, torch.ones(2)), 4)
    assert layout.types == ("text.layers.*.q.lora_A", "vision.layers.*.q.lora_A")


def test_every_tensor_starts_a_token_of_its_own():
    layout = Layout.of(small(), 4)
    assert layout.owner.tolist() == [0, 1, 1, 2, 2, 2, 3, 4, 4, 5, 5, 5]
    assert layout.positions[:, 1].tolist() == [0, 0, 1, 0, 1, 2] * 2
    assert layout.mask.sum(1).tolist() == [4, 4, 2, 4, 4, 1] * 2


class Counted(TorchDispatchMode):
    calls = 0

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        self.calls += 1
        return function(*arguments, **(keywords or {}))


def test_the_number_of_operations_does_not_grow_with_the_tokens():
    tensors = {"layers.0.lora_A.weight": torch.randn(64, 64), "score": torch.randn(4096)}
    calls = []
    for k in (4096, 1):
        layout = Layout.of(tensors, k)
        with Counted() as counted:
            decode(layout, encode(layout, [tensors]))
        calls.append(counted.calls)
    assert calls[0] == calls[1]


def test_masks_are_made_once_a_device():
    layout = Layout.of(small(), 4)
    assert layout.mask is layout.mask and layout.on("cpu").owner is layout.owner
    assert layout.on("meta").mask is layout.on(torch.device("meta")).mask
    assert layout.on("meta").mask.device.type == "meta"


@pytest.mark.parametrize("k", [0, -1, 2.0, None, True])
def test_a_token_of_no_size_is_refused(k):
    with pytest.raises(UsageError, match=str(k)):
        Layout.of(small(), k)


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.int64, torch.bool, torch.complex64, torch.float8_e4m3fn]
)
def test_a_dtype_that_tokens_cannot_hold_is_refused_by_name(dtype):
    with pytest.raises(UsageError, match=f"'odd' is.*{str(dtype).removeprefix('torch.')}"):
        Layout.of({**small(), "odd": torch.ones(3).to(dtype)}, 4)


def test_an_adapter_without_values_is_refused():
    for empty in ({}, {"a": torch.ones(0, 3)}):
        with pytest.raises(UsageError, match="without values"):
            Layout.of(empty, 4)


def test_names_that_cannot_be_told_apart_are_refused():
    with pytest.raises(UsageError, match=r"2 tensors are 'q' of layer 2"):
        Layout.of({"layers.1.q": torch.ones(1), "base_model.model.layers.1.q": torch.ones(1)}, 4)


NAME = "base_model.model.layers.1.q.lora_B.weight"


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({NAME: None}, UsageError, rf"'{NAME}' of shape \(6,\) is missing"),
        ({"extra": torch.ones(2, 3)}, UsageError, r"'extra' of shape \(2, 3\) is unexpected"),
        (
            {NAME: torch.ones(6, 1)},
            UsageError,
            rf"'{NAME}' has the shape \(6, 1\), expected \(6,\)",
        ),
        ({NAME: torch.ones(6).half()}, UsageError, rf"'{NAME}' is torch.float16.*torch.float32"),
        ({NAME: torch.full((6,), torch.nan)}, OralError, rf"'{NAME}' of adapter 1 contains NaN"),
        ({NAME: torch.full((6,), -torch.inf)}, OralError, rf"'{NAME}' of adapter 1 contains NaN"),
    ],
)
def test_an_adapter_that_does_not_fit_is_refused_by_name(change, error, message):
    layout = Layout.of(small(), 4)
    other = {name: value for name, value in {**small(), **change}.items() if value is not None}
    with pytest.raises(error, match=message):
        encode(layout, [small(), other])


def test_tokens_that_are_no_adapter_are_refused():
    layout = Layout.of(small(), 4)
    values = encode(layout, [small()])
    for wrong in (values[0], values[:, 1:], values[..., :3]):
        with pytest.raises(UsageError, match=r"\('b', 12, 4\)"):
            decode(layout, wrong)
    values[0, 7, 1] = torch.nan
    with pytest.raises(OralError, match=f"decode.*'{NAME}'"):
        decode(layout, values)


@pytest.mark.parametrize(
    "content",
    [
        None,
        {},
        {"k": 4, "tensors": []},
        {"k": 4, "tensors": [["a", [2]]]},
        {"k": 4, "tensors": [["a", [2], "int64"]]},
        {"k": 4, "tensors": [["a", [-2], "float32"]]},
        {"k": "4", "tensors": [["a", [2], "float32"]]},
    ],
)
def test_a_stored_layout_that_is_none_is_refused(content):
    with pytest.raises(OralError, match="Invalid layout") as caught:
        Layout.from_json(content)
    assert "\n" not in str(caught.value)


def tiny_llama():
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "vocab_size": 31}
    return LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=2, num_key_value_heads=1))


def tiny_bert():
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "vocab_size": 31}
    return BertForSequenceClassification(BertConfig(**sizes, num_attention_heads=2, num_labels=3))


class TinyConv(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv = torch.nn.Conv2d(2, 4, 3)
        self.head = torch.nn.Linear(4, 3)

    def forward(self, input_ids):
        image = torch.nn.functional.one_hot(input_ids, 32).to(self.head.weight.dtype)
        return self.head(self.conv(image.view(len(input_ids), 2, -1, 8)).mean((2, 3)))


CASES = {
    "lora and a saved head": (
        tiny_llama,
        {"r": 3, "target_modules": "all-linear", "modules_to_save": ["lm_head"]},
    ),
    "lora on embeddings": (tiny_llama, {"r": 2, "target_modules": ["embed_tokens", "q_proj"]}),
    "dora": (tiny_llama, {"r": 2, "target_modules": ["q_proj", "down_proj"], "use_dora": True}),
    "lora with biases": (tiny_llama, {"r": 2, "target_modules": ["v_proj"], "lora_bias": True}),
    "classifier, ranks by layer": (
        tiny_bert,
        {"task_type": "SEQ_CLS", "r": 4, "target_modules": ["query", "value"]}
        | {"rank_pattern": {"layer.1.attention.self.value": 7}},
    ),
    "dora on a classifier": (
        tiny_bert,
        {"task_type": "SEQ_CLS", "r": 2, "target_modules": ["dense"], "use_dora": True}
        | {"exclude_modules": ["pooler.dense"]},
    ),
    "convolutions": (
        TinyConv,
        {"r": 2, "target_modules": ["conv"], "modules_to_save": ["head"]},
    ),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("case", CASES)
def test_a_peft_model_gives_the_same_logits_after_the_round_trip(case, dtype):
    from peft import (
        LoraConfig,
        get_peft_model,
        get_peft_model_state_dict,
        set_peft_model_state_dict,
    )

    make, settings = CASES[case]
    base = make().to(dtype).eval()
    models = [
        get_peft_model(copy.deepcopy(base), LoraConfig(**settings), autocast_adapter_dtype=False)
        for _ in range(2)
    ]
    ids = torch.arange(32).view(2, 16) % 31
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in models[0].parameters():
            if parameter.requires_grad:
                parameter += 0.3 * torch.randn(parameter.shape, generator=draw)
        logits, before = (run(model, ids) for model in models)
        assert not torch.equal(logits, before)
        state = get_peft_model_state_dict(models[0], save_embedding_layers=False)
        layout = Layout.of(state, 13)
        (back,) = decode(layout, encode(layout, [state]))
        assert same_bits(state, back)
        result = set_peft_model_state_dict(models[1], back)
        assert not result.unexpected_keys
        assert torch.equal(run(models[1], ids), logits)


def run(model, ids):
    out = model(input_ids=ids)
    return getattr(out, "logits", out)
