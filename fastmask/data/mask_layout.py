"""Folders of mask images: Pascal VOC's, which CVAT (Segmentation mask 1.1) and labelme (labelme2voc) write as well.

``SegmentationObject/NAME.png``, ``SegmentationClass/NAME.png``, ``JPEGImages/NAME.*``; names of classes in one of the
files of :mod:`fastmask.data.class_map`; and names of images, one per line, in ``ImageSets/Segmentation/*.txt``, whose
``train.txt`` and ``val.txt`` are splits. Older versions of labelme call the folders ``SegmentationObjectPNG`` and
``SegmentationClassPNG``.
"""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from fastmask.data.paths import SPLITS, find_by_stem

OBJECTS, CLASSES, IMAGES, LABELS = "SegmentationObject", "SegmentationClass", "JPEGImages", "labels.txt"
LISTS = "ImageSets/Segmentation"
NAMES = ("labelmap.txt", "class_names.txt", LABELS)  # files of class names: CVAT's, labelme's, ours
INPUTS = (*NAMES, f"{OBJECTS}*/**/*", f"{CLASSES}*/**/*", f"{LISTS}/*")


class Lists(NamedTuple):
    """What the lists of images say."""

    chosen: list[str] | None  # names that are read; None: all
    unlisted: set[str]  # mask images of no list
    unread: dict[str, int]  # how many images are in a list that is no split, and in no split, by the list's name


def is_masks(path: Path) -> bool:
    """Whether a folder has images of objects in Pascal VOC's layout, or a file is a list of images in one."""
    return find_folder(path, OBJECTS).is_dir() if path.is_dir() else _is_list(path)


def is_semantic(path: Path) -> bool:
    """Whether a folder has images of classes, in the same layout, but none of objects."""
    return path.is_dir() and not is_masks(path) and find_folder(path, CLASSES).is_dir()


def find_root(path: Path) -> Path:
    """The folder of the layout: ``path``, or that of a list."""
    return path if path.is_dir() else Path(os.path.normpath(path.parent / ".." / ".."))


def find_folder(root: Path, name: str) -> Path:
    """The folder of objects or classes: of ``name``, or ``namePNG`` where the PNG files are there."""
    folders = [root / name, root / f"{name}PNG"]
    return next(
        (each for each in folders if next(each.rglob("*.png"), None)), next(filter(Path.is_dir, folders), folders[0])
    )


def find_lists(path: Path) -> dict[str, Path]:
    """The list of each split (train, val) of a folder; of none where it has none."""
    lists = {file.stem.lower(): file for file in sorted((path / LISTS).glob("*.txt"))}
    named = {split: [lists[name] for name in names if name in lists] for split, names in SPLITS.items()}
    return {split: files[0] for split, files in named.items() if files}


def read_lists(path: Path, masks: Iterable[str]) -> Lists:
    """Read the lists of a folder, or the one that ``path`` names; without splits, all lists of a folder count.

    Args:
        path: folder of the layout, or a list.
        masks: names of the mask images that are there.

    Raises:
        ValueError: a list is not text.
    """
    root = find_root(path)
    lists = {file: _read_list(file) for file in sorted((root / LISTS).glob("*.txt"))}
    masks = set(masks)
    if not lists:
        return Lists(None, set(), {})
    listed = {name for names in lists.values() for name in names}
    unlisted = masks - listed - {_drop_ending(name) for name in listed}
    if path.is_dir():
        return Lists(sorted(listed), unlisted, {})
    splits = find_lists(root).values()
    in_splits = {name for file in splits for name in lists[file]}
    unread = {file.name: len(set(names) - in_splits) for file, names in lists.items() if file not in splits}
    chosen = next(names for file, names in lists.items() if file.samefile(path))
    return Lists(list(dict.fromkeys(chosen)), unlisted, {name: number for name, number in unread.items() if number})


def choose_mask(name: str, masks: Iterable[str]) -> str | None:
    """The mask image of a listed name, which may have the ending of the image; None if there is none."""
    return next((each for each in (name, _drop_ending(name)) if each in masks), None)


def find_image(name: str, folders: list[Path], stems: dict[Path, dict[str, Path]]) -> Path:
    """The image of a mask's name, which may be in a folder of its own; where there is none, the file that would be.

    Args:
        name: of the mask, with ``/`` between folders.
        folders: of images, by preference.
        stems: what was found before; is extended.
    """
    parent, _, stem = name.rpartition("/")
    for inner in dict.fromkeys((Path(parent), Path())):
        if inner not in stems:
            stems[inner] = find_by_stem([folder / inner for folder in folders])
        if stem in stems[inner]:
            return stems[inner][stem]
    return folders[0] / parent / f"{stem}.jpg"


def _is_list(path: Path) -> bool:
    if path.suffix.lower() != ".txt" or not path.is_file():
        return False
    return "/".join(path.absolute().parts[-3:-1]) == LISTS and is_masks(find_root(path))


def _read_list(file: Path) -> list[str]:
    """The names in a list of images, one per line, in quotes where they have spaces."""
    try:
        lines = [line.strip() for line in file.read_text("utf-8-sig").splitlines()]
    except ValueError as error:
        raise ValueError(f"{file} must be text in UTF-8, got {error}") from error
    names = [line.strip('"') if line.startswith('"') else line for line in lines]
    return [name.replace("\\", "/") for name in names if name]


def _drop_ending(name: str) -> str:
    """The name of an image without an ending of three or four letters."""
    stem, dot, ending = name.rpartition(".")
    return stem if dot and 3 <= len(ending) <= 4 and "/" not in ending else name
