"""labelme's annotation files, one JSON file per image: https://github.com/wkentaro/labelme."""

import base64
import contextlib
import io
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fastmask.cocoapi import mask as coco_mask
from fastmask.data.embedded import ImageData, describe_data
from fastmask.data.parse import parse_group, parse_polygon, parse_size, parse_text, shorten, to_number
from fastmask.data.paths import ImageFiles, find_by_stem, find_images, parse_name
from fastmask.data.records import (
    Dataset,
    Instance,
    Problem,
    Record,
    box_to_polygon,
    compress_rle,
    describe_box,
    ellipse_to_polygon,
    name_records,
    number_categories,
)
from fastmask.files import write_text
from fastmask.image_io import read_image_size


def is_labelme(content: Any) -> bool:
    """Whether a JSON file's content has labelme's form."""
    return isinstance(content, Mapping) and (isinstance(content.get("shapes"), list) or "imagePath" in content)


def drop_image_data(content: Mapping[str, Any], file: Path) -> dict[str, Any]:
    """The content of a labelme file, with an :class:`ImageData` or None instead of the image's content."""
    return {**content, "imageData": describe_data(content.get("imageData"), file)}


def read_labelme(contents: Mapping[Path, Mapping[str, Any]], images: Path | None) -> Dataset:
    """Read shapes (polygon, rectangle, circle, mask); those of one label and group_id are one instance, their union.

    An image whose file is not found is its ``imageData``, which is read from the JSON file each time it is needed.

    Args:
        contents: of the JSON files of a folder, by path, as :func:`drop_image_data` leaves them.
        images: folder of the images; None: as each file says, relative to itself.
    """
    folder = next(iter(contents)).parent
    named = {path: parse_name(content.get("imagePath")) for path, content in contents.items()}
    if None in named.values():  # the image is named as its file
        stems = find_by_stem([images] if images is not None else [folder, folder / "images"])
        named |= {path: stems.get(path.stem, path.with_suffix(".jpg")).name for path, name in named.items() if not name}
    found = find_images([name for name in named.values() if name], folder, images)
    records, names, problems = [], [], found.describe_outside(str(folder))
    for path, content in contents.items():
        file, embedded, faults = _find_image(path, named[path] or "", found, content.get("imageData"))
        problems += faults
        if file is None:
            continue
        try:
            size = parse_size(content.get("imageHeight"), content.get("imageWidth"))
        except ValueError as error:
            problems.append(Problem("broken file", path.name, str(error)))
            size = None
        shapes = content.get("shapes")
        if not isinstance(shapes, list):
            problems.append(Problem("broken file", path.name, f"shapes must be a list, got {shorten(shapes)}"))
            shapes = []
        if size is None and embedded is not None:
            size = embedded.size
        if size is None and any(isinstance(shape, Mapping) and shape.get("shape_type") == "mask" for shape in shapes):
            with contextlib.suppress(OSError, ValueError):  # each mask is named
                size = read_image_size(file)
        groups: dict[Any, list[Instance]] = {}
        for number, shape in enumerate(shapes):
            try:
                instance = _read_shape(shape, size)
                group = parse_group(shape.get("group_id"), "group_id")
            except ValueError as error:
                problems.append(Problem("broken annotation", f"{path.name}: shape {number}", str(error)))
                continue
            key = ("alone", number) if group is None else (instance.category, "group", group)
            groups.setdefault(key, []).append(instance)
        instances = tuple(_merge_parts(group, size) for group in groups.values())
        names += [instance.category for instance in instances]
        records.append(Record(file, size, instances, embedded=None if embedded is None else path))
    number = sum(record.embedded is not None for record in records)
    note = f"{folder}: {number} of {len(records)} images are read from imageData, as their files are not found"
    return Dataset(records, number_categories(names), problems, (note,) if number else ())


def _find_image(
    path: Path, name: str, found: ImageFiles, data: ImageData | None
) -> tuple[Path | None, ImageData | None, list[Problem]]:
    """(file, None) of an image that has one, (where its file would be, its data), or None; and what is wrong with it.

    A file that is found is the image, whatever ``imageData`` has.
    """
    problems = []
    if data is not None and data.fault:
        problems.append(Problem("broken imageData", path.name, data.fault))
        data = None
    if name in found.faults:
        problems.append(Problem("broken file", path.name, found.faults[name]))
        return (None if data is None else path.with_suffix(".png")), data, problems
    file = found.files[name]
    if not os.path.isfile(file):
        return file, data, problems
    with contextlib.suppress(OSError, ValueError):  # named by what reads the image
        size = read_image_size(file) if data is not None else None
        if data is not None and size != data.size:
            text = f"imageData is {data.size}, {file} is {size}, and is what is read"
            problems.append(Problem("wrong size", path.name, text))
    return file, None, problems


