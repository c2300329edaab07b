"""The examples of docs/extending.md do what the page says."""

import json
import re
from functools import cache

import pandas as pd
import pytest
import torch

from oral_lib import lora, method, scales
from oral_lib.assets import sources
from oral_lib.evaluation.evaluate import evaluate
from oral_lib.experiments import records
from oral_lib.lora.peft_folder import Card
from oral_lib.models import loading, registry
from oral_lib.paths import ROOT
from oral_lib.tasks import task as tasks
from oral_lib.tasks.rows import task_rows
from oral_lib.tasks.task import load_task
from oral_lib.workflow import cli, plan

PAGE = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
NAME = "base_model.model.layers.0.q_proj"
CONFIG = {
    "peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"],
    "base_model_name_or_path": "someone/their-model",
}  # fmt: skip


def block(title, kind, number=0):
    """The code block of a kind in a section of the page."""
    section = re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", PAGE, re.M | re.S)[1]
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", section, re.M | re.S)
    return [text for name, text in blocks if name == kind][number]


def adapter(task, seed):
    """Tensors of an adapter: a direction of its task and a little noise."""
    draw = torch.Generator().manual_seed(10 * task + seed)
    direction = torch.Generator().manual_seed(task)
    shapes = {f"{NAME}.lora_A.weight": (2, 12), f"{NAME}.lora_B.weight": (8, 2)}
    return {
        name: torch.randn(shape, generator=direction) + 0.05 * torch.randn(shape, generator=draw)
        for name, shape in shapes.items()
    }


def test_a_generator_of_your_own_adapters(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    lines = block("Your own adapters", "json")
    entries = [json.loads(line) for line in lines.splitlines()]
    names = sorted({entry["text"] for entry in entries})
    for seed, entry in enumerate(entries):
        tensors = adapter(names.index(entry["text"]), seed)
        lora.save(tmp_path / entry["path"], tensors, CONFIG, Card("", "their-model", "example", 0))
    (tmp_path / "adapters.jsonl").write_text(lines, encoding="utf-8")
    for command in block("Your own adapters", "").splitlines():
        words = [word.strip('"') for word in re.findall(r'"[^"]*"|\S+', command)]
        more = ["--steps", "20"] if words[3] == "train" else []
        assert words[:3] == ["python", "-m", "oral_lib"]
        assert cli.main([*words[3:], *more]) == 0, command
    assert "their-model" in capsys.readouterr().out
    tensors, config = lora.load(tmp_path / "my-lora")
    assert config.r == 2 and tensors.keys() == adapter(0, 0).keys()


def test_a_generator_in_python(tmp_path):
    folders = [tmp_path / f"{task}-{seed}" for task in range(2) for seed in range(2)]
    for i, folder in enumerate(folders):
        lora.save(folder, adapter(i // 2, i), CONFIG, Card("", "their-model", "example", 0))
    names = ["cheerful", "cheerful", "formal", "formal"]
    given = {
        "folders": folders,
        "tasks": names,
        "start": {name: torch.zeros_like(tensor) for name, tensor in adapter(0, 0).items()},
        "texts": {name: torch.randn(3, 16) for name in set(names)},
        "description": torch.randn(16),
        "weights": {"q_proj": torch.randn(8, 12)},
        "config": method.GeneratorConfig(
            k=8, components=4, recurrence=method.RecurrenceConfig(width=32, head=16)
        ),
        "training": method.TrainingConfig(steps=2),
    }
    exec(block("Your own adapters", "python"), given)
    assert len(given["losses"]) == 2 and list(given["model"].bases) == ["mine"]


@pytest.fixture
def task_folder(tmp_path, monkeypatch):
    """A folder that tasks are loaded from."""
    (tmp_path / "tasks").mkdir()
    monkeypatch.setattr(tasks.resources, "files", lambda _: tmp_path)
    for name in ("load_task", "_valid_task"):
        monkeypatch.setattr(tasks, name, cache(getattr(tasks, name).__wrapped__))
    return tmp_path / "tasks"


def test_a_task_of_your_own(task_folder, tmp_path):
    (task_folder / "urgency.yaml").write_text(block("Your own task", "yaml"), encoding="utf-8")
    task = tasks.load_task("urgency")
    assert task.prompt("Help!") == "Mail: Help!\nThis mail is"
    (tmp_path / "mails").mkdir()
    for part in ("train", "test"):
        rows = pd.DataFrame({"body": [f"{part} {i}" for i in range(400)], "urgent": [0, 1] * 200})
        rows.to_parquet(tmp_path / "mails" / f"{part}.parquet")
    split = task_rows(task, f"local:{tmp_path}")
    assert len(split.test) == 300 and {row.label for row in split.train} == {0, 1}
    assert len(task_rows(task, "made").train) > 100


def test_a_base_model_of_your_own(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sources, "HUB", dict(sources.HUB))
    monkeypatch.setattr(registry, "REGISTRY", dict(registry.REGISTRY))
    names = {"HUB": sources.HUB, "REGISTRY": registry.REGISTRY, "BaseSpec": registry.BaseSpec}
    exec(block("Your own base model", "python"), names)
    tiny, folder = loading.load("tiny-causal"), tmp_path / "models" / "my-model"
    tiny.model.save_pretrained(folder)
    tiny.tokenizer.save_pretrained(folder)
    given = {"source": f"local:{tmp_path}"}
    exec(block("Your own base model", "python", 1), given)
    assert capsys.readouterr().out.strip() == given["base"].describe()
    assert given["base"].lora_init()
    rows = task_rows(load_task("movie"), "made").test[:4]
    [outcome] = evaluate(given["base"], load_task("movie"), rows, [given["base"].lora_init()])
    assert len(outcome.correct) == 4


def test_an_experiment_of_your_own(monkeypatch):
    names = scales.EXPERIMENT_NAMES
    given = {
        "EXPERIMENT_NAMES": names, "SMOKE": dict(scales.SCALES["smoke"]),
        "BasePlan": scales.BasePlan,
        "EXPERIMENTS": dict(records.EXPERIMENTS), "Experiment": records.Experiment,
    }  # fmt: skip
    exec(block("Your own experiment", "python"), given)
    monkeypatch.setattr(scales, "EXPERIMENT_NAMES", given["EXPERIMENT_NAMES"])
    monkeypatch.setitem(scales.SCALES, "smoke", given["SMOKE"])
    for module in (records, plan):
        monkeypatch.setattr(module, "EXPERIMENTS", given["EXPERIMENTS"])
    planned = {node.name for node in plan.nodes("smoke", "made")}
    text = re.search(r"The plan then has the nodes (.*?), a cell", PAGE, re.S)[1]
    named = re.findall(r"`(mails/[^`]+)`", text)
    assert len(named) == 3 and {*named, "mails/report"} <= planned
    assert {f"mails/tiny-encoder/{task}/seed-0" for task in ("movie", "sarcasm")} <= planned
    assert records.EXPERIMENTS["mails"].run_cell
