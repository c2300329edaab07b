"""Pictures: read once, classified under LoRAs on convolutions, with heads that adapters bring."""

import io
from dataclasses import replace

import pytest
import torch
from made_adapters import equal, shaken
from PIL import Image
from torch import nn

from oral_lib import storage
from oral_lib.assets import sources
from oral_lib.errors import OralError, PreflightError, UsageError
from oral_lib.lora.peft_model import take
from oral_lib.models import loading, registry, vision
from oral_lib.tasks import images
from oral_lib.tasks.rows import task_rows
from oral_lib.tasks.task import load_task, task_names
from oral_lib.zoo import batches, training
from oral_lib.zoo.recipes import Recipe

torch.set_num_threads(1)
TINY = ("tiny-convnet", "tiny-vit")
NAMES = ("easy_vqa_shape", "solar_cells")
SHORT = Recipe(steps=6, batch=4, lr=1e-2)


@pytest.fixture(scope="module")
def data():
    return {name: task_rows(load_task(name), "made") for name in NAMES}


@pytest.fixture(params=TINY)
def base(request):
    """A tiny backbone in float32: bfloat16 would hide small faults in its rounding."""
    loaded = loading.load(request.param)
    loaded.model.float()
    return loaded


# ---------------------------------------------------------------- pictures
def png(colour, size=(5, 9)):
    file = io.BytesIO()
    Image.new("L" if isinstance(colour, int) else "RGB", size, colour).save(file, "png")
    return file.getvalue()


def test_pictures_of_any_size_and_mode_become_bytes_of_one_size():
    table = images.decode_images([png((255, 0, 10)), png(7, (64, 64))], 8, "bicubic")
    assert table.shape == (2, 3, 8, 8) and table.dtype == torch.uint8
    assert table[0].flatten(1).unique(dim=1).tolist() == [[255], [0], [10]]
    assert table[1].unique().tolist() == [7]


def test_a_cell_holds_bytes_or_the_hubs_dictionary():
    assert images.file_bytes(b"x") == images.file_bytes({"bytes": b"x", "path": None}) == b"x"


def test_a_file_that_is_not_an_image_is_refused(refused):
    with refused(PreflightError, "Image 1 of 2"):
        images.decode_images([png(3), b"no picture"], 8, "bicubic")
    huge = b"P6 30000 30000 255\n"  # which would fill 2.7 GB
    with refused(PreflightError, "Image 0 of 1", "DecompressionBombError"):
        images.decode_images([huge], 8, "bicubic")


def test_a_backbone_reads_pictures_as_timm_would(base, data):
    from timm.data import create_transform, resolve_data_config

    rows = data[NAMES[0]].test[:3]
    config = resolve_data_config(model=base.model)
    config |= {"input_size": (3, base.pixels, base.pixels), "crop_pct": 1.0}
    transform = create_transform(**config, is_training=False)
    wanted = [transform(Image.open(io.BytesIO(row.image)).convert("RGB")) for row in rows]
    seen = base.normalised(base.images(rows))
    torch.testing.assert_close(seen, torch.stack(wanted), atol=0.02, rtol=0)
    assert base.images(rows) is base.images(tuple(rows))  # decoded once


# ---------------------------------------------------------------- the backbone under LoRA
def test_adapters_hold_convolutions_or_linear_layers_and_the_head(base):
    start = base.lora_init()
    heads = [name for name in start if ".lora_" not in name]
    assert heads == [f"base_model.model.{base.head}.{part}" for part in ("weight", "bias")]
    assert start[heads[0]].shape == (base.spec.classes, base.model.num_features)
    kinds = {start[name].ndim for name in start if "lora_A" in name}
    assert kinds == ({4} if base.name == "tiny-convnet" else {2, 4})
    assert all((start[n] == 0).all() for n in start if "lora_B" in n)
    depthwise = [n for n, m in base.model.named_modules() if getattr(m, "groups", 1) > 1]
    assert bool(depthwise) == (base.name == "tiny-convnet")
    assert not [n for n in start if any(f".{name}." in n for name in depthwise)]


def test_the_shared_start_leaves_the_features_as_they_were(base, data):
    rows = data[NAMES[0]].test[:5]
    before = base.features(rows)
    with base.attach(base.lora_init()) as model:
        core = model.get_base_model()
        with torch.inference_mode():
            states = core.forward_features(base.normalised(base.images(rows)))
            after = core.forward_head(states, pre_logits=True)
    torch.testing.assert_close(before, after.float())


def test_what_was_attached_leaves_no_trace(base):
    before = {n: v.clone() for n, v in base.model.state_dict().items()}
    tensors = shaken(base, 0)
    with base.attach(tensors) as model:
        assert equal(take(model), tensors)
    assert equal(base.model.state_dict(), before)
    assert not any(type(m).__module__.startswith("peft") for m in base.model.modules())


def test_a_backbone_is_described_by_its_weights_and_structure_never_by_its_name(base):
    told, seen = base.describe(), base.fingerprint()
    assert base.name not in told and str(base.weights) in told and seen.shape == (64,)
    with torch.no_grad():
        next(iter(base.adapted().values())).mul_(2)
    assert base.describe() == told and not torch.equal(base.fingerprint(), seen)


def test_classes_that_a_task_does_not_have_stay_as_they_started(base, data):
    [done] = training.train(base, [training.AdapterJob(load_task(NAMES[0]), 0, SHORT)], data)
    name = f"base_model.model.{base.head}.weight"
    moved = (done.tensors[name] != base.lora_init()[name]).any(1)
    assert moved.tolist() == [True] * 3 + [False] * (base.spec.classes - 3)


