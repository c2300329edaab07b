"""The small library trains on anyone's adapters: no registry, task files, cache, network or
heavy package."""

import subprocess
import sys
import textwrap

import pytest
import torch

from oral_lib import method
from oral_lib.errors import UsageError

torch.set_num_threads(1)
BLOCKED = (
    "transformers", "timm", "open_clip", "datasets", "diffusers", "pandas", "matplotlib", "peft",
    "huggingface_hub", "yaml", "sklearn", "torchvision",
)  # fmt: skip


def adapters(seed=0):
    """(start, adapters of two tasks with three seeds each, their tasks): rank 4, two layers."""
    stream = torch.Generator().manual_seed(seed)
    start = {}
    for layer in range(2):
        for name in ("q_proj", "v_proj"):
            prefix = f"base_model.model.model.layers.{layer}.self_attn.{name}"
            start[f"{prefix}.lora_A.weight"] = 0.1 * torch.randn(4, 24, generator=stream)
            start[f"{prefix}.lora_B.weight"] = torch.zeros(16, 4)
    tasks = [task for task in ("cheerful", "formal") for _ in range(3)]
    change = {
        task: {n: 0.3 * torch.randn(t.shape, generator=stream) for n, t in start.items()}
        for task in dict.fromkeys(tasks)
    }
    made = [
        {n: t + change[task][n] + 0.02 * torch.randn(t.shape, generator=stream)
         for n, t in start.items()}
        for task in tasks
    ]  # fmt: skip
    return start, made, tasks


def trained(steps=150, **changes):
    """(network, losses, training set, texts) of a small network."""
    start, made, tasks = adapters()
    stream = torch.Generator().manual_seed(1)
    unit = torch.nn.functional.normalize
    texts = {t: unit(torch.randn(5, 32, generator=stream), dim=-1) for t in dict.fromkeys(tasks)}
    config = method.GeneratorConfig(
        k=64,
        components=8,
        recurrence=method.RecurrenceConfig(width=32, state=8, head=16, chunk=16),
        denoiser=method.DenoiserConfig(hidden=64, depth=2, skip=False),
        **changes,
    )
    layout = method.Layout.of(start, config.k)
    data = method.TrainingSet.of(layout, start, made, tasks, texts, config)
    weights = {"layers.0.q": torch.randn(16, 24, generator=stream)}
    description = unit(torch.randn(32, generator=stream), dim=-1)
    entry = data.base(description, method.fingerprint(weights))
    torch.manual_seed(0)
    model = method.ORAL(config, {"mine": entry})
    training = method.TrainingConfig(steps=steps, lr=3e-3, warmup=10, ema=0.9, text_noise=0.5)
    return *method.train(model, {"mine": data}, training), data, texts


def sampled(model, data, text, n=3, sampling=None):
    """n adapters for a text embedding [e]."""
    entry, sampling = model.bases["mine"], sampling or method.SamplingConfig(steps=5)
    stream = torch.Generator().manual_seed(2)
    c = model.conditions("mine", text[None], torch.tensor([True])).expand(n, -1)
    noise = torch.stack([model.noise("mine", sampling, stream) for _ in range(n)])
    tokens = model.sample("mine", c, noise, sampling)
    return method.decode(data.layout, entry.statistics.denormalise(tokens))


def distance(one, other):
    return sum((one[n] - other[n]).square().sum() for n in one).sqrt()


def test_every_public_name_is_there():
    assert len(method.__all__) == 22
    for name in method.__all__:
        assert getattr(method, name).__doc__
    with pytest.raises(AttributeError, match="'Trainer'"):
        _ = method.Trainer


@pytest.mark.parametrize("changes", [{}, {"diffusion": None}], ids=["diffusion", "regression"])
def test_made_adapters_are_learnt_and_come_out_finite_and_in_their_layout(changes):
    model, losses, data, texts = trained(**changes)
    assert sum(losses[-20:]) < 0.5 * sum(losses[:20])
    start, made, tasks = adapters()
    means = {
        task: {n: torch.stack([a[n] for a, t in zip(made, tasks, strict=True) if t == task]).mean(0)
               for n in start}
        for task in texts
    }  # fmt: skip
    for task, other in (("cheerful", "formal"), ("formal", "cheerful")):
        for adapter in sampled(model, data, texts[task][0]):
            assert {n: t.shape for n, t in adapter.items()} == {
                n: t.shape for n, t in start.items()
            }
            assert all(t.isfinite().all() and t.dtype == torch.float32 for t in adapter.values())
            assert distance(adapter, means[task]) < 0.3 * distance(adapter, means[other])


def test_it_runs_where_no_heavy_package_can_be_imported(tmp_path):
    code = f"""
        import sys
        from importlib.machinery import PathFinder

        find = PathFinder.find_spec
        PathFinder.find_spec = staticmethod(
            lambda name, *rest: None if name.partition(".")[0] in {BLOCKED!r} else find(name, *rest)
        )
        sys.path.insert(0, {str(__file__).rpartition("/")[0]!r})
        import types
        sys.modules["pytest"] = types.SimpleNamespace(
            mark=types.SimpleNamespace(parametrize=lambda *a, **k: lambda f: f)
        )
        import test_small_library as small
        model, losses, data, texts = small.trained(steps=5)
        [adapter] = small.sampled(model, data, texts["formal"][0], n=1)
        assert all(t.isfinite().all() for t in adapter.values())
        assert not set(sys.modules) & set({BLOCKED!r})
        print(len(losses), "steps")
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0 and done.stdout == "5 steps\n", done.stderr


def test_sets_that_do_not_fit_are_refused(refused):
    start, made, tasks = adapters()
    layout, config = method.Layout.of(start, 64), method.GeneratorConfig(k=64, components=8)
    texts = {task: torch.randn(2, 32) for task in tasks}
    with refused(UsageError, "6 adapters and 5 tasks"):
        method.TrainingSet.of(layout, start, made, tasks[:5], texts, config)
    with refused(UsageError, "0 adapters"):
        method.TrainingSet.of(layout, start, [], [], texts, config)
    with refused(UsageError, "'formal'", "text embeddings"):
        method.TrainingSet.of(layout, start, made, tasks, {"cheerful": texts["cheerful"]}, config)
    model, _, data, _ = trained(steps=1)
    with refused(UsageError, "yours", "mine"):
        method.train(model, {"yours": data}, method.TrainingConfig(steps=1))
