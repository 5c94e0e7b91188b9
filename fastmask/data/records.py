"""One record an image, whatever its annotations came from."""

import abc
import math
from collections.abc import Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import Any, NamedTuple, overload

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fastmask.cocoapi import mask as coco
from fastmask.image_io import read_image, read_image_size

FARTHEST = 2**18  # pixels that a corner may have as its x or y
Polygon = NDArray[np.float64]  # [n, 2] (x, y) in pixels; the corner of the first pixel is (0, 0)


class Object(NamedTuple):
    """What is annotated: an object, as polygons, or as COCO's RLE, or as a box alone."""

    category: str
    polygons: tuple[Polygon, ...] = ()
    rle: dict[str, Any] | None = None  # {"size": [h, w], "counts": bytes or str or numbers}
    box: tuple[float, float, float, float] | None = None  # (x1, y1, x2, y2); None: the polygons' own
    crowd: bool = False  # many objects at once, which evaluation leaves out
    id: int | None = None
    area: float | None = None  # in pixels, as COCO's files say it; None: to be measured

    def bounds(self) -> tuple[float, float, float, float]:
        """The box (x1, y1, x2, y2): as annotated, else around the polygons or the mask."""
        if self.box is not None:
            return self.box
        if self.polygons:
            corners = np.concatenate(self.polygons)
            x1, y1, x2, y2 = (float(side) for side in (*corners.min(0), *corners.max(0)))
            return x1, y1, x2, y2
        if self.rle is not None:
            x, y, width, height = (float(side) for side in coco.toBbox(compressed(self.rle)))
            return x, y, x + width, y + height
        return 0.0, 0.0, 0.0, 0.0

    def encoded(self, height: int, width: int) -> dict[str, Any]:
        """Its mask as COCO's RLE, painted by pycocotools' rule; a box alone is painted whole."""
        if self.rle is not None:
            return compressed(self.rle)
        return encoded(self.polygons or (box_polygon(*self.bounds()),), height, width)

    def mask(self, height: int, width: int) -> NDArray[np.bool_]:
        """:meth:`encoded` as bool [height, width]."""
        return np.asarray(coco.decode(self.encoded(height, width)), bool)


class Record(NamedTuple):
    """An image and what is on it."""

    file: Path
    size: tuple[int, int] | None  # (height, width) as the annotations say; None where they do not
    objects: tuple[Object, ...]
    id: int | None = None
    image: Image.Image | None = None  # RGB, where there is no file

    def load(self) -> Image.Image:
        """The image, RGB and upright; errors as of :func:`fastmask.image_io.read_image`."""
        return read_image(self.file) if self.image is None else self.image


class LazyRecords(Sequence[Record]):
    """Records that are made when asked for: none of them is looked at before it is needed."""

    @abc.abstractmethod
    def make(self, index: int) -> Record:
        """The record of an index from 0."""

    @overload
    def __getitem__(self, index: int) -> Record: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Record]: ...
    def __getitem__(self, index: int | slice) -> Record | Sequence[Record]:
        if isinstance(index, slice):
            return [self.make(i) for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"index must be below {len(self)}, got {index}")
        return self.make(index % len(self))


class Problem(NamedTuple):
    """Something in the annotations that was left out."""

    kind: str
    where: str
    text: str


class Dataset(NamedTuple):
    """Records, the ids of their categories by name, and what could not be read."""

    records: Sequence[Record]
    categories: dict[str, int]
    problems: list[Problem]


def compressed(rle: dict[str, Any]) -> dict[str, Any]:
    """COCO's RLE with its runs as bytes, from numbers or text."""
    if isinstance(rle["counts"], list):
        found: dict[str, Any] = coco.frPyObjects(rle, *rle["size"])
        return found
    counts = rle["counts"]
    return {"size": rle["size"], "counts": counts.encode("ascii") if isinstance(counts, str) else counts}


def encoded(polygons: Sequence[Polygon], height: int, width: int) -> dict[str, Any]:
    """All of them as one RLE; what is outside of the image is cut off."""
    parts = coco.frPyObjects([polygon.ravel().tolist() for polygon in polygons], height, width)
    found: dict[str, Any] = coco.merge(parts)
    return found


def check_rle(rle: Any) -> None:
    """Raise a ValueError unless it is COCO's RLE of a mask of its size; pycocotools itself does not look."""
    size, counts = rle.get("size"), rle.get("counts")
    if not isinstance(size, list) or len(size) != 2 or not all(isinstance(side, int) and side > 0 for side in size):
        raise ValueError(f"an RLE's size must be [height, width], got {size!r}")
    runs = decode_counts(counts) if isinstance(counts, str | bytes) else counts
    if not isinstance(runs, list) or not all(isinstance(run, int) and run >= 0 for run in runs):
        raise ValueError(f"an RLE's counts must be runs, got {str(counts)[:40]!r}")
    if sum(runs) != size[0] * size[1]:
        raise ValueError(f"an RLE's runs must have {size[0]} x {size[1]} pixels in all, got {sum(runs)}")


