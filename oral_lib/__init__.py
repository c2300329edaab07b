"""ORAL: prompt a LoRA instead of training one.

    import oral_lib
    [lora] = oral_lib.prompt("Decide whether a review is positive.", base="smollm2-135m")
    lora.save("my-lora")
    print(oral_lib.ask("smollm2-135m", "my-lora", "Leaks treacle from every pore."))

Names below are loaded when first used, so that `import oral_lib` never imports torch.
"""

import warnings
from importlib import import_module

from oral_lib import torchvision_guard

__version__ = "0.1.0"

# public name -> (module, its name there)
_PUBLIC = {
    "BaseModel": ("models.base", "BaseModel"),
    "Generator": ("generator", "Generator"),
    "GeneratorConfig": ("method.config", "GeneratorConfig"),
    "OralError": ("errors", "OralError"),
    "PreflightError": ("errors", "PreflightError"),
    "PromptedLora": ("prompting.prompt", "PromptedLora"),
    "Run": ("workflow.run", "Run"),
    "Task": ("tasks.task", "Task"),
    "UsageError": ("errors", "UsageError"),
    "ask": ("prompting.answers", "ask"),
    "compare": ("evaluation.evaluate", "compare"),
    "load_base": ("models.loading", "load"),
    "load_task": ("tasks.task", "load_task"),
    "pretrained": ("prompting.released", "pretrained"),
    "prompt": ("prompting.prompt", "prompt"),
    "task_names": ("tasks.task", "task_names"),
    "task_rows": ("tasks.rows", "task_rows"),
}
__all__ = ["__version__", *_PUBLIC]

torchvision_guard.install()
# libraries look for notebook widgets when they are imported; plain lines serve here
warnings.filterwarnings("ignore", message="IProgress not found")


def __getattr__(name: str):
    if name not in _PUBLIC:
        raise AttributeError(f"module 'oral_lib' has no attribute {name!r}")
    module, attribute = _PUBLIC[name]
    return getattr(import_module(f"oral_lib.{module}"), attribute)


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC})
