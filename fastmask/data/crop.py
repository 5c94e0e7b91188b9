"""Where the pixels of an image go: resized, cut, mirrored; polygons and masks follow."""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fastmask.cocoapi import mask as coco
from fastmask.data.records import Object, Polygon, box_polygon, encoded

Size = tuple[int, int]  # (height, width)


class Crop(NamedTuple):
    """The whole image is resized, then a part of it is cut out, then that is mirrored or not."""

    original: Size
    resized: Size
    top: int
    left: int
    size: Size  # of what is cut out
    mirrored: bool

    def image(self, image: Image.Image) -> Image.Image:
        """Bilinear, and smoothed where it shrinks, of the part alone."""
        down, across = (resized / original for resized, original in zip(self.resized, self.original, strict=True))
        part = (
            self.left / across,
            self.top / down,
            min((self.left + self.size[1]) / across, self.original[1]),
            min((self.top + self.size[0]) / down, self.original[0]),
        )
        seen = image.resize(self.size[::-1], Image.Resampling.BILINEAR, box=part)
        return seen.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if self.mirrored else seen

    def points(self, points: Polygon) -> Polygon:
        """Points [n, 2] (x, y) of the image, wherever they land."""
        scale = np.array([self.resized[1] / self.original[1], self.resized[0] / self.original[0]])
        moved: Polygon = points * scale - (self.left, self.top)
        if self.mirrored:
            moved[:, 0] = self.size[1] - moved[:, 0]
        return moved

    def box(self, one: Object) -> NDArray[np.float64]:
        """An object's box (x1, y1, x2, y2), wherever it lands."""
        corners = self.points(box_polygon(*one.bounds()))
        return np.concatenate([corners.min(0), corners.max(0)])

    def mask(self, one: Object) -> NDArray[np.bool_]:
        """What of an object is in the view: polygons are moved, then painted; RLE goes as the pixels do.

        Raises:
            ValueError: its mask is not of the image's size.
        """
        if one.rle is not None:
            mask = one.mask(*self.original)
            if mask.shape != self.original:
                raise ValueError(f"a mask must be {list(self.original)} as its image, got {list(mask.shape)}")
            return np.asarray(self.image(Image.fromarray(mask.view(np.uint8) * np.uint8(255)))) > 127
        polygons = [self.points(polygon) for polygon in one.polygons or (box_polygon(*one.bounds()),)]
        return np.asarray(coco.decode(encoded(polygons, *self.size)), bool)


def plan_resize(
    original: Size, shorter: int, longest: int, mirrored: bool = False, room: tuple[float, float] = (math.inf, math.inf)
) -> Crop:
    """All of an image, its shorter side resized to ``shorter``; smaller if the other one got beyond ``longest``.

    Args:
        room: (height, width) that it has to fit into as well.
    """
    scale = min(shorter / min(original), longest / max(original), room[0] / original[0], room[1] / original[1])
    resized = (max(1, math.floor(original[0] * scale)), max(1, math.floor(original[1] * scale)))
    return Crop(original, resized, 0, 0, resized, mirrored)


def plan_jitter(original: Size, canvas: Size, zoom: float, place: tuple[float, float], mirrored: bool) -> Crop:
    """Large-scale jitter: an image that would just fit into the canvas, ``zoom`` times as large, cut to the canvas.

    Args:
        place: in [0, 1], of the part among all that could be cut, from the top and the left.

    Source: Ghiasi et al., Simple Copy-Paste is a Strong Data Augmentation Method, 2021, section 3.1.
    """
    scale = zoom * min(canvas[0] / original[0], canvas[1] / original[1])
    resized = (max(1, round(original[0] * scale)), max(1, round(original[1] * scale)))
    size = (min(resized[0], canvas[0]), min(resized[1], canvas[1]))
    top, left = (
        min(int(share * (whole - part + 1)), whole - part)
        for share, whole, part in zip(place, resized, size, strict=True)
    )
    return Crop(original, resized, top, left, size, mirrored)
