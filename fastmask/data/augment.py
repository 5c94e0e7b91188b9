"""What training does to an image and its objects, beside resizing."""

import dataclasses
import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance

from fastmask.data.crop import Crop, Size, plan_jitter, plan_resize
from fastmask.data.records import Record

LEAST = 1.0  # pixels of a box's sides; what is smaller is left out


class Sample(NamedTuple):
    """An image as training sees it. Of a crowd nothing is learned."""

    pixels: NDArray[np.uint8]  # [h, w, 3]
    boxes: NDArray[np.float32]  # [n, 4] (x1, y1, x2, y2)
    labels: NDArray[np.int64]  # [n] from 1
    masks: NDArray[np.bool_] | None  # [n, h, w]
    record: int  # its number
    problem: str | None = None  # what was wrong with the image that should have been here


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """How images are varied; as it is, as the paper does it: 800 pixels, mirrored every other time.

    Args:
        sizes: shorter sides in pixels, of which one is drawn for each image (multi-scale: ``range(640, 801, 32)``).
        longest: the longer side's limit.
        mirror: how likely left becomes right.
        zoom: (least, most) of large-scale jitter, which replaces ``sizes``: how large an image becomes, 1 being what
            just fits into the canvas; (0.1, 2) in Ghiasi et al., 2021.
        canvas: (height, width) that those are cut to.
        color: how much brightness, contrast, saturation and hue vary, up to 1; 0: not at all.
        paste: how likely objects of another image are pasted onto one, each of them every other time.

    Raises:
        ValueError: something is out of its range.
    """

    sizes: tuple[int, ...] = (800,)
    longest: int = 1333
    mirror: float = 0.5
    zoom: tuple[float, float] | None = None
    canvas: Size = (1024, 1024)
    color: float = 0.0
    paste: float = 0.0

    def __post_init__(self) -> None:
        for name in ("mirror", "color", "paste"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be in [0, 1], got {getattr(self, name)}")
        for name, number in (("sizes", None), ("canvas", 2)):
            given = getattr(self, name)
            sides = (given,) if isinstance(given, int) else tuple(given)
            if not sides or not all(hasattr(side, "__index__") and side >= 1 for side in sides):
                raise ValueError(f"{name} must be pixels, got {given}")
            if number not in (None, len(sides)):
                raise ValueError(f"{name} must be (height, width), got {given}")
            object.__setattr__(self, name, tuple(int(side) for side in sides))
        if self.longest < 1:
            raise ValueError(f"longest must be at least 1, got {self.longest}")
        if self.zoom is not None and (len(self.zoom) != 2 or not 0 < self.zoom[0] <= self.zoom[1] < math.inf):
            raise ValueError(f"zoom must be (least, most), above 0, got {self.zoom}")

    def view(self, original: Size, generator: np.random.Generator, room: tuple[float, float]) -> Crop:
        """Where one image's pixels go; with ``sizes``, into the room (height, width)."""
        mirrored = bool(generator.random() < self.mirror)
        if self.zoom is None:
            return plan_resize(original, int(generator.choice(self.sizes)), self.longest, mirrored, room)
        zoom = generator.uniform(*self.zoom)
        return plan_jitter(original, self.canvas, zoom, (generator.random(), generator.random()), mirrored)


def seen(record: Record, image: Image.Image, view: Crop, labels: dict[str, int], number: int, masks: bool) -> Sample:
    """An image and its objects in a view; boxes of those that are cut are drawn around what is left of them.

    Raises:
        ValueError: an object's mask is not of the image's size.
    """
    height, width = view.size
    boxes, numbers, found = [], [], []
    for one in record.objects:
        if one.crowd:
            continue
        whole = view.box(one)
        box = whole.clip(0, [width, height, width, height])
        mask = view.mask(one) if masks else None
        if mask is not None and np.abs(whole - box).max() > LEAST / 2:
            box = bounds_of(mask)
        if mask is not None and not mask.any():  # too thin to be seen at this size
            continue
        if min(box[2] - box[0], box[3] - box[1]) < LEAST:
            continue
        boxes.append(box)
        numbers.append(labels[one.category])
        found.append(mask)
    stacked = None if not masks else np.array(found, bool).reshape(-1, height, width)
    pixels = np.asarray(view.image(image))
    return Sample(pixels, np.array(boxes, np.float32).reshape(-1, 4), np.array(numbers, np.int64), stacked, number)


def bounds_of(mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    """The box (x1, y1, x2, y2) around a mask [h, w]; zeros around nothing."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if len(rows) == 0:
        return np.zeros(4)
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], np.float64)


def pasted(onto: Sample, other: Sample, chosen: NDArray[np.bool_]) -> Sample:
    """With the chosen [n] objects of another image on top; what they hide is cut out of what was there.

    Source: Ghiasi et al., Simple Copy-Paste is a Strong Data Augmentation Method, 2021, section 3.
    """
    assert onto.masks is not None
    assert other.masks is not None
    part = np.s_[: min(len(onto.pixels), len(other.pixels)), : min(onto.pixels.shape[1], other.pixels.shape[1])]
    added = np.zeros((int(chosen.sum()), *onto.pixels.shape[:2]), bool)
    added[:, *part] = other.masks[chosen][:, *part]
    cover: NDArray[np.bool_] = np.asarray(added.any(0))
    pixels = onto.pixels.copy()
    pixels[part][cover[part]] = other.pixels[part][cover[part]]
    left = onto.masks & ~cover
    boxes = np.concatenate([onto.boxes, other.boxes[chosen]])
    hidden = (left != onto.masks).any((1, 2))
    cut = (other.boxes[chosen][:, 2:] > pixels.shape[1::-1]).any(1)
    masks = np.concatenate([left, added])
    for i in np.flatnonzero(np.concatenate([hidden, cut])):
        boxes[i] = bounds_of(masks[i])
    kept = (boxes[:, 2:] - boxes[:, :2]).min(1) >= LEAST
    labels = np.concatenate([onto.labels, other.labels[chosen]])
    return onto._replace(pixels=pixels, boxes=boxes[kept], labels=labels[kept], masks=masks[kept])


def recolored(pixels: NDArray[np.uint8], strength: float, generator: np.random.Generator) -> NDArray[np.uint8]:
    """Brighter or darker, with more or less contrast and saturation, and of other hues, by at most the strength."""
    image = Image.fromarray(pixels)
    for enhance in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        image = enhance(image).enhance(1 + strength * generator.uniform(-0.6, 0.6))
    turn = round(strength * generator.uniform(-12, 12))  # of 256 steps around the circle of hues
    planes = np.array(image.convert("HSV"))
    planes[:, :, 0] += np.uint8(turn % 256)
    return np.asarray(Image.fromarray(planes, "HSV").convert("RGB"))
