"""Detections as COCO's results format writes them: https://cocodataset.org/#format-results."""

from collections.abc import Mapping
from typing import Any


def to_coco_results(image_id: int, detections: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One entry a detection, ready for JSON and for ``pycocotools.coco.COCO.loadRes``.

    Args:
        image_id: of the image.
        detections: boxes [N, 4] (x1, y1, x2, y2) in its pixels, labels [N] (the category ids), scores [N], optionally
            masks: N COCO RLEs.
    """
    entries = []
    masks = detections.get("masks")
    rows = zip(*(detections[name].tolist() for name in ("boxes", "labels", "scores")), strict=True)
    for i, ((x1, y1, x2, y2), label, score) in enumerate(rows):
        entry = {"image_id": image_id, "category_id": label, "bbox": [x1, y1, x2 - x1, y2 - y1], "score": score}
        if masks is not None:
            entry["segmentation"] = {"size": masks[i]["size"], "counts": masks[i]["counts"].decode("ascii")}
        entries.append(entry)
    return entries
