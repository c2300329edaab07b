"""A generated adapter is a plain PEFT folder; what is broken or hostile is refused in one line."""

import json
import os
import pickle
import runpy
import subprocess
import sys
from math import hypot
from pathlib import Path

import pytest
import torch
import yaml

import oral_lib  # noqa: F401 - makes transformers importable beside a torchvision without CUDA
from oral_lib import storage
from oral_lib.errors import OralError, UsageError
from oral_lib.lora import distances, peft_folder
from oral_lib.lora.adapter import LoraSettings, check_adapter, factors_by_module
from oral_lib.lora.peft_folder import Card

torch.set_num_threads(1)
SIZES = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "vocab_size": 31,
}
CARD = Card("Is the film good?\nSay yes or no.", "tiny-base", "generator-1", 7, "sst/seed-0", 1.25)
IDS = torch.arange(24).view(2, 12)


def llama():
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SIZES, num_key_value_heads=1)).eval()


def bert():
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    return BertForSequenceClassification(BertConfig(**SIZES, num_labels=3)).eval()


def generated(model, **settings):
    """Tensors and configuration of an adapter that changes `model`."""
    from peft import LoraConfig, get_peft_model, get_peft_model_state_dict

    config = LoraConfig(**settings)
    state = get_peft_model_state_dict(get_peft_model(model, config))
    draw = torch.Generator().manual_seed(1)
    return {n: t + 0.3 * torch.randn(t.shape, generator=draw) for n, t in state.items()}, config


