"""Faster R-CNN (arXiv 1506.01497) on a feature pyramid; torchvision.models.detection.faster_rcnn's names."""

import os
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastmask.checks import ArgumentError, NotScriptable
from fastmask.models._api import WeightsEnum, register_model
from fastmask.models._plain import is_plain
from fastmask.models.detection._weights import (
    Source,
    choose_num_classes,
    coco_weights,
    find_weights,
    has_frozen_norms,
    load_weights,
)
from fastmask.models.detection.anchor_utils import AnchorGenerator
from fastmask.models.detection.backbone_utils import BackboneWithFPN, _resnet_fpn_extractor, _validate_trainable_layers
from fastmask.models.detection.generalized_rcnn import GeneralizedRCNN
from fastmask.models.detection.roi_heads import RoIHeads
from fastmask.models.detection.rpn import RegionProposalNetwork, RPNHead
from fastmask.models.detection.transform import GeneralizedRCNNTransform
from fastmask.models.resnet import ResNet50_Weights, resnet50
from fastmask.ops.misc import Conv2dNormActivation, FrozenBatchNorm2d
from fastmask.ops.poolers import MultiScaleRoIAlign

IMAGE_MEAN, IMAGE_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet


def _default_anchorgen() -> AnchorGenerator:
    sizes = ((32,), (64,), (128,), (256,), (512,))
    return AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * len(sizes))


class FasterRCNN(GeneralizedRCNN):
    """Faster R-CNN with any backbone that has ``out_channels`` and gives one or several feature maps.

    Args:
        backbone: see :class:`GeneralizedRCNN`.
        num_classes: number of classes with background; None if ``box_predictor`` is given.
        min_size, max_size, image_mean, image_std, **kwargs: see :class:`GeneralizedRCNNTransform`.
        rpn_...: see :class:`RegionProposalNetwork`.
        box_..., bbox_reg_weights: see :class:`RoIHeads`.

    Raises:
        ValueError, TypeError: arguments that exclude each other, or of the wrong kind.

    Source: torchvision/models/detection/faster_rcnn.py, with its defaults.
    """

    def __init__(
        self,
        backbone: nn.Module,
        num_classes: int | None = None,
        # transform
        min_size: int | Sequence[int] = 800,
        max_size: int = 1333,
        image_mean: Sequence[float] | None = None,
        image_std: Sequence[float] | None = None,
        # RPN
        rpn_anchor_generator: AnchorGenerator | None = None,
        rpn_head: nn.Module | None = None,
        rpn_pre_nms_top_n_train: int = 2000,
        rpn_pre_nms_top_n_test: int = 1000,
        rpn_post_nms_top_n_train: int = 2000,
        rpn_post_nms_top_n_test: int = 1000,
        rpn_nms_thresh: float = 0.7,
        rpn_fg_iou_thresh: float = 0.7,
        rpn_bg_iou_thresh: float = 0.3,
        rpn_batch_size_per_image: int = 256,
        rpn_positive_fraction: float = 0.5,
        rpn_score_thresh: float = 0.0,
        # box branch
        box_roi_pool: MultiScaleRoIAlign | None = None,
        box_head: nn.Module | None = None,
        box_predictor: nn.Module | None = None,
        box_score_thresh: float = 0.05,
        box_nms_thresh: float = 0.5,
        box_detections_per_img: int = 100,
        box_fg_iou_thresh: float = 0.5,
        box_bg_iou_thresh: float = 0.5,
        box_batch_size_per_image: int = 512,
        box_positive_fraction: float = 0.25,
        bbox_reg_weights: tuple[float, float, float, float] | None = None,
        **kwargs: Any,
    ) -> None:
        _check_type("rpn_anchor_generator", rpn_anchor_generator, AnchorGenerator)
        _check_type("box_roi_pool", box_roi_pool, MultiScaleRoIAlign)
        if (num_classes is None) == (box_predictor is None):
            raise ValueError(
                f"num_classes or box_predictor must be given, got {'both' if box_predictor else 'neither'}"
            )
        channels = _out_channels(backbone)
        if rpn_anchor_generator is None:
            rpn_anchor_generator = _default_anchorgen()
        if rpn_head is None:
            rpn_head = RPNHead(channels, rpn_anchor_generator.num_anchors_per_location()[0])
        rpn = RegionProposalNetwork(
            rpn_anchor_generator,
            rpn_head,
            rpn_fg_iou_thresh,
            rpn_bg_iou_thresh,
            rpn_batch_size_per_image,
            rpn_positive_fraction,
            {"training": rpn_pre_nms_top_n_train, "testing": rpn_pre_nms_top_n_test},
            {"training": rpn_post_nms_top_n_train, "testing": rpn_post_nms_top_n_test},
            rpn_nms_thresh,
            score_thresh=rpn_score_thresh,
        )
        if box_roi_pool is None:
            box_roi_pool = MultiScaleRoIAlign(["0", "1", "2", "3"], output_size=7, sampling_ratio=2)
        if box_head is None:
            box_head = TwoMLPHead(channels * box_roi_pool.output_size[0] ** 2, 1024)
        if box_predictor is None:
            assert num_classes is not None
            box_predictor = FastRCNNPredictor(1024, num_classes)
        roi_heads = RoIHeads(
            box_roi_pool,
            box_head,
            box_predictor,
            box_fg_iou_thresh,
            box_bg_iou_thresh,
            box_batch_size_per_image,
            box_positive_fraction,
            bbox_reg_weights,
            box_score_thresh,
            box_nms_thresh,
            box_detections_per_img,
        )
        mean = list(IMAGE_MEAN) if image_mean is None else image_mean
        std = list(IMAGE_STD) if image_std is None else image_std
        transform = GeneralizedRCNNTransform(min_size, max_size, mean, std, **kwargs)
        super().__init__(backbone, rpn, roi_heads, transform)


