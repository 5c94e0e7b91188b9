"""Writing YOLO's data sets: a data.yaml, copies of the images, and a text file of normalized polygons for each."""

import json
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from fastmask.cocoapi import mask as coco_mask
from fastmask.data.copies import check_image, copy_image, is_own_copy, name_copies
from fastmask.data.polygons import signed_area, trace_polygons
from fastmask.data.records import Dataset, Instance, Polygon, Problem, Record, encode_polygons
from fastmask.data.validate import TOLERANCE
from fastmask.files import write_text

IMAGES, LABELS, FILE = "images", "labels", "data.yaml"
PAIRS = 2**22  # distances that are compared at once
UNPRINTABLE = re.compile("[^ -~\xa0-\u2027\u202a-\ud7ff\ue000-\ufefe\uff00-\ufffd\U00010000-\U0010ffff]")  # in YAML
BOXES = "objects with a box alone beside polygons, which fastmask reads, and ultralytics refuses in one data set"


def list_outputs(splits: Mapping[str, Dataset], folder: Path) -> list[Path]:
    """The files that :func:`write_yolo` writes, but for copies of images where they are themselves."""
    outputs = [folder / FILE]
    for split, dataset in splits.items():
        for record, copy in zip(dataset.records, name_copies(dataset.records, folder / IMAGES / split), strict=True):
            outputs += [folder / LABELS / split / f"{copy.stem}.txt"]
            outputs += [] if is_own_copy(record, copy) else [copy]
    return outputs


def write_yolo(splits: Mapping[str, Dataset], folder: Path) -> list[Problem]:
    """Write a data.yaml, ``images/SPLIT`` and ``labels/SPLIT`` -> what the format cannot hold.

    An object is one line: its parts are joined by seams of zero width; where they overlap, or it is a mask, by the
    edges of its pixels. Coordinates have seven digits. What reaches out of an image is cut at its edge. Crowds, images
    that cannot be read and their objects are left out.

    Args:
        splits: data sets by "train", "val" and "test"; classes are numbered from 0 in their order, the first one's
            before others'.
        folder: where they are written.
    """
    names = list(dict.fromkeys(name for dataset in splits.values() for name in dataset.categories))
    numbers = {name: number for number, name in enumerate(names)}
    problems: list[Problem] = []
    written = boxes = 0
    for split, dataset in splits.items():
        for place in (IMAGES, LABELS):
            (folder / place / split).mkdir(parents=True, exist_ok=True)
        for record, copy in zip(dataset.records, name_copies(dataset.records, folder / IMAGES / split), strict=True):
            fault = check_image(record)
            problems += [] if fault is None else [fault]
            if record.size is None or (fault is not None and fault.kind != "wrong size"):
                text = f"its {len(record.instances)} objects, as there is no image to put beside them"
                problems += [Problem("cannot be written", str(record.file), text)] if record.instances else []
                continue
            copy_image(record, copy)
            lines, faults = _write_lines(record, record.size, numbers)
            problems += [Problem("cannot be written", str(record.file), text) for text in faults]
            written, boxes = written + len(lines), boxes + sum(line.count(" ") == 4 for line in lines)
            write_text(folder / LABELS / split / f"{copy.stem}.txt", "".join(f"{line}\n" for line in lines))
    text = "".join(f"{split}: {IMAGES}/{split}\n" for split in splits)
    text += f"nc: {len(names)}\nnames:\n" + "".join(f"  {number}: {_quote(name)}\n" for name, number in numbers.items())
    write_text(folder / FILE, text)
    if 0 < boxes < written:
        problems.append(Problem("cannot be written", str(folder / FILE), f"{boxes} {BOXES}"))
    return problems


def _quote(text: str) -> str:
    """Text as a scalar of YAML in double quotes."""
    return UNPRINTABLE.sub(lambda each: f"\\u{ord(each[0]):04x}", json.dumps(text, ensure_ascii=False))


