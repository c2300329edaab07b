"""Makes torchvision importable with a torch without CUDA.

A torchvision wheel built against CUDA cannot load its C++ library with such a torch. Its import
fails with `operator torchvision::nms does not exist`, and with it transformers, timm and open_clip.
Declaring the two operators that torchvision refers to is enough; calling them still fails.
"""

import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType

_libraries = []  # a torch.library.Library removes its operators when it is garbage-collected


class _Guard(MetaPathFinder):
    """Finds torchvision as usual and declares its operators before its module is executed."""

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
    """Installs the guard once. It has no effect until torchvision is imported."""
    if "torchvision" not in sys.modules and not any(isinstance(f, _Guard) for f in sys.meta_path):
        sys.meta_path.insert(0, _Guard())


def declare_operators(folder: Path) -> None:
    """Declares `nms` and `qnms` if the C++ library in torchvision's `folder` does not load."""
    import torch

    # a library that loads declares them itself, and declaring them twice is an error
    if torch.version.cuda is not None or any(_loads(torch, path) for path in folder.glob("_C*")):
        return
    library = torch.library.Library("torchvision", "FRAGMENT")
    for operator in ("nms", "qnms"):
        library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _libraries.append(library)


def _loads(torch: ModuleType, path: Path) -> bool:
    try:
        torch.ops.load_library(str(path))
    except (ImportError, OSError):
        return False
    return True
