"""What a LoRA adapter is: tensors, distances between adapters, PEFT folders, stacks of adapters.

    from oral_lib import lora
    tensors, config = lora.load("my-lora")

Names below are loaded when first used: `save` and `load` import peft, the others do not.
"""

from importlib import import_module

# public name -> (module, its name there)
_PUBLIC = {
    "Adapter": ("adapter", "Adapter"),
    "Stack": ("stacked", "Stack"),
    "attached": ("stacked", "attached"),
    "distance": ("distances", "distance"),
    "load": ("peft_folder", "load"),
    "nearest": ("distances", "nearest"),
    "novelty": ("distances", "novelty"),
    "save": ("peft_folder", "save"),
}
__all__ = [*_PUBLIC]


def __getattr__(name: str):
    if name not in _PUBLIC:
        raise AttributeError(f"module 'oral_lib.lora' has no attribute {name!r}")
    module, attribute = _PUBLIC[name]
    return getattr(import_module(f"oral_lib.lora.{module}"), attribute)


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC})
