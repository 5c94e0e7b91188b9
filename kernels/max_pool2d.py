"""``fastmask::max_pool2d``: max pooling without indices, then bias and ReLU as in a stem; inference only.

relu(max_pool2d(x) + bias) is max_pool2d(relu(x + bias)) on a quarter of the pixels: rounding, adding a channel's bias
and clamping are monotone. NaN is the largest, as in ``torch.nn.functional.max_pool2d``. Half types are summed in
float32 and rounded once.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from fastmask.kernels.fallback import stem as stem_fallback
from fastmask.kernels.launch import HAS_TRITON, register

max_pool2d_op = torch.library.custom_op("fastmask::max_pool2d", stem_fallback.max_pool2d, mutates_args=())


if HAS_TRITON:
    from fastmask.kernels.triton import max_pool2d as max_pool2d_triton

    register(max_pool2d_op, max_pool2d_triton.max_pool2d, stem_fallback.max_pool2d)


@max_pool2d_op.register_fake
def _(x: Tensor, bias: Tensor | None, kernel_size: int, stride: int, padding: int) -> Tensor:
    return F.max_pool2d(x, kernel_size, stride, padding)
