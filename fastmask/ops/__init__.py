"""Detection ops: torchvision.ops' names and semantics for everything an R-CNN uses, and the padded forms.

The expensive ones are custom ops under ``torch.ops.fastmask``; the functions here check their arguments and call them.
"""

from typing import NoReturn

from fastmask.checks import attribute_error
from fastmask.ops._soft_nms import batched_soft_nms, soft_nms, soft_nms_padded
from fastmask.ops.boxes import (
    batched_nms,
    box_area,
    box_convert,
    box_iou,
    clip_boxes_to_image,
    complete_box_iou,
    distance_box_iou,
    generalized_box_iou,
    masks_to_boxes,
    nms,
    nms_padded,
    remove_small_boxes,
)
from fastmask.ops.ciou_loss import complete_box_iou_loss
from fastmask.ops.diou_loss import distance_box_iou_loss
from fastmask.ops.feature_pyramid_network import FeaturePyramidNetwork, LastLevelMaxPool, LastLevelP6P7
from fastmask.ops.focal_loss import sigmoid_focal_loss
from fastmask.ops.giou_loss import generalized_box_iou_loss
from fastmask.ops.masks import encode_masks, paste_masks, paste_masks_in_image
from fastmask.ops.misc import Conv2dNormActivation, FrozenBatchNorm2d, SqueezeExcitation
from fastmask.ops.poolers import MultiScaleRoIAlign, MultiScaleRoIPool
from fastmask.ops.roi_align import RoIAlign, multilevel_roi_align, roi_align
from fastmask.ops.roi_pool import RoIPool, multilevel_roi_pool, roi_pool

__all__ = [
    "Conv2dNormActivation",
    "FeaturePyramidNetwork",
    "FrozenBatchNorm2d",
    "LastLevelMaxPool",
    "LastLevelP6P7",
    "MultiScaleRoIAlign",
    "MultiScaleRoIPool",
    "RoIAlign",
    "RoIPool",
    "SqueezeExcitation",
    "batched_nms",
    "batched_soft_nms",
    "box_area",
    "box_convert",
    "box_iou",
    "clip_boxes_to_image",
    "complete_box_iou",
    "complete_box_iou_loss",
    "distance_box_iou",
    "distance_box_iou_loss",
    "encode_masks",
    "generalized_box_iou",
    "generalized_box_iou_loss",
    "masks_to_boxes",
    "multilevel_roi_align",
    "multilevel_roi_pool",
    "nms",
    "nms_padded",
    "paste_masks",
    "paste_masks_in_image",
    "remove_small_boxes",
    "roi_align",
    "roi_pool",
    "sigmoid_focal_loss",
    "soft_nms",
    "soft_nms_padded",
]


def __getattr__(name: str) -> NoReturn:
    raise attribute_error(__name__, name)
