"""Mask images in Pascal VOC's layout: an image of object numbers and one of class numbers for each photo.

``SegmentationObject/NAME.png`` (0: background; 255 in 8 bits: void border), ``SegmentationClass/NAME.png``,
``JPEGImages/NAME.*``, and ``labels.txt`` with the name of one class per line, from class 1 on.
Source: http://host.robots.ox.ac.uk/pascal/VOC/voc2012/htmldoc/devkit_doc.html.
"""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fastmask.cocoapi import mask as coco_mask
from fastmask.data.copies import check_image, copy_image
from fastmask.data.paths import find_by_stem
from fastmask.data.records import Dataset, Instance, Problem, Record, name_records
from fastmask.files import replace_file, write_text

OBJECTS, CLASSES, IMAGES, LABELS = "SegmentationObject", "SegmentationClass", "JPEGImages", "labels.txt"
BORDER = 255
LOST = "crowds, hidden, empty, masks of another size than the image, or too many"
MAX_OBJECTS = 65534  # of an image, in 16 bits without background and border
VOC = ["aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog"]
VOC += ["horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"]


def is_masks(path: Path) -> bool:
    """Whether a folder has Pascal VOC's layout."""
    return (path / OBJECTS).is_dir()


def read_masks(path: Path, images: Path | None) -> Dataset:
    """Read instances as RLE; each has the class of most of its pixels, or ``object`` without class images.

    Args:
        path: the folder of the layout.
        images: folder of the images; None: ``JPEGImages`` in it, or the folder itself.

    Raises:
        ValueError: ``labels.txt`` is not text.
    """
    names = _read_names(path)
    folders = [images] if images is not None else [path / IMAGES, path]
    files = find_by_stem(folders)
    records, problems = [], []
    for file in sorted((path / OBJECTS).glob("*.png")):
        try:
            numbers = _read_numbers(file)
            beside = path / CLASSES / file.name
            classes = _read_numbers(beside) if beside.exists() else np.zeros_like(numbers)
            if classes.shape != numbers.shape:
                raise ValueError(f"its class image must be {numbers.shape}, got {classes.shape}")
        except ValueError as error:
            problems.append(Problem("broken file", file.name, str(error)))
            continue
        image = files.get(file.stem, folders[0] / f"{file.stem}.jpg")
        records.append(Record(image, (numbers.shape[0], numbers.shape[1]), _find_instances(numbers, classes, names)))
    used = dict.fromkeys(instance.category for record in records for instance in record.instances)
    order = [*filter(None, names), *(name for name in used if name not in names)]
    return Dataset(records, {name: number for number, name in enumerate(order, 1)}, problems)


def _read_names(path: Path) -> list[str]:
    """Class names from class 1 on, "" of classes without one."""
    if not (path / LABELS).exists():
        return VOC if path.name.startswith("VOC2") else []
    try:
        return [name.strip() for name in (path / LABELS).read_text("utf-8-sig").rstrip().split("\n")]
    except ValueError as error:
        raise ValueError(f"{path / LABELS} must be text in UTF-8, got {error}") from error


def _read_numbers(file: Path) -> NDArray[np.integer[Any]]:
    try:
        with Image.open(file) as image:
            if image.mode not in ("P", "L", "1") and not image.mode.startswith("I"):
                raise ValueError(f"it must be a palette or gray image of numbers, got {image.mode}")
            numbers = np.asarray(image)
            return numbers.astype(np.uint8) if numbers.dtype == bool else numbers
    except ValueError:
        raise
    except Exception as error:  # Pillow's readers raise many types
        raise ValueError(f"it cannot be read as an image: {error}") from error


