"""What holds of every family of base models, in float32 and as a GPU has them: in bfloat16."""

from dataclasses import replace
from itertools import count

import pytest
import torch
from made_adapters import SMALL, equal, shaken
from peft import PeftModel

from oral_lib import scales, storage
from oral_lib.baselines import linear_probe, multitask
from oral_lib.evaluation import evaluate, fid, scoring
from oral_lib.experiments import benchmarks, unseen
from oral_lib.experiments.generators import assemble
from oral_lib.lora import peft_folder
from oral_lib.lora.adapter import check_adapter
from oral_lib.method.tokenization import Layout, decode, encode
from oral_lib.models import alignment, loading, registry
from oral_lib.models.text_encoder import TextEncoder
from oral_lib.tasks import binary
from oral_lib.tasks.rows import task_rows
from oral_lib.tasks.task import load_task
from oral_lib.zoo import store, training
from oral_lib.zoo.recipes import Recipe

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
SHOWN = ("tiny-convnet", "tiny-vit", "tiny-towers", "tiny-vision-language")


def families(*names):
    """Parametrises by (base, tasks): all families, or those of `names`."""
    chosen = [(base, asked) for base, asked in FAMILIES if not names or base in names]
    ids = [f"{base}-{asked[0]}" for base, asked in chosen]
    return pytest.mark.parametrize(("name", "asked"), chosen, ids=ids)


def loaded(name, dtype=torch.float32):
    """In float32 rounding hides no small faults."""
    if name == "tiny-diffusion":
        pytest.importorskip("diffusers", reason="the extra `diffusion` is not installed")
    if registry.spec(name).alignment:
        alignment.ensure(name, "made")
    return loading.load(name, source="made", dtype=dtype)


def rows_of(*names):
    return {name: task_rows(load_task(name), "made") for name in names}


@pytest.fixture
def halved(monkeypatch):
    """Every base is loaded in bfloat16, as on a GPU."""
    monkeypatch.setattr(loading, "fast_dtype", lambda device: HALF)


def test_every_family_is_here():
    assert {registry.spec(name).family for name, _ in FAMILIES} == {
        entry.family for entry in registry.REGISTRY.values()
    }


# ---------------------------------------------------------------- the zoo
@families(*SHOWN, "tiny-diffusion")
def test_a_stack_trains_what_peft_trains_one_by_one(name, asked):
    base, data = loaded(name), rows_of(*asked)
    jobs = [(asked[0], 0, 1e-2), (asked[1], 1, 3e-3), (asked[0], 2, 1e-2)]
    runs = [training.AdapterJob(load_task(n), seed, replace(SHORT, lr=lr)) for n, seed, lr in jobs]
    before = {n: v.clone() for n, v in base.model.state_dict().items()}
    made = list(training.train(base, runs, data))
    assert {(d.job.task.name, d.job.seed) for d in made} == {(n, s) for n, s, _ in jobs}
    assert equal(base.model.state_dict(), before)
    assert not any(m.training for m in base.model.modules())
    start, matched = base.lora_init(), load_task(asked[0]).scoring == "match"
    for done in made:
        alone, losses = benchmarks.train_plain(base, done.job, data)
        torch.testing.assert_close(
            torch.tensor(done.losses), torch.tensor(losses), rtol=1e-4, atol=1e-5
        )
        for part, tensor in done.tensors.items():
            moved = (alone[part] - start[part]).norm()
            still = matched and ".lora_" not in part  # matching asks nothing of the fusion
            assert (moved == 0) == still, part
            assert (tensor - alone[part]).norm() <= 5e-3 * moved, part


@families(*SHOWN)
def test_an_adapter_is_judged_alone_whoever_came_before(name, asked):
    base, task = loaded(name), load_task(asked[1])
    rows = task_rows(task, "made").test[:30]
    made = [shaken(base, seed) for seed in range(3)]
    together = list(evaluate.evaluate(base, task, rows, made, groups=2))
    for adapter, outcome in zip(made, together, strict=True):
        with base.attach(adapter) as model:
            [alone] = scoring.score(model, base, task, rows, batch=7)
        torch.testing.assert_close(alone, outcome.likely, atol=1e-4, rtol=1e-4)
        if base.scoring_kind(task) in ("image", "question"):  # its classes alone compete
            assert outcome.likely.shape == (30, len(task.labels))
            torch.testing.assert_close(outcome.likely.exp().sum(-1), torch.ones(30))
    assert not torch.allclose(together[0].likely, together[1].likely, atol=0.01)


@families(*SHOWN)
def test_a_zoo_keeps_adapters_that_peft_loads_alone(name, asked, tmp_path, halved):
    recipe = replace(SHORT, steps=4)
    how = {"source": "made", "root": tmp_path, "recipe": recipe}
    base, task = loaded(name, HALF), load_task(asked[0])
    folders = store.train_seeds(name, asked[:1], (0, 1), **how)
    told = storage.read_json(folders[0] / "run.json")
    assert told["base"] == name and told["validation_accuracy"] is not None
    member, rows = store.read(tmp_path, name, task.name, 1), task_rows(task, "made").test[:9]
    [outcome] = evaluate.evaluate(base, task, rows, [member.tensors])
    model = PeftModel.from_pretrained(base.model, str(folders[1])).eval()
    [said] = scoring.score(model, base, task, rows)
    torch.testing.assert_close(said, outcome.likely, atol=0.05, rtol=0.05)


