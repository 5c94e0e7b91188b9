"""``fastmask::bias_act_``: bias, residual and ReLU added to a convolution's output in one pass, in place.

y <- relu(y + bias + residual), each of the last two where asked for: what follows a convolution in a ResNet (arXiv
1512.03385, section 3.1), and in a pyramid's top-down path (arXiv 1612.03144, section 3), where the residual is the
coarser map at the nearest pixel, as ``F.interpolate`` finds it. Half types are summed in float32 and rounded once.
"""

import torch
from torch import Tensor

from fastmask.kernels.fallback import bias_act as bias_act_fallback
from fastmask.kernels.launch import HAS_TRITON, register

bias_act_op = torch.library.custom_op("fastmask::bias_act_", bias_act_fallback.bias_act_, mutates_args={"y"})


if HAS_TRITON:
    from fastmask.kernels.triton import bias_act as bias_act_triton

    register(bias_act_op, bias_act_triton.bias_act_, bias_act_fallback.bias_act_)


@bias_act_op.register_fake
def _(y: Tensor, bias: Tensor, residual: Tensor | None, relu: bool) -> None:
    return None
