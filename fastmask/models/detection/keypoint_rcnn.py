"""Keypoint R-CNN (Mask R-CNN, arXiv 1703.06870, section 5); torchvision.models.detection.keypoint_rcnn's names."""

import os
from collections.abc import Sequence
from typing import Any

from torch import nn

from fastmask.models._api import WeightsEnum, register_model
from fastmask.models._meta import COCO_PERSON_CATEGORIES, COCO_PERSON_KEYPOINT_NAMES
from fastmask.models.detection._keypoint_head import (
    KeypointRCNNHeads as KeypointRCNNHeads,
    KeypointRCNNPredictor as KeypointRCNNPredictor,
)
from fastmask.models.detection._parts import (
    SAMPLING_RATIO,
    _check_type,
    _out_channels,
    make_pooler,
    make_v1_backbone,
)
from fastmask.models.detection._weights import (
    choose_num_classes,
    choose_num_keypoints,
    coco_weights,
    find_weights,
    load_weights,
)
from fastmask.models.detection.anchor_utils import AnchorGenerator
from fastmask.models.detection.faster_rcnn import FasterRCNN
from fastmask.models.resnet import ResNet50_Weights
from fastmask.ops.poolers import MultiScaleRoIAlign

MIN_SIZES = (640, 672, 704, 736, 768, 800)  # training draws one of them


class KeypointRCNN(FasterRCNN):
    """Faster R-CNN with a keypoint branch: a heatmap for each keypoint of a detection.

    Args:
        keypoint_roi_pool, keypoint_head, keypoint_predictor: see :class:`RoIHeads`; None for the paper's.
        num_keypoints: K of an instance; None for 17, or if ``keypoint_predictor`` is given.
        The others: see :class:`FasterRCNN`; ``min_size`` None for 640 to 800 in steps of 32.

    Source: torchvision/models/detection/keypoint_rcnn.py, with its defaults.
    """

    def __init__(
        self,
        backbone: nn.Module,
        num_classes: int | None = None,
        # transform
        min_size: int | Sequence[int] | None = None,
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
        # keypoint branch
        keypoint_roi_pool: MultiScaleRoIAlign | None = None,
        keypoint_head: nn.Module | None = None,
        keypoint_predictor: nn.Module | None = None,
        num_keypoints: int | None = None,
        *,
        sampling_ratio: int | Sequence[int] = SAMPLING_RATIO,
        aligned: bool = False,
        **kwargs: Any,
    ) -> None:
        _check_type("keypoint_roi_pool", keypoint_roi_pool, MultiScaleRoIAlign)
        if num_keypoints is not None and keypoint_predictor is not None:
            raise ValueError("num_keypoints or keypoint_predictor must be given, got both")
        if keypoint_roi_pool is None:
            keypoint_roi_pool = make_pooler("roi_align", 14, sampling_ratio=sampling_ratio, aligned=aligned)
        if keypoint_head is None:
            keypoint_head = KeypointRCNNHeads(_out_channels(backbone), (512,) * 8)
        if keypoint_predictor is None:
            number = len(COCO_PERSON_KEYPOINT_NAMES) if num_keypoints is None else num_keypoints
            keypoint_predictor = KeypointRCNNPredictor(512, number)
        super().__init__(
            backbone,
            num_classes,
            MIN_SIZES if min_size is None else min_size,
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
            sampling_ratio=sampling_ratio,
            aligned=aligned,
            **kwargs,
        )
        self.roi_heads.keypoint_roi_pool = keypoint_roi_pool
        self.roi_heads.keypoint_head = keypoint_head
        self.roi_heads.keypoint_predictor = keypoint_predictor


_PERSONS = {"categories": COCO_PERSON_CATEGORIES, "keypoint_names": COCO_PERSON_KEYPOINT_NAMES}


class KeypointRCNN_ResNet50_FPN_Weights(WeightsEnum):  # noqa: N801 -- torchvision's name
    """COCO weights of :func:`keypointrcnn_resnet50_fpn`: persons, with 17 keypoints. LEGACY's are of an early epoch."""

    COCO_LEGACY = coco_weights(
        "keypointrcnn_resnet50_fpn_coco-9f466800.pth",
        59137258,
        "issues/1606",
        _PERSONS,
        box_map=50.6,
        kp_map=61.1,
    )
    COCO_V1 = coco_weights(
        "keypointrcnn_resnet50_fpn_coco-fc266e95.pth",
        59137258,
        "tree/main/references/detection#keypoint-r-cnn",
        _PERSONS,
        box_map=54.6,
        kp_map=65.0,
    )
    DEFAULT = COCO_V1


def _choose_pretrained(options: dict[str, Any]) -> KeypointRCNN_ResNet50_FPN_Weights:
    """The weights that ``pretrained`` stood for: "legacy", or any other value that is true."""
    known = KeypointRCNN_ResNet50_FPN_Weights
    return known.COCO_LEGACY if options["pretrained"] == "legacy" else known.COCO_V1


@register_model(
    KeypointRCNN_ResNet50_FPN_Weights,
    pretrained=_choose_pretrained,
    pretrained_backbone=ResNet50_Weights.IMAGENET1K_V1,
)
def keypointrcnn_resnet50_fpn(
    *,
    weights: KeypointRCNN_ResNet50_FPN_Weights | str | os.PathLike[str] | None = None,
    progress: bool = True,
    num_classes: int | None = None,
    num_keypoints: int | None = None,
    weights_backbone: ResNet50_Weights | str | None = ResNet50_Weights.IMAGENET1K_V1,
    trainable_backbone_layers: int | None = None,
    new_predictors: bool = False,
    **kwargs: Any,
) -> KeypointRCNN:
    """Keypoint R-CNN with a ResNet-50 and a pyramid; arguments as :func:`fasterrcnn_resnet50_fpn`, and KeypointRCNN's.

    Without weights ``num_classes`` is 2, background and persons, and ``num_keypoints`` 17, unless they are given.
    """
    known = KeypointRCNN_ResNet50_FPN_Weights
    trained = find_weights(known, weights)
    backbone = make_v1_backbone(trained, ResNet50_Weights.verify(weights_backbone), progress, trainable_backbone_layers)
    classes = choose_num_classes(num_classes, trained, new_predictors, len(COCO_PERSON_CATEGORIES))
    number = None
    if kwargs.get("keypoint_predictor") is None or num_keypoints is not None:
        number = choose_num_keypoints(num_keypoints, trained, new_predictors, len(COCO_PERSON_KEYPOINT_NAMES))
    model = KeypointRCNN(backbone, classes, num_keypoints=number, **kwargs)
    load_weights(model, trained, progress, new_predictors, eps=None if trained is known.COCO_LEGACY else 0.0)
    return model
