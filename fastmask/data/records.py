"""Images with their annotations, in one form for all formats."""

import abc
import math
import re
import reprlib
from collections.abc import Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import Any, NamedTuple, overload

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fastmask.cocoapi import mask as coco
from fastmask.image_io import convert_image, read_image, read_image_size

MAX_COORDINATE = 2**18  # pixels, of a polygon's or box's corners
MAX_PERIMETER = 2**22  # pixels, of a polygon: pycocotools takes 40 bytes for each
MAX_PIXELS = 178_956_970  # of an image: Pillow refuses to open larger ones
Polygon = NDArray[np.float64]  # [n, 2] (x, y) in pixels; the corner of the first pixel is (0, 0)


class Instance(NamedTuple):
    """One annotated object: its polygons, or its mask as COCO RLE, or its box alone."""

    category: str
    polygons: tuple[Polygon, ...] = ()
    rle: dict[str, Any] | None = None  # {"size": [h, w], "counts": bytes, str or list of runs}
    box: tuple[float, float, float, float] | None = None  # (x1, y1, x2, y2); None: around polygons or mask
    crowd: bool = False  # a group of objects, COCO's iscrowd; evaluation ignores it
    id: int | None = None
    area: float | None = None  # in pixels, as in COCO's files; None: computed where it is needed

    def has_mask(self) -> bool:
        """Whether polygons or a mask are annotated, and not the box alone."""
        return bool(self.polygons) or self.rle is not None

    def bounds(self) -> tuple[float, float, float, float]:
        """The box (x1, y1, x2, y2): as annotated, else around the polygons or the mask."""
        if self.box is not None:
            return self.box
        if self.polygons:
            corners = np.concatenate(self.polygons)
            x1, y1, x2, y2 = (float(side) for side in (*corners.min(0), *corners.max(0)))
            return x1, y1, x2, y2
        if self.rle is not None:
            x, y, width, height = (float(side) for side in coco.toBbox(compress_rle(self.rle)))
            return x, y, x + width, y + height
        return 0.0, 0.0, 0.0, 0.0

    def to_rle(self, height: int, width: int) -> dict[str, Any]:
        """The mask as COCO RLE, rasterized by pycocotools; a box alone is filled."""
        if self.rle is not None:
            return compress_rle(self.rle)
        return encode_polygons(self.polygons or (box_to_polygon(*self.bounds()),), height, width)

    def to_mask(self, height: int, width: int) -> NDArray[np.bool_]:
        """The mask as bool [height, width], see :meth:`to_rle`."""
        return np.asarray(coco.decode(self.to_rle(height, width)), bool)


class Record(NamedTuple):
    """An image and its annotated instances."""

    file: Path
    size: tuple[int, int] | None  # (height, width) in the annotations; None where it is missing there
    instances: tuple[Instance, ...]
    id: int | None = None
    image: Image.Image | None = None  # upright, of an image without a file

    def load(self, channels: int = 3) -> Image.Image:
        """The image, upright, RGB or of other ``channels``, as :func:`fastmask.image_io.read_image` has it."""
        if self.image is None:
            return read_image(self.file, channels)
        return self.image if (self.image.mode, channels) == ("RGB", 3) else convert_image(self.image, channels)


class LazyRecords(Sequence[Record]):
    """A sequence whose records are made on access, by :meth:`make`."""

    @abc.abstractmethod
    def make(self, index: int) -> Record:
        """The record at a non-negative index."""

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
    """One problem in the annotations or images of a data set."""

    kind: str  # what it is counted under, e.g. "broken annotation"
    where: str  # file and entry
    text: str  # rule and actual value


class Dataset(NamedTuple):
    """Annotated images, and what could not be read of them."""

    records: Sequence[Record]
    categories: dict[str, int]  # ids by name
    problems: list[Problem]
    notes: tuple[str, ...] = ()  # what a reader chose among several readings, as a sentence


def compress_rle(rle: dict[str, Any]) -> dict[str, Any]:
    """COCO RLE whose counts are bytes, from RLE whose counts are a list of runs, text or bytes."""
    if isinstance(rle["counts"], list):
        compressed: dict[str, Any] = coco.frPyObjects(rle, *rle["size"])
        return compressed
    counts = rle["counts"]
    return {"size": rle["size"], "counts": counts.encode("ascii") if isinstance(counts, str) else counts}


