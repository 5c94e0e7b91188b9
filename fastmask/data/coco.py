"""COCO's annotation files: https://cocodataset.org/#format-data."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastmask.cocoapi import mask as coco_mask
from fastmask.data.keypoints import (
    check_number,
    describe_unnamed,
    read_keypoints,
    read_skeleton,
    write_keypoints,
    write_skeleton,
)
from fastmask.data.parse import (
    MAX_COORDINATE,
    parse_box,
    parse_flag,
    parse_identity,
    parse_numbers,
    parse_polygon,
    parse_rle,
    parse_size,
    parse_text,
    shorten,
    to_number,
)
from fastmask.data.paths import find_images, parse_name
from fastmask.data.polygons import signed_area
from fastmask.data.records import Dataset, Instance, Polygon, Problem, Record, compress_rle
from fastmask.files import write_text
from fastmask.skeletons import Skeleton


def is_coco(content: Any) -> bool:
    """Whether a JSON file's content has COCO's form."""
    keys = ("images", "annotations", "categories")
    return isinstance(content, Mapping) and (
        isinstance(content.get("images"), list) or sum(key in content for key in keys) > 1
    )


def read_coco(content: Mapping[str, Any], path: Path, images: Path | None) -> Dataset:
    """Read a COCO annotation file: images, annotations and categories, with their ids.

    Annotations are polygons, RLE, boxes, crowds and keypoints. Ids may be text. Without categories, their ids are the
    names.

    Args:
        content: of the JSON file.
        path: of the file, for messages and to find images.
        images: folder of the images; None: the file's folder, ``images`` in it, or as in COCO's own layout.
    """
    problems: list[Problem] = []
    annotations = _read_list(content, "annotations", path, problems) if "annotations" in content else []
    skeletons: dict[str, Skeleton] = {}
    names = _read_categories(content, annotations, path, problems, skeletons)
    instances: dict[int | str, list[Instance]] = {}
    ids: set[int] = set()
    for i, annotation in enumerate(annotations):
        where = f"{path.name}: annotations[{i}]"
        try:
            image_id, instance, faults = _read_annotation(annotation, names, skeletons)
        except ValueError as error:
            problems.append(Problem("broken annotation", where, str(error)))
            continue
        problems += [Problem("broken annotation", where, f"left out of it: {fault}") for fault in faults]
        if instance.id is not None and instance.id in ids:
            problems.append(Problem("duplicate id", where, f"the annotation id {instance.id} is taken"))
        elif instance.id is not None:
            ids.add(instance.id)
        instances.setdefault(image_id, []).append(instance)
    entries = _read_list(content, "images", path, problems)
    records = _read_images(entries, instances, path, images, problems)
    for image_id, lost in instances.items():
        problems.append(
            Problem("unknown image", path.name, f"{len(lost)} annotations are of an image id {shorten(image_id)}")
        )
    notes = (*describe_unnamed(skeletons, path.name), *_describe_lvis(entries, path))
    return Dataset(records, _number_categories(names), problems, notes, skeletons=skeletons)


def _read_list(content: Mapping[str, Any], key: str, path: Path, problems: list[Problem]) -> list[Any]:
    values = content.get(key)
    if isinstance(values, list):
        return values
    problems.append(Problem("broken file", path.name, f"{key} must be a list, got {shorten(values)}"))
    return []


def _read_categories(
    content: Mapping[str, Any],
    annotations: list[Any],
    path: Path,
    problems: list[Problem],
    skeletons: dict[str, Skeleton],
) -> dict[int | str, str]:
    """Names by id, each name once; skeletons by name are added to ``skeletons``."""
    names: dict[int | str, str] = {}
    taken: set[str] = set()
    entries = _read_list(content, "categories", path, problems) if content.get("categories") is not None else []
    for i, category in enumerate(entries):
        where = f"{path.name}: categories[{i}]"
        identity = parse_identity(category.get("id")) if isinstance(category, Mapping) else None
        if identity is None:
            problems.append(Problem("broken category", where, "it must have an id"))
            continue
        if identity in names:
            problems.append(Problem("duplicate id", where, f"the category id {shorten(identity)} is taken"))
            continue
        name = parse_text(category.get("name"))
        if name is None:
            text = f"its name must be text, got {shorten(category.get('name'))}: the id {identity} is its name"
            problems.append(Problem("broken category", where, text))
            name = str(identity)
        if name in taken:
            problems.append(Problem("duplicate name", where, f"the name {name} is taken"))
        while name in taken:
            name = f"{name} ({identity})"
        taken.add(name)
        names[identity] = name
        skeleton, faults = read_skeleton(category)
        problems += [Problem("broken category", where, fault) for fault in faults]
        if skeleton is not None:
            skeletons[name] = skeleton
    if not names and annotations:
        given = [parse_identity(each.get("category_id")) for each in annotations if isinstance(each, Mapping)]
        names = {identity: str(identity) for identity in given if identity is not None}
        text = "categories must have names and ids, got none: the annotations' category ids are the names"
        problems.append(Problem("broken category", path.name, text))
    return names


def _number_categories(names: Mapping[int | str, str]) -> dict[str, int]:
    """Ids by name, in their order; those that are text are numbered after all others."""
    numbers = {name: identity for identity, name in names.items() if isinstance(identity, int)}
    numbers = dict(sorted(numbers.items(), key=lambda item: item[1]))
    texts = [name for identity, name in names.items() if isinstance(identity, str)]
    return numbers | {name: number for number, name in enumerate(texts, max([0, *numbers.values()]) + 1)}


def _read_images(
    entries: list[Any],
    instances: dict[int | str, list[Instance]],
    path: Path,
    images: Path | None,
    problems: list[Problem],
) -> list[Record]:
    """The records; their instances are taken out of ``instances``."""
    split = path.stem.partition("_")[2]  # annotations/instances_val2017.json: images are in val2017
    beside: list[Path] = []
    if split:
        beside = (
            [path.parent.parent / split, path.parent.parent / "images" / split] if images is None else [images / split]
        )
    named = [_read_name(image) if isinstance(image, Mapping) else None for image in entries]
    found = find_images([name for name in named if name is not None], path.parent, images, beside)
    problems += found.describe_outside(path.name)
    records: dict[int | str, Record] = {}
    for i, (image, name) in enumerate(zip(entries, named, strict=True)):
        where = f"{path.name}: images[{i}]"
        identity = parse_identity(image.get("id")) if isinstance(image, Mapping) else None
        if identity is None or name is None:
            problems.append(Problem("broken image entry", where, "it must have an id and a file_name"))
            continue
        if name in found.faults:
            problems.append(Problem("broken image entry", where, found.faults[name]))
            continue
        if identity in records:
            problems.append(Problem("duplicate id", where, f"the image id {identity} is taken"))
            continue
        try:
            size = parse_size(image.get("height"), image.get("width"))
        except ValueError as error:
            problems.append(Problem("broken image entry", where, str(error)))
            size = None
        number = identity if isinstance(identity, int) else None
        records[identity] = Record(found.files[name], size, tuple(instances.pop(identity, ())), number)
    return list(records.values())


def _read_name(image: Mapping[str, Any]) -> str | None:
    """The image's file_name or, where LVIS has none, the last folder and name of its coco_url."""
    address = image.get("coco_url")
    if image.get("file_name") is None and isinstance(address, str):
        return "/".join(address.partition("?")[0].split("/")[-2:]) or None
    return parse_name(image.get("file_name"))


