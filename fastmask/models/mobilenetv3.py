"""MobileNetV3 (arXiv 1905.02244); torchvision.models.mobilenetv3's names and state-dict keys."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fastmask.checks import NotScriptable
from fastmask.models._api import WeightsEnum, overwrite_num_classes, register_model
from fastmask.models._resnet_weights import imagenet_weights
from fastmask.ops.misc import Conv2dNormActivation, SqueezeExcitation

__all__ = [
    "MobileNetV3",
    "MobileNet_V3_Large_Weights",
    "MobileNet_V3_Small_Weights",
    "mobilenet_v3_large",
    "mobilenet_v3_small",
]

Norm = Callable[..., nn.Module]
DIVISOR = 8  # of all numbers of channels
VARIANTS = ("width_mult", "reduced_tail", "dilated")  # the builders' arguments that choose the blocks
# kernel, expanded channels, output channels, squeeze and excitation, activation, stride; tables 1 and 2 of the paper.
# A tail block's channels are halved by reduced_tail, and its stride becomes a dilation by dilated.
BLOCKS = {
    "mobilenet_v3_large": [
        (3, 16, 16, False, "RE", 1),
        (3, 64, 24, False, "RE", 2),
        (3, 72, 24, False, "RE", 1),
        (5, 72, 40, True, "RE", 2),
        (5, 120, 40, True, "RE", 1),
        (5, 120, 40, True, "RE", 1),
        (3, 240, 80, False, "HS", 2),
        (3, 200, 80, False, "HS", 1),
        (3, 184, 80, False, "HS", 1),
        (3, 184, 80, False, "HS", 1),
        (3, 480, 112, True, "HS", 1),
        (3, 672, 112, True, "HS", 1),
        (5, 672, 160, True, "HS", 2),
        (5, 960, 160, True, "HS", 1),
        (5, 960, 160, True, "HS", 1),
    ],
    "mobilenet_v3_small": [
        (3, 16, 16, True, "RE", 2),
        (3, 72, 24, False, "RE", 2),
        (3, 88, 24, False, "RE", 1),
        (5, 96, 40, True, "HS", 2),
        (5, 240, 40, True, "HS", 1),
        (5, 240, 40, True, "HS", 1),
        (5, 120, 48, True, "HS", 1),
        (5, 144, 48, True, "HS", 1),
        (5, 288, 96, True, "HS", 2),
        (5, 576, 96, True, "HS", 1),
        (5, 576, 96, True, "HS", 1),
    ],
}
TAIL = 3  # blocks
LAST_CHANNELS = {"mobilenet_v3_large": 1280, "mobilenet_v3_small": 1024}
STEM_CHANNELS = 16
HARD_GATE = partial(SqueezeExcitation, scale_activation=nn.Hardsigmoid)  # piecewise linear


def divisible_channels(channels: float, divisor: int = DIVISOR) -> int:
    """The multiple of ``divisor`` nearest to a number of channels, at least one, and none that loses a tenth of it."""
    rounded = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * channels else rounded


class InvertedResidualConfig:
    """One block: channels (multiplied by ``width_mult``), kernel, activation ("RE" or "HS"), stride and dilation."""

    def __init__(
        self,
        input_channels: int,
        kernel: int,
        expanded_channels: int,
        out_channels: int,
        use_se: bool,
        activation: str,
        stride: int,
        dilation: int,
        width_mult: float,
    ) -> None:
        self.input_channels = self.adjust_channels(input_channels, width_mult)
        self.kernel = kernel
        self.expanded_channels = self.adjust_channels(expanded_channels, width_mult)
        self.out_channels = self.adjust_channels(out_channels, width_mult)
        self.use_se = use_se
        self.use_hs = activation == "HS"
        self.stride = stride
        self.dilation = dilation

    @staticmethod
    def adjust_channels(channels: int, width_mult: float) -> int:
        """A number of channels at another width, a multiple of 8."""
        return divisible_channels(channels * width_mult)


class InvertedResidual(NotScriptable, nn.Module):
    """1x1 up, depthwise, squeeze and excitation, 1x1 down, and a shortcut where shapes allow one (section 5)."""

    def __init__(
        self,
        cnf: InvertedResidualConfig,
        norm_layer: Norm,
        se_layer: Callable[..., nn.Module] = HARD_GATE,
    ) -> None:
        super().__init__()
        if cnf.stride not in (1, 2):
            raise ValueError(f"stride must be 1 or 2, got {cnf.stride}")
        self.use_res_connect = cnf.stride == 1 and cnf.input_channels == cnf.out_channels
        wide = cnf.expanded_channels
        conv = partial(
            Conv2dNormActivation, norm_layer=norm_layer, activation_layer=nn.Hardswish if cnf.use_hs else nn.ReLU
        )
        layers: list[nn.Module] = []
        if wide != cnf.input_channels:
            layers.append(conv(cnf.input_channels, wide, kernel_size=1))
        stride = 1 if cnf.dilation > 1 else cnf.stride
        layers.append(conv(wide, wide, kernel_size=cnf.kernel, stride=stride, dilation=cnf.dilation, groups=wide))
        if cnf.use_se:
            layers.append(se_layer(wide, divisible_channels(wide // 4)))
        layers.append(conv(wide, cnf.out_channels, kernel_size=1, activation_layer=None))
        self.block = nn.Sequential(*layers)
        self.out_channels = cnf.out_channels
        self._is_cn = cnf.stride > 1  # torchvision's name: a stage begins here

    def forward(self, input: Tensor) -> Tensor:
        result: Tensor = self.block(input)
        if self.use_res_connect:
            result += input
        return result


class MobileNetV3(NotScriptable, nn.Module):
    """The classifier; detection backbones take its ``features`` by number.

    Args:
        inverted_residual_setting: configurations of the blocks.
        last_channel: outputs of the first linear layer.
        num_classes: outputs.
        block: called with a configuration and the norm; default :class:`InvertedResidual`.
        norm_layer: called with the channels; default BatchNorm2d with an eps of 0.001 and a momentum of 0.01.
        dropout: before the last layer.
        **kwargs: width_mult, reduced_tail and dilated, which the configurations hold already.
    """

    def __init__(
        self,
        inverted_residual_setting: list[InvertedResidualConfig],
        last_channel: int,
        num_classes: int = 1000,
        block: Callable[..., nn.Module] | None = None,
        norm_layer: Norm | None = None,
        dropout: float = 0.2,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        settings = inverted_residual_setting
        is_list = isinstance(settings, Sequence) and all(isinstance(s, InvertedResidualConfig) for s in settings)
        if not is_list:
            raise TypeError(f"inverted_residual_setting must be a list of InvertedResidualConfig, got {settings!r}")
        if not settings:
            raise ValueError("inverted_residual_setting must have a block at least, got none")
        if unknown := kwargs.keys() - set(VARIANTS):
            raise TypeError(f"arguments must be MobileNetV3's or {', '.join(VARIANTS)}, got {', '.join(unknown)}")
        block = block or InvertedResidual
        norm_layer = norm_layer or partial(nn.BatchNorm2d, eps=0.001, momentum=0.01)
        conv = partial(Conv2dNormActivation, norm_layer=norm_layer, activation_layer=nn.Hardswish)
        channels = settings[-1].out_channels
        self.features = nn.Sequential(
            conv(3, settings[0].input_channels, kernel_size=3, stride=2),
            *(block(setting, norm_layer) for setting in settings),
            conv(channels, 6 * channels, kernel_size=1),
        )
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(
            nn.Linear(6 * channels, last_channel),
            nn.Hardswish(inplace=True),
            nn.Dropout(p=dropout, inplace=True),
            nn.Linear(last_channel, num_classes),
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")
            elif isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, 0, 0.01)
            elif isinstance(module, nn.BatchNorm2d | nn.GroupNorm):
                nn.init.ones_(module.weight)
            else:
                continue
            if module.bias is not None:
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Images [N, 3, H, W] -> logits [N, num_classes]."""
        return self._forward_impl(x)

    def _forward_impl(self, x: Tensor) -> Tensor:  # torchvision's name, which subclasses override
        logits: Tensor = self.classifier(torch.flatten(self.avgpool(self.features(x)), 1))
        return logits


