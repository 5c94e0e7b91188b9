"""Pixels of mask images: numbers of objects and of classes, from gray, palette and RGB images."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fastmask.data.class_map import ClassMap, format_color, make_voc_colors
from fastmask.data.parse import join_few

Numbers = NDArray[np.integer[Any]]  # [h, w]
UNKNOWN = -2  # number of pixels whose color or number is of no class
SHOWN = 3  # of several faults, those that a message lists
MAX_OBJECTS = 65534  # of an image, in 16 bits without background and border


class Pixels(NamedTuple):
    name: str  # of the file, for messages
    values: Numbers  # numbers, or colors as pack_color has them
    colored: bool
    palette: list[int] | None  # the color of each number


def read_pixels(file: Path, folder: Path) -> Pixels:
    """The pixels of a mask image in a folder; ValueError that begins with its name if it is none."""
    name = name_file(file, folder)
    try:
        with Image.open(file) as image:
            if image.mode in ("RGB", "RGBA"):
                if image.mode == "RGBA" and np.asarray(image.getchannel("A")).min() < 255:
                    raise ValueError("it must have no transparent pixels, got some")
                red, green, blue = (np.asarray(image.getchannel(i), np.int32) for i in range(3))
                return Pixels(name, red << 16 | green << 8 | blue, True, None)
            if image.mode not in ("P", "L", "1") and not image.mode.startswith("I"):
                raise ValueError(f"it must be an RGB image, or a palette or gray image of numbers, got {image.mode}")
            numbers = np.asarray(image)
            channels = np.array((image.mode == "P" and image.getpalette("RGB")) or [], np.int64).reshape(-1, 3)
            palette = (channels @ [1 << 16, 1 << 8, 1]).tolist() if image.mode == "P" else None
            return Pixels(name, numbers.astype(np.uint8) if numbers.dtype == bool else numbers, False, palette)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    except Exception as error:  # Pillow's readers raise many types
        raise ValueError(f"{name}: it cannot be read as an image: {error}") from error


def _count_values(values: Numbers) -> tuple[list[int], NDArray[np.int64], list[int]]:
    """(values in order, the place of each pixel's value among them [h, w], pixels of each value)."""
    flat = values.ravel()
    starts = np.concatenate([[0], np.flatnonzero(flat[1:] != flat[:-1]) + 1])  # masks have long runs
    lengths = np.diff(starts, append=flat.size)
    distinct, places = np.unique(flat[starts], return_inverse=True)
    counts = np.bincount(places, lengths, len(distinct)).astype(np.int64)
    return distinct.tolist(), np.repeat(places, lengths).reshape(values.shape), counts.tolist()


def number_objects(pixels: Pixels) -> tuple[Numbers, dict[int, str]]:
    """(numbers of objects [h, w], what messages call them): of a color, its place in Pascal VOC's map, or after it."""
    if not pixels.colored:
        return pixels.values, {}
    voc_colors = make_voc_colors()
    colors, places, _ = _count_values(pixels.values)
    if len(colors) > MAX_OBJECTS:
        raise ValueError(f"{pixels.name}: it must have at most {MAX_OBJECTS} colors, got {len(colors)}")
    others = sorted(set(colors) - set(voc_colors))
    order = dict(zip([*voc_colors, *others], range(len(voc_colors) + len(others)), strict=True))
    numbers = np.array([order[color] for color in colors], np.int32)
    return numbers[places], {order[color]: f"of color {format_color(color)}" for color in colors}


def number_classes(pixels: Pixels, class_map: ClassMap) -> tuple[Numbers, str]:
    """(numbers of classes [h, w], UNKNOWN where there is no class; what is wrong with the others)."""
    colored = pixels.colored or (class_map.by_color and pixels.palette is not None)
    if not colored and not class_map.closed:
        return pixels.values, ""
    values, places, counts = _count_values(pixels.values)
    if colored and pixels.palette is not None:
        values = [pixels.palette[value] if value < len(pixels.palette) else 0 for value in values]
    known = class_map.names.keys() | class_map.background | class_map.void
    found = [class_map.colors.get(value, UNKNOWN) if colored else value for value in values]
    if class_map.closed:
        found = [number if number in known else UNKNOWN for number in found]
    triples = zip(values, counts, found, strict=True)
    faults = sorted((-count, value) for value, count, number in triples if number == UNKNOWN)
    as_text = format_color if colored else str
    listed = [f"{as_text(value)} ({-count} pixels)" for count, value in faults]
    rules = [class_map.where] if class_map.where else []
    rules += ["the color map of Pascal VOC (there is no labelmap.txt)"] if colored and not class_map.by_color else []
    what = f"its {'colors' if colored else 'numbers'} must be of {' and '.join(rules)}"
    fault = f"{what}, got {join_few(listed, SHOWN)}" if faults else ""
    return np.array(found, np.int32)[places], fault


def name_file(file: Path, folder: Path) -> str:
    """A mask image's name for messages: ``SegmentationObject/a.png``."""
    return file.relative_to(folder.parent).as_posix()
