"""Which image and which category of a data set the detections of a file are of."""

from collections.abc import Mapping, Sequence
from typing import Any

from fastmask.checks import ArgumentError
from fastmask.data.parse import join_few
from fastmask.data.records import Record, assign_labels


def find_images(results: Sequence[Any], records: Sequence[Record], ids: Sequence[int]) -> dict[str, int]:
    """The image ids of the file names in results; empty where results have none, and their image ids are what counts.

    A name is of the image whose path ends as the name does, with most folders in common. ``fastmask predict`` numbers
    images in its own way, and names their files.

    Args:
        results: in COCO's results format.
        records, ids: images of the data set, and their ids.

    Raises:
        ValueError: some results have no file_name, or one that is of no image, of several, or of another name's image.
    """
    given = [result.get("file_name") if isinstance(result, Mapping) else None for result in results]
    names = dict.fromkeys(name for name in given if name is not None)
    if not names:
        return {}
    if None in given:
        raise ArgumentError(f"results must all have a file_name, or none, got none in results[{given.index(None)}]")
    images: dict[str, list[tuple[tuple[str, ...], int]]] = {}
    for record, image_id in zip(records, ids, strict=True):
        parts = split_path(str(record.file))
        images.setdefault(parts[-1], []).append((parts, image_id))
    found: dict[str, int] = {}
    name_of: dict[int, str] = {}
    for name in names:
        parts = split_path(str(name))
        candidates = images.get(parts[-1], [])
        common = [count_common(parts, other) for other, _ in candidates]
        best = [image_id for (_, image_id), number in zip(candidates, common, strict=True) if number == max(common)]
        if len(best) != 1:
            where = f"results[{given.index(name)}] must have the file_name of one of the {len(ids)} images"
            raise ArgumentError(f"{where}, got {name!r}, which is of {len(best) or 'none'}")
        if best[0] in name_of:
            raise ArgumentError(
                f"results must name each image once, got {name_of[best[0]]!r} and {name!r} of one image"
            )
        found[name], name_of[best[0]] = best[0], name
    return found


def split_path(name: str) -> tuple[str, ...]:
    """Folders and name of a path, of whatever system."""
    return tuple(part for part in name.replace("\\", "/").split("/") if part not in ("", ".")) or ("",)


def count_common(first: Sequence[str], second: Sequence[str]) -> int:
    """Number of parts that two paths have in common at their ends."""
    number = 0
    for mine, other in zip(reversed(first), reversed(second), strict=False):
        if mine != other:
            break
        number += 1
    return number


def map_labels(names: Sequence[str] | None, categories: Mapping[str, int]) -> dict[int, int]:
    """Category ids of the data set by the model's labels, matched by name if ``names`` are given.

    Raises:
        ValueError: no name is a category's.
    """
    if names is None:
        return {label: categories[name] for name, label in assign_labels(categories).items()}
    labels = {label: categories[name] for label, name in enumerate(names) if label > 0 and name in categories}
    if not labels:
        known, wanted = join_few(list(names)[1:], 5), join_few(categories, 5)
        raise ArgumentError(f"names must have one of the dataset's categories ({wanted}), got {known}")
    return labels


def rename_classes(names: Sequence[str], pairs: Mapping[str, str], categories: Mapping[str, int]) -> list[str]:
    """Names of a model's labels, some of them replaced by the data set's.

    Args:
        names: by label.
        pairs: the data set's name by the model's.
        categories: of the data set.

    Raises:
        ValueError: a pair names a class that the model or the data set does not have, or two give one name.
    """
    for mine, other in pairs.items():
        for name, known, whose in ((mine, names[1:], "model"), (other, list(categories), "data set")):
            if name not in known:
                raise ArgumentError(f"classes must name classes of the {whose} ({join_few(known, 5)}), got {name!r}")
    renamed = [names[0], *(pairs.get(name, name) for name in names[1:])]
    for other in pairs.values():
        if renamed.count(other) > 1:
            raise ArgumentError(f"classes must give each class of the data set once, got {other!r} for several")
    return renamed
