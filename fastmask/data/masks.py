"""Mask images, an image of objects and one of classes for each photo, in a layout of :mod:`fastmask.data.mask_layout`.

They are gray or palette images of numbers (0: background; 255: void, the border of objects), or RGB images, in which
each color but black is an object or a class. Names and colors of classes: :mod:`fastmask.data.class_map`.
"""

import collections
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fastmask.cocoapi import mask as coco_mask
from fastmask.data.class_map import BORDER, ClassMap, read_class_map, starts_numbering
from fastmask.data.copies import check_image, copy_image
from fastmask.data.mask_layout import (
    CLASSES,
    IMAGES,
    LABELS,
    LISTS,
    NAMES,
    OBJECTS,
    choose_mask,
    find_folder,
    find_image,
    find_root,
    read_lists,
)
from fastmask.data.mask_pixels import (
    MAX_OBJECTS,
    SHOWN,
    UNKNOWN,
    Numbers,
    name_file,
    number_classes,
    number_objects,
    read_pixels,
)
from fastmask.data.parse import join_few
from fastmask.data.records import Dataset, Instance, Problem, Record, name_records
from fastmask.files import replace_file, write_text


def read_masks(path: Path, images: Path | None) -> Dataset:
    """Read instances as RLE; each has the class of most of its pixels, or ``object`` without class images.

    Args:
        path: the folder of the layout, or one of its lists of images.
        images: folder of the images; None: ``JPEGImages`` or ``images`` in it, or the folder itself.

    Raises:
        ValueError: a file of names is broken, or there are no mask images.
    """
    root = find_root(path)
    class_map = read_class_map(root)
    objects, classes = find_folder(root, OBJECTS), find_folder(root, CLASSES)
    masks = {file.relative_to(objects).with_suffix("").as_posix(): file for file in sorted(objects.rglob("*.png"))}
    if not masks:
        raise ValueError(f"{objects} must hold images of objects (*.png), got none")
    folders = [images] if images is not None else [root / IMAGES, root / "images", root]
    stems: dict[Path, dict[str, Path]] = {}
    problems: list[Problem] = []
    names, notes = _choose_masks(path, masks, problems)
    has_classes = next(classes.rglob("*.png"), None) is not None
    if not has_classes:
        notes.append(f"{root}: there are no images of classes: all objects are of the class object")
    records, void = [], 0
    for name in names:
        beside = classes / f"{name}.png"
        missing = has_classes and not beside.exists()
        try:
            pixels = read_pixels(masks[name], objects)
            numbers, labels = number_objects(pixels)
            kinds = None
            if has_classes and not missing:
                kinds, unknown = number_classes(read_pixels(beside, classes), class_map)
                if kinds.shape != numbers.shape:
                    raise ValueError(f"{pixels.name}: its class image must be {numbers.shape}, got {kinds.shape}")
                if unknown:
                    problems.append(Problem("unknown class", name_file(beside, classes), unknown))
        except ValueError as error:
            where, _, text = str(error).partition(": ")
            problems.append(Problem("broken file", where, text))
            continue
        if missing:
            rest = "the image is left out" if class_map.closed else "its objects are of the class object"
            problems.append(
                Problem("missing class image", name_file(beside, classes), f"there is no such file: {rest}")
            )
        if missing and class_map.closed:
            continue
        found = _find_objects(numbers, kinds, class_map, pixels.colored)
        void += found.void
        for kind, what, faults in (
            ("mixed classes", "have pixels of several classes, and get that of most", found.mixed),
            ("no class", "have no class, and are left out", found.unclassed),
        ):
            listed = [f"object {labels.get(number, number)}: {text}" for number, text in faults]
            if faults:
                text = f"{len(faults)} objects {what}: {join_few(listed, SHOWN, '; ')}"
                problems.append(Problem(kind, pixels.name, text))
        records.append(Record(find_image(name, folders, stems), (numbers.shape[0], numbers.shape[1]), found.instances))
    if void:
        notes.append(f"{root}: {void} objects of void pixels alone are no objects")
    used = dict.fromkeys(instance.category for record in records for instance in record.instances)
    order = dict.fromkeys([*class_map.names.values(), *used])
    return Dataset(records, {name: number for number, name in enumerate(order, 1)}, problems, tuple(notes))


def _choose_masks(path: Path, masks: dict[str, Path], problems: list[Problem]) -> tuple[list[str], list[str]]:
    """(names of the mask images that are read, notes about others); listed ones that are missing are problems."""
    lists = read_lists(path, masks)
    if lists.chosen is None:
        return list(masks), []
    names = []
    for listed in lists.chosen:
        name = choose_mask(listed, masks)
        if name is None:
            problems.append(Problem("missing mask image", listed, f"it is listed, but has no image in {OBJECTS}"))
        else:
            names.append(name)
    notes = [
        f"{path}: {number} images are in {name} alone, which is no split, and are not read"
        for name, number in lists.unread.items()
    ]
    if lists.unlisted:
        what = f"{path}: {len(lists.unlisted)} mask images are in no list of {LISTS}, and not read"
        notes.append(f"{what}: {join_few(sorted(lists.unlisted), SHOWN)}")
    return list(dict.fromkeys(names)), notes


class _Objects(NamedTuple):
    instances: tuple[Instance, ...]
    void: int  # objects that are none
    mixed: list[tuple[int, str]]  # number of the object, and its classes
    unclassed: list[tuple[int, str]]


