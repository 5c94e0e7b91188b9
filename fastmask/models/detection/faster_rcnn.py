"""Faster R-CNN (arXiv 1506.01497) on a feature pyramid; torchvision.models.detection.faster_rcnn's names."""

import os
from collections.abc import Sequence
from typing import Any

from torch import nn

from fastmask.checks import check_choice
from fastmask.models._api import WeightsEnum, register_model
from fastmask.models.detection._box_head import (
    FastRCNNConvFCHead as FastRCNNConvFCHead,
    FastRCNNPredictor as FastRCNNPredictor,
    TwoMLPHead as TwoMLPHead,
)
from fastmask.models.detection._parts import (
    SAMPLING_RATIO,
    _check_type,
    _default_anchorgen as _default_anchorgen,
    _out_channels,
    choose_anchors,
    choose_box_pooler,
    make_mobilenet_backbone,
    make_v1_backbone,
    make_v2_parts,
)
from fastmask.models.detection._roi_stages import BOX_NMS, BoxNms
from fastmask.models.detection._weights import (
    Source,
    choose_num_classes,
    coco_weights,
    find_weights,
    load_weights,
)
from fastmask.models.detection.anchor_utils import AnchorGenerator
from fastmask.models.detection.backbone_utils import _move_strides
from fastmask.models.detection.generalized_rcnn import GeneralizedRCNN
from fastmask.models.detection.roi_heads import RoIHeads
from fastmask.models.detection.rpn import RegionProposalNetwork, RPNHead
from fastmask.models.detection.transform import GeneralizedRCNNTransform
from fastmask.models.mobilenetv3 import MobileNet_V3_Large_Weights, mobilenet_v3_large as mobilenet_v3_large
from fastmask.models.resnet import ResNet50_Weights, resnet50 as resnet50
from fastmask.ops.poolers import MultiScaleRoIAlign
from fastmask.variants import CHOICES

IMAGE_MEAN, IMAGE_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet


