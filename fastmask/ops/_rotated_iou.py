"""Intersection over union (IoU) of rotated boxes, as convex polygons, in plain PyTorch.

Sutherland-Hodgman clipping with fixed shapes: a quadrilateral cut by four half planes has at most eight corners; unused
slots repeat the first one, which adds nothing to the area. Only pairs whose enclosing boxes meet are clipped.
"""

import torch
from torch import Tensor

from fastmask.checks import upcast

PAIRS_AT_ONCE = 2**16  # about 40 MB of intermediate values


def rotated_box_iou(quads1: Tensor, quads2: Tensor) -> Tensor:
    """Corners [N, 8] and [M, 8] in order around each box -> IoU [N, M]; 0 where both have no area."""
    a, b = (upcast(quads).view(-1, 4, 2) for quads in (quads1, quads2))
    if not a.is_floating_point():
        a, b = a.float(), b.float()
    if torch.compiler.is_exporting():  # a static program: all pairs at once
        return _iou_of_all(a, b)
    iou = a.new_zeros(len(a), len(b))
    low_a, high_a, low_b, high_b = a.amin(1), a.amax(1), b.amin(1), b.amax(1)
    step = max(PAIRS_AT_ONCE // max(len(b), 1), 1)
    for start in range(0, len(a), step):
        rows = slice(start, start + step)
        meet = ((low_a[rows, None] <= high_b) & (low_b <= high_a[rows, None])).all(2)
        i, j = meet.nonzero(as_tuple=True)
        iou[start + i, j] = _pairwise(a[start + i], b[j])
    return iou


def _iou_of_all(a: Tensor, b: Tensor) -> Tensor:
    """IoU of quadrilaterals [N, 4, 2] and [M, 4, 2] -> [N, M]."""
    meet = ((a.amin(1)[:, None] <= b.amax(1)) & (b.amin(1) <= a.amax(1)[:, None])).all(2)
    shape = (*meet.shape, 4, 2)
    pairs = (quads.expand(shape).reshape(-1, 4, 2) for quads in (a[:, None], b[None]))
    return torch.where(meet, _pairwise(*pairs).view(meet.shape), 0)


def _pairwise(a: Tensor, b: Tensor) -> Tensor:
    """IoU of quadrilaterals [K, 4, 2] pair by pair -> [K]."""
    origin = a[:, :1]  # coordinates are relative to it: far from (0, 0), areas would lose their digits
    polygon, clip = _counter_clockwise(a - origin), _counter_clockwise(b - origin)
    area1, area2 = _area(polygon), _area(clip)
    for edge in range(4):
        polygon = _cut(polygon, clip[:, edge], clip[:, (edge + 1) % 4])
    inter = torch.minimum(_area(polygon), torch.minimum(area1, area2))
    union = area1 + area2 - inter
    return torch.where(union > 0, inter / torch.where(union > 0, union, 1), 0)


def _counter_clockwise(quads: Tensor) -> Tensor:
    """Corners [N, 4, 2], reversed where their signed area is negative."""
    return torch.where((_signed_area(quads) < 0)[:, None, None], quads.flip(1), quads)


def _signed_area(polygon: Tensor) -> Tensor:
    x, y = polygon.unbind(-1)
    return 0.5 * (x * y.roll(-1, -1) - x.roll(-1, -1) * y).sum(-1)


def _area(polygon: Tensor) -> Tensor:
    return _signed_area(polygon).clamp(min=0)


def _cut(polygon: Tensor, start: Tensor, end: Tensor) -> Tensor:
    """The part of convex polygons [K, V, 2] left of the line from start to end [K, 2] -> [K, V + 1, 2]."""
    edge = (end - start)[:, None]
    offset = polygon - start[:, None]
    side = edge[..., 0] * offset[..., 1] - edge[..., 1] * offset[..., 0]  # [K, V]; >= 0 is inside
    follower, next_side = polygon.roll(-1, 1), side.roll(-1, 1)
    crosses = (side >= 0) != (next_side >= 0)
    along = side / torch.where(crosses, side - next_side, 1)
    crossing = polygon + along[..., None] * (follower - polygon)
    # corner v, then the crossing of the edge that leaves it, where they are inside
    points = torch.stack([polygon, crossing], 2).flatten(1, 2)  # [K, 2V, 2]
    counts = torch.stack([side >= 0, crosses], 2).flatten(1, 2)
    place = torch.arange(counts.shape[1], device=counts.device)
    order = (counts * counts.shape[1] - place).topk(polygon.shape[1] + 1).indices  # those that count, then the others
    points = points.gather(1, order[..., None].expand(-1, -1, 2))
    return torch.where(counts.gather(1, order)[..., None], points, points[:, :1])
