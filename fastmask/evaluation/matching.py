"""Which detections of an image are which of its objects, by pycocotools' rule; all thresholds and sizes at once."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastmask.cocoapi import mask as coco
from fastmask.data.coco import area
from fastmask.data.records import Record, compressed

KINDS = ("bbox", "segm")  # pycocotools' names
# of pycocotools.cocoeval.Params: T thresholds of IoU; A pairs of areas, all, small, medium and large
THRESHOLDS: NDArray[np.float64] = np.linspace(0.5, 0.95, 10)
SIZES: NDArray[np.float64] = np.array([[0, 1e5], [0, 32], [32, 96], [96, 1e5]]) ** 2
MOST = 100  # detections of a category in an image

Entry = Mapping[str, Any]  # of COCO's results format


class Truth(NamedTuple):
    """The objects of an image, G of them."""

    categories: NDArray[np.int64]  # [G] ids
    boxes: NDArray[np.float64]  # [G, 4] (x, y, width, height)
    masks: list[dict[str, Any]] | None  # G RLEs
    areas: NDArray[np.float64]  # [G]
    crowds: NDArray[np.uint8]  # [G]


class Matches(NamedTuple):
    """Of one category in one image: D detections, best first, and G objects, for each size and threshold."""

    scores: NDArray[np.float64]  # [D]
    matched: NDArray[np.bool_]  # [A, T, D]
    ignored: NDArray[np.bool_]  # [A, T, D]
    absent: NDArray[np.bool_]  # [A, G] objects that do not count: crowds, and those of other sizes


def truth_of(record: Record, categories: Mapping[str, int], masks: bool) -> Truth:
    """An image's objects as COCO's evaluation sees them; a box alone is a mask where masks are asked for.

    Where the image's size is not known they have no masks, and are nobody's.
    """
    objects = record.objects
    corners = np.array([one.bounds() for one in objects], np.float64).reshape(-1, 4)
    return Truth(
        np.array([categories[one.category] for one in objects], np.int64),
        np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1),
        [one.encoded(*record.size) for one in objects] if masks and record.size else None,
        np.array([area(one) for one in objects], np.float64),
        np.array([one.crowd for one in objects], np.uint8),
    )


def match_image(truth: Truth, entries: Sequence[Entry], kind: str) -> dict[int, Matches]:
    """An image's matches by category id; of a mask where ``kind`` is "segm", else of boxes.

    Where entries have no bbox it is drawn around their masks.
    """
    numbers = np.array([entry["category_id"] for entry in entries], np.int64)
    scores = np.array([entry["score"] for entry in entries], np.float64)
    shapes: Any
    objects: Any
    if kind == "segm":
        shapes, objects = [compressed(entry["segmentation"]) for entry in entries], truth.masks
        areas = np.array([coco.area(shape) for shape in shapes], np.float64)  # a list is limited to 255 there
    else:
        shapes, objects = np.array([box_of(entry) for entry in entries], np.float64).reshape(-1, 4), truth.boxes
        areas = shapes[:, 2] * shapes[:, 3]
    found = {}
    for number in np.unique(np.concatenate([numbers, truth.categories])).tolist():
        own, there = np.flatnonzero(numbers == number), np.flatnonzero(truth.categories == number)
        own = own[np.argsort(-scores[own], kind="stable")][:MOST]
        overlaps = np.zeros((len(own), len(there)))
        if overlaps.size and objects is not None:
            crowds = truth.crowds[there].tolist()
            if kind == "segm":
                overlaps = coco.iou([shapes[i] for i in own], [objects[i] for i in there], crowds)
            else:
                overlaps = coco.iou(shapes[own], objects[there], crowds)
        found[number] = match(overlaps, scores[own], areas[own], truth.areas[there], truth.crowds[there] > 0)
    return found


def box_of(entry: Entry) -> Any:
    """(x, y, width, height)."""
    return entry["bbox"] if entry.get("bbox") is not None else coco.toBbox(compressed(entry["segmentation"]))


def match(
    overlaps: NDArray[np.float64],
    scores: NDArray[np.float64],
    areas: NDArray[np.float64],
    truth_areas: NDArray[np.float64],
    crowds: NDArray[np.bool_],
) -> Matches:
    """Each detection, best first, gets the object it overlaps most that is still free and above the threshold.

    Objects that count come before those that do not; of equal overlaps the last one. Crowds are never used up.

    Args:
        overlaps: [D, G] intersection over union, over the detection for crowds.
        scores, areas: [D] of the detections, best first.
        truth_areas, crowds: [G] of the objects.

    Source: pycocotools' COCOeval.evaluateImg, of which this gives the same, without its loops; except that an object
    whose annotation has the id 0 can be found, which pycocotools takes for nothing.
    """
    num, objects = overlaps.shape
    low, high = SIZES[:, 0, None], SIZES[:, 1, None]
    absent = crowds | (truth_areas < low) | (truth_areas > high)  # [A, G]
    matched = np.zeros((len(SIZES), len(THRESHOLDS), num), bool)
    ignored = np.zeros_like(matched)
    free = np.ones((len(SIZES), len(THRESHOLDS), objects), bool)
    enough = np.minimum(THRESHOLDS, 1 - 1e-10)
    a, t = np.ogrid[: len(SIZES), : len(THRESHOLDS)]
    # a detection that overlaps nothing by half is nobody's, and most are
    for i in np.flatnonzero((overlaps >= enough[0]).any(1) if overlaps.size else np.zeros(0)):
        possible = (free | crowds) & (overlaps[i] >= enough[:, None])
        counting = possible & ~absent[:, None]
        wanted = np.where(counting.any(2, keepdims=True), counting, possible)
        rated = np.where(wanted, overlaps[i], -1.0)
        best = objects - 1 - rated[:, :, ::-1].argmax(2)
        hit = wanted[a, t, best]
        matched[:, :, i] = hit
        ignored[:, :, i] = hit & absent[a, best]
        free[a, t, best] &= ~hit
    other = (areas < low) | (areas > high)  # [A, D]
    return Matches(scores, matched, ignored | (~matched & other[:, None]), absent)