def _describe_lvis(entries: list[Any], path: Path) -> tuple[str, ...]:
    """A sentence about what LVIS knows of images besides their objects, which COCO's average precision does not use."""
    keys = ("neg_category_ids", "not_exhaustive_category_ids")
    negative, partly = (sum(isinstance(each, Mapping) and bool(each.get(key)) for each in entries) for key in keys)
    if not negative and not partly:
        return ()
    known = f"{keys[0]} of {negative} images and {keys[1]} of {partly} are not used"
    return (f"{path.name}: {known}: evaluate computes COCO's average precision, not LVIS's own (federated) one",)


def _read_annotation(
    annotation: Any, names: Mapping[int | str, str], skeletons: dict[str, Skeleton]
) -> tuple[int | str, Instance, list[str]]:
    """(image id, instance, what is left out of the instance)."""
    image_id = parse_identity(annotation.get("image_id")) if isinstance(annotation, Mapping) else None
    if image_id is None:
        raise ValueError("it must have an image_id")
    category = parse_identity(annotation.get("category_id"))
    if category is None or category not in names:
        raise ValueError(f"category_id must be one of the file's, got {shorten(annotation.get('category_id'))}")
    crowd = parse_flag(annotation.get("iscrowd"), "iscrowd")
    polygons, rle, faults = _read_segmentation(annotation.get("segmentation"))
    box = area = None
    try:
        box = _read_box(annotation.get("bbox"))
    except ValueError as error:
        faults.append(str(error))
    if annotation.get("area") is not None:
        try:
            (area,) = parse_numbers(annotation, "area")
        except ValueError as error:
            faults.append(str(error))
    if box is None and not polygons and rle is None:
        raise ValueError(faults[0] if faults else "it must have a segmentation or a bbox")
    keypoints = None
    try:
        keypoints = read_keypoints(annotation, names[category], skeletons)
        if keypoints is not None:
            check_number(annotation, keypoints)
    except ValueError as error:
        faults.append(str(error))
    identity = parse_identity(annotation.get("id"))
    identity = identity if isinstance(identity, int) else None
    return image_id, Instance(names[category], polygons, rle, box, crowd, identity, area, keypoints), faults


