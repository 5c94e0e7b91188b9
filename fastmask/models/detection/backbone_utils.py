"""ResNets and MobileNets with a feature pyramid; torchvision.models.detection.backbone_utils' names."""

import math
import warnings
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from fastmask.checks import NotScriptable
from fastmask.models import mobilenetv3, resnet
from fastmask.models._api import WeightsEnum, get_model_weights
from fastmask.models._legacy import accept_legacy
from fastmask.models._utils import IntermediateLayerGetter
from fastmask.ops.feature_pyramid_network import ExtraFPNBlock, FeaturePyramidNetwork, LastLevelMaxPool
from fastmask.ops.misc import FrozenBatchNorm2d

Norm = Callable[..., nn.Module]
MOBILENETS = ("mobilenet_v3_large", "mobilenet_v3_small")


class BackboneWithFPN(NotScriptable, nn.Module):
    """Stages of a classifier and the pyramid on top of them.

    Args:
        backbone: a module whose children run one after the other.
        return_layers: {child's name: name of its feature map}.
        in_channels_list: channels of these feature maps, finest first.
        out_channels: channels of every level of the pyramid.
        extra_blocks: adds coarser levels; None for LastLevelMaxPool.
        norm_layer: norms of the pyramid.

    Attributes:
        out_channels: channels of every level.
        strides: image pixels per feature pixel of each map, if known when it was built; else None, and the model infers
            them from each batch.
    """

    def __init__(
        self,
        backbone: nn.Module,
        return_layers: dict[str, str],
        in_channels_list: list[int],
        out_channels: int,
        extra_blocks: ExtraFPNBlock | None = None,
        norm_layer: Norm | None = None,
    ) -> None:
        super().__init__()
        self.body = IntermediateLayerGetter(backbone, return_layers=return_layers)
        self.fpn = FeaturePyramidNetwork(in_channels_list, out_channels, extra_blocks or LastLevelMaxPool(), norm_layer)
        self.out_channels = out_channels
        self.strides: dict[str, int] | None = None

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Images [B, C, H, W] -> the pyramid by name, finest first."""
        pyramid: dict[str, Tensor] = self.fpn(self.body(x))
        return pyramid


@accept_legacy(
    weights=("pretrained", lambda options: get_model_weights(options["backbone_name"])["IMAGENET1K_V1"]),
)
def resnet_fpn_backbone(
    *,
    backbone_name: str,
    weights: WeightsEnum | None,
    norm_layer: Norm = FrozenBatchNorm2d,
    trainable_layers: int = 3,
    returned_layers: list[int] | None = None,
    extra_blocks: ExtraFPNBlock | None = None,
) -> BackboneWithFPN:
    """A ResNet by name with a pyramid of 256 channels, its first stages frozen.

    Args:
        backbone_name: any builder of :mod:`fastmask.models.resnet`.
        weights: weights of the ResNet.
        norm_layer: norms of the ResNet.
        trainable_layers: how many of layer4, layer3, layer2, layer1, conv1 are trained, in this order; 5 adds bn1.
        returned_layers: input stages of the pyramid, in [1, 4]; None for all.
        extra_blocks: adds coarser levels; None for LastLevelMaxPool.

    Source: torchvision/models/detection/backbone_utils.py.
    """
    backbone = getattr(resnet, backbone_name)(weights=weights, norm_layer=norm_layer)
    return _resnet_fpn_extractor(backbone, trainable_layers, returned_layers, extra_blocks)


def _freeze_stages(backbone: resnet.ResNet, trainable_layers: int) -> None:
    """Freeze all but so many of layer4, layer3, layer2, layer1, conv1, in this order; 5 trains bn1, too."""
    if not 0 <= trainable_layers <= 5:
        raise ValueError(f"trainable_layers: Trainable layers should be in the range [0,5], got {trainable_layers}")
    trained = ["layer4", "layer3", "layer2", "layer1", "conv1"][:trainable_layers]
    if trainable_layers == 5:
        trained.append("bn1")
    for name, parameter in backbone.named_parameters():
        if not name.startswith(tuple(trained)):
            parameter.requires_grad_(False)


def _move_strides(backbone: nn.Module) -> None:
    """Move the strides of bottlenecks into their first 1x1 convolutions.

    There the paper's own weights have them (arXiv 1512.03385), which detectron2's models begin with.

    Raises:
        ValueError: there are no bottlenecks.
    """
    blocks = [module for module in backbone.modules() if isinstance(module, resnet.Bottleneck)]
    if not blocks:
        raise ValueError("stride_in_1x1 must be False with a backbone without bottlenecks, got True")
    for block in blocks:
        if not block.stride_in_1x1:
            block.conv1.stride, block.conv2.stride = block.conv2.stride, block.conv1.stride
            block.stride_in_1x1 = True


def _resnet_fpn_extractor(
    backbone: resnet.ResNet,
    trainable_layers: int,
    returned_layers: list[int] | None = None,
    extra_blocks: ExtraFPNBlock | None = None,
    norm_layer: Norm | None = None,
) -> BackboneWithFPN:
    _freeze_stages(backbone, trainable_layers)
    stages = [1, 2, 3, 4] if returned_layers is None else returned_layers
    if not all(1 <= stage <= 4 for stage in stages):
        raise ValueError(f"returned_layers: Each returned layer should be in the range [1,4]. Got {stages}")
    result = BackboneWithFPN(
        backbone,
        {f"layer{stage}": str(i) for i, stage in enumerate(stages)},
        [backbone.inplanes // 8 * 2 ** (stage - 1) for stage in stages],
        256,
        extra_blocks,
        norm_layer,
    )
    result.strides = {str(i): backbone.strides[stage - 1] for i, stage in enumerate(stages)}
    return result


@accept_legacy(
    weights=("pretrained", lambda options: get_model_weights(options["backbone_name"])["IMAGENET1K_V1"]),
)
def mobilenet_backbone(
    *,
    backbone_name: str,
    weights: WeightsEnum | None,
    fpn: bool,
    norm_layer: Norm = FrozenBatchNorm2d,
    trainable_layers: int = 2,
    returned_layers: list[int] | None = None,
    extra_blocks: ExtraFPNBlock | None = None,
) -> nn.Module:
    """A MobileNetV3 by name, with a pyramid of 256 channels or one feature map of as many, its first stages frozen.

    Args:
        backbone_name: mobilenet_v3_large or mobilenet_v3_small.
        weights: weights of the MobileNet.
        fpn: whether it gets a pyramid.
        norm_layer: norms of the MobileNet.
        trainable_layers: how many stages are trained, from the last one; a stage begins at each stride.
        returned_layers: input stages of the pyramid, from 0; None for the last two.
        extra_blocks: adds coarser levels; None for LastLevelMaxPool.

    Source: torchvision/models/detection/backbone_utils.py.
    """
    if backbone_name not in MOBILENETS:
        raise ValueError(f"backbone_name must be {' or '.join(MOBILENETS)}, got {backbone_name!r}")
    backbone = getattr(mobilenetv3, backbone_name)(weights=weights, norm_layer=norm_layer)
    result: nn.Module = _mobilenet_extractor(backbone, fpn, trainable_layers, returned_layers, extra_blocks)
    return result


def _mobilenet_extractor(
    backbone: mobilenetv3.MobileNetV3,
    fpn: bool,
    trainable_layers: int,
    returned_layers: list[int] | None = None,
    extra_blocks: ExtraFPNBlock | None = None,
    norm_layer: Norm | None = None,
) -> Any:
    """The features of a MobileNet; their stages begin at the first layer, at each stride, and at the last layer."""
    layers: Any = backbone.features
    starts = [0, *(i for i, layer in enumerate(layers) if getattr(layer, "_is_cn", False)), len(layers) - 1]
    number = len(starts)
    if not 0 <= trainable_layers <= number:
        raise ValueError(
            f"trainable_layers: Trainable layers should be in the range [0,{number}], got {trainable_layers}"
        )
    for layer in layers[: starts[number - trainable_layers] if trainable_layers else len(layers)]:
        layer.requires_grad_(False)
    if not fpn:
        result = nn.Sequential(layers, nn.Conv2d(layers[-1].out_channels, 256, 1))
        result.out_channels = 256  # type: ignore[assignment]
        return result
    stages = [number - 2, number - 1] if returned_layers is None else returned_layers
    if not all(0 <= stage < number for stage in stages):
        raise ValueError(f"returned_layers: Each returned layer should be in the range [0,{number - 1}], got {stages}")
    names = {str(starts[stage]): str(i) for i, stage in enumerate(stages)}
    channels = [layers[starts[stage]].out_channels for stage in stages]
    pyramid = BackboneWithFPN(layers, names, channels, 256, extra_blocks, norm_layer)
    pyramid.strides = {str(i): _total_stride(layers[: starts[stage] + 1]) for i, stage in enumerate(stages)}
    return pyramid


def _total_stride(layers: nn.Module) -> int:
    """Image pixels per pixel of the last layer's output."""
    return math.prod(layer.stride[0] for layer in layers.modules() if isinstance(layer, nn.Conv2d))


def _validate_trainable_layers(
    is_trained: bool, trainable_backbone_layers: int | None, max_value: int, default_value: int
) -> int:
    """Number of stages to train: all of them from scratch, or else the given number."""
    if not is_trained:
        if trainable_backbone_layers is not None:
            warnings.warn(
                f"trainable_backbone_layers has no effect without trained weights: all {max_value} are trained",
                stacklevel=3,
            )
        return max_value
    layers = default_value if trainable_backbone_layers is None else trainable_backbone_layers
    if not 0 <= layers <= max_value:
        raise ValueError(
            f"trainable_backbone_layers: Trainable backbone layers should be in the range [0,{max_value}], got {layers}"
        )
    return layers
