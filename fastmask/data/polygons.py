"""The outline of a mask, as polygons along the edges of its pixels."""

import functools
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from fastmask.data.records import Polygon

Corner = tuple[int, int]


def outline(mask: NDArray[np.bool_]) -> tuple[Polygon, ...]:
    """Polygons around each part of a mask [h, w], corners of pixels only; holes hang on a seam without width.

    Parts that touch at a corner only are apart.
    """
    loops = [_simplified(loop) for loop in _loops(mask)]
    outer = [loop for loop in loops if _area(loop) > 0]
    for hole in (loop for loop in loops if _area(loop) < 0):
        around = [i for i, loop in enumerate(outer) if _holds(loop, hole)]
        nearest = min(around, key=lambda i: _area(outer[i]))
        outer[nearest] = _joined(outer[nearest], hole)
    return tuple(loop.astype(np.float64) for loop in outer)


def _loops(mask: NDArray[np.bool_]) -> Iterator[NDArray[np.int64]]:
    """Closed walks along the edges, the mask on the right hand: around parts clockwise, around holes the other way."""
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
        walk: list[Corner] = []
        before: Corner | None = None
        while True:
            ways = follows[corner]
            way = ways[0]
            if before is not None and len(ways) > 1:
                way = min(ways, key=functools.partial(_turn, before, corner))
            ways.remove(way)
            if not ways:
                del follows[corner]
            walk.append(corner)
            before, corner = corner, way
            if corner == start:
                break
        yield np.array(walk)


def _turn(before: Corner, at: Corner, to: Corner) -> int:
    """-1 to the right, which keeps parts that touch at a corner apart; 1 to the left."""
    return -((at[0] - before[0]) * (to[1] - at[1]) - (at[1] - before[1]) * (to[0] - at[0]))


def _simplified(loop: NDArray[np.int64]) -> NDArray[np.int64]:
    """Without the corners that lie on a straight line."""
    into, out = loop - np.roll(loop, 1, axis=0), np.roll(loop, -1, axis=0) - loop
    corners: NDArray[np.int64] = loop[into[:, 0] * out[:, 1] != into[:, 1] * out[:, 0]]
    return corners


def _area(loop: NDArray[np.int64]) -> float:
    """Positive around a part, as y points down."""
    x, y = loop[:, 0], loop[:, 1]
    return float((x * np.roll(y, -1) - np.roll(x, -1) * y).sum() / 2)


def _holds(loop: NDArray[np.int64], hole: NDArray[np.int64]) -> bool:
    """Whether the middle of the pixel beside the hole's first corner is inside the loop."""
    leftmost = hole[np.lexsort((hole[:, 1], hole[:, 0]))[0]]
    x, y = leftmost[0] - 0.5, leftmost[1] + 0.5
    ends = np.roll(loop, -1, axis=0)
    crossed = (loop[:, 1] > y) != (ends[:, 1] > y)
    (x0, y0), (x1, y1) = loop[crossed].T, ends[crossed].T
    return bool((x0 + (y - y0) / (y1 - y0) * (x1 - x0) > x).sum() % 2)  # seams slant, and count twice


def _joined(loop: NDArray[np.int64], hole: NDArray[np.int64]) -> NDArray[np.int64]:
    """Both as one, over the shortest way between two of their corners, there and back."""
    distance = ((loop[:, None] - hole[None]) ** 2).sum(2)
    i, j = np.unravel_index(distance.argmin(), distance.shape)
    around = np.concatenate([hole[j:], hole[: j + 1]])
    return np.concatenate([loop[: i + 1], around, loop[i:]])
