"""Mask R-CNN (arXiv 1703.06870) on a feature pyramid; torchvision.models.detection.mask_rcnn's names."""

import os
from collections.abc import Sequence
from typing import Any

from torch import nn

from fastmask.checks import check_choice
from fastmask.models._api import WeightsEnum, register_model
from fastmask.models.detection._mask_head import MaskRCNNHeads as MaskRCNNHeads, MaskRCNNPredictor as MaskRCNNPredictor
from fastmask.models.detection._parts import (
    SAMPLING_RATIO,
    _check_type,
    _out_channels,
    make_mask_head,
    make_mask_predictor,
    make_pooler,
    make_v1_backbone,
    make_v2_parts,
)
from fastmask.models.detection._weights import choose_num_classes, coco_weights, find_weights, load_weights
from fastmask.models.detection.anchor_utils import AnchorGenerator
from fastmask.models.detection.faster_rcnn import FasterRCNN
from fastmask.models.resnet import ResNet50_Weights
from fastmask.ops.poolers import MultiScaleRoIAlign
from fastmask.variants import CHOICES


class MaskRCNN(FasterRCNN):
    """Faster R-CNN with a mask branch.

    Args:
        mask_roi_pool, mask_predictor: see :class:`RoIHeads`; None for the paper's.
        mask_head: "fcn" or None for the paper's convolutions; "unet" for a U-Net of about as many parameters (arXiv
            1505.04597); or a module, see :class:`RoIHeads`.
        mask_classes: "per_class", or "agnostic" for one mask of all classes, which is "nearly as effective" (Mask
            R-CNN, section 4.2); of the predictor that is made.
        mask_loss: "bce", "dice" (arXiv 1606.04797) or "bce_dice", the sum of both.
        The others: see :class:`FasterRCNN`; ``num_classes`` must be None if ``mask_predictor`` is given.

    Source: torchvision/models/detection/mask_rcnn.py, with its defaults.
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
        # mask branch
        mask_roi_pool: MultiScaleRoIAlign | None = None,
        mask_head: nn.Module | str | None = None,
        mask_predictor: nn.Module | None = None,
        *,
        aligned: bool = False,
        box_pooling: str = "roi_align",
        sampling_ratio: int | Sequence[int] = SAMPLING_RATIO,
        mask_classes: str = "per_class",
        mask_loss: str = "bce",
        **kwargs: Any,
    ) -> None:
        _check_type("mask_roi_pool", mask_roi_pool, MultiScaleRoIAlign)
        if num_classes is not None and mask_predictor is not None:
            raise ValueError("num_classes or mask_predictor must be given, got both")
        check_choice("mask_loss", mask_loss, CHOICES["mask_loss"])
        if mask_roi_pool is None:
            mask_roi_pool = make_pooler(box_pooling, 14, sampling_ratio=sampling_ratio, aligned=aligned)
        mask_head = make_mask_head(mask_head, _out_channels(backbone), (256, 256, 256, 256))
        if mask_predictor is None:
            if num_classes is None:
                raise ValueError("num_classes or mask_predictor must be given, got neither")
            mask_predictor = make_mask_predictor(mask_classes, 256, 256, num_classes)
        elif mask_classes != "per_class":
            raise ValueError(f"mask_classes must be per_class where mask_predictor is given, got {mask_classes!r}")
        super().__init__(
            backbone,
            num_classes,
            min_size,
            max_size,
            image_mean,
            image_std,
            rpn_anchor_generator,
            rpn_head,
            rpn_pre_nms_top_n_train,
            rpn_pre_nms_top_n_test,
            rpn_post_nms_top_n_train,
            rpn_post_nms_top_n_test,
            rpn_nms_thresh,
            rpn_fg_iou_thresh,
            rpn_bg_iou_thresh,
            rpn_batch_size_per_image,
            rpn_positive_fraction,
            rpn_score_thresh,
            box_roi_pool,
            box_head,
            box_predictor,
            box_score_thresh,
            box_nms_thresh,
            box_detections_per_img,
            box_fg_iou_thresh,
            box_bg_iou_thresh,
            box_batch_size_per_image,
            box_positive_fraction,
            bbox_reg_weights,
            box_pooling=box_pooling,
            sampling_ratio=sampling_ratio,
            aligned=aligned,
            **kwargs,
        )
        self.roi_heads.mask_roi_pool = mask_roi_pool
        self.roi_heads.mask_head = mask_head
        self.roi_heads.mask_predictor = mask_predictor
        self.roi_heads.mask_loss = mask_loss


class MaskRCNN_ResNet50_FPN_Weights(WeightsEnum):  # noqa: N801 -- torchvision's name
    """COCO weights of :func:`maskrcnn_resnet50_fpn`."""

    COCO_V1 = coco_weights(
        "maskrcnn_resnet50_fpn_coco-bf2d0c1e.pth",
        44401393,
        "tree/main/references/detection#mask-r-cnn",
        box_map=37.9,
        mask_map=34.6,
    )
    DEFAULT = COCO_V1


class MaskRCNN_ResNet50_FPN_V2_Weights(WeightsEnum):  # noqa: N801
    """COCO weights of :func:`maskrcnn_resnet50_fpn_v2`."""

    COCO_V1 = coco_weights(
        "maskrcnn_resnet50_fpn_v2_coco-73cbd019.pth", 46359409, "pull/5773", box_map=47.4, mask_map=41.8
    )
    DEFAULT = COCO_V1


@register_model(
    MaskRCNN_ResNet50_FPN_Weights,
    pretrained=MaskRCNN_ResNet50_FPN_Weights.COCO_V1,
    pretrained_backbone=ResNet50_Weights.IMAGENET1K_V1,
)
def maskrcnn_resnet50_fpn(
    *,
    weights: MaskRCNN_ResNet50_FPN_Weights | str | os.PathLike[str] | None = None,
    progress: bool = True,
    num_classes: int | None = None,
    weights_backbone: ResNet50_Weights | str | None = ResNet50_Weights.IMAGENET1K_V1,
    trainable_backbone_layers: int | None = None,
    new_predictors: bool = False,
    **kwargs: Any,
) -> MaskRCNN:
    """Mask R-CNN with a ResNet-50 and a pyramid; arguments as :func:`fasterrcnn_resnet50_fpn`, and MaskRCNN's."""
    trained = find_weights(MaskRCNN_ResNet50_FPN_Weights, weights)
    backbone = make_v1_backbone(trained, ResNet50_Weights.verify(weights_backbone), progress, trainable_backbone_layers)
    model = MaskRCNN(backbone, num_classes=choose_num_classes(num_classes, trained, new_predictors), **kwargs)
    load_weights(model, trained, progress, new_predictors, eps=0.0)
    return model


