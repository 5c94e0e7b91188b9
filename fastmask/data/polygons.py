"""From masks to polygons along the edges of pixels, exact or simplified."""

import itertools
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastmask.cocoapi import mask as coco_mask
from fastmask.data.parse import parse_polygon
from fastmask.data.records import Dataset, Instance, Polygon, Record, encode_polygons

# Pixels around a corner of pixels, as bits: 1 top left, 2 top right, 4 bottom left, 8 bottom right. One or three of
# them make one turn of the boundary, two diagonal ones make two. A turn is (a side goes right from the corner, not
# left; a side goes down, not up; the path leaves along the horizontal side), with the mask on the path's right.
TURNS = {1: [(0, 0, 1)], 2: [(1, 0, 0)], 4: [(0, 1, 0)], 8: [(1, 1, 1)]}
TURNS |= {14: [(0, 0, 0)], 13: [(1, 0, 1)], 11: [(0, 1, 1)], 7: [(1, 1, 0)]}
TURNS |= {9: [*TURNS[1], *TURNS[8]], 6: [*TURNS[2], *TURNS[4]]}


def trace_polygons(mask: NDArray[Any], tolerance: float = 0.0) -> list[Polygon]:
    """Trace the boundaries of a mask along the edges of its pixels; time grows with its size and its corners.

    Args:
        mask: [h, w], bool or numbers, of which 0 is outside.
        tolerance: in pixels. 0: pycocotools rasterizes the polygons to exactly this mask, and so does any even-odd rule
            at the pixels' centers. Otherwise each boundary is simplified (Douglas and Peucker, 1973): no corner is
            farther than this from the new boundary, and a polygon that would lose its area stays exact.

    Returns:
        one polygon [n, 2] float64 (x, y) for each 4-connected component, clockwise in the image, with corners of pixels
        as vertices. A hole is joined to the boundary on its left by a horizontal cut of zero width, there and back.

    Raises:
        ValueError: the mask has another number of dimensions, or tolerance is negative or not finite.
    """
    if mask.ndim != 2:
        raise ValueError(f"mask must be [h, w], got {mask.shape}")
    _check_tolerance(tolerance)
    inside = np.asarray(mask, bool)
    rows, columns = np.flatnonzero(inside.any(axis=1)), np.flatnonzero(inside.any(axis=0))
    if not len(rows):
        return []
    top, left = int(rows[0]), int(columns[0])
    padded = np.pad(inside[top : rows[-1] + 1, left : columns[-1] + 1], 1).view(np.uint8)
    points, following, by_column = _link_corners(padded)
    points, following, fixed = _join_holes(padded, points, following, by_column)
    polygons = []
    for path in _trace_paths(following):
        polygon = points[path]
        kept = (polygon != np.roll(polygon, 1, axis=0)).any(axis=1)  # a cut may end at a corner
        polygon, anchors = polygon[kept], fixed[path][kept]
        first = int((polygon @ [1, 2**32]).argmin())  # the leftmost of the topmost
        polygon, anchors = np.roll(polygon, -first, axis=0), np.roll(anchors, -first)
        if tolerance:
            polygon = _simplify(polygon, anchors, tolerance)
        polygons.append(polygon.astype(np.float64) + np.array([left, top]))
    return polygons


def _check_tolerance(tolerance: float) -> None:
    if not 0 <= tolerance < np.inf:
        raise ValueError(f"tolerance must be finite and at least 0, got {tolerance}")


def _link_corners(padded: NDArray[np.uint8]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """(corners (x, y) [n, 2], the next corner of each on its path, the corners by column: pairs are vertical sides)."""
    codes = padded[:-1, :-1] | padded[:-1, 1:] << 1 | padded[1:, :-1] << 2 | padded[1:, 1:] << 3
    y, x = np.nonzero((codes != 0) & (codes != 3) & (codes != 5) & (codes != 10) & (codes != 12) & (codes != 15))
    around = codes[y, x]
    table = np.zeros((2, 16, 3), np.int64)  # of the first and the second turn
    for code, turns in TURNS.items():
        for number, turn in enumerate(turns):
            table[number, code] = turn
    twice = (around == 6) | (around == 9)
    points = np.stack([x, y], axis=1)
    points = np.concatenate([points, points[twice]])
    rightward, downward, horizontal = np.concatenate([table[0, around], table[1, around[twice]]]).T
    x, y = points.T
    by_row = np.lexsort((rightward, x, y)).reshape(-1, 2)  # along a row, corners pair up to sides
    by_column = np.lexsort((downward, y, x)).reshape(-1, 2)
    across, along = np.empty(len(points), np.int64), np.empty(len(points), np.int64)
    across[by_row] = by_row[:, ::-1]
    along[by_column] = by_column[:, ::-1]
    return points, np.where(horizontal == 1, across, along), by_column.ravel()


def _trace_paths(following: NDArray[np.int64]) -> list[list[int]]:
    """The closed paths of a permutation, from the lowest index of each on."""
    steps = following.tolist()
    paths = []
    for start in range(len(steps)):
        if steps[start] < 0:
            continue
        path, at = [], start
        while steps[at] >= 0:
            path.append(at)
            steps[at], at = -1, steps[at]
        paths.append(path)
    return paths


def _join_holes(
    padded: NDArray[np.uint8], points: NDArray[np.int64], following: NDArray[np.int64], by_column: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
    """Corners and paths, those of holes joined to what is left of them; and which corners are ends of cuts.

    The cut starts at the upper of a hole's leftmost corners. The pixels left of it, above and below, are in the mask;
    so are those on both sides of the whole cut, which therefore ends at a corner or on a vertical side of its own
    component: of the boundary, or of a hole farther to the left.
    """
    x, y = points.T
    paths = _trace_paths(following)
    areas = np.array([signed_area(points[path]) for path in paths])
    holes = [paths[i] for i in np.flatnonzero(areas < 0).tolist()]
    number = len(points)
    fixed = np.zeros(number + 3 * len(holes), bool)
    if not holes:
        return points, following, fixed
    starts = np.array([min(hole, key=lambda i: (x[i], y[i])) for hole in holes])
    ends = []
    for column, row in points[starts].tolist():
        both = padded[row, 1 : column + 1] & padded[row + 1, 1 : column + 1]  # pixel (x, y) is padded[y + 1, x + 1]
        ends.append(column - int(both[::-1].argmin()) if not both.all() else 0)
    cuts = np.stack([ends, y[starts]], axis=1)
    height = len(padded)
    keys = (x * height + y)[by_column]
    found = np.searchsorted(keys, cuts[:, 0] * height + cuts[:, 1], "right") - 1
    sides = by_column.reshape(-1, 2)[found // 2]
    tails = np.where(following[sides[:, 0]] == sides[:, 1], sides[:, 0], sides[:, 1])
    joined = np.concatenate([following, np.empty(3 * len(holes), np.int64)])
    to, back, again = number + np.arange(3 * len(holes)).reshape(
        3, -1
    )  # cut's end, hole's start again, cut's end again
    before = np.empty(number, np.int64)
    before[following] = np.arange(number)
    joined[before[starts]] = back
    joined[to], joined[back] = starts, again
    order = np.lexsort((np.abs(cuts[:, 1] - y[tails]), tails))
    for i in order[::-1].tolist():  # the last cut of a side first
        joined[again[i]] = joined[tails[i]]
        joined[tails[i]] = to[i]
    fixed[starts] = fixed[number:] = True
    return np.concatenate([points, cuts, points[starts], cuts]), joined, fixed


def _simplify(polygon: NDArray[np.int64], fixed: NDArray[np.bool_], tolerance: float) -> NDArray[np.int64]:
    """The polygon with fewer corners, by Douglas and Peucker between those that are fixed."""
    kept = fixed.copy()
    if kept.sum() < 2:
        kept[0] = True
        kept[((polygon - polygon[0]) ** 2).sum(axis=1).argmax()] = True
    first = int(kept.argmax())
    polygon, kept = np.roll(polygon, -first, axis=0), np.roll(kept, -first)
    closed = np.concatenate([polygon, polygon[:1]])
    anchors = [*np.flatnonzero(kept).tolist(), len(polygon)]
    stack = list(itertools.pairwise(anchors))
    while stack:
        start, end = stack.pop()
        if end - start < 2:
            continue
        side, to = closed[end] - closed[start], closed[start + 1 : end] - closed[start]
        length = float((side**2).sum())
        share = np.clip(to @ side / length, 0, 1) if length else np.zeros(len(to))
        distance = ((to - share[:, None] * side) ** 2).sum(axis=1)
        farthest = int(distance.argmax())
        if distance[farthest] > tolerance**2:
            middle = start + 1 + farthest
            kept[middle] = True
            stack += [(start, middle), (middle, end)]
    simple = polygon[kept]
    return simple if signed_area(simple) > 0 else polygon


def signed_area(polygon: NDArray[Any]) -> float:
    """The area of a polygon [n, 2] by the shoelace formula, positive if clockwise in image coordinates."""
    x, y = polygon[:, 0], polygon[:, 1]
    return float((x * np.roll(y, -1) - np.roll(x, -1) * y).sum() / 2)


def masks_to_polygons(dataset: Dataset, tolerance: float = 0.0) -> Dataset:
    """The data set with polygons in place of masks, see :func:`trace_polygons`; ``notes`` count what changed.

    Crowds stay RLE, as COCO has them; so do masks without pixels, of another size than the image, and with a boundary
    that readers of polygons would refuse as too long.

    Args:
        dataset: annotated images, of which ``size`` is known.
        tolerance: in pixels, of simplification. Where it is not 0, the lowest IoU of polygons, as pycocotools
            rasterizes them, with their masks is in ``notes``.

    Raises:
        ValueError: tolerance is negative or not finite.
    """
    _check_tolerance(tolerance)
    traced = 0
    kept = {"crowds": 0, "empty masks": 0, "masks of another size than the image": 0, "masks of too long polygons": 0}
    lowest: tuple[float, str] = (2.0, "")
    records: list[Record] = []
    for record in dataset.records:
        instances = list(record.instances)
        for number, instance in enumerate(instances):
            if instance.rle is None:
                continue
            size = (int(instance.rle["size"][0]), int(instance.rle["size"][1]))
            polygons = [] if instance.crowd or size != record.size else _trace(instance, size, tolerance)
            if instance.crowd or size != record.size:
                kept["crowds" if instance.crowd else "masks of another size than the image"] += 1
            elif not polygons:
                kept["masks of too long polygons" if polygons is None else "empty masks"] += 1
            else:
                traced += 1
                instances[number] = instance._replace(polygons=tuple(polygons), rle=None)
                if tolerance:
                    iou = float(coco_mask.iou([encode_polygons(polygons, *size)], [instance.to_rle(*size)], [0])[0, 0])
                    lowest = min(lowest, (iou, f"{record.file.name}, object {number} ({instance.category})"))
        records.append(record._replace(instances=tuple(instances)))
    exact = f"simplified by at most {tolerance:g} pixels" if tolerance else "exactly"
    note = f"{traced} masks are polygons now, {exact}"
    if lowest[1]:
        note += f"; the lowest IoU with a mask is {lowest[0]:.3f}: {lowest[1]}"
    left = ", ".join(f"{number} {what}" for what, number in kept.items() if number)
    return dataset._replace(records=records, notes=(*dataset.notes, note + (f"; still RLE: {left}" if left else "")))


def _trace(instance: Instance, size: tuple[int, int], tolerance: float) -> list[Polygon] | None:
    """The polygons of an instance's mask; None if readers would refuse one."""
    try:
        return [parse_polygon(polygon) for polygon in trace_polygons(instance.to_mask(*size), tolerance)]
    except ValueError:
        return None
