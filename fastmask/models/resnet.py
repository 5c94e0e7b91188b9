"""ResNet, ResNeXt, Wide ResNet (arXiv 1512.03385, 1611.05431, 1605.07146); torchvision.models.resnet's names, keys.

The stride of a bottleneck is in its 3x3 convolution, as in torchvision. Norms are folded into their convolutions where
they are fixed (see _fold.py).
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fastmask.checks import NotScriptable
from fastmask.models._api import WeightsEnum, overwrite_num_classes, register_model
from fastmask.models._fold import conv_norm
from fastmask.models._plain import is_plain
from fastmask.models._resnet_weights import (
    ResNet18_Weights,
    ResNet34_Weights,
    ResNet50_Weights,
    ResNet101_Weights,
    ResNet152_Weights,
    ResNeXt50_32X4D_Weights,
    ResNeXt101_32X8D_Weights,
    ResNeXt101_64X4D_Weights,
    Wide_ResNet50_2_Weights,
    Wide_ResNet101_2_Weights,
)

__all__ = [
    "BasicBlock",
    "Bottleneck",
    "ResNeXt50_32X4D_Weights",
    "ResNeXt101_32X8D_Weights",
    "ResNeXt101_64X4D_Weights",
    "ResNet",
    "ResNet18_Weights",
    "ResNet34_Weights",
    "ResNet50_Weights",
    "ResNet101_Weights",
    "ResNet152_Weights",
    "Wide_ResNet50_2_Weights",
    "Wide_ResNet101_2_Weights",
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "resnet152",
    "resnext50_32x4d",
    "resnext101_32x8d",
    "resnext101_64x4d",
    "wide_resnet50_2",
    "wide_resnet101_2",
]

Norm = Callable[..., nn.Module]


def conv3x3(in_planes: int, out_planes: int, stride: int = 1, groups: int = 1, dilation: int = 1) -> nn.Conv2d:
    """A 3x3 convolution that keeps the size at stride 1, without bias."""
    return nn.Conv2d(in_planes, out_planes, 3, stride, dilation, dilation, groups, bias=False)


def conv1x1(in_planes: int, out_planes: int, stride: int = 1) -> nn.Conv2d:
    """A 1x1 convolution without bias."""
    return nn.Conv2d(in_planes, out_planes, 1, stride, bias=False)


def _shortcut(downsample: nn.Module | None, x: Tensor) -> Tensor:
    if downsample is None:
        return x
    if is_plain(downsample, nn.Sequential) and len(downsample) == 2:
        return conv_norm(downsample[0], downsample[1], x)
    result: Tensor = downsample(x)
    return result


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut."""

    expansion = 1

    def __init__(
        self,
        inplanes: int,
        planes: int,
        stride: int = 1,
        downsample: nn.Module | None = None,
        groups: int = 1,
        base_width: int = 64,
        dilation: int = 1,
        norm_layer: Norm | None = None,
    ) -> None:
        super().__init__()
        if groups != 1 or base_width != 64 or dilation != 1:
            raise ValueError(
                f"BasicBlock must have groups, base_width, dilation 1, 64, 1, got {groups}, {base_width}, {dilation}"
            )
        norm_layer = norm_layer or nn.BatchNorm2d
        self.conv1 = conv3x3(inplanes, planes, stride)
        self.bn1 = norm_layer(planes)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = conv3x3(planes, planes)
        self.bn2 = norm_layer(planes)
        self.downsample = downsample
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(conv_norm(self.conv1, self.bn1, x))
        out = conv_norm(self.conv2, self.bn2, out)
        out += _shortcut(self.downsample, x)
        result: Tensor = self.relu(out)
        return result


class Bottleneck(nn.Module):
    """1x1 down, 3x3, 1x1 up, and a shortcut."""

    expansion = 4
    stride_in_1x1 = False

    def __init__(
        self,
        inplanes: int,
        planes: int,
        stride: int = 1,
        downsample: nn.Module | None = None,
        groups: int = 1,
        base_width: int = 64,
        dilation: int = 1,
        norm_layer: Norm | None = None,
    ) -> None:
        super().__init__()
        norm_layer = norm_layer or nn.BatchNorm2d
        width = int(planes * (base_width / 64.0)) * groups
        self.conv1 = conv1x1(inplanes, width)
        self.bn1 = norm_layer(width)
        self.conv2 = conv3x3(width, width, stride, groups, dilation)
        self.bn2 = norm_layer(width)
        self.conv3 = conv1x1(width, planes * self.expansion)
        self.bn3 = norm_layer(planes * self.expansion)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = downsample
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(conv_norm(self.conv1, self.bn1, x))
        out = self.relu(conv_norm(self.conv2, self.bn2, out))
        out = conv_norm(self.conv3, self.bn3, out)
        out += _shortcut(self.downsample, x)
        result: Tensor = self.relu(out)
        return result


