"""YOLO's data sets: a data.yaml, images, and a text file of labels for each: https://docs.ultralytics.com/datasets/segment."""

import os
import posixpath
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fastmask.data.parse import parse_identity, parse_text, shorten
from fastmask.data.paths import DRIVE, check_name, find_images
from fastmask.data.records import Dataset, Problem, Record
from fastmask.data.yolo_labels import Labels, looks_like_labels, read_labels, read_lines
from fastmask.files import read_yaml, walk_folders
from fastmask.image_io import SUFFIXES, read_image_size

SPLITS = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}  # keys of a data.yaml
IMAGES, LABELS = "images", "labels"  # folders: the last "images" of an image's path becomes "labels"
MAX_CLASSES = 10_000  # of a data.yaml that has their number alone


class Config(NamedTuple):
    """A data.yaml."""

    file: Path
    folders: list[Path]  # that paths in it are relative to
    splits: dict[str, list[Any]]  # folders or lists of images, as they are written, by "train", "val" and "test"
    labels: Labels
    problems: list[Problem]
    outside: list[str]  # paths that lead out of the data set


def read_config(file: Path) -> Config:
    """Read a data.yaml: path, train, val, test, names (a list, or by number) or nc, kpt_shape.

    ``path`` is relative to the file's folder; one of another machine is its longest end that exists there, else the
    file's folder itself.

    Raises:
        ImportError: PyYAML is not installed.
        ValueError: it is not YAML, has no split or no classes.
        OSError: it cannot be read.
    """
    content = read_yaml(file)
    if not isinstance(content, Mapping):
        raise ValueError(f"{file} must have names and train or val, as YOLO's data.yaml, got {shorten(content)}")
    splits: dict[str, list[Any]] = {}
    for split, keys in SPLITS.items():
        values = next((content[key] for key in keys if content.get(key) not in (None, "", [])), None)
        if values is not None:
            splits[split] = values if isinstance(values, list) else [values]
    if not splits:
        raise ValueError(f"{file} must have train, val or test, got {shorten(list(content))}")
    problems: list[Problem] = []
    names = _read_names(content, file, problems)
    outside: list[str] = []
    root = content.get("path")
    place = None if root in (None, "") else find_place(root, [file.parent], outside)
    if root not in (None, "") and check_path(root) is not None:
        problems.append(Problem("broken file", file.name, f"path: {check_path(root)}"))
    folders = list(dict.fromkeys([place if place is not None and place.is_dir() else file.parent, file.parent]))
    return Config(file, folders, splits, Labels(names, _read_keypoints(content, file)), problems, outside)


def _read_names(content: Mapping[str, Any], file: Path, problems: list[Problem]) -> dict[int, str]:
    """Names by number, each name once."""
    given, number = content.get("names"), parse_identity(content.get("nc"))
    if given is None and isinstance(number, int) and 0 < number <= MAX_CLASSES:
        return {i: f"class_{i}" for i in range(number)}
    if not isinstance(given, list | Mapping) or not given:
        rule = f"names, a list or by number, or nc, their number, up to {MAX_CLASSES}"
        raise ValueError(f"{file} must have {rule}, got {shorten(given)}")
    names: dict[int, str] = {}
    for key, value in given.items() if isinstance(given, Mapping) else enumerate(given):
        where = f"{file.name}: names[{shorten(key)}]"
        identity = parse_identity(key)
        if not isinstance(identity, int) or identity < 0 or identity in names:
            problems.append(Problem("broken category", where, "it must have a number of its own, from 0"))
            continue
        name = parse_text(value)
        if name is None:
            text = f"a name must be text, in quotes where YAML reads it otherwise, got {shorten(value)}"
            problems.append(Problem("broken category", where, f"{text}: the number {identity} is its name"))
            name = str(identity)
        if name in names.values():
            problems.append(Problem("duplicate name", where, f"the name {name} is taken"))
            name = f"{name} ({identity})"
        names[identity] = name
    if not names:
        raise ValueError(f"{file} must have names with numbers from 0, got {shorten(given)}")
    if number is not None and number != len(given):
        text = f"nc must be the number of names, {len(given)}, got {shorten(number)}"
        problems.append(Problem("broken file", file.name, text))
    return dict(sorted(names.items()))


