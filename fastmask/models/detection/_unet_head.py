"""A U-Net as mask head, in place of the convolutions of an FCN: ``mask_head="unet"``."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from fastmask.checks import ArgumentError, NotScriptable
from fastmask.ops.misc import Conv2dNormActivation


class UNetMaskHead(NotScriptable, nn.Module):
    """A U-Net of one level (arXiv 1505.04597, figure 1) on RoI features [N, in_channels, h, w] -> [N, width, h, w].

    Two 3x3 convolutions at 14 x 14, max pooling, two at 7 x 7 with twice as many channels, a deconvolution back to
    14 x 14, which is concatenated with what was pooled, and two more; the usual predictor then makes 28 x 28 of it.
    Convolutions are padded, so that sides stay, which must be even. The channels are those with which it has about as
    many parameters as the FCN that it replaces.

    Args:
        in_channels: of the RoI features.
        width: channels that the predictor reads, and of each of the FCN's convolutions.
        depth: number of the FCN's 3x3 convolutions.
        norm_layer: called with a number of channels, behind each 3x3 convolution; None for none.
    """

    _kind = "unet"  # the models' mask_head

    def __init__(
        self, in_channels: int, width: int, depth: int, norm_layer: Callable[..., nn.Module] | None = None
    ) -> None:
        super().__init__()
        channels = choose_channels(in_channels, width, depth)

        def convolve(first: int, middle: int, last: int) -> nn.Sequential:
            pairs = ((first, middle), (middle, last))
            return nn.Sequential(*(Conv2dNormActivation(*pair, norm_layer=norm_layer) for pair in pairs))

        self.encode = convolve(in_channels, channels, channels)
        self.pool = nn.MaxPool2d(2)
        self.bottom = convolve(channels, 2 * channels, 2 * channels)
        self.up = nn.ConvTranspose2d(2 * channels, channels, 2, 2)
        self.decode = convolve(2 * channels, channels, width)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-2] % 2 or x.shape[-1] % 2:
            raise ArgumentError(f"x must have even sides, got {x.shape[-2]} x {x.shape[-1]}")
        skip = self.encode(x)
        hidden: Tensor = self.decode(torch.cat((self.up(self.bottom(self.pool(skip))), skip), dim=1))
        return hidden


def choose_channels(in_channels: int, width: int, depth: int) -> int:
    """Channels c of a U-Net with about as many weights as ``depth`` 3x3 convolutions of ``width`` channels.

    Its 3x3 convolutions have 9 (in c + c^2 + 2 c^2 + 4 c^2 + 2 c^2 + c width) weights, its deconvolution 8 c^2; the
    FCN has 9 (in width + (depth - 1) width^2). Rounded to a multiple of 8 for widths of 256, of 2 for 64.
    """
    square, linear = 9 + 8 / 9, in_channels + width
    budget = in_channels * width + (depth - 1) * width**2
    root = (math.sqrt(linear**2 + 4 * square * budget) - linear) / (2 * square)
    step = max(width // 32, 1)
    return max(round(root / step), 1) * step
