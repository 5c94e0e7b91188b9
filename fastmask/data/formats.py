"""Annotation formats: detecting, reading and writing them by name."""

import contextlib
import itertools
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from fastmask.data.coco import is_coco, read_coco, write_coco
from fastmask.data.copies import copy_embedded, place_embedded
from fastmask.data.keypoints import describe_lost, describe_lost_pairs
from fastmask.data.labelme import drop_image_data, is_labelme, read_labelme, write_labelme
from fastmask.data.layouts import YAML, choose_images, find_annotations, find_json, find_splits, find_yaml
from fastmask.data.mask_layout import CLASSES, IMAGES, INPUTS, LABELS, OBJECTS, find_root, is_masks, is_semantic
from fastmask.data.masks import read_masks, write_masks
from fastmask.data.records import Dataset, Problem, Record, name_records
from fastmask.data.via import is_via, read_via, write_via
from fastmask.data.yolo import list_files, read_config, read_yolo
from fastmask.data.yolo_labels import looks_like_labels
from fastmask.data.yolo_write import list_outputs, write_yolo
from fastmask.files import check_free

FORMATS = ("coco", "via", "labelme", "masks", "yolo")


def find_format(path: str | Path) -> str:
    """The format of a file or folder, one of FORMATS, found by its content.

    Raises:
        ValueError: it is of no known format, or of several, or not JSON.
        OSError: it cannot be read.
    """
    path = find_annotations(Path(path))
    if _find_yolo(path, "auto") is not None:
        return "yolo"
    return "masks" if is_masks(path) else _choose_format(path, _load_files(path)[0])


def read_dataset(
    path: str | Path,
    format: str = "auto",
    images: str | Path | None = None,
    attribute: str | None = None,
    split: str | None = None,
) -> Dataset:
    """Read annotated images; broken annotations are left out and listed in ``problems``.

    Args:
        path: a JSON file or YOLO's data.yaml; or a folder with one (COCO, VIA, YOLO), with one per image (labelme), or
            with mask images; or a folder with ``annotations`` in it; or with splits, see
            :func:`fastmask.data.layouts.find_splits`.
        format: one of FORMATS, or "auto", which finds it by content.
        images: folder of the images; None: the format's usual ones, see :func:`fastmask.data.paths.find_images`.
        attribute: VIA's region attribute that holds the class; None: see :func:`fastmask.data.via.read_via`.
        split: what is read of several splits, "train" or "val"; of a data.yaml also "test".

    Raises:
        ValueError: the file is broken, or not of the format, or there are several splits or formats.
        OSError: it cannot be read.
    """
    path, images = Path(path), None if images is None else Path(images)
    splits = _find_splits(path, format)
    name = next(iter(splits)) if len(splits) == 1 else split
    if name is None or name not in splits:
        listed = ", ".join(f"{name} ({file})" for name, file in splits.items())
        raise ValueError(f"{path} must be one data set, got the splits {listed}: name one (--split)")
    dataset = _read(splits[name], format, choose_images(images, name), attribute, name)
    note = f"{path}: the split {name} is read" + (f", {splits[name]}" if splits[name] != path else "")
    return dataset._replace(notes=(note, *dataset.notes)) if name else dataset


def read_all(
    path: str | Path,
    format: str = "auto",
    images: str | Path | None = None,
    attribute: str | None = None,
    only: Collection[str] | None = None,
) -> dict[str, Dataset]:
    """Read each split of a folder or data.yaml; or, named "", what has no splits. See :func:`read_dataset`.

    Args:
        path, format, images, attribute: as there.
        only: the splits to read, of those there are; None: all.

    Raises:
        ValueError: besides, ``images`` has one image for two splits.
    """
    path, images = Path(path), None if images is None else Path(images)
    splits = _find_splits(path, format)
    splits = {name: each for name, each in splits.items() if only is None or not name or name in only}
    datasets = {}
    for name, each in splits.items():
        datasets[name] = _read(each, format, choose_images(images, name), attribute, name)
    for first, second in itertools.combinations(datasets.values() if images is not None else (), 2):
        check_apart(first, second)
    return datasets


def _find_splits(path: Path, format: str) -> dict[str, Path]:
    """The annotations of each split; named "", those of a data set without splits."""
    file = _find_yolo(path, format)
    if file is not None:
        return dict.fromkeys(read_config(file).splits, file)
    return _check_splits(path, find_splits(path)) or {"": path}


