"""Shapes as signed distances: negative inside, in pixels, exact enough at the rim to smooth it."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Plane = NDArray[np.float32]
Distance = Callable[[Plane, Plane], Plane]  # of pixels' (x, y) from a shape's center

REACH = 1.25  # of a radius, which no shape exceeds
CLASSES = ("ellipse", "triangle", "quadrilateral", "grain")  # labels from 1


def draw_shape(generator: np.random.Generator, kind: str, radius: float) -> Distance:
    """A shape of one of CLASSES, turned anyhow, that fits into a circle of REACH times the radius."""
    angle = generator.uniform(0, 2 * np.pi)
    if kind == "ellipse":
        return ellipse(radius, radius * generator.uniform(0.45, 1), angle)
    if kind == "grain":  # sides of an ellipse's tangents, corners worn
        number = int(generator.integers(6, 11))
        turns = angle + 2 * np.pi * (np.arange(number) + generator.uniform(-0.3, 0.3, number)) / number
        offsets = radius * generator.uniform(0.55, 0.95, number)
        return convex(turns, offsets, REACH * radius, wear=radius * generator.uniform(0.04, 0.12))
    number = {"triangle": 3, "quadrilateral": 4}[kind]
    turns = angle + 2 * np.pi * (np.arange(number) + generator.uniform(-0.22, 0.22, number)) / number
    reach = radius * generator.uniform(0.7, 1, number)  # of the corners; three or four at these angles are convex
    corners = np.stack([reach * np.cos(turns), reach * np.sin(turns)], axis=1)
    return convex(*sides_of(corners), REACH * radius)


def ellipse(long: float, short: float, angle: float) -> Distance:
    """Its distance to first order."""

    def distance(x: Plane, y: Plane) -> Plane:
        u = (x * np.cos(angle) + y * np.sin(angle)) / long
        v = (y * np.cos(angle) - x * np.sin(angle)) / short
        level = np.hypot(u, v)
        slope = np.hypot(u / long, v / short) / np.maximum(level, 1e-3)
        found: Plane = ((level - 1) / np.maximum(slope, 1 / long)).astype(np.float32)
        return found

    return distance


def convex(turns: NDArray[np.float64], offsets: NDArray[np.float64], limit: float, wear: float = 0.0) -> Distance:
    """The part inside all lines, each by the angle of its normal and its distance from the center, and in a circle.

    Args:
        turns: [n] radians.
        offsets: [n] pixels.
        limit: the circle's radius.
        wear: about how many pixels corners lose; 0 keeps them sharp.
    """

    def distance(x: Plane, y: Plane) -> Plane:
        pairs = zip(turns, offsets, strict=True)
        lines = [np.cos(turn) * x + np.sin(turn) * y - offset for turn, offset in pairs]
        lines.append(np.hypot(x, y) - limit)
        farthest = np.maximum.reduce(lines)
        if wear:
            farthest = farthest + wear * np.log(sum(np.exp((line - farthest) / wear) for line in lines))
        found: Plane = farthest.astype(np.float32)
        return found

    return distance


def sides_of(corners: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Normals' angles and offsets of a convex polygon [n, 2] around the origin, its corners counter-clockwise."""
    along = np.roll(corners, -1, axis=0) - corners
    turns = np.arctan2(-along[:, 0], along[:, 1])
    return turns, corners[:, 0] * np.cos(turns) + corners[:, 1] * np.sin(turns)
