"""Faster and Mask R-CNN on C4 (Mask R-CNN, section 4, table 2a): one map of stride 16, a ResNet's last stage as head.

RoIAlign of 14 x 14 bins on C4; res5, the ResNet's ``layer4``, with stride 2 as the box head, averaged over its 7 x 7
pixels; and, for each detection, the same res5 with a deconvolution to masks of 14 x 14. Both branches share its weights
and, in training, what it computes of positive samples.
Source: arXiv 1703.06870, figure 4 (left); arXiv 1512.03385, appendix A; detectron2's Res5ROIHeads and numbers of
proposals (Base-RCNN-C4.yaml). Otherwise the models are torchvision's: its losses, samplers and thresholds,
RoIAlign of 2 x 2 samples a bin that is not ``aligned``, the stride of a bottleneck in its 3x3 convolution. Options of
detectron2's conventions are ``sampling_ratio=0``, ``aligned=True``, ``exact_anchors=True`` and ``stride_in_1x1=True``.
"""

import os
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from torch import nn

from fastmask.models._api import NoWeights, WeightsEnum, register_model
from fastmask.models.detection._c4_backbone import C4, C4Backbone
from fastmask.models.detection._parts import SAMPLING_RATIO, make_mask_head, make_mask_predictor, make_pooler
from fastmask.models.detection._weights import choose_num_classes, find_weights, has_frozen_norms, load_weights
from fastmask.models.detection.anchor_utils import AnchorGenerator
from fastmask.models.detection.backbone_utils import _freeze_stages, _move_strides, _validate_trainable_layers
from fastmask.models.detection.faster_rcnn import FasterRCNN, FastRCNNPredictor
from fastmask.models.detection.mask_rcnn import MaskRCNN
from fastmask.models.resnet import ResNet, ResNet50_Weights, ResNet101_Weights, resnet50, resnet101
from fastmask.ops.misc import FrozenBatchNorm2d

ANCHORS = ((32, 64, 128, 256, 512),), ((0.5, 1.0, 2.0),)  # sizes in pixels, height / width
POOLED = 14  # bins of a RoI and axis, before res5 halves them
MASK_CHANNELS = 256  # of the deconvolution
PROPOSALS = {  # detectron2's numbers, which are of one level here; torchvision's are of each of five
    "rpn_pre_nms_top_n_train": 12000,
    "rpn_pre_nms_top_n_test": 6000,
    "rpn_post_nms_top_n_train": 2000,
    "rpn_post_nms_top_n_test": 1000,
}
Model = TypeVar("Model", bound=FasterRCNN)


@register_model(NoWeights, pretrained_backbone=ResNet50_Weights.IMAGENET1K_V1)
def fasterrcnn_resnet50_c4(
    *,
    weights: str | os.PathLike[str] | None = None,
    progress: bool = True,
    num_classes: int | None = None,
    weights_backbone: ResNet50_Weights | str | None = ResNet50_Weights.IMAGENET1K_V1,
    trainable_backbone_layers: int | None = None,
    new_predictors: bool = False,
    **kwargs: Any,
) -> FasterRCNN:
    """Faster R-CNN on C4 of a ResNet-50; not in torchvision.

    Args:
        weights: a file (see :class:`fastmask.models.Checkpoint`), or None.
        progress: show the download.
        num_classes: number of classes with background; None for the weights', or 91.
        weights_backbone: weights of the ResNet, whose ``layer4`` is res5, where ``weights`` is None.
        trainable_backbone_layers: how many of res5, layer3, layer2, layer1, conv1 are trained; None for 3, so that stem
            and res2 are frozen, or all without weights.
        new_predictors: load all of ``weights`` but the predictors, to fine-tune on other classes.
        **kwargs: :class:`FasterRCNN`'s; numbers of proposals are detectron2's by default.

    Norms are frozen if trained weights are loaded.
    """
    parts = (FasterRCNN, resnet50, ResNet50_Weights.verify(weights_backbone))
    return _load_c4(*parts, weights, progress, num_classes, trainable_backbone_layers, new_predictors, kwargs)


@register_model(NoWeights, pretrained_backbone=ResNet101_Weights.IMAGENET1K_V1)
def fasterrcnn_resnet101_c4(
    *,
    weights: str | os.PathLike[str] | None = None,
    progress: bool = True,
    num_classes: int | None = None,
    weights_backbone: ResNet101_Weights | str | None = ResNet101_Weights.IMAGENET1K_V1,
    trainable_backbone_layers: int | None = None,
    new_predictors: bool = False,
    **kwargs: Any,
) -> FasterRCNN:
    """Faster R-CNN on C4 of a ResNet-101; arguments as :func:`fasterrcnn_resnet50_c4`."""
    parts = (FasterRCNN, resnet101, ResNet101_Weights.verify(weights_backbone))
    return _load_c4(*parts, weights, progress, num_classes, trainable_backbone_layers, new_predictors, kwargs)


