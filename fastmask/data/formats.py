"""Annotation formats: detecting, reading and writing them by name."""

import json
from pathlib import Path
from typing import Any

from fastmask.data.coco import is_coco, read_coco, write_coco
from fastmask.data.labelme import is_labelme, read_labelme, write_labelme
from fastmask.data.masks import CLASSES, IMAGES, LABELS, OBJECTS, is_masks, read_masks, write_masks
from fastmask.data.records import Dataset, Problem, name_records
from fastmask.data.via import is_via, read_via, write_via
from fastmask.files import check_free

FORMATS = ("coco", "via", "labelme", "masks")
MASK_FILES = (LABELS, f"{OBJECTS}/*", f"{CLASSES}/*")


def find_format(path: str | Path) -> str:
    """The format of a file or folder, one of FORMATS, found by its content.

    Raises:
        ValueError: it is of no known format, or not JSON.
        OSError: it cannot be read.
    """
    if is_masks(Path(path)):
        return "masks"
    for file in _find_files(Path(path)):
        try:
            content = load_json(file)
        except ValueError:
            if not Path(path).is_dir():
                raise
            continue  # read_dataset names it
        for name, fits in (("coco", is_coco), ("labelme", is_labelme), ("via", is_via)):
            if fits(content):
                return name
    raise ValueError(f"{path} must be annotations of {', '.join(FORMATS)}, got none of them")


def read_dataset(
    path: str | Path, format: str = "auto", images: str | Path | None = None, attribute: str | None = None
) -> Dataset:
    """Read annotated images; broken annotations are left out and listed in ``problems``.

    Args:
        path: a JSON file; or a folder with one (COCO, VIA), with one per image (labelme), or with mask images.
        format: one of FORMATS, or "auto", which finds it by content.
        images: folder of the images; None: the format's usual ones.
        attribute: VIA's region attribute that holds the class; None: the usual names are tried.

    Raises:
        ValueError: the file is broken, or not of the format.
        OSError: it cannot be read.
    """
    path, images = Path(path), None if images is None else Path(images)
    if format not in ("auto", *FORMATS):
        raise ValueError(f"format must be one of auto, {', '.join(FORMATS)}, got {format!r}")
    chosen = find_format(path) if format == "auto" else format
    if attribute is not None and chosen != "via":
        raise ValueError(f"attribute must be None for the format {chosen}, which has none, got {attribute!r}")
    if chosen == "masks":
        if not is_masks(path):
            raise ValueError(f"{path} must be a folder of mask images, with SegmentationObject in it")
        return read_masks(path, images)
    fits = {"coco": is_coco, "via": is_via, "labelme": is_labelme}[chosen]
    contents: dict[Path, Any] = {}
    problems: list[Problem] = []
    for file in _find_files(path):
        try:
            content = load_json(file)
        except ValueError as error:
            if not path.is_dir():
                raise
            problems.append(Problem("broken file", file.name, str(error)))
            continue
        if fits(content):
            contents[file] = content
    if not contents:
        raise ValueError(f"{path} must be annotations of the format {chosen}, got none")
    if chosen == "labelme":
        dataset = read_labelme(contents, images)
    elif len(contents) == 1:
        ((file, content),) = contents.items()
        dataset = read_coco(content, file, images) if chosen == "coco" else read_via(content, file, images, attribute)
    else:
        names = ", ".join(file.name for file in contents)
        raise ValueError(f"{path} must hold one file of the format {chosen}, got {names}: name one")
    return dataset._replace(problems=problems + dataset.problems)


def write_dataset(
    dataset: Dataset, path: str | Path, format: str, *, force: bool = False, source: str | Path | None = None
) -> list[Problem]:
    """Write annotations to one JSON file (COCO, VIA) or a folder (labelme, masks) -> what the format cannot hold.

    Each file is written whole or not at all.

    Args:
        dataset: what is written.
        path: of the file or folder.
        format: one of FORMATS.
        force: replace files that are there.
        source: what the data set was read from, whose files are never replaced; neither are its images.

    Raises:
        FileExistsError: a file is there already.
        ValueError: format is not one of FORMATS, or a file to be written is one that was read.
        OSError: a file cannot be written.
    """
    path = Path(path)
    if format not in FORMATS:
        raise ValueError(f"format must be one of {', '.join(FORMATS)}, got {format!r}")
    read = [] if source is None else [Path(source)]
    for folder in [part for part in read if part.is_dir()]:
        read += [*folder.glob("*.json"), *(file for name in MASK_FILES for file in folder.glob(name))]
    check_free(_list_outputs(dataset, path, format), force, [*read, *(record.file for record in dataset.records)])
    if format == "coco":
        write_coco(dataset, path)
        return []
    if format == "via":
        return write_via(dataset, path)
    if format == "labelme":
        return write_labelme(dataset, path)
    return write_masks(dataset, path)


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


def _find_files(path: Path) -> list[Path]:
    """The file itself, or the JSON files in a folder, sorted by name."""
    if not path.is_dir():
        return [path]
    files = sorted(file for file in path.iterdir() if file.suffix.lower() == ".json" and file.is_file())
    if not files:
        raise ValueError(f"{path} must hold JSON files, got none")
    return files


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
