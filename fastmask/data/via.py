"""Annotation files of the VGG Image Annotator (VIA), versions 1 and 2: https://www.robots.ox.ac.uk/~vgg/software/via/."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastmask.data.polygons import mask_to_polygons
from fastmask.data.records import (
    Dataset,
    Instance,
    Polygon,
    Problem,
    Record,
    box_to_polygon,
    ellipse_to_polygon,
    number_categories,
    parse_numbers,
    parse_polygon,
)
from fastmask.files import write_text

ATTRIBUTES = ("class", "category", "label", "name", "type")  # usual names of the attribute that holds the class
GROUP = "fastmask_object"  # write_via's attribute, equal in all parts of one instance
DEFAULT_CLASS = "object"  # where no attribute holds the class


def is_via(content: Any) -> bool:
    """Whether a JSON file's content has VIA's form."""
    if not isinstance(content, Mapping):
        return False
    if "_via_img_metadata" in content:
        return True
    entries = list(content.values())
    return bool(entries) and all(isinstance(e, Mapping) and {"filename", "regions"} <= e.keys() for e in entries)


def read_via(content: Mapping[str, Any], path: Path, images: Path | None, attribute: str | None = None) -> Dataset:
    """Read regions (polygon, polyline, rect, ellipse, circle) of version 1 (an object of regions) or 2 (a list).

    Args:
        content: of the JSON file.
        path: of the file, for messages.
        images: folder of the images; None: the file's.
        attribute: name of the region attribute that holds the class; None: ``class``, ``category``, ``label``,
            ``name`` or ``type``, else the first.
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
        groups: dict[Any, Instance] = {}
        for number, region in enumerate(regions.values() if isinstance(regions, Mapping) else regions):
            try:
                instance = _read_region(region, attribute)
            except ValueError as error:
                problems.append(Problem("broken annotation", f"{entry['filename']}: region {number}", str(error)))
                continue
            group = (region.get("region_attributes") or {}).get(GROUP)
            key = ("alone", number) if group is None else (instance.category, str(group))
            before = groups.get(key, instance._replace(polygons=()))
            groups[key] = before._replace(polygons=before.polygons + instance.polygons)
        names += [instance.category for instance in groups.values()]
        records.append(Record((images or path.parent) / entry["filename"], None, tuple(groups.values())))
    return Dataset(records, number_categories(names), problems)


def _read_region(region: Any, attribute: str | None) -> Instance:
    if not isinstance(region, Mapping) or not isinstance(region.get("shape_attributes"), Mapping):
        raise ValueError("a region must have shape_attributes")
    category = _read_class(region.get("region_attributes") or {}, attribute)
    return Instance(category, (_read_shape(region["shape_attributes"]),))


def _read_class(attributes: Any, name: str | None) -> str:
    if not isinstance(attributes, Mapping):
        raise ValueError(f"region_attributes must be named, got {attributes!r}")
    if name is not None and attributes.get(name) in (None, ""):
        raise ValueError(f"region_attributes must have {name}, got {', '.join(map(str, attributes)) or 'none'}")
    if name is None:
        others = (other for other in attributes if other != GROUP)
        name = next((usual for usual in ATTRIBUTES if attributes.get(usual)), next(others, None))
    value = attributes.get(name) if name is not None else None
    if isinstance(value, Mapping):  # a checkbox: {"balloon": true}
        value = next((key for key, checked in value.items() if checked), None)
    return str(value).strip() if value not in (None, "") else DEFAULT_CLASS


def _read_shape(shape: Mapping[str, Any]) -> Polygon:
    kind = shape.get("name")
    if kind in ("polygon", "polyline"):
        x, y = shape.get("all_points_x"), shape.get("all_points_y")
        if not isinstance(x, list) or not isinstance(y, list) or len(x) != len(y):
            raise ValueError("a polygon must have as many all_points_x as all_points_y")
        return parse_polygon(list(zip(x, y, strict=True)))
    if kind == "rect":
        x1, y1, width, height = parse_numbers(shape, "x", "y", "width", "height")
        return box_to_polygon(x1, y1, x1 + width, y1 + height)
    if kind == "circle":
        x, y, radius = parse_numbers(shape, "cx", "cy", "r")
        return ellipse_to_polygon(x, y, radius, radius)
    if kind == "ellipse":
        x, y, radius_x, radius_y = parse_numbers(shape, "cx", "cy", "rx", "ry")
        return ellipse_to_polygon(x, y, radius_x, radius_y, *parse_numbers({"theta": shape.get("theta", 0)}, "theta"))
    raise ValueError(f"a shape must be polygon, polyline, rect, ellipse or circle, got {kind!r}")


def write_via(dataset: Dataset, path: Path) -> list[Problem]:
    """Write one JSON file of version 2: a region per polygon, masks as polygons -> what the format cannot hold."""
    from fastmask.data.coco import relative_name

    entries, problems = {}, []
    for record in dataset.records:
        regions = []
        for number, instance in enumerate(record.instances):
            if instance.crowd:
                problems.append(Problem("cannot be written", str(record.file), f"a crowd of {instance.category}"))
                continue
            polygons = instance.polygons if instance.rle is None else mask_to_polygons(instance.to_mask(0, 0))
            for polygon in polygons or (box_to_polygon(*instance.bounds()),):
                shape = {
                    "name": "polygon",
                    "all_points_x": polygon[:, 0].tolist(),
                    "all_points_y": polygon[:, 1].tolist(),
                }
                group = {GROUP: str(number)} if len(polygons) > 1 else {}
                regions.append({"shape_attributes": shape, "region_attributes": {"class": instance.category} | group})
        name = relative_name(record.file, path.parent)
        size = record.file.stat().st_size if record.file.exists() else -1
        entries[f"{name}{size}"] = {"filename": name, "size": size, "regions": regions, "file_attributes": {}}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(entries))
    return problems
