"""The training and validation splits of a data set, in the usual layouts of files."""

from pathlib import Path
from typing import NamedTuple

from fastmask.data.formats import read_dataset
from fastmask.data.records import Dataset, assign_labels

UNUSED = "-"  # name of a label without a category
NAMES = {"train": ("train", "training"), "val": ("val", "valid", "validation", "test")}


class Splits(NamedTuple):
    """The splits of a data set."""

    train: Dataset
    val: Dataset | None


def read_splits(path: Path, attribute: str | None = None) -> Splits:
    """Read the splits of a data set from its folder or file.

    Args:
        path: a folder with ``train`` and ``val`` in it, each of any format; or with COCO's
            ``annotations/instances_train*.json`` and ``instances_val*.json``; or anything that
            :func:`fastmask.data.read_dataset` reads, which is then the training split.
        attribute: see :func:`fastmask.data.read_dataset`.

    Raises:
        ValueError: there are no annotations, a file is broken, or the splits have no category in common.
        OSError: a file cannot be read.
    """
    paths = {split: found for split in NAMES if (found := _find_split(path, split)) is not None}
    if "train" not in paths:
        return Splits(read_dataset(path, attribute=attribute), None)
    train = read_dataset(paths["train"], attribute=attribute)
    if "val" not in paths:
        return Splits(train, None)
    val = read_dataset(paths["val"], attribute=attribute)
    if not val.categories.keys() & train.categories.keys():
        raise ValueError(f"{paths['val']} must have categories of {paths['train']}, got {', '.join(val.categories)}")
    return Splits(train, val)


def _find_split(path: Path, split: str) -> Path | None:
    """The folder or file of a split."""
    for name in NAMES[split]:
        if (path / name).is_dir() and not (path / "annotations").is_dir():
            return path / name
    for name in NAMES[split]:
        files = sorted((path / "annotations").glob(f"instances_{name}*.json"))
        if len(files) > 1:
            raise ValueError(f"{path / 'annotations'} must have one file instances_{name}*.json, got {len(files)}")
        if files:
            return files[0]
    return None


def label_names(dataset: Dataset) -> list[str]:
    """Category names by label, with "__background__" at 0 and "-" at labels without a category."""
    labels = assign_labels(dataset.categories)
    names = ["__background__", *([UNUSED] * max(labels.values(), default=0))]
    for name, label in labels.items():
        names[label] = name
    return names