class ResNet(NotScriptable, nn.Module):
    """The classifier; detection backbones take its stages by name.

    Args:
        block: :class:`BasicBlock` or :class:`Bottleneck`.
        layers: blocks in each of the four stages.
        num_classes: outputs.
        zero_init_residual: start each residual branch at zero (arXiv 1706.02677).
        groups, width_per_group: ResNeXt's and Wide ResNet's widths.
        replace_stride_with_dilation: for each of the last three stages.
        norm_layer: called with the channels; default BatchNorm2d.
    """

    def __init__(
        self,
        block: type[BasicBlock | Bottleneck],
        layers: list[int],
        num_classes: int = 1000,
        zero_init_residual: bool = False,
        groups: int = 1,
        width_per_group: int = 64,
        replace_stride_with_dilation: list[bool] | None = None,
        norm_layer: Norm | None = None,
    ) -> None:
        super().__init__()
        dilate = [False] * 3 if replace_stride_with_dilation is None else replace_stride_with_dilation
        if len(dilate) != 3:
            raise ValueError(f"replace_stride_with_dilation must have 3 elements, got {dilate}")
        self._norm_layer = norm_layer or nn.BatchNorm2d
        self.inplanes = 64
        self.dilation = 1
        self.groups = groups
        self.base_width = width_per_group
        self.conv1 = nn.Conv2d(3, self.inplanes, kernel_size=7, stride=2, padding=3, bias=False)
        self.bn1 = self._norm_layer(self.inplanes)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
        self.layer1 = self._make_layer(block, 64, layers[0])
        self.layer2 = self._make_layer(block, 128, layers[1], stride=2, dilate=dilate[0])
        self.layer3 = self._make_layer(block, 256, layers[2], stride=2, dilate=dilate[1])
        self.layer4 = self._make_layer(block, 512, layers[3], stride=2, dilate=dilate[2])
        steps = [1 if dilated else 2 for dilated in dilate]
        self.strides = [4 * math.prod(steps[:stage]) for stage in range(4)]  # image pixels per pixel of each stage
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(512 * block.expansion, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, nn.BatchNorm2d | nn.GroupNorm):
                nn.init.ones_(module.weight)
                nn.init.zeros_(module.bias)
        if zero_init_residual:
            for module in self.modules():
                if isinstance(module, Bottleneck | BasicBlock):
                    last = module.bn3 if isinstance(module, Bottleneck) else module.bn2
                    nn.init.zeros_(last.weight)  # type: ignore[arg-type]

    def _make_layer(
        self, block: type[BasicBlock | Bottleneck], planes: int, blocks: int, stride: int = 1, dilate: bool = False
    ) -> nn.Sequential:
        norm_layer, first_dilation = self._norm_layer, self.dilation
        if dilate:
            self.dilation *= stride
            stride = 1
        outplanes = planes * block.expansion
        downsample = None
        if stride != 1 or self.inplanes != outplanes:
            downsample = nn.Sequential(conv1x1(self.inplanes, outplanes, stride), norm_layer(outplanes))
        width = (self.groups, self.base_width)
        layers = [block(self.inplanes, planes, stride, downsample, *width, first_dilation, norm_layer)]
        self.inplanes = outplanes
        layers += [block(outplanes, planes, 1, None, *width, self.dilation, norm_layer) for _ in range(1, blocks)]
        return nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Images [N, 3, H, W] -> logits [N, num_classes]."""
        return self._forward_impl(x)

    def _forward_impl(self, x: Tensor) -> Tensor:  # torchvision's name, which subclasses override
        x = self.maxpool(self.relu(conv_norm(self.conv1, self.bn1, x)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        logits: Tensor = self.fc(torch.flatten(self.avgpool(x), 1))
        return logits


def _resnet(
    block: type[BasicBlock | Bottleneck], layers: list[int], weights: WeightsEnum | None, progress: bool, **options: Any
) -> ResNet:
    if weights is not None:
        options["num_classes"] = overwrite_num_classes(options.get("num_classes"), weights)
    model = ResNet(block, layers, **options)
    if weights is not None:
        model.load_state_dict(weights.get_state_dict(progress=progress))
    return model


@register_model(ResNet18_Weights, pretrained=ResNet18_Weights.IMAGENET1K_V1)
def resnet18(*, weights: ResNet18_Weights | None = None, progress: bool = True, **options: Any) -> ResNet:
    """Build resnet18; ``options`` are :class:`ResNet`'s."""
    return _resnet(BasicBlock, [2, 2, 2, 2], ResNet18_Weights.verify(weights), progress, **options)


