"""Convolution epilogue, eager fallback: bias, residual and ReLU; logits and deltas of an RPN."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fastmask.kernels.reference import compute_dtype


def bias_act_(y: Tensor, bias: Tensor, residual: Tensor | None, relu: bool) -> None:
    """Add bias [C] and residual to y [B, C, H, W], then clamp at 0 if ``relu``, in place.

    The residual is [B, C, H, W], or [B, C, h, w] of another size, of which the nearest pixel counts.
    """
    sums = y.to(compute_dtype(y))  # y itself, unless it is of a half type
    sums.add_(bias[:, None, None])
    if residual is not None:
        if residual.shape[2:] != y.shape[2:]:
            residual = F.interpolate(residual, size=y.shape[2:], mode="nearest")
        sums.add_(residual)
    if relu:
        sums.relu_()
    if sums is not y:
        y.copy_(sums)


def predict_anchors(
    hidden: Sequence[Tensor], hidden_bias: Tensor, weight: Tensor, bias: Tensor, anchors: int
) -> tuple[Tensor, Tensor]:
    """Hidden maps [B, C, H_l, W_l] without bias -> logits [P, A] and box deltas [P, 4 * A] of all levels' pixels.

    ``hidden_bias`` [C]; ``weight`` [5 * A, C] and ``bias`` [5 * A], of the logits first; P runs over levels, images,
    rows, columns.
    """
    outputs = []
    for level in hidden:
        values = (level.to(compute_dtype(level)) + hidden_bias[:, None, None]).relu_().to(level.dtype)
        outputs.append(F.linear(values.permute(0, 2, 3, 1).flatten(0, 2), weight, bias))
    both = torch.cat(outputs).split((anchors, 4 * anchors), dim=1)
    logits, deltas = (values.clone(memory_format=torch.contiguous_format) for values in both)
    return logits, deltas


def linear_add_relu(x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor) -> Tensor:
    """x [P, K], weight [N, K], bias [N], residual [P, N] -> relu(x @ weight.T + bias + residual) [P, N]."""
    sums = (x @ weight.t()).to(compute_dtype(x))
    return sums.add_(bias).add_(residual).relu_().to(x.dtype)
