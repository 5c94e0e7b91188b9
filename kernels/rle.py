"""``fastmask::encode_masks``: COCO run-length encoding (RLE) of M x M masks in boxes; full-size masks never exist.

Order: runs down the columns, zeros first. The bytes are those of encoding what ``fastmask::paste_masks`` gives as bool.
Source: cocoapi/common/maskApi.c rleEncode, rleToString.
"""

from typing import Any

import torch
from torch import Tensor

from fastmask.kernels.fallback import masks as masks_fallback
from fastmask.kernels.launch import HAS_TRITON, register

encode_masks_op = torch.library.custom_op("fastmask::encode_masks", masks_fallback.encode_masks, mutates_args=())


if HAS_TRITON:
    from fastmask.kernels.triton import rle as rle_triton

    register(encode_masks_op, rle_triton.encode_masks, masks_fallback.encode_masks)


@encode_masks_op.register_fake
def _(masks: Tensor, boxes: Tensor, sizes: Tensor, capacity: int, *_: Any) -> tuple[Tensor, Tensor]:
    offsets = masks.new_empty(masks.shape[0] + 1, dtype=torch.int64)
    return masks.new_empty(capacity, dtype=torch.uint8), offsets
