"""``fastmask::paste_masks``: mask pasting: M x M masks in boxes of an image, to probabilities, bool or packed bits.

Pixel model: see reference.paste_masks (torchvision's padded, truncated boxes, or detectron2's continuous ones).
Source: Mask R-CNN section 3.1 (inference); torchvision/models/detection/roi_heads.py; detectron2/layers/mask_ops.py.
Differs from both: a box that is NaN, inf or out of the image gives an empty mask instead of an error.
"""

from typing import Any

import torch
from torch import Tensor

from fastmask.kernels.fallback import masks as masks_fallback
from fastmask.kernels.launch import HAS_TRITON, register

paste_masks_op = torch.library.custom_op("fastmask::paste_masks", masks_fallback.paste_masks, mutates_args=())
paste_masks_backward_op = torch.library.custom_op(
    "fastmask::paste_masks_backward", masks_fallback.paste_masks_backward, mutates_args=()
)


if HAS_TRITON:
    from fastmask.kernels.triton import paste as paste_triton, paste_backward as paste_backward_triton

    register(paste_masks_op, paste_triton.paste_masks, masks_fallback.paste_masks)
    register(paste_masks_backward_op, paste_backward_triton.paste_masks_backward, masks_fallback.paste_masks_backward)


@paste_masks_op.register_fake
def _(masks: Tensor, boxes: Tensor, height: int, width: int, output: str, *_: Any) -> Tensor:
    if output == "packed":
        return masks.new_empty(masks.shape[0], height, (width + 7) // 8, dtype=torch.uint8)
    return masks.new_empty(masks.shape[0], height, width, dtype=torch.bool if output == "bool" else masks.dtype)


@paste_masks_backward_op.register_fake
def _(grad: Tensor, masks: Tensor, *_: Any) -> Tensor:
    return masks.new_empty(masks.shape)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    masks, boxes, _, _, _, _, ctx.continuous, ctx.logits, ctx.padding = inputs
    if not output.is_floating_point():
        ctx.mark_non_differentiable(output)
    ctx.save_for_backward(masks, boxes)


def _backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    masks, boxes = ctx.saved_tensors
    grad_masks = paste_masks_backward_op(grad.contiguous(), masks, boxes, ctx.continuous, ctx.logits, ctx.padding)
    # boxes (whole pixels in torchvision's mode), height, width, output, threshold, continuous, logits, padding: none
    return grad_masks, None, None, None, None, None, None, None, None


paste_masks_op.register_autograd(_backward, setup_context=_setup_context)