def _find_yolo(path: Path, format: str) -> Path | None:
    """YOLO's data.yaml of a path; ValueError if there are several, or annotations of other formats beside it."""
    files = find_yaml(path) if format in ("auto", "yolo") else []
    if len(files) > 1:
        raise ValueError(f"{path} must hold one data.yaml, got {', '.join(file.name for file in files)}: name one")
    if not files and format == "yolo":
        raise ValueError(f"{path} must be a data.yaml or a folder with one, got none")
    if files and format == "auto" and path.is_dir():
        place = find_annotations(path)
        others = [place / OBJECTS] if is_masks(place) else list(find_splits(path).values())
        others += [file for each in _load_files(place)[0].values() for file in each] if find_json(place) else []
        if others:
            got = f"{others[0]} and yolo ({files[0].name})"
            raise ValueError(f"{path} must hold files of one format, or the format be given (--format), got {got}")
    return files[0] if files else None


def _check_splits(path: Path, splits: dict[str, Path]) -> dict[str, Path]:
    """Return the splits; ValueError if there is one, in a folder, and annotations beside that folder as well."""
    beside = (
        find_json(path) if len(splits) == 1 and path / "annotations" not in next(iter(splits.values())).parents else []
    )
    if beside and not set(beside) & set(splits.values()) and (contents := _load_files(path)[0]):
        file = next(iter(next(iter(contents.values()))))
        ((name, split),) = splits.items()
        raise ValueError(f"{path} must be one data set, got the split {name} ({split}) and {file.name}: name one")
    return splits


def check_apart(train: Dataset, val: Dataset) -> None:
    """Raise a ValueError if images to train on and to evaluate on share a file that exists."""
    files = {record.file for record in train.records}
    shared = next((record.file for record in val.records if record.file in files and record.file.exists()), None)
    if shared is not None:
        raise ValueError(f"train and val must have images of their own (--images), got {shared} in both")


def _read(path: Path, format: str, images: Path | None, attribute: str | None, split: str) -> Dataset:
    """Read one data set, or a split of a data.yaml."""
    if format not in ("auto", *FORMATS):
        raise ValueError(f"format must be one of auto, {', '.join(FORMATS)}, got {format!r}")
    if images is not None and not images.is_dir():
        raise ValueError(f"images (--images) must be a folder, got {images}")
    if format == "yolo" or (format == "auto" and path.suffix.lower() in YAML):
        if attribute is not None:
            raise ValueError(f"attribute must be None for the format yolo, which has none, got {attribute!r}")
        return read_yolo(path, split, images)
    path = find_annotations(path)
    loaded: dict[str, dict[Path, Any]] = {}
    problems: list[Problem] = []
    if format == "masks" and not is_masks(path):
        raise ValueError(f"{path} must be a folder of mask images, with SegmentationObject in it")
    if format == "auto" and is_masks(path):
        format = "masks"
    if format != "masks":
        loaded, problems = _load_files(path)
        format = _choose_format(path, loaded) if format == "auto" else format
    if attribute is not None and format != "via":
        raise ValueError(f"attribute must not be given for the format {format}, which has none, got {attribute!r}")
    if format == "masks":
        return read_masks(path, images)
    contents = loaded.get(format)
    if not contents:
        raise ValueError(f"{path} must be annotations of the format {format}, got none")
    if format == "labelme":
        dataset = read_labelme(contents, images)
    elif len(contents) == 1:
        ((file, content),) = contents.items()
        dataset = read_coco(content, file, images) if format == "coco" else read_via(content, file, images, attribute)
    else:
        names = ", ".join(file.name for file in contents)
        raise ValueError(f"{path} must hold one file of the format {format}, got {names}: name one")
    return dataset._replace(problems=problems + dataset.problems)


def _choose_format(path: Path, contents: Mapping[str, Mapping[Path, Any]]) -> str:
    """The only format of a folder or file."""
    if not contents:
        raise ValueError(f"{path} must be annotations of {', '.join(FORMATS)}, got none of them")
    if len(contents) > 1:
        listed = ", ".join(
            f"{name} ({next(iter(files)).name}{', ...' if len(files) > 1 else ''})" for name, files in contents.items()
        )
        raise ValueError(f"{path} must hold files of one format, or the format be given (--format), got {listed}")
    return next(iter(contents))


def _load_files(path: Path) -> tuple[dict[str, dict[Path, Any]], list[Problem]]:
    """Contents of a JSON file, or of those in a folder, by format and file; and those that are no JSON."""
    files = find_json(path) if path.is_dir() else [path]
    if not files and is_semantic(path):
        got = f"images of classes in {CLASSES} alone, which do not tell objects of one class apart"
        raise ValueError(f"{path} must have images of objects in {OBJECTS}, got {got}")
    if not files:
        labels = any(looks_like_labels(file) for file in sorted(path.glob("*.txt"))[:5])
        hint = ", but labels of YOLO's, which are read by their data.yaml" if labels else ""
        raise ValueError(f"{path} must hold JSON files, mask images or a data.yaml, got none{hint}")
    contents: dict[str, dict[Path, Any]] = {}
    problems = []
    for file in files:
        try:
            content = load_json(file)
        except ValueError as error:
            if not path.is_dir():
                raise
            problems.append(Problem("broken file", file.name, str(error)))
            continue
        for name, fits in (("coco", is_coco), ("labelme", is_labelme), ("via", is_via)):
            if fits(content):
                contents.setdefault(name, {})[file] = drop_image_data(content, file) if name == "labelme" else content
                break
    return contents, problems


