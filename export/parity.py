"""Whether an exported file answers as the model does."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fastmask.demo import draw_scene
from fastmask.evaluation.agreement import matched_share
from fastmask.export.exported import ROWS, Array, Exported
from fastmask.ops.masks import paste_masks

# of detections that have to match: the rule of the model's own tests in float32; and in float16, where ONNX Runtime and
# PyTorch round in other places
LEAST = {torch.float16: 0.9, torch.float32: 0.99}
DRAWN = ((1.0, 1.0), (0.6, 1.0), (1.0, 0.5), (0.3, 0.4), (0.8, 0.9))  # of a size, by height and width
Answer = dict[str, Tensor]
Reference = Callable[[Array, Array], dict[str, Array]]  # images and sizes -> what is found, by name


class Parity(NamedTuple):
    """How much two sets of answers agree."""

    images: int
    detections: int  # of the model
    share: float  # of both sides' detections that have a twin on the other side
    differences: dict[str, float]  # the largest of boxes (pixels), scores and masks, between twins
    num_dropped: int  # the most candidates of an image that NMS did not look at


def parity(reference: Reference, session: Exported, images: Sequence[Tensor]) -> Parity:
    """Ask both about images [3, h, w], uint8 or in [0, 1]; see :func:`fastmask.evaluation.agreement.matched_share`.

    Args:
        reference: such as a model's :meth:`fastmask.export.Deployed.answers`, or another session.
        session: what is compared with it.
        images: of any sizes.
    """
    number, total, matched, num_dropped = 0, 0.0, 0.0, 0
    largest: dict[str, float] = {}
    step = session.batch or 2  # a dynamic file is asked about two at once and, of an odd number, one
    for start in range(0, len(images), step):
        chunk = images[start : start + step]
        inputs, sizes = session.prepared(chunk)
        theirs, ours = session(inputs, sizes), reference(inputs, sizes)
        canvas = (inputs.shape[1], inputs.shape[2]) if session.raw else (inputs.shape[2], inputs.shape[3])
        num_dropped = max(num_dropped, *theirs.get("num_dropped", [0])[: len(chunk)])
        for i in range(len(chunk)):
            expected, actual = (_one(answer, i, canvas) for answer in (ours, theirs))
            weight = len(expected["scores"]) + len(actual["scores"])
            number += len(expected["scores"])
            total += weight
            matched += weight * matched_share(actual, expected)
            for name, most in _differences(actual, expected).items():
                largest[name] = max(largest.get(name, 0.0), most)
    return Parity(len(images), number, matched / total if total else 1.0, largest, int(num_dropped))


def drawn_images(size: tuple[int, int]) -> list[Tensor]:
    """A few that fit into a size, smaller ones among them, to compare on; the same at each call."""
    generator = np.random.default_rng(0)
    sizes = [tuple(max(32, round(side * part)) for side, part in zip(size, parts, strict=True)) for parts in DRAWN]
    return [torch.from_numpy(draw_scene(generator, (height, width)).image).permute(2, 0, 1) for height, width in sizes]


def said(found: Parity, who: str) -> str:
    """A line for people."""
    most = ", ".join(f"{name} {value:.2g}" for name, value in found.differences.items())
    return (
        f"{who} on {found.images} images: {found.share:.1%} of {found.detections} detections match "
        f"(label, 1 pixel, score 0.001, mask IoU 0.99); largest differences: {most or 'none'}"
    )


def _one(found: dict[str, Array], index: int, canvas: tuple[int, int]) -> Answer:
    """An image's answer without padding, its masks pasted, with what they were as "soft"."""
    count = int(found["count"][index])
    one = {name: torch.from_numpy(found[name][index, :count]) for name in ROWS if name in found}
    if "masks" in one and one["masks"].is_floating_point():
        one["soft"] = one["masks"]
        one["masks"] = paste_masks(one["soft"].float(), one["boxes"].float(), canvas)
    return one


def _differences(actual: Answer, expected: Answer) -> dict[str, float]:
    """Between each of the model's detections and the nearest one of its label, where that is within a pixel."""
    if not len(actual["labels"]) or not len(expected["labels"]):
        return {}
    distance = (actual["boxes"][:, None] - expected["boxes"]).abs().amax(2)
    distance[actual["labels"][:, None] != expected["labels"]] = torch.inf
    nearest, twin = distance.min(0)
    found: dict[str, float] = {}
    for name in ("boxes", "scores", "soft"):
        if name in actual and bool((nearest <= 1).any()):
            away = actual[name][twin].double() - expected[name].double()
            found["masks" if name == "soft" else name] = float(away[nearest <= 1].abs().max())
    return found
