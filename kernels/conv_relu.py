"""``fastmask::conv_relu``: ``relu(conv(x) + bias + residual)`` in one kernel of cuDNN, through PyTorch's private API.

A form to choose, not the default: for ``cudnn_convolution_relu``, PyTorch hands cuDNN the output, which nobody has
written yet, as the residual times 0 (ATen/native/cudnn/ConvShared.cpp), and 0 times NaN is NaN. A test behind
``-m gpu`` fills the allocator with NaN first.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

Ints = Sequence[int]


@torch.library.custom_op("fastmask::conv_relu", mutates_args=())
def conv_relu_op(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    residual: Tensor | None,
    stride: Ints,
    padding: Ints,
    dilation: Ints,
    groups: int,
) -> Tensor:
    """x [B, C, H, W], weight [O, C / groups, h, w], bias [O], residual [B, O, H', W'] -> [B, O, H', W']."""
    y = F.conv2d(x, weight, bias, stride, padding, dilation, groups)
    return y.relu_() if residual is None else y.add_(residual).relu_()


@conv_relu_op.register_kernel("cuda")
def _(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    residual: Tensor | None,
    stride: Ints,
    padding: Ints,
    dilation: Ints,
    groups: int,
) -> Tensor:
    if residual is None:
        return torch.cudnn_convolution_relu(x, weight, bias, stride, padding, dilation, groups)
    return torch.cudnn_convolution_add_relu(x, weight, residual, 1, bias, stride, padding, dilation, groups)


@conv_relu_op.register_fake
def _(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    residual: Tensor | None,
    stride: Ints,
    padding: Ints,
    dilation: Ints,
    groups: int,
) -> Tensor:
    return F.conv2d(x, weight, bias, stride, padding, dilation, groups)