def encode_polygons(polygons: Sequence[Polygon], height: int, width: int) -> dict[str, Any]:
    """COCO RLE of the union of polygons, clipped to the image."""
    parts = coco.frPyObjects([polygon.ravel().tolist() for polygon in polygons], height, width)
    union: dict[str, Any] = coco.merge(parts)
    return union


def parse_rle(rle: Mapping[str, Any]) -> dict[str, Any]:
    """The COCO RLE in Python's integers; ValueError unless it is valid: pycocotools reads out of bounds otherwise."""
    size, counts = _parse_integers(rle.get("size")), rle.get("counts")
    if size is None or len(size) != 2 or min(size) <= 0:
        raise ValueError(f"an RLE's size must be [height, width], got {shorten(rle.get('size'))}")
    if size[0] * size[1] > MAX_PIXELS:
        raise ValueError(f"an RLE's size must be at most {MAX_PIXELS} pixels, got {size[0]} x {size[1]}")
    compressed = isinstance(counts, str | bytes)
    if isinstance(counts, str | bytes):
        runs = decode_counts(counts) if _is_whole(counts) else None
    else:
        runs = _parse_integers(counts)
    if runs is None or min(runs, default=0) < 0:
        raise ValueError(f"an RLE's counts must be runs, got {shorten(counts)}")
    if sum(runs) != size[0] * size[1]:
        raise ValueError(f"an RLE's runs must have {size[0]} x {size[1]} pixels in all, got {sum(runs)}")
    return {"size": size, "counts": counts if compressed else runs}


def _is_whole(counts: str | bytes) -> bool:
    """Whether all characters are COCO's, and the last run is complete: pycocotools reads beyond it otherwise."""
    data = counts.encode("ascii", "ignore") if isinstance(counts, str) else counts
    return (
        len(data) == len(counts)
        and all(48 <= character < 112 for character in data)
        and not (data and (data[-1] - 48) & 0x20)
    )


def _parse_integers(values: Any) -> list[int] | None:
    """A list, tuple, array or tensor of integers as a list; None if it is none."""
    values = values.tolist() if hasattr(values, "tolist") else values
    if not isinstance(values, list | tuple):
        return None
    integers = [integer for value in values if (integer := parse_id(value)) is not None]
    return integers if len(integers) == len(values) else None


def decode_counts(text: str | bytes) -> list[int]:
    """Run lengths of COCO's compressed RLE counts; the inverse of ``fastmask.kernels.reference.encode_mask``."""
    data = text.encode("latin-1", "replace") if isinstance(text, str) else text
    bits = np.frombuffer(data, np.uint8).astype(np.int64) - 48
    ends = np.flatnonzero(bits & 0x20 == 0)  # of values, five bits a character; the rest is truncated
    bits = bits[: ends[-1] + 1] if len(ends) else bits[:0]
    if not len(ends):
        return []
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    shifts = 5 * np.minimum(np.arange(len(bits)) - np.repeat(starts, lengths), 12)
    values = np.add.reduceat((bits & 0x1F) << shifts, starts)
    values -= np.where(bits[ends] & 0x10, np.int64(1) << 5 * np.minimum(lengths, 12), 0)
    runs = values.copy()  # from the fourth on, each is stored as its difference from the one before the last
    runs[1::2] = np.cumsum(values[1::2])
    runs[2::2] = np.cumsum(values[2::2])
    result: list[int] = runs.tolist()
    return result