KINDS = {
    "causal": (
        llama,
        {"task_type": "CAUSAL_LM", "r": 3, "target_modules": ["q_proj", "v_proj"]}
        | {"use_rslora": True},
    ),
    "classifier": (
        bert,
        {"task_type": "SEQ_CLS", "r": 2, "target_modules": ["query", "value"]}
        | {"rank_pattern": {"layer.1.attention.self.value": 5}, "alpha_pattern": {"query": 3}},
    ),
    "dora": (
        bert,
        {"task_type": "SEQ_CLS", "r": 2, "target_modules": ["query"], "use_dora": True},
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_generated_adapter_loads_in_peft_alone_and_changes_the_logits(tmp_path, kind):
    from peft import PeftConfig, PeftModel

    make, settings = KINDS[kind]
    tensors, config = generated(make(), **settings)
    folder = peft_folder.save(tmp_path / "my lora", tensors, config, CARD)
    assert sorted(path.name for path in folder.iterdir()) == [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    assert PeftConfig.from_pretrained(str(folder)).base_model_name_or_path == "tiny-base"
    base = make()
    with torch.no_grad():
        before = base(input_ids=IDS).logits
        model = PeftModel.from_pretrained(base, str(folder)).eval()
        after = model(input_ids=IDS).logits
    assert (after - before).abs().max() > 1e-3
    state = dict(model.named_parameters())
    for name, tensor in tensors.items():
        held = [
            parameter
            for key, parameter in state.items()
            if key.replace(".default", "").replace(".modules_to_save", "").removesuffix(".weight")
            == name.removesuffix(".weight")
        ]
        assert len(held) == 1 and torch.equal(held[0], tensor), name


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_adapter_comes_back(tmp_path, kind):
    make, settings = KINDS[kind]
    tensors, config = generated(make(), **settings)
    folder = peft_folder.save(tmp_path / "a", tensors, config, CARD)
    back, again = peft_folder.load(folder)
    assert back.keys() == tensors.keys()
    assert all(torch.equal(back[name], tensor) for name, tensor in tensors.items())
    assert (again.r, again.lora_alpha) == (config.r, config.lora_alpha)
    assert again.rank_pattern == config.rank_pattern and again.use_dora == config.use_dora
    assert again.target_modules == config.target_modules
    settings = storage.read_json(folder / peft_folder.CONFIG)
    assert settings["inference_mode"] is True
    assert settings["target_modules"] == sorted(settings["target_modules"])  # PEFT: a set's order
    # the configuration as a dict does as well, and the same adapter gives the same bytes
    other = peft_folder.save(tmp_path / "b" / "a", tensors, again.to_dict(), CARD)
    for path in folder.iterdir():
        assert path.read_bytes() == (other / path.name).read_bytes()


def test_the_card_tells_where_the_adapter_comes_from(tmp_path):
    tensors, config = plain()
    text = (peft_folder.save(tmp_path / "a", tensors, config, CARD) / "README.md").read_text()
    _, front, body = text.split("---\n", 2)
    assert yaml.safe_load(front)["base_model"] == "tiny-base"
    assert yaml.safe_load(front)["library_name"] == "peft"
    assert "lora" in yaml.safe_load(front)["tags"]
    assert "> Is the film good?\n> Say yes or no.\n" in body
    for word in ("tiny-base", "generator-1", "| 7 |", "1.25", "sst/seed-0"):
        assert word in body


def test_a_hostile_text_stays_inside_its_quotation(tmp_path):
    tensors, config = plain()
    card = Card("a\n---\nlibrary_name: evil\n```python\nboom()\n", "b: [x", "g", 0)
    text = (peft_folder.save(tmp_path / "a", tensors, config, card) / "README.md").read_text()
    front = yaml.safe_load(text.split("---\n")[1])
    assert front["base_model"] == "b: [x" and front["library_name"] == "peft"
    assert "\n> ---\n> library_name: evil\n> ```python\n> boom()\n" in text
    with pytest.raises(UsageError, match="one line as base"):
        Card("", "two\nlines", "g", 0)
    with pytest.raises(UsageError, match="one line as generator"):
        Card("", "b", " ", 0)
    with pytest.raises(UsageError, match="nan"):
        Card("", "b", "g", 0, distance=float("nan"))


def test_the_three_lines_of_the_card_work(tmp_path, monkeypatch):
    bert().save_pretrained(tmp_path / "base model")
    tensors, config = generated(bert(), **KINDS["classifier"][1])
    config.base_model_name_or_path = str(tmp_path / "base model")
    text = (peft_folder.save(tmp_path / "a b", tensors, config, CARD) / "README.md").read_text()
    lines = text.split("```python\n")[1].split("```")[0]
    assert len(lines.splitlines()) == 3
    (tmp_path / "lines.py").write_text(lines)
    monkeypatch.chdir(tmp_path)
    model = runpy.run_path("lines.py")["model"]
    name = "base_model.model.classifier.weight"
    assert torch.equal(model.base_model.model.classifier.weight, tensors[name])


def test_the_card_can_load_the_base_through_oral(tmp_path):
    tensors, config = plain()
    card = Card("t", "b", "g", 0, loader='oral_lib.load_base("tiny-causal").model')
    text = (peft_folder.save(tmp_path / "a", tensors, config, card) / "README.md").read_text()
    assert 'import oral_lib, peft\nbase = oral_lib.load_base("tiny-causal").model\n' in text


def plain(seed=0, r=2, modules=("a", "b"), out=5, width=7):
    """A LoRA made without any model."""
    draw = torch.Generator().manual_seed(seed)
    tensors = {}
    for module in modules:
        stem = f"base_model.model.{module}.lora_"
        tensors[f"{stem}A.weight"] = torch.randn(r, width, generator=draw)
        tensors[f"{stem}B.weight"] = torch.randn(out, r, generator=draw)
    tensors["base_model.model.head.weight"] = torch.randn(3, 4, generator=draw)
    return tensors, {"peft_type": "LORA", "r": r, "lora_alpha": 6, "target_modules": list(modules)}


def test_a_folder_in_use_is_never_overwritten_by_accident(tmp_path):
    tensors, config = plain()
    folder = tmp_path / "a"
    folder.mkdir()
    peft_folder.save(folder, tensors, config, CARD)  # empty folders are free
    with pytest.raises(UsageError, match="already contains an adapter"):
        peft_folder.save(folder, tensors, config, CARD)
    other, _ = plain(seed=1)
    peft_folder.save(folder, other, config, CARD, overwrite=True)
    name = "base_model.model.head.weight"
    assert torch.equal(peft_folder.load(folder)[0][name], other[name])
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match="notes"):
        peft_folder.save(folder, tensors, config, CARD, overwrite=True)
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.tex").write_text("mine")
    with pytest.raises(UsageError, match="not contain an adapter"):
        peft_folder.save(tmp_path / "home", tensors, config, CARD, overwrite=True)
    with pytest.raises(UsageError, match="is a file"):
        peft_folder.save(folder / "notes.txt", tensors, config, CARD, overwrite=True)
    assert (folder / "notes.txt").exists() and (tmp_path / "home" / "thesis.tex").exists()


def test_a_save_that_fails_leaves_nothing_behind(tmp_path, monkeypatch):
    tensors, config = plain()
    peft_folder.save(tmp_path / "old", tensors, config, CARD)
    before = (tmp_path / "old" / peft_folder.WEIGHTS).read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(storage, "write_text", full)  # the last of three files
    for folder in ("old", "new"):
        with pytest.raises(OralError, match="No space left"):
            peft_folder.save(tmp_path / folder, plain(1)[0], config, CARD, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["old"]
    assert (tmp_path / "old" / peft_folder.WEIGHTS).read_bytes() == before


def test_only_reading_and_writing_folders_imports_peft():
    words = "from oral_lib import lora; lora.distance, lora.novelty, lora.Stack, lora.attached; "
    words += "import sys; assert 'peft' not in sys.modules; lora.load; assert 'peft' in sys.modules"
    done = subprocess.run([sys.executable, "-c", words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def refused(message, function, *arguments, error=OralError, **options):
    with pytest.raises(error, match=message) as caught:
        function(*arguments, **options)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600


PATHS = ["../evil", "/etc/evil", "a/b", "a\\b", "..", ".hidden", "", "x\ny", "a\0b", "n" * 200]


@pytest.mark.parametrize("name", PATHS)
def test_a_path_in_an_adapter_name_is_refused(tmp_path, name):
    tensors, config = plain()
    home = tmp_path / "home"
    home.mkdir()
    refused("name", peft_folder.save, home, tensors, config, CARD, name=name, error=UsageError)
    refused("name", peft_folder.load, home, name=name, error=UsageError)
    assert [path.name for path in tmp_path.iterdir()] == ["home"] and not [*home.iterdir()]


def test_a_plain_name_is_a_folder_inside(tmp_path):
    tensors, config = plain()
    assert peft_folder.save(tmp_path, tensors, config, CARD, name="seed-1") == tmp_path / "seed-1"
    assert peft_folder.load(tmp_path, name="seed-1")[0].keys() == tensors.keys()


@pytest.fixture
def folder(tmp_path):
    return peft_folder.save(tmp_path / "adapter", *plain(), CARD)


def test_links_out_of_the_folder_are_refused(tmp_path, folder):
    outside = tmp_path / "outside"
    for name in (peft_folder.CONFIG, peft_folder.WEIGHTS):
        held = (folder / name).read_bytes()
        outside.write_bytes(held)
        for target in (outside, Path("../outside"), folder / name):  # the last one: a loop
            (folder / name).unlink()
            (folder / name).symlink_to(target)
            refused("leads out|does not exist", peft_folder.load, folder)
        (folder / name).unlink()
        (folder / name).write_bytes(held)
    peft_folder.load(folder)
    (tmp_path / "zoo").mkdir()
    (tmp_path / "zoo" / "linked").symlink_to(folder)
    refused("leads out", peft_folder.load, tmp_path / "zoo", name="linked")
    refused("leads out", peft_folder.save, tmp_path / "zoo", *plain(), CARD, name="linked")


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("exploded",)


def test_a_pickle_under_any_name_is_refused_and_never_read(tmp_path, folder, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for content in (pickle.dumps(Bomb()), b"PK\x03\x04" + bytes(64)):
        (folder / peft_folder.WEIGHTS).write_bytes(content)
        refused("not a safetensors file", peft_folder.load, folder)
    (folder / peft_folder.WEIGHTS).unlink()
    (folder / "adapter_model.bin").write_bytes(pickle.dumps(Bomb()))
    refused("only adapter_model.bin.*pickle can run code", peft_folder.load, folder)
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("kept", [0, 4, 100, -1])
def test_a_truncated_file_is_refused(folder, kept):
    for name in (peft_folder.WEIGHTS, peft_folder.CONFIG):
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(whole.rstrip()[:kept])
        refused("truncated or|valid JSON|is empty|UTF-8", peft_folder.load, folder)
        (folder / name).write_bytes(whole)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_weights_that_are_not_finite_are_neither_loaded_nor_saved(tmp_path, folder, bad):
    tensors, config = plain()
    tensors["base_model.model.a.lora_B.weight"][1, 1] = bad
    storage.write_tensors(folder / peft_folder.WEIGHTS, tensors)
    refused("a.lora_B.weight", peft_folder.load, folder)
    refused("a.lora_B.weight", peft_folder.save, tmp_path / "new", tensors, config, CARD)
    assert not (tmp_path / "new").exists()


A, B = "base_model.model.a.lora_A.weight", "base_model.model.a.lora_B.weight"
NOT_LORA = [
    ({A: torch.ones(3, 7)}, r"'base_model.model.a.lora_A.weight'.*\(3, 7\).*\(5, 2\).*rank 2"),
    ({B: torch.ones(5, 3)}, r"\(5, 3\)"),
    ({B: torch.ones(5)}, r"\(5,\)"),
    ({A: torch.ones(2), B: torch.ones(5)}, r"\(5,\)"),
    ({A: torch.ones(2, 7, 1, 1)}, r"\(2, 7, 1, 1\)"),
    ({A: torch.ones(2, 7, 1, 1), B: torch.ones(5, 0, 1, 1)}, r"\(5, 0, 1, 1\)"),
    ({A: None}, "lora_B.weight' has no '.lora_A.weight'"),
    ({B: None}, "lora_A.weight' has no '.lora_B.weight'"),
    ({A: torch.ones(2, 7, dtype=torch.int64)}, "torch.int64"),
    (
        {"base_model.model.a.lora_A.default.weight": torch.ones(2, 7)},
        "not a LoRA tensor under a name",
    ),
    ({"../../etc/passwd": torch.ones(1)}, "not a tensor name"),
    ({"x\ny": torch.ones(1)}, "not a tensor name"),
]


@pytest.mark.parametrize(("change", "message"), NOT_LORA)
def test_tensors_that_are_no_lora_of_the_configuration_are_refused(
    tmp_path, folder, change, message
):
    tensors, config = plain()
    tensors = {name: value for name, value in {**tensors, **change}.items() if value is not None}
    storage.write_tensors(folder / peft_folder.WEIGHTS, tensors)
    refused(message, peft_folder.load, folder)
    refused(message, peft_folder.save, tmp_path / "new", tensors, config, CARD)
    assert not (tmp_path / "new").exists()


def test_an_adapter_without_lora_is_refused(folder):
    for tensors in ({}, {"base_model.model.head.weight": torch.ones(2)}):
        storage.write_tensors(folder / peft_folder.WEIGHTS, tensors)
        refused("no LoRA factors", peft_folder.load, folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"peft_type": "LOHA"}, "LOHA"),
        ({"peft_type": "__import__"}, "Invalid LoRA configuration"),
        ({"peft_type": ["LORA"]}, "Invalid LoRA configuration"),
        ({"peft_type": None}, "None, not 'LORA'"),
        ({"r": 0}, "0"),
        ({"r": "2"}, "'2'"),
        ({"r": True}, "True"),
        ({"rank_pattern": {"b": -1}}, "rank -1"),
        ({"rank_pattern": ["b"]}, "Invalid LoRA configuration"),
        ({"rank_pattern": {"(": 2}}, "Invalid LoRA configuration"),
        ({"rank_pattern": {"b": 4}}, "'base_model.model.b.lora_A.weight'.*rank 4"),
        ({"lora_alpha": "x"}, "Invalid LoRA configuration"),
        ({"lora_alpha": 10**400}, "Invalid LoRA configuration"),
        ({"target_parameters": ["w"]}, "target_parameters"),
        ({"task_type": "EVIL"}, "Invalid LoRA configuration"),
    ],
)
def test_a_configuration_that_is_no_lora_is_refused(folder, change, message):
    path = folder / peft_folder.CONFIG
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    refused(message, peft_folder.load, folder)


def test_a_missing_adapter_is_refused(tmp_path, folder):
    refused("no adapter folder", peft_folder.load, tmp_path / "gone")
    (folder / peft_folder.CONFIG).write_text('{"r": 2, "lora_alpha": 6}')
    refused("None, not 'LORA'", peft_folder.load, folder)
    (folder / peft_folder.CONFIG).write_text("[]")
    refused("must be a JSON object", peft_folder.load, folder)
    (folder / peft_folder.CONFIG).unlink()
    refused("does not exist", peft_folder.load, folder)


def test_the_first_difference_to_the_base_is_told():
    reference, _ = plain()
    check_adapter(plain(seed=3)[0], reference)
    for change, message in [
        ({A: torch.ones(4, 7)}, rf"'{A}' has the shape \(4, 7\), expected \(2, 7\)"),
        ({A: None, B: None}, rf"'{A}' of shape \(2, 7\) is missing"),
        ({"z": torch.ones(2)}, r"'z' of shape \(2,\) is unexpected"),
    ]:
        tensors = {n: v for n, v in {**reference, **change}.items() if v is not None}
        refused(message, check_adapter, tensors, reference)


def delta(tensors, config):
    """(module, dW = s B A) for each adapted module, written out: [out, in, kernel...]."""
    settings = LoraSettings.of(config)
    for module, (a, b, scale) in factors_by_module(tensors, settings).items():
        groups = a.shape[0] // b.shape[1]
        left = torch.block_diag(*b.flatten(1).chunk(groups))
        yield module, scale * (left @ a.flatten(1)).view(len(b), *a.shape[1:])


@pytest.mark.parametrize("kind", ["causal", "classifier"])
def test_delta_is_what_peft_adds_to_the_weights(kind):
    from peft import get_peft_model, set_peft_model_state_dict

    make, settings = KINDS[kind]
    tensors, config = generated(make(), **settings)
    model = get_peft_model(make(), config)
    set_peft_model_state_dict(model, tensors)
    merged, base = model.merge_and_unload(), make()
    deltas = dict(delta(tensors, config))
    assert len(deltas) == 4
    for module, change in deltas.items():
        moved = merged.get_submodule(module).weight - base.get_submodule(module).weight
        torch.testing.assert_close(change, moved.detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("groups", [1, 2])
def test_delta_of_a_convolution_is_what_the_model_computes(groups):
    from peft import LoraConfig, get_peft_model, get_peft_model_state_dict

    torch.manual_seed(0)
    layers = {"conv": torch.nn.Conv2d(4, 6, 3, groups=groups)}
    config = LoraConfig(r=4, target_modules=["conv"], init_lora_weights=False)
    model = get_peft_model(torch.nn.Sequential(torch.nn.ModuleDict(layers)), config)
    conv = model.base_model.model[0]["conv"]
    image = torch.randn(1, 4, 8, 8)
    ((_, change),) = delta(get_peft_model_state_dict(model), config)
    added = conv(image) - conv.base_layer(image)
    torch.testing.assert_close(torch.nn.functional.conv2d(image, change), added)


def dense(one, other, config):
    pairs = zip(delta(one, config), delta(other, config), strict=True)
    lora = sum(float((a - b).double().square().sum()) for (_, a), (_, b) in pairs) ** 0.5
    rest = [n for n in one if "lora_A" not in n and "lora_B" not in n]
    return lora, sum(float((one[n] - other[n]).square().sum()) for n in rest) ** 0.5


@pytest.mark.parametrize("rslora", [True, False])
def test_distance_is_the_dense_distance(rslora):
    modules = [f"layers.{i}.{m}" for i in range(3) for m in "qv"]
    (one, config), (other, _) = plain(0, modules=modules), plain(1, modules=modules)
    for tensors in (one, other):
        wide, _ = plain(len(tensors), r=3, modules=["layers.1.up"], out=9)
        tensors |= wide
    config |= {"use_rslora": rslora, "rank_pattern": {"up": 3}, "alpha_pattern": {"q": 1.5}}
    found = distances.distance(one, other, config)
    assert found == pytest.approx(dense(one, other, config), rel=1e-5)
    assert found.total == pytest.approx(hypot(*found))
    assert distances.distance(other, one, config) == pytest.approx(found)
    assert distances.distance(one, one, config) == (0, 0)


def test_distance_of_grouped_convolutions_is_the_dense_distance():
    draw = torch.Generator().manual_seed(0)
    name, config = "base_model.model.conv.lora_{}.weight", {"r": 4, "lora_alpha": 3}
    one, other = (
        {
            name.format("A"): torch.randn(4, 6, 3, 3, generator=draw),
            name.format("B"): torch.randn(8, 2, 1, 1, generator=draw),
        }
        for _ in range(2)
    )
    found = distances.distance(one, other, config)
    assert found == pytest.approx(dense(one, other, config), rel=1e-5)


def test_distance_is_exact_for_near_adapters_and_blind_to_the_gauge():
    one, config = plain(modules=["a"])
    near = {**one, B: one[B].clone()}
    near[B][0, 0] += 1e-4  # dW moves by s times 1e-4 |first row of A|
    moved = float(near[B].double()[0, 0] - one[B].double()[0, 0])
    expected = 3 * moved * float(one[A].double()[0].norm())
    assert distances.distance(one, near, config).lora == pytest.approx(expected, rel=1e-6)
    turned = {**one, A: one[A] * 3, B: one[B] / 3}  # B A = (B R)(R^-1 A)
    none = {name: torch.zeros_like(tensor) for name, tensor in one.items()}
    size = distances.distance(one, none, config).lora
    assert distances.distance(one, turned, config).lora < 1e-6 * size


def test_distance_wants_adapters_of_one_shape():
    refused("shape", distances.distance, plain()[0], plain(width=8)[0], plain()[1])


def test_the_nearest_of_the_zoo_is_named():
    one, config = plain()
    near = {name: tensor + 0.01 for name, tensor in one.items()}
    zoo = [("far", plain(1)[0]), ("near", near), ("farther", plain(2)[0])]
    name, found = distances.nearest(one, iter(zoo), config)
    assert name == "near" and found == distances.distance(one, near, config)
    refused("empty", distances.nearest, one, [], config, error=UsageError)


# ---------------------------------------------------------------- novelty
def loras(n: int, seed: int, spread: float = 1.0, about: float = 0.0) -> list[dict]:
    """n small LoRAs of two modules of different shapes and a head."""
    draw = torch.Generator().manual_seed(seed)
    shapes = {"x.lora_A.weight": (2, 6), "x.lora_B.weight": (5, 2)}
    shapes |= {"y.lora_A.weight": (2, 4), "y.lora_B.weight": (7, 2), "head.weight": (2, 5)}
    return [
        {
            name: about + spread * torch.randn(shape, generator=draw)
            for name, shape in shapes.items()
        }
        for _ in range(n)
    ]


def change(adapter: dict, scale: float) -> torch.Tensor:
    parts = [adapter[f"{m}.lora_B.weight"] @ adapter[f"{m}.lora_A.weight"] for m in "xy"]
    return scale * torch.cat([part.flatten() for part in parts]).double()


def test_distances_of_many_are_those_of_the_weight_changes():
    ones, others = loras(3, 0), loras(4, 1)
    found = distances.pairwise(ones, others, scale=0.5)
    wanted = [[(change(a, 0.5) - change(b, 0.5)).norm() for b in others] for a in ones]
    assert torch.allclose(found, torch.tensor(wanted).double(), rtol=1e-5)
    assert distances.pairwise(ones, ones).diagonal().abs().max() < 1e-5


def test_distances_do_not_see_how_a_change_is_factored():
    [one] = loras(1, 0)
    turned = dict(one)
    turn = torch.linalg.qr(torch.randn(2, 2, generator=torch.Generator().manual_seed(3)))[0]
    turned["x.lora_A.weight"] = turn.T @ one["x.lora_A.weight"]
    turned["x.lora_B.weight"] = one["x.lora_B.weight"] @ turn
    assert distances.pairwise([one], [turned]).item() < 1e-3


def test_a_copy_has_no_novelty_and_another_run_is_as_new_as_a_held_out_one():
    train, held = loras(8, 0), loras(2, 1)
    copied = distances.novelty([dict(train[2])], train, held, scale=2.0)
    assert copied.ratio < 1e-3 and copied.samples != copied.samples  # NaN: there is one sample
    fresh = distances.novelty(loras(20, 2), train, held, scale=2.0)
    assert 0.7 < fresh.ratio < 1.4 and fresh.ratio_low <= fresh.ratio
    assert fresh.generated == pytest.approx(fresh.ratio * fresh.held_out)


def test_the_mean_of_all_runs_is_nearer_to_each_than_they_are_to_one_another():
    train, held = loras(8, 0, spread=0.1, about=1.0), loras(2, 1, spread=0.1, about=1.0)
    soup = {name: torch.stack([a[name] for a in train]).mean(0) for name in train[0]}
    found = distances.novelty([soup], train, held, scale=1.0)
    assert found.ratio < 1 and found.generated < found.seeds < found.norm


def test_novelty_of_nothing_and_of_other_shapes_is_refused():
    with pytest.raises(UsageError, match="got 0, 2 and 1"):
        distances.novelty([], loras(2, 0), loras(1, 1), 1.0)
    strange = [{**one, "x.lora_A.weight": torch.ones(2, 7)} for one in loras(1, 0)]
    with pytest.raises(OralError, match="does not fit"):
        distances.novelty(strange, loras(2, 0), loras(1, 1), 1.0)
