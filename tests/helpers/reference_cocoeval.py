"""COCO annotations and detections that tests draw, and pycocotools run on them as its own demo does."""

import contextlib
import io
from typing import Any

import numpy as np
import pytest

from fastmask.cocoapi import mask as coco

COCO = pytest.importorskip("pycocotools.coco", reason="metrics are compared with pycocotools'").COCO
COCOeval = pytest.importorskip("pycocotools.cocoeval").COCOeval
Json = dict[str, Any]


def draw_blob(height: int, width: int) -> tuple[np.ndarray, list[float]]:
    """A mask and its box (x, y, width, height), of any size, the whole image's at most."""
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
    images: int, objects: int, detections: int, categories: list[int], size: tuple[int, int], crowd: float = 0.15
) -> tuple[Json, list[Json]]:
    """Annotations, and detections: shifted objects, some of them of another category, and some of nothing; with ties.

    Ids of images are neither sorted nor without gaps.
    """
    height, width = size
    inputs, annotations, entries = [], [], []
    for number in (np.random.permutation(3 * images)[:images] + 5).tolist():
        inputs.append({"id": number, "file_name": f"{number}.png", "height": height, "width": width})
        own = []
        for _ in range(int(np.random.randint(objects + 1))):
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
            entry = {"image_id": number, "category_id": category, "bbox": box, "score": score}
            entries.append(entry | {"segmentation": as_rle(mask)})
    names = [{"id": number, "name": f"c{number}"} for number in categories]
    return {"images": inputs, "annotations": annotations, "categories": names}, entries


def run_cocoeval(annotations: Json, entries: list[Json], kind: str) -> COCOeval:
    """pycocotools from beginning to end; areas of detections are their masks' where masks are compared."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = {**annotations, "annotations": [dict(one) for one in annotations["annotations"]]}
        truth.createIndex()
        dropped = "bbox" if kind == "segm" else "segmentation"
        found = [{name: value for name, value in entry.items() if name != dropped} for entry in entries]
        if found:
            answers = truth.loadRes(found)
        else:  # which loadRes cannot take
            answers = COCO()
            answers.dataset = {**truth.dataset, "annotations": []}
            answers.createIndex()
        evaluation = COCOeval(truth, answers, kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation
