"""Box decoding, eager fallback: boxes from regression deltas, clipped and tested, in the deltas' dtype or float32.

It takes few operations, each a launch on a GPU: both axes are computed at once, and no weight of 1 divides.
Specification: reference_layers.py.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from fastmask.kernels.reference import compute_dtype


def decode_boxes(
    deltas: Tensor,
    references: Tensor,
    sizes: Tensor,
    scores: Tensor,
    count: Tensor | None,
    weights: Sequence[float],
    xform_clip: float,
    min_size: float,
    min_score: float,
    above: bool,
) -> tuple[Tensor, Tensor]:
    """Deltas [B, N, 4] on references [B, M, 4], N / M of them on each -> boxes [B, N, 4], valid [B, N].

    Boxes are clipped to the image sizes [B, 2] (height, width). A box is valid if it is of the first ``count`` [B]
    references, its sides are at least ``min_size``, and its score [B, N] is at least ``min_score``, or ``above`` it.
    """
    each = references.shape[1]
    alone = each == deltas.shape[1]  # also where both are 0, and the quotient is undefined
    grouped = deltas[:, :, None] if alone else deltas.unflatten(1, (each, -1))
    boxes = clip(decode(grouped, references[:, :, None], weights, xform_clip), sizes).flatten(1, 2)
    valid = (boxes[..., 2:] - boxes[..., :2] >= min_size).all(2) & (
        scores > min_score if above else scores >= min_score
    )
    if count is not None:
        counted = torch.arange(each, device=deltas.device) < count[:, None]  # [B, M]
        valid = valid & counted if alone else (valid.unflatten(1, (each, -1)) & counted[:, :, None]).flatten(1)
    return boxes, valid


def decode_levels(
    logits: Tensor,
    index: Tensor,
    lengths: Sequence[int],
    deltas: Sequence[Tensor],
    anchors: Tensor,
    sizes: Tensor,
    weights: Sequence[float],
    xform_clip: float,
    min_size: float,
    min_score: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Decode an RPN's candidates before NMS -> boxes [B, N, 4], their scores [B, N], valid [B, N].

    Takes the logits [B, N] selected of each level, as many as in ``lengths``; their places among the anchors of all
    levels [B, N]; the deltas of each level [B, 4 * A, H, W]; all anchors [levels' H * W * A, 4]; the rest is as in
    :func:`decode_boxes`, with scores of at least ``min_score``. The box of a place beyond its level's anchors is
    undefined.
    """
    every = torch.cat([delta.permute(0, 2, 3, 1).flatten(1, 2) for delta in deltas], 1)  # [B, all H * W, A * 4]
    every = every.unflatten(2, (-1, 4)).flatten(1, 2)
    scores = logits.to(compute_dtype(logits)).sigmoid()
    chosen = every.gather(1, index[:, :, None].expand(-1, -1, 4))
    boxes, valid = decode_boxes(
        chosen, anchors[index], sizes, scores, None, weights, xform_clip, min_size, min_score, above=False
    )
    return boxes, scores, valid


def select_candidates(
    logits: Tensor,
    deltas: Tensor,
    references: Tensor,
    sizes: Tensor,
    count: Tensor,
    slots: int,
    weights: Sequence[float],
    xform_clip: float,
    min_size: float,
    min_score: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Decode a box head's candidates -> boxes [B, P * slots, 4], labels int64, scores and valid [B, P * slots].

    Selects, for the first ``count`` [B] RoIs of the references [B, P, 4], the classes whose softmax of logits
    [B * P, C] is above ``min_score``, without background (class 0): as many as fit in the RoI's ``slots``, in the
    order of classes, decoded from deltas [B * P, C, 4] as in :func:`decode_boxes`. Invalid slots are zeros.
    """
    num_classes, batch = logits.shape[1], references.shape[0]
    scores = logits.softmax(1, dtype=compute_dtype(logits))
    classes = torch.arange(num_classes, device=logits.device)
    counted = (torch.arange(references.shape[1], device=logits.device) < count[:, None]).flatten()
    fills = (scores > min_score) & (classes > 0) & counted[:, None]
    labels = torch.where(fills, classes, num_classes).topk(slots, dim=1, largest=False).values  # ascending
    filled = labels < num_classes
    labels = labels.where(filled, 0)
    shape = (batch, references.shape[1] * slots)
    chosen = deltas.gather(1, labels[:, :, None].expand(-1, -1, 4)).view(*shape, 4)
    scores, labels, filled = (values.view(shape) for values in (scores.gather(1, labels), labels, filled))
    boxes, valid = decode_boxes(
        chosen, references, sizes, scores, None, weights, xform_clip, min_size, min_score, above=True
    )
    valid = valid & filled
    return boxes.where(valid[:, :, None], 0), labels.where(valid, 0), scores.where(valid, 0), valid


def decode(deltas: Tensor, boxes: Tensor, weights: Sequence[float], xform_clip: float) -> Tensor:
    """Deltas [..., 4] on boxes [..., 4] (broadcast) -> boxes [..., 4]. Source: Fast R-CNN, appendix C."""
    if deltas.dtype not in (torch.float32, torch.float64):
        deltas = deltas.float()  # bfloat16 cannot tell pixels apart from 256 on
    boxes = boxes.to(deltas.dtype)
    size = boxes[..., 2:] - boxes[..., :2]
    center = boxes[..., :2] + 0.5 * size
    shift = _divide(deltas[..., :2], weights[0], weights[1])
    growth = _divide(deltas[..., 2:], weights[2], weights[3]).clamp(max=xform_clip)
    center = shift * size + center
    half = 0.5 * (torch.exp(growth) * size)
    return torch.cat((center - half, center + half), dim=-1)


def _divide(pair: Tensor, x: float, y: float) -> Tensor:
    """Divide [..., 2] by a number along each axis, which mostly is the same, or 1."""
    if x != y:
        return torch.stack((pair[..., 0] / x, pair[..., 1] / y), dim=-1)
    return pair if x == 1 else pair / x


def clip(boxes: Tensor, sizes: Tensor) -> Tensor:
    """Clip boxes [B, ..., 4] to the image sizes [B, 2] (height, width)."""
    limit = sizes.flip(1).to(boxes.dtype)  # [B, 2] (w, h)
    limit = limit.view(limit.shape[0], *[1] * (boxes.ndim - 1), 2)
    return torch.minimum(boxes.unflatten(-1, (2, 2)).clamp(min=0), limit).flatten(-2)