def _read_shape(shape: Any, size: tuple[int, int] | None) -> Instance:
    label = parse_text(shape.get("label")) if isinstance(shape, Mapping) else None
    if label is None:
        raise ValueError("a shape must have a label")
    kind, points = shape.get("shape_type", "polygon"), shape.get("points")
    if kind == "polygon":
        return Instance(label, (parse_polygon(points),))
    if kind not in ("rectangle", "circle", "mask"):
        raise ValueError(f"a shape must be polygon, rectangle, circle or mask, got {shorten(kind)}")
    if not isinstance(points, list):
        raise ValueError(f"a {kind}'s points must be a list, got {shorten(points)}")
    corners = parse_polygon([*points, [0, 0], [0, 0]])[:-2]  # two points, checked like a polygon's
    if kind == "rectangle" and len(corners) >= 2:
        (x1, y1), (x2, y2) = corners.min(0), corners.max(0)
        return Instance(label, (box_to_polygon(x1, y1, x2, y2),))
    if kind == "circle" and len(corners) == 2:
        (x, y), (edge_x, edge_y) = corners
        radius = math.hypot(edge_x - x, edge_y - y)
        return Instance(label, (parse_polygon(ellipse_to_polygon(x, y, radius, radius)),))
    if kind == "mask" and len(corners) == 2:
        if size is None:
            raise ValueError("a mask must be in an image of known size, got none in the file, and no readable image")
        return Instance(label, rle=_read_mask(shape, corners, size))
    raise ValueError(f"a {kind} must have two points, got {len(corners)}")


def _read_mask(shape: Mapping[str, Any], corners: Any, size: tuple[int, int]) -> dict[str, Any]:
    """COCO RLE of a mask: an image in base64 whose top left corner is the shape's first point."""
    left, top = (round(float(side)) for side in corners[0])
    try:
        with Image.open(io.BytesIO(base64.b64decode(shape.get("mask", "")))) as image:
            shown = (image.height, image.width)
            fits = left >= 0 and top >= 0 and top + image.height <= size[0] and left + image.width <= size[1]
            pixels = np.asarray(image.convert("L")) > 0 if fits else None
    except Exception as error:  # Pillow's readers raise many types
        raise ValueError(f"a mask must be an image in base64, got one that cannot be read ({error})") from error
    if pixels is None:
        raise ValueError(f"a mask must lie in the image {size}, got {shown} at {(top, left)}")
    whole = np.zeros(size, np.uint8, order="F")
    whole[top : top + pixels.shape[0], left : left + pixels.shape[1]] = pixels
    rle: dict[str, Any] = coco_mask.encode(whole)
    return rle


def _merge_parts(parts: list[Instance], size: tuple[int, int] | None) -> Instance:
    """One instance, the union of several shapes; the size is that of the image, known where a shape is a mask."""
    if len(parts) == 1:
        return parts[0]
    if size is not None and any(part.rle is not None for part in parts):
        return parts[0]._replace(polygons=(), rle=coco_mask.merge([part.to_rle(*size) for part in parts]))
    return parts[0]._replace(polygons=tuple(polygon for part in parts for polygon in part.polygons))


def write_labelme(dataset: Dataset, folder: Path) -> list[Problem]:
    """Write one JSON file per image, named after it -> what the format cannot hold."""
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
            if instance.rle is not None and not coco_mask.area(compress_rle(instance.rle)):
                problems.append(Problem("cannot be written", str(record.file), f"{instance.category} has no area"))
                continue
            if instance.rle is not None:
                shapes.append(common | _write_mask(instance.rle))
                continue
            if not instance.has_mask():
                problems.append(Problem("cannot be written", str(record.file), describe_box(instance)))
                x1, y1, x2, y2 = instance.bounds()
                shapes.append(common | {"shape_type": "rectangle", "points": [[x1, y1], [x2, y2]]})
            for polygon in instance.polygons:
                shapes.append(common | {"shape_type": "polygon", "points": polygon.tolist()})
        height, width = map(to_number, record.size or (None, None))
        content: dict[str, Any] = {"version": "5.0.1", "flags": {}, "shapes": shapes, "imageData": None}
        content |= {"imagePath": _name_image(record.file, folder), "imageHeight": height, "imageWidth": width}
        write_text(folder / f"{name}.json", json.dumps(content))
    return problems


def _name_image(file: Path, folder: Path) -> str:
    """The path of an image relative to the folder, if it is in it or beside it; else absolute."""
    whole, root = os.path.abspath(file), os.path.dirname(os.path.abspath(folder))
    return os.path.relpath(whole, folder) if whole.startswith(os.path.join(root, "")) else whole


def _write_mask(rle: dict[str, Any]) -> dict[str, Any]:
    """A mask shape: the mask inside its bounding box, as PNG in base64."""
    x, y, width, height = (int(side) for side in coco_mask.toBbox(compress_rle(rle)))
    pixels = coco_mask.decode(compress_rle(rle))[y : y + height, x : x + width]
    file = io.BytesIO()
    Image.fromarray((pixels * 255).astype(np.uint8)).save(file, format="PNG")
    points = [[x, y], [x + width, y + height]]
    return {"shape_type": "mask", "points": points, "mask": base64.b64encode(file.getvalue()).decode("ascii")}
