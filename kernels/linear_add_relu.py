"""``fastmask::linear_add_relu``: ``relu(x W' + bias + residual)``, the end of a ResNet's bottleneck in one kernel.

The bottleneck's last 1x1 convolution is a matrix product over pixels; bias, residual and ReLU follow it (arXiv
1512.03385, section 3.1). Half types are summed in float32 and rounded once.
"""

import torch
from torch import Tensor

from fastmask.kernels.fallback import bias_act as bias_act_fallback
from fastmask.kernels.launch import HAS_TRITON, register

linear_add_relu_op = torch.library.custom_op(
    "fastmask::linear_add_relu", bias_act_fallback.linear_add_relu, mutates_args=()
)


if HAS_TRITON:
    from fastmask.kernels.triton import linear_add_relu as linear_add_relu_triton

    register(linear_add_relu_op, linear_add_relu_triton.linear_add_relu, bias_act_fallback.linear_add_relu)


@linear_add_relu_op.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[0])
