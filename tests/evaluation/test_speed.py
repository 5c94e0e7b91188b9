"""The time of evaluation without inference, for as many images as COCO's validation set has."""

import time

import numpy as np
import pytest
import torch
from helpers.inputs import draw_masks
from tqdm import tqdm

from fastmask import ops
from fastmask.demo import Scenes, synthetic_dataset
from fastmask.evaluation import Evaluator
from fastmask.inference.coco_results import to_coco_results

IMAGES = 5000
DETECTIONS = 100
SIZES = [(192, 192), (480, 640)]  # the demo's synthetic images; COCO's photos
LIMIT = 180.0  # seconds


@pytest.mark.slow
@pytest.mark.parametrize("size", SIZES, ids=["192", "480 x 640"])
def test_five_thousand_images(size: tuple[int, int], seed: int) -> None:
    """100 detections each, some of them close to an instance: RLE, matching, accumulation."""
    categories = synthetic_dataset(0).categories
    evaluator = Evaluator(categories)
    seconds = dict.fromkeys(("encode", "match"), 0.0)
    masks = draw_masks(DETECTIONS)
    for number, record in enumerate(tqdm(Scenes(IMAGES, seed, size), unit="img")):
        corner = torch.rand(DETECTIONS, 2) * torch.tensor([size[1], size[0]]) * 0.8
        boxes = torch.cat([corner, corner + 8 + 0.3 * size[0] * torch.rand(DETECTIONS, 2) ** 2], dim=1)
        known = torch.tensor([instance.bounds() for instance in record.instances])
        boxes[: len(known)] = known + 2 * torch.randn(len(known), 4)
        labels = torch.randint(1, len(categories) + 1, (DETECTIONS,))
        labels[: len(known)] = torch.tensor([categories[instance.category] for instance in record.instances])
        detections = {"boxes": boxes, "labels": labels, "scores": torch.rand(DETECTIONS)}
        start = time.perf_counter()
        detections["masks"] = ops.encode_masks(masks, boxes, size)
        results = to_coco_results(number, detections)
        seconds["encode"] += time.perf_counter() - start
        start = time.perf_counter()
        evaluator.add(number, record, results)
        seconds["match"] += time.perf_counter() - start
    evaluation = evaluator.evaluate((), seconds)
    split = ", ".join(f"{name} {spent:.1f}" for name, spent in evaluation.seconds.items())
    print(f"\n{IMAGES} images of {size}, {DETECTIONS} detections each, on 2 cores; seconds: {split}")
    assert evaluation.detections == IMAGES * DETECTIONS
    assert evaluation.metrics["box"].ar_100 > 0.5
    assert np.isfinite(evaluation.metrics["mask"]).all()
    assert sum(evaluation.seconds.values()) < LIMIT
