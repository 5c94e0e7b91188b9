"""COCO's annotation files: https://cocodataset.org/#format-data."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np

from fastmask.cocoapi import mask as coco_mask
from fastmask.data.records import (
    Dataset,
    Object,
    Polygon,
    Problem,
    Record,
    check_rle,
    compressed,
    numbers,
    polygon_of,
    size_of,
)


def is_coco(content: Any) -> bool:
    return isinstance(content, Mapping) and isinstance(content.get("images"), list)


def read_coco(content: Mapping[str, Any], path: Path, images: Path | None) -> Dataset:
    """Images, annotations (polygons, RLE, crowd) and categories, whose ids are kept.

    Args:
        content: of the file.
        path: the file, for messages and for where images may lie.
        images: the images' folder; None: beside the file, in ``images`` there, or where COCO itself has them.
    """
    problems: list[Problem] = []
    names: dict[int, str] = {}
    for i, category in enumerate(content.get("categories", [])):
        where = f"{path.name}: categories[{i}]"
        if not isinstance(category, Mapping) or not is_id(category.get("id")):
            problems.append(Problem("broken category", where, "it must have an id"))
            continue
        name = str(category.get("name", category["id"]))
        if name in names.values():
            problems.append(Problem("duplicate name", where, f"the name {name} is taken"))
            name = f"{name} ({category['id']})"
        names[category["id"]] = name
    objects: dict[int, list[Object]] = {}
    seen: set[int] = set()
    for i, annotation in enumerate(content.get("annotations", [])):
        where = f"{path.name}: annotations[{i}]"
        try:
            image_id, made = _object(annotation, names)
        except ValueError as error:
            problems.append(Problem("broken annotation", where, str(error)))
            continue
        if made.id is not None and made.id in seen:
            problems.append(Problem("duplicate id", where, f"the annotation id {made.id} is taken"))
        elif made.id is not None:
            seen.add(made.id)
        objects.setdefault(image_id, []).append(made)
    records: dict[int, Record] = {}
    for i, image in enumerate(content["images"]):
        where = f"{path.name}: images[{i}]"
        if not isinstance(image, Mapping) or not is_id(image.get("id")) or not image.get("file_name"):
            problems.append(Problem("broken image entry", where, "it must have an id and a file_name"))
            continue
        if image["id"] in records:
            problems.append(Problem("duplicate id", where, f"the image id {image['id']} is taken"))
            continue
        known = size_of(image.get("height"), image.get("width"))
        file = _located(str(image["file_name"]), path, images)
        records[image["id"]] = Record(file, known, tuple(objects.pop(image["id"], ())), image["id"])
    for image_id, lost in objects.items():
        problems.append(Problem("unknown image", path.name, f"{len(lost)} annotations are of an image id {image_id}"))
    return Dataset(list(records.values()), {name: number for number, name in sorted(names.items())}, problems)


def is_id(number: Any) -> TypeGuard[int]:
    """Whether it is a whole number that a tensor can hold."""
    return isinstance(number, int) and -(2**63) <= number < 2**63


def _object(annotation: Any, names: Mapping[int, str]) -> tuple[int, Object]:
    """An annotation's image id and object."""
    if not isinstance(annotation, Mapping) or not is_id(annotation.get("image_id")):
        raise ValueError("it must have an image_id")
    number = annotation.get("category_id")
    if not is_id(number) or number not in names:
        raise ValueError(f"category_id must be one of the file's, got {number!r}")
    segmentation = annotation.get("segmentation")
    polygons: tuple[Polygon, ...] = ()
    rle = None
    if isinstance(segmentation, list):
        polygons = tuple(polygon_of(points) for points in segmentation)
    elif isinstance(segmentation, Mapping):
        rle = dict(segmentation)
        check_rle(rle)
    box = None
    if annotation.get("bbox") is not None:
        bbox = annotation["bbox"]
        if not isinstance(bbox, list) or len(bbox) != 4:
            raise ValueError(f"bbox must be x, y, width, height, got {bbox!r}")
        x, y, width, height = numbers(dict(zip("xywh", bbox, strict=True)), *"xywh")
        box = (x, y, x + width, y + height)
    elif not polygons and rle is None:
        raise ValueError("it must have a segmentation or a bbox")
    number_of = annotation.get("id")
    crowd = bool(annotation.get("iscrowd"))
    made = Object(names[number], polygons, rle, box, crowd, number_of if isinstance(number_of, int) else None)
    if annotation.get("area") is not None:
        made = made._replace(area=numbers(annotation, "area")[0])
    return annotation["image_id"], made


def _located(name: str, path: Path, images: Path | None) -> Path:
    """Where the image is, or, if nowhere, where it is looked for first."""
    split = path.stem.partition("_")[2]  # instances_val2017.json lies beside val2017's folder
    folders = [path.parent, path.parent / "images", path.parent.parent / split, path.parent.parent / "images" / split]
    places = [folder / name for folder in ([images] if images is not None else folders)]
    return next((place for place in places if place.exists()), places[0])


def write_coco(dataset: Dataset, path: Path) -> None:
    """One JSON file; file names are those beside it where they can be, else whole paths."""
    images, annotations = [], []
    taken = {one.id for record in dataset.records for one in record.objects}
    free = (number for number in range(1, 2**62) if number not in taken)
    used = {record.id for record in dataset.records}
    free_images = (number for number in range(1, 2**62) if number not in used)
    for record in dataset.records:
        height, width = record.size or (0, 0)
        number = next(free_images) if record.id is None else record.id
        images.append(
            {"id": number, "file_name": name_beside(record.file, path.parent), "height": height, "width": width}
        )
        for one in record.objects:
            x1, y1, x2, y2 = one.bounds()
            annotation: dict[str, Any] = {"id": next(free) if one.id is None else one.id, "image_id": number}
            annotation |= {"category_id": dataset.categories[one.category], "bbox": [x1, y1, x2 - x1, y2 - y1]}
            annotation |= {"area": area(one), "iscrowd": int(one.crowd)}
            if one.rle is not None:
                counts = one.rle["counts"]
                text = counts.decode("ascii") if isinstance(counts, bytes) else counts
                annotation["segmentation"] = {"size": list(one.rle["size"]), "counts": text}
            elif one.polygons:
                annotation["segmentation"] = [polygon.ravel().tolist() for polygon in one.polygons]
            annotations.append(annotation)
    categories = [{"id": number, "name": name} for name, number in dataset.categories.items()]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))


def area(one: Object) -> float:
    """In pixels: as annotated, else of the mask if it is RLE, or of the polygons, overlaps twice, or of the box."""
    if one.area is not None:
        return one.area
    if one.rle is not None:
        return float(coco_mask.area(compressed(one.rle)))
    if one.polygons:
        return sum(abs(shoelace(polygon)) for polygon in one.polygons)
    x1, y1, x2, y2 = one.bounds()
    return (x2 - x1) * (y2 - y1)


def shoelace(polygon: Any) -> float:
    """Signed area."""
    x, y = polygon[:, 0], polygon[:, 1]
    return float((x * np.roll(y, -1) - np.roll(x, -1) * y).sum() / 2)


def name_beside(file: Path, folder: Path) -> str:
    """Relative to the folder where the file is inside it."""
    try:
        return file.resolve().relative_to(folder.resolve()).as_posix()
    except ValueError:
        return str(file.resolve())
