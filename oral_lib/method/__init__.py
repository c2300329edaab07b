"""The method: tensors and strings in, tensors out; no registry, task files, cache or network.

    from oral_lib import lora, method

    adapters = [lora.load(folder)[0] for folder in folders]        # PEFT folders
    config = method.GeneratorConfig(k=256, components=16)
    layout = method.Layout.of(start, config.k)            # start: their shared initialisation
    data = method.TrainingSet.of(layout, start, adapters, tasks, text_embeddings, config)
    entry = data.base(description, method.fingerprint(weights))
    model = method.ORAL(config, {"mine": entry})
    model, losses = method.train(model, {"mine": data})

Names below are loaded when first used.
"""

from importlib import import_module

_PUBLIC = {  # name -> module
    "Condition": "conditioning",
    "Denoiser": "denoiser",
    "DenoiserConfig": "denoiser",
    "Diffusion": "diffusion",
    "DiffusionConfig": "diffusion",
    "Examples": "conditioning",
    "GeneratorConfig": "config",
    "Layout": "tokenization",
    "ORAL": "model",
    "Recurrence": "recurrence",
    "RecurrenceConfig": "recurrence",
    "SamplingConfig": "config",
    "TokenStatistics": "normalization",
    "TrainingConfig": "training.tokens",
    "ThroughBaseConfig": "training.through_base",
    "TrainingSet": "training.training_set",
    "ZooProjection": "projection",
    "decode": "tokenization",
    "encode": "tokenization",
    "fingerprint": "conditioning",
    "train": "training.tokens",
    "train_through_base": "training.through_base",
}
__all__ = list(_PUBLIC)


def __getattr__(name: str):
    if name not in _PUBLIC:
        raise AttributeError(f"module 'oral_lib.method' has no attribute {name!r}")
    return getattr(import_module(f"oral_lib.method.{_PUBLIC[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC})
