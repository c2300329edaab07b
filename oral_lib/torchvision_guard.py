"""Lets torchvision be imported beside a torch without CUDA.

A torchvision wheel built against CUDA cannot load its C++ library there, and then fails at import
with `operator torchvision::nms does not exist`; transformers, timm and open_clip fail with it.
Declaring the two operators that torchvision refers to is enough. Calling them still fails, as it
must.
"""

import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType

_kept = []  # a torch.library.Library takes its operators along when it is collected


class _Guard(MetaPathFinder):
    """Finds torchvision as ever, and has it declare its operators before its first line runs."""

    def find_spec(self, fullname, path=None, target=None) -> ModuleSpec | None:
        spec = PathFinder.find_spec(fullname, path) if fullname == "torchvision" else None
        if spec is not None and spec.loader is not None:
            run = spec.loader.exec_module

            def declare_then_run(module: ModuleType) -> None:
                declare_operators(Path(spec.origin).parent)
                run(module)

            spec.loader.exec_module = declare_then_run
        return spec


def install() -> None:
    """Puts the guard in place, once. It costs nothing until something imports torchvision."""
    if "torchvision" not in sys.modules and not any(isinstance(f, _Guard) for f in sys.meta_path):
        sys.meta_path.insert(0, _Guard())


def declare_operators(folder: Path) -> None:
    """Declares `nms` and `qnms` if the C++ library in torchvision's `folder` cannot do it."""
    import torch

    # where the library loads it declares them itself, and twice is fatal
    if torch.version.cuda is not None or any(_loads(torch, path) for path in folder.glob("_C*")):
        return
    library = torch.library.Library("torchvision", "FRAGMENT")
    for operator in ("nms", "qnms"):
        library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _kept.append(library)


def _loads(torch: ModuleType, path: Path) -> bool:
    try:
        torch.ops.load_library(str(path))
    except (ImportError, OSError):
        return False
    return True
