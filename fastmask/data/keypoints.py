"""Keypoints in COCO's annotation files: https://cocodataset.org/#format-data, section 2."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from fastmask.data.parse import parse_id, parse_identity, parse_keypoints, parse_text, shorten, to_number
from fastmask.data.records import Dataset, Instance, Keypoints, Problem, Record
from fastmask.skeletons import PERSON, Pair, Skeleton


def read_skeleton(category: Mapping[str, Any]) -> tuple[Skeleton | None, list[str]]:
    """The skeleton of a category, None without names of keypoints; and what of it cannot be read."""
    values, limbs = category.get("keypoints"), category.get("skeleton")
    if values in (None, []):
        return None, []
    names = [parse_text(value) for value in values] if isinstance(values, list) else []
    known = [name for name in names if name is not None]
    if not known or len(set(known)) < len(names):
        return None, [f"its keypoints must be a list of names, each once, got {shorten(values)}"]
    skeleton = Skeleton(len(known), tuple(known))
    try:
        return skeleton._replace(limbs=_read_limbs(limbs, len(known))), []
    except ValueError as error:
        return skeleton, [str(error)]


def _read_limbs(limbs: Any, number: int) -> tuple[Pair, ...]:
    """Pairs of indices from 0; COCO's are from 1."""
    rule = f"its skeleton must be pairs of numbers from 1 to {number}, got"
    if not isinstance(limbs, list | None):
        raise ValueError(f"{rule} {shorten(limbs)}")
    pairs = []
    for limb in limbs or []:
        ends = [parse_id(end) for end in limb] if isinstance(limb, list) else []
        first, second = ends if len(ends) == 2 else (None, None)
        if first is None or second is None or not (1 <= first <= number and 1 <= second <= number):
            raise ValueError(f"{rule} {shorten(limb)}")
        pairs.append((first - 1, second - 1))
    return tuple(pairs)


def read_keypoints(annotation: Mapping[str, Any], category: str, skeletons: dict[str, Skeleton]) -> Keypoints | None:
    """The keypoints of an annotation; None without any. The first ones of a category without names give their number.

    Raises:
        ValueError: they are broken, or of another number than the category's.
    """
    values = annotation.get("keypoints")
    if values is None or (isinstance(values, list) and not values):
        return None
    keypoints = parse_keypoints(values)
    skeleton = skeletons.setdefault(category, Skeleton(len(keypoints)))
    if len(keypoints) != skeleton.number:
        raise ValueError(f"keypoints must be {skeleton.number}, as its category has, got {len(keypoints)}")
    return keypoints


def check_number(annotation: Mapping[str, Any], keypoints: Keypoints) -> None:
    """Raise a ValueError if num_keypoints is given, and is not the number of annotated keypoints."""
    given, number = annotation.get("num_keypoints"), int((keypoints[:, 2] > 0).sum())
    if given is not None and parse_identity(given) != number:
        raise ValueError(f"num_keypoints must be {number}, as many have a visibility above 0, got {shorten(given)}")


def describe_unnamed(skeletons: Mapping[str, Skeleton], where: str) -> Iterator[str]:
    """Sentences about categories whose keypoints have no names, so that their sides are not known or are taken."""
    for name, skeleton in skeletons.items():
        if not skeleton.names and skeleton.pairs is None:
            taken = "they are taken for COCO's" if skeleton.number == PERSON.number else "mirrored, they stay in order"
            yield f"{where}: the {skeleton.number} keypoints of {name} have no names: {taken}"


def write_keypoints(instance: Instance, skeletons: Mapping[str, Skeleton]) -> dict[str, Any]:
    """COCO's entries of an instance; zeros where its category has keypoints and it has none, as COCO's own files."""
    skeleton = skeletons.get(instance.category)
    if instance.keypoints is None and skeleton is None:
        return {}
    keypoints = np.zeros((skeleton.number, 3)) if instance.keypoints is None and skeleton else instance.keypoints
    rows = ((to_number(x), to_number(y), int(v)) for x, y, v in np.asarray(keypoints).tolist())
    return {"keypoints": [value for row in rows for value in row], "num_keypoints": instance.count_keypoints()}


def write_skeleton(skeleton: Skeleton | None) -> dict[str, Any]:
    """COCO's entries of a category."""
    if skeleton is None or not skeleton.names:
        return {}
    return {"keypoints": list(skeleton.names), "skeleton": [[a + 1, b + 1] for a, b in skeleton.limbs]}


def describe_lost(records: Iterable[Record]) -> Iterator[Problem]:
    """The keypoints that formats without any cannot hold, counted by image."""
    for record in records:
        lost = sum(instance.keypoints is not None and not instance.crowd for instance in record.instances)
        if lost:
            yield Problem("cannot be written", str(record.file), f"the keypoints of {lost} objects")


def describe_lost_pairs(skeletons: Mapping[str, Skeleton]) -> Iterator[Problem]:
    """What COCO's files cannot hold: pairs that differ from what the names say, and limbs without names."""
    for name, skeleton in skeletons.items():
        named = skeleton._replace(pairs=None).find_pairs()
        if skeleton.pairs is not None and set(map(frozenset, skeleton.pairs)) != set(map(frozenset, named)):
            yield Problem("cannot be written", f"the category {name}", "its pairs of keypoints, as names give others")
        if skeleton.limbs and not skeleton.names:
            yield Problem("cannot be written", f"the category {name}", "its limbs, as its keypoints have no names")


def count_points(dataset: Dataset) -> int | None:
    """K of all categories that have keypoints; None without any.

    Raises:
        ValueError: they have several.
    """
    numbers = {name: skeleton.number for name, skeleton in dataset.skeletons.items()}
    if len(set(numbers.values())) > 1:
        given = ", ".join(f"{name} {number}" for name, number in numbers.items())
        raise ValueError(f"dataset must have one number of keypoints in all categories, got {given}")
    return next(iter(numbers.values()), None)