def _read_keypoints(content: Mapping[str, Any], file: Path) -> int:
    """How many values of a line are keypoints'."""
    shape = content.get("kpt_shape")
    if shape is None:
        return 0
    sides = [parse_identity(side) for side in shape] if isinstance(shape, list) else []
    if len(sides) != 2 or not all(isinstance(side, int) and 0 < side <= 1000 for side in sides):
        raise ValueError(f"{file} must have the number of keypoints and 2 or 3 as its kpt_shape, got {shorten(shape)}")
    return int(sides[0] or 0) * int(sides[1] or 0)


def check_path(value: Any) -> str | None:
    """Why a value is no path; None if it may be one."""
    if not isinstance(value, str):
        return f"it must be text, got {shorten(value)}"
    return None if posixpath.normpath(value.replace("\\", "/")) in (".", "..") else check_name(value)


def find_place(value: Any, folders: Sequence[Path], outside: list[str]) -> Path | None:
    r"""The file or folder of a path in a data.yaml; None if there is none.

    A relative path is in one of the folders. One that begins with ``..``, as Roboflow writes it, may be meant from a
    folder further down; one of another system or machine is its longest end that exists in a folder. A relative path
    that leads out of the first folder and what lies beside it is put into ``outside``.
    """
    if check_path(value) is not None:
        return None
    text = value.replace("\\", "/")
    parts = [part for part in posixpath.normpath(text).split("/") if part not in ("", ".")]
    absolute = text.startswith("/") or DRIVE.match(text) is not None
    if os.path.isabs(value) and len(parts) and os.path.exists(value):
        return Path(value)
    places = [] if absolute else [folder.joinpath(*parts) for folder in folders]
    ends = [part for part in parts if part != ".." and not DRIVE.match(f"{part}/")]
    if absolute or "\\" in value or parts[:1] == [".."]:
        places += [folder.joinpath(*ends[start:]) for start in range(len(ends)) for folder in folders]
    place = next((place for place in places if os.path.exists(place)), None)
    if place is not None and ".." in parts:
        root = os.path.dirname(os.path.abspath(folders[-1]))
        if os.path.commonpath([os.path.abspath(place), root]) != root:
            outside.append(value)
    return place


def list_files(file: Path) -> list[Path]:
    """The files that a data.yaml's annotations are in: itself, lists of images, and labels."""
    config = read_config(file)
    files = [file]
    for split, values in config.splits.items():
        files += [place for value in values if (place := find_place(value, config.folders, [])) and place.is_file()]
        files += [label for _, label in find_labels(config, split, None, []) if label is not None]
    return files


def read_yolo(file: Path, split: str, images: Path | None) -> Dataset:
    """Read a split of a data.yaml: polygons, and boxes of objects that have a box alone. An image may have no labels.

    The labels of an image are where the last ``images`` of its path is ``labels``, or beside it. Categories count from
    1 in the order of YOLO's numbers, which count from 0. Sizes are the images' own, upright.

    Args:
        file: the data.yaml.
        split: "train", "val" or "test".
        images: folder of the images; None: as the data.yaml says.

    Raises:
        ImportError, ValueError, OSError: see :func:`read_config`.
    """
    config = read_config(file)
    problems, records = list(config.problems), []
    labels_of: dict[Path, Path] = {}  # the first image of each
    for image, label in find_labels(config, split, images, problems):
        if label is None:
            records.append(Record(image, _read_size(image), ()))
            continue
        if label in labels_of:
            text = f"it has the labels of two images, {labels_of[label].name} and {image.name}"
            problems.append(Problem("duplicate", str(label), text))
        labels_of.setdefault(label, image)
        size = _read_size(image)
        instances, faults = read_labels(label, size, config.labels)
        problems += faults
        records.append(Record(image, size, tuple(instances)))
    if config.outside:
        text = f"paths must stay in the data set, got {len(config.outside)} that do not, first "
        problems.append(Problem("outside the folder", file.name, text + shorten(config.outside[0])))
    note = f"{file.name}: boxes alone are read of lines with keypoints (kpt_shape)"
    categories = {name: number + 1 for number, name in config.labels.names.items()}
    return Dataset(records, categories, problems, (note,) if config.labels.keypoints else ())


def _read_size(image: Path) -> tuple[int, int] | None:
    """(height, width); None where the image is missing or broken, which its check names."""
    try:
        return read_image_size(image)
    except (OSError, ValueError):
        return None


