"""The router's adapter for a sentence: a stored one of the picked task."""

import torch

from oral_lib.errors import PreflightError, UsageError
from oral_lib.prompting import prompt, routed
from oral_lib.tasks.task import load_task

BASE = "tiny-encoder"


def test_the_router_returns_a_stored_adapter_of_the_task_it_picks(smoke):
    zoo = {f"{m.task}, seed {m.seed}": m.tensors for m in smoke.members(BASE)}
    for task in ("movie", "sarcasm"):
        text = load_task(task).training_texts[0]
        lora = routed.route(text, base=BASE, scale="smoke", out=smoke.out)
        member = zoo[lora.card.nearest]
        assert all(torch.equal(lora.tensors[name], tensor) for name, tensor in member.items())
        assert lora.task.name == lora.card.nearest.partition(",")[0] and lora.card.text == text


def test_the_zoo_is_read_from_its_files_or_decoded_from_the_generator(smoke, tmp_path):
    generator = smoke.generator()
    stored = dict(prompt.stored_zoo(smoke.root / "generator", generator, BASE))
    decoded = dict(prompt.stored_zoo(tmp_path, generator, BASE))  # there is no zoo
    assert list(stored) == list(decoded) and len(stored) == len(smoke.members(BASE))
    for name, tensors in stored.items():
        change = sum((tensors[n] - decoded[name][n]).norm() ** 2 for n in tensors) ** 0.5
        assert change < 0.05 * sum(t.norm() ** 2 for t in tensors.values()) ** 0.5


def test_an_empty_sentence_and_a_missing_generator_are_refused(smoke, tmp_path, refused):
    with refused(UsageError):
        routed.route(" ", base=BASE, scale="smoke", out=smoke.out)
    with refused(PreflightError, "no run of scale smoke"):
        routed.route("Is it good news?", base=BASE, scale="smoke", out=tmp_path)