def parse_polygon(points: Any) -> Polygon:
    """A polygon [n, 2] from pairs or from x, y, x, y, ...; ValueError unless it has three finite points."""
    try:
        polygon = np.asarray(points, np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"a polygon must be numbers, got {shorten(points)}") from error
    if polygon.size % 2 or (polygon.ndim != 1 and polygon.shape[1:] != (2,)):
        raise ValueError(f"a polygon must be pairs of x and y, got {polygon.size} numbers")
    polygon = polygon.reshape(-1, 2)
    if len(polygon) < 3:
        raise ValueError(f"a polygon must have three points, got {len(polygon)}")
    if not np.isfinite(polygon).all():
        raise ValueError("a polygon must be finite, got NaN or infinity")
    largest = np.abs(polygon).max()
    if largest > MAX_COORDINATE:
        raise ValueError(f"a polygon must be within {MAX_COORDINATE} pixels, got {largest:g}")
    if 4 * largest * len(polygon) > MAX_PERIMETER:
        perimeter = np.abs(polygon - np.roll(polygon, 1, axis=0)).sum()
        if perimeter > MAX_PERIMETER:  # pycocotools' time and memory grow with it
            raise ValueError(f"a polygon's perimeter must be at most {MAX_PERIMETER} pixels, got {perimeter:g}")
    return polygon


def box_to_polygon(x1: float, y1: float, x2: float, y2: float) -> Polygon:
    """The four corners [4, 2] of a box."""
    return np.array([[x1, y1], [x2, y1], [x2, y2], [x1, y2]], np.float64)


def ellipse_to_polygon(x: float, y: float, radius_x: float, radius_y: float, angle: float = 0.0) -> Polygon:
    """A polygon [n, 2] on an ellipse rotated by ``angle`` radians; n keeps it within 0.1 pixels of the ellipse."""
    largest = max(abs(radius_x), abs(radius_y), 1.0)
    number = max(12, math.ceil(math.pi / math.acos(1 - 0.1 / min(largest, MAX_COORDINATE))))
    turn = np.arange(number) * (2 * math.pi / number)
    along, across = radius_x * np.cos(turn), radius_y * np.sin(turn)
    points = [
        x + along * math.cos(angle) - across * math.sin(angle),
        y + along * math.sin(angle) + across * math.cos(angle),
    ]
    return np.stack(points, axis=1)


def parse_size(height: Any, width: Any) -> tuple[int, int] | None:
    """(height, width), None where they are missing or 0; ValueError unless they are possible sizes of an image."""
    sides = parse_identity(height), parse_identity(width)
    if all(value is None or side == 0 for value, side in zip((height, width), sides, strict=True)):
        return None
    if not isinstance(sides[0], int) or not isinstance(sides[1], int) or min(sides[0], sides[1]) <= 0:
        raise ValueError(f"height and width must be positive integers, got {shorten(height)} and {shorten(width)}")
    if sides[0] * sides[1] > MAX_PIXELS:
        raise ValueError(f"height and width must be at most {MAX_PIXELS} pixels, got {sides[0]} x {sides[1]}")
    return sides[0], sides[1]


def number_categories(names: Sequence[str]) -> dict[str, int]:
    """Category ids from 1 by name, in order of first appearance."""
    return {name: category for category, name in enumerate(dict.fromkeys(names), 1)}


def to_number(value: Any) -> Any:
    """The Python number in a NumPy scalar or a zero-dimensional array or tensor; any other value as it is."""
    number = value.item() if getattr(value, "ndim", None) == 0 else value
    return float(number) if isinstance(number, np.longdouble) else number  # its item is itself


def parse_id(value: Any) -> int | None:
    """An integer within int64, of Python or as :func:`to_number` takes it, as int; None if it is none."""
    number = to_number(value)
    if not isinstance(number, int) or isinstance(number, bool) or not -(2**63) <= number < 2**63:
        return None
    return int(number)


def parse_identity(value: Any) -> int | str | None:
    """An id of an annotation file: an integer, also as text or as a float, else text; None if it is neither."""
    number = to_number(value)
    if isinstance(number, str):
        text = number.strip()
        return int(text) if re.fullmatch("0|-?[1-9][0-9]{0,17}", text) else parse_text(text)
    return parse_id(int(number) if isinstance(number, float) and number.is_integer() else number)


def parse_flag(value: Any, name: str) -> bool:
    """A value of 0 or 1, as integer, float, bool or text, or nothing (False); ValueError if it is anything else."""
    if value is None:
        return False
    number = value.strip().lower() if isinstance(value, str) else to_number(value)
    for flag, values in ((False, (0, "0", "false")), (True, (1, "1", "true"))):
        if number in values:
            return flag
    raise ValueError(f"{name} must be 0 or 1, got {shorten(value)}")


