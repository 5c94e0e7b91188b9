"""Fused layers: bias, residual and ReLU in a layer's epilogue, without a pass of their own over the activations.

PyTorch's convolution on CUDA adds its bias in a second pass; ReLU and a residual are a third and a fourth. Here a 1x1
convolution is a matrix product whose epilogue adds bias and ReLU, and any other is followed by one pass for all three.
A stem's convolution, of half types, and its max pooling are kernels of fastmask.
For inference: :func:`fastmask.models.prepare.prepare_for_inference` puts these layers where plain ones were.
"""

from collections import OrderedDict
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastmask.kernels.bias_act import bias_act_op
from fastmask.kernels.conv_relu import conv_relu_op
from fastmask.kernels.fallback.stem import arrange_weight
from fastmask.kernels.linear_add_relu import linear_add_relu_op
from fastmask.kernels.max_pool2d import max_pool2d_op
from fastmask.kernels.predict_anchors import predict_anchors_op
from fastmask.kernels.stem_conv import stem_conv_op
from fastmask.ops.feature_pyramid_network import ExtraFPNBlock

ALIGNMENT = 16  # outputs: a row of a half type then begins at a multiple of 32 bytes


class FusedConv2d(nn.Module):
    """``relu(conv(x) + bias + residual)``: a convolution without bias, then one pass in place for the rest.

    Args:
        conv: a plain convolution.
        bias: [C], its own, or that and the shortcut's; None leaves out all that follows the convolution.
        relu: whether to clamp at 0.
    """

    def __init__(self, conv: nn.Conv2d, bias: Tensor | None, relu: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(conv.weight.detach(), False)
        self.bias = None if bias is None else nn.Parameter(bias.detach(), False)
        self.relu = relu
        self.in_channels = conv.in_channels
        self.geometry: tuple[Any, ...] = (conv.stride, conv.padding, conv.dilation, conv.groups)

    def extra_repr(self) -> str:
        return f"{tuple(self.weight.shape)}, bias={self.bias is not None}, relu={self.relu}"

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """x [B, C, H, W]; a residual of another size than the output's is read at the nearest pixel."""
        y = F.conv2d(x, self.weight, None, *self.geometry)
        if self.bias is not None:
            bias_act_op(y, self.bias, residual, self.relu)
        return y


class CudnnConv2d(FusedConv2d):
    """FusedConv2d with cuDNN's fused convolution, which adds bias and residual and clamps as it writes its output."""

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """See :class:`FusedConv2d`; the residual has the output's size."""
        assert self.bias is not None
        y: Tensor
        if self.weight.shape[2:] == (1, 1) and residual is not None and residual.shape[2:] == x.shape[2:]:
            # as a column of pixels: cuDNN then takes a matrix product, 189 us instead of 270 for R50's first stage
            column = conv_relu_op(
                x.flatten(2)[..., None], self.weight, self.bias, residual.flatten(2)[..., None], *self.geometry
            )
            y = column.view(*column.shape[:2], *x.shape[2:])
            return y
        y = conv_relu_op(x, self.weight, self.bias, residual, *self.geometry)
        return y


class Pointwise(FusedConv2d):
    """FusedConv2d for 1x1 and stride 1: a matrix product over pixels, whose epilogue is bias and ReLU."""

    def __init__(self, conv: nn.Conv2d, bias: Tensor | None, relu: bool) -> None:
        super().__init__(conv, bias, relu)
        self.weight = nn.Parameter(self.weight.flatten(1), False)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """See :class:`FusedConv2d`. Where channels are last, nothing is copied."""
        size = (x.shape[0], *x.shape[2:], len(self.weight))
        rows = x.permute(0, 2, 3, 1).flatten(0, 2)
        if residual is None:
            return linear(rows, self.weight, self.bias, self.relu).view(size).permute(0, 3, 1, 2)
        assert self.bias is not None
        if self.relu and residual.shape[2:] == x.shape[2:]:
            others = residual.permute(0, 2, 3, 1).flatten(0, 2)
            y: Tensor = linear_add_relu_op(rows, self.weight, self.bias, others)
            return y.view(size).permute(0, 3, 1, 2)
        y = linear(rows, self.weight, None, relu=False).view(size).permute(0, 3, 1, 2)
        bias_act_op(y, self.bias, residual, self.relu)
        return y


class StemConv2d(FusedConv2d):
    """A square convolution of an image's three channels, of stride 2, without bias: see kernels/stem_conv.py."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__(conv, None, relu=False)
        _, (self.padding, _), *_ = self.geometry
        self.weight = nn.Parameter(arrange_weight(self.weight, self.padding), False)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """x [B, 3, H, W]; fast where its pixels lie four elements apart, see program.py. There is no residual."""
        y: Tensor = stem_conv_op(x, self.weight, self.padding)
        return y


class FusedLinear(nn.Module):
    """``relu(linear(x))``, in one matrix product."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias = (nn.Parameter(values.detach(), False) for values in (layer.weight, layer.bias))

    def forward(self, x: Tensor) -> Tensor:
        """x [..., C] -> [..., O]."""
        y = linear(x.reshape(-1, x.shape[-1]), self.weight, self.bias, relu=True)
        return y.view(*x.shape[:-1], len(self.weight))


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, relu: bool) -> Tensor:
    """x [N, C], weight [O, C], bias [O] -> [N, O]; bias and ReLU are in the product's epilogue."""
    if bias is None:
        return x @ weight.t()
    if relu:
        return torch._addmm_activation(bias, x, weight.t())
    return torch.addmm(bias, x, weight.t())


