"""A generator of a stranger: its JSON and its weights are checked before they are used."""

import json
import os
import time

import pytest
import torch
from safetensors.torch import load_file, save_file

import oral_lib
from oral_lib import lora, storage
from oral_lib.errors import OralError
from oral_lib.generator import Generator
from oral_lib.method.stored import shards
from tests.fuzz.targets import generator_files

torch.set_num_threads(1)
LAYOUT = ("bases", "theirs", "layout")


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "generator").mkdir()
    for name, data in generator_files().items():
        (tmp_path / "generator" / name).write_bytes(data)
    return tmp_path / "generator"


def refused_line(folder, *words):
    start = time.monotonic()
    with pytest.raises(OralError) as caught:
        Generator.from_pretrained(folder)
    message = str(caught.value)
    assert "\n" not in message and str(folder) in message and len(message) < 1500
    assert time.monotonic() - start < 5
    for word in words:
        assert word in message, message


def changed(folder, file, place, value):
    content = json.loads((folder / file).read_text())
    here = content
    for key in place[:-1]:
        here = here[key]
    if value is KeyError:
        del here[place[-1]]
    else:
        here[place[-1]] = value
    (folder / file).write_text(json.dumps(content))


CHANGES = [
    *((("generator",), value) for value in (None, [], "x", 1, {}, KeyError)),
    *((("sampling",), value) for value in (None, [], {}, KeyError)),
    *((("bases",), value) for value in (None, [], {}, "theirs", KeyError)),
    *((("bases", "theirs"), value) for value in (None, [], {}, 3)),
    *((("bases", "theirs", "peft_config"), v) for v in (None, [], "x", 1, KeyError)),
    *((("bases", "theirs", "peft_config", "r"), v) for v in (None, 3, True, -1, 10**30, "2", 2.0)),
    (("bases", "theirs", "peft_config", "rank_pattern"), {"(a+)+!": 2}),
    (("bases", "theirs", "peft_config", "base_model_name_or_path"), 5),
    (("bases", "theirs", "peft_config", "peft_type"), "LOHA"),
    *(((*LAYOUT, "k"), value) for value in (None, 0, -1, True, 8.0, 7, 10**9, 10**30, "8")),
    *(((*LAYOUT, "tensors"), value) for value in (None, [], {}, [None], [["a", [2], "float32"]])),
    *(((*LAYOUT, "tensors", 0), value) for value in (None, "x", [], ["a"], [1, 2, 3], {})),
    *(((*LAYOUT, "tensors", 0, 0), value) for value in (None, 3, "", "x", "\ud800", "a" * 10**5)),
    *(
        ((*LAYOUT, "tensors", 0, 1), v)
        for v in (None, [], [-1, 2], [2.0, 6], [10**9] * 3, [True, 1])
    ),
    *(((*LAYOUT, "tensors", 0, 2), value) for value in (None, 1, "float64", "object", "int8")),
    *((("generator", "k"), value) for value in (None, 0, True, 7, 10**12, "8")),
    *((("generator", "components"), value) for value in (0, -1, 3, 9, 10**9, False)),
    *((("generator", "recurrence", "width"), v) for v in (0, 12, 32, 10**7, 10**12, None, True)),
    *((("generator", "recurrence", "layers"), v) for v in (0, 3, 10**6, 10**12, True)),
    *((("generator", "recurrence", "kind"), v) for v in ("lstm", "none", "transformer", None, [])),
    *((("generator", "denoiser", "hidden"), v) for v in (0, 32, 10**7, 10**12, True)),
    *((("generator", "denoiser", "depth"), v) for v in (0, 2, 10**7, True)),
    *((("generator", "denoiser", "kind"), v) for v in ("conv", "x", None, {})),
    *((("generator", "denoiser", "channels"), v) for v in ([1, 2], [], "x", [True], [[1]])),
    *((("generator", "diffusion"), v) for v in ([], "x", {}, 1)),
    *((("generator", "diffusion", "steps"), v) for v in (0, 1, -5, 2.5, True, 10**12)),
    *((("generator", "diffusion", "beta_start"), v) for v in (0, -1, 2, "x", None, True)),
    *((("generator", "text_encoder"), v) for v in (None, 1, [], "x" * 1000)),
    *((("generator", "uses_text"), v) for v in (None, 1, "true")),
    *((("sampling", "steps"), v) for v in (0, True, 1.5, None, 10**30)),
    *((("sampling", "temperature"), v) for v in (-1, 2, True, "1", None)),
    *((("sampling", "projection"), v) for v in ("x", None, 1, [])),
    *((("sampling", "guidance"), v) for v in ("x", None, True)),
]


@pytest.mark.parametrize(("place", "value"), CHANGES, ids=lambda value: repr(value)[:60])
def test_a_value_of_another_kind_is_refused_with_file_and_key(folder, place, value):
    changed(folder, "config.json", place, value)
    refused_line(folder, "config.json")


@pytest.mark.parametrize("value", [KeyError, None, 3, "x", "G" * 64, ["0" * 64]])
def test_a_hash_of_another_kind_is_refused(folder, value):
    changed(folder, "manifest.json", ("sha256",), value)
    refused_line(folder, "manifest.json", "sha256")


@pytest.mark.parametrize("value", [None, 3, "x", [None], [{}], [{"base": 1}], {"a": 1}])
def test_a_list_of_trained_adapters_of_another_kind_is_refused(folder, value):
    changed(folder, "manifest.json", ("zoo",), value)
    refused_line(folder, "manifest.json", "zoo")


@pytest.mark.parametrize(
    "text",
    ["", "{", "null", "[1]", '{"format": 2, "format": 2}', "[" * 10**5, '{"a":' * 10**5, "NaN",
     '{"format": NaN}', '{"format": 2, "x": 1e999}', '{"format": "\\ud800"}', "9" * 10**5],
)  # fmt: skip
@pytest.mark.parametrize("file", ["config.json", "manifest.json"])
def test_json_that_is_truncated_or_ambiguous_is_refused(folder, file, text):
    (folder / file).write_text(text)
    refused_line(folder)


def rewritten(folder, change):
    """The weights after `change`, with a manifest that has their hash."""
    state = load_file(folder / "generator.safetensors")
    change(state)
    save_file(state, folder / "generator.safetensors")
    rehashed(folder)


def rehashed(folder, *names):
    """A manifest that has the hashes of the files of weights."""
    names = names or ("generator.safetensors",)
    hashes = {name: storage.sha256(folder / name) for name in names}
    changed(folder, "manifest.json", ("files",), hashes)
    changed(folder, "manifest.json", ("sha256",), shards.identity(hashes))


BASIS, BLOCK, MATRIX = (
    "entries.0.basis",
    "denoiser.blocks.0.0.weight",
    "denoiser.time.layers.2.weight",
)
NAMES = [name + end for name in (BASIS, BLOCK, MATRIX) for end in ("", ".scale")]
NAMES += ["denoiser.leave.bias", "entries.0.center", "entries.0.directions", "entries.0.coords"]
WHOLE_NUMBERS = (torch.int8, torch.uint8)


def replaced(change):
    """Changes that replace a tensor of each kind, by name."""
    return {name: lambda state, n=name: state.update({n: change(state[n])}) for name in NAMES}


def value_set(name, value):
    return lambda state: state[name].view(-1)[:1].fill_(value)


