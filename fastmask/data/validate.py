"""Validation of annotated images: problems that reading their format does not find."""

import collections
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from PIL import Image

from fastmask.data.crossings import find_crossing
from fastmask.data.records import Dataset, Instance, Problem, Record
from fastmask.sizes import check_pixels_left, compute_resized_size

THREADS = 4
MAX_SIDE = 1333  # pixels of the longer side that torchvision's models resize images to, at most
TOLERANCE = 1.0  # pixels that a polygon or box may extend beyond the image: tools place pixel edges differently


def validate_dataset(dataset: Dataset, progress: bool = False) -> list[Problem]:
    """All problems of a data set, those found on reading first; decodes every image.

    Kinds: "missing image", "broken image", "wrong size", "EXIF orientation" (which the annotations ignore),
    "too long", "empty box", "inverted box", "outside", "self-crossing", "mask of another size", "duplicate", "keypoints
    outside", "one-sided keypoints" (a left one without a right one, or the other way round: mirroring swaps none).

    Args:
        dataset: what to validate.
        progress: show a progress bar.
    """
    from tqdm import tqdm

    problems = [*dataset.problems, *_find_duplicates(str(record.file) for record in dataset.records)]
    for category, skeleton in dataset.skeletons.items():
        if one_sided := skeleton.find_one_sided():
            text = f"without the other side: {', '.join(one_sided)}"
            problems.append(Problem("one-sided keypoints", f"the category {category}", text))
    with ThreadPoolExecutor(THREADS) as threads:
        results = threads.map(_validate_record, dataset.records)
        for found in tqdm(results, total=len(dataset.records), unit="img", disable=not progress):
            problems += found
    return problems


def _find_duplicates(names: Iterable[str]) -> Iterator[Problem]:
    for name, number in collections.Counter(names).items():
        if number > 1:
            yield Problem("duplicate", name, f"the image is listed {number} times")


def _validate_record(record: Record) -> list[Problem]:
    """The problems of one image."""
    where = str(record.file)
    try:
        image = record.load()
    except FileNotFoundError:
        return [Problem("missing image", where, "there is no such file")]
    except (OSError, ValueError) as error:
        return [Problem("broken image", where, str(error))]
    size = (image.height, image.width)
    problems = []
    if record.size not in (None, size):
        problems.append(Problem(*_describe_size(record, size)))
    try:
        check_pixels_left(size, compute_resized_size(size, MAX_SIDE, MAX_SIDE))
    except ValueError as error:
        problems.append(Problem("too long", where, str(error)))
    for number, instance in enumerate(record.instances):
        for kind, text in _validate_instance(instance, size):
            problems.append(Problem(kind, f"{where}: object {number} ({instance.category})", text))
    boxes = collections.Counter((instance.category, instance.bounds()) for instance in record.instances)
    for (category, _), number in boxes.items():
        if number > 1:
            problems.append(Problem("duplicate", where, f"{number} objects {category} have the same box"))
    return problems


def _describe_size(record: Record, size: tuple[int, int]) -> tuple[str, str, str]:
    """(kind, where, text) of a size other than the annotated one."""
    text = f"annotated as {record.size}, the image is {size}"
    stored_size = None
    if record.image is None and record.embedded is None:
        with Image.open(record.file) as stored:
            stored_size = (stored.height, stored.width)
    if record.size == stored_size:
        return "EXIF orientation", str(record.file), f"{text}: its EXIF orientation transposes it, not the annotations"
    return "wrong size", str(record.file), text


def _validate_instance(instance: Instance, size: tuple[int, int]) -> Iterator[tuple[str, str]]:
    """(kind, text) of each problem of an instance."""
    x1, y1, x2, y2 = instance.bounds()
    if x2 < x1 or y2 < y1:
        yield "inverted box", f"its box is {(x1, y1, x2, y2)}"
    elif x2 == x1 or y2 == y1:
        yield "empty box", f"its box is {(x1, y1, x2, y2)}"
    corners = [(x1, y1), (x2, y2), *(corner for polygon in instance.polygons for corner in polygon.tolist())]
    low, high = np.min(corners, axis=0), np.max(corners, axis=0)
    if (low < -TOLERANCE).any() or high[0] > size[1] + TOLERANCE or high[1] > size[0] + TOLERANCE:
        yield "outside", f"it reaches from {tuple(low.tolist())} to {tuple(high.tolist())} in an image of {size}"
    for polygon in instance.polygons:
        crossing = find_crossing(polygon)
        if crossing is not None:
            yield "self-crossing", f"sides {crossing[0]} and {crossing[1]} of a polygon cross"
    if instance.rle is not None and list(instance.rle["size"]) != list(size):
        yield "mask of another size", f"its mask is {list(instance.rle['size'])}, the image {list(size)}"
    if instance.keypoints is not None:
        annotated = instance.keypoints[instance.keypoints[:, 2] > 0, :2]
        outside = annotated[((annotated < -TOLERANCE) | (annotated > np.array(size[::-1]) + TOLERANCE)).any(1)]
        if len(outside):
            text = f"{len(outside)} of its keypoints, such as {tuple(outside[0].tolist())}, in an image of {size}"
            yield "keypoints outside", text
