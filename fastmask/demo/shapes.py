"""Shapes as signed distance functions (SDFs): negative inside, in pixels, accurate near the edge for antialiasing."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Plane = NDArray[np.float32]
Distance = Callable[[Plane, Plane], Plane]  # signed distance at (x, y), in pixels from the shape's center

REACH = 1.25  # maximum extent of a shape, in radii
SHAPES = ("ellipse", "triangle", "quadrilateral", "grain")
CLASSES = (*SHAPES, "person")  # labels from 1


def draw_shape(generator: np.random.Generator, kind: str, radius: float) -> Distance:
    """A random shape of one of SHAPES, randomly rotated, within REACH times the radius (pixels) of its center."""
    angle = generator.uniform(0, 2 * np.pi)
    if kind == "ellipse":
        return ellipse_sdf(radius, radius * generator.uniform(0.45, 1), angle)
    if kind == "grain":  # a polygon with rounded corners
        number = int(generator.integers(6, 11))
        angles = angle + 2 * np.pi * (np.arange(number) + generator.uniform(-0.3, 0.3, number)) / number
        offsets = radius * generator.uniform(0.55, 0.95, number)
        return convex_sdf(angles, offsets, REACH * radius, rounding=radius * generator.uniform(0.04, 0.12))
    number = {"triangle": 3, "quadrilateral": 4}[kind]
    angles = angle + 2 * np.pi * (np.arange(number) + generator.uniform(-0.22, 0.22, number)) / number
    radii = radius * generator.uniform(0.7, 1, number)  # three or four corners at these angles are convex
    corners = np.stack([radii * np.cos(angles), radii * np.sin(angles)], axis=1)
    return convex_sdf(*find_half_planes(corners), REACH * radius)


def ellipse_sdf(long: float, short: float, angle: float) -> Distance:
    """The SDF of an ellipse, to first order, from its semi-axes in pixels and its rotation in radians."""

    def distance(x: Plane, y: Plane) -> Plane:
        u = (x * np.cos(angle) + y * np.sin(angle)) / long
        v = (y * np.cos(angle) - x * np.sin(angle)) / short
        level = np.hypot(u, v)
        slope = np.hypot(u / long, v / short) / np.maximum(level, 1e-3)
        result: Plane = ((level - 1) / np.maximum(slope, 1 / long)).astype(np.float32)
        return result

    return distance


def convex_sdf(
    angles: NDArray[np.float64], offsets: NDArray[np.float64], limit: float, rounding: float = 0.0
) -> Distance:
    """The SDF of the intersection of n half planes and a circle around the center.

    Args:
        angles: [n] of the half planes' normals, in radians.
        offsets: [n] distances of their lines from the center, in pixels.
        limit: radius of the circle, in pixels.
        rounding: about how many pixels corners lose; 0 keeps them sharp.
    """

    def distance(x: Plane, y: Plane) -> Plane:
        pairs = zip(angles, offsets, strict=True)
        lines = [np.cos(angle) * x + np.sin(angle) * y - offset for angle, offset in pairs]
        lines.append(np.hypot(x, y) - limit)
        farthest = np.maximum.reduce(lines)
        if rounding:
            farthest = farthest + rounding * np.log(sum(np.exp((line - farthest) / rounding) for line in lines))
        result: Plane = farthest.astype(np.float32)
        return result

    return distance


def find_half_planes(corners: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Angles [n] and offsets [n] of the sides of a convex polygon [n, 2] around the origin, corners by angle."""
    along = np.roll(corners, -1, axis=0) - corners
    angles = np.arctan2(-along[:, 0], along[:, 1])
    return angles, corners[:, 0] * np.cos(angles) + corners[:, 1] * np.sin(angles)