KINDS = {
    "missing": {name: lambda state, n=name: state.pop(n) for name in NAMES},
    "float64": replaced(lambda tensor: tensor.double()),
    "whole numbers": replaced(lambda tensor: tensor.long()),
    "another half": replaced(
        lambda tensor: tensor.half() if tensor.dtype != torch.float16 else tensor.bfloat16()
    ),
    "booleans": replaced(lambda tensor: tensor != 0),
    "another shape": replaced(lambda tensor: torch.ones(3, dtype=tensor.dtype)),
    "one number": replaced(lambda tensor: torch.ones((), dtype=tensor.dtype)),
    "one row more": replaced(lambda tensor: torch.cat([tensor, tensor[:1]])),
    "no rows": replaced(lambda tensor: tensor[:0]),
    "NaN": replaced(lambda t: t if t.dtype in WHOLE_NUMBERS else t * torch.nan),
}
WEIGHTS = {
    f"{kind} {name}": change
    for kind, changes in KINDS.items()
    for name, change in changes.items()
    if not (kind == "NaN" and name in (BASIS, BLOCK, MATRIX))
    # a zoo has any number of adapters
    if not (kind == "one row more" and name == "entries.0.coords")
} | {
    "extra": lambda state: state.update(extra=torch.ones(2)),
    "extra of a base model": lambda state: state.update({"entries.0.extra": torch.ones(2)}),
    "of a further base model": lambda state: state.update({"entries.1.center": torch.ones(2)}),
    "another center": lambda state: state.update({"entries.0.center": torch.zeros(3, 8)}),
    "scale of zero": lambda state: state["entries.0.scale"].zero_(),
    "negative scale": value_set(f"{BLOCK}.scale", -1.0),
    "negative scale of a basis": value_set(f"{BASIS}.scale", -1.0),
    "scale that overflows": value_set(f"{BLOCK}.scale", 3e38),
    "code beyond the limit": value_set(BLOCK, 0),
    "code beyond the limit in a basis": value_set(BASIS, -128),
    "more directions than components": lambda state: state.update(
        {name: torch.cat([state[name]] * 9) for name in NAMES[:2]}
    ),
    "a part without the others": lambda state: state.update({"x/1": torch.ones(2)}),
    "a part of a whole tensor": lambda state: state.update({f"{BLOCK}/0": state[BLOCK].clone()}),
    "parts of several dtypes": lambda state: state.update(
        {"x/0": torch.ones(2), "x/1": torch.ones(2).half()}
    ),
    "parts that do not fit": lambda state: state.update(
        {"x/0": torch.ones(2, 3), "x/1": torch.ones(2, 4)}
    ),
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_weights_that_do_not_fit_are_refused(folder, name):
    rewritten(folder, WEIGHTS[name])
    refused_line(folder)


def test_a_small_file_of_a_large_adapter_is_refused_before_memory_is_taken(folder):
    tensors = [[f"base_model.model.layers.{i}.q.lora_A.weight", [1], "float32"] for i in range(40)]
    changed(folder, "config.json", LAYOUT, {"k": 1 << 24, "tensors": tensors})
    changed(folder, "config.json", ("bases", "theirs", "peft_config"), {})
    changed(folder, "config.json", ("generator", "k"), 1 << 24)

    def change(state):
        state["entries.0.center"] = torch.zeros(40)
        state["entries.0.scale"] = torch.ones(40, 1)
        state[BASIS] = torch.ones(4, 40, dtype=torch.int8)
        state[f"{BASIS}.scale"] = torch.ones(4, 40, dtype=torch.bfloat16)

    rewritten(folder, change)
    refused_line(folder, "40 tokens")


@pytest.fixture
def cut(whole, monkeypatch):
    """A generator whose weights lie in several files, and whose largest tensors in parts."""
    monkeypatch.setattr(shards, "SIZE", 10_000)
    Generator.from_pretrained(whole).save_pretrained(whole)
    return whole, sorted(whole.glob("generator-*.safetensors"))


def test_weights_in_several_files_are_the_same_weights(cut):
    folder, files = cut
    assert len(files) > 5 and not (folder / "generator.safetensors").exists()
    assert any("/" in name for file in files for name in load_file(file))
    assert max(file.stat().st_size for file in files) < 2 * 10_000
    whole = folder.parent / "whole"
    (whole).mkdir()
    for name, data in generator_files(384).items():
        (whole / name).write_bytes(data)
    states = [Generator.from_pretrained(path).network.state_dict() for path in (folder, whole)]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


@pytest.mark.parametrize("fault", ["missing", "cut", "flipped", "exchanged", "unlisted", "doubled"])
def test_a_fault_in_one_of_several_files_is_refused_by_name(cut, fault):
    folder, files = cut
    data, name = files[2].read_bytes(), files[2].name
    words = [name]
    if fault == "missing":
        files[2].unlink()
    elif fault == "cut":
        files[2].write_bytes(data[:-1])
    elif fault == "flipped":
        files[2].write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    elif fault == "exchanged":
        files[2].write_bytes(files[3].read_bytes())
    elif fault == "unlisted":  # the identity covers the list of files
        hashes = json.loads((folder / "manifest.json").read_text())["files"]
        hashes.pop(name)
        changed(folder, "manifest.json", ("files",), hashes)
        words = ["manifest.json", "sha256"]
    else:
        files[2].write_bytes(files[1].read_bytes())
        rehashed(folder, *[file.name for file in files])
    refused_line(folder, *words)


@pytest.mark.parametrize(
    "files",
    [KeyError, None, [], {}, "x", {"../x": "0" * 64}, {"generator.safetensors": 3},
     {"generator-1.safetensors": "0" * 64}, {"generator.safetensors": "0" * 63}],
)  # fmt: skip
def test_a_list_of_files_of_another_kind_is_refused(folder, files):
    changed(folder, "manifest.json", ("files",), files)
    refused_line(folder, "manifest.json", "files")


@pytest.mark.parametrize("file", ["config.json", "manifest.json", "generator.safetensors"])
def test_a_link_out_of_the_folder_is_refused(folder, file):
    os.rename(folder / file, folder.parent / "outside")
    (folder / file).symlink_to(folder.parent / "outside")
    refused_line(folder, file, "leads out")


@pytest.fixture
def whole(folder):
    """A generator whose text encoder, hashed-words, is the one that it was made with."""
    for name, data in generator_files(384).items():
        (folder / name).write_bytes(data)
    changed(folder, "manifest.json", ("zoo",), [])
    return folder


def test_a_text_encoder_of_another_size_is_refused(folder):
    with pytest.raises(OralError, match=r"'hashed-words' returns 384 numbers.*reads 16"):
        Generator.from_pretrained(folder).generate("see", "theirs")


def test_a_base_whose_name_is_a_path_reads_nothing_outside(whole):
    folder = whole
    content = json.loads((folder / "config.json").read_text())
    content["bases"] = {"../../x": content["bases"]["theirs"]}
    (folder / "config.json").write_text(json.dumps(content))
    changed(
        folder,
        "manifest.json",
        ("zoo",),
        [{"base": "../../x", "task": "t", "seed": 0, "sha256": ""}],
    )
    with pytest.raises(OralError, match="looks like a path"):
        oral_lib.prompt("see", base="../../x", generator=folder)


def test_a_sample_is_made_again_from_its_card(whole, tmp_path):
    options = {"base": "theirs", "generator": whole, "temperature": 0.5}
    changed(whole, "config.json", ("sampling", "projection"), "none")
    draw, network = torch.Generator().manual_seed(0), Generator.from_pretrained(whole)
    with torch.no_grad():  # a new network predicts zero
        for weight in network.network.denoiser.parameters():
            weight.add_(0.1 * torch.randn(weight.shape, generator=draw))
    network.save_pretrained(whole)
    samples = oral_lib.prompt("Be cheerful.", n=3, seed=7, **options)
    text = (samples[1].save(tmp_path / "lora") / "README.md").read_text()
    assert "| seed | 7 |" in text and "| sample | 2 of 3 |" in text
    assert "temperature=0.5" in text and "steps=20" in text and "Be cheerful." in text
    card = samples[1].card
    again = oral_lib.prompt(card.text, n=card.samples, seed=card.seed, **options)
    repeated, saved = again[card.sample - 1].tensors, lora.load(tmp_path / "lora")[0]
    assert all(torch.equal(saved[name], tensor) for name, tensor in repeated.items())
    assert any(not torch.equal(saved[name], t) for name, t in again[0].tensors.items())
