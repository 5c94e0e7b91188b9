"""Parts that builders put together: backbones with pyramids, the second models' heads, mask heads, anchors, poolers."""

from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from fastmask.checks import check_choice
from fastmask.models._api import WeightsEnum
from fastmask.models.detection._box_head import FastRCNNConvFCHead
from fastmask.models.detection._mask_head import MaskRCNNHeads, MaskRCNNPredictor
from fastmask.models.detection._unet_head import UNetMaskHead
from fastmask.models.detection._weights import Source, has_frozen_norms
from fastmask.models.detection.anchor_utils import AnchorGenerator, place_exactly
from fastmask.models.detection.backbone_utils import (
    BackboneWithFPN,
    _mobilenet_extractor,
    _resnet_fpn_extractor,
    _validate_trainable_layers,
)
from fastmask.models.detection.rpn import RPNHead
from fastmask.models.mobilenetv3 import MobileNet_V3_Large_Weights, mobilenet_v3_large
from fastmask.models.resnet import ResNet, ResNet50_Weights, resnet50
from fastmask.ops.misc import FrozenBatchNorm2d
from fastmask.ops.poolers import MultiScaleRoIAlign, MultiScaleRoIPool
from fastmask.variants import CHOICES

SAMPLING_RATIO = 2  # samples a bin and axis, as torchvision's models take


def _out_channels(backbone: nn.Module) -> int:
    if not hasattr(backbone, "out_channels"):
        raise ValueError(f"backbone must have an attribute out_channels, got {type(backbone).__name__} without")
    return int(backbone.out_channels)  # type: ignore[arg-type]


def _check_type(name: str, value: object, wanted: type) -> None:
    if not isinstance(value, wanted | None):
        raise TypeError(f"{name} must be a {wanted.__name__} or None, got {type(value).__name__}")


def _default_anchorgen() -> AnchorGenerator:
    sizes = ((32,), (64,), (128,), (256,), (512,))
    return AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * len(sizes))


def make_pooler(
    box_pooling: str,
    output_size: int,
    featmap_names: Sequence[str] = ("0", "1", "2", "3"),
    sampling_ratio: int | Sequence[int] = SAMPLING_RATIO,
    aligned: bool = False,
) -> MultiScaleRoIAlign:
    """RoIAlign, or RoIPool, which takes no samples, over these feature maps."""
    if box_pooling == "roi_align":
        return MultiScaleRoIAlign(list(featmap_names), output_size, sampling_ratio, aligned=aligned)
    if aligned:
        raise ValueError(f"box_pooling must be roi_align to be aligned, got {box_pooling!r}")
    if box_pooling == "roi_pool":
        if sampling_ratio != SAMPLING_RATIO:
            raise ValueError(f"sampling_ratio must not be given with roi_pool, which takes none, got {sampling_ratio}")
        return MultiScaleRoIPool(list(featmap_names), output_size)
    raise ValueError(f"box_pooling must be roi_align or roi_pool, got {box_pooling!r}")


def choose_anchors(given: AnchorGenerator | None, exact_anchors: bool, backbone: nn.Module) -> AnchorGenerator:
    """The given anchors or the paper's, of the same sizes and ratios without rounding if they are to be exact."""
    anchors = _default_anchorgen() if given is None else given
    return place_exactly(anchors, backbone) if exact_anchors else anchors


def choose_box_pooler(
    given: MultiScaleRoIAlign | None,
    box_pooling: str,
    sampling_ratio: int | Sequence[int],
    aligned: bool,
    backbone: nn.Module,
) -> MultiScaleRoIAlign:
    """The given pooler, or else one of :func:`make_pooler` for boxes.

    Raises:
        ValueError: both are given, or not as many sampling ratios as the backbone, as far as it is known, has maps.
    """
    if given is not None and box_pooling != "roi_align":
        raise ValueError(f"box_pooling must be roi_align where box_roi_pool is given, got {box_pooling}")
    if given is not None and sampling_ratio != SAMPLING_RATIO:
        raise ValueError(f"sampling_ratio must not be given with box_roi_pool, got {sampling_ratio}")
    if given is not None and aligned:
        raise ValueError("aligned must be False where box_roi_pool is given, got True")
    options: dict[str, Any] = {"sampling_ratio": sampling_ratio, "aligned": aligned}
    pooler = make_pooler(box_pooling, 7, **options) if given is None else given
    ratios, strides = pooler.sampling_ratio, getattr(backbone, "strides", None)
    if isinstance(ratios, Sequence) and isinstance(strides, dict):
        number = len(strides.keys() & set(pooler.featmap_names))
        if len(ratios) != number:
            raise ValueError(f"sampling_ratio must be an int or one for each of {number} maps, got {list(ratios)}")
    return pooler


