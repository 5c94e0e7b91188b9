"""``fastmask::predict_anchors``: a Region Proposal Network's logits and deltas of each anchor, from its hidden maps.

logits, deltas = split(W relu(hidden + bias) + b), over the pixels of all levels: the end of Faster R-CNN's RPN
(arXiv 1506.01497, section 3.1), its two 1x1 convolutions as one matrix product that reads the hidden maps once.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from fastmask.kernels.fallback import bias_act as bias_act_fallback
from fastmask.kernels.launch import HAS_TRITON, register

predict_anchors_op = torch.library.custom_op(
    "fastmask::predict_anchors", bias_act_fallback.predict_anchors, mutates_args=()
)


if HAS_TRITON:
    from fastmask.kernels.triton import predict_anchors as predict_anchors_triton

    register(predict_anchors_op, predict_anchors_triton.predict_anchors, bias_act_fallback.predict_anchors)


@predict_anchors_op.register_fake
def _(
    hidden: Sequence[Tensor], hidden_bias: Tensor, weight: Tensor, bias: Tensor, anchors: int
) -> tuple[Tensor, Tensor]:
    pixels = sum(level.shape[0] * level.shape[2] * level.shape[3] for level in hidden)
    return weight.new_empty(pixels, anchors), weight.new_empty(pixels, 4 * anchors)