def _out_channels(backbone: nn.Module) -> int:
    if not hasattr(backbone, "out_channels"):
        raise ValueError(f"backbone must have an attribute out_channels, got {type(backbone).__name__} without")
    return int(backbone.out_channels)  # type: ignore[arg-type]


def _check_type(name: str, value: object, wanted: type) -> None:
    if not isinstance(value, wanted | None):
        raise TypeError(f"{name} must be a {wanted.__name__} or None, got {type(value).__name__}")


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


class FasterRCNN_ResNet50_FPN_Weights(WeightsEnum):  # noqa: N801 -- torchvision's name
    """COCO weights of :func:`fasterrcnn_resnet50_fpn`."""

    COCO_V1 = coco_weights(
        "fasterrcnn_resnet50_fpn_coco-258fb6c6.pth",
        41755286,
        "tree/main/references/detection#faster-r-cnn-resnet-50-fpn",
        box_map=37.0,
    )
    DEFAULT = COCO_V1


class FasterRCNN_ResNet50_FPN_V2_Weights(WeightsEnum):  # noqa: N801
    """COCO weights of :func:`fasterrcnn_resnet50_fpn_v2`."""

    COCO_V1 = coco_weights("fasterrcnn_resnet50_fpn_v2_coco-dd69338a.pth", 43712278, "pull/5763", box_map=46.7)
    DEFAULT = COCO_V1


def make_v1_backbone(
    weights: Source, weights_backbone: ResNet50_Weights | None, progress: bool, trainable_layers: int | None
) -> BackboneWithFPN:
    """ResNet-50 with the pyramid of the first models: norms are frozen if trained weights are loaded."""
    trained = weights is not None or weights_backbone is not None
    layers = _validate_trainable_layers(trained, trainable_layers, 5, 3)
    norm_layer = FrozenBatchNorm2d if has_frozen_norms(weights, weights_backbone) else nn.BatchNorm2d
    body = resnet50(weights=None if weights else weights_backbone, progress=progress, norm_layer=norm_layer)
    return _resnet_fpn_extractor(body, layers)


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


@register_model(
    FasterRCNN_ResNet50_FPN_Weights,
    pretrained=FasterRCNN_ResNet50_FPN_Weights.COCO_V1,
    pretrained_backbone=ResNet50_Weights.IMAGENET1K_V1,
)
def fasterrcnn_resnet50_fpn(
    *,
    weights: FasterRCNN_ResNet50_FPN_Weights | str | os.PathLike[str] | None = None,
    progress: bool = True,
    num_classes: int | None = None,
    weights_backbone: ResNet50_Weights | str | None = ResNet50_Weights.IMAGENET1K_V1,
    trainable_backbone_layers: int | None = None,
    new_predictors: bool = False,
    **kwargs: Any,
) -> FasterRCNN:
    """Faster R-CNN with a ResNet-50 and a pyramid.

    Args:
        weights: COCO weights, a file (see :class:`fastmask.models.Checkpoint`), or None. COCO_V1 has frozen norms with
            an eps of 0, which no file holds: call ``overwrite_eps(model, 0.0)`` on a model that was fine-tuned from
            it; without, its norms have 1e-5, as all others.
        progress: show the download.
        num_classes: number of classes with background; None for the weights', or 91.
        weights_backbone: weights of the ResNet, where ``weights`` is None.
        trainable_backbone_layers: see :func:`resnet_fpn_backbone`; None for 3, or all without weights.
        new_predictors: load all of ``weights`` but the predictors, to fine-tune on other classes.
        **kwargs: :class:`FasterRCNN`'s.
    """
    trained = find_weights(FasterRCNN_ResNet50_FPN_Weights, weights)
    backbone = make_v1_backbone(trained, ResNet50_Weights.verify(weights_backbone), progress, trainable_backbone_layers)
    model = FasterRCNN(backbone, num_classes=choose_num_classes(num_classes, trained, new_predictors), **kwargs)
    load_weights(model, trained, progress, new_predictors, eps=0.0)
    return model


@register_model(
    FasterRCNN_ResNet50_FPN_V2_Weights,
    pretrained=FasterRCNN_ResNet50_FPN_V2_Weights.COCO_V1,
    pretrained_backbone=ResNet50_Weights.IMAGENET1K_V1,
)
def fasterrcnn_resnet50_fpn_v2(
    *,
    weights: FasterRCNN_ResNet50_FPN_V2_Weights | str | os.PathLike[str] | None = None,
    progress: bool = True,
    num_classes: int | None = None,
    weights_backbone: ResNet50_Weights | str | None = None,
    trainable_backbone_layers: int | None = None,
    new_predictors: bool = False,
    **kwargs: Any,
) -> FasterRCNN:
    """The improved model (arXiv 2111.11429); arguments as :func:`fasterrcnn_resnet50_fpn`."""
    trained = find_weights(FasterRCNN_ResNet50_FPN_V2_Weights, weights)
    parts = make_v2_parts(trained, ResNet50_Weights.verify(weights_backbone), progress, trainable_backbone_layers)
    model = FasterRCNN(num_classes=choose_num_classes(num_classes, trained, new_predictors), **parts, **kwargs)
    load_weights(model, trained, progress, new_predictors)
    return model
