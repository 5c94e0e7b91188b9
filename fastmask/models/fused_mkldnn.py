"""Fused layers for CPUs: oneDNN's convolutions and matrix products, which add bias and residual and clamp themselves.

Eager PyTorch has them as ``torch.ops.mkldnn``, for torch.compile's inductor. Weights stay plain tensors, so that copies
and files of a prepared model are as of any other; oneDNN lays them out in each call.
PyTorch's own float32 layers use oneDNN less: a 1x1 convolution of fewer than 16 images on one thread is an im2col
(``ConvParams::use_mkldnn`` in ATen/native/Convolution.cpp), a linear layer is MKL's.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastmask.models.fused import FusedBlock, FusedBoxPredictor, FusedConv2d, FusedLinear

OPS = ("_convolution_pointwise", "_convolution_pointwise_", "_linear_pointwise")


def has_mkldnn(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether these layers run on a device in a dtype, with this PyTorch and CPU."""
    mkldnn = torch.backends.mkldnn
    if device.type != "cpu" or not (mkldnn.is_available() and mkldnn.enabled):  # type: ignore[attr-defined]
        return False
    if not all(hasattr(torch.ops.mkldnn, name) for name in OPS):
        return False
    return dtype == torch.float32 or (dtype == torch.bfloat16 and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported()))


class MkldnnConv2d(FusedConv2d):
    """FusedConv2d in one call of oneDNN."""

    def forward(self, x: Tensor, residual: Tensor | None = None, overwrite: bool = False) -> Tensor:
        """See :class:`FusedConv2d`; ``overwrite``: the output may take the memory of a residual of its size."""
        stride, padding, dilation, groups = self.geometry
        layer, relu = (self.weight, self.bias, padding, stride, dilation, groups), "relu" if self.relu else None
        y: Tensor
        if residual is None:
            y = torch.ops.mkldnn._convolution_pointwise(x, *layer, relu or "none", [], "")
            return y
        size = [
            (side + 2 * pad - gap * (kernel - 1) - 1) // step + 1
            for side, pad, gap, kernel, step in zip(
                x.shape[2:], padding, dilation, self.weight.shape[2:], stride, strict=True
            )
        ]
        if list(residual.shape[2:]) != size:
            residual, overwrite = F.interpolate(residual, size=size, mode="nearest"), True
        if overwrite:
            op = torch.ops.mkldnn._convolution_pointwise_.binary
            y = op(residual, x, *layer, "add", 1.0, relu, [], None)
        else:
            op = torch.ops.mkldnn._convolution_pointwise.binary
            y = op(x, residual, *layer, "add", 1.0, relu, [], None)
        return y


class MkldnnBlock(FusedBlock):
    """FusedBlock that writes its output over the shortcut, where nobody else reads that."""

    overwrites = False  # the input; fuse_epilogues knows whether this block alone reads it

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        own = isinstance(self.downsample, MkldnnConv2d)
        y: Tensor = self.last(self.convs(x), shortcut, own or (self.downsample is None and self.overwrites))
        return y


class MkldnnLinear(FusedLinear):
    """FusedLinear in one call of oneDNN."""

    def forward(self, x: Tensor) -> Tensor:
        """x [..., C] -> [..., O]."""
        y: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "relu", [], "")
        return y


class MkldnnBoxPredictor(FusedBoxPredictor):
    """FusedBoxPredictor by oneDNN's matrix product."""

    def product(self, x: Tensor) -> Tensor:
        """x [N, C] -> [N, O]."""
        y: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")
        return y


class MkldnnRPNHead(nn.Module):
    """An RPNHead whose logits and deltas are one convolution's, which reads the hidden map once.

    Args:
        convs: its 3x3 convolutions, fused.
        logits, deltas: its 1x1 convolutions.
    """

    def __init__(self, convs: list[FusedConv2d], logits: nn.Conv2d, deltas: nn.Conv2d) -> None:
        super().__init__()
        self.convs = nn.Sequential(*convs)
        self.num_anchors = logits.out_channels
        assert logits.bias is not None
        assert deltas.bias is not None
        both = nn.Conv2d(logits.in_channels, logits.out_channels + deltas.out_channels, 1)
        both.weight = nn.Parameter(torch.cat([logits.weight.detach(), deltas.weight.detach()]), False)
        self.both = MkldnnConv2d(both, torch.cat([logits.bias.detach(), deltas.bias.detach()]), relu=False)

    def forward(self, x: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """See :meth:`RPNHead.forward`; logits and deltas are views of one tensor a level."""
        outputs = [self.both(self.convs(feature)) for feature in x]
        logits, deltas = zip(*(output.tensor_split((self.num_anchors,), dim=1) for output in outputs), strict=True)
        return list(logits), list(deltas)
