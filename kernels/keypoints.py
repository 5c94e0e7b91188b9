"""``fastmask::decode_keypoints``: where a detection's keypoints are, from their heatmaps; inference only.

Each heatmap is resized by bicubic interpolation to its box, whose sides are rounded up to whole pixels, and the largest
sample's center is the keypoint, its value the score. Only samples that can be the largest are computed:
fallback/keypoints.py explains the search, which is exact.
Source: Mask R-CNN section 5; torchvision/models/detection/roi_heads.py heatmaps_to_keypoints.
Differs from torchvision: computes in float32 of half types, gives float64 of float64, and zeros for boxes that are not
finite or exceed the given height and width. No output is differentiable; there, keypoints_scores are.
"""

from typing import Any

import torch
from torch import Tensor

from fastmask.kernels.fallback import keypoints as keypoints_fallback
from fastmask.kernels.launch import HAS_TRITON, register
from fastmask.kernels.reference import compute_dtype

MOST_PIXELS = 2**15  # of a box's side, where there is no image that bounds it

decode_keypoints_op = torch.library.custom_op(
    "fastmask::decode_keypoints", keypoints_fallback.decode_keypoints, mutates_args=()
)

if HAS_TRITON:
    from fastmask.kernels.triton import keypoints as keypoints_triton

    register(decode_keypoints_op, keypoints_triton.decode_keypoints, keypoints_fallback.decode_keypoints)


@decode_keypoints_op.register_fake
def _(heatmaps: Tensor, boxes: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    number, points = heatmaps.shape[:2]
    dtype = compute_dtype(heatmaps, boxes)
    return heatmaps.new_empty(number, points, 3, dtype=dtype), heatmaps.new_empty(number, points, dtype=dtype)
