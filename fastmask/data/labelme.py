"""labelme's annotation files, one JSON file per image: https://github.com/wkentaro/labelme."""

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
    Instance,
    Problem,
    Record,
    box_to_polygon,
    compress_rle,
    ellipse_to_polygon,
    name_records,
    number_categories,
    parse_polygon,
    parse_size,
    to_number,
)
from fastmask.files import write_text


def is_labelme(content: Any) -> bool:
    """Whether a JSON file's content has labelme's form."""
    return isinstance(content, Mapping) and isinstance(content.get("shapes"), list)


def read_labelme(contents: Mapping[Path, Mapping[str, Any]], images: Path | None) -> Dataset:
    """Read shapes (polygon, rectangle, circle, mask); those of one label and group_id are one instance.

    Args:
        contents: of the JSON files, by path.
        images: folder of the images; None: as each file says, relative to itself.
    """
    records, problems, names = [], [], []
    for path, content in contents.items():
        size = parse_size(content.get("imageHeight"), content.get("imageWidth"))
        groups: dict[Any, list[Instance]] = {}
        for number, shape in enumerate(content["shapes"]):
            try:
                instance = _read_shape(shape, size)
            except ValueError as error:
                problems.append(Problem("broken annotation", f"{path.name}: shape {number}", str(error)))
                continue
            group = shape.get("group_id")
            key = ("alone", number) if group is None else (instance.category, str(group))
            groups.setdefault(key, []).append(instance)
        instances = tuple(_merge_parts(group) for group in groups.values())
        names += [instance.category for instance in instances]
        name = content.get("imagePath")
        name = str(name).replace("\\", "/") if name else path.with_suffix(".jpg").name
        records.append(Record((images or path.parent) / (Path(name).name if images else name), size, instances))
    return Dataset(records, number_categories(names), problems)


def _read_shape(shape: Any, size: tuple[int, int] | None) -> Instance:
    if not isinstance(shape, Mapping) or not shape.get("label"):
        raise ValueError("a shape must have a label")
    label, kind, points = str(shape["label"]), shape.get("shape_type", "polygon"), shape.get("points")
    if kind == "polygon":
        return Instance(label, (parse_polygon(points),))
    if kind not in ("rectangle", "circle", "mask"):
        raise ValueError(f"a shape must be polygon, rectangle, circle or mask, got {kind!r}")
    if not isinstance(points, list):
        raise ValueError(f"a {kind}'s points must be a list, got {points!r}")
    corners = parse_polygon([*points, [0, 0], [0, 0]])[:-2]  # two points, checked like a polygon's
    if kind == "rectangle" and len(corners) >= 2:
        (x1, y1), (x2, y2) = corners.min(0), corners.max(0)
        return Instance(label, (box_to_polygon(x1, y1, x2, y2),))
    if kind == "circle" and len(corners) == 2:
        (x, y), (edge_x, edge_y) = corners
        radius = math.hypot(edge_x - x, edge_y - y)
        return Instance(label, (ellipse_to_polygon(x, y, radius, radius),))
    if kind == "mask" and len(corners) == 2 and size is not None:
        return Instance(label, rle=_read_mask(shape, corners, size))
    raise ValueError(f"a {kind} must have two points{' and the image a size' if kind == 'mask' else ''}")


def _read_mask(shape: Mapping[str, Any], corners: Any, size: tuple[int, int]) -> dict[str, Any]:
    """COCO RLE of a mask: an image in base64 whose top left corner is the shape's first point."""
    try:
        pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(shape.get("mask", "")))).convert("L")) > 0
    except Exception as error:  # Pillow's readers raise many types
        raise ValueError(f"a mask must be an image in base64, got one that cannot be read ({error})") from error
    left, top = (round(float(side)) for side in corners[0])
    if left < 0 or top < 0 or top + pixels.shape[0] > size[0] or left + pixels.shape[1] > size[1]:
        raise ValueError(f"a mask must lie in the image {size}, got {pixels.shape} at {(top, left)}")
    whole = np.zeros(size, np.uint8, order="F")
    whole[top : top + pixels.shape[0], left : left + pixels.shape[1]] = pixels
    rle: dict[str, Any] = coco_mask.encode(whole)
    return rle


def _merge_parts(parts: list[Instance]) -> Instance:
    """One instance of several shapes."""
    if len(parts) == 1 or any(part.rle is not None for part in parts):
        return parts[0]
    return parts[0]._replace(polygons=tuple(polygon for part in parts for polygon in part.polygons))


def write_labelme(dataset: Dataset, folder: Path) -> list[Problem]:
    """Write one JSON file per image, named after it -> what the format cannot hold."""
    import os

    folder.mkdir(parents=True, exist_ok=True)
    problems = []
    for name, record in zip(name_records(dataset.records), dataset.records, strict=True):
        shapes: list[dict[str, Any]] = []
        for number, instance in enumerate(record.instances):
            if instance.crowd:
                problems.append(Problem("cannot be written", str(record.file), f"a crowd of {instance.category}"))
                continue
            group = number if len(instance.polygons) > 1 else None
            common: dict[str, Any] = {"label": instance.category, "group_id": group, "description": "", "flags": {}}
            if instance.rle is not None:
                shapes.append(common | _write_mask(instance.rle))
                continue
            for polygon in instance.polygons or (box_to_polygon(*instance.bounds()),):
                shapes.append(common | {"shape_type": "polygon", "points": polygon.tolist()})
        height, width = map(to_number, record.size or (None, None))
        content: dict[str, Any] = {"version": "5.0.1", "flags": {}, "shapes": shapes, "imageData": None}
        content |= {"imagePath": os.path.relpath(record.file, folder), "imageHeight": height, "imageWidth": width}
        write_text(folder / f"{name}.json", json.dumps(content))
    return problems


def _write_mask(rle: dict[str, Any]) -> dict[str, Any]:
    """A mask shape: the mask inside its bounding box, as PNG in base64."""
    x, y, width, height = (int(side) for side in coco_mask.toBbox(compress_rle(rle)))
    pixels = coco_mask.decode(compress_rle(rle))[y : y + height, x : x + width]
    file = io.BytesIO()
    Image.fromarray((pixels * 255).astype(np.uint8)).save(file, format="PNG")
    points = [[x, y], [x + width, y + height]]
    return {"shape_type": "mask", "points": points, "mask": base64.b64encode(file.getvalue()).decode("ascii")}
