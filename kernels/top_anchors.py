"""``fastmask::top_anchors``: top-k anchors of each level by their logits, an RPN's candidates before NMS.

Source: Faster R-CNN, section 3.3 of arXiv 1506.01497; torchvision/models/detection/rpn.py (_get_top_n_idx).
Differs from torchvision: of equal logits the first anchor comes first, on every device.
It is one op, because torch.topk of five levels is 5 x 16 launches on a GPU. Compiled and exported programs call
PyTorch's own operations instead.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from fastmask.kernels.fallback import top_anchors as top_anchors_fallback
from fastmask.kernels.launch import HAS_TRITON, register

top_anchors_op = torch.library.custom_op("fastmask::top_anchors", top_anchors_fallback.top_anchors, mutates_args=())


if HAS_TRITON:
    from fastmask.kernels.triton import top_anchors as top_anchors_triton

    register(top_anchors_op, top_anchors_triton.top_anchors, top_anchors_fallback.top_anchors)


@top_anchors_op.register_fake
def _(logits: Sequence[Tensor], number: int) -> tuple[Tensor, Tensor]:
    kept = sum(min(number, level.shape[1] * level.shape[2] * level.shape[3]) for level in logits)
    best = logits[0].new_empty(logits[0].shape[0], kept)
    return best, torch.empty_like(best, dtype=torch.int64)
