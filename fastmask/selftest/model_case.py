"""A whole model on a device against the same model on the CPU, on synthetic images, by the matched rule."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastmask.demo import draw_scene
from fastmask.evaluation.agreement import mask_ious, matched_share
from fastmask.inference.predictor import Predictor
from fastmask.models.detection.slim import maskrcnn_slim_fpn

IMAGES = 20  # with about nine detections each, so that one more or less is half a percent
SIZE = (192, 192)


class ModelCase:
    """The slim model with the weights that come with the package, which finds shapes.

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
        """Raise AssertionError where too many detections of a Predictor are not the model's."""
        copy = maskrcnn_slim_fpn(weights="SHAPES_V1", progress=False).eval().to(device)
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):  # which has ten bits
            predictor = Predictor(copy, "exact", dtype=dtype, masks="float")
            found = [{name: values.cpu() for name, values in one.items()} for one in predictor(self.images)]
        pairs = list(zip(found, self.expected, strict=True))
        if dtype in (torch.float64, torch.float32):
            weights = [len(one["boxes"]) + len(other["boxes"]) for one, other in pairs]
            shares = [matched_share(one, other) for one, other in pairs]
            share = sum(share * weight for share, weight in zip(shares, weights, strict=True)) / sum(weights)
            assert share >= 0.98, f"{share:.1%} of {sum(weights)} detections are matched, 98 % must be"
            return
        ious = torch.cat([_ious(one, other) for one, other in pairs])
        share = float((ious > 0.9).double().mean())
        assert share >= 0.95, f"{share:.1%} of {len(ious)} masks have an IoU above 0.9, 95 % must have"


def _ious(found: dict[str, Any], expected: dict[str, Tensor]) -> Tensor:
    """Of the masks that the model is sure of: half types move scores by hundredths."""
    sure = expected["scores"] > 0.5
    ours, theirs = (
        {"labels": one["labels"], "masks": one["masks"][:, 0] > 0.5}
        for one in (found, {name: values[sure] for name, values in expected.items()})
    )
    return mask_ious(ours, theirs)
