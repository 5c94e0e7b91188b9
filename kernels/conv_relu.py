"""``fastmask::conv_relu``: ``relu(conv(x) + bias + residual)`` in one kernel of cuDNN, through PyTorch's private API.

cuDNN always adds a residual times a factor. PyTorch's ``cudnn_convolution_relu`` passes the uninitialized output and 0
(ATen/native/cudnn/ConvShared.cpp); 0 times NaN is NaN. Without a residual, zeros are passed here instead, which do no
harm whether a kernel of cuDNN's reads them or not.
Speed: measured on an H200, bfloat16, torch 2.11 (bc309f8): the ends of R50's bottlenecks 28, 13, 9 and 8 us an image
with a residual of 256 to 2048 channels, where our own product takes 33, 17, 12 and 11.
"""

import math
import threading
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
    geometry = (stride, padding, dilation, groups)
    if residual is not None:
        return torch.cudnn_convolution_add_relu(x, weight, residual, 1, bias, *geometry)
    if type(x) is not Tensor:  # a trace's, without memory
        return torch.cudnn_convolution_relu(x, weight, bias, *geometry)
    return torch.cudnn_convolution_add_relu(x, weight, _zeros(x, weight, *geometry[:3]), 0, bias, *geometry)


_kept: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}  # for good: captured graphs may read each of them
_lock = threading.Lock()


def _zeros(x: Tensor, weight: Tensor, *geometry: Ints) -> Tensor:
    """Zeros of a convolution's output's shape, channels last, in memory that all of a device and dtype share."""
    sides = zip(x.shape[2:], weight.shape[2:], *geometry, strict=True)
    size = [(side + 2 * pad - dilate * (kernel - 1) - 1) // step + 1 for side, kernel, step, pad, dilate in sides]
    shape = (x.shape[0], *size, weight.shape[0])
    number = math.prod(shape)
    with _lock:
        kept = _kept.setdefault((x.device, x.dtype), [])
        if not kept or len(kept[-1]) < number:
            if torch.cuda.is_current_stream_capturing():  # the graph's own, which each replay fills
                return x.new_zeros(shape).permute(0, 3, 1, 2)
            with torch.inference_mode(False):
                kept.append(torch.zeros(max(number, 2 * len(kept[-1]) if kept else 0), dtype=x.dtype, device=x.device))
            torch.cuda.current_stream(x.device).synchronize()  # other streams read it as well
        return kept[-1][:number].view(shape).permute(0, 3, 1, 2)


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
