"""Gathering after NMS: the kept boxes, and detections in pixels of the original images.

- ``fastmask::take_kept`` gathers the rows that NMS keeps, and their boxes as RoIs; zeros where it keeps none.
- ``fastmask::scale_boxes`` scales boxes to pixels of the original images, and repeats the image's size for each.

Each is one op, because on a GPU its steps on a thousand boxes are five to ten launches. None is differentiable:
training, and compiled or exported programs, call fallback/take.py, which PyTorch traces.
"""

import torch
from torch import Tensor

from fastmask.kernels.fallback import take as take_fallback
from fastmask.kernels.launch import HAS_TRITON, register

take_kept_op = torch.library.custom_op("fastmask::take_kept", take_fallback.take_kept, mutates_args=())
scale_boxes_op = torch.library.custom_op("fastmask::scale_boxes", take_fallback.scale_boxes, mutates_args=())


if HAS_TRITON:
    from fastmask.kernels.triton import take as take_triton

    register(take_kept_op, take_triton.take_kept, take_fallback.take_kept)
    register(scale_boxes_op, take_triton.scale_boxes, take_fallback.scale_boxes)


@take_kept_op.register_fake
def _(kept: Tensor, boxes: Tensor, scores: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    batch, num = kept.shape
    taken = kept.new_empty(0 if labels is None else kept.shape)
    return (
        boxes.new_empty(batch, num, 4),
        scores.new_empty(batch, num),
        taken,
        boxes.new_empty(batch, num, 5),
    )


@scale_boxes_op.register_fake
def _(boxes: Tensor, originals: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor]:
    return boxes.new_empty(boxes.shape), originals.new_empty(boxes.shape[0] * boxes.shape[1], 2)
