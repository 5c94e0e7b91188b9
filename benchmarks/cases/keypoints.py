"""Keypoints found in heatmaps of detections."""

import functools
from typing import Any

import torch
from torch import Tensor

from fastmask.benchmarks.case import HAS_TORCHVISION, Case, CaseSpec
from fastmask.benchmarks.inputs import IMAGE_SIZE, boxes_in
from fastmask.kernels import reference_layers
from fastmask.kernels.keypoints import decode_keypoints_op
from fastmask.kernels.predict.inputs import draw_heatmaps
from fastmask.kernels.roofline import min_bytes
from fastmask.models.detection.roi_heads import heatmaps_to_keypoints

SAMPLE = 1  # detections compared with the literal reference
TIED = 1e-2  # maximum share of heatmaps whose maximum is another sample but for rounding


def decode(generator: torch.Generator, device: torch.device, *, num: int = 100) -> Case:
    heatmaps = draw_heatmaps(generator, num).to(device)
    boxes = boxes_in(generator, num, IMAGE_SIZE).to(device)
    providers: dict[str, Any] = {}
    if HAS_TORCHVISION:
        from torchvision.models.detection.roi_heads import heatmaps_to_keypoints as theirs

        providers["torchvision"] = functools.partial(theirs, heatmaps, boxes)
    providers["fastmask"] = functools.partial(heatmaps_to_keypoints, heatmaps, boxes)

    def check(ours: tuple[Tensor, Tensor], theirs: tuple[Tensor, Tensor]) -> None:
        torch.testing.assert_close(ours[1], theirs[1], rtol=1e-4, atol=1e-4)
        differing = float(((ours[0] - theirs[0]).abs().amax(2) > 1e-2).float().mean())
        assert differing <= TIED, f"{differing:.2%} of the keypoints differ"

    def sample() -> None:
        few = heatmaps[:SAMPLE].cpu(), boxes[:SAMPLE].cpu()
        expected = reference_layers.decode_keypoints(*few, *IMAGE_SIZE)[1]
        actual = heatmaps_to_keypoints(heatmaps[:SAMPLE], boxes[:SAMPLE])[1].cpu()
        torch.testing.assert_close(actual.double(), expected, rtol=0, atol=1e-4)

    inputs = f"{num} detections, 17 heatmaps of 56 x 56 float32 with a peak each, boxes in {IMAGE_SIZE}"
    args = (heatmaps, boxes, *IMAGE_SIZE)
    capturable = {"fastmask": lambda: decode_keypoints_op(*args)}
    return Case(providers, check, inputs, min_bytes(decode_keypoints_op, *args), sample=sample, capturable=capturable)


SPECS: dict[str, CaseSpec] = {
    f"keypoints of {num} detections": CaseSpec(functools.partial(decode, num=num), num == 100) for num in (20, 100)
}