def _find_instances(
    numbers: NDArray[np.integer[Any]], classes: NDArray[np.integer[Any]], names: list[str]
) -> tuple[Instance, ...]:
    """The objects in an image of their numbers [h, w], in the order of the numbers."""
    flat, flat_classes = numbers.ravel(order="F"), classes.ravel(order="F")  # COCO's runs go down columns
    inside = np.flatnonzero((flat != 0) & (flat != BORDER))
    inside = inside[np.argsort(flat[inside], kind="stable")]
    starts = np.flatnonzero(np.diff(flat[inside], prepend=0))
    instances = []
    for places in np.split(inside, starts[1:]) if len(starts) else []:
        first = np.flatnonzero(np.diff(places, prepend=-2) != 1)  # of each run
        last = np.append(first[1:], len(places)) - 1
        ends = np.append(np.stack([places[first], places[last] + 1], axis=1).ravel(), flat.size)
        runs = np.diff(ends, prepend=0)
        runs = runs[:-1] if runs[-1] == 0 else runs
        rle: dict[str, Any] = coco_mask.frPyObjects(
            {"size": list(numbers.shape), "counts": runs.tolist()}, *numbers.shape
        )
        instances.append(Instance(_name_class(flat_classes[places], names), rle=rle))
    return tuple(instances)


def _name_class(classes: NDArray[np.integer[Any]], names: list[str]) -> str:
    """The name of the class that most of an object's pixels have, of several the first."""
    values, counts = np.unique(classes[(classes > 0) & (classes != BORDER)], return_counts=True)
    number = int(values[counts.argmax()]) if len(values) else 0
    if number == 0:
        return "object"
    return (names[number - 1] if number <= len(names) else "") or f"class {number}"


def write_masks(dataset: Dataset, path: Path) -> list[Problem]:
    """Write mask images, and copy the images -> what the format cannot hold: crowds, and what later instances hide."""
    for name in (OBJECTS, CLASSES, IMAGES):
        (path / name).mkdir(parents=True, exist_ok=True)
    problems = []
    order = dict(zip(dataset.categories, _count_without_border(len(dataset.categories)), strict=True))
    lines = {number: " ".join(name.splitlines()) for name, number in order.items()}
    write_text(path / LABELS, "".join(f"{lines.get(number, '')}\n" for number in range(1, max(lines, default=0) + 1)))
    for stem, record in zip(name_records(dataset.records), dataset.records, strict=True):
        if record.size is None:
            problems.append(Problem("cannot be written", str(record.file), "its size is not known"))
            continue
        fault = check_image(record)
        if fault is not None:
            problems.append(fault)
        numbers, classes = (np.zeros(record.size, np.uint16) for _ in range(2))
        painted = [instance for instance in record.instances if _fits(instance, record.size)][:MAX_OBJECTS]
        ids = _count_without_border(len(painted))
        for instance, number in zip(painted, ids, strict=True):
            mask = instance.to_mask(*record.size)
            numbers[mask], classes[mask] = number, order[instance.category]
        hidden = set(ids) - set(np.unique(numbers).tolist())
        lost = len(hidden) + len(record.instances) - len(painted)
        if lost:
            problems.append(Problem("cannot be written", str(record.file), f"{lost} objects are {LOST}"))
        _save_numbers(numbers, path / OBJECTS / f"{stem}.png")
        _save_numbers(classes, path / CLASSES / f"{stem}.png")
        copy = path / IMAGES / f"{stem}{record.file.suffix}"
        if fault is None or fault.kind == "wrong size":
            copy_image(record, copy)
    return problems


def _fits(instance: Instance, size: tuple[int, int]) -> bool:
    """Whether an instance can be in mask images of a size."""
    return not instance.crowd and (instance.rle is None or tuple(instance.rle["size"]) == size)


def _count_without_border(number: int) -> list[int]:
    """That many integers from 1 on, without the border's."""
    return [*range(1, BORDER), *range(BORDER + 1, number + 2)][:number]


def _save_numbers(numbers: NDArray[np.uint16], file: Path) -> None:
    """Write numbers as a palette image with distinct colors, or as 16-bit grayscale if there are more than 255."""
    if numbers.max(initial=0) > BORDER:
        image = Image.fromarray(numbers)
    else:
        image = Image.fromarray(numbers.astype(np.uint8))
        image.putpalette([(37 * i * (channel + 2)) % 256 if i else 0 for i in range(256) for channel in range(3)])
    with replace_file(file) as draft:
        image.save(draft)