def test_tasks_about_the_same_pictures_share_them_on_the_device(data):
    base, task = loading.load("tiny-vit"), load_task(NAMES[1])
    split = data[task.name]
    other = replace(task, name="other")
    turned = replace(split, train=tuple(replace(r, label=1 - r.label) for r in split.train))
    both = {task.name: split, "other": turned}
    found = batches.StackBatches.of(base, [(task, 0), (other, 0)], both, steps=3, batch=4)
    assert len(found.table.ids) == len(split.train)
    read, answers, words = found.step(2)
    assert torch.equal(read.ids[:4], read.ids[4:])
    assert torch.equal(answers[:4], 1 - answers[4:]) and words.shape == (8, 2)


def test_texts_and_pictures_are_not_mixed_up(refused):
    with refused(UsageError, "'solar_cells' is about images", "'tiny-encoder' reads texts"):
        loading.load("tiny-encoder").scoring_kind(load_task("solar_cells"))
    with refused(UsageError, "'movie' is about texts", "'tiny-vit' reads images"):
        loading.load("tiny-vit").scoring_kind(load_task("movie"))


def test_every_head_has_a_row_for_every_class():
    most = max(len(load_task(name).labels) for name in task_names("vision"))
    assert most == registry.CLASSES


# ---------------------------------------------------------------- weights from folders
def test_a_folder_in_timms_form_is_loaded_whatever_its_head(tmp_path, monkeypatch, refused):
    entry = registry.BaseSpec(
        "own", "vision", "efficientnet-lite0", "own", ("conv_pwl",), pixels=32, classes=3
    )
    monkeypatch.setitem(registry.REGISTRY, "own", entry)
    import timm

    torch.manual_seed(0)
    model = timm.create_model("test_efficientnet", num_classes=7)
    folder = tmp_path / "models" / "efficientnet-lite0"
    folder.mkdir(parents=True)
    storage.write_tensors(folder / "model.safetensors", model.state_dict())
    kept = ("mean", "std", "input_size", "interpolation", "classifier")
    about = {"pretrained_cfg": {k: model.pretrained_cfg[k] for k in kept} | {"num_classes": 7}}
    storage.write_json(folder / "config.json", about | {"architecture": "test_efficientnet"})
    base = loading.load("own", source=f"local:{tmp_path}", dtype=torch.float32)
    assert isinstance(base, vision.Backbone) and base.model.num_classes == 3
    assert torch.equal(base.model.conv_stem.weight, model.conv_stem.weight)
    storage.write_json(folder / "config.json", about | {"architecture": "test_resnet"})
    with refused(OralError, str(folder), "test_resnet"):
        loading.load("own", source=f"local:{tmp_path}")


@pytest.mark.parametrize("n", range(3))
def test_the_packages_weights_see_what_imagenet_taught(n):
    """A palace by the water, photographed for scikit-learn, with the head that came along."""
    import timm
    from sklearn.datasets import load_sample_image

    folder = sources.model_dir(f"efficientnet-lite{n}")
    config = storage.read_json(folder / "config.json")
    about = {"pretrained_cfg": config["pretrained_cfg"], **config["model_args"]}
    model = timm.create_model(config["architecture"], **about).eval()
    model.load_state_dict(storage.read_tensors(folder / "model.safetensors"))
    file = io.BytesIO()
    Image.fromarray(load_sample_image("china.jpg")).save(file, "png")
    picture = images.decode_images([file.getvalue()], 224, "bicubic") / 255
    with torch.inference_mode():
        seen = model((picture - 0.5) / 0.5).topk(4).indices[0].tolist()
    assert 698 in seen  # palace


def test_batch_statistics_keep_full_precision_beside_bfloat16():
    base = loading.load("tiny-convnet", dtype=torch.bfloat16)
    norms = [m for m in base.model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert norms and all(m.running_var.dtype == torch.float32 for m in norms)
    rows = task_rows(load_task(NAMES[0]), "made").test[:3]
    assert base.features(rows).isfinite().all()


def test_the_hub_is_not_asked_for_a_revision_that_nobody_knows(refused):
    assert "vit-tiny" not in registry.names("hub") and "vit-tiny" not in registry.names()
    with refused(PreflightError, "timm/vit_tiny", "DIR/models/vit-tiny"):
        loading.load("vit-tiny", source="hub")


# ---------------------------------------------------------------- the tasks
def test_a_local_folder_in_hub_column_names_is_read(tmp_path):
    import pandas as pd

    task = load_task("flowers")
    for part, shift in (("train", 0), ("test", 50)):
        rows = [{"image": {"bytes": png(i + shift), "path": "x.png"}, "label": i % 5}
                for i in range(40)]  # fmt: skip
        (tmp_path / "flowers5").mkdir(exist_ok=True)
        pd.DataFrame([*rows, rows[0]]).to_parquet(tmp_path / "flowers5" / f"{part}.parquet")
    split = task_rows(task, f"local:{tmp_path}")
    assert (len(split.test), len(split.validation)) == (40, 40)  # the repeated one goes
    assert split.source == "local" and all(row.label in range(5) for row in split.test)
    assert images.decode_images([split.test[0].image], 4, "bicubic").shape == (1, 3, 4, 4)


def test_every_task_of_real_pictures_has_one_that_stands_in_where_only_packages_are():
    local = [n for n in task_names("vision") if "local" in load_task(n).sources]
    assert len(local) == 4
    others = {load_task(name).substitute for name in local}
    assert others == set(task_names("vision")) - set(local)
    for name in local:
        sources = load_task(name).sources
        assert sources.get("hub", {}).get("label", "label")
        assert len(sources.get("hub", {"revision": 40 * "0"})["revision"]) == 40
