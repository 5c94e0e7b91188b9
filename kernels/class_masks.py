"""``fastmask::class_masks``: the mask branch's last layers, for the class of each detection only; inference only.

A 2 x 2 deconvolution of stride 2 with bias, ReLU, and the dot product with the row of the last 1 x 1 convolution that
belongs to the detection's class, instead of all classes' maps; then the sigmoid.
Source: Mask R-CNN section 3 (figure 4, right); torchvision/models/detection/mask_rcnn.py MaskRCNNPredictor.
Differs from torchvision: nothing is rounded to a half type between the layers, the output is float32 (float64 of
float64), and rows from their image's count on, or with a label that is no class, are zeros.
"""

from typing import Any

import torch
from torch import Tensor

from fastmask.kernels.fallback import class_masks as class_masks_fallback
from fastmask.kernels.launch import HAS_TRITON, register
from fastmask.kernels.reference import compute_dtype

class_masks_op = torch.library.custom_op("fastmask::class_masks", class_masks_fallback.class_masks, mutates_args=())


if HAS_TRITON:
    from fastmask.kernels.triton import class_masks as class_masks_triton

    register(class_masks_op, class_masks_triton.class_masks, class_masks_fallback.class_masks)


@class_masks_op.register_fake
def _(hidden: Tensor, *_: Any) -> Tensor:
    number, _channels, height, width = hidden.shape
    return hidden.new_empty(number, 2 * height, 2 * width, dtype=compute_dtype(hidden))
