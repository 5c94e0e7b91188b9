"""Random COCO annotations and results, and pycocotools' COCOeval on them as reference."""

import contextlib
import io
from typing import Any

import numpy as np
import pytest

from fastmask.cocoapi import mask as coco

COCO = pytest.importorskip("pycocotools.coco", reason="metrics are compared with pycocotools'").COCO
COCOeval = pytest.importorskip("pycocotools.cocoeval").COCOeval
Json = dict[str, Any]
CASES = {  # arguments of draw_case
    "ordinary": (12, 6, 12, [1, 2, 7], (60, 70), 0.15),
    "crowds": (8, 6, 15, [3], (50, 50), 0.7),
    "sizes": (6, 5, 10, [1, 2], (200, 220), 0.1),
    "many categories": (10, 20, 30, list(range(1, 1204)), (40, 40), 0.1),
    "many objects": (2, 300, 500, [1], (40, 50), 0.05),
    "no objects": (4, 0, 5, [1, 2], (40, 50), 0.0),
    "no detections": (4, 4, 0, [1, 2], (40, 50), 0.0),
    "nothing": (2, 0, 0, [1], (40, 50), 0.0),
}


def draw_blob(height: int, width: int) -> tuple[np.ndarray, list[float]]:
    """A random elliptic mask [h, w] and its box (x, y, width, height)."""
    y, x = np.mgrid[:height, :width]
    radius = np.exp(np.random.uniform(0.5, np.log(max(height, width) / 1.5)))
    cy, cx = np.random.uniform(0, height), np.random.uniform(0, width)
    mask = np.hypot((y + 0.5 - cy) * np.random.uniform(0.7, 1.4), x + 0.5 - cx) <= radius
    mask[int(cy), int(cx)] = True
    return mask, box_around(mask)


def box_around(mask: np.ndarray) -> list[float]:
    return [float(side) for side in coco.toBbox(coco.encode(np.asfortranarray(mask.astype(np.uint8))))]


def as_rle(mask: np.ndarray) -> Json:
    rle = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": rle["size"], "counts": rle["counts"].decode("ascii")}


def draw_case(
    images: int, instances: int, detections: int, categories: list[int], size: tuple[int, int], crowd: float = 0.15
) -> tuple[Json, list[Json]]:
    """Annotations and results: shifted instances, some of another category, and false positives; scores have ties.

    Image ids are not sorted and have gaps.
    """
    height, width = size
    inputs, annotations, results = [], [], []
    for number in (np.random.permutation(3 * images)[:images] + 5).tolist():
        inputs.append({"id": number, "file_name": f"{number}.png", "height": height, "width": width})
        own = []
        for _ in range(int(np.random.randint(instances + 1))):
            mask, box = draw_blob(height, width)
            category = int(np.random.choice(categories))
            own.append((mask, category))
            annotation = {"id": len(annotations) + 1, "image_id": number, "category_id": category, "bbox": box}
            annotation |= {"segmentation": as_rle(mask), "area": float(mask.sum() * np.random.uniform(0.8, 1.2))}
            annotations.append(annotation | {"iscrowd": int(np.random.rand() < crowd)})
        for _ in range(int(np.random.randint(detections + 1))):
            if own and np.random.rand() < 0.7:
                mask, category = own[np.random.randint(len(own))]
                mask = np.roll(mask, np.random.randint(-2, 3, 2), (0, 1))
                if np.random.rand() < 0.2:
                    category = int(np.random.choice(categories))
            else:
                (mask, _), category = draw_blob(height, width), int(np.random.choice(categories))
            box = (np.array(box_around(mask)) + np.random.uniform(-0.5, 0.5, 4) * [1, 1, 0, 0]).tolist()
            score = round(float(np.random.rand()), int(np.random.choice([1, 9])))
            result = {"image_id": number, "category_id": category, "bbox": box, "score": score}
            results.append(result | {"segmentation": as_rle(mask)})
    names = [{"id": number, "name": f"c{number}"} for number in categories]
    return {"images": inputs, "annotations": annotations, "categories": names}, results


def draw_poses(number: int = 17, crowd: float = 0.1) -> tuple[Json, list[Json]]:
    """Annotations and results of persons, some without keypoints, some crowds; more than 20 detections of an image."""
    images, annotations, results = [], [], []
    for image in (np.random.permutation(18)[:6] + 3).tolist():
        images.append({"id": image, "file_name": f"{image}.png", "height": 300, "width": 400})
        own = []
        for _ in range(int(np.random.randint(6))):
            width, height = np.random.uniform(20, 200, 2).tolist()
            x, y = (float(np.random.uniform(0, most)) for most in (400 - width, 300 - height))
            points = np.random.rand(number, 2) * [width, height] + [x, y]
            flags = np.random.choice([0, 1, 2], number, p=[0.3, 0.2, 0.5])
            flags[:] = flags * (np.random.rand() < 0.8)
            own.append(points)
            flat = np.concatenate([np.where(flags[:, None] > 0, points, 0), flags[:, None]], axis=1).ravel().tolist()
            annotation = {
                "id": len(annotations) + 1,
                "image_id": image,
                "category_id": 1,
                "bbox": [x, y, width, height],
            }
            annotation |= {"keypoints": flat, "num_keypoints": int((flags > 0).sum())}
            annotation |= {
                "area": width * height * np.random.uniform(0.3, 0.9),
                "iscrowd": int(np.random.rand() < crowd),
            }
            annotations.append(annotation)
        for _ in range(int(np.random.randint(40))):
            points = np.random.rand(number, 2) * [400, 300]
            if own and np.random.rand() < 0.7:
                points = own[np.random.randint(len(own))] + np.random.randn(number, 2) * np.random.choice([1, 5, 20])
            score = round(float(np.random.rand()), int(np.random.choice([1, 9])))
            flat = np.concatenate([points, np.random.randn(number, 1)], axis=1).ravel().tolist()
            results.append({"image_id": image, "category_id": 1, "score": score, "keypoints": flat})
    if len(results) < 2 or not any(each["num_keypoints"] for each in annotations):
        return draw_poses(number, crowd)  # which has something to compare
    category = {"id": 1, "name": "person", "keypoints": [f"k{i}" for i in range(number)], "skeleton": [[1, 2]]}
    return {"images": images, "annotations": annotations, "categories": [category]}, results


def run_cocoeval(annotations: Json, results: list[Json], iou_type: str, whole: bool = False) -> COCOeval:
    """COCOeval run as pycocotools' demo runs it; with "segm", areas of detections are those of their masks.

    With ``whole``, loadRes gets the results as they are, and chooses the areas.
    """
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = {**annotations, "annotations": [dict(annotation) for annotation in annotations["annotations"]]}
        truth.createIndex()
        dropped = "" if whole else "bbox" if iou_type == "segm" else "segmentation"
        kept = [{name: value for name, value in result.items() if name != dropped} for result in results]
        if kept:
            detections = truth.loadRes(kept)
        else:  # loadRes fails without results
            detections = COCO()
            detections.dataset = {**truth.dataset, "annotations": []}
            detections.createIndex()
        evaluation = COCOeval(truth, detections, iou_type)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation
