"""Styles: LoRA on the UNet of a latent diffusion model, from the zoo to painted pictures."""

import ast
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from made_adapters import shaken

import oral_lib
from oral_lib import scales
from oral_lib.errors import OralError, PreflightError, UsageError
from oral_lib.evaluation import evaluate, schema, scoring
from oral_lib.experiments import generators
from oral_lib.lora.peft_folder import Card, save
from oral_lib.method.tokenization import Layout, decode, encode
from oral_lib.models import latent_diffusion, loading
from oral_lib.tasks import images
from oral_lib.tasks.rows import task_rows
from oral_lib.tasks.task import load_task
from oral_lib.workflow import plan
from oral_lib.zoo import recipes, training

torch.set_num_threads(1)
BASE, NAMES = "tiny-diffusion", ("pokemon", "baroque")


@pytest.fixture(scope="module")
def base():
    pytest.importorskip("diffusers", reason="the extra `diffusion` is not installed")
    return loading.load(BASE, dtype=torch.float32)


@pytest.fixture(scope="module")
def data():
    return {name: task_rows(load_task(name), "made") for name in NAMES}


def pipeline(folder):
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


# ---------------------------------------------------------------- the extra
def test_without_diffusers_the_way_to_it_is_told_and_smoke_runs_leave_styles_out(
    monkeypatch, refused
):
    monkeypatch.setattr(latent_diffusion, "find_spec", lambda name: None)
    with refused(PreflightError, "diffusers==", "pip install"):
        loading.load(BASE)
    monkeypatch.setattr(scales, "find_spec", lambda name: None)
    assert "style" not in scales.experiments("smoke")
    assert "style" in scales.experiments("paper", "local:data")


def test_no_module_imports_diffusers_before_it_is_asked_for():
    for file in Path(oral_lib.__file__).parent.rglob("*.py"):
        first = [node for node in ast.parse(file.read_text("utf-8")).body]
        imports = [n for n in first if isinstance(n, ast.Import | ast.ImportFrom)]
        assert not any("diffusers" in ast.unparse(node).split() for node in imports), file.name


def test_the_paper_scale_plans_its_vision_row_where_a_folder_has_the_styles():
    [cells] = scales.base_plans("paper", "local:data", "style")
    assert cells.base == "sd-2.1" and len(cells.tasks) == 3
    assert not scales.base_plans("paper", "hub", "style")
    names = [node.name for node in plan.nodes("paper", "local:data") if "style/" in node.name]
    wanted = ["style/assets", "style/zoo/sd-2.1", "style/generator"]
    assert names[:3] == wanted and names[-1] == "style/report"
    assert "style/cells/sd-2.1" in names


def test_a_folder_has_the_pictures_of_a_style_in_a_column_called_image(tmp_path, refused):
    rng = np.random.default_rng(0)
    cells = [{"bytes": images.styled_square(rng, 0.3), "path": None} for _ in range(12)]
    frame = pd.DataFrame({"image": cells, "text": "a caption that nobody reads"})
    file = tmp_path / "pokemon" / "train.parquet"  # such sets have one part, which is cut in three
    file.parent.mkdir()
    frame.to_parquet(file)
    sizes = {"seed": 0, "local": {"train": 7, "validation": 2, "test": 3}}
    task, source = replace(load_task("pokemon"), split=sizes), f"local:{tmp_path}"
    split = task_rows(task, source)
    assert [len(part) for part in (split.train, split.validation, split.test)] == [7, 2, 3]
    rows = [*split.train, *split.validation, *split.test]
    assert len({row.image for row in rows}) == 12 and {row.text for row in rows} == {""}
    frame.rename(columns={"image": "photo"}).to_parquet(file)
    with refused(PreflightError, "'pokemon'", "no column 'image'", "photo"):
        task_rows(task, source)


