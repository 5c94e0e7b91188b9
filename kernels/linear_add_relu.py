"""``fastmask::linear_add_relu``: ``relu(x W' + bias + residual)``: the end of a ResNet's bottleneck in one kernel.

Its 1x1 convolution as a matrix product over pixels, and all that follows it (arXiv 1512.03385, section 3.1). Half types
are summed in float32 and rounded once.
"""

import torch
from torch import Tensor

from fastmask.kernels import cpu_bias_act
from fastmask.kernels.launch import HAS_TRITON, register

linear_add_relu_op = torch.library.custom_op("fastmask::linear_add_relu", cpu_bias_act.linear_add_relu, mutates_args=())


if HAS_TRITON:
    from fastmask.kernels import gpu_linear_add_relu

    register(linear_add_relu_op, gpu_linear_add_relu.linear_add_relu, cpu_bias_act.linear_add_relu)


@linear_add_relu_op.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[0])