# ---------------------------------------------------------------- what others make of it
@families(*SHOWN)
def test_what_is_decoded_or_generated_loads_in_peft_alone(name, asked, tmp_path):
    base, task = loaded(name), load_task(asked[0])
    rows = task_rows(task, "made").test[:20]
    own = [shaken(base, seed) for seed in range(2)]
    layout = Layout.of(own[0], 128)
    decoded = decode(layout, encode(layout, own))
    assert all(map(equal, decoded, own))  # bit for bit
    pairs = zip(asked, own, strict=True)
    members = [store.Member(name, of, 0, one, {"sha256": of}) for of, one in pairs]
    model, _ = assemble(SMALL, members, source="made")
    [generated] = model.generate(task.description, name, 1, 0)
    check_adapter(generated, base.lora_init())
    config = model.bases[name].peft_config
    assert config["task_type"] == base.peft_config().task_type
    assert config["base_model_name_or_path"] == base.spec.hub
    loader = f'oral_lib.load_base("{name}").model'
    for place, tensors in enumerate((decoded[0], generated)):
        card = peft_folder.Card(task.description, name, "none", 0, loader=loader)
        where = peft_folder.save(tmp_path / str(place), tensors, config, card)
        [outcome] = evaluate.evaluate(base, task, rows, [tensors])
        fresh = loaded(name)
        said = PeftModel.from_pretrained(fresh.model, str(where)).eval()
        [alone] = scoring.score(said, fresh, task, rows)
        torch.testing.assert_close(alone, outcome.likely, atol=1e-4, rtol=1e-4)


# ---------------------------------------------------------------- in bfloat16
@families()
def test_every_base_is_benched_in_bfloat16(name, asked, monkeypatch):
    ticks = count(99, -1)  # a clock would tell what else the machine does

    def once(call, *_):
        call()
        return next(ticks)

    monkeypatch.setattr(benchmarks, "seconds", once)
    base, task = loaded(name, HALF), load_task(asked[0])
    rows = benchmarks.zoo_rows(base, task, task_rows(task, "made"), sizes=(1, 2), width=8)
    assert {row["variant"] for row in rows} == {"plain", "1 at once", "2 at once"}
    assert {row["metric"] for row in rows} == {"speed over plain", "share of limit"}
    assert all(row["value"] > 0 and row["case"].startswith(name) for row in rows)


@families()
def test_in_bfloat16_a_stack_learns_what_peft_does_but_for_rounding(name, asked):
    base, data = loaded(name, HALF), rows_of(asked[0])
    run = training.AdapterJob(load_task(asked[0]), 0, SHORT)
    [done] = training.train(base, [run], data)
    alone, losses = benchmarks.train_plain(base, run, data)
    torch.testing.assert_close(
        torch.tensor(done.losses), torch.tensor(losses), rtol=0.05, atol=0.02
    )
    assert {t.dtype for t in (*done.tensors.values(), *alone.values())} == {torch.float32}


@families()
def test_in_bfloat16_the_base_answers_bare_under_peft_and_in_a_stack(name, asked, tmp_path):
    base, task = loaded(name, HALF), load_task(asked[0])
    rows, tensors = task_rows(task, "made").test[:12], shaken(base, 1)
    [bare] = scoring.score(base.model, base, task, rows)
    assert bare.isfinite().all()
    [outcome] = evaluate.evaluate(base, task, rows, [tensors])
    card = peft_folder.Card("see", base.name, "none", 0)
    where = peft_folder.save(tmp_path / "lora", tensors, base.peft_config(), card)
    with base.attach(tensors) as model:
        [attached] = scoring.score(model, base, task, rows)
    model = PeftModel.from_pretrained(base.model, str(where)).eval()
    [said] = scoring.score(model, base, task, rows)
    for found in (attached, said):
        torch.testing.assert_close(found, outcome.likely, rtol=0.05, atol=0.1)


@families("tiny-convnet", "tiny-vit")
def test_in_bfloat16_a_probe_is_fitted(name, asked):
    base, data = loaded(name, HALF), task_rows(load_task(asked[0]), "made")
    data = replace(data, train=data.train[:100], validation=data.validation[:50])
    made = linear_probe.linear_probe(base, load_task(asked[0]), data)
    assert {t.dtype for t in made.values()} == {torch.float32}


def test_in_bfloat16_one_lora_for_all_tasks_is_trained_and_judged(halved, tmp_path):
    name, task = "tiny-convnet-yes-no", load_task(binary.held_out_tasks("cifar10", "pairs")[0])
    names = scales.base_plan("smoke", name, "made").tasks
    folder = unseen.train_multitask(name, names, scale="smoke", source="made", root=tmp_path)
    losses = storage.read_json(folder / "manifest.json")["losses"]
    assert sum(losses[-10:]) < sum(losses[:10])
    base, text = loading.load(name), TextEncoder("tiny").encode([task.description])[0]
    made = multitask.multitask_adapter(tmp_path, base, text)
    [outcome] = evaluate.evaluate(base, task, task_rows(task, "made").test[:20], [made])
    assert outcome.likely.dtype == torch.float32 and outcome.likely.isfinite().all()


def test_pictures_are_compared_in_float32_whatever_is_fast(halved):
    network = fid.network("tiny-convnet", "made")
    assert {p.dtype for p in network.model.parameters()} == {torch.float32}
    assert network(torch.zeros(2, 3, 8, 8, dtype=torch.uint8)).dtype == torch.float32
