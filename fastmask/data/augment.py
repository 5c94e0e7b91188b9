"""Augmentation of training images: scale jitter, flip, color jitter and copy-paste."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance
from torch import Tensor

from fastmask.data.crop import Crop, hide_outside, plan_jitter, plan_resize
from fastmask.data.records import Record
from fastmask.sizes import Size, check_pixels_left, compute_resized_size
from fastmask.skeletons import Skeleton

Transform = Callable[[Tensor, dict[str, Tensor]], tuple[Tensor, Mapping[str, Tensor]]]
MIN_SIDE = 1.0  # pixels; instances whose box has a smaller side are dropped

__all__ = ["Augmentation", "Sample"]


class Sample(NamedTuple):
    """An augmented image and its n ground-truth instances, without crowds."""

    pixels: NDArray[np.uint8]  # [h, w, C]
    boxes: NDArray[np.float32]  # [n, 4] (x1, y1, x2, y2)
    labels: NDArray[np.int64]  # [n] from 1
    masks: NDArray[np.bool_] | None  # [n, h, w]
    record: int  # index of the image in the data set
    problem: str | None = None  # why another image than this one was due here
    has_mask: NDArray[np.bool_] | None = None  # [n] False where a box alone is annotated; None: all have masks
    keypoints: NDArray[np.float32] | None = None  # [n, K, 3] (x, y, visibility), zeros where not annotated or outside


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """Settings of augmentation; the defaults are Mask R-CNN's (shorter side 800 pixels, flip probability 0.5).

    Args:
        min_size: shorter sides in pixels; one is drawn for each image (multi-scale: ``range(640, 801, 32)``).
        max_size: maximum of the longer side, in pixels.
        flip: probability of a horizontal flip.
        zoom: (min, max) scale of large-scale jitter, which replaces ``min_size``; at 1 an image just fits the canvas.
            Ghiasi et al., 2021, use (0.1, 2).
        canvas: (height, width) in pixels that zoomed images are cropped to.
        color: strength of the jitter of brightness, contrast, saturation and hue, in [0, 1]. Images of other than three
            channels have neither saturation nor hue: brightness and contrast alone change, in all channels alike.
        paste: probability of copy-paste: each instance of another image is then pasted with probability 0.5.
        enlarge_only: matterport's rule of sizes, see :func:`fastmask.sizes.compute_resized_size`.
        transform: a function of yours, called after all of these as ``image, target = transform(image, target)``, in
            the workers, with torch, NumPy and random seeded by the sample's seed. The image is [C, h, w] uint8; the
            target has boxes [n, 4] float32 (x1, y1, x2, y2), labels [n] int64, and where they are loaded masks
            [n, h, w] bool and keypoints [n, K, 3] float32, and has_mask [n] bool where objects with a box alone are
            among them. It returns the same, of any number of instances and of a size that is not larger.

    Raises:
        ValueError: a setting is out of its range.
    """

    min_size: tuple[int, ...] = (800,)
    max_size: int = 1333
    flip: float = 0.5
    zoom: tuple[float, float] | None = None
    canvas: Size = (1024, 1024)
    color: float = 0.0
    paste: float = 0.0
    enlarge_only: bool = False
    transform: Transform | None = None

    def __post_init__(self) -> None:
        for name in ("flip", "color", "paste"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be in [0, 1], got {getattr(self, name)}")
        for name, number in (("min_size", None), ("canvas", 2)):
            given = getattr(self, name)
            sides = (given,) if isinstance(given, int) else tuple(given)
            if not sides or not all(hasattr(side, "__index__") and side >= 1 for side in sides):
                raise ValueError(f"{name} must be pixels, got {given}")
            if number not in (None, len(sides)):
                raise ValueError(f"{name} must be (height, width), got {given}")
            object.__setattr__(self, name, tuple(int(side) for side in sides))
        if self.max_size < 1:
            raise ValueError(f"max_size must be at least 1, got {self.max_size}")
        if self.zoom is not None and (len(self.zoom) != 2 or not 0 < self.zoom[0] <= self.zoom[1] < math.inf):
            raise ValueError(f"zoom must be (min, max), above 0, got {self.zoom}")
        if self.transform is not None and not callable(self.transform):
            raise ValueError(f"transform must be a function, got {self.transform!r}")

    def settings(self) -> dict[str, Any]:
        """All settings as plain values; the transform by its name, or its class's."""
        own: Any = self.transform
        if own is not None:
            own = own if hasattr(own, "__qualname__") else type(own)
            own = f"{own.__module__}.{own.__qualname__}"
        return vars(self) | {"transform": own}

    def draw_crop(self, original: Size, generator: np.random.Generator, room: tuple[float, float]) -> Crop:
        """A random transform of an image of size ``original``; without zoom its result fits into ``room``.

        Raises:
            ValueError: not a pixel of a side would be left, with zoom in the size that just fits the canvas.
        """
        flipped = bool(generator.random() < self.flip)
        if self.zoom is None:
            shorter = int(generator.choice(self.min_size))
            limits, rule = (shorter, self.max_size), self.enlarge_only
            check_pixels_left(original, compute_resized_size(original, *limits, room, enlarge_only=rule))
            return plan_resize(original, *limits, flipped, room, rule)
        check_pixels_left(original, compute_resized_size(original, math.inf, math.inf, self.canvas))
        zoom = generator.uniform(*self.zoom)
        return plan_jitter(original, self.canvas, zoom, (generator.random(), generator.random()), flipped)


