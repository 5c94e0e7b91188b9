"""Downloadable weights, and models by name; torchvision.models._api's names."""

import fnmatch
import importlib
import inspect
import pickle
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn
from torch.hub import get_dir, load_state_dict_from_url

from fastmask.checks import ArgumentError
from fastmask.models._legacy import Builder, accept_legacy


@dataclass
class Weights:
    """URL, preprocessing and metadata of published weights."""

    url: str  # ends in -<sha256 prefix>.pth
    transforms: Callable[[], nn.Module]
    meta: dict[str, Any]


class WeightsEnum(Enum):
    """Base of the weights of one model; each value is a :class:`Weights`."""

    value: Weights

    @classmethod
    def verify(cls, obj: Any) -> Any:
        """None, a member, or a member's name -> None or the member; anything else is a TypeError or KeyError."""
        if obj is None or isinstance(obj, cls):
            return obj
        if isinstance(obj, str):
            return cls[obj.removeprefix(cls.__name__ + ".")]
        raise TypeError(f"weights must be {cls.__name__}, its member's name or None, got {type(obj).__name__}")

    def get_state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Load from torch.hub's cache, or download into it; the file's sha256 is checked when it is downloaded.

        Args:
            args, kwargs: those of :func:`torch.hub.load_state_dict_from_url` after its ``url``; ``check_hash`` and
                ``weights_only`` are True unless they are given.

        Raises:
            ConnectionError: not in the cache and not reachable; the message says which file to put where.
            ArgumentError: the file in the cache is broken, or the download's hash is wrong.
        """
        given = inspect.signature(load_state_dict_from_url).bind(self.url, *args, **kwargs).arguments
        options: dict[str, Any] = {"check_hash": True, "weights_only": True} | given
        folder = options.get("model_dir") or Path(get_dir(), "checkpoints")
        file = Path(folder, options.get("file_name") or self.url.rpartition("/")[2])
        try:
            return load_state_dict_from_url(**options)
        except OSError as error:  # URLError is one
            raise ConnectionError(
                f"{self.url} cannot be reached ({error}): put {file.name} into {file.parent}"
            ) from error
        except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
            reason = str(error).partition("\n")[0]
            raise ArgumentError(f"{file} is broken ({reason}): remove it and download again") from error

    def __repr__(self) -> str:
        return f"{type(self).__name__}.{self.name}"

    @property
    def url(self) -> str:
        return self.value.url

    @property
    def transforms(self) -> Callable[[], nn.Module]:
        return self.value.transforms

    @property
    def meta(self) -> dict[str, Any]:
        return self.value.meta


_BUILDERS: dict[str, Callable[..., nn.Module]] = {}
_WEIGHTS: dict[str, type[WeightsEnum]] = {}  # by the model's name


def register_model(
    weights: type[WeightsEnum],
    pretrained: WeightsEnum | Callable[[dict[str, Any]], WeightsEnum] | None = None,
    pretrained_backbone: WeightsEnum | None = None,
) -> Callable[[Builder], Builder]:
    """Register a builder under its name, and let it take old arguments: positional, ``pretrained`` (_legacy.py)."""

    def register(builder: Builder) -> Builder:
        legacy: dict[str, tuple[str, Any]] = {"weights": ("pretrained", pretrained)}
        if pretrained_backbone is not None:
            legacy["weights_backbone"] = ("pretrained_backbone", pretrained_backbone)
        build = accept_legacy(**legacy)(builder)
        _BUILDERS[builder.__name__] = build
        _WEIGHTS[builder.__name__] = weights
        return build

    return register


def get_model_builder(name: str) -> Callable[..., nn.Module]:
    """The builder of that name; ValueError if there is none."""
    importlib.import_module("fastmask.models.detection")  # registers its builders
    if name.lower() not in _BUILDERS:
        raise ValueError(f"name must be one of {', '.join(sorted(_BUILDERS))}, got {name!r}")
    return _BUILDERS[name.lower()]


def get_model(name: str, **config: Any) -> nn.Module:
    """Build the model of that name with the builder's arguments."""
    return get_model_builder(name)(**config)


def get_model_weights(name: Callable[..., nn.Module] | str) -> type[WeightsEnum]:
    """The weights enum of a builder, or of the model of that name."""
    builder = get_model_builder(name) if isinstance(name, str) else name
    return _WEIGHTS[builder.__name__]


def get_weight(name: str) -> WeightsEnum:
    """Weights by full name, such as ``"MaskRCNN_ResNet50_FPN_Weights.COCO_V1"``; ValueError if there are none."""
    importlib.import_module("fastmask.models.detection")
    enum_name, _, member = name.partition(".")
    for weights in _WEIGHTS.values():
        if weights.__name__ == enum_name and member in weights.__members__:
            return weights[member]
    raise ValueError(f"name must be <enum>.<member> of known weights, got {name!r}")


def list_models(
    module: ModuleType | None = None,
    include: Iterable[str] | str | None = None,
    exclude: Iterable[str] | str | None = None,
) -> list[str]:
    """Names of all models, or of those in ``module``, sorted; ``include`` and ``exclude`` are shell patterns."""
    importlib.import_module("fastmask.models.detection")

    def match(patterns: Iterable[str] | str) -> set[str]:
        patterns = [patterns] if isinstance(patterns, str) else patterns
        return {name for pattern in patterns for name in fnmatch.filter(_BUILDERS, pattern)}

    names = match(include) if include else set(_BUILDERS)
    if module is not None:
        names = {name for name in names if _BUILDERS[name].__module__.rpartition(".")[0] == module.__name__}
    return sorted(names - match(exclude) if exclude else names)


def overwrite_num_classes(num_classes: int | None, weights: WeightsEnum) -> int:
    """The number of classes that weights were trained for; ValueError if ``num_classes`` is another."""
    trained: int = weights.meta["num_classes"]
    if num_classes not in (None, trained):
        raise ValueError(f"num_classes must be {trained} with {weights!r}, got {num_classes}")
    return trained