class FasterRCNN(GeneralizedRCNN):
    """Faster R-CNN with any backbone that has ``out_channels`` and gives one or several feature maps.

    Args:
        backbone: see :class:`GeneralizedRCNN`.
        num_classes: number of classes with background; None if ``box_predictor`` is given.
        min_size, max_size, image_mean, image_std, **kwargs: see :class:`GeneralizedRCNNTransform`.
        rpn_...: see :class:`RegionProposalNetwork`.
        box_..., bbox_reg_weights: see :class:`RoIHeads`.
        exact_anchors: anchors without rounding, see :class:`.anchor_utils.ExactAnchorGenerator`.
        stride_in_1x1: move the strides of the backbone's bottlenecks into their first 1x1 convolutions.
        aligned: of RoIAlign in all branches, see :func:`fastmask.ops.roi_align`.
        box_pooling: "roi_align", or "roi_pool" for comparisons with RoIPool: how features of boxes are pooled, in place
            of ``box_roi_pool``; a mask branch follows.
        sampling_ratio: samples a bin and axis of RoIAlign in all branches, 0 for as many as there are pixels, as
            torchvision's -1 (Mask R-CNN, section 3: "not sensitive" to it); or one for each feature map.
        rpn_loss: "bce", or "focal" (arXiv 1708.02002): the loss of objectness, of the sampled anchors.
        box_loss: the loss of the box head's boxes: "smooth_l1", "l1", "weighted_smooth_l1", "giou" (arXiv 1902.09630),
            "diou" or "ciou" (arXiv 1911.08287); see :mod:`fastmask.models.detection._named_losses`.
        box_nms: "hard", or "soft_linear" or "soft_gaussian" (arXiv 1704.04503, sigma 0.5): boxes that overlap a better
            one of their class by more than box_nms_thresh, or at all, then stay with lower scores, which must still
            exceed box_score_thresh (and 0.001); the best box_detections_per_img are kept.

    Raises:
        ValueError, TypeError: arguments that exclude each other, or of the wrong kind.

    Source: torchvision/models/detection/faster_rcnn.py, with its defaults.
    """

    _rpn_type, _roi_heads_type = RegionProposalNetwork, RoIHeads  # of a model with stages of its own, others

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
        *,
        exact_anchors: bool = False,
        stride_in_1x1: bool = False,
        aligned: bool = False,
        box_pooling: str = "roi_align",
        sampling_ratio: int | Sequence[int] = SAMPLING_RATIO,
        rpn_loss: str = "bce",
        box_loss: str = "smooth_l1",
        box_nms: BoxNms = "hard",
        **kwargs: Any,
    ) -> None:
        check_choice("rpn_loss", rpn_loss, CHOICES["rpn_loss"])
        check_choice("box_loss", box_loss, CHOICES["box_loss"])
        check_choice("box_nms", box_nms, BOX_NMS)
        for name in ("mask_head", "mask_classes", "mask_loss"):  # which a Mask R-CNN takes out
            if name in kwargs:
                raise ValueError(f"{name} must be given to a Mask R-CNN only, got a {type(self).__name__}")
        _check_type("rpn_anchor_generator", rpn_anchor_generator, AnchorGenerator)
        _check_type("box_roi_pool", box_roi_pool, MultiScaleRoIAlign)
        if (num_classes is None) == (box_predictor is None):
            raise ValueError(
                f"num_classes or box_predictor must be given, got {'both' if box_predictor else 'neither'}"
            )
        channels = _out_channels(backbone)
        rpn_anchor_generator = choose_anchors(rpn_anchor_generator, exact_anchors, backbone)
        if stride_in_1x1:
            _move_strides(backbone)
        if rpn_head is None:
            rpn_head = RPNHead(channels, rpn_anchor_generator.num_anchors_per_location()[0])
        rpn = self._rpn_type(
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
        rpn.rpn_loss = rpn_loss
        box_roi_pool = choose_box_pooler(box_roi_pool, box_pooling, sampling_ratio, aligned, backbone)
        if box_head is None:
            box_head = TwoMLPHead(channels * box_roi_pool.output_size[0] ** 2, 1024)
        if box_predictor is None:
            assert num_classes is not None
            box_predictor = FastRCNNPredictor(1024, num_classes)
        roi_heads = self._roi_heads_type(
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
        roi_heads.box_loss = box_loss
        roi_heads.box_nms = box_nms
        mean = list(IMAGE_MEAN) if image_mean is None else image_mean
        std = list(IMAGE_STD) if image_std is None else image_std
        transform = GeneralizedRCNNTransform(min_size, max_size, mean, std, **kwargs)
        super().__init__(backbone, rpn, roi_heads, transform)


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


class FasterRCNN_MobileNet_V3_Large_FPN_Weights(WeightsEnum):  # noqa: N801
    """COCO weights of :func:`fasterrcnn_mobilenet_v3_large_fpn`."""

    COCO_V1 = coco_weights(
        "fasterrcnn_mobilenet_v3_large_fpn-fb6a3cc7.pth",
        19386354,
        "tree/main/references/detection#faster-r-cnn-mobilenetv3-large-fpn",
        box_map=32.8,
    )
    DEFAULT = COCO_V1


class FasterRCNN_MobileNet_V3_Large_320_FPN_Weights(WeightsEnum):  # noqa: N801
    """COCO weights of :func:`fasterrcnn_mobilenet_v3_large_320_fpn`."""

    COCO_V1 = coco_weights(
        "fasterrcnn_mobilenet_v3_large_320_fpn-907ea3f9.pth",
        19386354,
        "tree/main/references/detection#faster-r-cnn-mobilenetv3-large-320-fpn",
        box_map=22.8,
    )
    DEFAULT = COCO_V1


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


@register_model(
    FasterRCNN_MobileNet_V3_Large_FPN_Weights,
    pretrained=FasterRCNN_MobileNet_V3_Large_FPN_Weights.COCO_V1,
    pretrained_backbone=MobileNet_V3_Large_Weights.IMAGENET1K_V1,
)
def fasterrcnn_mobilenet_v3_large_fpn(
    *,
    weights: FasterRCNN_MobileNet_V3_Large_FPN_Weights | str | os.PathLike[str] | None = None,
    progress: bool = True,
    num_classes: int | None = None,
    weights_backbone: MobileNet_V3_Large_Weights | str | None = MobileNet_V3_Large_Weights.IMAGENET1K_V1,
    trainable_backbone_layers: int | None = None,
    new_predictors: bool = False,
    **kwargs: Any,
) -> FasterRCNN:
    """Faster R-CNN with a MobileNetV3 and a pyramid of strides 32, 32 and 64, for images of 800 pixels.

    Arguments as :func:`fasterrcnn_resnet50_fpn`, but that there are 6 backbone layers, of which 3 are trained.
    """
    trained = find_weights(FasterRCNN_MobileNet_V3_Large_FPN_Weights, weights)
    options = {"rpn_score_thresh": 0.05} | kwargs
    layers = trainable_backbone_layers
    return _build_mobilenet(trained, progress, num_classes, weights_backbone, layers, new_predictors, options)


@register_model(
    FasterRCNN_MobileNet_V3_Large_320_FPN_Weights,
    pretrained=FasterRCNN_MobileNet_V3_Large_320_FPN_Weights.COCO_V1,
    pretrained_backbone=MobileNet_V3_Large_Weights.IMAGENET1K_V1,
)
def fasterrcnn_mobilenet_v3_large_320_fpn(
    *,
    weights: FasterRCNN_MobileNet_V3_Large_320_FPN_Weights | str | os.PathLike[str] | None = None,
    progress: bool = True,
    num_classes: int | None = None,
    weights_backbone: MobileNet_V3_Large_Weights | str | None = MobileNet_V3_Large_Weights.IMAGENET1K_V1,
    trainable_backbone_layers: int | None = None,
    new_predictors: bool = False,
    **kwargs: Any,
) -> FasterRCNN:
    """The same model for images of 320 pixels, with few proposals; see :func:`fasterrcnn_mobilenet_v3_large_fpn`."""
    trained = find_weights(FasterRCNN_MobileNet_V3_Large_320_FPN_Weights, weights)
    options = {"min_size": 320, "max_size": 640, "rpn_score_thresh": 0.05}
    options |= {"rpn_pre_nms_top_n_test": 150, "rpn_post_nms_top_n_test": 150} | kwargs
    layers = trainable_backbone_layers
    return _build_mobilenet(trained, progress, num_classes, weights_backbone, layers, new_predictors, options)


def _build_mobilenet(
    weights: Source,
    progress: bool,
    num_classes: int | None,
    weights_backbone: MobileNet_V3_Large_Weights | str | None,
    trainable_layers: int | None,
    new_predictors: bool,
    options: dict[str, Any],
) -> FasterRCNN:
    backbone_weights = MobileNet_V3_Large_Weights.verify(weights_backbone)
    sizes = ((32, 64, 128, 256, 512),) * 3
    model = FasterRCNN(
        make_mobilenet_backbone(weights, backbone_weights, progress, trainable_layers),
        choose_num_classes(num_classes, weights, new_predictors),
        **{"rpn_anchor_generator": AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * len(sizes))} | options,
    )
    load_weights(model, weights, progress, new_predictors)
    return model
