"""Annotation files of the VGG Image Annotator (VIA), versions 1 and 2: https://www.robots.ox.ac.uk/~vgg/software/via/."""

import itertools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastmask.data.parse import parse_flag, parse_group, parse_numbers, parse_polygon, parse_text, shorten
from fastmask.data.paths import find_images, parse_name
from fastmask.data.polygons import trace_polygons
from fastmask.data.records import (
    Dataset,
    Instance,
    Problem,
    Record,
    box_to_polygon,
    describe_box,
    ellipse_to_polygon,
    number_categories,
)
from fastmask.files import write_text

ATTRIBUTES = ("class", "category", "label")  # names by which an attribute is the class although there are others
GROUP = "fastmask_object"  # write_via's attribute, equal in all parts of one instance
DEFAULT_CLASS = "object"  # of all regions of a file without attributes
SHOWN = 3  # values of an attribute that a message lists


def is_via(content: Any) -> bool:
    """Whether a JSON file's content has VIA's form."""
    if not isinstance(content, Mapping):
        return False
    if "_via_img_metadata" in content:
        return True
    return any(isinstance(entry, Mapping) and {"filename", "regions"} <= entry.keys() for entry in content.values())


def read_via(content: Mapping[str, Any], path: Path, images: Path | None, attribute: str | None = None) -> Dataset:
    """Read regions (polygon, polyline, rect, ellipse, circle) of version 1 (an object of regions) or 2 (a list).

    One attribute holds the class of all regions, see :func:`_choose_attribute`; ``notes`` name it.

    Args:
        content: of the JSON file.
        path: of the file, for messages.
        images: folder of the images; None: the file's.
        attribute: name of the region attribute that holds the class; None: the only one there is, or the only one
            named ``class``, ``category`` or ``label``.

    Raises:
        ValueError: several attributes may hold the class, none has the given name, or a region has several classes.
    """
    entries = content.get("_via_img_metadata", content)
    if not isinstance(entries, Mapping):
        raise ValueError(f"{path} must have an object as its _via_img_metadata, got {type(entries).__name__}")
    records, problems, names = [], [], []
    regions_of: dict[str, list[Any]] = {}
    for key, entry in entries.items():
        if not isinstance(entry, Mapping) or parse_name(entry.get("filename")) is None:
            problems.append(Problem("broken image entry", f"{path.name}: {shorten(key)}", "it must have a filename"))
            continue
        regions = entry.get("regions")
        if not isinstance(regions, Mapping | list):
            text = f"its regions must be a list, got {shorten(regions) if 'regions' in entry else 'none'}"
            problems.append(Problem("broken image entry", str(entry["filename"]), text))
            regions = []
        regions_of[key] = list(regions.values() if isinstance(regions, Mapping) else regions)
    named = {key: str(entries[key]["filename"]) for key in regions_of}
    found = find_images(named.values(), path.parent, images)
    problems += found.describe_outside(path.name)
    attribute, note = _choose_attribute(list(itertools.chain(*regions_of.values())), attribute, path)
    for key, regions in regions_of.items():
        name = named[key]
        if name in found.faults:
            problems.append(Problem("broken image entry", f"{path.name}: {shorten(key)}", found.faults[name]))
            continue
        groups: dict[Any, Instance] = {}
        for number, region in enumerate(regions):
            try:
                instance, group = _read_region(region, attribute)
            except ValueError as error:
                problems.append(Problem("broken annotation", f"{name}: region {number}", str(error)))
                continue
            label = ("alone", number) if group is None else (instance.category, "group", group)
            before = groups.get(label, instance._replace(polygons=()))
            groups[label] = before._replace(polygons=before.polygons + instance.polygons)
        names += [instance.category for instance in groups.values()]
        records.append(Record(found.files[name], None, tuple(groups.values())))
    return Dataset(records, number_categories(names), problems, (note,) if note else ())


