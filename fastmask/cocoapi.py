"""pycocotools, imported on first use, so that everything else runs without it."""

import importlib
from typing import Any


class LazyModule:
    """Imports a module when one of its attributes is read; ImportError names the attribute and the package."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> Any:  # called for attributes not set yet
        if attribute.startswith("__"):  # looked up by pickle, inspect and others
            raise AttributeError(attribute)
        try:
            value = getattr(importlib.import_module(self._name), attribute)
        except ModuleNotFoundError as error:
            raise ImportError(f"{self._name}.{attribute} needs pycocotools: pip install pycocotools") from error
        setattr(self, attribute, value)
        return value


mask: Any = LazyModule("pycocotools.mask")
cocoeval: Any = LazyModule("pycocotools.cocoeval")
