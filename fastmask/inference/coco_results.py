"""Detections as COCO's results format writes them: https://cocodataset.org/#format-results."""

from collections.abc import Mapping
from typing import Any

from fastmask.data.parse import to_number
from fastmask.structures import CocoResult


def to_coco_results(image_id: int, detections: Mapping[str, Any]) -> list[CocoResult]:
    """One result a detection, ready for JSON and for ``pycocotools.coco.COCO.loadRes``.

    Args:
        image_id: of the image.
        detections: boxes [N, 4] (x1, y1, x2, y2) in its pixels, labels [N] (the category ids), scores [N], optionally
            masks: N COCO RLEs; keypoints [N, K, 3], and keypoints_scores [N, K], which become the third numbers: COCO's
            format has no meaning for them, and its evaluation does not read them.
    """
    image_id = to_number(image_id)
    results = []
    masks = detections.get("masks")
    rows = zip(*(detections[name].tolist() for name in ("boxes", "labels", "scores")), strict=True)
    for i, ((x1, y1, x2, y2), label, score) in enumerate(rows):
        box = [x1, y1, x2 - x1, y2 - y1]
        result = CocoResult(image_id=image_id, category_id=label, bbox=box, score=score)
        if masks is not None:
            result["segmentation"] = {"size": masks[i]["size"], "counts": masks[i]["counts"].decode("ascii")}
        if "keypoints" in detections:
            points = detections["keypoints"][i].tolist()
            scores = detections["keypoints_scores"][i].tolist() if "keypoints_scores" in detections else None
            flat = [(x, y, v if scores is None else scores[k]) for k, (x, y, v) in enumerate(points)]
            result["keypoints"] = [number for point in flat for number in point]
        results.append(result)
    return results
