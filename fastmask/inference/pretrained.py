"""Detectors by name, with weights."""

import os
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch

from fastmask import models
from fastmask.models._api import is_detector
from fastmask.models._hub import is_hub_name
from fastmask.models.detection._weights import choose_model
from fastmask.models.detection.faster_rcnn import FasterRCNN

FilePath = str | os.PathLike[str]


def load_pretrained(
    name: FilePath | None,
    weights: Any = "DEFAULT",
    device: str | torch.device = "auto",
    score: float = 0.05,
) -> tuple[FasterRCNN, Sequence[str] | None]:
    """A detector with weights, ready for inference, and its categories: names by label from 0, None if not known.

    Args:
        name: of a builder of ``fastmask.models.detection``, such as "maskrcnn_resnet50_fpn"; or a checkpoint's path or
            name on the hub (``hf://owner/name[/file][@revision]``), without ``weights``, or None: the file, or
            ``weights``, names its model. Weights that name none, or are of several, as "COCO_V1", are of
            "maskrcnn_resnet50_fpn".
        weights: a name, such as "COCO_V1" (downloaded once) or "BALLOON_V1", or a checkpoint's path or name on the hub.
        device: of the model; "auto" is CUDA where it is available, else the CPU.
        score: minimum score of a detection, in [0, 1].

    Raises:
        ConnectionError: the weights cannot be downloaded; the message says which file to put where.
        ValueError: there is no such model, or no such weights, or they do not fit it.
    """
    model, metadata = load_with_metadata(name, weights, device, score)
    return model, metadata.get("categories")


def load_with_metadata(
    name: FilePath | None, weights: Any, device: str | torch.device, score: float
) -> tuple[FasterRCNN, Mapping[str, Any]]:
    """:func:`load_pretrained`, with all that is known of the weights: ``categories``, ``skeletons`` and others."""
    if name is not None and not is_detector(os.fspath(name)):
        if weights != "DEFAULT" or not (is_hub_name(name) or os.path.exists(name)):
            known = models.list_models(module=models.detection)
            raise ValueError(f"name must be one of {', '.join(known)} or a file, got {os.fspath(name)!r}")
        name, weights = None, name
    if not 0 <= score <= 1:
        raise ValueError(f"score must be in [0, 1], got {score}")
    name, source = choose_model(None if name is None else os.fspath(name), weights)
    assert source is not None
    options = source.meta.get("options", {})  # such as the size of images that it was trained on
    model = models.get_model(name, weights=source, box_score_thresh=score, **options)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return cast(FasterRCNN, model.eval().requires_grad_(False).to(device)), source.meta
