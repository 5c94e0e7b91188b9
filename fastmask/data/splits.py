"""Where the parts of a data set are, in the layouts that people have."""

from pathlib import Path
from typing import NamedTuple

from fastmask.data.formats import read_dataset
from fastmask.data.records import Dataset, labels_of

UNUSED = "-"  # the name of a label that is no category's
PARTS = {"train": ("train", "training"), "valid": ("val", "valid", "validation", "test")}


class Splits(NamedTuple):
    """What is trained on, and what is evaluated on, if there is something."""

    train: Dataset
    valid: Dataset | None


def read_splits(path: Path, attribute: str | None = None) -> Splits:
    """A data set from its folder, or from one file.

    Args:
        path: a folder with ``train`` and ``val`` in it (as the balloons have it), each of any format; or COCO's, with
            ``annotations/instances_train*.json`` and ``instances_val*.json``; or anything that
            :func:`fastmask.data.read_dataset` reads, which is then all for training.
        attribute: see :func:`fastmask.data.read_dataset`.

    Raises:
        ValueError: there is nothing of the kind, or a file is broken, or validation has none of training's categories.
        OSError: it cannot be read.
    """
    found = {part: place for part in PARTS if (place := _place(path, part)) is not None}
    if "train" not in found:
        return Splits(read_dataset(path, attribute=attribute), None)
    train = read_dataset(found["train"], attribute=attribute)
    if "valid" not in found:
        return Splits(train, None)
    valid = read_dataset(found["valid"], attribute=attribute)
    if not valid.categories.keys() & train.categories.keys():
        raise ValueError(
            f"{found['valid']} must have categories of {found['train']}, got {', '.join(valid.categories)}"
        )
    return Splits(train, valid)


def _place(path: Path, part: str) -> Path | None:
    """A part's folder or file."""
    for name in PARTS[part]:
        if (path / name).is_dir() and not (path / "annotations").is_dir():
            return path / name
    for name in PARTS[part]:
        files = sorted((path / "annotations").glob(f"instances_{name}*.json"))
        if len(files) > 1:
            raise ValueError(f"{path / 'annotations'} must have one file instances_{name}*.json, got {len(files)}")
        if files:
            return files[0]
    return None


def label_names(dataset: Dataset) -> list[str]:
    """Categories by label, the background's and those that are no category's included."""
    labels = labels_of(dataset.categories)
    names = ["__background__", *([UNUSED] * max(labels.values(), default=0))]
    for name, label in labels.items():
        names[label] = name
    return names
