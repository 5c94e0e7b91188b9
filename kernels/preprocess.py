"""``fastmask::preprocess``: resize, normalize and pad a batch of images into the buffer that a model reads.

uint8 counts as [0, 255], floating point as [0, 1]. Bilinear, align_corners=False, without antialiasing: output pixel i
samples (i + 0.5) * scale - 0.5, at least 0, with scale = input / output rounded to float32 and the product and the
difference rounded once, together (as compilers contract them in torch, on CPUs with FMA and on GPUs).
Source: torchvision/models/detection/transform.py; torch.nn.functional.interpolate, ATen/native/UpSample.h.
Differs from torchvision: one op for a batch, written where the model reads it.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from fastmask.kernels.fallback import preprocess as preprocess_fallback
from fastmask.kernels.launch import HAS_TRITON, register

preprocess_op = torch.library.custom_op(
    "fastmask::preprocess", preprocess_fallback.preprocess, mutates_args=("pixels",)
)


if HAS_TRITON:
    from fastmask.kernels.triton import preprocess as preprocess_triton

    register(preprocess_op, preprocess_triton.preprocess, preprocess_fallback.preprocess)


@preprocess_op.register_fake
def _(
    images: Sequence[Tensor], heights: Sequence[int], widths: Sequence[int], mean: Tensor, std: Tensor, pixels: Tensor
) -> None:
    return None
