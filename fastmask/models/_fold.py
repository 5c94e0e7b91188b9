"""Folding of a norm into the convolution before it, at each call: state dicts stay as they are, weights may change.

y = scale * conv(x, w) + shift = conv(x, scale * w) + shift. Folding costs one pass over the weights and saves one over
the activations, hundreds of times larger; the gradient flows through it, so frozen norms are folded in training too.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from fastmask.checks import is_autocast
from fastmask.models._plain import is_plain
from fastmask.ops.misc import FrozenBatchNorm2d


def conv_norm(conv: nn.Module, norm: nn.Module, x: Tensor) -> Tensor:
    """``norm(conv(x))``, in one convolution where that is the same: a fixed norm, no padding mode, no hooks.

    torch.fx, whose proxies are no tensors, records the two modules, under torchvision's names of nodes.
    """
    if not isinstance(x, Tensor) or not can_fold(conv, norm):
        result: Tensor = norm(conv(x))
        return result
    weight, shift = fold_norm(conv, norm)
    assert isinstance(conv, nn.Conv2d)
    if is_autocast(x):  # the sums above ran in the weights' dtype, and so does this one
        weight, shift = weight.to(conv.weight.dtype), shift.to(conv.weight.dtype)
    return F.conv2d(x, weight, shift, conv.stride, conv.padding, conv.dilation, conv.groups)


def fold_norm(conv: nn.Module, norm: nn.Module) -> tuple[Tensor, Tensor]:
    """Weight and bias of one convolution that equals a foldable pair."""
    assert isinstance(conv, nn.Conv2d)
    assert isinstance(norm, FrozenBatchNorm2d | nn.BatchNorm2d)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = (norm.running_var + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = norm.weight * scale
    shift = -norm.running_mean * scale if conv.bias is None else (conv.bias - norm.running_mean) * scale
    if norm.bias is not None:
        shift = norm.bias + shift
    return conv.weight * scale[:, None, None, None], shift


def can_fold(conv: nn.Module, norm: nn.Module, *subclasses: type[nn.Conv2d]) -> bool:
    """Whether a norm is fixed, and both modules are plain; the subclasses' forward adds the bias to a convolution."""
    if not is_plain(conv, nn.Conv2d, *subclasses) or not is_plain(norm, FrozenBatchNorm2d, nn.BatchNorm2d):
        return False
    fixed = type(norm) is FrozenBatchNorm2d or (not norm.training and norm.running_mean is not None)
    return fixed and conv.padding_mode == "zeros"