def _read_box(sides: Any) -> tuple[float, float, float, float] | None:
    """(x1, y1, x2, y2), or None for null."""
    if sides is None:
        return None
    x, y, width, height = parse_box(sides)
    box = (x, y, x + width, y + height)
    if max(abs(side) for side in box) > MAX_COORDINATE:
        raise ValueError(f"bbox must be within {MAX_COORDINATE} pixels, got {shorten(sides)}")
    return box


def _read_segmentation(segmentation: Any) -> tuple[tuple[Polygon, ...], dict[str, Any] | None, list[str]]:
    """(polygons, RLE, faults of further polygons); ValueError if it has polygons, none of which can be read."""
    nested = False  # deeper than COCO's, or an RLE in a list
    while isinstance(segmentation, list) and len(segmentation) == 1 and not _is_polygon(segmentation[0]):
        if not isinstance(segmentation[0], list | Mapping) or not segmentation[0]:
            break
        segmentation, nested = segmentation[0], True
    if isinstance(segmentation, Mapping):
        return (), parse_rle(segmentation), []
    if not isinstance(segmentation, list | None):
        raise ValueError(f"segmentation must be polygons or an RLE, got {shorten(segmentation)}")
    parts = [segmentation] if _is_polygon(segmentation) else segmentation or []
    if (
        nested
        and len(parts) > 1
        and any(isinstance(part, list) and part and isinstance(part[0], list) for part in parts)
    ):
        raise ValueError("segmentation must be a list of polygons, got a list of rings, which may be holes")
    polygons, faults = [], []
    for i, part in enumerate(parts):
        part = part[0] if isinstance(part, list) and len(part) == 1 and _is_polygon(part[0]) else part
        try:
            polygons.append(parse_polygon(part))
        except ValueError as error:
            faults.append(f"segmentation[{i}]: {error}")
    if faults and not polygons:
        raise ValueError(faults[0])
    return tuple(polygons), None, faults


def _is_polygon(points: Any) -> bool:
    """Whether a list is a polygon, x, y, x, y, ... or three pairs or more, rather than a list of polygons."""
    if not isinstance(points, list) or not points:
        return False
    if not isinstance(points[0], list):
        return True
    return len(points) > 2 and all(isinstance(pair, list) and len(pair) == 2 for pair in points)


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
            annotations.append(annotation | write_keypoints(instance, dataset.skeletons))
    skeletons = {name: write_skeleton(dataset.skeletons.get(name)) for name in categories}
    names = [{"id": category, "name": name} | skeletons[name] for name, category in categories.items()]
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