class EpilogueAfterPool(nn.Module):
    """Max pooling of a convolution's output without bias, then bias and ReLU, on a quarter of the pixels.

    Bitwise the same as before it: rounding, adding a channel's bias and clamping are monotone.
    """

    def __init__(self, pool: nn.MaxPool2d, bias: Tensor) -> None:
        super().__init__()
        self.pool = pool
        self.bias = nn.Parameter(bias.detach(), False)
        sides = [value if isinstance(value, tuple) else (value, value) for value in (pool.kernel_size, pool.stride)]
        padding = pool.padding if isinstance(pool.padding, tuple) else (pool.padding, pool.padding)
        geometry = [*sides, padding]
        usual = all(len(set(side)) == 1 for side in geometry) and not pool.ceil_mode and pool.dilation in (1, (1, 1))
        self.geometry = [side[0] for side in geometry] if usual else None

    def forward(self, x: Tensor) -> Tensor:
        """x [B, C, H, W] -> [B, C, h, w]."""
        y: Tensor
        if self.geometry is not None:
            y = max_pool2d_op(x, self.bias, *self.geometry)
            return y
        y = self.pool(x)
        bias_act_op(y, self.bias, None, True)
        return y


class FusedLastLevelMaxPool(ExtraFPNBlock):
    """LastLevelMaxPool in one kernel."""

    def forward(self, results: list[Tensor], x: list[Tensor], names: list[str]) -> tuple[list[Tensor], list[str]]:
        """See :class:`LastLevelMaxPool`."""
        results.append(max_pool2d_op(results[-1], None, 1, 2, 0))
        names.append("pool")
        return results, names


class FusedBlock(nn.Module):
    """A ResNet's block of fused convolutions: BasicBlock or Bottleneck.

    Args:
        convs: all but the last.
        last: the one that the shortcut is added to.
        downsample: of the shortcut, if any; its bias may be in the last convolution's.
    """

    def __init__(self, convs: list[FusedConv2d], last: FusedConv2d, downsample: nn.Module | None) -> None:
        super().__init__()
        self.convs = nn.Sequential(*convs)
        self.last = last
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        y: Tensor = self.last(self.convs(x), shortcut)
        return y


