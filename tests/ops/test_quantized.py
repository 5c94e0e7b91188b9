"""Quantized tensors: each op raises a ValueError that names the argument; two of torchvision's take them on a CPU."""

import re
import warnings
from collections.abc import Callable

import pytest
import torch
import torchvision
from torch import Tensor

from fastmask import ops, patch_torchvision

x = torch.arange(96.0).view(2, 3, 4, 4)
rois = torch.tensor([[0.0, 0, 0, 4, 4], [1, 1, 1, 3, 3]])
boxes, scores, masks = torch.tensor([[0.0, 0, 4, 4], [0, 0, 4, 3]]), torch.tensor([0.5, 0.25]), torch.ones(2, 4, 4)
batch = boxes[None], scores[None]


def quantize(values: Tensor) -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # newer torch deprecates quantization
        return torch.quantize_per_tensor(values, 0.5, 0, torch.quint8)


CALLS: dict[str, tuple[tuple[Tensor, ...], Callable[..., object]]] = {
    # name of the op: what it takes, and the call; every tensor is quantized once, alone
    "roi_align": ((x, rois), lambda *args: ops.roi_align(*args, 2)),
    "roi_pool": ((x, rois), lambda *args: ops.roi_pool(*args, 2)),
    "RoIAlign": ((x, rois), lambda *args: ops.RoIAlign(2, 1.0, 2)(*args)),
    "RoIPool": ((x, rois), lambda *args: ops.RoIPool(2, 1.0)(*args)),
    "multilevel_roi_align": ((x, rois), lambda a, b: ops.multilevel_roi_align([a], b, 2, [1.0])),
    "multilevel_roi_pool": ((x, rois), lambda a, b: ops.multilevel_roi_pool([a], b, 2, [1.0])),
    "MultiScaleRoIAlign": (
        (x, boxes, boxes),
        lambda a, *b: ops.MultiScaleRoIAlign(["a"], 2, 2)({"a": a}, list(b), [(4, 4), (4, 4)]),
    ),
    "nms": ((boxes, scores), lambda *args: ops.nms(*args, 0.5)),
    "batched_nms": ((boxes, scores, scores), lambda *args: ops.batched_nms(*args, 0.5)),
    "nms_padded": (batch, lambda *args: ops.nms_padded(*args, iou_threshold=0.5)),
    "soft_nms": ((boxes, scores), ops.soft_nms),
    "batched_soft_nms": ((boxes, scores, scores), ops.batched_soft_nms),
    "soft_nms_padded": (batch, ops.soft_nms_padded),
    "box_area": ((boxes,), ops.box_area),
    "box_convert": ((boxes,), lambda a: ops.box_convert(a, "xyxy", "cxcywh")),
    "box_iou": ((boxes, boxes), ops.box_iou),
    "generalized_box_iou": ((boxes, boxes), ops.generalized_box_iou),
    "distance_box_iou": ((boxes, boxes), ops.distance_box_iou),
    "complete_box_iou": ((boxes, boxes), ops.complete_box_iou),
    "remove_small_boxes": ((boxes,), lambda a: ops.remove_small_boxes(a, 1.0)),
    "masks_to_boxes": ((masks,), ops.masks_to_boxes),
    "generalized_box_iou_loss": ((boxes, boxes), ops.generalized_box_iou_loss),
    "distance_box_iou_loss": ((boxes, boxes), ops.distance_box_iou_loss),
    "complete_box_iou_loss": ((boxes, boxes), ops.complete_box_iou_loss),
    "sigmoid_focal_loss": ((scores, scores), ops.sigmoid_focal_loss),
    "paste_masks": ((masks, boxes), lambda *args: ops.paste_masks(*args, (8, 8))),
    "paste_masks_in_image": ((masks[:, None], boxes), lambda *args: ops.paste_masks_in_image(*args, (8, 8))),
    "encode_masks": ((masks, boxes), lambda *args: ops.encode_masks(*args, (8, 8))),
}


def test_no_op_is_forgotten() -> None:
    functions = {name for name in ops.__all__ if not isinstance(getattr(ops, name), type)}
    assert functions - set(CALLS) == {"clip_boxes_to_image"}


@pytest.mark.parametrize("name", CALLS)
def test_quantized_tensors_are_refused_by_name(name: str) -> None:
    args, call = CALLS[name]
    call(*args)
    for i, value in enumerate(args):
        changed = [*args[:i], quantize(value), *args[i + 1 :]]
        with pytest.raises(ValueError, match=re.compile(r"^[\w\[\]]+ must not be quantized, got torch\.quint8$")):
            call(*changed)


def test_clipping_takes_them_as_torchvision_does() -> None:
    ours = ops.clip_boxes_to_image(quantize(boxes), (3, 2))
    assert torch.equal(ours, torchvision.ops.clip_boxes_to_image(quantize(boxes), (3, 2)))
    assert torch.equal(ours.dequantize(), boxes.clamp(max=torch.tensor([2.0, 3, 2, 3])))
    assert torch.equal(ops.box_convert(quantize(boxes), "xyxy", "xyxy"), quantize(boxes))


def test_patched_torchvision_takes_them_as_before() -> None:
    kept = torchvision.ops.nms(quantize(boxes), quantize(scores), 0.5)
    pooled = torchvision.ops.roi_align(quantize(x[:1]), quantize(rois[:1]), 2)  # its kernel takes one image
    with patch_torchvision():
        assert torch.equal(torchvision.ops.nms(quantize(boxes), quantize(scores), 0.5), kept)
        assert torch.equal(torchvision.ops.roi_align(quantize(x[:1]), quantize(rois[:1]), 2), pooled)