class MobileNet_V3_Large_Weights(WeightsEnum):  # noqa: N801 -- torchvision's name
    """ImageNet weights of mobilenet_v3_large."""

    IMAGENET1K_V1 = imagenet_weights("mobilenet_v3_large-8738ca79.pth", 5483032, 74.042)
    IMAGENET1K_V2 = imagenet_weights("mobilenet_v3_large-5c1a4163.pth", 5483032, 75.274)
    DEFAULT = IMAGENET1K_V2


class MobileNet_V3_Small_Weights(WeightsEnum):  # noqa: N801
    """ImageNet weights of mobilenet_v3_small."""

    IMAGENET1K_V1 = imagenet_weights("mobilenet_v3_small-047dcff4.pth", 2542856, 67.668)
    DEFAULT = IMAGENET1K_V1


def _list_blocks(
    name: str, width_mult: float = 1.0, reduced_tail: bool = False, dilated: bool = False, **_: Any
) -> tuple[list[InvertedResidualConfig], int]:
    """The blocks' configurations and the classifier's width."""
    divisor, dilation = 2 if reduced_tail else 1, 2 if dilated else 1
    settings, channels = [], STEM_CHANNELS
    first_of_tail = len(BLOCKS[name]) - TAIL
    for i, (kernel, expanded, out, use_se, activation, stride) in enumerate(BLOCKS[name]):
        if i >= first_of_tail:
            out //= divisor
        if i > first_of_tail:
            expanded //= divisor
        args = (channels, kernel, expanded, out, use_se, activation, stride, dilation if i >= first_of_tail else 1)
        settings.append(InvertedResidualConfig(*args, width_mult=width_mult))
        channels = out
    return settings, InvertedResidualConfig.adjust_channels(LAST_CHANNELS[name] // divisor, width_mult)


def _mobilenet_v3(name: str, weights: WeightsEnum | None, progress: bool, **options: Any) -> MobileNetV3:
    if weights is not None:
        options["num_classes"] = overwrite_num_classes(options.get("num_classes"), weights)
    model = MobileNetV3(*_list_blocks(name, **options), **options)
    if weights is not None:
        model.load_state_dict(weights.get_state_dict(progress=progress))
    return model


@register_model(MobileNet_V3_Large_Weights, pretrained=MobileNet_V3_Large_Weights.IMAGENET1K_V1)
def mobilenet_v3_large(
    *, weights: MobileNet_V3_Large_Weights | None = None, progress: bool = True, **kwargs: Any
) -> MobileNetV3:
    """Build mobilenet_v3_large; ``kwargs`` are :class:`MobileNetV3`'s, and width_mult, reduced_tail and dilated."""
    return _mobilenet_v3("mobilenet_v3_large", MobileNet_V3_Large_Weights.verify(weights), progress, **kwargs)


@register_model(MobileNet_V3_Small_Weights, pretrained=MobileNet_V3_Small_Weights.IMAGENET1K_V1)
def mobilenet_v3_small(
    *, weights: MobileNet_V3_Small_Weights | None = None, progress: bool = True, **kwargs: Any
) -> MobileNetV3:
    """Build mobilenet_v3_small; ``kwargs`` as :func:`mobilenet_v3_large`'s."""
    return _mobilenet_v3("mobilenet_v3_small", MobileNet_V3_Small_Weights.verify(weights), progress, **kwargs)