def _write_lines(record: Record, size: tuple[int, int], numbers: Mapping[str, int]) -> tuple[list[str], list[str]]:
    """The lines of an image's objects, and what cannot be written of them."""
    lines, faults = [], []
    height, width = size
    for instance in record.instances:
        if instance.crowd:
            faults.append(f"a crowd of {instance.category}")
            continue
        if instance.rle is not None and list(instance.rle["size"]) != list(size):
            faults.append(f"a mask of {instance.category} of {list(instance.rle['size'])} in an image of {list(size)}")
            continue
        x1, y1, x2, y2 = instance.bounds()
        if min(x1, y1) < -TOLERANCE or x2 > width + TOLERANCE or y2 > height + TOLERANCE:
            faults.append(f"{instance.category} is cut at the edge of the image: it reaches out of it")
        if instance.has_mask():
            polygon = _to_polygon(instance, size)
            values = [] if polygon is None else (polygon / [width, height]).ravel().tolist()
        else:
            (x1, x2), (y1, y2) = np.clip((x1, x2), 0, width), np.clip((y1, y2), 0, height)
            values = [(x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height]
        if values:
            lines.append(" ".join([str(numbers[instance.category]), *(f"{value:.7g}" for value in values)]))
        else:
            faults.append(f"{instance.category} has no area inside of the image")
    return lines, faults


def _to_polygon(instance: Instance, size: tuple[int, int]) -> Polygon | None:
    """One polygon [n, 2] of an object with a mask, inside of the image; None if it has no area there."""
    height, width = size
    parts = [clip_polygon(polygon, width, height) for polygon in instance.polygons]
    parts = [part for part in parts if len(part) > 2 and signed_area(part)]
    if instance.rle is None and len(parts) > 1:
        joined = join_polygons(parts)
        union = encode_polygons(parts, height, width)
        if coco_mask.area(union) == coco_mask.area(encode_polygons([joined], height, width)):
            return joined  # no part hides another: within a polygon, what is inside twice is outside
    if instance.rle is not None or len(parts) > 1:
        parts = list(trace_polygons(instance.to_mask(height, width)))
    return join_polygons(parts) if parts else None


def clip_polygon(polygon: Polygon, width: float, height: float) -> Polygon:
    """The part of a polygon [n, 2] inside of [0, width] x [0, height]; its pieces are joined along the edges.

    Source: Sutherland and Hodgman, Reentrant Polygon Clipping, 1974.
    """
    for axis, limit, sign in ((0, 0.0, 1), (0, width, -1), (1, 0.0, 1), (1, height, -1)):
        inside = sign * (polygon[:, axis] - limit) >= 0
        if inside.all():
            continue
        ends, inside_end = np.roll(polygon, -1, axis=0), np.roll(inside, -1)
        with np.errstate(divide="ignore", invalid="ignore"):
            along = (limit - polygon[:, axis]) / (ends[:, axis] - polygon[:, axis])
            crossings = polygon + along[:, None] * (ends - polygon)
        crossings[:, axis] = limit
        pairs = np.stack([polygon, crossings], axis=1).reshape(-1, 2)
        polygon = pairs[np.stack([inside, inside != inside_end], axis=1).ravel()]
    return polygon


def join_polygons(parts: list[Polygon]) -> Polygon:
    """One polygon of several, each joined to those before by the shortest segment between corners, there and back."""
    joined = parts[0]
    for part in parts[1:]:
        i, j = _find_nearest(joined, part)
        joined = np.concatenate([joined[: i + 1], part[j:], part[: j + 1], joined[i:]])
    return joined


def _find_nearest(first: Polygon, second: Polygon) -> tuple[int, int]:
    """Indices of the corners of two polygons that are nearest to one another."""
    best = (np.inf, 0, 0)
    step = max(1, PAIRS // len(second))
    for start in range(0, len(first), step):
        distances = ((first[start : start + step, None] - second[None]) ** 2).sum(2)
        i, j = np.unravel_index(distances.argmin(), distances.shape)
        best = min(best, (float(distances[i, j]), start + int(i), int(j)))
    return best[1], best[2]
