"""The model that ``--model``, ``--weights``, ``--score`` and ``--device`` name."""

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

from fastmask.cli._device import find_device

if TYPE_CHECKING:
    from fastmask.models.detection.faster_rcnn import FasterRCNN


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """For every command that looks at pictures."""
    parser.add_argument("--weights", default="COCO_V1", help="COCO_V1 (downloaded once) or a file [%(default)s]")
    parser.add_argument("--model", default="maskrcnn_resnet50_fpn", metavar="NAME", help="[%(default)s]")
    parser.add_argument("--score", type=float, default=0.5, help="what is kept scores above it [%(default)s]")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ... [%(default)s]")


def load_model(name: str, weights: str, device: str, score: float) -> "tuple[FasterRCNN, Sequence[str] | None]":
    """The model, ready to detect, and its categories if they are known; ValueError if an argument is wrong."""
    from fastmask import models
    from fastmask.models.detection._weights import find_weights

    if not 0 <= score <= 1:
        raise ValueError(f"--score must be in [0, 1], got {score}")
    names = models.list_models(module=models.detection)
    if name not in names:
        raise ValueError(f"--model must be one of {', '.join(names)}, got {name!r}")
    where = find_device(device)
    source = find_weights(models.get_model_weights(name), weights)
    assert source is not None
    model = models.get_model(name, weights=source, box_score_thresh=score).eval().requires_grad_(False).to(where)
    return cast("FasterRCNN", model), source.meta.get("categories")
