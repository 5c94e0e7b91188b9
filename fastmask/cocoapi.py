"""pycocotools, imported when it is first used: whatever does without it runs where it is not installed."""

import importlib
from typing import Any


class LazyModule:
    """A module's attributes; ImportError says what is missing, and from where it was asked for."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> Any:  # only what is not here yet
        if attribute.startswith("__"):  # what pickle, inspect and the like look for
            raise AttributeError(attribute)
        try:
            value = getattr(importlib.import_module(self._name), attribute)
        except ModuleNotFoundError as error:
            raise ImportError(f"{self._name}.{attribute} needs pycocotools: pip install pycocotools") from error
        setattr(self, attribute, value)
        return value


mask: Any = LazyModule("pycocotools.mask")
cocoeval: Any = LazyModule("pycocotools.cocoeval")
