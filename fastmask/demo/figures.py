"""Stick figures seen from the front, with COCO's 17 keypoints: a union of thick lines, each with a tone of its own."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastmask.demo.shapes import Plane
from fastmask.skeletons import PERSON

PLACE = {name: place for place, name in enumerate(PERSON.names)}
# thick lines in the order of painting: (from, to, radius, tone); radii in hundredths of the figure's height
PARTS: tuple[tuple[str, str, float, float], ...] = (
    ("neck", "middle", 10.0, 0.0),
    ("left_hip", "left_knee", 5.0, -0.14),
    ("right_hip", "right_knee", 5.0, -0.14),
    ("left_knee", "left_ankle", 4.0, 0.1),
    ("right_knee", "right_ankle", 4.0, 0.1),
    ("left_shoulder", "left_elbow", 4.2, 0.14),
    ("right_shoulder", "right_elbow", 4.2, 0.14),
    ("left_elbow", "left_wrist", 3.4, -0.1),
    ("right_elbow", "right_wrist", 3.4, -0.1),
    ("head", "head", 9.5, 0.2),
)
FACE = {"nose": 1.5, "left_eye": 1.7, "right_eye": 1.7}  # radii of dark dots


class Figure(NamedTuple):
    """A figure of S thick lines around its center, in pixels; x to the right and y down."""

    keypoints: NDArray[np.float64]  # [17, 2] (x, y)
    starts: NDArray[np.float64]  # [S, 2] (x, y) of the lines
    ends: NDArray[np.float64]  # [S, 2]
    radii: NDArray[np.float64]  # [S] half the lines' thickness
    tones: NDArray[np.float64]  # [S] added to the figure's color
    height: float  # of the figure standing upright

    def distances(self, x: Plane, y: Plane) -> NDArray[np.float32]:
        """Signed distances [S, h, w] to the lines at points (x, y): negative inside."""
        result = np.empty((len(self.radii), *np.broadcast_shapes(x.shape, y.shape)), np.float32)
        for i, (start, end, radius) in enumerate(zip(self.starts, self.ends, self.radii, strict=True)):
            along_x, along_y = (end - start).astype(np.float32)
            dx, dy = x - np.float32(start[0]), y - np.float32(start[1])
            length = max(along_x**2 + along_y**2, np.float32(1e-9))
            share = ((dx * along_x + dy * along_y) / length).clip(0, 1)
            result[i] = np.hypot(dx - share * along_x, dy - share * along_y) - np.float32(radius)
        return result

    def reach(self) -> float:
        """The distance from the center that no coordinate of the figure exceeds."""
        ends = np.concatenate([self.starts, self.ends])
        return float(np.abs(ends).max() + self.radii.max())

    def distance(self, x: Plane, y: Plane) -> Plane:
        """The SDF of the whole figure."""
        nearest: Plane = self.distances(x, y).min(0)
        return nearest

    def tone(self, x: Plane, y: Plane) -> Plane:
        """What is added to the figure's color at points (x, y): the last line's there; the face is dark."""
        distances = self.distances(x, y)
        tones = np.zeros(distances.shape[1:])
        for distance, tone in zip(distances, self.tones, strict=True):
            share = (0.5 - distance).clip(0, 1)
            tones += share * (tone - 0.2 * (distance > -1.2) - tones)  # a rim, where limbs cross
        for name, radius in FACE.items():
            at = self.keypoints[PLACE[name]]
            share = (0.5 + radius * self.height / 100 - np.hypot(x - at[0], y - at[1])).clip(0, 1)
            tones += share * (-0.6 - tones)
        result: Plane = tones.astype(np.float32)
        return result


def draw_figure(generator: np.random.Generator, height: float) -> Figure:
    """A figure of a random pose, leaning by up to 25 degrees, whose own left is at the image's right.

    Args:
        generator: the only source of randomness.
        height: from the top of the head to the feet, standing upright, in pixels.
    """
    points = _pose_body(generator)
    lean = np.radians(generator.uniform(-25, 25))
    turn = np.array([[np.cos(lean), np.sin(lean)], [-np.sin(lean), np.cos(lean)]])
    center = (np.min(list(points.values()), axis=0) + np.max(list(points.values()), axis=0)) / 2
    points = {name: (point - center) @ turn * (height / 100) for name, point in points.items()}
    thick = generator.uniform(0.85, 1.15) * height / 100
    starts, ends = np.array([points[part[0]] for part in PARTS]), np.array([points[part[1]] for part in PARTS])
    radii, tones = np.array([part[2] for part in PARTS]) * thick, np.array([part[3] for part in PARTS])
    keypoints = np.array([points[name] for name in PERSON.names])
    return Figure(keypoints, starts, ends, radii, tones, height)


def _pose_body(generator: np.random.Generator) -> dict[str, NDArray[np.float64]]:
    """Joints (x, y) of a body 100 high, its feet near y = 0 and its head near y = -100."""
    points = {"neck": np.array([0.0, -72]), "middle": np.array([0.0, -54]), "head": np.array([0.0, -89])}
    points["head"][0] += generator.uniform(-3, 3)
    tilt = np.radians(generator.uniform(-20, 20))
    for name, x, y in (("nose", 0.0, 1.5), ("eye", 4.0, -2.5), ("ear", 7.0, 0.0)):
        for side in ("", "left_", "right_"):
            if (name == "nose") == (side == ""):
                away = -x if side == "right_" else x
                offset = np.array([away * np.cos(tilt) - y * np.sin(tilt), away * np.sin(tilt) + y * np.cos(tilt)])
                points[f"{side}{name}"] = points["head"] + offset
    for side, outward in (("left", 1.0), ("right", -1.0)):
        mirror = np.array([outward, 1.0])
        upper, lower = generator.uniform(0, 150), generator.uniform(-20, 100)
        thigh, shin = generator.uniform(0, 40), generator.uniform(-30, 15)
        shoulder, hip = np.array([10.5, -71.0]), np.array([6.5, -46.0])
        chain = {"shoulder": shoulder, "elbow": shoulder + _point_down(upper, 16.5)}
        chain["wrist"] = chain["elbow"] + _point_down(upper + lower, 15.0)
        chain |= {"hip": hip, "knee": hip + _point_down(thigh, 22.0)}
        chain["ankle"] = chain["knee"] + _point_down(thigh + shin, 20.0)
        points |= {f"{side}_{name}": point * mirror for name, point in chain.items()}
    return points


def _point_down(angle: float, length: float) -> NDArray[np.float64]:
    """A vector (x, y) of a length, turned from straight down outward (to the right) by an angle in degrees."""
    return length * np.array([np.sin(np.radians(angle)), np.cos(np.radians(angle))])
