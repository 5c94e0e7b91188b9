"""``fastmask::stem_conv``: the first convolution of a ResNet, over the three channels of an image; inference only.

The convolution has stride 2 and no bias (arXiv 1512.03385, table 1: 7 x 7, 64 channels): bias and ReLU follow the max
pooling after it; see max_pool2d.py.
"""

import torch
from torch import Tensor

from fastmask.kernels.fallback import stem as stem_fallback
from fastmask.kernels.fallback.roi import empty_channels_last
from fastmask.kernels.launch import HAS_TRITON, register

stem_conv_op = torch.library.custom_op("fastmask::stem_conv", stem_fallback.stem_conv, mutates_args=())


if HAS_TRITON:
    from fastmask.kernels.triton import stem_conv as stem_conv_triton

    register(stem_conv_op, stem_conv_triton.stem_conv, stem_fallback.stem_conv)


@stem_conv_op.register_fake
def _(x: Tensor, weight: Tensor, padding: int) -> Tensor:
    height, width = ((side + 2 * padding - len(weight)) // stem_fallback.STRIDE + 1 for side in x.shape[2:])
    return empty_channels_last(x, x.shape[0], weight.shape[2], height, width)
