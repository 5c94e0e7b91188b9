"""Other names for the classes of a data set."""

from collections.abc import Mapping

from fastmask.data.records import Dataset
from fastmask.skeletons import Skeleton


def rename_classes(dataset: Dataset, names: Mapping[str, str]) -> Dataset:
    """The data set with other names of classes; those of one name are one class then, with the first one's id.

    Args:
        dataset: annotated images.
        names: new names by old ones; classes that are not in it keep theirs.

    Raises:
        ValueError: there is no class of an old name, a new one is empty, or two of one name differ in keypoints.
    """
    for old, new in names.items():
        if old not in dataset.categories:
            raise ValueError(f"names must be of classes ({', '.join(dataset.categories)}), got {old!r}")
        if not new.strip():
            raise ValueError(f"names must not be empty, got {new!r} for {old}")
    categories: dict[str, int] = {}
    skeletons: dict[str, Skeleton] = {}
    for old, number in dataset.categories.items():
        new, skeleton = names.get(old, old), dataset.skeletons.get(old)
        if new in categories and skeletons.get(new) != skeleton:
            raise ValueError(f"classes of one name must have the same keypoints, got other ones in {old} ({new})")
        categories.setdefault(new, number)
        if skeleton is not None:
            skeletons[new] = skeleton
    records = [
        record._replace(
            instances=tuple(
                each._replace(category=names.get(each.category, each.category)) for each in record.instances
            )
        )
        for record in dataset.records
    ]
    return dataset._replace(records=records, categories=categories, skeletons=skeletons)
