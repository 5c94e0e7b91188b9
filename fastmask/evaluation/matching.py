"""Matching of detections to ground truth by pycocotools' rule, for all IoU thresholds and area ranges at once."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastmask.cocoapi import mask as coco
from fastmask.data.coco import compute_area
from fastmask.data.parse import to_number
from fastmask.data.records import Keypoints, Record, compress_rle
from fastmask.evaluation.oks import compute_oks
from fastmask.structures import CocoResult

# as in pycocotools.cocoeval.Params: T IoU thresholds; A ranges of areas in pixels: all, small, medium, large
IOU_TYPES = ("bbox", "segm", "keypoints")
AREAS = ("own", "loadRes")
IOU_THRESHOLDS: NDArray[np.float64] = np.linspace(0.5, 0.95, 10)
AREA_RANGES: NDArray[np.float64] = np.array([[0, 1e5], [0, 32], [32, 96], [96, 1e5]]) ** 2
MAX_DETECTIONS = {"bbox": 100, "segm": 100, "keypoints": 20}  # of a category in an image
KEYPOINT_AREA_RANGES = AREA_RANGES[[0, 2, 3]]  # there are no small ones


class GroundTruth(NamedTuple):
    """The G ground-truth instances of an image."""

    categories: NDArray[np.int64]  # [G] ids
    boxes: NDArray[np.float64]  # [G, 4] (x, y, width, height)
    masks: list[dict[str, Any]] | None  # [G] RLE
    areas: NDArray[np.float64]  # [G]
    crowds: NDArray[np.uint8]  # [G]
    has_mask: NDArray[np.bool_]  # [G] False for a box alone, which masks are not compared with
    keypoints: list[Keypoints | None]  # [G]


class Matches(NamedTuple):
    """Matches of D detections, best first, with G ground-truth instances of one category in one image."""

    scores: NDArray[np.float64]  # [D]
    matched: NDArray[np.bool_]  # [A, T, D]
    ignored: NDArray[np.bool_]  # [A, T, D] detections that count neither as true nor as false positives
    gt_ignored: NDArray[np.bool_]  # [A, G] crowds, and instances outside the area range


def read_ground_truth(record: Record, categories: Mapping[str, int], masks: bool) -> GroundTruth:
    """The ground truth of an image; with ``masks``, those of all instances that are more than a box.

    If the image's size is unknown there are no masks, and no detection matches by mask.
    """
    instances = record.instances
    corners = np.array([instance.bounds() for instance in instances], np.float64).reshape(-1, 4)
    return GroundTruth(
        np.array([categories[instance.category] for instance in instances], np.int64),
        np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1),
        [instance.to_rle(*record.size) for instance in instances] if masks and record.size else None,
        np.array([compute_area(instance) for instance in instances], np.float64),
        np.array([instance.crowd for instance in instances], np.uint8),
        np.array([instance.has_mask() for instance in instances], bool),
        [instance.keypoints for instance in instances],
    )


def match_image(
    truth: GroundTruth,
    results: Sequence[CocoResult],
    iou_type: str,
    areas_by: str = "own",
    sigmas: Sequence[float] | None = None,
) -> dict[int, Matches]:
    """The matches of an image by category id, of masks if ``iou_type`` is "segm", else of boxes or keypoints.

    A result without a bbox gets the box around its mask. ``areas_by`` is one of AREAS, and ``sigmas`` are of keypoints,
    see :func:`fastmask.evaluation.evaluate`.
    """
    if iou_type == "keypoints":  # of categories that have none, results may lack them
        results = [result for result in results if "keypoints" in result]
    categories = np.array([to_number(result["category_id"]) for result in results], np.int64)
    scores = np.array([to_number(result["score"]) for result in results], np.float64)
    dt_shapes: Any
    gt_shapes: Any
    if iou_type == "segm":
        dt_shapes, gt_shapes = [compress_rle(result["segmentation"]) for result in results], truth.masks
        areas = np.array([coco.area(shape) for shape in dt_shapes], np.float64)  # lists are limited to 255
    elif iou_type == "keypoints":
        dt_shapes = [np.array(result["keypoints"], np.float64).reshape(-1, 3) for result in results]
        gt_shapes, areas = truth.keypoints, np.array([np.ptp(points[:, :2], axis=0).prod() for points in dt_shapes])
    else:
        dt_shapes = np.array([read_box(result) for result in results], np.float64).reshape(-1, 4)
        gt_shapes, areas = truth.boxes, dt_shapes[:, 2] * dt_shapes[:, 3]
    if areas_by == "loadRes":
        areas = np.array([load_area(result) for result in results], np.float64)
    matches = {}
    points = np.array([each is not None and bool((each[:, 2] > 0).any()) for each in truth.keypoints], bool)
    for category in np.unique(np.concatenate([categories, truth.categories])).tolist():
        compared = truth.has_mask if iou_type == "segm" else True
        dt, gt = np.flatnonzero(categories == category), np.flatnonzero((truth.categories == category) & compared)
        dt = dt[np.argsort(-scores[dt], kind="stable")][: MAX_DETECTIONS[iou_type]]
        ious = np.zeros((len(dt), len(gt)))
        if ious.size and gt_shapes is not None:
            crowds = truth.crowds[gt].tolist()
            if iou_type == "keypoints":
                annotated = [truth.keypoints[i] for i in gt]
                ious = compute_oks([dt_shapes[i] for i in dt], annotated, truth.boxes[gt], truth.areas[gt], sigmas)
            elif iou_type == "segm":
                ious = coco.iou([dt_shapes[i] for i in dt], [gt_shapes[i] for i in gt], crowds)
            else:
                ious = coco.iou(dt_shapes[dt], gt_shapes[gt], crowds)
        crowd = truth.crowds[gt] > 0
        ignored, ranges = crowd, AREA_RANGES
        if iou_type == "keypoints":
            ignored, ranges = crowd | ~points[gt], KEYPOINT_AREA_RANGES
        matches[category] = match(ious, scores[dt], areas[dt], truth.areas[gt], crowd, ignored, ranges)
    return matches


def load_area(result: CocoResult) -> float:
    """The area in pixels that pycocotools' loadRes gives a result: of its bbox, else its mask, else its keypoints."""
    if result.get("bbox") is not None:
        return float(result["bbox"][2] * result["bbox"][3])
    if result.get("segmentation") is not None:
        return float(coco.area(compress_rle(result["segmentation"])))
    return float(np.ptp(np.reshape(result["keypoints"], (-1, 3))[:, :2], axis=0).prod())


