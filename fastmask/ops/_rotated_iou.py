"""Intersection over union of rotated boxes, as convex polygons, in plain PyTorch.

Sutherland-Hodgman clipping with fixed shapes: a quadrilateral cut by four half planes has at most eight corners; unused
slots repeat the first one, which adds nothing to the area.
"""

import torch
from torch import Tensor

from fastmask.ops._utils import upcast


def rotated_box_iou(quads1: Tensor, quads2: Tensor) -> Tensor:
    """Corners [N, 8] and [M, 8] in order around each box -> IoU [N, M]; 0 where both have no area."""
    a = _counter_clockwise(upcast(quads1).view(-1, 4, 2))
    b = _counter_clockwise(upcast(quads2).view(-1, 4, 2))
    if not a.is_floating_point():
        a, b = a.float(), b.float()
    pairs = (len(a), len(b), -1, 2)
    # relative to each pair's first corner: far from the origin, areas would lose their digits
    origin = a[:, None, :1]
    polygon, clip = (a[:, None] - origin).expand(pairs), (b[None] - origin).expand(pairs)
    area1, area2 = _area(polygon), _area(clip)
    for edge in range(4):
        polygon = _cut(polygon, clip[:, :, edge], clip[:, :, (edge + 1) % 4])
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
    """The part of convex polygons [N, M, V, 2] left of the line from start to end [N, M, 2] -> [N, M, V + 1, 2]."""
    edge = (end - start)[:, :, None]
    offset = polygon - start[:, :, None]
    side = edge[..., 0] * offset[..., 1] - edge[..., 1] * offset[..., 0]  # [N, M, V]; >= 0 is inside
    follower, next_side = polygon.roll(-1, 2), side.roll(-1, 2)
    crosses = (side >= 0) != (next_side >= 0)
    along = side / torch.where(crosses, side - next_side, 1)
    crossing = polygon + along[..., None] * (follower - polygon)
    # corner v, then the crossing of the edge that leaves it, where they count
    points = torch.stack([polygon, crossing], 3).flatten(2, 3)  # [N, M, 2V, 2]
    counts = torch.stack([side >= 0, crosses], 3).flatten(2, 3)
    order = (~counts).to(torch.uint8).argsort(dim=2, stable=True)[:, :, : polygon.shape[2] + 1]
    points = points.gather(2, order[..., None].expand(*order.shape, 2))
    counts = counts.gather(2, order)
    return torch.where(counts[..., None], points, points[:, :, :1])
