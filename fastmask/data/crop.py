"""Resizing, cropping and flipping of an image; its polygons, boxes, masks and keypoints follow."""

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fastmask.cocoapi import mask as coco
from fastmask.data.records import Instance, Keypoints, Polygon, box_to_polygon, encode_polygons
from fastmask.sizes import Size, compute_resized_size
from fastmask.skeletons import Skeleton


class Crop(NamedTuple):
    """A geometric transform: the whole image is resized, then cropped, then flipped or not."""

    original: Size
    resized: Size
    top: int
    left: int
    size: Size  # of the crop
    flipped: bool  # left to right

    def apply_image(self, image: Image.Image) -> Image.Image:
        """The transformed image: bilinear, antialiased where it shrinks; only the cropped part is resized.

        Channels do not mix: the last one of four is no transparency, by which Pillow would weight the others.
        """
        if image.mode in ("LA", "RGBA"):
            return Image.merge(image.mode, [self.apply_image(band) for band in image.split()])
        down, across = (resized / original for resized, original in zip(self.resized, self.original, strict=True))
        part = (
            self.left / across,
            self.top / down,
            min((self.left + self.size[1]) / across, self.original[1]),
            min((self.top + self.size[0]) / down, self.original[0]),
        )
        cropped = image.resize(self.size[::-1], Image.Resampling.BILINEAR, box=part)
        return cropped.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if self.flipped else cropped

    def apply_points(self, points: Polygon) -> Polygon:
        """The transformed points [n, 2] (x, y), not clipped to the crop."""
        scale = np.array([self.resized[1] / self.original[1], self.resized[0] / self.original[0]])
        moved: Polygon = points * scale - (self.left, self.top)
        if self.flipped:
            moved[:, 0] = self.size[1] - moved[:, 0]
        return moved

    def apply_box(self, instance: Instance) -> NDArray[np.float64]:
        """The transformed box (x1, y1, x2, y2) of an instance, not clipped to the crop."""
        corners = self.apply_points(box_to_polygon(*instance.bounds()))
        return np.concatenate([corners.min(0), corners.max(0)])

    def apply_keypoints(self, keypoints: Keypoints, skeleton: Skeleton) -> Keypoints:
        """The transformed keypoints [K, 3], left and right swapped if flipped; those outside the crop become zeros."""
        moved = np.concatenate([self.apply_points(keypoints[:, :2]), keypoints[:, 2:]], axis=1)
        return hide_outside(moved[skeleton.mirror_order()] if self.flipped else moved, self.size)

    def apply_mask(self, instance: Instance) -> NDArray[np.bool_]:
        """The mask of an instance inside the crop: polygons are transformed, then rasterized; RLE is resampled.

        Raises:
            ValueError: the mask's size differs from the image's.
        """
        if instance.rle is not None:
            mask = instance.to_mask(*self.original)
            if mask.shape != self.original:
                raise ValueError(f"a mask must be {list(self.original)} as its image, got {list(mask.shape)}")
            return np.asarray(self.apply_image(Image.fromarray(mask.view(np.uint8) * np.uint8(255)))) > 127
        polygons = [self.apply_points(p) for p in instance.polygons or (box_to_polygon(*instance.bounds()),)]
        return np.asarray(coco.decode(encode_polygons(polygons, *self.size)), bool)


def hide_outside(keypoints: NDArray[Any], size: Size) -> NDArray[Any]:
    """Keypoints [..., 3] with zeros for those that are not annotated, or not in an image of (height, width)."""
    x, y, visibility = np.moveaxis(keypoints, -1, 0)
    inside = (visibility > 0) & (x >= 0) & (x <= size[1]) & (y >= 0) & (y <= size[0])
    return np.where(inside[..., None], keypoints, 0)


def plan_resize(
    original: Size,
    min_size: int,
    max_size: int,
    flipped: bool = False,
    room: tuple[float, float] = (math.inf, math.inf),
    enlarge_only: bool = False,
) -> Crop:
    """Resize the whole image by Mask R-CNN's rule, see :func:`fastmask.preprocess.compute_resized_size`.

    Args:
        original: (height, width) of the image.
        min_size, max_size: pixels of the shorter side, and the maximum of the longer one.
        flipped: flip left to right.
        room: (height, width) that the result has to fit into.
        enlarge_only: matterport's rule instead.
    """
    height, width = compute_resized_size(original, min_size, max_size, room, enlarge_only=enlarge_only)
    resized = (max(1, height), max(1, width))
    return Crop(original, resized, 0, 0, resized, flipped)


def plan_jitter(original: Size, canvas: Size, zoom: float, place: tuple[float, float], flipped: bool) -> Crop:
    """Large-scale jitter: the size that just fits the canvas is scaled by ``zoom``, then cropped to the canvas.

    Args:
        original: (height, width) of the image.
        canvas: (height, width) of the largest crop.
        zoom: scale, 1 for an image that just fits the canvas.
        place: (top, left) of the crop, in [0, 1] of all that is possible.
        flipped: flip left to right.

    Source: Ghiasi et al., Simple Copy-Paste is a Strong Data Augmentation Method, 2021, section 3.1.
    """
    scale = zoom * min(canvas[0] / original[0], canvas[1] / original[1])
    resized = (max(1, round(original[0] * scale)), max(1, round(original[1] * scale)))
    size = (min(resized[0], canvas[0]), min(resized[1], canvas[1]))
    top, left = (
        min(int(share * (whole - part + 1)), whole - part)
        for share, whole, part in zip(place, resized, size, strict=True)
    )
    return Crop(original, resized, top, left, size, flipped)
