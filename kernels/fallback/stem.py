"""Stem of a ResNet, eager fallback: convolution and max pooling."""

import torch
import torch.nn.functional as F
from torch import Tensor

from fastmask.kernels.fallback import bias_act as bias_act_fallback

CHANNELS = 3  # of an image
STRIDE = 2
PIXEL = 4  # elements of a pixel, in images that the kernel takes and in arranged weights
MIN_DEPTH, MAX_DEPTH = 16, 32  # elements of a window's row: the least of a tensor core, and eight pixels


def has_gaps(x: Tensor) -> bool:
    """Whether images [B, C, H, W] lie in memory as the first channels of a channels-last [B, 4, H, W]."""
    _, _, height, width = x.shape
    size = PIXEL * height * width
    return x.stride()[1:] == (1, PIXEL * width, PIXEL) and (x.shape[0] == 1 or x.stride(0) == size)


def row_depth(kernel_size: int, padding: int) -> int:
    """Elements of a window's row as the kernel reads it: whole pairs of pixels, as many as a power of 2."""
    elements = PIXEL * (padding % STRIDE + kernel_size)
    return max(1 << (elements - 1).bit_length(), MIN_DEPTH)


def arrange_weight(weight: Tensor, padding: int) -> Tensor:
    """Arrange a convolution's weight [O, 3, k, k] -> [k, D, O], a window's row of D elements after the other.

    A row begins at the even pixel at or before the window, and each pixel has PIXEL elements; weights beside the
    window and of a fourth channel are zeros.
    """
    kernel_size, lead = weight.shape[2], PIXEL * (padding % STRIDE)
    rows = F.pad(weight.permute(2, 3, 1, 0), (0, 0, 0, PIXEL - CHANNELS)).flatten(1, 2)
    return F.pad(rows, (0, 0, lead, row_depth(kernel_size, padding) - lead - rows.shape[1])).contiguous()


def stem_conv(x: Tensor, weight: Tensor, padding: int) -> Tensor:
    """Images x [B, 3, H, W], weight [k, D, O] of :func:`arrange_weight` -> [B, O, H', W'], of stride 2, channels-last.

    ``F.conv2d(x, weight, stride=2, padding=padding)`` of the weight before it was arranged.
    """
    kernel_size, lead = len(weight), PIXEL * (padding % STRIDE)
    rows = weight[:, lead : lead + PIXEL * kernel_size].unflatten(1, (kernel_size, PIXEL))
    y = F.conv2d(x, rows[:, :, :CHANNELS].permute(3, 2, 0, 1), stride=STRIDE, padding=padding)
    return y.contiguous(memory_format=torch.channels_last)


def max_pool2d(x: Tensor, bias: Tensor | None, kernel_size: int, stride: int, padding: int) -> Tensor:
    """x [B, C, H, W] -> [B, C, H', W'], the largest of each window; with a bias [C], relu(that + bias)."""
    y = F.max_pool2d(x, kernel_size, stride, padding)
    if bias is not None:
        bias_act_fallback.bias_act_(y, bias, None, True)
    return y
