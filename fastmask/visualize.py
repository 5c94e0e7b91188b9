"""Drawing detections on their image: masks, boxes, keypoints, labels and scores."""

import colorsys
import functools
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from fastmask.cocoapi import mask as coco
from fastmask.files import replace_file
from fastmask.fonts import choose_names, find_font, load_font, warn_once
from fastmask.image_io import convert_image
from fastmask.skeletons import Skeleton, choose_limbs

MASK_OPACITY = 0.3  # what is below stays legible, as the contour tells the color
MAX_JPEG_SIDE = 65500  # libjpeg's
MIN_KEYPOINT_SCORE = 2.0  # a logit; as Detectron's overlays (detectron/utils/vis.py) leave out the points below it
Color = tuple[int, int, int]
Rectangle = tuple[float, float, float, float]  # x1, y1, x2, y2
Pixels = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]


def draw_detections(
    image: Image.Image,
    detections: Mapping[str, Any],
    categories: Sequence[str] | None = None,
    colors: Sequence[int] | None = None,
    skeletons: Mapping[int, Skeleton] | None = None,
) -> Image.Image:
    """Draw detections on a copy of the image, each in its own color, the smallest on top.

    Keypoints are joined by their limbs. A point of visibility 1 is hollow, and one of 0 is not drawn; nor is one whose
    score is below 2. Predictions, whose third number is always 1, have filled points: they come with scores.

    Args:
        image: of the detections, in any of Pillow's modes; 16 bits are scaled to 8, and RGBA's alpha is ignored.
        detections: boxes [N, 4] in pixels of the image, labels [N], optionally scores [N], optionally masks:
            [N, H, W] or [N, 1, H, W] bool or probabilities (thresholded at 0.5), or [N] COCO RLE; optionally keypoints:
            N times [K, 3] (x, y, visibility), of predictions with keypoints_scores: N times [K].
        categories: names by label; labels without one are drawn as numbers, as are those whose name has letters that no
            font on this system has, of which a warning tells once.
        colors: index of each detection's color; None: 0, 1, 2, ...
        skeletons: of keypoints, by label; without one, 17 keypoints have COCO's limbs, and others none.

    Returns:
        An RGB image of the same size.
    """
    boxes = _to_array(detections["boxes"]).reshape(-1, 4)
    palette = [_choose_color(index) for index in (range(len(boxes)) if colors is None else colors)]
    order = np.argsort(-(boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]), kind="stable")
    order = order[np.isfinite(boxes[order]).all(1)]  # NaN and infinity are not drawn
    stroke = max(1, round(max(image.size) / 500))
    pixels = np.array(convert_image(image) if image.mode.startswith("I;16") else image.convert("RGB"))
    if "masks" in detections:
        for i in order:
            _tint(pixels, _to_bool(detections["masks"][i]), palette[i], stroke)
    overlay = Image.fromarray(pixels)
    canvas = ImageDraw.Draw(overlay)
    for i in order:
        x1, y1, x2, y2 = boxes[i]
        canvas.rectangle((x1, y1, max(x1, x2), max(y1, y2)), outline=palette[i], width=stroke)
    if "keypoints" in detections:
        for i in order:
            skeleton = (skeletons or {}).get(int(detections["labels"][i]))
            scores = detections["keypoints_scores"][i] if "keypoints_scores" in detections else None
            _draw_keypoints(canvas, _to_array(detections["keypoints"][i]), scores, skeleton, palette[i], stroke)
    categories, legend = choose_names(tuple(map(str, categories or ())))
    if legend:
        warn_once(legend)
    load = functools.cache(functools.partial(load_font, size=max(10.0, max(image.size) / 60)))
    taken: list[Rectangle] = []
    for i in order[::-1]:
        text = _format_caption(detections, int(i), categories)
        font = load(find_font(text) or "")
        x1, y1, x2, y2 = canvas.textbbox((0, 0), text, font=font)
        area = _place_caption(boxes[i], (x2 - x1 + 2 * stroke, y2 - y1 + 2 * stroke), image.size, taken)
        taken.append(area)
        canvas.rectangle(area, fill=palette[i])
        canvas.text(
            (area[0] + stroke - x1, area[1] + stroke - y1), text, fill=_choose_text_color(palette[i]), font=font
        )
    return overlay


def _choose_color(index: int) -> Color:
    """Consecutive colors differ: their hues are a golden section apart, their brightness alternates."""
    red, green, blue = colorsys.hsv_to_rgb((0.02 + 0.618034 * index) % 1.0, 0.85, (1.0, 0.8)[index % 2])
    return round(255 * red), round(255 * green), round(255 * blue)


def _choose_text_color(color: Color) -> Color:
    """Black on light colors, white on dark ones."""
    return (0, 0, 0) if 0.299 * color[0] + 0.587 * color[1] + 0.114 * color[2] > 140 else (255, 255, 255)


def _to_bool(mask: Any) -> Mask:
    """A mask of any form as bool [H, W]."""
    if isinstance(mask, dict):
        return np.asarray(coco.decode(mask), dtype=bool)
    array = _to_array(mask)
    return array.reshape(array.shape[-2:]) > 0.5


def _to_array(values: Any) -> npt.NDArray[Any]:
    """A tensor or array as array: detached, on the host, half types as float32."""
    if isinstance(values, Tensor):
        values = values.detach().to("cpu", torch.float32 if values.is_floating_point() else values.dtype)
    return np.asarray(values)


