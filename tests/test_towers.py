"""Two towers: made of two released networks, aligned once, adapted together."""

import io
import subprocess
import sys
from dataclasses import replace
from threading import Event, Thread

import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from made_adapters import shaken
from PIL import Image

from oral_lib import storage
from oral_lib.assets.cache import MANIFEST, cache_lock, folder_fault
from oral_lib.errors import OralError, PreflightError, UsageError
from oral_lib.evaluation import evaluate
from oral_lib.experiments import benchmarks
from oral_lib.models import alignment, contrastive, loading, registry, two_tower
from oral_lib.models.contrastive import Gallery
from oral_lib.tasks.rows import Row, task_rows
from oral_lib.tasks.task import load_task, task_names
from oral_lib.zoo import batches, training
from oral_lib.zoo.recipes import default

torch.set_num_threads(1)
ASKED, MATCHED = ("nlvr", "easy_vqa"), ("flickr8k", "digit_labels")


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    """A cache of its own with the tiny towers, aligned."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ORAL_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield alignment.ensure("tiny-towers", "made")


@pytest.fixture(scope="module")
def data():
    return {name: task_rows(load_task(name), "made") for name in ASKED + MATCHED}


@pytest.fixture
def base():
    """The tiny towers in float32: bfloat16 would hide small faults in its rounding."""
    return loading.load("tiny-towers", source="made", dtype=torch.float32)


def png(colour, size=(6, 4)):
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, "png")
    return file.getvalue()


# ---------------------------------------------------------------- what belongs together
def test_captions_of_one_picture_are_no_negatives_of_each_other():
    v = F.normalize(torch.tensor([[1.0, 0.2], [1.0, 0.2], [0.0, 1.0]]), dim=-1)
    own = torch.tensor([4, 4, 9])
    found = contrastive.contrastive(v, v, own, 3.0)
    logits = 3 * v @ v.T
    likely = logits.log_softmax(-1)
    assert found[0].item() == pytest.approx(-(likely[0, 0] + likely[0, 1]).item() / 2)
    assert found[2].item() == pytest.approx(-likely[2, 2].item())
    assert (found < contrastive.contrastive(v, v, torch.arange(3), 3.0) + 1e-6).all()


def test_groups_of_a_stack_do_not_see_each_other():
    v, u = torch.randn(2, 3, 5), torch.randn(2, 3, 5)
    own = torch.arange(3).expand(2, 3)
    together = contrastive.contrastive(v, u, own, 2.0)
    alone = [contrastive.contrastive(v[s], u[s], own[s], 2.0) for s in range(2)]
    torch.testing.assert_close(together, torch.stack(alone))


def test_recall_is_counted_both_ways_and_a_tie_finds_nothing():
    rows = [Row(str(i), text, label, image=image) for i, (text, label, image) in enumerate(
        [("one", 0, b"a"), ("another", 0, b"a"), ("two", 1, b"b"), ("two", 1, b"c")]
    )]  # fmt: skip
    gallery = Gallery.of(rows)
    assert (gallery.texts, gallery.images) == ([0, 1, 2], [0, 2, 3])
    assert gallery.matches.tolist() == [[True, False, False]] * 2 + [[False, True, True]]
    closeness = torch.tensor([[3.0, 1.0, 2.0], [1.0, 2.0, 3.0], [0.0, 5.0, 1.0]])
    found = contrastive.retrieval_ranks(closeness, gallery.matches)
    assert found["text_to_image"].tolist() == [0, 2, 0]  # "two" is found by one of its pictures
    assert found["image_to_text"].tolist() == [0, 0, 2]
    said = contrastive.recalls(closeness, gallery.matches)
    assert said["text_to_image_recall@1"] == said["image_to_text_recall@1"] == pytest.approx(2 / 3)
    assert said["text_to_image_recall@5"] == 1
    blind = contrastive.retrieval_ranks(torch.zeros(3, 3), gallery.matches)
    assert blind["text_to_image"].tolist() == [2, 2, 1]


def test_a_text_that_two_pictures_share_is_right_for_both():
    told = [("a dog", 0, b"a"), ("a dog runs", 0, b"a"), ("a dog", 7, b"b")]
    rows = [Row(str(i), text, label, image=image) for i, (text, label, image) in enumerate(told)]
    assert Gallery.of(rows).matches.tolist() == [[True, True], [True, False]]


# ---------------------------------------------------------------- alignment
def test_alignment_brings_pictures_and_their_texts_together(cache):
    told = storage.read_json(cache / MANIFEST)
    before, after = told["recall_before"], told["recall_after"]
    assert all(
        after[name] > before[name] for name in ("text_to_image_recall@1", "image_to_text_recall@1")
    )
    assert after["image_to_text_recall@1"] > 0.5 > before["image_to_text_recall@1"]
    assert told["losses"][-1] < told["losses"][0]
    assert told["task"] == "easy_vqa_labels" and told["source"] == "made"
    assert told["files"][two_tower.WEIGHTS_FILE]["sha256"] == storage.sha256(
        cache / two_tower.WEIGHTS_FILE
    )


def test_alignment_moves_the_projections_alone(cache, base):
    spec = base.spec
    image, text = spec.alignment.image, spec.alignment.text
    parts = [loading.load(n, dtype=torch.float32, words=spec.family) for n in (image, text)]
    start = two_tower.from_released(cache, spec, *parts).model.clip.state_dict()
    now = base.model.clip.state_dict()
    moved = {n for n in now if not torch.equal(now[n], start[n])}
    assert moved == {"visual.head.proj.weight", "text.proj.weight", "logit_scale"}


def test_an_interrupted_alignment_gives_the_same_model(cache, monkeypatch, tmp_path):
    whole = storage.read_json(cache / MANIFEST)
    monkeypatch.setenv("ORAL_CACHE", str(tmp_path))
    monkeypatch.setattr(alignment, "SAVE_EVERY", 10)
    loss, calls = contrastive.contrastive, []

    def interrupted(*args):
        calls.append(1)
        if len(calls) == 26:
            raise KeyboardInterrupt
        return loss(*args)

    monkeypatch.setattr(contrastive, "contrastive", interrupted)
    with pytest.raises(KeyboardInterrupt):
        alignment.ensure("tiny-towers", "made")
    folder = loading.version_dir("tiny-towers", "made")
    assert not folder.exists() and folder_fault(folder)
    again = alignment.ensure("tiny-towers", "made")
    assert len(calls) == 26 + registry.spec("tiny-towers").alignment.steps - 20  # on from step 20
    found = storage.read_json(again / MANIFEST)
    assert found["losses"] == whole["losses"]
    assert found["files"][two_tower.WEIGHTS_FILE] == whole["files"][two_tower.WEIGHTS_FILE]
    assert [f.name for f in folder.parent.glob(".*state*")] == []


def test_nobody_clears_away_what_an_alignment_is_writing(monkeypatch, tmp_path):
    monkeypatch.setenv("ORAL_CACHE", str(tmp_path))
    align, entered = alignment.align, Event()

    def fill():  # as another process does: it clears what it takes for litter
        with cache_lock():
            entered.set()

    def meanwhile(*args, **kwargs):
        other.start()
        assert not entered.wait(0.5)
        return align(*args, **kwargs)

    other = Thread(target=fill)
    monkeypatch.setattr(alignment, "align", meanwhile)
    folder = alignment.ensure("tiny-towers", "made")
    other.join()
    assert entered.is_set()
    assert {two_tower.CONFIG_FILE, two_tower.WEIGHTS_FILE, "tokenizer.json"} <= {
        f.name for f in folder.iterdir()
    }


def test_what_is_aligned_is_found_again_and_never_made_by_loading(
    cache, monkeypatch, refused, tmp_path
):
    assert alignment.ensure("tiny-towers", "made") == cache
    with refused(UsageError, "no two towers", "tiny-towers"):
        alignment.ensure("minilm-l6")
    with refused(UsageError, "'hub'"):
        alignment.ensure("tiny-towers", "hub")
    monkeypatch.setenv("ORAL_CACHE", str(tmp_path))
    with refused(PreflightError, "python -m oral_lib align --base tiny-towers"):
        loading.load("tiny-towers", source="made")


def test_weights_of_another_model_are_refused(cache, refused, tmp_path):
    import shutil

    folder = tmp_path / "models" / "tiny-towers"
    shutil.copytree(cache, folder)
    source = f"local:{tmp_path}"
    assert loading.load("tiny-towers", source=source).spec.name == "tiny-towers"
    held = storage.read_tensors(folder / two_tower.WEIGHTS_FILE)
    held.pop("text.proj.weight")
    storage.write_tensors(folder / two_tower.WEIGHTS_FILE, held)
    with refused(OralError, "'text.proj.weight'"):
        loading.load("tiny-towers", source=source)


# ---------------------------------------------------------------- the towers are open_clip's
def test_open_clip_itself_loads_the_folder(cache, base, data, monkeypatch):
    import open_clip

    monkeypatch.chdir(cache)  # its text tower is the folder itself
    model, _, preprocess = open_clip.create_model_and_transforms("local-dir:.")
    tokenizer = open_clip.get_tokenizer("local-dir:.")
    rows = data["flickr8k"].test[:5]
    pictures = torch.stack([preprocess(Image.open(io.BytesIO(row.image))) for row in rows])
    torch.testing.assert_close(base.normalised(base.images(rows)), pictures, atol=0.02, rtol=0)
    ids = tokenizer([row.text for row in rows])
    own = base.tokens([row.text for row in rows])
    width = own["input_ids"].shape[1]
    assert torch.equal(ids[:, :width], own["input_ids"]) and not ids[:, width:].any()
    seen = base.normalised(base.images(rows))
    with torch.inference_mode():
        wanted = (
            model.eval().encode_image(seen, normalize=True),
            model.encode_text(ids, normalize=True),
        )
        mask = own["attention_mask"]
        found = (
            base.model.image_features(seen),
            base.model.text_features(own["input_ids"], mask, mask),
        )
    for one, other in zip(wanted, found, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)
    assert model.logit_scale.exp().item() == pytest.approx(base.scale)


def test_a_network_normalised_with_another_epsilon_gives_the_same_features(cache, base, data):
    import timm

    image, text = (
        loading.load(n, dtype=torch.float32, words="multimodal")
        for n in ("tiny-convnet", "tiny-encoder")
    )
    image.model = timm.create_model("test_efficientnet", num_classes=10, bn_eps=0.1).eval()
    image.model.load_state_dict(
        loading.load("tiny-convnet", dtype=torch.float32).model.state_dict()
    )
    rows = data["nlvr"].test[:4]
    made = two_tower.from_released(cache, base.spec, image, text)
    shown, mirrored = made.pooled_images(rows)
    torch.testing.assert_close(shown, image.features(rows), atol=1e-4, rtol=1e-4)
    assert not torch.allclose(shown, mirrored)


def test_a_picture_is_held_once_however_many_rows_show_it(base, data):
    row = data["nlvr"].train[0]
    rows = [row, data["nlvr"].train[1], replace(row, key="again", text="another text")]
    read = base.encode_rows(load_task("nlvr"), rows)
    assert len(read.images) == 2 and read.image_index.tolist() == [0, 1, 0]
    some = read[torch.tensor([2, 1])]
    assert torch.equal(some.images[0], read.images[0]) and some.image_index.tolist() == [0, 1]


# ---------------------------------------------------------------- under LoRA
def test_adapters_sit_on_both_towers_with_the_fusion_beside(base):
    start = base.lora_init()
    heads = {name.split(".")[2] for name in start if ".lora_" not in name}
    assert heads == set(two_tower.HEADS)
    for part in (
        "clip.visual.trunk.",
        "clip.visual.head.proj",
        "clip.text.transformer.",
        "clip.text.proj",
    ):
        assert any(part in name and ".lora_A." in name for name in start), part
    assert {start[name].ndim for name in start if "lora_A" in name} == {2, 4}
    assert "clip.visual.head.proj.weight" not in "".join(n for n in start if ".lora_" not in n)


@pytest.mark.parametrize("name", [ASKED[0], MATCHED[0]])
def test_training_teaches_the_task(base, data, name):
    task, recipe = load_task(name), default(base.name)  # of the model
    [done] = training.train(base, [training.AdapterJob(task, 0, recipe)], data)
    adapters = [base.lora_init(), done.tensors]
    untrained, trained = evaluate.evaluate(base, task, data[name].test[:100], adapters)
    assert evaluate.accuracy_of(trained) > evaluate.accuracy_of(untrained) + 0.15
    assert trained.likelihood > untrained.likelihood


def test_what_matches_is_judged_by_rank(base, data):
    task, rows = load_task(MATCHED[0]), data[MATCHED[0]].test[:40]
    [outcome] = evaluate.evaluate(base, task, rows, [shaken(base, 0)])
    gallery = Gallery.of(rows)
    assert outcome.likely.shape == (len(gallery.texts), len(gallery.images))
    assert len(outcome.predicted) == sum(outcome.likely.shape) == len(outcome.labels)
    assert torch.equal(outcome.correct, outcome.predicted == 0)
    found = contrastive.recalls(outcome.likely, gallery.matches)
    both = sum(
        found[f"{way}_recall@1"] * n
        for way, n in zip(outcome.ranks, outcome.likely.shape, strict=True)
    )
    assert evaluate.accuracy_of(outcome) == pytest.approx(both / len(outcome.correct), abs=1e-4)
    perfect = evaluate.Matched(torch.where(gallery.matches, 20.0, -20.0), rows)
    assert evaluate.accuracy_of(perfect) == 1 and perfect.likelihood == pytest.approx(0, abs=1e-4)


def test_batches_of_what_matches_are_not_sorted_by_length(data):
    rows = [Row(str(i), "x" * (i % 10 + 1), i) for i in range(640)]
    lengths = [len({len(rows[i].text) for i in chosen}) for chosen, _ in zip(
        batches.batches(rows, 32, 0, mixed=True), range(10), strict=False)]  # fmt: skip
    assert min(lengths) > 5


def test_towers_are_described_by_structure_never_by_name(base):
    told, seen = base.describe(), base.fingerprint()
    assert base.name not in told and " convolutions" in told and seen.shape == (64,)


def test_other_tasks_and_models_are_not_mixed_up(base, refused):
    with refused(UsageError, "'movie' is about texts", "reads images with texts"):
        base.scoring_kind(load_task("movie"))
    with refused(UsageError, "'nlvr' is about images with texts", "reads texts"):
        loading.load("tiny-encoder").scoring_kind(load_task("nlvr"))


def test_the_operations_of_a_text_are_those_of_its_tokens(base):
    more, less = (benchmarks._operations(base, width) for width in (32, 16))
    linears = [m for m in base.model.clip.text.modules() if isinstance(m, torch.nn.Linear)]
    inner = sum(m.weight.numel() for m in linears if m is not base.model.clip.text.proj)
    assert more - less > 16 * 4 * inner  # both passes over every linear layer, for each token


# ---------------------------------------------------------------- the tasks
def test_a_local_folder_of_photos_with_captions_is_read(tmp_path):
    (tmp_path / "flickr8k").mkdir()
    for part, shift in (("train", 0), ("test", 150)):
        rows = [
            {"image": {"bytes": png((i, shift, 0)), "path": None},
             "captions": [f"photo {i + shift} says {word}" for word in "abcde"]}
            for i in range(120)
        ]  # fmt: skip
        pd.DataFrame(rows).to_parquet(tmp_path / "flickr8k" / f"{part}.parquet")
    split = task_rows(load_task("flickr8k"), f"local:{tmp_path}")
    assert (len(split.test), len(split.validation), len(split.train)) == (600, 500, 100)
    pictures = [{row.image for row in part} for part in (split.train, split.validation, split.test)]
    assert not (pictures[0] & pictures[1] or pictures[0] & pictures[2] or pictures[1] & pictures[2])
    gallery = Gallery.of(split.test)
    assert gallery.matches.shape == (600, 120) and (gallery.matches.sum(0) == 5).all()


def test_no_part_shows_a_picture_of_another_and_validation_sentences_are_unread(tmp_path):
    (tmp_path / "nlvr").mkdir()
    for part, most in (("train", 2000), ("test", 40)):
        rows = [
            {"image": {"bytes": png((i % 256, i // 256, 0)), "path": None},
             "sentence": f"{part} sentence {i // 4}", "label": i % 2}
            for i in range(most)
        ]  # fmt: skip
        pd.DataFrame(rows).to_parquet(tmp_path / "nlvr" / f"{part}.parquet")
    split = task_rows(load_task("nlvr"), f"local:{tmp_path}")
    assert (len(split.test), len(split.validation)) == (40, 580)
    shown = {row.image for row in split.test}
    assert not shown & {row.image for row in split.train + split.validation}
    assert not {row.text for row in split.validation} & {row.text for row in split.train}


@pytest.mark.parametrize("name", task_names("multimodal"))
def test_every_task_has_made_rows_that_need_the_picture(name):
    task = load_task(name)
    split = task_rows(task, "made")
    assert len(split.train) == 600 and {row.kind for row in split.train} == {"made"}
    labels = {row.label for row in split.train}
    assert labels == set(range(2 if len(task.labels) == 2 else len(task.marker_words)))
    if len(task.labels) == 2:  # the word alone does not tell
        word = split.train[0].text.split()[-1]
        assert {r.label for r in split.train if r.text.split()[-1] == word} == {0, 1}


def test_there_are_classes_for_every_answer():
    most = max(len(load_task(name).labels) for name in task_names("multimodal"))
    assert registry.spec("towers").classes == most == 13


@pytest.mark.parametrize(("base", "needs"), [("tiny-causal", False), ("tiny-towers", True)])
def test_language_does_without_open_clip(base, needs):
    code = f"""
import sys
sys.modules["open_clip"] = None  # as if it were not installed
import oral_lib, oral_lib.report.build
from oral_lib.experiments import cells
oral_lib.Run("smoke").check("movie", "tiny-causal")
print(len(oral_lib.load_base({base!r}, source="made").lora_init()), "tensors")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ("tensors" in done.stdout) != needs
    assert ("No module named 'open_clip" in done.stderr) == needs
