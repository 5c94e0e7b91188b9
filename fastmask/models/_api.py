"""Downloadable weights, and models by name; torchvision.models._api's names."""

import fnmatch
import functools
import importlib
import inspect
import pickle
import urllib.parse
import urllib.request
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

    def is_cached(self) -> bool:
        """Whether the file is in torch.hub's cache, or comes with the package: nothing is downloaded then."""
        parts = urllib.parse.urlsplit(self.url)
        if parts.scheme == "file":
            return Path(urllib.request.url2pathname(parts.path)).exists()
        return Path(get_dir(), "checkpoints", parts.path.rpartition("/")[2]).exists()

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


class NoWeights(WeightsEnum):
    """The weights of a model of which none are published."""


_BUILDERS: dict[str, Callable[..., nn.Module]] = {}
_FAMILIES: dict[str, Callable[..., nn.Module]] = {}  # builders whose first argument names a backbone
_WEIGHTS: dict[str, type[WeightsEnum]] = {}  # by the model's name


def register_model(
    weights: type[WeightsEnum],
    pretrained: WeightsEnum | Callable[[dict[str, Any]], WeightsEnum] | None = None,
    pretrained_backbone: WeightsEnum | None = None,
) -> Callable[[Builder], Builder]:
    """Register a builder under its name, and let it take old arguments: positional, ``pretrained`` (_legacy.py)."""

    def register(builder: Builder) -> Builder:
        legacy: dict[str, tuple[str, Any]] = {}
        if pretrained is not None:
            legacy["weights"] = ("pretrained", pretrained)
        if pretrained_backbone is not None:
            legacy["weights_backbone"] = ("pretrained_backbone", pretrained_backbone)
        build = accept_legacy(**legacy)(builder)
        _BUILDERS[builder.__name__] = build
        _WEIGHTS[builder.__name__] = weights
        return build

    return register


def register_family(weights: type[WeightsEnum]) -> Callable[[Builder], Builder]:
    """Register a builder whose first argument names a backbone; its models are named ``builder:backbone``."""

    def register(builder: Builder) -> Builder:
        _FAMILIES[builder.__name__] = builder
        _WEIGHTS[builder.__name__] = weights
        return builder

    return register


def is_family(name: str) -> bool:
    """Whether the name is a family's and a backbone's, as ``maskrcnn_timm:resnet18``; there may be no such backbone."""
    importlib.import_module("fastmask.models.detection")
    family, colon, backbone = name.partition(":")
    return family in _FAMILIES and bool(colon and backbone)


def list_families() -> list[str]:
    """Names of the builders whose first argument names a backbone, sorted."""
    importlib.import_module("fastmask.models.detection")
    return sorted(_FAMILIES)


def list_detectors() -> list[str]:
    """The names of ``fastmask.models.detection``'s builders."""
    return list_models(module=importlib.import_module("fastmask.models.detection"))


def is_detector(name: object) -> bool:
    """Whether a builder has that name: one of those, or a family's with a backbone's, ``maskrcnn_timm:resnet18``."""
    return isinstance(name, str) and (name in list_detectors() or is_family(name))


def check_detector(argument: str, name: object) -> None:
    """Raise a ValueError that names the argument if no builder has that name."""
    if not is_detector(name):
        known = [*list_detectors(), *(f"{family}:NAME" for family in list_families())]
        raise ValueError(f"{argument} must be one of {', '.join(known)}, got {name!r}")


def get_model_builder(name: str) -> Callable[..., nn.Module]:
    """The builder of that name, or of a family's model, as ``maskrcnn_timm:resnet18``; ValueError if there is none."""
    importlib.import_module("fastmask.models.detection")  # registers its builders
    family, _, backbone = name.partition(":")
    if family in _FAMILIES:
        return functools.partial(_FAMILIES[family], backbone) if backbone else _FAMILIES[family]
    if name.lower() not in _BUILDERS:
        known = sorted(_BUILDERS) + [f"{family}:NAME" for family in sorted(_FAMILIES)]
        raise ValueError(f"name must be one of {', '.join(known)}, got {name!r}")
    return _BUILDERS[name.lower()]


def get_model(name: str, **config: Any) -> nn.Module:
    """Build the model of that name with the builder's arguments."""
    return get_model_builder(name)(**config)


def get_model_weights(name: Callable[..., nn.Module] | str) -> type[WeightsEnum]:
    """The weights enum of a builder, or of the model of that name."""
    if isinstance(name, str):
        get_model_builder(name)  # checks it
        return _WEIGHTS[name.partition(":")[0] if is_family(name) else name.lower()]
    return _WEIGHTS[name.__name__]


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


def list_weights(include: Iterable[str] | str | None = None) -> list[WeightsEnum]:
    """All published weights of all models, or of those whose names ``include`` matches, sorted by model."""
    names = list_models(include=include)
    return [member for name in names for member in _WEIGHTS[name]]


def overwrite_num_classes(num_classes: int | None, weights: WeightsEnum) -> int:
    """The number of classes that weights were trained for; ValueError if ``num_classes`` is another."""
    trained: int = weights.meta["num_classes"]
    if num_classes not in (None, trained):
        raise ValueError(f"num_classes must be {trained} with {weights!r}, got {num_classes}")
    return trained