class FusedPyramid(nn.Module):
    """A FeaturePyramidNetwork that adds the coarser level in the lateral convolution's epilogue, without upsampling it.

    Args:
        inner, layers: lateral and output convolutions, finest first.
        extra_blocks: see :class:`FeaturePyramidNetwork`.
    """

    def __init__(self, inner: list[FusedConv2d], layers: list[FusedConv2d], extra_blocks: ExtraFPNBlock | None) -> None:
        super().__init__()
        self.inner_blocks, self.layer_blocks = nn.ModuleList(inner), nn.ModuleList(layers)
        self.extra_blocks = extra_blocks

    def forward(self, x: dict[str, Tensor]) -> dict[str, Tensor]:
        """See :meth:`FeaturePyramidNetwork.forward`."""
        names, maps = list(x), list(x.values())
        top = self.inner_blocks[-1](maps[-1])
        results = [self.layer_blocks[-1](top)]
        for i in range(len(maps) - 2, -1, -1):
            top = self.inner_blocks[i](maps[i], top)
            results.insert(0, self.layer_blocks[i](top))
        if self.extra_blocks is not None:
            results, names = self.extra_blocks(results, maps, names)
        return OrderedDict(zip(names, results, strict=False))


class FusedRPNHead(nn.Module):
    """An RPNHead that reads its last hidden maps once, for the logits and deltas of all levels.

    Args:
        convs: its 3x3 convolutions, fused, the last of them without its epilogue.
        bias: bias of the last 3x3 convolution.
        logits, deltas: its 1x1 convolutions.
    """

    def __init__(self, convs: list[FusedConv2d], bias: Tensor, logits: nn.Conv2d, deltas: nn.Conv2d) -> None:
        super().__init__()
        self.convs = nn.Sequential(*convs)
        self.hidden_bias = nn.Parameter(bias.detach(), False)
        self.num_anchors = logits.out_channels
        self.weight = nn.Parameter(torch.cat([logits.weight.detach(), deltas.weight.detach()]).flatten(1), False)
        assert logits.bias is not None
        assert deltas.bias is not None
        self.bias = nn.Parameter(torch.cat([logits.bias.detach(), deltas.bias.detach()]), False)

    def forward(self, x: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """See :meth:`RPNHead.forward`; logits and deltas are channels-last, views of one tensor each."""
        hidden = [self.convs(feature) for feature in x]
        outputs = predict_anchors_op(hidden, self.hidden_bias, self.weight, self.bias, self.num_anchors)
        pixels = [level.shape[0] * level.shape[2] * level.shape[3] for level in hidden]
        logits, deltas = (
            [
                values.view(level.shape[0], *level.shape[2:], values.shape[1]).permute(0, 3, 1, 2)
                for level, values in zip(hidden, output.split(pixels), strict=True)
            ]
            for output in outputs
        )
        return logits, deltas


class FusedBoxPredictor(nn.Module):
    """A FastRCNNPredictor as one matrix product, whose outputs are filled up to a multiple of 16.

    Matrix products of 91 outputs, no multiple of 8, take kernels that read and write elements one by one. The deltas
    come first, so that each class's four lie side by side at a multiple of their own size.

    Args:
        logits, deltas: its linear layers.
    """

    def __init__(self, logits: nn.Linear, deltas: nn.Linear) -> None:
        super().__init__()
        self.sizes = (deltas.out_features, logits.out_features)
        padding = -sum(self.sizes) % ALIGNMENT
        weight, bias = (
            torch.cat([getattr(layer, n).detach() for layer in (deltas, logits)]) for n in ("weight", "bias")
        )
        self.weight = nn.Parameter(F.pad(weight, (0, 0, 0, padding)), False)
        self.bias = nn.Parameter(F.pad(bias, (0, padding)), False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """See :class:`FastRCNNPredictor`; logits and deltas are views of one tensor."""
        y = self.product(x.flatten(start_dim=1))
        deltas, logits, _ = y.split([*self.sizes, len(self.weight) - sum(self.sizes)], dim=1)
        return logits, deltas

    def product(self, x: Tensor) -> Tensor:
        """x [N, C] -> [N, O]."""
        return linear(x, self.weight, self.bias, relu=False)
