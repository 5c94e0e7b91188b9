"""fastmask's ops in the signatures of torchvision's, and the conditions under which patch.py replaces each of them."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastmask import ops
from fastmask.checks import check_floating, check_shape, rois_from_boxes
from fastmask.kernels.keypoints import MOST_PIXELS, decode_keypoints_op
from fastmask.kernels.roi_align import multilevel_roi_align_backward_op
from fastmask.kernels.roi_pool import roi_pool_backward_op, roi_pool_op
from fastmask.ops.roi_align import follow_format


def nms(dets: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    return ops.nms(dets, scores, iou_threshold)


def batched_nms(boxes: Tensor, scores: Tensor, idxs: Tensor, iou_threshold: float) -> Tensor:
    return ops.batched_nms(boxes, scores, idxs, iou_threshold)


def roi_align(
    input: Tensor,
    rois: Tensor,
    spatial_scale: float,
    pooled_height: int,
    pooled_width: int,
    sampling_ratio: int,
    aligned: bool,
) -> Tensor:
    pooled = ops.roi_align(input, rois, (pooled_height, pooled_width), spatial_scale, sampling_ratio, aligned)
    return pooled.contiguous()  # torchvision's shape functions promise it to torch.compile, here and below


def roi_align_backward(
    grad: Tensor,
    rois: Tensor,
    spatial_scale: float,
    pooled_height: int,
    pooled_width: int,
    batch_size: int,
    channels: int,
    height: int,
    width: int,
    sampling_ratio: int,
    aligned: bool,
) -> Tensor:
    scales, limits = [spatial_scale], [float("inf")]
    sizes = (batch_size, [height], [width])
    features: Tensor
    (features,) = multilevel_roi_align_backward_op(grad, rois, *sizes, scales, limits, sampling_ratio, aligned)
    return features.contiguous()


def roi_pool(
    input: Tensor, rois: Tensor, spatial_scale: float, pooled_height: int, pooled_width: int
) -> tuple[Tensor, Tensor]:
    check_shape("input", input, "N", "C", "H", "W")
    check_floating("input", input)
    rois = rois_from_boxes(rois, input)
    pooled, argmax = roi_pool_op(input, rois, spatial_scale, pooled_height, pooled_width)
    return pooled.contiguous(), argmax.to(torch.int32).contiguous()


def roi_pool_backward(
    grad: Tensor,
    rois: Tensor,
    argmax: Tensor,
    spatial_scale: float,
    pooled_height: int,
    pooled_width: int,
    batch_size: int,
    channels: int,
    height: int,
    width: int,
) -> Tensor:
    features: Tensor = roi_pool_backward_op(grad, rois, argmax, spatial_scale, batch_size, height, width)
    return features.contiguous()


KERNELS: dict[str, Callable[..., Any]] = {
    "nms": nms,
    "roi_align": roi_align,
    "_roi_align_backward": roi_align_backward,
    "roi_pool": roi_pool,
    "_roi_pool_backward": roi_pool_backward,
}


def roi_align_shape(input: Tensor, rois: Tensor, _: float, height: int, width: int, *__: Any) -> Tensor:
    return input.new_empty((rois.shape[0], input.shape[1], height, width))


def roi_align_backward_shape(
    grad: Tensor,
    rois: Tensor,
    _: float,
    __: int,
    ___: int,
    batch: int,
    channels: int,
    height: int,
    width: int,
    *____: Any,
) -> Tensor:
    return grad.new_empty((batch, channels, height, width))


def roi_pool_shape(input: Tensor, rois: Tensor, _: float, height: int, width: int) -> tuple[Tensor, Tensor]:
    pooled = input.new_empty((rois.shape[0], input.shape[1], height, width))
    return pooled, pooled.new_empty(pooled.shape, dtype=torch.int32)


def roi_pool_backward_shape(grad: Tensor, rois: Tensor, argmax: Tensor, *others: Any) -> Tensor:
    return roi_align_backward_shape(grad, rois, *others)


def fits_any(*_: Any) -> bool:
    return True


def has_boxes(boxes: Tensor, *_: Any) -> bool:
    return boxes.ndim == 2


def has_usual_levels(
    features: list[Tensor], boxes: list[Tensor], output_size: Any, sampling_ratio: int, scales: Any, mapper: Any
) -> bool:
    """Whether the mapper is torchvision's own, over levels without a gap."""
    from torchvision.ops.poolers import LevelMapper

    if scales is None or type(mapper) is not LevelMapper or mapper.eps != 1e-6:
        return False
    levels = range(int(mapper.k_min), int(mapper.k_max) + 1)
    return list(scales) == [2.0**-level for level in levels]


def multiscale_roi_align(
    features: list[Tensor], boxes: list[Tensor], output_size: Any, sampling_ratio: int, scales: Any, mapper: Any
) -> Tensor:
    """torchvision.ops.poolers._multiscale_roi_align in one op."""
    features = [feature.to(features[0].dtype) for feature in features]  # autocast may have mixed them
    pooled = ops.multilevel_roi_align(
        features,
        rois_from_boxes(boxes, features[0]),
        output_size,
        scales,
        sampling_ratio,
        canonical_scale=mapper.s0,
        canonical_level=mapper.lvl0,
    )
    return follow_format(pooled, features[0])


def can_paste(masks: Tensor, boxes: Tensor, img_shape: Any, padding: int = 1) -> bool:
    whole = all(isinstance(side, int) for side in img_shape)
    return masks.ndim == 4 and masks.shape[1] == 1 and boxes.is_floating_point() and whole


def paste_masks_in_image(masks: Tensor, boxes: Tensor, img_shape: Any, padding: int = 1) -> Tensor:
    return ops.paste_masks_in_image(masks, boxes.detach(), img_shape, padding)


def can_decode(maps: Tensor, rois: Tensor) -> bool:
    """Whether no gradient is asked for, which torchvision's scores have."""
    gradient = torch.is_grad_enabled() and (maps.requires_grad or rois.requires_grad)
    return maps.ndim == 4 and tuple(rois.shape) == (len(maps), 4) and maps.is_floating_point() and not gradient


def heatmaps_to_keypoints(maps: Tensor, rois: Tensor) -> tuple[Tensor, Tensor]:
    keypoints, scores = decode_keypoints_op(maps, rois, MOST_PIXELS, MOST_PIXELS)
    return keypoints.float(), scores.float()