@register_model(
    MaskRCNN_ResNet50_FPN_V2_Weights,
    pretrained=MaskRCNN_ResNet50_FPN_V2_Weights.COCO_V1,
    pretrained_backbone=ResNet50_Weights.IMAGENET1K_V1,
)
def maskrcnn_resnet50_fpn_v2(
    *,
    weights: MaskRCNN_ResNet50_FPN_V2_Weights | str | os.PathLike[str] | None = None,
    progress: bool = True,
    num_classes: int | None = None,
    weights_backbone: ResNet50_Weights | str | None = None,
    trainable_backbone_layers: int | None = None,
    new_predictors: bool = False,
    **kwargs: Any,
) -> MaskRCNN:
    """The improved model (arXiv 2111.11429); arguments as :func:`maskrcnn_resnet50_fpn`."""
    trained = find_weights(MaskRCNN_ResNet50_FPN_V2_Weights, weights)
    parts = make_v2_parts(trained, ResNet50_Weights.verify(weights_backbone), progress, trainable_backbone_layers)
    channels = parts["backbone"].out_channels
    parts["mask_head"] = make_mask_head(kwargs.pop("mask_head", None), channels, [256] * 4, nn.BatchNorm2d)
    model = MaskRCNN(num_classes=choose_num_classes(num_classes, trained, new_predictors), **parts, **kwargs)
    load_weights(model, trained, progress, new_predictors)
    return model