def write_dataset(
    dataset: Dataset | Mapping[str, Dataset],
    path: str | Path,
    format: str,
    *,
    force: bool = False,
    source: str | Path | None = None,
) -> list[Problem]:
    """Write annotations to one JSON file (COCO, VIA) or a folder (labelme, masks, YOLO) -> what the format cannot hold.

    Each file is written whole or not at all. Masks and YOLO have copies of the images beside them; for other formats,
    images that are embedded in annotations become files beside a labelme file, or in ``images``.

    Args:
        dataset: what is written; for YOLO, also several splits by name: "train", "val", "test".
        path: of the file or folder.
        format: one of FORMATS.
        force: replace files that are there.
        source: what the data set was read from, whose files are never replaced; neither are its images.

    Raises:
        FileExistsError: a file is there already.
        ValueError: format is not one of FORMATS, or a file to be written is one that was read; or there are several
            splits, and the format holds one; or no classes, for YOLO.
        OSError: a file cannot be written.
    """
    path = Path(path)
    if format not in FORMATS:
        raise ValueError(f"format must be one of {', '.join(FORMATS)}, got {format!r}")
    splits = {"train": dataset} if isinstance(dataset, Dataset) else dict(dataset)
    if not isinstance(dataset, Dataset):
        if format != "yolo" and len(splits) != 1:
            raise ValueError(f"dataset must be one split for the format {format}, got {', '.join(splits)}")
        dataset = next(iter(splits.values()))
    if format == "yolo" and not any(each.categories for each in splits.values()):
        raise ValueError("dataset must have classes for the format yolo, got none")
    inputs = [] if source is None else _list_inputs(Path(source))
    inputs += [record.file for each in splits.values() for record in each.records if record.embedded is None]
    copies: list[tuple[Record, Path]] = []
    if format in ("coco", "via", "labelme"):
        dataset, copies = place_embedded(dataset, path if format == "labelme" else path.parent / "images")
    outputs = list_outputs(splits, path) if format == "yolo" else _list_outputs(dataset, path, format)
    check_free([*outputs, *(copy for _, copy in copies)], force, inputs)
    problems = copy_embedded(copies)
    if format == "yolo":
        lost = [problem for each in splits.values() for problem in describe_lost(each.records)]
        return [*write_yolo(splits, path), *lost]
    if format == "coco":
        write_coco(dataset, path)
        return [*problems, *describe_lost_pairs(dataset.skeletons)]
    lost = list(describe_lost(dataset.records))
    write = {"via": write_via, "labelme": write_labelme, "masks": write_masks}[format]
    return [*problems, *write(dataset, path), *lost]


def _list_inputs(source: Path) -> list[Path]:
    """The annotation files of a data set, and the folders they are in."""
    read = [source, *(find_annotations(part) for part in (find_splits(source) or {"": source}).values())]
    for folder in [find_root(part) for part in read if part.is_dir() or is_masks(part)]:
        read += [*find_json(folder), *(file for name in INPUTS for file in folder.glob(name))]
    for file in find_yaml(source):
        with contextlib.suppress(ImportError, ValueError):  # of something else
            read += list_files(file)
    return read


def _list_outputs(dataset: Dataset, path: Path, format: str) -> list[Path]:
    """The files that :func:`write_dataset` writes, but for copies of images where they are themselves."""
    if format in ("coco", "via"):
        return [path]
    names = name_records(dataset.records)
    if format == "labelme":
        return [path / f"{name}.json" for name in names]
    outputs = [path / LABELS, *(path / folder / f"{name}.png" for folder in (OBJECTS, CLASSES) for name in names)]
    for name, record in zip(names, dataset.records, strict=True):
        copy = path / IMAGES / f"{name}{record.file.suffix}"
        outputs += [copy] if copy.resolve() != record.file.resolve() else []
    return outputs


def load_json(file: Path) -> Any:
    """The content of a JSON file.

    Raises:
        ValueError: the file is not valid JSON.
        OSError: the file cannot be read.
    """
    try:
        return json.loads(file.read_bytes())
    except ValueError as error:
        raise ValueError(f"{file} must be JSON, got a broken file: {error}") from error
    except RecursionError as error:
        raise ValueError(f"{file} must be JSON of few levels, got too many") from error
