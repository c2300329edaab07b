"""Folders of strangers: named files are read, nothing else takes part, and nothing is asked for."""

import ast
import errno
import json
import shutil
import socket
from pathlib import Path

import made_tokenizers
import pytest
import timm
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from oral_lib.assets.cache import weights_hash
from oral_lib.checkpoints.folders import weight_files
from oral_lib.checkpoints.hugging_face import read_config
from oral_lib.errors import OralError, PreflightError, UsageError
from oral_lib.evaluation import scoring
from oral_lib.models import alignment, loading
from oral_lib.models.text_encoder import TextEncoder
from oral_lib.tasks.rows import task_rows
from oral_lib.tasks.task import load_task

torch.set_num_threads(1)
PACKAGE = Path(__file__).resolve().parent.parent / "oral_lib"
FAR = "https://example.org/weights.bin"
HOSTILE = {  # of a configuration of transformers or diffusers
    "_name_or_path": "someone/else",
    "name_or_path": "someone/else",
    "auto_map": {k: "code.Own" for k in ("AutoConfig", "AutoModel", "AutoModelForCausalLM")},
    "transformers_weights": "adapter_model.safetensors",
    "attn_implementation": "kernels-community/flash-attn3",
    "_attn_implementation": "kernels-community/flash-attn3",
    "_attn_implementation_internal": "kernels-community/flash-attn3",
    "return_dict": False,
    "output_hidden_states": True,
    "is_encoder_decoder": True,
    "use_kernels": True,
    "extra_files": ["pytorch_model.bin"],
    "id2label": {str(i): "x" for i in range(7)},
    "repetition_penalty": 9.0,
    "custom_pipelines": {"x": {"impl": "code.Own"}},
}
GENERATION = {"repetition_penalty": 9.0, "suppress_tokens": [5], "max_length": 3, "do_sample": True}
DROPPINGS = ("._{}", ".#{}", "{}~", "#{}#", "{}.bak", "copy of {}")


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Every connection and every look-up of a name fails."""

    opened = []

    def refuse(*words, **_):
        opened.append(words)
        raise AssertionError("a connection was opened")

    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, refuse)
    for name in ("getaddrinfo", "gethostbyname", "create_connection"):
        monkeypatch.setattr(socket, name, refuse)
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    yield
    assert not opened  # not by code that goes on after a failure either


def changed(file, **settings):
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))


def bits(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)


def litter(folder):
    """Puts next to a model what users, libraries and systems leave there."""
    for file in [*folder.iterdir()]:
        for form in DROPPINGS:
            (folder / form.format(file.name)).write_bytes(b"\0\5\x16\7\xff\xfe")
    for name in ("pytorch_model.bin", "model.ckpt", "tf_model.h5", "training_args.bin"):
        torch.save({"x": torch.ones(1)}, folder / name)
    for name in ("code.py", "handler.py", "modeling_own.py", "tokenization_own.py"):
        (folder / name).write_text("raise SystemExit('code of a stranger was run')")
    (folder / ".DS_Store").write_bytes(b"\0\0\0\1Bud1")
    (folder / "generation_config.json").write_text(json.dumps(GENERATION))
    (folder / "adapter_config.json").write_text(
        json.dumps({"base_model_name_or_path": "someone/else", "peft_type": "LORA"})
    )
    save_file({"x": torch.ones(1)}, folder / "adapter_model.safetensors")
    save_file({"x": torch.ones(1)}, folder / "consolidated.safetensors")
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "x.jinja").write_text("{{ raise }}")


def hostile(folder):
    litter(folder)
    changed(folder / "config.json", **HOSTILE)
    changed(
        folder / "tokenizer_config.json",
        auto_map={"AutoTokenizer": ["code.Own", "code.Own"]},
        tokenizer_file="/dev/null",
        vocab_file="elsewhere/vocab.json",
        name_or_path="someone/else",
    )


@pytest.fixture
def causal(tmp_path):
    """(source, folder) of a small language model."""
    base, folder = loading.load("tiny-causal"), tmp_path / "models" / "smollm2-135m"
    base.model.save_pretrained(folder)
    base.tokenizer.save_pretrained(folder)
    return f"local:{tmp_path}", folder


def answers(base):
    task = load_task("sst2")
    return scoring.score(base.model, base, task, task_rows(task, "made").test[:5])


# ---------------------------------------------------------------- each kind of base model
def test_a_causal_model_is_what_its_named_files_say(causal):
    source, folder = causal
    plain = loading.load("smollm2-135m", source=source, dtype=torch.float32)
    hashed = weights_hash(folder)
    hostile(folder)
    base = loading.load("smollm2-135m", source=source, dtype=torch.float32)
    assert equal(bits(base.model), bits(plain.model))
    assert torch.equal(answers(base), answers(plain))
    base.lora_init()
    assert torch.equal(answers(base), answers(plain))
    assert base.describe() == plain.describe()
    assert weights_hash(folder) == hashed
    task = load_task("arithmetic")
    rows = task_rows(task, "made").test[:5]
    written = [scoring.write_answers(b.model, b, task, rows) for b in (base, plain)]
    assert written[0] == written[1]


def test_an_adapter_next_to_a_base_model_is_not_attached(causal):
    source, folder = causal
    plain = answers(loading.load("smollm2-135m", source=source, dtype=torch.float32))
    config = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    get_peft_model(LlamaForCausalLM.from_pretrained(folder), config).save_pretrained(folder)
    assert (folder / "adapter_model.safetensors").is_file()
    base = loading.load("smollm2-135m", source=source, dtype=torch.float32)
    assert torch.equal(answers(base), plain)


def test_an_encoder_and_a_text_encoder_are_what_their_named_files_say(tmp_path):
    base, folder = loading.load("tiny-encoder"), tmp_path / "models" / "minilm-l6"
    base.model.bert.save_pretrained(folder)
    base.tokenizer.save_pretrained(folder)
    source = f"local:{tmp_path}"
    plain = loading.load("minilm-l6", source=source, labels=3)
    sentence = TextEncoder("minilm-l6", source=source).encode(["a film"])
    hostile(folder)
    again = loading.load("minilm-l6", source=source, labels=3)
    state, wanted = bits(again.model.bert), bits(plain.model.bert)
    assert again.model.config.num_labels == 3 and equal(state, wanted)
    assert torch.equal(TextEncoder("minilm-l6", source=source).encode(["a film"]), sentence)


@pytest.fixture
def backbone(tmp_path):
    """(source, folder) of a small backbone in timm's form."""
    folder = tmp_path / "models" / "vit-tiny"
    folder.mkdir(parents=True)
    torch.manual_seed(0)
    model = timm.create_model("test_vit", num_classes=9)
    save_file(model.state_dict(), folder / "model.safetensors")
    names = ("mean", "std", "input_size", "interpolation", "classifier", "fixed_input_size")
    about = {name: model.pretrained_cfg[name] for name in names}
    config = {"architecture": "test_vit", "num_classes": 9, "pretrained_cfg": about}
    (folder / "config.json").write_text(json.dumps(config))
    return f"local:{tmp_path}", folder