@register_model(ResNet34_Weights, pretrained=ResNet34_Weights.IMAGENET1K_V1)
def resnet34(*, weights: ResNet34_Weights | None = None, progress: bool = True, **options: Any) -> ResNet:
    """Build resnet34; ``options`` are :class:`ResNet`'s."""
    return _resnet(BasicBlock, [3, 4, 6, 3], ResNet34_Weights.verify(weights), progress, **options)


@register_model(ResNet50_Weights, pretrained=ResNet50_Weights.IMAGENET1K_V1)
def resnet50(*, weights: ResNet50_Weights | None = None, progress: bool = True, **options: Any) -> ResNet:
    """Build resnet50; ``options`` are :class:`ResNet`'s."""
    return _resnet(Bottleneck, [3, 4, 6, 3], ResNet50_Weights.verify(weights), progress, **options)


@register_model(ResNet101_Weights, pretrained=ResNet101_Weights.IMAGENET1K_V1)
def resnet101(*, weights: ResNet101_Weights | None = None, progress: bool = True, **options: Any) -> ResNet:
    """Build resnet101; ``options`` are :class:`ResNet`'s."""
    return _resnet(Bottleneck, [3, 4, 23, 3], ResNet101_Weights.verify(weights), progress, **options)


@register_model(ResNet152_Weights, pretrained=ResNet152_Weights.IMAGENET1K_V1)
def resnet152(*, weights: ResNet152_Weights | None = None, progress: bool = True, **options: Any) -> ResNet:
    """Build resnet152; ``options`` are :class:`ResNet`'s."""
    return _resnet(Bottleneck, [3, 8, 36, 3], ResNet152_Weights.verify(weights), progress, **options)


@register_model(ResNeXt50_32X4D_Weights, pretrained=ResNeXt50_32X4D_Weights.IMAGENET1K_V1)
def resnext50_32x4d(*, weights: ResNeXt50_32X4D_Weights | None = None, progress: bool = True, **options: Any) -> ResNet:
    """Build resnext50_32x4d; ``options`` are :class:`ResNet`'s."""
    return _resnet(
        Bottleneck,
        [3, 4, 6, 3],
        ResNeXt50_32X4D_Weights.verify(weights),
        progress,
        groups=32,
        width_per_group=4,
        **options,
    )


@register_model(ResNeXt101_32X8D_Weights, pretrained=ResNeXt101_32X8D_Weights.IMAGENET1K_V1)
def resnext101_32x8d(
    *, weights: ResNeXt101_32X8D_Weights | None = None, progress: bool = True, **options: Any
) -> ResNet:
    """Build resnext101_32x8d; ``options`` are :class:`ResNet`'s."""
    return _resnet(
        Bottleneck,
        [3, 4, 23, 3],
        ResNeXt101_32X8D_Weights.verify(weights),
        progress,
        groups=32,
        width_per_group=8,
        **options,
    )


@register_model(ResNeXt101_64X4D_Weights, pretrained=ResNeXt101_64X4D_Weights.IMAGENET1K_V1)
def resnext101_64x4d(
    *, weights: ResNeXt101_64X4D_Weights | None = None, progress: bool = True, **options: Any
) -> ResNet:
    """Build resnext101_64x4d; ``options`` are :class:`ResNet`'s."""
    return _resnet(
        Bottleneck,
        [3, 4, 23, 3],
        ResNeXt101_64X4D_Weights.verify(weights),
        progress,
        groups=64,
        width_per_group=4,
        **options,
    )


@register_model(Wide_ResNet50_2_Weights, pretrained=Wide_ResNet50_2_Weights.IMAGENET1K_V1)
def wide_resnet50_2(*, weights: Wide_ResNet50_2_Weights | None = None, progress: bool = True, **options: Any) -> ResNet:
    """Build wide_resnet50_2; ``options`` are :class:`ResNet`'s."""
    return _resnet(
        Bottleneck, [3, 4, 6, 3], Wide_ResNet50_2_Weights.verify(weights), progress, width_per_group=128, **options
    )


@register_model(Wide_ResNet101_2_Weights, pretrained=Wide_ResNet101_2_Weights.IMAGENET1K_V1)
def wide_resnet101_2(
    *, weights: Wide_ResNet101_2_Weights | None = None, progress: bool = True, **options: Any
) -> ResNet:
    """Build wide_resnet101_2; ``options`` are :class:`ResNet`'s."""
    return _resnet(
        Bottleneck, [3, 4, 23, 3], Wide_ResNet101_2_Weights.verify(weights), progress, width_per_group=128, **options
    )
