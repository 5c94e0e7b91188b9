"""COCO's annotation files: https://cocodataset.org/#format-data."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastmask.cocoapi import mask as coco_mask
from fastmask.data.polygons import signed_area
from fastmask.data.records import (
    Dataset,
    Instance,
    Polygon,
    Problem,
    Record,
    compress_rle,
    parse_box,
    parse_id,
    parse_numbers,
    parse_polygon,
    parse_rle,
    parse_size,
    to_number,
)
from fastmask.files import write_text


def is_coco(content: Any) -> bool:
    """Whether a JSON file's content has COCO's form."""
    return isinstance(content, Mapping) and isinstance(content.get("images"), list)


def read_coco(content: Mapping[str, Any], path: Path, images: Path | None) -> Dataset:
    """Read a COCO annotation file: images, annotations (polygons, RLE, crowds) and categories, with their ids.

    Args:
        content: of the JSON file.
        path: of the file, for messages and to find images.
        images: folder of the images; None: the file's folder, ``images`` in it, or as in COCO's own layout.
    """
    problems: list[Problem] = []
    names: dict[int, str] = {}
    for i, category in enumerate(content.get("categories", [])):
        where = f"{path.name}: categories[{i}]"
        number = parse_id(category.get("id")) if isinstance(category, Mapping) else None
        if number is None:
            problems.append(Problem("broken category", where, "it must have an id"))
            continue
        name = str(category.get("name", number))
        if name in names.values():
            problems.append(Problem("duplicate name", where, f"the name {name} is taken"))
            name = f"{name} ({number})"
        names[number] = name
    instances: dict[int, list[Instance]] = {}
    ids: set[int] = set()
    for i, annotation in enumerate(content.get("annotations", [])):
        where = f"{path.name}: annotations[{i}]"
        try:
            image_id, instance = _read_annotation(annotation, names)
        except ValueError as error:
            problems.append(Problem("broken annotation", where, str(error)))
            continue
        if instance.id is not None and instance.id in ids:
            problems.append(Problem("duplicate id", where, f"the annotation id {instance.id} is taken"))
        elif instance.id is not None:
            ids.add(instance.id)
        instances.setdefault(image_id, []).append(instance)
    records: dict[int, Record] = {}
    for i, image in enumerate(content["images"]):
        where = f"{path.name}: images[{i}]"
        number = parse_id(image.get("id")) if isinstance(image, Mapping) else None
        if number is None or not image.get("file_name"):
            problems.append(Problem("broken image entry", where, "it must have an id and a file_name"))
            continue
        if number in records:
            problems.append(Problem("duplicate id", where, f"the image id {number} is taken"))
            continue
        size = parse_size(image.get("height"), image.get("width"))
        file = _find_image(str(image["file_name"]), path, images)
        records[number] = Record(file, size, tuple(instances.pop(number, ())), number)
    for image_id, lost in instances.items():
        problems.append(Problem("unknown image", path.name, f"{len(lost)} annotations are of an image id {image_id}"))
    return Dataset(list(records.values()), {name: category for category, name in sorted(names.items())}, problems)


def _read_annotation(annotation: Any, names: Mapping[int, str]) -> tuple[int, Instance]:
    """(image id, instance)."""
    image_id = parse_id(annotation.get("image_id")) if isinstance(annotation, Mapping) else None
    if image_id is None:
        raise ValueError("it must have an image_id")
    category = parse_id(annotation.get("category_id"))
    if category is None or category not in names:
        raise ValueError(f"category_id must be one of the file's, got {annotation.get('category_id')!r}")
    segmentation = annotation.get("segmentation")
    polygons: tuple[Polygon, ...] = ()
    rle = None
    if isinstance(segmentation, list):
        polygons = tuple(parse_polygon(points) for points in segmentation)
    elif isinstance(segmentation, Mapping):
        rle = parse_rle(segmentation)
    box = None
    if annotation.get("bbox") is not None:
        x, y, width, height = parse_box(annotation["bbox"])
        box = (x, y, x + width, y + height)
    elif not polygons and rle is None:
        raise ValueError("it must have a segmentation or a bbox")
    identity = to_number(annotation.get("id"))
    identity = identity if isinstance(identity, int) else None
    area = parse_numbers(annotation, "area")[0] if annotation.get("area") is not None else None
    crowd = bool(annotation.get("iscrowd"))
    return image_id, Instance(names[category], polygons, rle, box, crowd, identity, area)


def _find_image(name: str, path: Path, images: Path | None) -> Path:
    """The image's path, or, if there is no such file, the first path tried."""
    split = path.stem.partition("_")[2]  # annotations/instances_val2017.json: images are in val2017
    folders = [path.parent, path.parent / "images", path.parent.parent / split, path.parent.parent / "images" / split]
    paths = [folder / name for folder in ([images] if images is not None else folders)]
    return next((path for path in paths if path.exists()), paths[0])


def write_coco(dataset: Dataset, path: Path) -> None:
    """Write one COCO JSON file; image paths inside its folder are relative, others absolute."""
    images, annotations = [], []
    categories = {name: to_number(category) for name, category in dataset.categories.items()}
    ids = {to_number(instance.id) for record in dataset.records for instance in record.instances}
    free_ids = (i for i in range(1, 2**62) if i not in ids)
    image_ids = {to_number(record.id) for record in dataset.records}
    free_image_ids = (i for i in range(1, 2**62) if i not in image_ids)
    for record in dataset.records:
        height, width = map(to_number, record.size or (0, 0))
        image_id = next(free_image_ids) if record.id is None else to_number(record.id)
        name = relative_name(record.file, path.parent)
        images.append({"id": image_id, "file_name": name, "height": height, "width": width})
        for instance in record.instances:
            x1, y1, x2, y2 = map(to_number, instance.bounds())
            identity = next(free_ids) if instance.id is None else to_number(instance.id)
            annotation: dict[str, Any] = {"id": identity, "image_id": image_id}
            annotation |= {"category_id": categories[instance.category], "bbox": [x1, y1, x2 - x1, y2 - y1]}
            annotation |= {"area": compute_area(instance), "iscrowd": int(instance.crowd)}
            if instance.rle is not None:
                size, counts = (instance.rle[name] for name in ("size", "counts"))
                counts = counts.decode("ascii") if isinstance(counts, bytes) else counts
                counts = counts if isinstance(counts, str) else [to_number(run) for run in counts]
                annotation["segmentation"] = {"size": [to_number(side) for side in size], "counts": counts}
            elif instance.polygons:
                annotation["segmentation"] = [polygon.ravel().tolist() for polygon in instance.polygons]
            annotations.append(annotation)
    names = [{"id": category, "name": name} for name, category in categories.items()]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps({"images": images, "annotations": annotations, "categories": names}))


def compute_area(instance: Instance) -> float:
    """The annotated area in pixels, else that of its RLE, the sum of its polygons' areas, or that of its box."""
    if instance.area is not None:
        area: float = to_number(instance.area)
        return area
    if instance.rle is not None:
        return float(coco_mask.area(compress_rle(instance.rle)))
    if instance.polygons:
        return sum(abs(signed_area(polygon)) for polygon in instance.polygons)
    x1, y1, x2, y2 = instance.bounds()
    return (x2 - x1) * (y2 - y1)


def relative_name(file: Path, folder: Path) -> str:
    """The file's path, relative to the folder if it is inside."""
    try:
        return file.resolve().relative_to(folder.resolve()).as_posix()
    except ValueError:
        return str(file.resolve())
