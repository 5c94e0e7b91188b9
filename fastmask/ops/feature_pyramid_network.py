"""Feature Pyramid Network (arXiv 1612.03144); torchvision.ops.feature_pyramid_network's names and state-dict keys."""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastmask.checks import ArgumentError, NotScriptable, is_autocast
from fastmask.ops.misc import Conv2dNormActivation


class ExtraFPNBlock(NotScriptable, nn.Module):
    """Base of the blocks that add coarser levels: they take and return lists of feature maps and names."""

    def forward(self, results: list[Tensor], x: list[Tensor], names: list[str]) -> tuple[list[Tensor], list[str]]:
        """``results``: the pyramid, ``x``: its input feature maps, ``names``: names of the maps; finest first."""
        raise NotImplementedError("subclasses of ExtraFPNBlock define forward")


class FeaturePyramidNetwork(NotScriptable, nn.Module):
    """Feature pyramid (FPN): lateral 1x1 and output 3x3 convolutions over a top-down sum of feature maps.

    Args:
        in_channels_list: channels of each input feature map, finest first.
        out_channels: channels of every output feature map.
        extra_blocks: adds levels at the coarse end.
        norm_layer: called with ``out_channels`` for each convolution.

    Raises:
        ValueError: a feature map has no channels.
        TypeError: ``extra_blocks`` is no ExtraFPNBlock.

    Source: torchvision/ops/feature_pyramid_network.py.
    """

    _version = 2  # 1 had bare convolutions: keys without the ".0"

    def __init__(
        self,
        in_channels_list: list[int],
        out_channels: int,
        extra_blocks: ExtraFPNBlock | None = None,
        norm_layer: Callable[..., nn.Module] | None = None,
    ) -> None:
        super().__init__()
        if 0 in in_channels_list:
            raise ArgumentError(f"in_channels_list must be positive, got {in_channels_list}")
        if extra_blocks is not None and not isinstance(extra_blocks, ExtraFPNBlock):
            kind = type(extra_blocks)
            raise TypeError(f"extra_blocks must be fastmask's ExtraFPNBlock, got {kind.__module__}.{kind.__name__}")
        self.inner_blocks, self.layer_blocks = nn.ModuleList(), nn.ModuleList()
        for in_channels in in_channels_list:  # in torchvision's order, so that a seed gives the same weights
            for blocks, channels, kernel in ((self.inner_blocks, in_channels, 1), (self.layer_blocks, out_channels, 3)):
                blocks.append(
                    Conv2dNormActivation(channels, out_channels, kernel, norm_layer=norm_layer, activation_layer=None)
                )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_uniform_(module.weight, a=1)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        self.extra_blocks = extra_blocks

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, local_metadata: dict[str, Any], *args: Any
    ) -> None:
        if (local_metadata.get("version") or 1) < 2:
            for blocks in ("inner_blocks", "layer_blocks"):
                for i in range(len(self.inner_blocks)):
                    for kind in ("weight", "bias"):
                        old = f"{prefix}{blocks}.{i}.{kind}"
                        if old in state_dict:
                            state_dict[f"{prefix}{blocks}.{i}.0.{kind}"] = state_dict.pop(old)
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)

    def forward(self, x: dict[str, Tensor]) -> dict[str, Tensor]:
        """Feature maps [N, C_l, H_l, W_l] by name, finest first -> the pyramid [N, out_channels, H_l, W_l]."""
        names, maps = list(x), list(x.values())
        top = self.get_result_from_inner_blocks(maps[-1], -1)
        results = [self.get_result_from_layer_blocks(top, -1)]
        for i in range(len(maps) - 2, -1, -1):
            lateral = self.get_result_from_inner_blocks(maps[i], i)
            top = lateral + _upsample(top, lateral.shape[-2:])
            results.insert(0, self.get_result_from_layer_blocks(top, i))
        if self.extra_blocks is not None:
            results, names = self.extra_blocks(results, maps, names)
        return OrderedDict(zip(names, results, strict=False))  # a block may name fewer, as in torchvision

    def get_result_from_inner_blocks(self, x: Tensor, idx: int) -> Tensor:
        """The lateral convolution of feature map ``idx``; subclasses may override it."""
        lateral: Tensor = self.inner_blocks[idx](x)
        return lateral

    def get_result_from_layer_blocks(self, x: Tensor, idx: int) -> Tensor:
        """The output convolution of level ``idx``; subclasses may override it."""
        level: Tensor = self.layer_blocks[idx](x)
        return level


@torch.fx.wrap
def _upsample(x: Tensor, size: Sequence[int]) -> Tensor:
    """Nearest-neighbor upsampling in x's dtype: autocast would take float32, although nothing is summed."""
    if not is_autocast(x):
        return F.interpolate(x, size=size, mode="nearest")
    with torch.autocast(x.device.type, enabled=False):
        return F.interpolate(x, size=size, mode="nearest")


class LastLevelMaxPool(ExtraFPNBlock):
    """Adds the level "pool": the coarsest level at every second pixel."""

    def forward(  # type: ignore[override]  # torchvision's names here, not those of its base
        self, x: list[Tensor], y: list[Tensor], names: list[str]
    ) -> tuple[list[Tensor], list[str]]:
        """``x``: the pyramid; ``y``: its input feature maps, which are not read."""
        x.append(F.max_pool2d(x[-1], kernel_size=1, stride=2))
        names.append("pool")
        return x, names


class LastLevelP6P7(ExtraFPNBlock):
    """Adds the levels "p6" and "p7": strided convolutions on P5, or on C5 where its channels differ (RetinaNet)."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.p6 = nn.Conv2d(in_channels, out_channels, 3, 2, 1)
        self.p7 = nn.Conv2d(out_channels, out_channels, 3, 2, 1)
        for module in (self.p6, self.p7):
            nn.init.kaiming_uniform_(module.weight, a=1)
            nn.init.zeros_(module.bias)  # type: ignore[arg-type]
        self.use_P5 = in_channels == out_channels

    def forward(self, p: list[Tensor], c: list[Tensor], names: list[str]) -> tuple[list[Tensor], list[str]]:
        """``p``: the pyramid; ``c``: its input feature maps."""
        p6 = self.p6(p[-1] if self.use_P5 else c[-1])
        p7 = self.p7(F.relu(p6))
        p += [p6, p7]
        names += ["p6", "p7"]
        return p, names
