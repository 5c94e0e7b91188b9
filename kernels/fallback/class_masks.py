"""Mask branch's last layers, eager fallback, layer by layer. Specification: reference_layers.class_masks."""

import torch
import torch.nn.functional as F
from torch import Tensor

from fastmask.kernels.reference import compute_dtype


def class_masks(
    hidden: Tensor, weight: Tensor, bias: Tensor, last_weight: Tensor, last_bias: Tensor, labels: Tensor, count: Tensor
) -> Tensor:
    """[N, C, h, w], [C, D, 2, 2], [D], [K, D], [K], labels [N], count [B] -> probabilities [N, 2h, 2w].

    In float32, or float64 where ``hidden`` is; rows from their image's count on, and without a class, are zeros.
    """
    known = (labels >= 0) & (labels < len(last_weight))
    own = labels.where(known, 0)
    up = F.conv_transpose2d(hidden, weight, bias, stride=2).relu_()  # [N, D, 2h, 2w]
    logits = torch.einsum("nd,ndhw->nhw", last_weight[own], up)  # one dot product a pixel, not one for every class
    masks = (logits + last_bias[own, None, None]).to(compute_dtype(hidden)).sigmoid()
    rows = torch.arange(len(hidden) // max(len(count), 1), device=hidden.device)
    valid = (rows < count[:, None]).flatten() & known
    return masks.masked_fill(~valid[:, None, None], 0)
