"""Copies of a data set's images, beside annotations of formats that have their images with them."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from fastmask.data.records import Dataset, Problem, Record, name_records
from fastmask.files import replace_file
from fastmask.image_io import SUFFIXES


def check_image(record: Record) -> Problem | None:
    """The problem of an image: it is missing or does not decode, and is not copied; or it has another size."""
    if record.image is not None:
        return None
    try:
        size = record.read_size()
        if record.embedded is None:
            with Image.open(record.file) as image:
                image.load()
        else:
            record.load()
    except FileNotFoundError:
        return Problem("missing image", str(record.file), "there is no such file")
    except Exception as error:  # Pillow's readers raise many types
        return Problem("broken image", str(record.file), str(error))
    text = f"annotated as {record.size}, the image is {size}"
    return Problem("wrong size", str(record.file), text) if size != record.size else None


def name_copies(records: Sequence[Record], folder: Path) -> list[Path]:
    """The copy of each record's image in a folder, see :func:`fastmask.data.records.name_records`."""
    endings = [record.file.suffix if record.file.suffix.lower() in SUFFIXES else ".png" for record in records]
    return [folder / f"{name}{ending}" for name, ending in zip(name_records(records), endings, strict=True)]


def is_own_copy(record: Record, copy: Path) -> bool:
    """Whether the image's file is the copy itself."""
    return record.image is None and record.embedded is None and copy.resolve() == record.file.resolve()


def copy_image(record: Record, copy: Path) -> None:
    """Write an image's file, byte by byte, or the image that has none; unless it is there as the copy."""
    if is_own_copy(record, copy):
        return
    with replace_file(copy) as draft:
        content = record.read_content()
        if record.image is not None:
            record.image.save(draft)
        elif content is not None:
            draft.write_bytes(content)
        else:
            shutil.copyfile(record.file, draft)


def copy_embedded(copies: Sequence[tuple[Record, Path]]) -> list[Problem]:
    """Write embedded images to files -> those that do not decode, which are not written."""
    problems = []
    for record, copy in copies:
        fault = check_image(record)
        if fault is not None and fault.kind != "wrong size":
            problems.append(fault)
            continue
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy_image(record, copy)
    return problems


def place_embedded(dataset: Dataset, folder: Path) -> tuple[Dataset, list[tuple[Record, Path]]]:
    """The data set with a file in a folder for each embedded image, and what is to be copied there."""
    copies = name_copies(dataset.records, folder)
    pairs = [(record, copy) for record, copy in zip(dataset.records, copies, strict=True) if record.embedded]
    records = [
        record._replace(file=copy, embedded=None) if record.embedded else record
        for record, copy in zip(dataset.records, copies, strict=True)
    ]
    return (dataset._replace(records=records), pairs) if pairs else (dataset, [])
