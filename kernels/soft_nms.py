"""``fastmask::soft_nms_padded``: soft-NMS of a batch of images in fixed shapes, linear or gaussian.

The best remaining score, the lowest index of equal ones, is taken; it decays the others of its group by 1 - IoU where
the IoU is above the threshold, compared as double (linear), or by exp(-IoU^2 / sigma) (gaussian). What falls below the
score threshold, and NaN, takes no part. Computed in float64 if boxes or scores are, else in float32, where exp is the
polynomial of reference.exp_of_negative, so that every device decides alike.
Source: arXiv 1704.04503, Figure 2 and equations 2 and 3. torchvision has no soft-NMS.
Scores have gradients as if decays were constants; indices and counts have none.
"""

from typing import Any

import torch
from torch import Tensor

from fastmask.kernels.fallback import soft_nms as soft_nms_fallback
from fastmask.kernels.launch import HAS_TRITON, register

soft_nms_padded_op = torch.library.custom_op(
    "fastmask::soft_nms_padded", soft_nms_fallback.soft_nms_padded, mutates_args=()
)


if HAS_TRITON:
    from fastmask.kernels.triton import soft_nms as soft_nms_triton

    register(soft_nms_padded_op, soft_nms_triton.soft_nms_padded, soft_nms_fallback.soft_nms_padded)


@soft_nms_padded_op.register_fake
def _(
    boxes: Tensor,
    scores: Tensor,
    groups: Tensor | None,
    valid: Tensor | None,
    iou_threshold: float,
    sigma: float,
    gaussian: bool,
    score_threshold: float,
    max_output: int,
) -> tuple[Tensor, Tensor, Tensor]:
    indices = boxes.new_empty(boxes.shape[0], max_output, dtype=torch.int64)
    return indices, scores.new_empty(indices.shape), boxes.new_empty(boxes.shape[0], dtype=torch.int64)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    indices, decayed, count = output
    ctx.mark_non_differentiable(indices, count)
    ctx.save_for_backward(inputs[1], indices, decayed)


def _backward(ctx: Any, _: Tensor, grad: Tensor, __: Tensor) -> tuple[Any, ...]:
    scores, indices, decayed = ctx.saved_tensors
    # boxes, as the decays are constants; groups, valid, thresholds, sigma, kind and number of outputs: none
    if scores.shape[1] == 0:
        return None, torch.zeros_like(scores), *[None] * 7
    place = indices.clamp(min=0)
    decay = (decayed / scores.gather(1, place)).masked_fill((indices < 0) | (decayed == 0), 0)
    return None, torch.zeros_like(scores).scatter_add(1, place, grad * decay), *[None] * 7


soft_nms_padded_op.register_autograd(_backward, setup_context=_setup_context)
