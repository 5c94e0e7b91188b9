"""Mask images in Pascal VOC's layout: an image of object numbers and one of class numbers for each photo.

``SegmentationObject/NAME.png`` (0: background; 255 in 8 bits: void border), ``SegmentationClass/NAME.png``,
``JPEGImages/NAME.*``, and ``labels.txt`` with the name of one class per line, from class 1 on.
Source: http://host.robots.ox.ac.uk/pascal/VOC/voc2012/htmldoc/devkit_doc.html.
"""

import shutil
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fastmask.cocoapi import mask as coco_mask
from fastmask.data.records import Dataset, Instance, Problem, Record, name_records
from fastmask.files import replace_file, write_text

OBJECTS, CLASSES, IMAGES, LABELS = "SegmentationObject", "SegmentationClass", "JPEGImages", "labels.txt"
BORDER = 255
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
    """
    labels = path / LABELS
    names = labels.read_text().split("\n") if labels.exists() else VOC if path.name.startswith("VOC2") else []
    names = [name.strip() for name in names if name.strip()]
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
        ids = [number for number in np.unique(numbers).tolist() if number not in (0, BORDER)]
        instances = tuple(_make_instance(numbers == number, classes, names) for number in ids)
        records.append(Record(_find_image(path, images, file.stem), (numbers.shape[0], numbers.shape[1]), instances))
    used = dict.fromkeys(instance.category for record in records for instance in record.instances)
    order = [*names, *(name for name in used if name not in names)]
    return Dataset(records, {name: number for number, name in enumerate(order, 1)}, problems)


def _read_numbers(file: Path) -> NDArray[np.int64]:
    try:
        with Image.open(file) as image:
            if image.mode not in ("P", "L", "1") and not image.mode.startswith("I"):
                raise ValueError(f"it must be a palette or gray image of numbers, got {image.mode}")
            return np.asarray(image).astype(np.int64)
    except ValueError:
        raise
    except Exception as error:  # Pillow's readers raise many types
        raise ValueError(f"it cannot be read as an image: {error}") from error


def _make_instance(mask: NDArray[np.bool_], classes: NDArray[np.int64], names: list[str]) -> Instance:
    inside = classes[mask]
    counts = np.bincount(inside[(inside > 0) & (inside != BORDER)])
    number = int(counts.argmax()) if len(counts) else 0
    name = "object" if number == 0 else names[number - 1] if number <= len(names) else f"class {number}"
    return Instance(name, rle=dict(coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))))


def _find_image(path: Path, images: Path | None, stem: str) -> Path:
    folders = [images] if images is not None else [path / IMAGES, path]
    files = [file for folder in folders for file in sorted(folder.glob(f"{stem}.*")) if file.suffix.lower() != ".json"]
    return files[0] if files else folders[0] / f"{stem}.jpg"


def write_masks(dataset: Dataset, path: Path) -> list[Problem]:
    """Write mask images, and copy the images -> what the format cannot hold: crowds, and what later instances hide."""
    for name in (OBJECTS, CLASSES, IMAGES):
        (path / name).mkdir(parents=True, exist_ok=True)
    problems = []
    order = {name: number for number, name in enumerate(dataset.categories, 1)}
    write_text(path / LABELS, "\n".join(order) + "\n")
    for stem, record in zip(name_records(dataset.records), dataset.records, strict=True):
        if record.size is None:
            problems.append(Problem("cannot be written", str(record.file), "its size is not known"))
            continue
        numbers, classes = (np.zeros(record.size, np.int64) for _ in range(2))
        painted = [instance for instance in record.instances if not instance.crowd]
        ids = [number for number in range(1, len(painted) + 2) if number != BORDER][: len(painted)]
        for instance, number in zip(painted, ids, strict=True):
            mask = instance.to_mask(*record.size)
            numbers[mask], classes[mask] = number, order[instance.category]
        hidden = set(ids) - set(np.unique(numbers).tolist())
        lost = len(hidden) + len(record.instances) - len(painted)
        if lost:
            problems.append(
                Problem("cannot be written", str(record.file), f"{lost} objects are crowds, hidden or empty")
            )
        _save_numbers(numbers, path / OBJECTS / f"{stem}.png")
        _save_numbers(classes, path / CLASSES / f"{stem}.png")
        copy = path / IMAGES / f"{stem}{record.file.suffix}"
        if record.file.exists() and record.file.resolve() != copy.resolve():
            with replace_file(copy) as draft:
                shutil.copyfile(record.file, draft)
    return problems


def _save_numbers(numbers: NDArray[np.int64], file: Path) -> None:
    """Write numbers as a palette image with distinct colors, or as 16-bit grayscale if there are more than 255."""
    if numbers.max(initial=0) > BORDER:
        image = Image.fromarray(numbers.astype(np.uint16))
    else:
        image = Image.fromarray(numbers.astype(np.uint8))
        image.putpalette([(37 * i * (channel + 2)) % 256 if i else 0 for i in range(256) for channel in range(3)])
    with replace_file(file) as draft:
        image.save(draft)
