"""What holds of every family of base models, in float32 and as a GPU has them: in bfloat16."""

from dataclasses import replace

import pytest
import torch
from peft import PeftModel

from oral_lib import (
    adapters,
    alignment,
    bases,
    benchmarks,
    evaluate,
    frechet,
    plan,
    probe,
    scoring,
    splits,
    storage,
    tasks,
    unseen,
    zoo,
)
from oral_lib.condition import text_encoder
from oral_lib.recipes import Recipe

torch.set_num_threads(1)
HALF = torch.bfloat16
PICTURES = ("easy_vqa_shape", "solar_cells")
FAMILIES = (
    ("tiny-encoder", ("movie", "sarcasm")),
    ("tiny-causal", ("movie", "sarcasm")),
    ("tiny-causal", ("quartz", "winogrande")),
    ("tiny-causal", ("arithmetic", "gsm8k")),
    ("tiny-convnet", PICTURES),
    ("tiny-vit", PICTURES),
    ("tiny-towers", ("nlvr", "easy_vqa")),
    ("tiny-towers", ("flickr8k", "digit_labels")),
    ("tiny-vision-language", ("nlvr", "easy_vqa")),
    ("tiny-diffusion", ("pokemon", "baroque")),
)
SHORT = Recipe(steps=6, batch=4, lr=1e-2)


def families(*names):
    """Parametrises by (base, tasks): all families, or those of `names`."""
    chosen = [(base, asked) for base, asked in FAMILIES if not names or base in names]
    ids = [f"{base}-{asked[0]}" for base, asked in chosen]
    return pytest.mark.parametrize(("name", "asked"), chosen, ids=ids)


def loaded(name, dtype=torch.float32):
    """In float32 rounding hides no small faults."""
    if name == "tiny-diffusion":
        pytest.importorskip("diffusers", reason="the extra `diffusion` is not installed")
    if bases.spec(name).alignment:
        alignment.ensure(name, "made")
    return bases.load(name, source="made", dtype=dtype)


def rows_of(*names):
    return {name: tasks.rows(tasks.load(name), "made") for name in names}


def shaken(base, seed, by=0.1):
    draw = torch.Generator().manual_seed(seed)
    start = sorted(base.lora_init().items())
    return {n: t + by * torch.randn(t.shape, generator=draw) for n, t in start}


@pytest.fixture
def halved(monkeypatch):
    """Every base is loaded in bfloat16, as on a GPU."""
    monkeypatch.setattr(bases, "fast_dtype", lambda device: HALF)


# ---------------------------------------------------------------- in bfloat16
@families()
def test_every_base_is_benched_in_bfloat16(name, asked):
    base, task = loaded(name, HALF), tasks.load(asked[0])
    rows = benchmarks.zoo_rows(base, task, tasks.rows(task, "made"), sizes=(2,), width=8)
    assert {row["variant"] for row in rows} == {"plain", "2 at once"}
    assert all(row["value"] > 0 and row["case"].startswith(name) for row in rows)


@families()
def test_in_bfloat16_a_stack_learns_what_peft_does_but_for_rounding(name, asked):
    base, data = loaded(name, HALF), rows_of(asked[0])
    run = zoo.Run(tasks.load(asked[0]), 0, SHORT)
    [done] = zoo.train(base, [run], data)
    alone, losses = benchmarks.train_plain(base, run, data)
    torch.testing.assert_close(
        torch.tensor(done.losses), torch.tensor(losses), rtol=0.05, atol=0.02
    )
    assert {t.dtype for t in (*done.tensors.values(), *alone.values())} == {torch.float32}


@families()
def test_in_bfloat16_the_base_answers_bare_under_peft_and_in_a_stack(name, asked, tmp_path):
    base, task = loaded(name, HALF), tasks.load(asked[0])
    rows, tensors = tasks.rows(task, "made").test[:12], shaken(base, 1)
    [bare] = scoring.score(base.model, base, task, rows)
    assert bare.isfinite().all()
    [outcome] = evaluate.evaluate(base, task, rows, [tensors])
    card = adapters.Card("see", base.name, "none", 0)
    where = adapters.save(tmp_path / "lora", tensors, base.peft_config(), card)
    with base.attach(tensors) as model:
        [attached] = scoring.score(model, base, task, rows)
    model = PeftModel.from_pretrained(base.model, str(where)).eval()
    [said] = scoring.score(model, base, task, rows)
    for found in (attached, said):
        torch.testing.assert_close(found, outcome.likely, rtol=0.05, atol=0.1)


@families("tiny-convnet", "tiny-vit")
def test_in_bfloat16_a_probe_is_fitted(name, asked):
    base, data = loaded(name, HALF), tasks.rows(tasks.load(asked[0]), "made")
    data = replace(data, train=data.train[:100], validation=data.validation[:50])
    made = probe.adapter(base, tasks.load(asked[0]), data)
    assert {t.dtype for t in made.values()} == {torch.float32}


def test_in_bfloat16_one_lora_for_all_tasks_is_trained_and_judged(halved, tmp_path):
    name, task = "tiny-convnet-yes-no", tasks.load(splits.held_out("cifar10")[0])
    names = plan.base_of("smoke", name, "made").tasks
    folder = unseen.train_multitask(name, names, scale="smoke", source="made", root=tmp_path)
    losses = storage.read_json(folder / "manifest.json")["losses"]
    assert sum(losses[-10:]) < sum(losses[:10])
    base, text = bases.load(name), text_encoder("tiny").encode([task.description])[0]
    made = unseen.multitask_adapter(tmp_path, base, text)
    [outcome] = evaluate.evaluate(base, task, tasks.rows(task, "made").test[:20], [made])
    assert outcome.likely.dtype == torch.float32 and outcome.likely.isfinite().all()


def test_pictures_are_compared_in_float32_whatever_is_fast(halved):
    network = frechet.network("tiny-convnet", "made")
    assert {p.dtype for p in network.model.parameters()} == {torch.float32}
    assert network(torch.zeros(2, 3, 8, 8, dtype=torch.uint8)).dtype == torch.float32
