"""Box decoding: boxes of candidates from regression deltas, clipped to their images, and which of them are valid.

- ``fastmask::decode_boxes`` decodes deltas that are selected already.
- ``fastmask::decode_levels`` decodes an RPN's deltas at the selected anchors, with the sigmoid of their logits.
- ``fastmask::select_candidates`` decodes a box head's deltas for the classes whose softmax is above a threshold.

Source: Fast R-CNN, appendix C; torchvision/models/detection/_utils.py (BoxCoder), rpn.py and roi_heads.py.
Each is one op, because on a GPU its steps on a few thousand boxes are ten to twenty launches. None is differentiable:
training, and compiled or exported programs, call fallback/decode.py, which PyTorch traces.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastmask.kernels.fallback import decode as decode_fallback
from fastmask.kernels.launch import HAS_TRITON, register
from fastmask.kernels.reference import compute_dtype

decode_boxes_op = torch.library.custom_op("fastmask::decode_boxes", decode_fallback.decode_boxes, mutates_args=())
decode_levels_op = torch.library.custom_op("fastmask::decode_levels", decode_fallback.decode_levels, mutates_args=())
select_candidates_op = torch.library.custom_op(
    "fastmask::select_candidates", decode_fallback.select_candidates, mutates_args=()
)


if HAS_TRITON:
    from fastmask.kernels.triton import (
        candidates as candidates_triton,
        decode as decode_triton,
        decode_levels as decode_levels_triton,
    )

    register(decode_boxes_op, decode_triton.decode_boxes, decode_fallback.decode_boxes)
    register(decode_levels_op, decode_levels_triton.decode_levels, decode_fallback.decode_levels)
    register(select_candidates_op, candidates_triton.select_candidates, decode_fallback.select_candidates)


@decode_boxes_op.register_fake
def _(deltas: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    boxes = deltas.new_empty(deltas.shape, dtype=compute_dtype(deltas))
    return boxes, deltas.new_empty(deltas.shape[:2], dtype=torch.bool)


@decode_levels_op.register_fake
def _(
    logits: Tensor, index: Tensor, lengths: Sequence[int], deltas: Sequence[Tensor], *_: Any
) -> tuple[Tensor, Tensor, Tensor]:
    boxes = logits.new_empty((*logits.shape, 4), dtype=compute_dtype(deltas[0]))
    scores = logits.new_empty(logits.shape, dtype=compute_dtype(logits))
    return boxes, scores, logits.new_empty(logits.shape, dtype=torch.bool)


@select_candidates_op.register_fake
def _(
    logits: Tensor, deltas: Tensor, references: Tensor, sizes: Tensor, count: Tensor, slots: int, *_: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    shape = (references.shape[0], references.shape[1] * slots)
    boxes = logits.new_empty((*shape, 4), dtype=compute_dtype(deltas))
    scores = logits.new_empty(shape, dtype=compute_dtype(logits))
    return boxes, logits.new_empty(shape, dtype=torch.int64), scores, logits.new_empty(shape, dtype=torch.bool)