def find_labels(
    config: Config, split: str, images: Path | None, problems: list[Problem]
) -> list[tuple[Path, Path | None]]:
    """Each image of a split, with its file of labels, if there is one; what is missing goes into ``problems``."""
    pairs: list[tuple[Path, Path | None]] = []
    for value in config.splits[split]:
        where = f"{config.file.name}: {split}"
        place = find_place(value, config.folders, config.outside)
        fault = check_path(value)
        if fault is not None:
            problems.append(Problem("broken file", where, fault))
        elif place is not None and place.is_file():
            pairs += _find_listed(place, config, images, problems)
        elif place is not None and place.parent == place:
            problems.append(Problem("broken file", where, f"it must be a folder of images, got {place}"))
        elif place is not None:
            pairs += _find_in_folder(place, images or place, problems)
        elif images is not None:
            pairs += _find_in_folder(config.folders[0].joinpath(*_name_inside(value)), images, problems)
        else:
            text = (
                f"it must be a folder of images or a text file of their names, got {shorten(value)}, which is not there"
            )
            problems.append(Problem("missing folder", where, text))
    return list(dict.fromkeys(pairs))


def _name_inside(value: str) -> list[str]:
    """Folders of a path inside the data set."""
    parts = posixpath.normpath(value.replace("\\", "/")).split("/")
    return [part for part in parts if part not in ("", ".", "..") and not DRIVE.match(f"{part}/")]


def _find_in_folder(place: Path, images: Path, problems: list[Problem]) -> list[tuple[Path, Path | None]]:
    """Images in a folder and those inside it, with the labels they have as images of ``place``."""
    files = [
        file
        for folder in walk_folders(images)
        for file in sorted(folder.iterdir())
        if file.suffix.lower() in SUFFIXES and not file.name.startswith(".") and file.is_file()
    ]
    if not files:
        problems.append(Problem("missing folder", str(images), "it must hold images, got none"))
    pairs = [(file, find_label(place / file.relative_to(images))) for file in files]
    known = {label for _, label in pairs}
    folders = [label.parent for label in list_label_places(place / "image")]
    inside = dict.fromkeys(sub for folder in folders if folder.is_dir() for sub in walk_folders(folder))
    labels = [label for folder in inside for label in sorted(folder.glob("*.txt")) if label not in known]
    rest = [label for label in labels if looks_like_labels(label)]
    if rest:
        text = f"labels must be of an image, got {len(rest)} files that are of none, first {rest[0]}"
        problems.append(Problem("missing image", str(images), text))
    return pairs


def _find_listed(
    file: Path, config: Config, images: Path | None, problems: list[Problem]
) -> list[tuple[Path, Path | None]]:
    """The images that a text file names, a line for each."""
    try:
        lines = read_lines(file)
    except (OSError, ValueError) as error:
        problems.append(Problem("broken file", file.name, str(error)))
        return []
    names = list(dict.fromkeys(line.strip() for line in lines if line.strip()))
    if not names:
        problems.append(Problem("broken file", file.name, "it must name images, got none"))
    found = find_images(names, file.parent, images, config.folders)
    problems += found.describe_outside(file.name)
    problems += [Problem("broken image entry", file.name, fault) for fault in found.faults.values()]
    pairs = []
    for name in names:
        if name in found.faults:
            continue
        bases = [] if images is None else [file.parent, *config.folders]  # the labels are there, the images elsewhere
        parts = _name_inside(name)
        places = [base.joinpath(*parts[start:]) for start in range(len(parts)) for base in bases]
        labels = map(find_label, [*places, found.files[name]])
        pairs.append((found.files[name], next((label for label in labels if label is not None), None)))
    return pairs


def find_label(image: Path) -> Path | None:
    """The file of an image's labels, if there is one."""
    return next((label for label in list_label_places(image) if label.is_file()), None)


def list_label_places(image: Path) -> list[Path]:
    """Where the labels of an image may be: the last folder ``images`` of its path is ``labels``; else beside it."""
    parts = Path(os.path.abspath(image)).parts
    places = [i for i, part in enumerate(parts[:-1]) if part == IMAGES]
    labels = [Path(*parts[: places[-1]], LABELS, *parts[places[-1] + 1 :])] if places else []
    return [each.with_suffix(".txt") for each in (*labels, Path(*parts))]