def parse_group(value: Any, name: str) -> int | str | None:
    """What joins parts to one instance, None for parts that are whole; ValueError unless it is an integer or text."""
    group = parse_identity(value)
    if group is None and value not in (None, ""):
        raise ValueError(f"{name} must be an integer or text, got {shorten(value)}")
    return group


def parse_text(value: Any) -> str | None:
    """Text that is not blank, or an integer as text; None if it is neither, or cannot be written as UTF-8."""
    text = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
    if not isinstance(text, str) or not text.strip():
        return None
    try:
        text.encode()
    except UnicodeEncodeError:
        return None
    return text


def shorten(value: Any) -> str:
    """The value for a message: its repr, but short, whatever its depth and length."""
    text = reprlib.repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def parse_box(box: Any) -> list[float]:
    """The sides x, y, width, height of a list, tuple, array or tensor; ValueError unless they are finite numbers."""
    sides = box.tolist() if hasattr(box, "tolist") else box
    if not isinstance(sides, list | tuple) or len(sides) != 4:
        raise ValueError(f"bbox must be x, y, width, height, got {shorten(box)}")
    return parse_numbers(dict(zip("xywh", sides, strict=True)), *"xywh")


def parse_numbers(values: Any, *names: str) -> list[float]:
    """The named values of a JSON object, see :func:`to_number`; ValueError unless all are finite numbers."""
    result = []
    for name in names:
        value = to_number(values.get(name))
        try:
            number = math.nan if isinstance(value, bool) or not isinstance(value, Real) else float(value)
        except OverflowError:
            number = math.inf
        if not math.isfinite(number):
            raise ValueError(f"{name} must be a finite number, got {repr(value)[:40]}")
        result.append(number)
    return result


def assign_labels(categories: Mapping[str, int]) -> dict[str, int]:
    """A model's label of each category: the category's id, as torchvision's reference does it.

    If an id is below 1, which is the background's, or above 9999, labels count from 1 in the categories' order instead.
    """
    ids = {name: to_number(category) for name, category in categories.items()}
    if all(1 <= category <= 9999 for category in ids.values()):
        return ids
    return {name: label for label, name in enumerate(categories, 1)}


def crowds_to_objects(dataset: Dataset) -> Dataset:
    """The data set with each crowd as one object: some tools write ``iscrowd`` 1 for any object drawn with a brush."""
    records = [
        record._replace(instances=tuple(instance._replace(crowd=False) for instance in record.instances))
        for record in dataset.records
    ]
    return dataset._replace(records=records)


def count_left_out(dataset: Dataset, keep_empty: bool = False) -> dict[str, int]:
    """What training leaves out of a data set, counted by what it is; see :func:`fastmask.data.loading.training_loader`.

    Args:
        dataset: annotated images, with files.
        keep_empty: images without objects are not left out.
    """
    instances = [instance for record in dataset.records for instance in record.instances]
    empty = [record for record in dataset.records if all(instance.crowd for instance in record.instances)]
    counts = {
        "crowds": sum(instance.crowd for instance in instances),
        "images without objects": 0 if keep_empty else sum(not record.instances for record in empty),
        "images of crowds alone": 0 if keep_empty else sum(bool(record.instances) for record in empty),
        "missing images": sum(record.image is None and not record.file.exists() for record in dataset.records),
        "masks (of objects with a box alone)": sum(not (each.has_mask() or each.crowd) for each in instances),
    }
    return {what: number for what, number in counts.items() if number}


def name_records(records: Sequence[Record]) -> list[str]:
    """A name for each record's files, its image's without the ending; no two alike, whatever the case of letters."""
    names: list[str] = []
    taken: set[str] = set()
    for record in records:
        name = record.file.stem
        while name.lower() in taken:
            name += "_"
        taken.add(name.lower())
        names.append(name)
    return names


def add_sizes(dataset: Dataset) -> Dataset:
    """The data set with sizes missing in the annotations read from the image files; unreadable files are problems."""
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
