"""Crossing sides of polygons, found by a tree of bounds around runs of consecutive sides."""

import numpy as np
from numpy.typing import NDArray

from fastmask.data.records import Polygon

DIRECTIONS = np.array([[np.cos(angle), np.sin(angle)] for angle in np.arange(8) * np.pi / 8])  # bounds are along these
FEW = 64  # sides, all pairs of which are compared
BLOCK = 2**18  # pairs that are compared at once


def find_crossing(polygon: Polygon) -> tuple[int, int] | None:
    """Indices of the first two sides of a polygon that cross; touching is not crossing."""
    starts = polygon[np.any(polygon != np.roll(polygon, 1, axis=0), axis=1)]  # some tools repeat the first corner
    ends = np.roll(starts, -1, axis=0)
    if len(starts) <= FEW:
        first, second = np.triu_indices(len(starts), 1)
        pairs = np.flatnonzero(_cross(starts[first], ends[first], starts[second], ends[second]))
        return (int(first[pairs[0]]), int(second[pairs[0]])) if len(pairs) else None
    levels = _bound_runs(starts, ends)
    stack = [(len(levels) - 1, np.zeros(1, np.int64), np.zeros(1, np.int64))]  # of pairs of runs, the last one first
    best: tuple[int, int] | None = None
    while stack:
        level, first, second = stack.pop()
        if best is not None:
            kept = first << level <= best[0]
            first, second = first[kept], second[kept]
        low, high = levels[level]
        for along in range(len(DIRECTIONS)):
            kept = (low[along][first] <= high[along][second]) & (low[along][second] <= high[along][first])
            first, second = first[kept], second[kept]
        if level == 0:
            crossing = _cross(starts[first], ends[first], starts[second], ends[second])
            found = [(int(i), int(j)) for i, j in zip(first[crossing], second[crossing], strict=True)]
            best = min([*found, *([] if best is None else [best])], default=None)
        elif len(first) > BLOCK:
            middle = len(first) // 2
            stack += [(level, first[middle:], second[middle:]), (level, first[:middle], second[:middle])]
        elif len(first):
            first, second = _split_runs(first, second, len(levels[level - 1][0][0]))
            stack.append((level - 1, first, second))
    return best


def _bound_runs(starts: Polygon, ends: Polygon) -> list[tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """(low, high), each [8, n], of the bounds around single sides, pairs of sides, four of them and so on."""
    along = DIRECTIONS @ np.stack([starts, ends]).transpose(0, 2, 1)  # [2, 8, n]
    margin = 1e-9 * np.abs(along).max()  # of rounding
    levels = [(along.min(0) - margin, along.max(0) + margin)]
    while levels[-1][0].shape[1] > 1:
        low, high = (np.pad(side, ((0, 0), (0, side.shape[1] % 2)), mode="edge") for side in levels[-1])
        levels.append((np.minimum(low[:, ::2], low[:, 1::2]), np.maximum(high[:, ::2], high[:, 1::2])))
    return levels


def _split_runs(
    first: NDArray[np.int64], second: NDArray[np.int64], number: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The pairs of halves of paired runs, the first one never after the second one; ``number`` halves in all."""
    halves = np.array([[0, 0], [0, 1], [1, 0], [1, 1]])
    pairs = (2 * np.stack([first, second], axis=1)[:, None] + halves).reshape(-1, 2)
    pairs = pairs[(pairs[:, 0] <= pairs[:, 1]) & (pairs[:, 1] < number)]
    return pairs[:, 0], pairs[:, 1]


def _cross(a: Polygon, b: Polygon, c: Polygon, d: Polygon) -> NDArray[np.bool_]:
    """Whether the sides from a to b and from c to d cross, each [n, 2]."""
    crossing: NDArray[np.bool_] = (_side(a, b, c) * _side(a, b, d) < 0) & (_side(c, d, a) * _side(c, d, b) < 0)
    return crossing


def _side(a: Polygon, b: Polygon, c: Polygon) -> Polygon:
    """Which side of the line from a to b the point c is on: -1, 0 or 1."""
    along, to = b - a, c - a
    sign: Polygon = np.sign(along[..., 0] * to[..., 1] - along[..., 1] * to[..., 0])
    return sign
