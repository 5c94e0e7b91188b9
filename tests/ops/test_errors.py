"""Bad arguments: each raises a ValueError with name, rule and actual, before anything is computed."""

import re
from collections.abc import Callable

import pytest
import torch

from fastmask import ops

x = torch.zeros(2, 3, 8, 8)
rois = torch.zeros(4, 5)
boxes, scores = torch.zeros(6, 4), torch.zeros(6)
masks = torch.zeros(6, 5, 5)
batch = (torch.zeros(2, 6, 4), torch.zeros(2, 6))
meta = torch.device("meta")

ERRORS: dict[str, Callable[[], object]] = {
    # roi_align, and what it shares with the others
    "input must be [N, C, H, W], got (3, 8, 8)": lambda: ops.roi_align(x[0], rois, 2),
    "input must be a tensor, got list": lambda: ops.roi_align([x], rois, 2),
    "input must be floating point, got torch.int64": lambda: ops.roi_align(x.long(), rois, 2),
    "rois must be [K, 5], got (3, 4)": lambda: ops.roi_align(x, torch.zeros(3, 4), 2),
    "rois must be [K, 5], got (5,)": lambda: ops.roi_align(x, torch.zeros(5), 2),
    "rois must be floating point, got torch.int64": lambda: ops.roi_align(x, rois.long(), 2),
    "rois must be on cpu, got meta": lambda: ops.roi_align(x, rois.to(meta), 2),
    "boxes must be a tensor [K, 5] or a list of tensors [L, 4], got []": lambda: ops.roi_align(x, [], 2),
    "boxes must be a tensor [K, 5] or a list of tensors [L, 4], got None": lambda: ops.roi_align(x, None, 2),
    "boxes must have at most one tensor an image (2), got 3": lambda: ops.roi_align(x, [boxes] * 3, 2),
    "boxes[1] must be [L, 4], got (4, 5)": lambda: ops.roi_align(x, [boxes, rois], 2),
    "boxes[1] must be a tensor, got int": lambda: ops.roi_align(x, [boxes, 7], 2),
    "boxes[0] must be floating point, got torch.int64": lambda: ops.roi_align(x, [boxes.long()], 2),
    "boxes[0] must be on cpu, got meta": lambda: ops.roi_align(x, [boxes.to(meta)], 2),
    "output_size must be at least 1, got (0, 7)": lambda: ops.roi_align(x, rois, (0, 7)),
    "output_size must be at least 1, got (-1, -1)": lambda: ops.roi_align(x, rois, -1),
    "output_size must be an int or (height, width), got (1, 2, 3)": lambda: ops.roi_align(x, rois, (1, 2, 3)),
    "spatial_scale must be positive, got -1.0": lambda: ops.roi_align(x, rois, 2, -1.0),
    "spatial_scale must be positive, got nan": lambda: ops.roi_pool(x, rois, 2, float("nan")),
    "scales[1] must be positive, got 0": lambda: ops.multilevel_roi_align([x, x], rois, 2, [1.0, 0]),
    # multilevel_roi_align
    "features must be a list of at least one level, got list": lambda: ops.multilevel_roi_align([], rois, 2, []),
    "scales must have one entry a level (2), got 1": lambda: ops.multilevel_roi_align([x, x], rois, 2, [1.0]),
    "features[1] must be [N, C, H, W], got (3, 8, 8)": lambda: ops.multilevel_roi_align([x, x[0]], rois, 2, [1.0, 0.5]),
    "features[1] must have N, C = (2, 3), got (1, 3)": lambda: ops.multilevel_roi_align(
        [x, x[:1]], rois, 2, [1.0, 0.5]
    ),
    "features[1] must be torch.float32, got torch.float16": lambda: ops.multilevel_roi_align(
        [x, x.half()], rois, 2, [1.0, 0.5]
    ),
    "features[1] must be on cpu, got meta": lambda: ops.multilevel_roi_align([x, x.to(meta)], rois, 2, [1.0, 0.5]),
    "features must be a list of at least one level, got Tensor": lambda: ops.multilevel_roi_align(x, rois, 2, [1.0]),
    "output_size must be an int or (height, width), got 7.0": lambda: ops.roi_align(x, rois, 7.0),
    # roi_pool
    "input must be floating point, got torch.int32": lambda: ops.roi_pool(x.int(), rois, 2),
    "input must be [N, C, H, W], got (2, 3, 64)": lambda: ops.roi_pool(x.flatten(2), rois, 2),
    "rois must be [K, 5], got (6, 4)": lambda: ops.roi_pool(x, boxes, 2),
    "output_size must be at least 1, got (2, 0)": lambda: ops.roi_pool(x, rois, (2, 0)),
    # MultiScaleRoIAlign
    "x must have one of the maps ['a'], got ['b']": lambda: ops.MultiScaleRoIAlign(["a"], 2, 2)({"b": x}, [boxes], []),
    "image_shapes must not be empty, got []": lambda: ops.MultiScaleRoIAlign(["a"], 2, 2)({"a": x}, [boxes], []),
    "maps and images must have pixels, got heights 0 and 9": lambda: ops.MultiScaleRoIAlign(["a"], 2, 2)(
        {"a": x[:, :, :0]}, [boxes], [(9, 9)]
    ),
    # NMS
    "boxes must be [N, 4], got (6, 5)": lambda: ops.nms(torch.zeros(6, 5), scores, 0.5),
    "scores must be [6], got (5,)": lambda: ops.nms(boxes, scores[:5], 0.5),
    "boxes must be floating point, got torch.int64": lambda: ops.nms(boxes.long(), scores, 0.5),
    "scores must be floating point, got torch.int64": lambda: ops.nms(boxes, scores.long(), 0.5),
    "scores must be on cpu, got meta": lambda: ops.nms(boxes, scores.to(meta), 0.5),
    "iou_threshold must be a number, got nan": lambda: ops.nms(boxes, scores, float("nan")),
    "idxs must be [6], got (6, 1)": lambda: ops.batched_nms(boxes, scores, scores[:, None], 0.5),
    "idxs must be on cpu, got meta": lambda: ops.batched_nms(boxes, scores, scores.to(meta), 0.5),
    "boxes must be [B, N, 4], got (6, 4)": lambda: ops.nms_padded(boxes, scores, iou_threshold=0.5),
    "scores must be [2, 6], got (2, 5)": lambda: ops.nms_padded(batch[0], batch[1][:, :5], iou_threshold=0.5),
    "groups must be [2, 6], got (6,)": lambda: ops.nms_padded(*batch, scores.long(), iou_threshold=0.5),
    "groups must be integer, got torch.float32": lambda: ops.nms_padded(*batch, batch[1], iou_threshold=0.5),
    "valid must be [2, 6], got (6,)": lambda: ops.nms_padded(*batch, None, scores.bool(), iou_threshold=0.5),
    "valid must be bool, got torch.float32": lambda: ops.nms_padded(*batch, None, batch[1], iou_threshold=0.5),
    "valid must be on cpu, got meta": lambda: ops.nms_padded(*batch, None, batch[1].bool().to(meta), iou_threshold=0.5),
    "max_output must be at least 0, got -1": lambda: ops.nms_padded(*batch, iou_threshold=0.5, max_output=-1),
    "sigma must be above 0, got 0": lambda: ops.soft_nms(boxes, scores, sigma=0),
    "score_threshold must be at least 0, got -0.1": lambda: ops.batched_soft_nms(
        boxes, scores, scores, score_threshold=-0.1
    ),
    "method must be one of linear, gaussian, got 'hard'": lambda: ops.soft_nms_padded(*batch, method="hard"),
    # boxes
    "boxes must be [..., 4], got (6,)": lambda: ops.remove_small_boxes(scores, 1.0),
    "boxes must be [..., 4], got (4, 5)": lambda: ops.clip_boxes_to_image(rois, (9, 9)),
    "boxes must be a tensor, got list": lambda: ops.box_area([[0, 0, 1, 1]]),
    "groups must be on cpu, got meta": lambda: ops.nms_padded(*batch, batch[1].long().to(meta), iou_threshold=0.5),
    "size must be at least 0, got (-1, 9)": lambda: ops.clip_boxes_to_image(boxes, (-1, 9)),
    "boxes must be [..., 5], got (6, 4)": lambda: ops.box_convert(boxes, "xywhr", "cxcywhr"),
    "out_fmt must be one of xyxy, xywh, cxcywh, xywhr, cxcywhr, xyxyxyxy, got 'corners'": lambda: ops.box_convert(
        boxes, "xyxy", "corners"
    ),
    "fmt must be one of xyxy, xywh, cxcywh, got 'xywhr'": lambda: ops.box_area(boxes, "xywhr"),
    "boxes2 must be [..., 4], got (4, 5)": lambda: ops.box_iou(boxes, rois),
    "boxes1 must be [N, 5], got (6, 4)": lambda: ops.box_iou(boxes, rois, "cxcywhr"),
    "boxes1 must be [..., 4], got (4, 5)": lambda: ops.generalized_box_iou(rois, boxes),
    "boxes1 must be [..., 4], got ()": lambda: ops.distance_box_iou(scores[0], boxes),
    "boxes2 must be [..., 4], got (6,)": lambda: ops.complete_box_iou(boxes, scores),
    "masks must be [N, H, W], got (6, 4)": lambda: ops.masks_to_boxes(boxes),
    # losses
    "boxes1 and boxes2 must be [..., 4] and broadcast, got (6, 4) and (4, 5)": lambda: ops.generalized_box_iou_loss(
        boxes, rois
    ),
    "boxes1 and boxes2 must be [..., 4] and broadcast, got (4, 5) and (4, 5)": lambda: ops.distance_box_iou_loss(
        rois, rois
    ),
    "boxes1 and boxes2 must be [..., 4] and broadcast, got (6, 4) and (5, 4)": lambda: ops.complete_box_iou_loss(
        boxes, boxes[:5]
    ),
    "Invalid reduction: reduction must be one of none, mean, sum, got 'avg'": lambda: ops.complete_box_iou_loss(
        boxes, boxes, "avg"
    ),
    "targets must be (6,), got (5,)": lambda: ops.sigmoid_focal_loss(scores, scores[:5]),
    "Invalid alpha value: alpha must be in [0, 1], or -1 for none, got 2": lambda: ops.sigmoid_focal_loss(
        scores, scores, 2
    ),
    # masks
    "masks must be [N, 1, M, M], got (6, 5, 5)": lambda: ops.paste_masks_in_image(masks, boxes, (9, 9)),
    "masks must be [N, M, M], got (6, 2, 5, 5)": lambda: ops.paste_masks(
        masks[:, None].repeat(1, 2, 1, 1), boxes, (9, 9)
    ),
    "masks must be square and not empty, got (6, 5, 4)": lambda: ops.paste_masks(masks[:, :, :4], boxes, (9, 9)),
    "masks must be square and not empty, got (6, 0, 0)": lambda: ops.encode_masks(masks[:, :0, :0], boxes, (9, 9)),
    "masks must be floating point, got torch.bool": lambda: ops.paste_masks(masks.bool(), boxes, (9, 9)),
    "boxes must be [6, 4], got (5, 4)": lambda: ops.paste_masks(masks, boxes[:5], (9, 9)),
    "boxes must be floating point, got torch.int32": lambda: ops.encode_masks(masks, boxes.int(), (9, 9)),
    "boxes must be on cpu, got meta": lambda: ops.encode_masks(masks, boxes.to(meta), (9, 9)),
    "img_shape must be at least 0, got (9, -1)": lambda: ops.paste_masks(masks, boxes, (9, -1)),
    "img_shape must be an int or (height, width), got (1, 2, 3)": lambda: ops.encode_masks(masks, boxes, (1, 2, 3)),
    "img_shape must be [6, 2], got (2, 2)": lambda: ops.encode_masks(masks, boxes, torch.ones(2, 2).long()),
    "img_shape must be integer, got torch.float32": lambda: ops.encode_masks(masks, boxes, torch.ones(6, 2)),
    "img_shape must be on cpu, got meta": lambda: ops.encode_masks(masks, boxes, torch.ones(6, 2, device=meta).long()),
    "output must be one of bool, packed, float, got 'uint8'": lambda: ops.paste_masks(
        masks, boxes, (9, 9), output="uint8"
    ),
    "mode must be one of torchvision, continuous, got 'd2'": lambda: ops.encode_masks(masks, boxes, (9, 9), mode="d2"),
    "padding must be at least 0, got -1": lambda: ops.paste_masks(masks, boxes, (9, 9), padding=-1),
}


@pytest.mark.parametrize("message", ERRORS)
def test_message(message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        ERRORS[message]()