def make_mask_head(
    mask_head: nn.Module | str | None,
    in_channels: int,
    layers: Sequence[int],
    norm_layer: Callable[..., nn.Module] | None = None,
) -> nn.Module:
    """Convolutions of these widths ("fcn" or None), a U-Net of about as many parameters ("unet"), or a given module."""
    if isinstance(mask_head, nn.Module):
        return mask_head
    if mask_head in (None, "fcn"):
        return MaskRCNNHeads(in_channels, layers, 1, norm_layer)
    if mask_head == "unet":
        return UNetMaskHead(in_channels, layers[-1], len(layers), norm_layer)
    raise ValueError(f"mask_head must be fcn, unet or a module, got {mask_head!r}")


def make_mask_predictor(mask_classes: str, in_channels: int, dim_reduced: int, num_classes: int) -> MaskRCNNPredictor:
    """A mask predictor of each class, or of one mask for all of them ("agnostic")."""
    check_choice("mask_classes", mask_classes, CHOICES["mask_classes"])
    return MaskRCNNPredictor(in_channels, dim_reduced, 1 if mask_classes == "agnostic" else num_classes)


def make_v1_backbone(
    weights: Source,
    weights_backbone: WeightsEnum | None,
    progress: bool,
    trainable_layers: int | None,
    build: Callable[..., ResNet] = resnet50,
) -> BackboneWithFPN:
    """A ResNet with the pyramid of the first models: norms are frozen if trained weights are loaded."""
    trained = weights is not None or weights_backbone is not None
    layers = _validate_trainable_layers(trained, trainable_layers, 5, 3)
    norm_layer = FrozenBatchNorm2d if has_frozen_norms(weights, weights_backbone) else nn.BatchNorm2d
    body = build(weights=None if weights else weights_backbone, progress=progress, norm_layer=norm_layer)
    return _resnet_fpn_extractor(body, layers)


def make_mobilenet_backbone(
    weights: Source, weights_backbone: MobileNet_V3_Large_Weights | None, progress: bool, trainable_layers: int | None
) -> BackboneWithFPN:
    """A MobileNetV3 with a pyramid on its last two stages; see :func:`make_v1_backbone`."""
    trained = weights is not None or weights_backbone is not None
    layers = _validate_trainable_layers(trained, trainable_layers, 6, 3)
    norm_layer = FrozenBatchNorm2d if has_frozen_norms(weights, weights_backbone) else nn.BatchNorm2d
    body = mobilenet_v3_large(weights=None if weights else weights_backbone, progress=progress, norm_layer=norm_layer)
    backbone: BackboneWithFPN = _mobilenet_extractor(body, True, layers)
    return backbone


def make_v2_parts(
    weights: Source, weights_backbone: ResNet50_Weights | None, progress: bool, trainable_layers: int | None
) -> dict[str, Any]:
    """Backbone, RPN and box head of the second models: trained norms everywhere, deeper heads."""
    trained = weights is not None or weights_backbone is not None
    layers = _validate_trainable_layers(trained, trainable_layers, 5, 3)
    body = resnet50(weights=None if weights else weights_backbone, progress=progress)
    backbone = _resnet_fpn_extractor(body, layers, norm_layer=nn.BatchNorm2d)
    anchors = _default_anchorgen()
    return {
        "backbone": backbone,
        "rpn_anchor_generator": anchors,
        "rpn_head": RPNHead(backbone.out_channels, anchors.num_anchors_per_location()[0], conv_depth=2),
        "box_head": FastRCNNConvFCHead((backbone.out_channels, 7, 7), [256] * 4, [1024], norm_layer=nn.BatchNorm2d),
    }
