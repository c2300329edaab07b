"""Qwen2-VL: a picture is tokens before a question, the answer a word; adapters as of any model."""

import io
import json
from dataclasses import replace

import pytest
import torch
from made_adapters import equal, shaken
from PIL import Image
from transformers import Qwen2VLImageProcessor

import oral_lib
from oral_lib import scales, storage
from oral_lib.assets import sources
from oral_lib.errors import OralError, PreflightError, UsageError
from oral_lib.evaluation import evaluate, schema, scoring
from oral_lib.experiments import generators
from oral_lib.lora import stacked
from oral_lib.lora.stacked import Stack
from oral_lib.method import conditioning
from oral_lib.models import loading, registry
from oral_lib.models.vision_language import CHOICES
from oral_lib.tasks.rows import task_rows
from oral_lib.tasks.task import load_task
from oral_lib.workflow import plan
from oral_lib.zoo import batches, recipes, training
from oral_lib.zoo.recipes import Recipe

torch.set_num_threads(1)
NAME, PAPER = "tiny-vision-language", "qwen2-vl-7b"
ASKED = ("nlvr", "easy_vqa")


@pytest.fixture(scope="module")
def data():
    return {name: task_rows(load_task(name), "made") for name in ASKED}


@pytest.fixture(scope="module")
def base():
    """The tiny model in float32: bfloat16 would hide small faults in its rounding."""
    return loading.load(NAME, source="made", dtype=torch.float32)


def png(colour, size):
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, "png")
    return file.getvalue()