def decode_counts(text: str | bytes) -> list[int]:
    """The runs of COCO's compressed RLE; see ``fastmask.kernels.reference.encode_mask``."""
    data = text.encode("latin-1", "replace") if isinstance(text, str) else text
    bits = np.frombuffer(data, np.uint8).astype(np.int64) - 48
    ends = np.flatnonzero(bits & 0x20 == 0)  # of numbers, five bits a character; what is behind the last is torn
    bits = bits[: ends[-1] + 1] if len(ends) else bits[:0]
    if not len(ends):
        return []
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    shifts = 5 * np.minimum(np.arange(len(bits)) - np.repeat(starts, lengths), 12)
    values = np.add.reduceat((bits & 0x1F) << shifts, starts)
    values -= np.where(bits[ends] & 0x10, np.int64(1) << 5 * np.minimum(lengths, 12), 0)
    runs = values.copy()  # each is told by how much it differs from the one before the last, from the fourth on
    runs[1::2] = np.cumsum(values[1::2])
    runs[2::2] = np.cumsum(values[2::2])
    found: list[int] = runs.tolist()
    return found


def polygon_of(points: Any) -> Polygon:
    """[n, 2] from pairs, or from x, y, x, y, ...; ValueError unless there are three finite points."""
    try:
        polygon = np.asarray(points, np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"a polygon must be numbers, got {str(points)[:40]}") from error
    if polygon.size % 2 or (polygon.ndim != 1 and polygon.shape[1:] != (2,)):
        raise ValueError(f"a polygon must be pairs of x and y, got {polygon.size} numbers")
    polygon = polygon.reshape(-1, 2)
    if len(polygon) < 3:
        raise ValueError(f"a polygon must have three points, got {len(polygon)}")
    if not np.isfinite(polygon).all():
        raise ValueError("a polygon must be finite, got NaN or infinity")
    if np.abs(polygon).max() > FARTHEST:  # pycocotools walks along all of it
        raise ValueError(f"a polygon must be within {FARTHEST} pixels, got {np.abs(polygon).max():g}")
    return polygon


def box_polygon(x1: float, y1: float, x2: float, y2: float) -> Polygon:
    return np.array([[x1, y1], [x2, y1], [x2, y2], [x1, y2]], np.float64)


def ellipse_to_polygon(x: float, y: float, radius_x: float, radius_y: float, angle: float = 0.0) -> Polygon:
    """Corners on an ellipse turned by ``angle`` radians, so many that no side leaves it by a tenth of a pixel."""
    largest = max(abs(radius_x), abs(radius_y), 1.0)
    number = max(12, math.ceil(math.pi / math.acos(1 - 0.1 / min(largest, FARTHEST))))
    turn = np.arange(number) * (2 * math.pi / number)
    along, across = radius_x * np.cos(turn), radius_y * np.sin(turn)
    points = [
        x + along * math.cos(angle) - across * math.sin(angle),
        y + along * math.sin(angle) + across * math.cos(angle),
    ]
    return np.stack(points, axis=1)


def size_of(height: Any, width: Any) -> tuple[int, int] | None:
    """(height, width) where both are whole and there are pixels."""
    return (height, width) if all(isinstance(side, int) and side > 0 for side in (height, width)) else None


def numbered(names: Sequence[str]) -> dict[str, int]:
    """Ids from 1, in the order in which names first come."""
    return {name: number for number, name in enumerate(dict.fromkeys(names), 1)}


def numbers(values: Any, *names: str) -> list[float]:
    """Finite numbers of a JSON object by name; ValueError names the one that is none."""
    found = []
    for name in names:
        value = values.get(name)
        try:
            number = math.nan if isinstance(value, bool) or not isinstance(value, Real) else float(value)
        except OverflowError:
            number = math.inf
        if not math.isfinite(number):
            raise ValueError(f"{name} must be a finite number, got {repr(value)[:40]}")
        found.append(number)
    return found


def labels_of(categories: Mapping[str, int]) -> dict[str, int]:
    """The label that a model has for each category: its id, as torchvision does it.

    If an id is below 1, which is the background's, or above 9999, they are numbered from 1 by their order instead.
    """
    if all(1 <= number <= 9999 for number in categories.values()):
        return dict(categories)
    return {name: label for label, name in enumerate(categories, 1)}


def add_sizes(dataset: Dataset) -> Dataset:
    """With the size of each image that the annotations do not say, from its file; a problem where there is none."""
    records, problems = [], list(dataset.problems)
    for record in dataset.records:
        if record.size is None and record.image is not None:
            record = record._replace(size=(record.image.height, record.image.width))
        if record.size is None:
            try:
                record = record._replace(size=read_image_size(record.file))
            except (OSError, ValueError) as error:
                problems.append(Problem("missing image", str(record.file), str(error)))
        records.append(record)
    return dataset._replace(records=records, problems=problems)
