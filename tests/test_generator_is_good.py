"""Whether a trained generator is any good: it reaches trained adapters, and by the text."""

import shutil
from dataclasses import replace

import pytest

import oral_lib
from oral_lib.evaluation.evaluate import evaluate
from oral_lib.experiments import generators
from oral_lib.generator import Generator
from oral_lib.scales import GENERATOR

ROWS = 400
SAMPLES = 6
PACKAGES = "packages"


@pytest.fixture(scope="module")
def accuracy(smoke, tmp_path_factory):
    """Mean accuracy in percent over the tasks and base models of the smoke scale: of the base
    model, of trained and generated adapters, and of adapters generated from the other task's text.

    The generator learns from the zoo of the session with the whole preset of the smoke scale, but
    for its text encoder. `tiny` has random weights: it finds the wordings of one task no more alike
    (0.93) than wordings of two (0.93). With it the generator misses both targets: on 1,500 rows
    trained has 88.7, generated 69.1, the wrong-task prompt 69.1. So the encoder here is that of all
    other scales (88.4 and 49.2), chosen after that failure; nothing else was changed.
    """
    root = tmp_path_factory.mktemp("good")
    shutil.copytree(smoke.root / "zoo", root / "zoo")
    zoo = {plan.base: smoke.members(plan.base) for plan in smoke.planned}
    preset = generators.preset("smoke")
    folder = generators.train_from_zoo(
        [(m.base, m.task, m.seed) for members in zoo.values() for m in members],
        GENERATOR,
        root=root,
        scale="smoke",
        source=PACKAGES,
        configured=replace(preset, network=replace(preset.network, text_encoder="minilm-l6")),
    )
    generator = Generator.from_pretrained(folder, source=PACKAGES)
    cells = []
    for plan in smoke.planned:
        base = smoke.base(plan.base)
        tasks = {name: oral_lib.load_task(name) for name in plan.tasks}
        generated = {
            name: generator.generate(task.description, plan.base, SAMPLES, 0)
            for name, task in tasks.items()
        }
        for name, task in tasks.items():
            [other] = set(tasks) - {name}
            adapters = {
                "base": [base.lora_init()],
                "trained": [m.tensors for m in zoo[plan.base] if m.task == name],
                "generated": generated[name],
                "other text": generated[other],
            }
            rows = oral_lib.task_rows(task, smoke.source).test[:ROWS]
            outcomes = {key: list(evaluate(base, task, rows, a)) for key, a in adapters.items()}
            cells.append(
                {
                    key: sum(100 * o.correct.float().mean().item() for o in of) / len(of)
                    for key, of in outcomes.items()
                }
            )
    return {key: sum(cell[key] for cell in cells) / len(cells) for key in cells[0]}


def test_a_generated_adapter_does_what_a_trained_one_does(accuracy):
    assert accuracy["trained"] > accuracy["base"] + 20  # there is something to reach
    assert abs(accuracy["generated"] - accuracy["trained"]) < 2


def test_the_text_of_another_task_loses_the_gain(accuracy):
    gain = accuracy["generated"] - accuracy["base"]
    assert accuracy["generated"] - accuracy["other text"] >= 0.8 * gain > 0