@register_model(NoWeights, pretrained_backbone=ResNet50_Weights.IMAGENET1K_V1)
def maskrcnn_resnet50_c4(
    *,
    weights: str | os.PathLike[str] | None = None,
    progress: bool = True,
    num_classes: int | None = None,
    weights_backbone: ResNet50_Weights | str | None = ResNet50_Weights.IMAGENET1K_V1,
    trainable_backbone_layers: int | None = None,
    new_predictors: bool = False,
    **kwargs: Any,
) -> MaskRCNN:
    """Mask R-CNN on C4 of a ResNet-50; arguments as :func:`fasterrcnn_resnet50_c4`, and MaskRCNN's."""
    parts = (MaskRCNN, resnet50, ResNet50_Weights.verify(weights_backbone))
    return _load_c4(*parts, weights, progress, num_classes, trainable_backbone_layers, new_predictors, kwargs)


@register_model(NoWeights, pretrained_backbone=ResNet101_Weights.IMAGENET1K_V1)
def maskrcnn_resnet101_c4(
    *,
    weights: str | os.PathLike[str] | None = None,
    progress: bool = True,
    num_classes: int | None = None,
    weights_backbone: ResNet101_Weights | str | None = ResNet101_Weights.IMAGENET1K_V1,
    trainable_backbone_layers: int | None = None,
    new_predictors: bool = False,
    **kwargs: Any,
) -> MaskRCNN:
    """Mask R-CNN on C4 of a ResNet-101; arguments as :func:`fasterrcnn_resnet50_c4`, and MaskRCNN's."""
    parts = (MaskRCNN, resnet101, ResNet101_Weights.verify(weights_backbone))
    return _load_c4(*parts, weights, progress, num_classes, trainable_backbone_layers, new_predictors, kwargs)


def _load_c4(
    kind: type[Model],
    build_resnet: Callable[..., ResNet],
    weights_backbone: WeightsEnum | None,
    weights: str | os.PathLike[str] | None,
    progress: bool,
    num_classes: int | None,
    trainable_layers: int | None,
    new_predictors: bool,
    options: dict[str, Any],
) -> Model:
    """A model with its weights; arguments as the builders'."""
    source = find_weights(NoWeights, weights)
    trained = source is not None or weights_backbone is not None
    layers = _validate_trainable_layers(trained, trainable_layers, 5, 3)
    norm_layer = FrozenBatchNorm2d if has_frozen_norms(source, weights_backbone) else nn.BatchNorm2d
    backbone = build_resnet(weights=None if source else weights_backbone, progress=progress, norm_layer=norm_layer)
    _freeze_stages(backbone, layers)
    model = assemble_c4(kind, backbone, choose_num_classes(num_classes, source, new_predictors), **options)
    load_weights(model, source, progress, new_predictors)
    return model


def assemble_c4(
    kind: type[Model],
    backbone: ResNet,
    num_classes: int,
    box_pooling: str = "roi_align",
    sampling_ratio: int | Sequence[int] = SAMPLING_RATIO,
    aligned: bool = False,
    stride_in_1x1: bool = False,
    **options: Any,
) -> Model:
    """A model of the parts of a ResNet, which become its own.

    Args:
        kind: FasterRCNN or MaskRCNN.
        backbone: the classifier: its first stages are the backbone, its last is res5.
        num_classes: number of classes with background.
        box_pooling, sampling_ratio, aligned: see :class:`FasterRCNN`.
        stride_in_1x1: move the strides of bottlenecks, also of res5, into their first 1x1 convolutions.
        **options: the model's, instead of those that make it a C4 model.
    """
    channels = backbone.inplanes  # of res5
    if stride_in_1x1:
        _move_strides(backbone)
    settings: dict[str, Any] = PROPOSALS | {
        "rpn_anchor_generator": AnchorGenerator(*ANCHORS),
        "box_roi_pool": make_pooler(box_pooling, POOLED, [C4], sampling_ratio, aligned),
        "box_head": nn.AdaptiveAvgPool2d(1),
        "box_predictor": FastRCNNPredictor(channels, num_classes),
    }
    if issubclass(kind, MaskRCNN):
        if isinstance(mask_head := options.pop("mask_head", None), str) and mask_head != "fcn":
            raise ValueError(f"mask_head must be fcn in a C4 model, where res5 is in its place, got {mask_head!r}")
        settings |= {
            "mask_roi_pool": make_pooler(box_pooling, POOLED, [C4], sampling_ratio, aligned),
            "mask_head": make_mask_head(mask_head, channels, ()),
        }
        if "mask_predictor" not in options:
            masks = options.pop("mask_classes", "per_class")
            settings["mask_predictor"] = make_mask_predictor(masks, channels, MASK_CHANNELS, num_classes)
    model = kind(C4Backbone(backbone), **(settings | options))
    model.roi_heads.res5 = backbone.layer4
    return model
