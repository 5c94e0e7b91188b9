"""Whether bfloat16 keeps what float32 detects, on a user's own images."""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch

from fastmask.evaluation.agreement import KEPT_IOU, KEPT_SHARE, count_kept
from fastmask.inference.bfloat16 import has_native_bfloat16
from fastmask.inference.predictor import Predictor
from fastmask.inference.prefetch import ImageLike
from fastmask.models.detection.generalized_rcnn import GeneralizedRCNN


class DtypeChoice(NamedTuple):
    """A dtype for a Predictor, and why."""

    dtype: torch.dtype
    kept: int  # of float32's detections, by bfloat16
    detections: int  # of float32; 0 where nothing was compared
    native: bool  # whether the device computes bfloat16 itself

    def __str__(self) -> str:
        name = str(self.dtype).removeprefix("torch.")
        if not self.native:
            return f"{name}: this CPU only emulates bfloat16, which is slower"
        if not self.detections:
            return f"{name}: the images have no detections to compare"
        return f"{name}: {format_kept(self.kept, self.detections)}"


def format_kept(kept: int, detections: int) -> str:
    """What bfloat16 keeps, and what it must."""
    share = f"{kept} of float32's {detections} detections ({kept / max(detections, 1):.1%})"
    return f"bfloat16 keeps {share}, {KEPT_SHARE:.0%} must be (its class, IoU {KEPT_IOU})"


def choose_dtype(
    model: GeneralizedRCNN, images: Sequence[ImageLike], size: tuple[int, int] | Literal["exact"] = (800, 1344)
) -> DtypeChoice:
    """Choose bfloat16 for a Predictor if it is native and keeps 99 % of what float32 detects, else the model's dtype.

    A detection is kept if bfloat16 has one of its label with a mask (without masks: box) of IoU 0.75 or more, so that
    AP, too, hardly changes. Without any detection in float32 nothing is known, and the model's dtype stays.

    Args:
        model: any of ``fastmask.models.detection``.
        images: some that are like those to come, as :meth:`Predictor.__call__` takes them; each is predicted twice.
        size: as :class:`Predictor`'s.

    Raises:
        ValueError: an argument does not fit, or an image is broken.
    """
    own = next(model.parameters())
    native = own.device.type != "cpu" or has_native_bfloat16()
    if not native or own.dtype != torch.float32:
        return DtypeChoice(own.dtype, 0, 0, native)
    kept = detections = 0
    options: dict[str, Any] = {"masks": "bool"}
    exact, half = (Predictor(model, size, dtype=dtype, **options) for dtype in (torch.float32, torch.bfloat16))
    for image in images:
        (expected,), (actual,) = exact([image]), half([image])
        pair: list[Any] = [
            {name: value for name, value in each.items() if value is not None} for each in (actual, expected)
        ]
        kept += count_kept(*pair)
        detections += len(expected["boxes"])
    keeps = detections > 0 and kept >= KEPT_SHARE * detections
    return DtypeChoice(torch.bfloat16 if keeps else torch.float32, kept, detections, native)