# ---------------------------------------------------------------- the model under LoRA
def test_noise_and_target_are_those_of_the_scheduler(base, data):
    z = base.latents(data[NAMES[0]].test[:3])
    draws = torch.tensor([5, 999, base.draws - 1])
    t, eps = draws % 1000, base.eps[draws // 1000]
    clean = z.view(-1, *base.shape)
    noisy = base.scheduler.add_noise(clean, eps, t)
    with torch.no_grad():
        told = base.prompt.expand(3, -1, -1)
        said = base.model(noisy, t, encoder_hidden_states=told).sample
        targets = {"epsilon": eps, "sample": clean}
        targets["v_prediction"] = base.scheduler.get_velocity(clean, eps, t)
        assert base.target == "v_prediction"
        for target, y in targets.items():
            base.target = target
            wanted = (said - y).square().mean((1, 2, 3))
            torch.testing.assert_close(base.denoising_loss(base.model, z, draws), wanted)
    base.target = "v_prediction"


def test_adapters_hold_the_attention_projections_and_nothing_else(base):
    start, adapted = base.lora_init(), base.adapted()
    assert {name.rsplit(".lora_", 1)[0].removeprefix("base_model.model.") for name in start} == set(
        adapted
    )
    ends = {".".join(name.split(".")[-2:]) for name in adapted}
    wanted = {
        f"{layer}.{part}" for layer in ("attn1", "attn2") for part in ("to_q", "to_k", "to_v")
    }
    assert ends == wanted | {"to_out.0"}
    assert all((start[name] == 0).all() for name in start if "lora_B" in name)
    told = base.describe()
    assert BASE not in told and str(base.weights) in told and base.fingerprint().shape == (64,)


def test_training_lowers_the_error_of_its_own_style_and_not_of_another(base, data):
    recipe = replace(recipes.default(BASE), steps=40)
    [done] = training.train(base, [training.AdapterJob(load_task(NAMES[0]), 0, recipe)], data)
    adapters = [base.lora_init(), done.tensors]
    gain = {}
    for name in NAMES:
        task, rows = load_task(name), data[name].validation
        before, after = (
            outcome.likelihood for outcome in evaluate.evaluate(base, task, rows, adapters)
        )
        gain[name] = after - before
    assert gain[NAMES[0]] > 0.05 > gain[NAMES[1]]


def test_an_adapter_is_judged_and_paints_alone_as_in_a_stack(base, data):
    task, rows = load_task(NAMES[1]), data[NAMES[1]].test[:10]
    made = [shaken(base, seed) for seed in range(2)]
    together = list(evaluate.evaluate(base, task, rows, made, groups=2))
    from oral_lib.experiments.styles import STYLE_SETTINGS, generate_images

    canvas = replace(STYLE_SETTINGS["smoke"], steps=3, guidance=2.0)
    pictures = generate_images(base, made, 4, canvas, "paint")
    for adapter, outcome, shown in zip(made, together, pictures, strict=True):
        with base.attach(adapter) as model:
            [alone] = scoring.score(model, base, task, rows)
            [own] = base.sample_images(model.get_base_model(), 4, steps=3, guidance=2.0)
        torch.testing.assert_close(alone, outcome.likely, atol=1e-5, rtol=1e-4)
        assert (own.int() - shown.int()).abs().max() <= 1
    assert outcome.likely.shape == (10, 1) and evaluate.accuracy_of(outcome) is None
    assert (pictures[0].int() - pictures[1].int()).abs().max() > 5


# ---------------------------------------------------------------- what others make of it
def test_a_decoded_adapter_paints_the_same_in_diffusers_own_pipeline(base, tmp_path):
    from peft import PeftModel

    from oral_lib import seeds
    from oral_lib.models import latent_diffusion

    tensors = shaken(base, 1)
    layout = Layout.of(tensors, 128)
    [again] = decode(layout, encode(layout, [tensors]))
    card = Card("paint", base.name, "none", 0, loader=f'oral_lib.load_base("{BASE}").model')
    where = save(tmp_path / "lora", again, base.peft_config(), card)
    with base.attach(again) as model:
        [wanted] = base.sample_images(model.get_base_model(), 2, steps=4, guidance=3.0)
    noise = torch.randn(2, *base.shape, generator=seeds.generator(0, "paint"))
    folder = latent_diffusion.ensure(base.spec)

    def generate_images(pipe):
        found = pipe(
            [latent_diffusion.PROMPT] * 2, negative_prompt=[""] * 2, latents=noise,
            num_inference_steps=4, guidance_scale=3.0, output_type="pt",
        ).images  # fmt: skip
        return (found * 255).round().int()

    plain = pipeline(folder)
    bare = generate_images(plain)
    plain.unet = PeftModel.from_pretrained(plain.unet, str(where)).eval().merge_and_unload()
    assert (generate_images(plain) - wanted.int()).abs().max() <= 1
    assert (bare - wanted.int()).abs().max() > 5
    loaded = pipeline(folder)
    named = {n.removeprefix("base_model.model."): v for n, v in again.items()}
    about = {"r": base.spec.rank, "lora_alpha": base.spec.alpha}
    about["target_modules"] = list(base.spec.targets)
    loaded.save_lora_weights(tmp_path / "own", named, unet_lora_adapter_metadata=about)
    loaded.load_lora_weights(tmp_path / "own")
    assert (generate_images(loaded) - wanted.int()).abs().max() <= 1


def test_a_folder_without_a_whole_pipeline_is_refused(base, tmp_path, refused):
    from oral_lib.models import latent_diffusion

    folder = tmp_path / "models" / "sd-2.1"
    folder.mkdir(parents=True)
    (folder / "model_index.json").write_text("{}")
    source = f"local:{tmp_path}"
    with refused(OralError, "does not hold a complete"):
        loading.load("sd-2.1", source=source)
    own = latent_diffusion.ensure(base.spec)
    for part in own.iterdir():
        if part.name != "model_index.json":
            (folder / part.name).symlink_to(part)
    assert loading.load("sd-2.1", source=source).pixels == 16
    (folder / "unet").unlink()
    (folder / "unet").mkdir()
    (folder / "unet" / "config.json").write_text((own / "unet" / "config.json").read_text())
    (folder / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"a pickle")
    with refused(OralError, "does not hold a complete"):
        loading.load("sd-2.1", source=source)


def test_styles_and_other_tasks_are_not_mixed_up(base, refused):
    with refused(UsageError, "'movie' is about texts", "reads images of a style"):
        base.scoring_kind(load_task("movie"))
    with refused(UsageError, "'pokemon' is about images of a style", "reads images"):
        loading.load("tiny-vit").scoring_kind(load_task("pokemon"))


def test_a_prediction_that_is_not_known_is_refused(base, refused):
    from diffusers import DDIMScheduler

    odd = DDIMScheduler.from_config(base.scheduler.config, prediction_type="flow")
    with refused(OralError, "'flow'", "v_prediction"):
        latent_diffusion.LatentDiffusion(
            base.spec, base.model, base.vae, odd, base.prompt, base.no_prompt
        )


def test_a_run_goes_from_zoo_to_report(base, tmp_path, monkeypatch):
    full = generators.preset

    def short(scale, job):
        preset = full(scale, job)
        return replace(preset, training=replace(preset.training, steps=10))

    monkeypatch.setattr(generators, "preset", short)
    from oral_lib.experiments import styles

    few = replace(styles.STYLE_SETTINGS["smoke"], max_images=12, steps=2)
    monkeypatch.setitem(styles.STYLE_SETTINGS, "smoke", few)
    monkeypatch.setitem(recipes.RECIPES, BASE, replace(recipes.default(BASE), steps=10))
    run = oral_lib.Run("smoke", out=tmp_path, experiment="style").ready()
    run.publish()
    page = (run.results / "style-made.md").read_text("utf-8")
    metrics, items = run.published()
    schema.check_metrics(metrics)
    assert not len(items) and set(metrics.task) == set(NAMES)
    apart = metrics[metrics.metric == "frechet_tiny-convnet"]
    methods = {"base", "trained", "soup_task", "soup_all", "retrieval", "regression", "generated"}
    assert methods <= set(apart.method)
    assert (apart.n_items == 12).all() and not apart.higher_is_better.any()
    floor = metrics[metrics.metric == "frechet_floor"]
    assert floor.value.max() < apart.value.min()
    assert "frechet_tiny-convnet" in page
