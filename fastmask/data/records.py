"""Images with their annotations, in one form for all formats."""

import abc
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, overload

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fastmask.cocoapi import mask as coco
from fastmask.data.embedded import read_embedded
from fastmask.data.parse import MAX_COORDINATE, to_number
from fastmask.image_io import convert_image, read_image, read_image_size
from fastmask.skeletons import Skeleton

Polygon = NDArray[np.float64]  # [n, 2] (x, y) in pixels; the corner of the first pixel is (0, 0)
Keypoints = NDArray[np.float64]  # [K, 3] (x, y, visibility) in pixels; 0: not annotated, 1: hidden, 2: visible


class Instance(NamedTuple):
    """One annotated object: its polygons, or its mask as COCO RLE, or its box alone."""

    category: str
    polygons: tuple[Polygon, ...] = ()
    rle: dict[str, Any] | None = None  # {"size": [h, w], "counts": bytes, str or list of runs}
    box: tuple[float, float, float, float] | None = None  # (x1, y1, x2, y2); None: around polygons or mask
    crowd: bool = False  # a group of objects, COCO's iscrowd; evaluation ignores it
    id: int | None = None
    area: float | None = None  # in pixels, as in COCO's files; None: computed where it is needed
    keypoints: Keypoints | None = None  # of the category's skeleton; None: none are annotated

    def has_mask(self) -> bool:
        """Whether polygons or a mask are annotated, and not the box alone."""
        return bool(self.polygons) or self.rle is not None

    def count_keypoints(self) -> int:
        """The number of annotated keypoints, hidden ones included: COCO's num_keypoints."""
        return 0 if self.keypoints is None else int((self.keypoints[:, 2] > 0).sum())

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


def describe_box(instance: Instance) -> str:
    """What becomes of an object with a box alone in formats whose rectangles are read as masks."""
    return f"{instance.category} has a box alone, which is a rectangle there, and a full mask to what reads it"


class Record(NamedTuple):
    """An image and its annotated instances."""

    file: Path
    size: tuple[int, int] | None  # (height, width) in the annotations; None where it is missing there
    instances: tuple[Instance, ...]
    id: int | None = None
    image: Image.Image | None = None  # upright, of an image without a file
    embedded: Path | None = None  # labelme's file whose imageData is the image, where ``file`` is missing

    def read_content(self) -> bytes | None:
        """The content of an embedded image's file; None of all others. Nothing keeps it."""
        return None if self.embedded is None else read_embedded(self.embedded)

    def read_size(self, content: bytes | None = None) -> tuple[int, int]:
        """(height, width) of :meth:`load`'s image, without decoding it; errors are :func:`read_image_size`'s."""
        if self.image is not None:
            return self.image.height, self.image.width
        return read_image_size(self.embedded or self.file, content or self.read_content())

    def is_missing(self) -> bool:
        """Whether there is no image, nor a file of its name."""
        return self.image is None and self.embedded is None and not self.file.exists()

    def load(self, channels: int = 3) -> Image.Image:
        """The image, upright, RGB or of other ``channels``, as :func:`fastmask.image_io.read_image` has it."""
        if self.image is None:
            return read_image(self.embedded or self.file, channels, self.read_content())
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
    skeletons: Mapping[str, Skeleton] = {}  # of the categories that have keypoints, by name


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


def number_categories(names: Sequence[str]) -> dict[str, int]:
    """Category ids from 1 by name, in order of first appearance."""
    return {name: category for category, name in enumerate(dict.fromkeys(names), 1)}


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


def count_left_out(dataset: Dataset, keep_empty: bool = False, min_keypoints: int = 0) -> dict[str, int]:
    """What training leaves out of a data set, counted by what it is; see :func:`fastmask.data.loading.training_loader`.

    Args:
        dataset: annotated images, with files.
        keep_empty: images without objects are not left out.
        min_keypoints: annotated keypoints that an image must have.
    """
    instances = [instance for record in dataset.records for instance in record.instances]
    empty = [record for record in dataset.records if all(instance.crowd for instance in record.instances)]
    counts = {
        "crowds": sum(instance.crowd for instance in instances),
        "images without objects": 0 if keep_empty else sum(not record.instances for record in empty),
        "images of crowds alone": 0 if keep_empty else sum(bool(record.instances) for record in empty),
        "missing images": sum(record.is_missing() for record in dataset.records),
        "masks (of objects with a box alone)": sum(not (each.has_mask() or each.crowd) for each in instances),
        "keypoints (of objects without any)": sum(
            each.category in dataset.skeletons and not (each.count_keypoints() or each.crowd) for each in instances
        ),
        f"images of fewer than {min_keypoints} keypoints": sum(
            any(not each.crowd for each in record.instances)
            and sum(each.count_keypoints() for each in record.instances if not each.crowd) < min_keypoints
            for record in dataset.records
        ),
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
        if record.size is None:
            try:
                record = record._replace(size=record.read_size())
            except (OSError, ValueError) as error:
                problems.append(Problem("missing image", str(record.file), str(error)))
        records.append(record)
    return dataset._replace(records=records, problems=problems)
