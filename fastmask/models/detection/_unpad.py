"""Padded detections as one dict an image: the only host sync of inference, in eager and compiled programs."""

from typing import Any

import torch
from torch import Tensor

from fastmask.ops import boxes as box_ops
from fastmask.ops.boxes import batched_nms, nms_padded
from fastmask.structures import Detections, Prediction

ROWS = ("boxes", "labels", "scores", "masks", "keypoints", "keypoints_scores")


def unpad(detections: Detections) -> list[Prediction]:
    """Padded detections -> the valid rows of each image, masks as [n, 1, M, M]; a host sync reads the counts.

    Keypoints are float32, as torchvision's are of any model.
    """
    padded = {name: value for name, value in detections._asdict().items() if value is not None and name in ROWS}
    rows = split_valid(detections.count, *padded.values())
    predictions: list[Prediction] = []
    for values in zip(*rows, strict=True):
        own: Any = dict(zip(padded, values, strict=True))
        if "masks" in own:
            own["masks"] = own["masks"][:, None]
        for name in ("keypoints", "keypoints_scores"):
            if name in own:
                own[name] = own[name].float()
        predictions.append(own)
    return predictions


def split_valid(count: Tensor, *values: Tensor) -> list[list[Tensor]]:
    """The valid rows of each image, from counts [B], of all the values [B, D, ...]; a host sync reads the counts."""
    compiling = torch.compiler.is_compiling()
    rows: list[Any] = valid_rows(count, values[0].shape[1]) if compiling else [slice(n) for n in count.tolist()]
    return [[value[i][valid] for i, valid in enumerate(rows)] for value in values]


def keep_best(
    boxes: Tensor, scores: Tensor, groups: Tensor, valid: Tensor, iou_threshold: float, most: int, num_groups: int
) -> list[Tensor]:
    """The rows of each image that NMS within groups keeps, best first.

    By a user's own ``ops.boxes.batched_nms``, if that is replaced.

    Args:
        boxes, scores, groups, valid: [B, N, 4], [B, N], [B, N] and bool [B, N], which of them count.
        iou_threshold, most, num_groups: see :func:`fastmask.ops.nms_padded`.
    """
    if box_ops.batched_nms is batched_nms:
        kept, count = nms_padded(
            boxes, scores, groups, valid, iou_threshold=iou_threshold, max_output=most, num_groups=num_groups
        )
        return split_valid(count, kept)[0]
    rows = [each.nonzero()[:, 0] for each in valid]
    images = zip(rows, boxes, scores, groups, strict=True)
    return [row[box_ops.batched_nms(b[row], s[row], g[row], iou_threshold)][:most] for row, b, s, g in images]


@torch.library.custom_op("fastmask::valid_rows", mutates_args=(), tags=[torch.Tag.cudagraph_unsafe])
def valid_rows(count: Tensor, most: int) -> list[Tensor]:
    """Row numbers below each of the counts [B], which are at most ``most``."""
    return [torch.arange(number, device=count.device) for number in count.tolist()]


@valid_rows.register_fake
def _(count: Any, most: int) -> list[Tensor]:
    """Sizes known when the program runs, also where torch.compile is not asked for these: it would break the graph."""
    from torch._library.fake_impl import allocate_size  # private: not before it is needed

    shapes = count.fake_mode.shape_env
    return [count.new_empty(allocate_size(shapes, 0, most)) for _ in range(count.shape[0])]
