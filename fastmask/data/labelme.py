"""labelme's files, one JSON an image: https://github.com/wkentaro/labelme."""

import base64
import io
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fastmask.cocoapi import mask as coco_mask
from fastmask.data.records import (
    Dataset,
    Object,
    Problem,
    Record,
    box_polygon,
    compressed,
    ellipse_to_polygon,
    numbered,
    polygon_of,
    size_of,
)


def is_labelme(content: Any) -> bool:
    return isinstance(content, Mapping) and isinstance(content.get("shapes"), list)


def read_labelme(contents: Mapping[Path, Mapping[str, Any]], images: Path | None) -> Dataset:
    """Shapes (polygon, rectangle, circle, mask); those of one label and group_id are one object.

    Args:
        contents: of the files.
        images: the images' folder; None: where each file says, seen from itself.
    """
    records, problems, names = [], [], []
    for path, content in contents.items():
        known = size_of(content.get("imageHeight"), content.get("imageWidth"))
        groups: dict[Any, list[Object]] = {}
        for number, shape in enumerate(content["shapes"]):
            try:
                made = _object(shape, known)
            except ValueError as error:
                problems.append(Problem("broken annotation", f"{path.name}: shape {number}", str(error)))
                continue
            group = shape.get("group_id")
            groups.setdefault(("alone", number) if group is None else (made.category, str(group)), []).append(made)
        objects = tuple(_merged(group) for group in groups.values())
        names += [one.category for one in objects]
        name = content.get("imagePath")
        name = str(name).replace("\\", "/") if name else path.with_suffix(".jpg").name
        records.append(Record((images or path.parent) / (Path(name).name if images else name), known, objects))
    return Dataset(records, numbered(names), problems)


def _object(shape: Any, size: tuple[int, int] | None) -> Object:
    if not isinstance(shape, Mapping) or not shape.get("label"):
        raise ValueError("a shape must have a label")
    label, kind, points = str(shape["label"]), shape.get("shape_type", "polygon"), shape.get("points")
    if kind == "polygon":
        return Object(label, (polygon_of(points),))
    if kind not in ("rectangle", "circle", "mask"):
        raise ValueError(f"a shape must be polygon, rectangle, circle or mask, got {kind!r}")
    if not isinstance(points, list):
        raise ValueError(f"a {kind}'s points must be a list, got {points!r}")
    corners = polygon_of([*points, [0, 0], [0, 0]])[:-2]  # of two points, checked like those of a polygon
    if kind == "rectangle" and len(corners) >= 2:
        (x1, y1), (x2, y2) = corners.min(0), corners.max(0)
        return Object(label, (box_polygon(x1, y1, x2, y2),))
    if kind == "circle" and len(corners) == 2:
        (x, y), (edge_x, edge_y) = corners
        radius = math.hypot(edge_x - x, edge_y - y)
        return Object(label, (ellipse_to_polygon(x, y, radius, radius),))
    if kind == "mask" and len(corners) == 2 and size is not None:
        return Object(label, rle=_mask(shape, corners, size))
    raise ValueError(f"a {kind} must have two points{' and the image a size' if kind == 'mask' else ''}")


def _mask(shape: Mapping[str, Any], corners: Any, size: tuple[int, int]) -> dict[str, Any]:
    """An image in base64 that lies at its first corner."""
    try:
        pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(shape.get("mask", "")))).convert("L")) > 0
    except Exception as error:  # Pillow's readers raise whatever they trip over
        raise ValueError(f"a mask must be an image in base64, got one that cannot be read ({error})") from error
    left, top = (round(float(side)) for side in corners[0])
    if left < 0 or top < 0 or top + pixels.shape[0] > size[0] or left + pixels.shape[1] > size[1]:
        raise ValueError(f"a mask must lie in the image {size}, got {pixels.shape} at {(top, left)}")
    whole = np.zeros(size, np.uint8, order="F")
    whole[top : top + pixels.shape[0], left : left + pixels.shape[1]] = pixels
    rle: dict[str, Any] = coco_mask.encode(whole)
    return rle


def _merged(parts: list[Object]) -> Object:
    """One object of several shapes."""
    if len(parts) == 1 or any(part.rle is not None for part in parts):
        return parts[0]
    return parts[0]._replace(polygons=tuple(polygon for part in parts for polygon in part.polygons))


def write_labelme(dataset: Dataset, folder: Path) -> list[Problem]:
    """One JSON an image, named after it -> what it cannot hold."""
    import os

    folder.mkdir(parents=True, exist_ok=True)
    problems, taken = [], set()
    for record in dataset.records:
        shapes: list[dict[str, Any]] = []
        for number, one in enumerate(record.objects):
            if one.crowd:
                problems.append(Problem("cannot be written", str(record.file), f"a crowd of {one.category}"))
                continue
            group = number if len(one.polygons) > 1 else None
            common: dict[str, Any] = {"label": one.category, "group_id": group, "description": "", "flags": {}}
            if one.rle is not None:
                shapes.append(common | _mask_shape(one.rle))
                continue
            for polygon in one.polygons or (box_polygon(*one.bounds()),):
                shapes.append(common | {"shape_type": "polygon", "points": polygon.tolist()})
        height, width = record.size or (None, None)
        content: dict[str, Any] = {"version": "5.0.1", "flags": {}, "shapes": shapes, "imageData": None}
        content |= {"imagePath": os.path.relpath(record.file, folder), "imageHeight": height, "imageWidth": width}
        name = record.file.stem
        while name in taken:
            name += "_"
        taken.add(name)
        (folder / f"{name}.json").write_text(json.dumps(content))
    return problems


def _mask_shape(rle: dict[str, Any]) -> dict[str, Any]:
    """The part of the mask that is not empty, as labelme has it."""
    x, y, width, height = (int(side) for side in coco_mask.toBbox(compressed(rle)))
    pixels = coco_mask.decode(compressed(rle))[y : y + height, x : x + width]
    file = io.BytesIO()
    Image.fromarray((pixels * 255).astype(np.uint8)).save(file, format="PNG")
    points = [[x, y], [x + width, y + height]]
    return {"shape_type": "mask", "points": points, "mask": base64.b64encode(file.getvalue()).decode("ascii")}