def _tint(pixels: Pixels, mask: Mask, color: Color, stroke: int) -> None:
    """Tint the mask's pixels in place, those of its contour fully; around it goes a black rim of half the width."""
    columns = np.flatnonzero(mask.any(0))  # first, as pycocotools' masks are contiguous along them
    if len(columns) == 0:
        return
    rim = max(1, stroke // 2)
    left, right = max(columns[0] - rim, 0), columns[-1] + 1 + rim
    rows = np.flatnonzero(mask[:, left:right].any(1))
    part = np.s_[max(rows[0] - rim, 0) : rows[-1] + 1 + rim, left:right]
    inside, target = mask[part], pixels[part]
    crop = Image.fromarray(target)
    tinted = np.asarray(Image.blend(crop, Image.new("RGB", crop.size, color), MASK_OPACITY))
    np.copyto(target, tinted, where=inside[:, :, None])
    target[_dilate(inside, rim) & ~inside] = 0
    target[inside & ~_erode(inside, stroke)] = color


def _draw_keypoints(
    canvas: ImageDraw.ImageDraw,
    keypoints: npt.NDArray[Any],
    scores: Any,
    skeleton: Skeleton | None,
    color: Color,
    stroke: int,
) -> None:
    """Draw limbs and points over a black rim, which shows on any background; limbs join points that are drawn."""
    visibility = keypoints[:, 2] if scores is None else 2.0 * (_to_array(scores) >= MIN_KEYPOINT_SCORE)
    shown = (visibility > 0) & np.isfinite(keypoints).all(1)
    points = [(float(x), float(y)) for x, y in keypoints[:, :2]]
    limbs = [(a, b) for a, b in choose_limbs(skeleton, len(points)) if shown[a] and shown[b]]
    for width, fill in ((4 * stroke, (0, 0, 0)), (2 * stroke, color)):
        for a, b in limbs:
            canvas.line((points[a], points[b]), fill, width)
    radius = 1.5 * stroke
    outer = radius + max(1.0, 0.75 * stroke)
    for i in np.flatnonzero(shown).tolist():
        x, y = points[i]
        canvas.ellipse((x - outer, y - outer, x + outer, y + outer), fill=(0, 0, 0))
        inner = (x - radius, y - radius, x + radius, y + radius)
        canvas.ellipse(inner, fill=(255, 255, 255) if visibility[i] > 1 else None, outline=(255, 255, 255))


def _erode(mask: Mask, steps: int) -> Mask:
    """Erosion by a square of ``2 * steps + 1`` pixels; around the array there is no mask."""
    return _slide(mask, steps, np.logical_and)


def _dilate(mask: Mask, steps: int) -> Mask:
    """Dilation by a square of ``2 * steps + 1`` pixels."""
    return _slide(mask, steps, np.logical_or)


def _slide(mask: Mask, steps: int, combine: np.ufunc) -> Mask:
    """Combine the pixels of each square window, in passes that double the window."""
    core = np.pad(mask, steps)
    for axis in (0, 1):
        span, window = 1, 2 * steps + 1
        while span < window:
            step = min(span, window - span)
            pair = (core[:-step], core[step:]) if axis == 0 else (core[:, :-step], core[:, step:])
            core = combine(*pair)
            span += step
    return core


def _format_caption(detections: Mapping[str, Any], index: int, categories: Sequence[str]) -> str:
    label = int(detections["labels"][index])
    name = categories[label] if 0 <= label < len(categories) else str(label)
    return f"{name} {float(detections['scores'][index]):.2f}" if "scores" in detections else name


def _place_caption(
    box: Sequence[float], size: tuple[float, float], image: tuple[int, int], taken: Sequence[Rectangle]
) -> Rectangle:
    """The area of a caption: above its box, else inside, below, beside or farther away, clear of other captions."""
    (width, height), (x1, y1, x2, y2) = size, box
    corners = [(x1, y1 - height), (x1, y1), (x1, y2), (x1, y2 - height), (x2 - width, y1), (x2, y1), (x2, y2 - height)]
    corners += [(x1, y) for step in range(1, 5) for y in (y1 - (step + 1) * height, y2 + step * height)]
    areas = []
    for x, y in corners:
        x = min(max(x, 0.0), max(image[0] - 1 - width, 0.0))
        y = min(max(y, 0.0), max(image[1] - 1 - height, 0.0))
        areas.append((x, y, x + width, y + height))
    for area in areas:
        if not any(area[0] < t[2] and t[0] < area[2] and area[1] < t[3] and t[1] < area[3] for t in taken):
            return area
    return areas[0]


def save_overlay(image: Image.Image, path: str | os.PathLike[str]) -> None:
    """Save an image as JPEG, where the path ends in .jpg, or as PNG.

    JPEG has quality 90 and colors of full resolution, which thin lines need; PNG has compression level 1: at the
    default level, saving takes longer than predicting.

    Raises:
        ValueError: the image is too large for JPEG.
        OSError: the file cannot be written.
    """
    jpeg = os.fspath(path).endswith(".jpg")
    if jpeg and max(image.size) > MAX_JPEG_SIDE:
        raise ValueError(f"{os.fspath(path)} must have sides of at most {MAX_JPEG_SIDE} pixels, got {image.size}")
    with replace_file(path) as draft:
        if jpeg:
            image.save(draft, format="JPEG", quality=90, subsampling=0)
        else:
            image.save(draft, format="PNG", compress_level=1)