def test_a_backbone_is_what_its_named_files_say(backbone):
    source, folder = backbone
    plain = loading.load("vit-tiny", source=source)
    litter(folder)
    config = json.loads((folder / "config.json").read_text())
    far = {"url": FAR, "hf_hub_id": "someone/else", "file": "pytorch_model.bin", "source": "hf-hub"}
    far |= {
        "custom_load": True,
        "hf_hub_filename": "x.bin",
        "state_dict": {"x": 1},
        "num_classes": 3,
    }
    changed(folder / "config.json", pretrained_cfg=config["pretrained_cfg"] | far, url=FAR)
    assert equal(bits(loading.load("vit-tiny", source=source).model), bits(plain.model))


@pytest.mark.parametrize(
    "settings",
    [
        {"pretrained": True},
        {"checkpoint_path": "pytorch_model.bin"},
        {"pretrained_cfg": {"url": FAR}},
        {"pretrained_cfg_overlay": {"url": FAR}},
        {"cache_dir": "/tmp"},
        {"features_only": True},
        {"scriptable": True},
        {"bn_eps": None},
        {"img_size": 10**9},
        {"img_size": [[1]]},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_settings_of_layers_that_are_not_known_are_refused(backbone, refused, settings):
    source, folder = backbone
    changed(folder / "config.json", model_args=settings)
    with refused(OralError, "config.json", "model_args", next(iter(settings))):
        loading.load("vit-tiny", source=source)


@pytest.mark.parametrize(
    "settings",
    [
        {"architecture": "hf-hub:someone/else"},
        {"architecture": "local-dir:/tmp"},
        {"architecture": ["test_vit"]},
        {"architecture": None},
        {"pretrained_cfg": None},
        {"pretrained_cfg": "test_vit.r160_in1k"},
        {"pretrained_cfg": []},
        {"model_args": [1]},
        {"model_args": "pretrained"},
    ],
    ids=str,
)
def test_a_backbone_of_another_form_is_refused(backbone, refused, settings):
    source, folder = backbone
    changed(folder / "config.json", **settings)
    with refused(OralError, "config.json"):
        loading.load("vit-tiny", source=source)


@pytest.mark.parametrize(
    ("name", "value"),
    [("classifier", ""), ("classifier", "blocks"), ("classifier", "nowhere"), ("classifier", 3),
     ("classifier", None), ("mean", [0.5]), ("mean", "x"), ("std", [0, 0, 0]), ("std", None),
     ("input_size", [3, 0, 9]),
     ("input_size", [3, 10**9, 10**9]), ("interpolation", "far"), ("fixed_input_size", "yes")],
)  # fmt: skip
def test_odd_settings_of_images_and_head_are_refused(backbone, refused, name, value):
    source, folder = backbone
    about = json.loads((folder / "config.json").read_text())["pretrained_cfg"]
    changed(folder / "config.json", pretrained_cfg=about | {name: value})
    with refused(OralError, "config.json", name if value is not None else ""):
        loading.load("vit-tiny", source=source)


def test_two_towers_are_what_their_named_files_say(tmp_path):
    folder = tmp_path / "models" / "tiny-towers"
    shutil.copytree(alignment.ensure("tiny-towers", "made"), folder)
    source = f"local:{tmp_path}"
    plain = loading.load("tiny-towers", source=source)
    hostile(folder)
    file = folder / "open_clip_config.json"
    model = json.loads(file.read_text())["model_cfg"]
    model["vision_cfg"] |= {"timm_model_pretrained": True}
    model["text_cfg"] |= {"hf_model_name": "someone/else", "hf_model_pretrained": True}
    model["text_cfg"] |= {"hf_tokenizer_name": "someone/else", "tokenizer_kwargs": {"x": 1}}
    changed(file, model_cfg=model | {"custom_text": True})
    base = loading.load("tiny-towers", source=source)
    assert equal(bits(base.model), bits(plain.model))
    model["vision_cfg"]["timm_model_name"] = "hf-hub:someone/else"
    changed(file, model_cfg=model)
    with pytest.raises(OralError, match="hf-hub:someone/else"):
        loading.load("tiny-towers", source=source)


@pytest.mark.parametrize(
    "content",
    ["[]", "null", '"x"', '{"model_cfg": 1}', '{"model_cfg": {"vision_cfg": 3, "text_cfg": []}}'],
)
def test_two_towers_of_another_form_are_refused(tmp_path, refused, content):
    folder = tmp_path / "models" / "tiny-towers"
    shutil.copytree(alignment.ensure("tiny-towers", "made"), folder)
    (folder / "open_clip_config.json").write_text(content)
    with refused(OralError, "open_clip_config.json"):
        loading.load("tiny-towers", source=f"local:{tmp_path}")


def test_a_vision_language_model_is_what_its_named_files_say(tmp_path):
    from transformers import Qwen2VLImageProcessor

    made = loading.load("tiny-vision-language", source="made", dtype=torch.float32)
    folder = tmp_path / "models" / "qwen2-vl-7b"
    made.model.save_pretrained(folder)
    made.tokenizer.save_pretrained(folder)
    Qwen2VLImageProcessor(patch_size=4).save_pretrained(folder)
    source = f"local:{tmp_path}"
    plain = loading.load("qwen2-vl-7b", source=source, dtype=torch.float32)
    hostile(folder)
    changed(
        folder / "preprocessor_config.json", auto_map={"AutoImageProcessor": "code.Own"},
        processor_class="Own", image_processor_type="Own",
    )  # fmt: skip
    (folder / "processor_config.json").write_text(
        json.dumps({"image_processor": {"image_mean": [9, 9, 9]}, "processor_class": "Own"})
    )
    base = loading.load("qwen2-vl-7b", source=source, dtype=torch.float32)
    assert equal(bits(base.model), bits(plain.model))
    assert torch.equal(base.mean, plain.mean) and base.before == plain.before


def test_a_latent_diffusion_model_is_what_its_named_files_say(tmp_path, no_network):
    pytest.importorskip("diffusers", reason="the extra `diffusion` is not installed")
    from oral_lib.models import latent_diffusion, registry

    folder = tmp_path / "models" / "sd-2.1"
    shutil.copytree(latent_diffusion.ensure(registry.spec("tiny-diffusion")), folder)
    source = f"local:{tmp_path}"
    plain = loading.load("sd-2.1", source=source)
    for part in ("unet", "vae", "text_encoder"):
        litter(folder / part)
        changed(folder / part / "config.json", **HOSTILE)
    changed(folder / "scheduler" / "scheduler_config.json", **HOSTILE)
    changed(folder / "tokenizer" / "tokenizer_config.json", vocab_file="/dev/null")
    base = loading.load("sd-2.1", source=source)
    assert equal(bits(base.model), bits(plain.model)) and equal(bits(base.vae), bits(plain.vae))
    assert torch.equal(base.prompt, plain.prompt) and torch.equal(base.abar, plain.abar)


# ---------------------------------------------------------------- config.json
@pytest.mark.parametrize("content", ["[]", "null", '"llama"', "3", "", "{", '{"model_type": []}',
                                     '{"model_type": "own"}', '{"model_type": "timm_wrapper"}',
                                     '{"model_type": "vit"}', "{}"])  # fmt: skip
@pytest.mark.parametrize("file", ["config.json"])
def test_a_config_of_another_form_is_refused(causal, refused, file, content):
    source, folder = causal
    (folder / file).write_text(content)
    with refused(OralError, str(folder), "config.json"):
        loading.load("smollm2-135m", source=source)


@pytest.mark.parametrize(
    "content",
    ["[]", "null", '"llama"', "3", '{"tokenizer_class": 3}', '{"model_max_length": "x"}',
     '{"added_tokens_decoder": []}', '{"pad_token": 0}'],
)  # fmt: skip
def test_a_tokenizer_config_of_another_form_is_refused(causal, refused, content):
    source, folder = causal
    (folder / "tokenizer_config.json").write_text(content)
    with refused(OralError, str(folder), "tokenizer_config.json"):
        loading.load("smollm2-135m", source=source)


@pytest.mark.parametrize(
    "content", ['{"added_tokens_decoder": {"x": 1}}', '{"chat_template": [1]}']
)
def test_a_part_of_a_tokenizer_config_of_another_form_is_refused(causal, refused, content):
    source, folder = causal
    (folder / "tokenizer_config.json").write_text(content)
    with refused(OralError, str(folder), "tokenizer of smollm2-135m", "TypeError"):
        loading.load("smollm2-135m", source=source)


@pytest.mark.parametrize("name", ["special_tokens_map.json", "added_tokens.json"])
def test_a_list_of_tokens_of_another_form_is_refused(causal, refused, name):
    source, folder = causal
    (folder / name).write_text("[1]")
    with refused(OralError, str(folder), name):
        loading.load("smollm2-135m", source=source)


@pytest.mark.parametrize("kind", ["bert", "llama", "mistral", "gemma2", "gemma3_text", "qwen2",
                                  "qwen2_vl", "clip_text_model", "roberta", "gpt2"])  # fmt: skip
def test_all_settings_of_a_released_file_are_read(kind, tmp_path):
    config = CONFIG_MAPPING[kind]()
    config.save_pretrained(tmp_path)
    assert read_config(tmp_path, "model", (kind,)).to_dict() == config.to_dict()


@pytest.mark.parametrize(
    "settings",
    [
        {"quantization_config": {"quant_method": "fp8"}},
        {"dtype": "load"},
        {"torch_dtype": "int8"},
        {"hidden_size": "many"},
        {"hidden_size": 0},
        {"num_attention_heads": 0},
        {"num_attention_heads": -2},
        {"hidden_size": 10**9},
        {"vocab_size": 10**12},
        {"rope_parameters": {"rope_theta": "x", "rope_type": "default"}},
        {"num_hidden_layers": None},
        {"num_hidden_layers": 10**9},
        {"num_hidden_layers": "2"},
        {"pad_token_id": 10**6},
        {"rope_parameters": 3},
        {"vocab_size": 7},
    ],
    ids=str,
)
def test_settings_that_no_model_can_have_are_refused(causal, refused, settings):
    source, folder = causal
    changed(folder / "config.json", **settings)
    with refused(OralError, str(folder)):
        loading.load("smollm2-135m", source=source)


# ---------------------------------------------------------------- weights
def sharded(folder):
    """Stores the model in two shards with an index, as large models are."""
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names, placed = sorted(weights), {}
    for i, part in enumerate((names[::2], names[1::2])):
        file = f"model-0000{i + 1}-of-00002.safetensors"
        save_file({n: weights[n] for n in part}, folder / file, {"format": "pt"})
        placed |= dict.fromkeys(part, file)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": placed}))
    return index


def test_shards_are_read_by_their_index(causal):
    source, folder = causal
    plain = bits(loading.load("smollm2-135m", source=source).model)
    sharded(folder)
    hostile(folder)
    assert equal(bits(loading.load("smollm2-135m", source=source).model), plain)
    assert [file.name[:11] for file in weight_files(folder)] == ["model-00001", "model-00002"]


@pytest.mark.parametrize("name", ["../x.safetensors", "/x.safetensors", "pytorch_model.bin",
                                  "missing.safetensors", "a/b.safetensors"])  # fmt: skip
def test_an_index_that_names_other_files_is_refused(causal, refused, name):
    source, folder = causal
    index = sharded(folder)
    save_file({"x": torch.ones(1)}, folder.parent / "x.safetensors")
    torch.save({"x": torch.ones(1)}, folder / "pytorch_model.bin")
    content = json.loads(index.read_text())
    content["weight_map"]["x"] = name
    index.write_text(json.dumps(content))
    with refused(OralError, "index.json", name):
        loading.load("smollm2-135m", source=source)
    with refused(OralError, "index.json", name):
        weights_hash(folder)


@pytest.mark.parametrize(
    "content", ["[]", "null", "{}", '{"weight_map": []}', '{"weight_map": {}}']
)
def test_an_index_of_another_form_is_refused(causal, refused, content):
    source, folder = causal
    sharded(folder).write_text(content)
    with refused(OralError, "index.json"):
        loading.load("smollm2-135m", source=source)


def test_no_place_for_links_is_one_line(causal, refused, monkeypatch):
    source, _ = causal

    def fails(*_):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(Path, "symlink_to", fails)
    with refused(PreflightError, "Operation not permitted", "TMPDIR"):
        loading.load("smollm2-135m", source=source)


# ---------------------------------------------------------------- tokenizer and embedding
@pytest.fixture
def other_tokens(tmp_path):
    """`save(rows, config)`: a model of so many rows with a tokenizer that has an added token."""

    def save(rows, added, **names):
        core = made_tokenizers.byte_level()
        rows += core.get_vocab_size()
        core.add_special_tokens([added])
        base = made_tokenizers.small_model(made_tokenizers.byte_level())
        folder = tmp_path / "models" / "smollm2-135m"
        base.model.resize_token_embeddings(rows)
        base.model.save_pretrained(folder)
        made_tokenizers.wrapped(core).save_pretrained(folder)
        changed(folder / "tokenizer_config.json", **names)
        return f"local:{tmp_path}"

    return save


@pytest.mark.parametrize("name", ["pad_token", "bos_token", "eos_token", "unk_token"])
def test_a_special_token_outside_the_embedding_is_refused(other_tokens, refused, name):
    source = other_tokens(0, "[NEW]", **{name: "[NEW]"})
    with refused(OralError, "'[NEW]'", "embedding", "rows"):
        loading.load("smollm2-135m", source=source)


def test_a_tokenizer_of_more_words_than_the_embedding_has_rows_is_refused(other_tokens, refused):
    source = other_tokens(-3, "[NEW]")
    with refused(OralError, "embedding", "rows"):
        loading.load("smollm2-135m", source=source)


def test_an_added_token_without_a_row_is_refused_where_a_text_has_it(other_tokens, refused):
    base = loading.load("smollm2-135m", source=other_tokens(0, "<|image|>"), dtype=torch.float32)
    assert answers(base).isfinite().all()
    task = load_task("sst2")
    row = task_rows(task, "made").test[0]
    odd = type(row)(row.key, "an <|image|> here", row.label)
    with refused(UsageError, "<|image|>", "embedding"):
        scoring.score(base.model, base, task, [odd])


def test_an_embedding_with_rows_to_spare_is_read(other_tokens):
    base = loading.load("smollm2-135m", source=other_tokens(64, "[NEW]", pad_token="[NEW]"))
    assert answers(base).isfinite().all()


@pytest.mark.parametrize("load", [loading.load, TextEncoder])
def test_an_encoder_without_a_token_for_padding_is_refused(tmp_path, refused, load):
    base, folder = loading.load("tiny-encoder"), tmp_path / "models" / "minilm-l6"
    base.model.bert.save_pretrained(folder)
    base.tokenizer.save_pretrained(folder)
    file = folder / "tokenizer_config.json"
    content = json.loads(file.read_text())
    file.write_text(json.dumps({k: v for k, v in content.items() if k != "pad_token"}))
    with refused(OralError, str(folder), "pad_token"):
        load("minilm-l6", source=f"local:{tmp_path}")


def test_a_causal_model_needs_no_token_for_padding(tmp_path):
    base, folder = (
        loading.load("tiny-causal", dtype=torch.float32),
        tmp_path / "models" / "smollm2-135m",
    )
    base.model.save_pretrained(folder)
    base.tokenizer.save_pretrained(folder)
    file = folder / "tokenizer_config.json"
    content = json.loads(file.read_text())
    file.write_text(json.dumps({k: v for k, v in content.items() if k != "pad_token"}))
    again = loading.load("smollm2-135m", source=f"local:{tmp_path}", dtype=torch.float32)
    assert again.tokenizer.pad_token is None
    torch.testing.assert_close(answers(again), answers(base))
    task = load_task("arithmetic")
    rows = task_rows(task, "made").test[:5]
    one, other = (scoring.write_answers(b.model, b, task, rows) for b in (base, again))
    assert one == other


def test_a_text_encoder_cuts_texts_to_the_positions_that_it_has(tmp_path):
    base, folder = loading.load("tiny-encoder"), tmp_path / "models" / "minilm-l6"
    base.model.bert.save_pretrained(folder)
    base.tokenizer.save_pretrained(folder)
    changed(folder / "tokenizer_config.json", model_max_length=10**30)
    encoder = TextEncoder("minilm-l6", source=f"local:{tmp_path}")
    assert encoder.encode(["film " * 2000]).isfinite().all()


def test_the_class_of_transformers_is_the_same_as_before(causal):
    """What is read from named files is what `from_pretrained` reads of a clean folder."""
    source, folder = causal
    base = loading.load("smollm2-135m", source=source)
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert type(base.model) is type(model) and equal(bits(base.model), bits(model))
    ours, theirs = base.model.config.to_dict(), model.config.to_dict()
    assert ours.pop("_name_or_path") == "" != theirs.pop("_name_or_path")
    assert ours == theirs


# ---------------------------------------------------------------- one way in
def test_models_of_others_are_read_in_one_place():
    """`conversions` reads the one GGUF file that it wrote into a folder of its own."""
    places = {"checkpoints/hugging_face.py", "assets/conversions.py"}
    for path in sorted(PACKAGE.rglob("*.py")):
        name = path.relative_to(PACKAGE).as_posix()
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                continue
            call, owner = node.func.attr, ast.unparse(node.func.value)
            if call == "from_pretrained" and owner not in ("Generator", "cls"):
                assert name in places, (name, node.lineno)
                given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                assert given["local_files_only"] == "True", (name, node.lineno)
            if call == "create_model":
                given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                assert given.get("pretrained", "False") == "False", (name, node.lineno)
