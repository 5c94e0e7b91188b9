"""Box heads: features of RoIs -> class logits and box deltas; faster_rcnn.py has torchvision's names of them.

Source: torchvision/models/detection/faster_rcnn.py.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastmask.checks import ArgumentError, NotScriptable
from fastmask.models._plain import is_plain
from fastmask.ops.misc import Conv2dNormActivation


class TwoMLPHead(NotScriptable, nn.Module):
    """RoI features [N, C, h, w], flat ``in_channels``, through two linear layers -> [N, representation_size]."""

    def __init__(self, in_channels: int, representation_size: int) -> None:
        super().__init__()
        self.fc6 = nn.Linear(in_channels, representation_size)
        self.fc7 = nn.Linear(representation_size, representation_size)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.fc7(F.relu(self._fc6(x))))

    def _fc6(self, x: Tensor) -> Tensor:
        """``fc6`` of the flat features. In training there are more RoIs than outputs, in channels-last memory: the
        weight is reordered then, rather than the features and their gradients.
        """
        fc6 = self.fc6
        wants_grad = isinstance(x, Tensor) and x.requires_grad and not torch.compiler.is_exporting()  # fx has proxies
        if not (wants_grad and is_plain(fc6, nn.Linear) and self._has_channels_last(x)):
            y: Tensor = fc6(x.flatten(start_dim=1))
            return y
        weight = fc6.weight.unflatten(1, x.shape[1:]).permute(0, 2, 3, 1).flatten(1)
        return F.linear(x.permute(0, 2, 3, 1).flatten(1), weight, fc6.bias)

    def _has_channels_last(self, x: Tensor) -> bool:
        last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
        return last and len(x) > self.fc6.out_features


class FastRCNNConvFCHead(NotScriptable, nn.Sequential):
    """RoI features of ``input_size`` (C, h, w) through 3x3 convolutions and linear layers of the given widths."""

    def __init__(
        self,
        input_size: tuple[int, int, int],
        conv_layers: list[int],
        fc_layers: list[int],
        norm_layer: Callable[..., nn.Module] | None = None,
    ) -> None:
        channels, height, width = input_size
        blocks: list[nn.Module] = []
        for conv_channels in conv_layers:
            blocks.append(Conv2dNormActivation(channels, conv_channels, norm_layer=norm_layer))
            channels = conv_channels
        blocks.append(nn.Flatten())
        features = channels * height * width
        for fc_features in fc_layers:
            blocks += [nn.Linear(features, fc_features), nn.ReLU(inplace=True)]
            features = fc_features
        super().__init__(*blocks)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)


class FastRCNNPredictor(NotScriptable, nn.Module):
    """Box features [N, in_channels] (or [N, in_channels, 1, 1]) -> class logits [N, C] and box deltas [N, C * 4]."""

    def __init__(self, in_channels: int, num_classes: int) -> None:
        super().__init__()
        self.cls_score = nn.Linear(in_channels, num_classes)
        self.bbox_pred = nn.Linear(in_channels, num_classes * 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if x.ndim == 4 and x.shape[2:] != (1, 1):
            raise ArgumentError(f"x must be [N, C] or [N, C, 1, 1], got {tuple(x.shape)}")
        x = x.flatten(start_dim=1)
        return self.cls_score(x), self.bbox_pred(x)
