"""The training and validation splits of a data set, and the labels of its categories."""

import collections
from pathlib import Path
from typing import NamedTuple

from fastmask.data.formats import read_all
from fastmask.data.layouts import find_splits
from fastmask.data.parse import join_few
from fastmask.data.records import Dataset, assign_labels

UNUSED = "-"  # name of a label without a category


class Splits(NamedTuple):
    """The splits of a data set."""

    train: Dataset
    val: Dataset | None


def read_splits(
    path: Path, attribute: str | None = None, format: str = "auto", images: str | Path | None = None
) -> Splits:
    """Read the splits of a data set from its folder or file.

    Args:
        path: a folder with splits, see :func:`fastmask.data.layouts.find_splits`; or anything else that
            :func:`fastmask.data.read_dataset` reads, which is then the training split.
        attribute, format, images: see :func:`fastmask.data.read_dataset`.

    Raises:
        ValueError: there are no annotations, a file is broken, a val split has no images, or the splits have no
            category in common.
        OSError: a file cannot be read.
    """
    datasets = read_all(path, format, images, attribute, only=("train", "val"))
    if "" in datasets:
        return Splits(datasets[""], None)
    if "train" not in datasets:
        raise ValueError(f"{path} must have a split train, got {', '.join(datasets)}")
    train, val = datasets["train"], datasets.get("val")
    if val is not None and not len(val.records):
        raise ValueError(f"the split val of {path} must have images, got none{describe_first(val)}")
    if val is not None and not val.categories.keys() & train.categories.keys():
        paths = {"train": path, "val": path} | find_splits(path)
        raise ValueError(f"{paths['val']} must have categories of {paths['train']}, got {join_few(val.categories)}")
    return Splits(train, val)


def describe_untrained(train: Dataset, other: Dataset) -> str:
    """Describe the objects of a split whose classes the training split does not name; nothing where it names all."""
    unknown = collections.Counter(
        item.category for record in other.records for item in record.instances if item.category not in train.categories
    )
    if not unknown:
        return ""
    counted = join_few(f"{name} {number}" for name, number in unknown.items())
    return f"objects of classes that are not trained, which all count as missed: {counted}"


def describe_first(dataset: Dataset) -> str:
    """The first problem of a data set, to end a message; nothing where it has none."""
    return "".join(f": {where}: {text}" for _, where, text in dataset.problems[:1])


def label_names(dataset: Dataset) -> list[str]:
    """Category names by label, with "__background__" at 0 and "-" at labels without a category."""
    labels = assign_labels(dataset.categories)
    names = ["__background__", *([UNUSED] * max(labels.values(), default=0))]
    for name, label in labels.items():
        names[label] = name
    return names
