"""Sigmoid focal loss; torchvision.ops.focal_loss' names."""

import torch
import torch.nn.functional as F
from torch import Tensor

from fastmask.checks import ArgumentError, check_tensor, not_scriptable, reduce_loss


@not_scriptable
def sigmoid_focal_loss(
    inputs: Tensor, targets: Tensor, alpha: float = 0.25, gamma: float = 2, reduction: str = "none"
) -> Tensor:
    """Focal loss on sigmoids, for dense detection (arXiv 1708.02002).

    Args:
        inputs (Tensor[...]): logits, any float dtype.
        targets (Tensor[...]): 0 or 1, of the same shape and dtype.
        alpha: weight of positives, in [0, 1]; -1 for none.
        gamma: exponent of (1 - p of the true class).
        reduction: 'none', 'mean' or 'sum'.

    Returns:
        Tensor[...], or a scalar.

    Raises:
        ValueError: the shapes, alpha or the reduction do not fit.

    Source: torchvision/ops/focal_loss.py.
    """
    if not isinstance(inputs, torch.fx.Proxy):  # which has no shape
        check_tensor("inputs", inputs)
        check_tensor("targets", targets)
        if inputs.shape != targets.shape:
            raise ArgumentError(f"targets must be {tuple(inputs.shape)}, got {tuple(targets.shape)}")
    if not 0 <= alpha <= 1 and alpha != -1:
        raise ArgumentError(f"Invalid alpha value: alpha must be in [0, 1], or -1 for none, got {alpha}")
    p = torch.sigmoid(inputs)
    p_true = p * targets + (1 - p) * (1 - targets)
    loss = F.binary_cross_entropy_with_logits(inputs, targets, reduction="none") * (1 - p_true) ** gamma
    if alpha >= 0:
        loss = (alpha * targets + (1 - alpha) * (1 - targets)) * loss
    return reduce_loss(loss, reduction)