def make_sample(
    record: Record,
    image: Image.Image,
    crop: Crop,
    labels: dict[str, int],
    index: int,
    masks: bool,
    skeletons: Mapping[str, Skeleton] | None = None,
) -> Sample:
    """The transformed image and instances; a cropped instance gets the box around its mask inside the crop.

    Instances with a box alone have an empty mask, and those without keypoints have zeros.

    Args:
        record: the image's file and instances.
        image: of the record.
        crop: what is done to both.
        labels: by category.
        index: of the record in the data set.
        masks: rasterize the instances' masks.
        skeletons: of one number of keypoints, by category; None: without keypoints.

    Raises:
        ValueError: the size of an instance's mask differs from the image's, or its keypoints from its skeleton.
    """
    height, width = crop.size
    kept_boxes, kept_labels, kept_masks, has_mask, kept_keypoints = [], [], [], [], []
    number = next((skeleton.number for skeleton in (skeletons or {}).values()), 0)
    for instance in record.instances:
        if instance.crowd:
            continue
        whole = crop.apply_box(instance)
        box = whole.clip(0, [width, height, width, height])
        mask = crop.apply_mask(instance) if masks and instance.has_mask() else None
        if mask is not None and np.abs(whole - box).max() > MIN_SIDE / 2:
            box = mask_to_box(mask)
        if mask is not None and not mask.any():  # thinner than a pixel
            continue
        if min(box[2] - box[0], box[3] - box[1]) < MIN_SIDE:
            continue
        kept_boxes.append(box)
        kept_labels.append(labels[instance.category])
        kept_masks.append(np.zeros((height, width), bool) if mask is None and masks else mask)
        has_mask.append(instance.has_mask())
        points = np.zeros((number, 3))
        if skeletons and instance.keypoints is not None:
            skeleton = skeletons.get(instance.category)
            if skeleton is None or instance.keypoints.shape != (skeleton.number, 3):
                expected = f"[{skeleton.number}, 3]" if skeleton else "None"
                got = list(instance.keypoints.shape)
                raise ValueError(f"keypoints of {instance.category} must be {expected}, as its skeleton, got {got}")
            points = crop.apply_keypoints(instance.keypoints, skeleton)
        kept_keypoints.append(points)
    boxes = np.array(kept_boxes, np.float32).reshape(-1, 4)
    stacked = np.array(kept_masks, bool).reshape(-1, height, width) if masks else None
    pixels = np.asarray(crop.apply_image(image)).reshape(height, width, -1)  # grayscale has no axis of channels
    known = None if all(has_mask) else np.array(has_mask)
    keypoints = np.array(kept_keypoints, np.float32).reshape(-1, number, 3) if skeletons else None
    return Sample(pixels, boxes, np.array(kept_labels, np.int64), stacked, index, None, known, keypoints)


