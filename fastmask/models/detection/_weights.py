"""Loading of a builder's weights: downloadable ones, and those in a user's file."""

import os
from collections.abc import Mapping
from typing import Any

from torch import nn

from fastmask.models._api import Weights, WeightsEnum, get_model_weights, list_detectors
from fastmask.models._hub import is_hub_name
from fastmask.models._meta import COCO_CATEGORIES
from fastmask.models._metadata import check_conventions
from fastmask.models._presets import ObjectDetection
from fastmask.models._state import load_state, num_classes_error
from fastmask.models.checkpoint import Checkpoint
from fastmask.models.detection._utils import overwrite_eps

Source = WeightsEnum | Checkpoint | None
DEFAULT_MODEL = "maskrcnn_resnet50_fpn"


def coco_weights(
    file: str, num_params: int, recipe: str, names: Mapping[str, list[str]] | None = None, **metrics: float
) -> Weights:
    """Weights of a detector trained on COCO, with the average precisions that torchvision publishes.

    ``names``: ``categories`` by label, where they are not COCO's 91, and ``keypoint_names``.
    """
    names = {"categories": COCO_CATEGORIES} | dict(names or {})
    meta = {
        **names,
        "num_classes": len(names["categories"]),
        "min_size": (1, 1),
        "num_params": num_params,
        "recipe": f"https://github.com/pytorch/vision/{recipe}",
        "_metrics": {"COCO-val2017": metrics},
    }
    return Weights(f"https://download.pytorch.org/models/{file}", ObjectDetection, meta)


def find_weights(known: type[WeightsEnum], weights: Any) -> Source:
    """A member of ``known``, its name, a file's path or name on the hub, or None; ValueError if a name is none."""
    if isinstance(weights, str | os.PathLike):
        name = os.fspath(weights)
        if name.removeprefix(f"{known.__name__}.") not in known.__members__:
            if not (is_hub_name(name) or os.path.exists(name)):
                names = " or ".join(filter(None, (", ".join(known.__members__), "a file")))
                raise ValueError(f"weights must be {names}, got {name!r}")
            weights = Checkpoint(name)
    if isinstance(weights, Checkpoint):
        weights.published = os.path.basename(weights.path) in {member.url.rpartition("/")[2] for member in known}
        return weights
    if not known.__members__ and weights is not None:
        raise TypeError(f"weights must be a file or None, got {type(weights).__name__}")
    member: WeightsEnum | None = known.verify(weights)
    return member


def choose_model(name: str | None, weights: Any) -> tuple[str, Source]:
    """Choose the builder that weights are of, unless it is given, and find the weights.

    Args:
        name: the builder's name; None: the one that the weights name: a file by its ``builder``, published weights as
            "SHAPES_V1" or "MaskRCNN_ResNet50_FPN_V2_Weights.COCO_V1"; or else :data:`DEFAULT_MODEL`.
        weights: see :func:`find_weights`.

    Raises:
        ValueError: there are no such weights, or the file is of another builder than the given one.
    """
    if name is None:
        name, weights = _name_model(weights)
    source = find_weights(get_model_weights(name), weights)
    trained = source.meta.get("builder", name) if isinstance(source, Checkpoint) else name
    if trained != name:
        raise ValueError(f"model must be {trained} with {source}, got {name}")
    return name, source


def _name_model(weights: Any) -> tuple[str, Any]:
    """The builder's name that weights have, DEFAULT_MODEL where they have none or several, and the weights."""
    known = {name: get_model_weights(name) for name in (DEFAULT_MODEL, *list_detectors())}
    if isinstance(weights, WeightsEnum):
        return next((name for name, members in known.items() if isinstance(weights, members)), DEFAULT_MODEL), weights
    if isinstance(weights, str | os.PathLike):
        text = os.fspath(weights)
        for name, members in known.items():
            if text.removeprefix(f"{members.__name__}.") in members.__members__:
                return name, weights
        if not (is_hub_name(text) or os.path.exists(text)):
            names = dict.fromkeys(member for members in known.values() for member in members.__members__)
            raise ValueError(f"weights must be {', '.join(names)} or a file, got {text!r}")
        weights = Checkpoint(text)
    return weights.meta.get("builder", DEFAULT_MODEL) if isinstance(weights, Checkpoint) else DEFAULT_MODEL, weights


def has_frozen_norms(weights: Source, weights_backbone: WeightsEnum | None) -> bool:
    """Whether norms of the first models are frozen: with trained weights, but for a file whose norms were trained."""
    if isinstance(weights, Checkpoint):
        return weights.has_frozen_norms
    return weights is not None or weights_backbone is not None


def choose_num_classes(
    num_classes: int | None, weights: Source, new_predictors: bool, default: int = len(COCO_CATEGORIES)
) -> int:
    """The given number, or else that of the weights, or else COCO's; ValueError if the first two differ."""
    trained = None if weights is None else weights.meta.get("num_classes")
    if num_classes is None:
        return default if trained is None else int(trained)
    if trained not in (None, num_classes) and not new_predictors:
        raise num_classes_error(trained, repr(weights), num_classes)
    return num_classes


def choose_num_keypoints(num_keypoints: int | None, weights: Source, new_predictors: bool, default: int) -> int:
    """The given number, or else that of the weights, or else the default; ValueError if the first two differ."""
    trained = None
    if weights is not None:
        names = weights.meta.get("keypoint_names")
        trained = weights.meta.get("num_keypoints") if names is None else len(names)
    if num_keypoints is None:
        return default if trained is None else int(trained)
    if trained not in (None, num_keypoints) and not new_predictors:
        raise num_classes_error(trained, repr(weights), num_keypoints, "num_keypoints")
    return num_keypoints


def load_weights(
    model: nn.Module, weights: Source, progress: bool, new_predictors: bool, eps: float | None = None
) -> None:
    """Load weights, if any; ``eps`` is that of the published ones' frozen norms; files of ours tell their own."""
    if weights is not None:
        if isinstance(weights, Checkpoint):
            check_conventions(model, weights.meta.get("options", {}), weights.path)
        load_state(model, weights.get_state_dict(progress=progress), repr(weights), new_predictors)
        if isinstance(weights, Checkpoint) and not weights.published:
            eps = weights.meta.get("norm_eps")
        if eps is not None:
            overwrite_eps(model, eps)
