"""What is wrong with annotated images, beyond what their format already told."""

import collections
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from PIL import Image

from fastmask.data.records import Dataset, Object, Polygon, Problem, Record

THREADS = 4
OUTSIDE = 1.0  # pixels that a polygon or box may reach beyond the image: tools count edges in their own ways


def validate_dataset(dataset: Dataset, progress: bool = False) -> list[Problem]:
    """All problems, those of reading first; every image is decoded.

    Kinds: "missing image", "broken image", "wrong size", "EXIF trap" (annotated as the image is stored, not as
    it is shown), "empty box", "inverted box", "outside", "self-crossing", "mask of another size", "twice".
    """
    from tqdm import tqdm

    found = list(dataset.problems)
    found += _twice(str(record.file) for record in dataset.records)
    with ThreadPoolExecutor(THREADS) as threads:
        answers = threads.map(_examined, dataset.records)
        for problems in tqdm(answers, total=len(dataset.records), unit="img", disable=not progress):
            found += problems
    return found


def _twice(names: Iterable[str]) -> Iterator[Problem]:
    for name, number in collections.Counter(names).items():
        if number > 1:
            yield Problem("twice", name, f"the image is there {number} times")


def _examined(record: Record) -> list[Problem]:
    """One image's."""
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
        problems.append(Problem(*_other_size(record, size)))
    for number, one in enumerate(record.objects):
        for kind, text in _of_object(one, size):
            problems.append(Problem(kind, f"{where}: object {number} ({one.category})", text))
    boxes = collections.Counter((one.category, one.bounds()) for one in record.objects)
    for (category, _), number in boxes.items():
        if number > 1:
            problems.append(Problem("twice", where, f"{number} objects {category} have the same box"))
    return problems


def _other_size(record: Record, size: tuple[int, int]) -> tuple[str, str, str]:
    text = f"annotated as {record.size}, the image is {size}"
    stored_size = None
    if record.image is None:
        with Image.open(record.file) as stored:
            stored_size = (stored.height, stored.width)
    if record.size == stored_size:
        return "EXIF trap", str(record.file), f"{text}: it is turned by its EXIF, the annotations are not"
    return "wrong size", str(record.file), text


def _of_object(one: Object, size: tuple[int, int]) -> Iterator[tuple[str, str]]:
    """(kind, text) of each of an object's problems."""
    x1, y1, x2, y2 = one.bounds()
    if x2 < x1 or y2 < y1:
        yield "inverted box", f"its box is {(x1, y1, x2, y2)}"
    elif x2 == x1 or y2 == y1:
        yield "empty box", f"its box is {(x1, y1, x2, y2)}"
    corners = [(x1, y1), (x2, y2), *(corner for polygon in one.polygons for corner in polygon.tolist())]
    low, high = np.min(corners, axis=0), np.max(corners, axis=0)
    if (low < -OUTSIDE).any() or high[0] > size[1] + OUTSIDE or high[1] > size[0] + OUTSIDE:
        yield "outside", f"it reaches from {tuple(low.tolist())} to {tuple(high.tolist())} in an image of {size}"
    for polygon in one.polygons:
        crossing = first_crossing(polygon)
        if crossing is not None:
            yield "self-crossing", f"sides {crossing[0]} and {crossing[1]} of a polygon cross"
    if one.rle is not None and list(one.rle["size"]) != list(size):
        yield "mask of another size", f"its mask is {list(one.rle['size'])}, the image {list(size)}"


def first_crossing(polygon: Polygon) -> tuple[int, int] | None:
    """The first two sides of a polygon that cross inside both; those that only touch do not."""
    starts = polygon[np.any(polygon != np.roll(polygon, 1, axis=0), axis=1)]  # tools repeat the first corner
    ends = np.roll(starts, -1, axis=0)

    def side(a: Polygon, b: Polygon, c: Polygon) -> Polygon:
        """Of the line from a to b that c is on."""
        along, to = b - a, c - a
        out: Polygon = np.sign(along[..., 0] * to[..., 1] - along[..., 1] * to[..., 0])
        return out

    for i in range(len(starts) - 1):  # row by row: linear memory
        a, b, c, d = starts[i], ends[i], starts[i + 1 :], ends[i + 1 :]
        crossing = (side(a, b, c) * side(a, b, d) < 0) & (side(c, d, a) * side(c, d, b) < 0)
        if crossing.any():
            return i, i + 1 + int(crossing.argmax())
    return None