def mask_to_box(mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    """The box (x1, y1, x2, y2) around a mask [h, w]; zeros for an empty mask."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if len(rows) == 0:
        return np.zeros(4)
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], np.float64)


def copy_paste(target: Sample, source: Sample, chosen: NDArray[np.bool_]) -> Sample:
    """Copy-paste augmentation: the chosen [n] instances of ``source`` cover ``target``; hidden mask pixels are removed.

    Instances without a mask are never pasted, and their boxes stay as they are where they are covered. A covered
    keypoint is still where it was, but hidden: its visibility becomes 1, which COCO's files give such points, and it
    trains as before.

    Source: Ghiasi et al., Simple Copy-Paste is a Strong Data Augmentation Method, 2021, section 3.
    """
    assert target.masks is not None
    assert source.masks is not None
    chosen = chosen if source.has_mask is None else chosen & source.has_mask
    part = np.s_[: min(len(target.pixels), len(source.pixels)), : min(target.pixels.shape[1], source.pixels.shape[1])]
    added = np.zeros((int(chosen.sum()), *target.pixels.shape[:2]), bool)
    added[:, *part] = source.masks[chosen][:, *part]
    cover: NDArray[np.bool_] = np.asarray(added.any(0))
    pixels = target.pixels.copy()
    pixels[part][cover[part]] = source.pixels[part][cover[part]]
    remaining = target.masks & ~cover
    boxes = np.concatenate([target.boxes, source.boxes[chosen]])
    hidden = (remaining != target.masks).any((1, 2))
    cropped = (source.boxes[chosen][:, 2:] > pixels.shape[1::-1]).any(1)
    masks = np.concatenate([remaining, added])
    for i in np.flatnonzero(np.concatenate([hidden, cropped])):
        boxes[i] = mask_to_box(masks[i])
    kept = (boxes[:, 2:] - boxes[:, :2]).min(1) >= MIN_SIDE
    labels = np.concatenate([target.labels, source.labels[chosen]])
    pasted = target._replace(pixels=pixels, boxes=boxes[kept], labels=labels[kept], masks=masks[kept])
    if target.keypoints is not None and source.keypoints is not None:
        moved = hide_outside(source.keypoints[chosen], (pixels.shape[0], pixels.shape[1]))
        keypoints = np.concatenate([cover_keypoints(target.keypoints, cover), moved])[kept]
        pasted = pasted._replace(keypoints=keypoints)
    if target.has_mask is None:
        return pasted
    return pasted._replace(has_mask=np.concatenate([target.has_mask, np.ones(int(chosen.sum()), bool)])[kept])


def cover_keypoints(keypoints: NDArray[np.float32], cover: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Keypoints [n, K, 3] of an image, hidden (visibility 1) where pixels [h, w] cover them."""
    x, y = (keypoints[:, :, axis].astype(np.int64).clip(0, side - 1) for axis, side in enumerate(cover.shape[::-1]))
    hidden = cover[y, x] & (keypoints[:, :, 2] > 0)
    covered = keypoints.copy()
    covered[:, :, 2][hidden] = 1
    return covered


def jitter_color(pixels: NDArray[np.uint8], strength: float, generator: np.random.Generator) -> NDArray[np.uint8]:
    """Random brightness, contrast, saturation (each up to 60 %) and hue (up to 17 degrees), at ``strength`` 1.

    Of other than three channels brightness and contrast alone, by the same factors in each.
    """
    if pixels.shape[2] != 3:
        factors = 1 + strength * generator.uniform(-0.6, 0.6, 2)
        bands = [Image.fromarray(pixels[:, :, c]) for c in range(pixels.shape[2])]
        for enhance, factor in zip((ImageEnhance.Brightness, ImageEnhance.Contrast), factors.tolist(), strict=True):
            bands = [enhance(band).enhance(factor) for band in bands]
        return np.stack([np.asarray(band) for band in bands], axis=2)
    image = Image.fromarray(pixels)
    for enhance in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        image = enhance(image).enhance(1 + strength * generator.uniform(-0.6, 0.6))
    shift = round(strength * generator.uniform(-12, 12))  # of 256 steps around the hue circle
    planes = np.array(image.convert("HSV"))
    planes[:, :, 0] += np.uint8(shift % 256)
    return np.asarray(Image.fromarray(planes, "HSV").convert("RGB"))
