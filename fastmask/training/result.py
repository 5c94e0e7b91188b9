"""How a training run ends."""

from pathlib import Path
from typing import Any, NamedTuple

from fastmask.evaluation import AnyMetrics


class DivergedError(RuntimeError):
    """A gradient is not finite."""


class TrainResult(NamedTuple):
    """Result of a training run."""

    weights: Path  # a file with the best epoch's weights, for torchvision and all our commands
    metrics: dict[str, AnyMetrics]  # of that epoch by "box", "mask" and "keypoints"; empty without validation images
    epochs: list[dict[str, Any]]  # epochs.json: "epoch" (from 1), "steps", "loss", "lr", COCO's as "box", "mask", ...
