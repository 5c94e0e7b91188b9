"""fastmask: Mask R-CNN at the speed the GPU allows, with torchvision's names, semantics and state dicts.

``import fastmask`` stays light: submodules are imported when first touched, and none of them needs Triton.
"""

import importlib
from typing import TYPE_CHECKING, Any

from fastmask._version import __version__

if TYPE_CHECKING:
    from fastmask import models as models, ops as ops
    from fastmask.compat.patch import patch_torchvision as patch_torchvision, unpatch_torchvision as unpatch_torchvision
    from fastmask.inference.predictor import Predictor as Predictor

__all__ = ["Predictor", "__version__", "models", "ops", "patch_torchvision", "unpatch_torchvision"]


def __getattr__(name: str) -> Any:
    if name in ("models", "ops"):
        return importlib.import_module(f"fastmask.{name}")
    if name in ("patch_torchvision", "unpatch_torchvision"):
        return getattr(importlib.import_module("fastmask.compat.patch"), name)
    if name == "Predictor":
        return importlib.import_module("fastmask.inference.predictor").Predictor
    raise AttributeError(f"module 'fastmask' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
