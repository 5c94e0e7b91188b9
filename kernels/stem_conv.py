"""``fastmask::stem_conv``: the first convolution of a ResNet, of the three channels of an image; inference only.

A convolution of stride 2 without bias (arXiv 1512.03385, table 1: 7 x 7, 64 channels), whose bias and ReLU follow the
max pooling behind it; see max_pool2d.py.
"""

import torch
from torch import Tensor

from fastmask.kernels import cpu_stem
from fastmask.kernels.cpu_roi import empty_channels_last
from fastmask.kernels.launch import HAS_TRITON, register

stem_conv_op = torch.library.custom_op("fastmask::stem_conv", cpu_stem.stem_conv, mutates_args=())


if HAS_TRITON:
    from fastmask.kernels import gpu_stem_conv

    register(stem_conv_op, gpu_stem_conv.stem_conv, cpu_stem.stem_conv)


@stem_conv_op.register_fake
def _(x: Tensor, weight: Tensor, padding: int) -> Tensor:
    height, width = ((side + 2 * padding - len(weight)) // cpu_stem.STRIDE + 1 for side in x.shape[2:])
    return empty_channels_last(x, x.shape[0], weight.shape[2], height, width)
