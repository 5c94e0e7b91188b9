"""Predictions as other libraries' types: supervision's, for its annotators, trackers and zones."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fastmask.checks import check_pair
from fastmask.cocoapi import mask as coco

MAYBE_SOFT = 64  # pixels: square masks up to here may be of another size than their image, as a mask branch has them


def to_supervision(
    prediction: Mapping[str, Any],
    categories: Sequence[str] | None = None,
    *,
    size: tuple[int, int] | None = None,
    threshold: float = 0.5,
) -> Any:
    """A prediction as ``supervision.Detections``: xyxy, mask, confidence, class_id and ``data["class_name"]``.

    Args:
        prediction: of one image, as a :class:`fastmask.Predictor` or a model returns it: boxes [n, 4] in pixels, labels
            [n], scores [n], and masks in any form but "soft": COCO RLE, bool [n, h, w], packed [n, h, ceil(w / 8)] or
            float [n, 1, h, w]. There may be no masks. Keypoints are those of :func:`to_supervision_keypoints`.
        categories: names by label, such as ``predictor.categories``; labels without one are named by their number.
        size: (h, w) of the image in pixels, which packed masks do not tell.
        threshold: of float masks, whose pixels above it are the object's.

    Returns:
        supervision.Detections: ``class_id`` are the labels, from 1; ``mask`` is bool [n, h, w], or None where there are
        no masks, or none of RLE and no ``size``.

    Raises:
        ImportError: supervision is not installed.
        ValueError: the masks are of no such form, or not of the image.
    """
    supervision = _import("to_supervision")
    boxes, labels, data = _read(prediction, categories)
    mask = None
    if "masks" in prediction:
        size = None if size is None else check_pair("size", size, 1)
        mask = _to_bool(prediction["masks"], boxes, size, threshold)
    scores = _to_array(prediction["scores"]).astype(np.float32)
    return supervision.Detections(xyxy=boxes, mask=mask, confidence=scores, class_id=labels, data=data)


def to_supervision_keypoints(prediction: Mapping[str, Any], categories: Sequence[str] | None = None) -> Any:
    """The keypoints of a prediction as ``supervision.KeyPoints``.

    Args:
        prediction: with labels [n], scores [n], keypoints [n, K, 3] and keypoints_scores [n, K].
        categories: see :func:`to_supervision`.

    Returns:
        supervision.KeyPoints: ``xy`` [n, K, 2] in pixels; ``keypoint_confidence`` [n, K] are logits, as torchvision has
        them, not probabilities; ``detection_confidence`` [n] are the scores.

    Raises:
        ImportError: supervision is not installed.
        ValueError: there are no keypoints.
    """
    supervision = _import("to_supervision_keypoints")
    if "keypoints" not in prediction:
        raise ValueError(f"prediction must have keypoints, got {', '.join(prediction)}")
    _, labels, data = _read(prediction, categories)
    points, scores = (_to_array(prediction[name]).astype(np.float32) for name in ("keypoints", "scores"))
    confidence = _to_array(prediction["keypoints_scores"]).astype(np.float32)
    return supervision.KeyPoints(
        points[:, :, :2].copy(), labels, keypoint_confidence=confidence, detection_confidence=scores, data=data
    )


def _import(function: str) -> Any:
    try:
        import supervision
    except ImportError as error:
        raise ImportError(f"{function} needs supervision: pip install 'fastmask-rcnn[supervision]'") from error
    return supervision


def _read(
    prediction: Mapping[str, Any], categories: Sequence[str] | None
) -> tuple[NDArray[np.float32], NDArray[np.int64], dict[str, Any]]:
    """Boxes, labels and, where categories are known, their names."""
    boxes = _to_array(prediction["boxes"]).reshape(-1, 4).astype(np.float32)
    labels = _to_array(prediction["labels"]).astype(np.int64)
    if categories is None:
        return boxes, labels, {}
    names = [categories[label] if 0 <= label < len(categories) else str(label) for label in labels.tolist()]
    return boxes, labels, {"class_name": np.array(names, dtype=str)}


def _to_array(values: Any) -> NDArray[Any]:
    if isinstance(values, Tensor):
        values = values.detach().cpu()
        values = values.float() if values.is_floating_point() else values  # NumPy has no bfloat16
    return np.asarray(values)


def _to_bool(
    masks: Any, boxes: NDArray[np.float32], size: tuple[int, int] | None, threshold: float
) -> NDArray[np.bool_] | None:
    """Masks of any form as bool [n, h, w]."""
    if isinstance(masks, list):
        if not masks:
            return None if size is None else np.zeros((0, *size), dtype=bool)
        pixels = np.stack([np.asarray(coco.decode(mask), dtype=bool) for mask in masks])
    else:
        array = _to_array(masks)
        array = array[:, 0] if array.ndim == 4 and array.shape[1] == 1 else array
        if array.ndim != 3 or (array.dtype not in (bool, np.uint8) and array.dtype.kind != "f"):
            form = f"{array.dtype} {array.shape}"
            raise ValueError(f"masks must be RLE, bool [n, h, w], packed uint8 or float [n, 1, h, w], got {form}")
        if array.dtype == np.uint8:
            if size is None or array.shape[1:] != (size[0], -(-size[1] // 8)):
                raise ValueError(f"size must be the image's (h, w) with packed masks {array.shape}, got {size}")
            return np.unpackbits(array, axis=-1, count=size[1]).astype(bool)
        _check_pasted(array, boxes, size)
        pixels = array > threshold if array.dtype.kind == "f" else array
    if size is not None and pixels.shape[1:] != size:
        raise ValueError(f"masks must be of the image's size {size}, got {pixels.shape[1:]}")
    return pixels


def _check_pasted(masks: NDArray[Any], boxes: NDArray[np.float32], size: tuple[int, int] | None) -> None:
    """ValueError for a mask branch's own, "soft" masks: of some pixels a box, whatever the image's size."""
    height, width = masks.shape[1:]
    if masks.dtype.kind != "f" or size is not None or not len(masks):
        return
    outside = bool((boxes > np.array([width + 1, height + 1] * 2)).any())
    if outside or (height == width <= MAYBE_SOFT):
        raise ValueError(
            f'masks must be pasted into the image, not "soft", got {height} x {width} pixels'
            + ("" if outside else "; size=(h, w) says that the image is of that size")
        )
