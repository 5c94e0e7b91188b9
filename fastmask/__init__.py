"""fastmask: Mask R-CNN at the speed the GPU allows, with torchvision's names, semantics and state dicts.

``import fastmask`` stays light: submodules are imported when first touched, and none of them needs Triton.
"""

import importlib
import importlib.util
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastmask import models as models
    from fastmask import ops as ops
    from fastmask.patch import patch_torchvision as patch_torchvision
    from fastmask.patch import unpatch_torchvision as unpatch_torchvision
    from fastmask.predictor import Predictor as Predictor

if importlib.util.find_spec("fastmask.kernels") is None:  # the repository's root, after a plain `pip install .`
    raise ImportError(
        f"{__path__[0]} is the source folder, which lacks kernels: work elsewhere, or install with `pip install -e .`"
    )

__version__ = "0.1.0"
__all__ = ["Predictor", "__version__", "models", "ops", "patch_torchvision", "unpatch_torchvision"]


def __getattr__(name: str) -> Any:
    if name in ("models", "ops"):
        return importlib.import_module(f"fastmask.{name}")
    if name in ("patch_torchvision", "unpatch_torchvision"):
        return getattr(importlib.import_module("fastmask.patch"), name)
    if name == "Predictor":
        return importlib.import_module("fastmask.predictor").Predictor
    raise AttributeError(f"module 'fastmask' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
