"""VGG Image Annotator's files, versions 1 and 2: https://www.robots.ox.ac.uk/~vgg/software/via/."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastmask.data.polygons import outline
from fastmask.data.records import (
    Dataset,
    Object,
    Polygon,
    Problem,
    Record,
    box_polygon,
    ellipse_to_polygon,
    numbered,
    numbers,
    polygon_of,
)

ATTRIBUTES = ("class", "category", "label", "name", "type")  # what people call the attribute that holds the class
GROUP = "fastmask_object"  # the attribute in which parts of one object have one value, as write_via has it
ONLY = "object"  # the class where there is no such attribute


def is_via(content: Any) -> bool:
    if not isinstance(content, Mapping):
        return False
    if "_via_img_metadata" in content:
        return True
    entries = list(content.values())
    return bool(entries) and all(isinstance(one, Mapping) and {"filename", "regions"} <= one.keys() for one in entries)


def read_via(content: Mapping[str, Any], path: Path, images: Path | None, attribute: str | None = None) -> Dataset:
    """Regions (polygon, polyline, rect, ellipse, circle), of both versions (an object, or a list, of regions).

    Args:
        content: of the file.
        path: the file, for messages.
        images: the images' folder; None: the file's own.
        attribute: the region attribute that is the class; None: ``class``, ``category``, ``label``, ``name`` or
            ``type``, else the only one there is.
    """
    entries = content.get("_via_img_metadata", content)
    if not isinstance(entries, Mapping):
        raise ValueError(f"{path} must have an object as its _via_img_metadata, got {type(entries).__name__}")
    records, problems, names = [], [], []
    for key, entry in entries.items():
        if not isinstance(entry, Mapping) or not isinstance(entry.get("filename"), str):
            problems.append(Problem("broken image entry", f"{path.name}: {key}", "it must have a filename"))
            continue
        regions = entry.get("regions") or []
        if not isinstance(regions, Mapping | list):
            problems.append(Problem("broken image entry", entry["filename"], "its regions must be a list"))
            regions = []
        groups: dict[Any, Object] = {}
        for number, region in enumerate(regions.values() if isinstance(regions, Mapping) else regions):
            try:
                one = _object(region, attribute)
            except ValueError as error:
                problems.append(Problem("broken annotation", f"{entry['filename']}: region {number}", str(error)))
                continue
            group = (region.get("region_attributes") or {}).get(GROUP)
            key = ("alone", number) if group is None else (one.category, str(group))
            before = groups.get(key, one._replace(polygons=()))
            groups[key] = before._replace(polygons=before.polygons + one.polygons)
        objects = groups.values()
        names += [one.category for one in objects]
        records.append(Record((images or path.parent) / entry["filename"], None, tuple(objects)))
    return Dataset(records, numbered(names), problems)


def _object(region: Any, attribute: str | None) -> Object:
    if not isinstance(region, Mapping) or not isinstance(region.get("shape_attributes"), Mapping):
        raise ValueError("a region must have shape_attributes")
    category = _category(region.get("region_attributes") or {}, attribute)
    return Object(category, (_polygon(region["shape_attributes"]),))


def _category(attributes: Any, name: str | None) -> str:
    if not isinstance(attributes, Mapping):
        raise ValueError(f"region_attributes must be named, got {attributes!r}")
    if name is not None and attributes.get(name) in (None, ""):
        raise ValueError(f"region_attributes must have {name}, got {', '.join(map(str, attributes)) or 'none'}")
    if name is None:
        others = (one for one in attributes if one != GROUP)
        name = next((one for one in ATTRIBUTES if attributes.get(one)), next(others, None))
    value = attributes.get(name) if name is not None else None
    if isinstance(value, Mapping):  # a checkbox: {"balloon": true}
        value = next((key for key, chosen in value.items() if chosen), None)
    return str(value).strip() if value not in (None, "") else ONLY


def _polygon(shape: Mapping[str, Any]) -> Polygon:
    kind = shape.get("name")
    if kind in ("polygon", "polyline"):
        x, y = shape.get("all_points_x"), shape.get("all_points_y")
        if not isinstance(x, list) or not isinstance(y, list) or len(x) != len(y):
            raise ValueError("a polygon must have as many all_points_x as all_points_y")
        return polygon_of(list(zip(x, y, strict=True)))
    if kind == "rect":
        x1, y1, width, height = numbers(shape, "x", "y", "width", "height")
        return box_polygon(x1, y1, x1 + width, y1 + height)
    if kind == "circle":
        x, y, radius = numbers(shape, "cx", "cy", "r")
        return ellipse_to_polygon(x, y, radius, radius)
    if kind == "ellipse":
        x, y, radius_x, radius_y = numbers(shape, "cx", "cy", "rx", "ry")
        return ellipse_to_polygon(x, y, radius_x, radius_y, *numbers({"theta": shape.get("theta", 0)}, "theta"))
    raise ValueError(f"a shape must be polygon, polyline, rect, ellipse or circle, got {kind!r}")


def write_via(dataset: Dataset, path: Path) -> list[Problem]:
    """One JSON file of version 2; parts of one object as several regions, masks as outlines -> what it cannot hold."""
    from fastmask.data.coco import name_beside

    entries, problems = {}, []
    for record in dataset.records:
        regions = []
        for number, one in enumerate(record.objects):
            if one.crowd:
                problems.append(Problem("cannot be written", str(record.file), f"a crowd of {one.category}"))
                continue
            polygons = one.polygons if one.rle is None else outline(one.mask(0, 0))
            for polygon in polygons or (box_polygon(*one.bounds()),):
                shape = {
                    "name": "polygon",
                    "all_points_x": polygon[:, 0].tolist(),
                    "all_points_y": polygon[:, 1].tolist(),
                }
                parts = {GROUP: str(number)} if len(polygons) > 1 else {}
                regions.append({"shape_attributes": shape, "region_attributes": {"class": one.category} | parts})
        name = name_beside(record.file, path.parent)
        size = record.file.stat().st_size if record.file.exists() else -1
        entries[f"{name}{size}"] = {"filename": name, "size": size, "regions": regions, "file_attributes": {}}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(entries))
    return problems
