"""``fastmask::nms_padded``: greedy non-maximum suppression (NMS) of a batch of images in fixed shapes.

Order: score descending (NaN first), then input index; IoU in the boxes' dtype (half types in float32), compared with
the threshold as double. Source: torchvision/csrc/ops/cpu/nms_kernel.cpp.
Differs from torchvision: groups are exact (no coordinate offsets), ties are stable everywhere, several images at once.
``presorted`` gives groups by their lengths, each with its scores descending: a GPU then needs no sort.
"""

import torch
from torch import Tensor

from fastmask.kernels.fallback import nms as nms_fallback
from fastmask.kernels.launch import HAS_TRITON, register

nms_padded_op = torch.library.custom_op("fastmask::nms_padded", nms_fallback.nms_padded, mutates_args=())


if HAS_TRITON:
    from fastmask.kernels.triton import nms as nms_triton

    register(nms_padded_op, nms_triton.nms_padded, nms_fallback.nms_padded)


@nms_padded_op.register_fake
def _(
    boxes: Tensor,
    scores: Tensor,
    groups: Tensor | None,
    valid: Tensor | None,
    iou_threshold: float,
    max_output: int,
    num_groups: int = 0,
    presorted: list[int] | None = None,
) -> tuple[Tensor, Tensor]:
    indices = boxes.new_empty(boxes.shape[0], max_output, dtype=torch.int64)
    return indices, boxes.new_empty(boxes.shape[0], dtype=torch.int64)
