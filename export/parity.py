"""Parity: whether an exported file gives the model's detections."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fastmask.demo import draw_scene
from fastmask.evaluation.agreement import FLOAT32, KEPT_IOU, Tolerance, matched_share
from fastmask.export.exported import ROWS, Array, ExportedModel
from fastmask.ops.masks import paste_masks

# Share of detections that has to match, and what a match is: the rule of the model's own tests in float32. In float16
# ONNX Runtime and PyTorch round in other places: scores move by up to 0.007, borders of masks that are guesses by many
# pixels, and of 291 detections that score above 0.01 on photos 3 match none.
MIN_SHARE = {torch.float16: 0.97, torch.float32: 0.99}
TOLERANCES = {torch.float16: Tolerance(score=0.01, mask_iou=KEPT_IOU), torch.float32: FLOAT32}
RELATIVE_SIZES = ((1.0, 1.0), (0.6, 1.0), (1.0, 0.5), (0.3, 0.4), (0.8, 0.9))  # of a size, by height and width
Outputs = dict[str, Tensor]
Reference = Callable[[Array, Array], dict[str, Array]]  # images and sizes -> outputs by name


class Parity(NamedTuple):
    """How well the detections of a model and of an exported file match."""

    images: int
    detections: int  # of the model
    share: float  # of both sides' detections that match one of the other side
    differences: dict[str, float]  # the largest of boxes (pixels), scores and masks, between matches
    num_dropped: int  # the most candidates of an image that the bound before NMS dropped
    tolerance: Tolerance  # of a match


def compare_outputs(reference: Reference, session: ExportedModel, images: Sequence[Tensor]) -> Parity:
    """Run both on images [C, h, w], uint8 or in [0, 1]; see :func:`fastmask.evaluation.agreement.matched_share`.

    What matches is by the file's dtype, see TOLERANCES; other dtypes have float32's.

    Args:
        reference: such as a model's :meth:`fastmask.export.ExportableModel.predict_arrays`, or another session.
        session: what is compared with it.
        images: of any sizes.
    """
    number, total, matched, num_dropped = 0, 0.0, 0.0, 0
    largest: dict[str, float] = {}
    tolerance = TOLERANCES.get(getattr(torch, session.metadata["dtype"]), FLOAT32)
    step = session.batch or 2  # a dynamic file runs on two at once and, of an odd number, on one
    for start in range(0, len(images), step):
        chunk = images[start : start + step]
        inputs, sizes = session.preprocess(chunk)
        theirs, ours = session(inputs, sizes), reference(inputs, sizes)
        canvas = (inputs.shape[1], inputs.shape[2]) if session.raw else (inputs.shape[2], inputs.shape[3])
        num_dropped = max(num_dropped, *theirs.get("num_dropped", [0])[: len(chunk)])
        for i in range(len(chunk)):
            expected, actual = (_unpad(outputs, i, canvas) for outputs in (ours, theirs))
            weight = len(expected["scores"]) + len(actual["scores"])
            number += len(expected["scores"])
            total += weight
            matched += weight * matched_share(actual, expected, tolerance)
            for name, most in _differences(actual, expected).items():
                largest[name] = max(largest.get(name, 0.0), most)
    share = matched / total if total else 1.0
    return Parity(len(images), number, share, largest, int(num_dropped), tolerance)


def synthetic_images(size: tuple[int, int], channels: int = 3) -> list[Tensor]:
    """Draw a few images [C, h, w] that fit into a size, smaller ones among them, to compare on; the same at each call.

    Of other than three channels, they have red, green and blue in turn.
    """
    generator = np.random.default_rng(0)
    sizes = [
        tuple(max(32, round(side * part)) for side, part in zip(size, parts, strict=True)) for parts in RELATIVE_SIZES
    ]
    scenes = [draw_scene(generator, (height, width)).image for height, width in sizes]
    planes = [torch.from_numpy(image).permute(2, 0, 1) for image in scenes]
    return [image if channels == 3 else image[[c % 3 for c in range(channels)]] for image in planes]


def format_parity(parity: Parity, name: str) -> str:
    """Format a parity as a line."""
    largest = ", ".join(f"{what} {value:.2g}" for what, value in parity.differences.items())
    pixels, score, iou = parity.tolerance
    return (
        f"{name} on {parity.images} images: {parity.share:.1%} of {parity.detections} detections match "
        f"(label, {pixels:g} pixel, score {score:g}, mask IoU {iou:g}); largest differences: {largest or 'none'}"
    )


def _unpad(outputs: dict[str, Array], index: int, canvas: tuple[int, int]) -> Outputs:
    """One image's detections without padding; masks are pasted, and kept unpasted as "soft"."""
    count = int(outputs["count"][index])
    rows = {name: torch.from_numpy(outputs[name][index, :count]) for name in ROWS if name in outputs}
    if "masks" in rows and rows["masks"].is_floating_point():
        rows["soft"] = rows["masks"]
        rows["masks"] = paste_masks(rows["soft"].float(), rows["boxes"].float(), canvas)
    return rows


def _differences(actual: Outputs, expected: Outputs) -> dict[str, float]:
    """Differences between each of the model's detections and the nearest of its label, where that is within a pixel."""
    if not len(actual["labels"]) or not len(expected["labels"]):
        return {}
    distance = (actual["boxes"][:, None] - expected["boxes"]).abs().amax(2)
    distance[actual["labels"][:, None] != expected["labels"]] = torch.inf
    nearest, match = distance.min(0)
    found: dict[str, float] = {}
    for name in ("boxes", "scores", "soft"):
        if name in actual and bool((nearest <= 1).any()):
            away = actual[name][match].double() - expected[name].double()
            found["masks" if name == "soft" else name] = float(away[nearest <= 1].abs().max())
    return found