def _choose_attribute(regions: list[Any], name: str | None, path: Path) -> tuple[str | None, str]:
    """The region attribute that is the class (None: all regions are of one class), and a sentence about it.

    It is the one of the given name, else the only attribute that a region has a value of, else the only one of them
    whose name is in ATTRIBUTES.

    Raises:
        ValueError: there are several, or none of the given name, or it has several ticks in a region.
    """
    values: dict[str, dict[str, None]] = {}  # by attribute, in order of appearance
    twice: dict[str, list[str]] = {}
    for region in regions:
        attributes = region.get("region_attributes") if isinstance(region, Mapping) else None
        for key, value in attributes.items() if isinstance(attributes, Mapping) else ():
            ticks = _read_values(value) if key != GROUP and parse_text(key) else []
            for tick in ticks:
                values.setdefault(key, {})[tick] = None
            if len(ticks) > 1:
                twice.setdefault(key, ticks)
    listed = [
        f"{key} ({', '.join([*list(of)[:SHOWN], *(['...'] if len(of) > SHOWN else [])])})" for key, of in values.items()
    ]
    usual = [key for key in values if key.lower() in ATTRIBUTES]
    if name is None and len(values) > 1 and len(usual) != 1:
        rule = f"{path} must have one region attribute that may be the class, or its name be given (--class-attribute)"
        raise ValueError(f"{rule}, got {', '.join(listed)}")
    if name is not None and values and name not in values:
        raise ValueError(f"attribute (--class-attribute) must be one of {', '.join(listed)}, got {name!r}")
    if not values:
        note = f"{path.name}: no region has an attribute: all are of the class {DEFAULT_CLASS}"
        return name, note if regions and name is None else ""
    chosen = name if name is not None else usual[0] if len(values) > 1 else next(iter(values))
    if chosen in twice:
        raise ValueError(
            f"{path} must have one value of {chosen} in each region, got {', '.join(twice[chosen])} in one"
        )
    return chosen, f"{path.name}: the class of a region is its attribute {chosen}"


def _read_values(value: Any) -> list[str]:
    """The values of an attribute: the ticks of a checkbox ({"balloon": true}), or the text; none where it is empty."""
    if isinstance(value, Mapping):
        return [text.strip() for key, ticked in value.items() if _is_ticked(ticked) and (text := parse_text(key))]
    text = parse_text(value)
    return [] if text is None else [text.strip()]


def _is_ticked(value: Any) -> bool:
    try:
        return parse_flag(value, "a tick")
    except ValueError:
        return False


def _read_region(region: Any, attribute: str | None) -> tuple[Instance, int | str | None]:
    """(instance, what it has in common with other parts of the instance)."""
    if not isinstance(region, Mapping) or not isinstance(region.get("shape_attributes"), Mapping):
        raise ValueError("a region must have shape_attributes")
    attributes = region.get("region_attributes") or {}
    if not isinstance(attributes, Mapping):
        raise ValueError(f"region_attributes must be named, got {shorten(attributes)}")
    values = [DEFAULT_CLASS] if attribute is None else _read_values(attributes.get(attribute))
    if not values:
        filled = [str(name) for name, value in attributes.items() if name != GROUP and _read_values(value)]
        raise ValueError(f"region_attributes must have {attribute}, got {', '.join(filled) or 'none'}")
    polygon = parse_polygon(_read_shape(region["shape_attributes"]))
    return Instance(values[0], (polygon,)), parse_group(attributes.get(GROUP), GROUP)


def _read_shape(shape: Mapping[str, Any]) -> Any:
    """The points of a polygon."""
    kind = shape.get("name")
    if kind in ("polygon", "polyline"):
        x, y = shape.get("all_points_x"), shape.get("all_points_y")
        if not isinstance(x, list) or not isinstance(y, list) or len(x) != len(y):
            raise ValueError("a polygon must have as many all_points_x as all_points_y")
        return list(zip(x, y, strict=True))
    if kind == "rect":
        x1, y1, width, height = parse_numbers(shape, "x", "y", "width", "height")
        return box_to_polygon(x1, y1, x1 + width, y1 + height)
    if kind == "circle":
        x, y, radius = parse_numbers(shape, "cx", "cy", "r")
        return ellipse_to_polygon(x, y, radius, radius)
    if kind == "ellipse":
        x, y, radius_x, radius_y = parse_numbers(shape, "cx", "cy", "rx", "ry")
        return ellipse_to_polygon(x, y, radius_x, radius_y, *parse_numbers({"theta": shape.get("theta", 0)}, "theta"))
    raise ValueError(f"a shape must be polygon, polyline, rect, ellipse or circle, got {shorten(kind)}")


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
            polygons = instance.polygons if instance.rle is None else trace_polygons(instance.to_mask(0, 0))
            if instance.rle is not None and not polygons:
                text = f"{instance.category} has no area"
                problems.append(Problem("cannot be written", str(record.file), text))
            if not instance.has_mask():
                problems.append(Problem("cannot be written", str(record.file), describe_box(instance)))
                x1, y1, x2, y2 = instance.bounds()
                box = {"name": "rect", "x": x1, "y": y1, "width": x2 - x1, "height": y2 - y1}
                regions.append({"shape_attributes": box, "region_attributes": {"class": instance.category}})
            for polygon in polygons:
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