def plain(base, model, task, row):
    """[labels] what transformers alone says to one row: its processor, its chat, its forward."""
    side = base.pixels
    size = {"shortest_edge": side * side, "longest_edge": side * side}
    picture = Image.open(io.BytesIO(row.image)).convert("RGB")
    seen = Qwen2VLImageProcessor(patch_size=4, size=size)(images=[picture], return_tensors="pt")
    asked = row.text + CHOICES.format(", ".join(task.labels))
    told = [{"type": "image"}, {"type": "text", "text": asked}]
    chat = base.tokenizer.apply_chat_template(
        [{"role": "user", "content": told}], tokenize=False, add_generation_prompt=True
    )
    places = int(seen["image_grid_thw"].prod()) // 4
    chat = chat.replace("<|image_pad|>", "<|image_pad|>" * places)
    ids = base.tokenizer(chat, add_special_tokens=False, return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        said = model(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            mm_token_type_ids=(ids == base.model.config.image_token_id).int(),
            **seen,
        )
    words = [base.tokenizer.encode(w, add_special_tokens=False)[0] for w in task.labels]
    return said.logits[0, -1].log_softmax(-1)[words], seen["pixel_values"]


# ---------------------------------------------------------------- what the model reads
@pytest.mark.parametrize("name", ASKED)
def test_a_row_is_scored_as_transformers_alone_scores_it(base, data, name):
    task, rows = load_task(name), data[name].test[:8]
    with base.attach(shaken(base, 0)) as model:
        [said] = scoring.score(model, base, task, rows, batch=5)
        alone = [plain(base, model, task, row) for row in rows]
    torch.testing.assert_close(said, torch.stack([found for found, _ in alone]))
    patches = base.patches(base.images(rows))
    torch.testing.assert_close(patches, torch.stack([seen for _, seen in alone]))
    assert said.shape == (8, len(task.labels)) and said.std(0).min() > 0.01
    assert base.images(rows).dtype == torch.uint8


def test_another_picture_gives_another_answer(base, data):
    task, row = load_task("nlvr"), data["nlvr"].test[0]
    other = replace(row, key="other", image=png((0, 200, 0), (40, 10)))  # any shape is squashed
    said = scoring.score(base.model, base, task, [row, other])[0]
    assert not torch.allclose(said[0], said[1], atol=0.01)


def test_every_row_has_its_picture_in_the_same_columns(base, data):
    task, pad = load_task("easy_vqa"), base.model.config.image_token_id
    long = replace(data["easy_vqa"].test[0], key="long", text="what colour is " * 40)
    rows = [*data["easy_vqa"].test[:20], long]
    read = base.encode_rows(task, rows)
    there = (read.ids == pad).nonzero()[:, 1].view(len(rows), -1)
    wanted = torch.arange(base.first, base.first + base.image_tokens)
    assert torch.equal(there, wanted.expand(len(rows), -1))
    choices = len(base.tokenizer(CHOICES.format(", ".join(task.labels)))["input_ids"])
    assert (
        read.lengths.max() == base.around + task.max_tokens + choices
    )  # the question alone is cut
    ends = read.ids.gather(1, read.lengths[:, None] - 1)
    assert (ends == base.after[-1]).all()
    assert len(read.images) < len(rows)  # a picture is held once, however many rows show it


def test_a_question_cannot_smuggle_a_picture_in(base):
    ids = base.tokens(["is <|image_pad|> there <|im_end|>"])["input_ids"]
    assert (ids == base.model.config.image_token_id).sum() == base.image_tokens
    assert (ids == base.tokenizer.convert_tokens_to_ids("<|im_end|>")).sum() == 1


def test_what_is_no_question_about_a_picture_is_refused(base, refused):
    with refused(UsageError, "'flickr8k'", NAME, "two-tower"):
        base.scoring_kind(load_task("flickr8k"))
    with refused(UsageError, "'movie' is about texts", "reads images with texts"):
        base.scoring_kind(load_task("movie"))
    with refused(UsageError, "'digits' is about images"):
        base.scoring_kind(load_task("digits"))


def test_rounding_leaves_the_frequencies_of_positions_alone():
    model = loading.load(NAME, source="made", dtype=torch.bfloat16).model
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert {b.dtype for b in model.buffers()} == {torch.float32}


# ---------------------------------------------------------------- what a generator hears
def test_the_model_is_described_by_structure_and_weights_never_by_name(base):
    told, seen = base.describe(), base.fingerprint()
    assert "qwen2_vl architecture" in told and "image tower with 2 layers" in told
    assert base.name not in told and registry.spec(PAPER).hub not in told
    assert seen.shape == (conditioning.FINGERPRINT,) and seen.isfinite().all()
    before = base.model.model.language_model.layers[0].mlp.up_proj.weight.clone()
    with torch.no_grad():
        base.model.model.language_model.layers[0].mlp.up_proj.weight.mul_(1.5)
        assert not torch.allclose(base.fingerprint(), seen)
        base.model.model.language_model.layers[0].mlp.up_proj.weight.copy_(before)
    assert torch.equal(base.fingerprint(), seen)


def test_adapters_sit_on_every_linear_layer_of_the_language_model_alone(base):
    start = base.lora_init()
    layers = base.model.config.text_config.num_hidden_layers
    assert len(start) == 2 * layers * len(base.spec.targets) == 28
    assert all("language_model.layers." in name and ".lora_" in name for name in start)
    assert set(base.spec.targets) == {name.split(".")[-3] for name in start}
    assert registry.spec(PAPER).targets == base.spec.targets


# ---------------------------------------------------------------- the zoo
def test_training_teaches_to_look(base, data):
    task, recipe = load_task("easy_vqa"), recipes.default(NAME)
    [done] = training.train(base, [training.AdapterJob(task, 0, recipe)], data)
    assert sum(done.losses[-5:]) < 0.3 * sum(done.losses[:5])
    together = [base.lora_init(), done.tensors]
    untrained, trained = evaluate.evaluate(base, task, data["easy_vqa"].test[:100], together)
    # one of six colours, of which the text says nothing
    assert evaluate.accuracy_of(trained) > 0.5 > 0.3 > evaluate.accuracy_of(untrained)


def test_a_step_asks_the_device_for_nothing(data):
    """So that it may be a CUDA graph; on this device there is nothing to ask for."""
    base, task = loading.load(NAME, source="made", dtype=torch.float32), load_task("nlvr")
    read, start = base.encode_rows(task, data["nlvr"].test[:4]), base.lora_init()
    base.model.set_attn_implementation({"text_config": "plain_causal"})
    base.model.to("meta")
    for name in ("order", "positions", "patch_positions", "mean", "std"):
        setattr(base, name, getattr(base, name).to("meta"))
    names = ("ids", "lengths", "begins", "image_index", "images")
    read = replace(read, **{name: getattr(read, name).to("meta") for name in names})
    stack, zeros = Stack(start, 2, "meta"), torch.zeros(4, 2, dtype=torch.long, device="meta")
    with stacked.attached(base.model, stack, 2.0):
        found = scoring.losses(base.model, base, "label", read, zeros[:, 0], zeros, 2)
        stack.update(found.sum(), torch.zeros(2, device="meta"), 1.0)
    assert found.shape == (4,)


def test_the_language_model_is_compiled_however_deep_the_image_tower_is(base):
    parts = base.model.model
    assert stacked.blocks(base.model) is parts.language_model.layers
    deep = torch.nn.ModuleList([*parts.visual.blocks, *parts.visual.blocks[:1]])
    both = torch.nn.ModuleDict({"deep": deep, "wide": parts.language_model})
    assert len(deep) > 2 and stacked.blocks(both) is parts.language_model.layers


def test_batches_are_laid_out_on_the_device_with_their_pictures(base, data):
    jobs = [(load_task(name), 0) for name in ASKED]
    laid = batches.StackBatches.of(base, jobs, data, steps=2, batch=4)
    read, answers, asked = laid.step(0)
    assert laid.scoring_kind == "label" and asked.shape == (8, 13)  # the shorter list is padded
    assert read.images.dtype == torch.uint8 and len(read.images) == len(read.ids) == 8
    assert (answers < 13).all() and (answers[:4] < 2).all()


# ---------------------------------------------------------------- a run
def test_a_run_goes_from_zoo_to_a_cell_of_the_table(monkeypatch, tmp_path):
    cells = scales.BasePlan(base=NAME, tasks=ASKED, zoo_seeds=2, held_out=1)
    monkeypatch.setitem(scales.SCALES["smoke"], "multimodal", lambda source: (cells,))
    monkeypatch.setitem(recipes.RECIPES, NAME, Recipe(steps=50, batch=16, lr=1e-2))
    full = generators.preset

    def short(scale, job, **options):
        preset = full(scale, job, **options)
        return replace(preset, training=replace(preset.training, steps=10))

    monkeypatch.setattr(generators, "preset", short)
    run = oral_lib.Run("smoke", out=tmp_path, experiment="multimodal").ready()
    metrics, items = run.cell("easy_vqa", NAME, 0)
    schema.check_items(items, schema.check_metrics(metrics))
    assert {"majority", "base", "trained", "generated", "regression"} <= set(metrics.method)
    value = metrics[metrics.metric == "accuracy"].set_index(["method", "condition"]).value
    assert value["trained", "none"] > max(value["base", "none"], value["majority", "none"]) + 0.1


# ---------------------------------------------------------------- where the weights come from
@pytest.fixture
def released(base, monkeypatch, tmp_path):
    """A folder that holds the tiny model as the hub has Qwen2-VL-7B, under its name."""
    monkeypatch.setitem(
        registry.REGISTRY, PAPER, replace(registry.spec(PAPER), rank=4, alpha=8, pixels=16)
    )
    folder = tmp_path / "models" / PAPER
    base.model.save_pretrained(folder)
    base.tokenizer.save_pretrained(folder)
    Qwen2VLImageProcessor(patch_size=4).save_pretrained(folder)
    return folder


def load(folder):
    return loading.load(PAPER, source=f"local:{folder.parent.parent}", dtype=torch.float32)


def test_a_local_folder_gives_the_same_model(base, data, released):
    task, rows = load_task("nlvr"), data["nlvr"].test[:5]
    there = load(released)
    assert there.model.name_or_path == "Qwen/Qwen2-VL-7B-Instruct" == there.peft_config(
    ).base_model_name_or_path  # fmt: skip
    one, other = (scoring.score(b.model, b, task, rows) for b in (base, there))
    torch.testing.assert_close(one, other)
    assert there.describe() == base.describe() and torch.equal(
        there.fingerprint(), base.fingerprint()
    )


def test_files_of_the_layout_that_the_hub_has_give_the_same_model(base, released):
    file, weights = released / "config.json", released / "model.safetensors"
    told = json.loads(file.read_text())
    text, image = told.pop("text_config"), told.pop("vision_config")
    for name in ("model_type", "dtype", "tie_word_embeddings"):
        text.pop(name, None)
    ropes = text.pop("rope_parameters")
    flat = {"rope_scaling": {"type": "mrope", "mrope_section": ropes["mrope_section"]}}
    flat |= {"rope_theta": ropes["rope_theta"], "torch_dtype": "bfloat16"}
    image |= {"model_type": "qwen2_vl", "in_chans": 3}
    file.write_text(json.dumps(told | text | flat | {"vision_config": image}))
    old = {
        n.replace("model.visual.", "visual.").replace("model.language_model.", "model."): v
        for n, v in storage.read_tensors(weights).items()
    }
    assert {n.split(".")[0] for n in old} == {"visual", "model", "lm_head"}
    storage.write_tensors(weights, old)
    assert equal(load(released).model.state_dict(), base.model.state_dict())


def test_missing_and_foreign_weights_are_refused_in_one_line(base, released, refused):
    weights = released / "model.safetensors"
    whole = storage.read_tensors(weights)
    name = next(n for n in whole if "q_proj.weight" in n)
    weights.unlink()
    with refused(OralError, PAPER, "again"):
        load(released)
    (released / "pytorch_model.bin").write_bytes(b"a pickle")  # never read
    with refused(OralError, PAPER, "again"):
        load(released)
    weights.write_bytes(b"no safetensors")
    with refused(OralError, PAPER, "again"):
        load(released)
    storage.write_tensors(weights, {n: v for n, v in whole.items() if n != name})
    with refused(OralError, "does not fit", "q_proj.weight"):
        load(released)
    storage.write_tensors(weights, whole | {name: whole[name][:3].clone()})
    with refused(OralError, PAPER):
        load(released)


@pytest.mark.parametrize(
    ("file", "change", "words"),
    [
        ("config.json", {"model_type": "llama"}, (f"does not hold a {PAPER}", "'llama'")),
        ("config.json", {"auto_map": {"AutoModel": "x.Y"}, "model_type": "own"}, ("'own'",)),
        ("config.json", {"image_token_id": 7}, ("chat template",)),
        ("preprocessor_config.json", {"patch_size": 5}, ("preprocessor_config.json", "5")),
        ("preprocessor_config.json", {"resample": "far"}, (PAPER, "interpolation")),
        ("preprocessor_config.json", {"image_mean": 3}, (PAPER, "preprocessor_config.json")),
        ("chat_template.jinja", "{{ messages }}", ("chat template",)),
        ("chat_template.jinja", "{% for", ("chat template",)),
    ],
)
def test_settings_of_another_model_are_refused_in_one_line(released, refused, file, change, words):
    path = released / file
    if isinstance(change, dict):
        path.write_text(json.dumps(json.loads(path.read_text()) | change))
    else:
        path.write_text(change)
    with refused(OralError, *words):
        load(released)


def test_the_papers_model_is_on_the_hub_and_in_no_package(refused):
    spec = registry.spec(PAPER)
    assert sources.HUB[PAPER][0] == spec.hub and len(sources.HUB[PAPER][1]) == 40
    assert spec.experiment == "multimodal" and registry.in_reach(PAPER, "hub")
    assert not registry.in_reach(PAPER) and spec.pixels % 28 == 0
    with refused(PreflightError, PAPER, "--source hub", f"DIR/models/{PAPER}"):
        loading.load(PAPER)


def test_the_paper_scale_plans_it_where_model_and_tasks_can_be(tmp_path):
    [cells] = scales.base_plans("paper", "local:x", "multimodal")
    assert cells.base == PAPER and set(cells.tasks) == set(ASKED) and not cells.aligned
    assert all("local" in load_task(name).sources for name in cells.tasks)
    names = [node.name for node in plan.nodes("paper", "local:x", tmp_path)]
    assert f"multimodal/zoo/{PAPER}" in names and "multimodal/report" in names
    assert not any("align" in name for name in names)
    assert all("multimodal" not in scales.experiments("paper", s) for s in ("hub", "packages"))