def _find_objects(numbers: Numbers, classes: Numbers | None, class_map: ClassMap, colored: bool) -> _Objects:
    """The objects in an image of their numbers [h, w], in the order of the numbers.

    Objects of the border's number are none; those of its color are if their pixels are of a class, as the 255th object
    of an image gets it.
    """
    flat = numbers.ravel(order="F")  # COCO's runs go down columns
    flat_classes = None if classes is None else classes.ravel(order="F")
    inside = np.flatnonzero((flat != 0) & ((flat != BORDER) | (colored and classes is not None)))
    inside = inside[np.argsort(flat[inside], kind="stable")]
    starts = np.flatnonzero(np.diff(flat[inside], prepend=0))
    found = _Objects((), 0, [], [])
    instances, void = [], 0
    for places in np.split(inside, starts[1:]) if len(starts) else []:
        number = int(flat[places[0]])
        category = "object"
        if flat_classes is not None:
            values, counts = np.unique(flat_classes[places], return_counts=True)
            chosen, text = _choose_class(dict(zip(values.tolist(), counts.tolist(), strict=True)), class_map)
            if chosen is None:
                void += not text and number != BORDER
                found.unclassed.extend([(number, text)] if text and number != BORDER else [])
                continue
            category = chosen
            found.mixed.extend([(number, text)] if text else [])
        first = np.flatnonzero(np.diff(places, prepend=-2) != 1)  # of each run
        last = np.append(first[1:], len(places)) - 1
        ends = np.append(np.stack([places[first], places[last] + 1], axis=1).ravel(), flat.size)
        runs = np.diff(ends, prepend=0)
        runs = runs[:-1] if runs[-1] == 0 else runs
        rle: dict[str, Any] = coco_mask.frPyObjects(
            {"size": list(numbers.shape), "counts": runs.tolist()}, *numbers.shape
        )
        instances.append(Instance(category, rle=rle))
    return found._replace(instances=tuple(instances), void=void)


def _choose_class(counts: dict[int, int], class_map: ClassMap) -> tuple[str | None, str]:
    """(the class that most of an object's pixels have, of several the first; all that they have, if it is not one).

    Args:
        counts: pixels by the number of their class, in its order.
        class_map: of the numbers.
    """
    rest = {number: count for number, count in counts.items() if number not in class_map.void}
    own = [number for number in rest if number in class_map.names or (not class_map.closed and number > 0)]
    chosen = max(own, key=lambda number: rest[number], default=None)
    order = sorted(rest, key=lambda number: (number != chosen, -rest[number]))
    what = ["unknown" if number == UNKNOWN else class_map.describe(number) for number in order]
    text = ", ".join(f"{name} {rest[number]}" for name, number in zip(what, order, strict=True))
    tie = ", a tie" if sum(rest[number] == rest[order[0]] for number in own) > 1 else ""
    if chosen is None:
        return None, f"{text} pixels" if text else ""
    return class_map.describe(chosen), f"{text} pixels{tie}" if len(rest) > 1 else ""


def write_masks(dataset: Dataset, path: Path) -> list[Problem]:
    """Write mask images, and copy the images -> what the format cannot hold: crowds, boxes alone, and what others hide.

    Raises:
        ValueError: a category's name is one of the background in ``labels.txt``, or the folder has names or lists of
            another data set.
    """
    others = [*(path / name for name in NAMES if name != LABELS), path / LISTS]
    other = next((each for each in others if each.exists()), None)
    if other is not None:
        raise ValueError(f"{path} must be a folder of its own, got one with {other.relative_to(path)} in it")
    if starts_numbering(next(iter(dataset.categories), "")):
        raise ValueError(f"a first category must not be named as background, got {next(iter(dataset.categories))}")
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
        reasons = [_find_misfit(instance, record.size) for instance in record.instances]
        fitting = [instance for instance, reason in zip(record.instances, reasons, strict=True) if reason is None]
        painted = fitting[:MAX_OBJECTS]
        ids = _count_without_border(len(painted))
        for instance, number in zip(painted, ids, strict=True):
            mask = instance.to_mask(*record.size)
            numbers[mask], classes[mask] = number, order[instance.category]
        hidden = set(ids) - set(np.unique(numbers).tolist())
        lost = collections.Counter(reason for reason in reasons if reason is not None)
        lost += collections.Counter({"hidden or empty": len(hidden), "too many": len(fitting) - len(painted)})
        if lost:
            text = "objects left out: " + ", ".join(f"{number} {reason}" for reason, number in lost.items())
            problems.append(Problem("cannot be written", str(record.file), text))
        _save_numbers(numbers, path / OBJECTS / f"{stem}.png")
        _save_numbers(classes, path / CLASSES / f"{stem}.png")
        copy = path / IMAGES / f"{stem}{record.file.suffix}"
        if fault is None or fault.kind == "wrong size":
            copy_image(record, copy)
    return problems


def _find_misfit(instance: Instance, size: tuple[int, int]) -> str | None:
    """Why an instance cannot be in mask images of a size; None where it can."""
    if instance.crowd:
        return "crowds"
    if not instance.has_mask():
        return "with a box alone"
    return "masks of another size than the image" if instance.rle and tuple(instance.rle["size"]) != size else None


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