def read_box(result: CocoResult) -> Any:
    """(x, y, width, height)."""
    return result["bbox"] if result.get("bbox") is not None else coco.toBbox(compress_rle(result["segmentation"]))


def match(
    ious: NDArray[np.float64],
    scores: NDArray[np.float64],
    areas: NDArray[np.float64],
    gt_areas: NDArray[np.float64],
    crowds: NDArray[np.bool_],
    ignored_gt: NDArray[np.bool_] | None = None,
    ranges: NDArray[np.float64] = AREA_RANGES,
) -> Matches:
    """Match each detection, best first, to the free instance of the highest IoU that reaches the threshold.

    Instances that are not ignored come first; of equal IoUs the last instance wins. A crowd matches any number.

    Args:
        ious: [D, G] intersection over union, for crowds over the detection's area.
        scores, areas: [D] of the detections, best first.
        gt_areas, crowds: [G] of the ground truth.
        ignored_gt: [G] instances that do not count, whatever their area; None: the crowds.
        ranges: [A, 2] of areas in pixels.

    Source: pycocotools' COCOeval.evaluateImg, whose results it reproduces without its loops; except that an annotation
    of id 0 can be matched, which pycocotools takes for unmatched.
    """
    num, num_gt = ious.shape
    low, high = ranges[:, 0, None], ranges[:, 1, None]
    gt_ignored = (crowds if ignored_gt is None else ignored_gt) | (gt_areas < low) | (gt_areas > high)  # [A, G]
    matched = np.zeros((len(ranges), len(IOU_THRESHOLDS), num), bool)
    ignored = np.zeros_like(matched)
    free = np.ones((len(ranges), len(IOU_THRESHOLDS), num_gt), bool)
    thresholds = np.minimum(IOU_THRESHOLDS, 1 - 1e-10)
    a, t = np.ogrid[: len(ranges), : len(IOU_THRESHOLDS)]
    # most detections reach the lowest threshold with no instance, and are skipped
    for i in np.flatnonzero((ious >= thresholds[0]).any(1) if ious.size else np.zeros(0)):
        possible = (free | crowds) & (ious[i] >= thresholds[:, None])
        counted = possible & ~gt_ignored[:, None]
        candidates = np.where(counted.any(2, keepdims=True), counted, possible)
        best = num_gt - 1 - np.where(candidates, ious[i], -1.0)[:, :, ::-1].argmax(2)
        hit = candidates[a, t, best]
        matched[:, :, i] = hit
        ignored[:, :, i] = hit & gt_ignored[a, best]
        free[a, t, best] &= ~hit
    outside = (areas < low) | (areas > high)  # [A, D]
    return Matches(scores, matched, ignored | (~matched & outside[:, None]), gt_ignored)
