"""`train --manifest`: a generator from one's own adapters, and every wrong line by its number."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from oral_lib import lora, paths
from oral_lib.errors import PreflightError, UsageError
from oral_lib.generator import Generator
from oral_lib.lora.peft_folder import Card
from oral_lib.workflow import cli, own_adapters

torch.set_num_threads(1)
TEXTS = ("Answer cheerfully.", "Answer formally.")
NAMES = [f"base_model.model.layers.{layer}.q_proj" for layer in range(2)]
CONFIG = {
    "peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"],
    "base_model_name_or_path": "someone/their-model",
}  # fmt: skip


def tensors(task: int, seed: int, r: int = 2) -> dict[str, torch.Tensor]:
    """An adapter: a shared start, a direction of its task, a little noise."""
    adapter = {}
    for number, name in enumerate(NAMES):
        for part, shape in (("lora_A", (r, 12)), ("lora_B", (8, r))):
            start, change, noise = (
                torch.randn(shape, generator=torch.Generator().manual_seed(1000 * number + s))
                for s in (len(part) + ord(part[-1]), 10 + task, 100 + 10 * task + seed)
            )
            start = start * (part == "lora_A")
            adapter[f"{name}.{part}.weight"] = start + change + 0.05 * noise
    return adapter


@pytest.fixture
def manifest(tmp_path) -> Path:
    """Six adapters of two tasks, named by a manifest next to them."""
    lines = []
    for task, text in enumerate(TEXTS):
        for seed in range(3):
            folder = tmp_path / "adapters" / f"{task}-{seed}"
            lora.save(folder, tensors(task, seed), CONFIG, Card("", "their-model", "example", 0))
            lines.append({"path": f"adapters/{task}-{seed}", "text": text})
    lines[0]["base"] = "A tiny model with two attention layers."
    file = tmp_path / "adapters.jsonl"
    file.write_text("\n".join(map(json.dumps, lines)) + "\n", encoding="utf-8")
    return file


def replaced(file: Path, number: int, line: str) -> Path:
    """`file` with another line `number`."""
    lines = file.read_text(encoding="utf-8").splitlines()
    lines[number - 1] = line
    file.write_text("\n".join(lines), encoding="utf-8")
    return file


def distance(one, other) -> float:
    return sum((one[n] - other[n]).square().sum().item() for n in one) ** 0.5


def test_a_generator_of_ones_own_adapters_is_trained_saved_and_generates_them(
    manifest, tmp_path, capsys
):
    save = tmp_path / "generator"
    words = ["train", "--manifest", str(manifest), "--save", str(save), "--steps", "150"]
    assert cli.main([*words, "--text-encoder", "hashed-words"]) == 0
    assert str(save) in capsys.readouterr().out
    generator = Generator.from_pretrained(save)
    assert list(generator.bases) == ["their-model"]
    assert generator.manifest["base"] == "A tiny model with two attention layers."
    assert [entry["text"] for entry in generator.manifest["adapters"]] == [
        text for text in TEXTS for _ in range(3)
    ]
    for task, text in enumerate(TEXTS):
        [adapter] = generator.generate(text, "their-model")
        assert {n: t.shape for n, t in adapter.items()} == {
            n: t.shape for n, t in tensors(0, 0).items()
        }
        near, far = (distance(adapter, tensors(t, 0)) for t in (task, 1 - task))
        assert near < 0.5 * far
        out = tmp_path / f"out-{task}"
        words = ["--generator", str(save), "--base", "their-model", "--save", str(out)]
        assert cli.main(["generate", "--text", text, *words]) == 0
        tensors_on_disk, config = lora.load(out)
        assert config.r == 2 and torch.equal(tensors_on_disk[name := NAMES[0] + ".lora_A.weight"],
                                             adapter[name])  # fmt: skip
        assert "someone/their-model" in (out / "README.md").read_text()


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{path: adapters}", "is not valid JSON: Expecting property name"),
        ('["adapters/0-0"]', "must be a map of names to values, got ['adapters/0-0']"),
        ('{"path": "adapters/0-1"}', "'text' is missing"),
        ('{"text": "Answer."}', "'path' is missing"),
        ('{"path": "adapters/0-1", "txt": "Answer."}', "unknown key 'txt'. Did you mean 'text'?"),
        ('{"path": "adapters/0-1", "text": " "}', "text: must not be empty, got ' '"),
        ('{"path": "adapters/0-1", "text": "\\u200b"}', "text: must not be empty"),
        ('{"path": "adapters/0-1", "text": null}', "text: must be a text, got None"),
        ('{"path": "adapters/0-1", "text": NaN}', "text: NaN is not a finite number"),
        ('{"path": "adapters/0-1", "text": "a", "text": "b"}', "the key 'text' is there twice"),
        ('{"path": "adapters/0-1", "text": "\\ud800"}', "text: has half of a character"),
        ('{"path": "a\\u0000b", "text": "a"}', "there is no folder"),
        ('{"path": "' + "a" * 5000 + '", "text": "a"}', "there is no folder"),
        ('{"path": 3, "text": "Answer."}', "path: must be a text, got 3"),
        ('{"path": "adapters/no", "text": "Answer."}', "path 'adapters/no': there is no folder"),
        ('{"path": ".", "text": "Answer."}', "path '.' is not a LoRA adapter"),
        ('{"path": "adapters/0-1", "text": "Answer.", "base": "Another."}',
         "base: 'Another.' differs from 'A tiny model with two attention layers.' in line 1"),
    ],
)  # fmt: skip
def test_a_wrong_line_is_named_with_file_number_and_value(manifest, line, words, refused):
    with refused(UsageError, f"{manifest}:2: ", words):
        own_adapters.read_manifest(replaced(manifest, 2, line))


def test_an_adapter_of_another_shape_or_scale_is_named(manifest, tmp_path, refused):
    def other(name: str, adapter: dict, **changes) -> str:
        folder = tmp_path / "adapters" / name
        lora.save(folder, adapter, CONFIG | changes, Card("", "their-model", "example", 0))
        return json.dumps({"path": f"adapters/{name}", "text": "Answer."})

    line = other("rank", tensors(0, 0, r=3), r=3)
    with refused(UsageError, "jsonl:4: ", "differs from line 1", "(3, 12), expected (2, 12)"):
        own_adapters.read_manifest(replaced(manifest, 4, line))
    half = {n: t for n, t in tensors(0, 0).items() if "layers.0" in n}
    with refused(UsageError, "jsonl:4: ", "layers.1", "is missing"):
        own_adapters.read_manifest(replaced(manifest, 4, other("half", half)))
    line = other("alpha", tensors(0, 0), lora_alpha=8)
    with refused(UsageError, "jsonl:4: ", "alpha=8", "lora_alpha have to agree"):
        own_adapters.read_manifest(replaced(manifest, 4, line))


def test_a_file_that_is_missing_or_has_one_adapter_is_refused(manifest, tmp_path, refused):
    with refused(UsageError, "no.jsonl", "does not exist"):
        own_adapters.read_manifest(tmp_path / "no.jsonl")
    manifest.write_text("\n\n" + manifest.read_text().splitlines()[0])
    with refused(UsageError, "has 1 adapters"):
        own_adapters.read_manifest(manifest)


def test_without_the_text_encoder_it_is_said_how_to_go_on(manifest, tmp_path, monkeypatch, refused):
    monkeypatch.setenv("ORAL_CACHE", str(tmp_path / "empty"))
    with refused(
        PreflightError, "'minilm-l6'", "oral_lib assets minilm-l6", "--text-encoder hashed-words"
    ):
        own_adapters.train_generator(manifest, tmp_path / "generator")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train"], "name what to train"),
        (["train", "generator", "--manifest", "a", "--save", "b"], "leave out 'generator'"),
        (["train", "--manifest", "a"], "--save"),
        (["train", "generator", "--save", "b"], "--save has no effect without --manifest"),
        (["train", "--manifest", "a", "--save", "."], "is not empty"),
    ],
)
def test_a_command_line_that_mixes_zoo_and_manifest_gives_2(words, message, capsys):
    assert cli.main(words) == 2
    assert message in capsys.readouterr().err


def test_it_needs_neither_registry_entries_nor_task_files_nor_network(manifest, tmp_path):
    code = f"""
import socket, sys
from pathlib import Path
def refuse(*args, **rest): raise AssertionError("network, registry or task file")
socket.socket.connect = refuse
from oral_lib.models import loading, registry
from oral_lib.tasks import task
from oral_lib.workflow import own_adapters
registry.spec = loading.load = task.load_task = refuse
file, save = Path({str(manifest)!r}), Path({str(tmp_path / "generator")!r})
print(own_adapters.train_generator(file, save, text_encoder="hashed-words", steps=3)[1])
"""
    environment = {**os.environ, "PYTHONPATH": str(paths.ROOT), "ORAL_CACHE": str(tmp_path / "no")}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "their-model"
