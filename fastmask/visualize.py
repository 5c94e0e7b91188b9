"""Detections drawn on their image: masks, boxes, labels and scores."""

import colorsys
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from fastmask.cocoapi import mask as coco

MASK_OPACITY = 0.45
Color = tuple[int, int, int]
Rectangle = tuple[float, float, float, float]  # x1, y1, x2, y2
Pixels = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]


def draw_detections(
    image: Image.Image,
    detections: Mapping[str, Any],
    categories: Sequence[str] | None = None,
    colors: Sequence[int] | None = None,
) -> Image.Image:
    """A copy of the image with each detection in a color of its own, the smallest on top.

    Args:
        image: what the detections are of; boxes are in its pixels.
        detections: boxes [N, 4], labels [N], optionally scores [N], optionally masks: [N, H, W] or [N, 1, H, W] bool or
            probabilities (cut at 0.5), or N COCO RLEs.
        categories: names by label; without one a label is its number.
        colors: the number of each one's color; None: 0, 1, 2, ...

    Returns:
        RGB, of the image's size.
    """
    boxes = _array(detections["boxes"]).reshape(-1, 4)
    paints = [_color(number) for number in (range(len(boxes)) if colors is None else colors)]
    order = np.argsort(-(boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]), kind="stable")
    order = order[np.isfinite(boxes[order]).all(1)]  # what has no place is not drawn
    stroke = max(1, round(max(image.size) / 500))
    pixels = np.array(image.convert("RGB"))
    if "masks" in detections:
        for i in order:
            _paint(pixels, _mask(detections["masks"][i]), paints[i], stroke)
    drawn = Image.fromarray(pixels)
    canvas = ImageDraw.Draw(drawn)
    for i in order:
        x1, y1, x2, y2 = boxes[i]
        canvas.rectangle((x1, y1, max(x1, x2), max(y1, y2)), outline=paints[i], width=stroke)
    font = ImageFont.load_default(max(10.0, max(image.size) / 60))
    taken: list[Rectangle] = []
    for i in order[::-1]:
        text = _caption(detections, int(i), categories)
        x1, y1, x2, y2 = canvas.textbbox((0, 0), text, font=font)
        place = _free_place(boxes[i], (x2 - x1 + 2 * stroke, y2 - y1 + 2 * stroke), image.size, taken)
        taken.append(place)
        canvas.rectangle(place, fill=paints[i])
        canvas.text((place[0] + stroke - x1, place[1] + stroke - y1), text, fill=_ink(paints[i]), font=font)
    return drawn


def _color(index: int) -> Color:
    """Distinct from its neighbors': hues a golden section apart, in turns of two brightnesses."""
    red, green, blue = colorsys.hsv_to_rgb((0.02 + 0.618034 * index) % 1.0, 0.85, (1.0, 0.8)[index % 2])
    return round(255 * red), round(255 * green), round(255 * blue)


def _ink(color: Color) -> Color:
    """Black or white, whichever is read better on it."""
    return (0, 0, 0) if 0.299 * color[0] + 0.587 * color[1] + 0.114 * color[2] > 140 else (255, 255, 255)


def _mask(mask: Any) -> Mask:
    """One mask as bool [H, W]."""
    if isinstance(mask, dict):
        return np.asarray(coco.decode(mask), dtype=bool)
    array = _array(mask)
    return array.reshape(array.shape[-2:]) > 0.5


def _array(values: Any) -> npt.NDArray[Any]:
    """Any tensor or array, with its gradient or half type left behind."""
    if isinstance(values, Tensor):
        values = values.detach().to("cpu", torch.float32 if values.is_floating_point() else values.dtype)
    return np.asarray(values)


def _paint(pixels: Pixels, mask: Mask, color: Color, stroke: int) -> None:
    """Tint the mask's pixels in place, its rim in the full color."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if len(rows) == 0:
        return
    part = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    inside, target = mask[part], pixels[part]
    crop = Image.fromarray(target)
    tinted = np.asarray(Image.blend(crop, Image.new("RGB", crop.size, color), MASK_OPACITY))
    np.copyto(target, tinted, where=inside[:, :, None])
    np.copyto(target, np.array(color, dtype=np.uint8), where=(inside & ~_eroded(inside, stroke))[:, :, None])


def _eroded(mask: Mask, steps: int) -> Mask:
    """Without the pixels within ``steps`` of its rim, along either axis; in few passes, as what is seen doubles."""
    core = np.pad(mask, steps)
    for axis in (0, 1):
        span, window = 1, 2 * steps + 1
        while span < window:
            step = min(span, window - span)
            core = core[:-step] & core[step:] if axis == 0 else core[:, :-step] & core[:, step:]
            span += step
    return core


def _caption(detections: Mapping[str, Any], index: int, categories: Sequence[str] | None) -> str:
    label = int(detections["labels"][index])
    name = categories[label] if categories is not None and 0 <= label < len(categories) else str(label)
    return f"{name} {float(detections['scores'][index]):.2f}" if "scores" in detections else name


def _free_place(
    box: Sequence[float], size: tuple[float, float], image: tuple[int, int], taken: Sequence[Rectangle]
) -> Rectangle:
    """Where a caption goes: above its box, else in, below, beside or farther off it, where no other caption is."""
    (width, height), (x1, y1, x2, y2) = size, box
    corners = [(x1, y1 - height), (x1, y1), (x1, y2), (x1, y2 - height), (x2 - width, y1), (x2, y1), (x2, y2 - height)]
    corners += [(x1, y) for step in range(1, 5) for y in (y1 - (step + 1) * height, y2 + step * height)]
    places = []
    for x, y in corners:
        x = min(max(x, 0.0), max(image[0] - 1 - width, 0.0))
        y = min(max(y, 0.0), max(image[1] - 1 - height, 0.0))
        places.append((x, y, x + width, y + height))
    for place in places:
        if not any(place[0] < t[2] and t[0] < place[2] and place[1] < t[3] and t[1] < place[3] for t in taken):
            return place
    return places[0]


def save_overlay(image: Image.Image, path: str | os.PathLike[str]) -> None:
    """Save an image, as PNG with little compression: with the usual one, saving takes longer than predicting."""
    image.save(path, format="PNG", compress_level=1)
