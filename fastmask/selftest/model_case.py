"""Self-test case of a whole model: on a device against the CPU, on synthetic images, by matched detections."""

from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from fastmask.demo import draw_scene
from fastmask.evaluation.agreement import mask_ious, matched_share
from fastmask.inference.predictor import Predictor
from fastmask.models.detection.slim import maskrcnn_slim_fpn

IMAGES = 20  # with about nine detections each: a detection is half a percent
SIZE = (192, 192)


class ModelCase:
    """The slim model with the package's own weights, which detects shapes.

    Args:
        seed: of the images.
    """

    def __init__(self, seed: int) -> None:
        self.model = maskrcnn_slim_fpn(weights="SHAPES_V1", progress=False).eval().requires_grad_(False)
        generator = np.random.default_rng(seed)
        scenes = [draw_scene(generator, SIZE).image for _ in range(IMAGES)]
        self.images = [torch.from_numpy(scene).permute(2, 0, 1) for scene in scenes]
        self.expected = self.model([image / 255 for image in self.images])

    def check(self, device: torch.device, dtype: torch.dtype) -> None:
        """Raise AssertionError where too few of a Predictor's detections match the model's on the CPU."""
        copy = maskrcnn_slim_fpn(weights="SHAPES_V1", progress=False).eval().to(device)
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):  # which has ten bits
            predictor = Predictor(copy, "exact", dtype=dtype, masks="float")
            found = predictor(self.images)
        predictions = [{name: cast(Tensor, values).cpu() for name, values in image.items()} for image in found]
        pairs = list(zip(predictions, self.expected, strict=True))
        if dtype in (torch.float64, torch.float32):
            weights = [len(prediction["boxes"]) + len(expected["boxes"]) for prediction, expected in pairs]
            shares = [matched_share(prediction, expected) for prediction, expected in pairs]
            share = sum(share * weight for share, weight in zip(shares, weights, strict=True)) / sum(weights)
            assert share >= 0.98, f"{share:.1%} of {sum(weights)} detections are matched, 98 % must be"
            return
        ious = torch.cat([_ious(prediction, expected) for prediction, expected in pairs])
        share = float((ious > 0.9).double().mean())
        assert share >= 0.95, f"{share:.1%} of {len(ious)} masks have an IoU above 0.9, 95 % must have"


def _ious(prediction: dict[str, Any], expected: dict[str, Tensor]) -> Tensor:
    """IoUs of confident masks: half types move scores by hundredths."""
    sure = expected["scores"] > 0.5
    ours, theirs = (
        {"labels": detections["labels"], "masks": detections["masks"][:, 0] > 0.5}
        for detections in (prediction, {name: values[sure] for name, values in expected.items()})
    )
    return mask_ious(ours, theirs)
