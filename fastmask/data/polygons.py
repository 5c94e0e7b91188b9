"""From masks to polygons along the edges of pixels."""

import functools
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastmask.data.records import Polygon

Corner = tuple[int, int]


def mask_to_polygons(mask: NDArray[np.bool_]) -> tuple[Polygon, ...]:
    """Polygons [n, 2] around the 4-connected components of a mask [h, w], with corners of pixels as vertices.

    A hole is joined to the polygon around it by a seam of zero width.
    """
    loops = [_drop_collinear(loop) for loop in _trace_loops(mask)]
    outer = [loop for loop in loops if signed_area(loop) > 0]
    for hole in (loop for loop in loops if signed_area(loop) < 0):
        around = [i for i, loop in enumerate(outer) if _contains(loop, hole)]
        nearest = min(around, key=lambda i: signed_area(outer[i]))
        outer[nearest] = _join_hole(outer[nearest], hole)
    return tuple(loop.astype(np.float64) for loop in outer)


def _trace_loops(mask: NDArray[np.bool_]) -> Iterator[NDArray[np.int64]]:
    """Closed paths along pixel edges: clockwise around components, counter-clockwise around holes."""
    padded = np.pad(mask, 1)
    follows: dict[Corner, list[Corner]] = {}
    for outside, (y0, x0), (y1, x1) in (
        (padded[:-2, 1:-1], (0, 0), (0, 1)),  # above: to the right
        (padded[1:-1, 2:], (0, 1), (1, 1)),  # right: down
        (padded[2:, 1:-1], (1, 1), (1, 0)),  # below: to the left
        (padded[1:-1, :-2], (1, 0), (0, 0)),  # left: up
    ):
        for y, x in np.argwhere(mask & ~outside).tolist():
            follows.setdefault((x + x0, y + y0), []).append((x + x1, y + y1))
    while follows:
        start = corner = next(iter(follows))
        path: list[Corner] = []
        before: Corner | None = None
        while True:
            candidates = follows[corner]
            following = candidates[0]
            if before is not None and len(candidates) > 1:
                following = min(candidates, key=functools.partial(_turn, before, corner))
            candidates.remove(following)
            if not candidates:
                del follows[corner]
            path.append(corner)
            before, corner = corner, following
            if corner == start:
                break
        yield np.array(path)


def _turn(before: Corner, at: Corner, to: Corner) -> int:
    """-1 for a right turn, which separates components that touch at a corner only; 1 for a left turn."""
    return -((at[0] - before[0]) * (to[1] - at[1]) - (at[1] - before[1]) * (to[0] - at[0]))


def _drop_collinear(loop: NDArray[np.int64]) -> NDArray[np.int64]:
    """The loop without vertices in the middle of a straight side."""
    into, out = loop - np.roll(loop, 1, axis=0), np.roll(loop, -1, axis=0) - loop
    corners: NDArray[np.int64] = loop[into[:, 0] * out[:, 1] != into[:, 1] * out[:, 0]]
    return corners


def signed_area(polygon: NDArray[Any]) -> float:
    """The area of a polygon [n, 2] by the shoelace formula, positive if clockwise in image coordinates."""
    x, y = polygon[:, 0], polygon[:, 1]
    return float((x * np.roll(y, -1) - np.roll(x, -1) * y).sum() / 2)


def _contains(loop: NDArray[np.int64], hole: NDArray[np.int64]) -> bool:
    """Whether the loop contains the hole: the center of the pixel left of the hole's leftmost vertex."""
    leftmost = hole[np.lexsort((hole[:, 1], hole[:, 0]))[0]]
    x, y = leftmost[0] - 0.5, leftmost[1] + 0.5
    ends = np.roll(loop, -1, axis=0)
    crossed = (loop[:, 1] > y) != (ends[:, 1] > y)
    (x0, y0), (x1, y1) = loop[crossed].T, ends[crossed].T
    return bool((x0 + (y - y0) / (y1 - y0) * (x1 - x0) > x).sum() % 2)  # seams may be slanted, and are crossed twice


def _join_hole(loop: NDArray[np.int64], hole: NDArray[np.int64]) -> NDArray[np.int64]:
    """One polygon of both, joined by the shortest segment between their vertices, there and back."""
    distance = ((loop[:, None] - hole[None]) ** 2).sum(2)
    i, j = np.unravel_index(distance.argmin(), distance.shape)
    around = np.concatenate([hole[j:], hole[: j + 1]])
    return np.concatenate([loop[: i + 1], around, loop[i:]])
