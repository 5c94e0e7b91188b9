"""One crowded image in a batch: memory follows the objects, values are those of matrices and masks taken whole."""

import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers.slim import slim_model
from helpers.static import NoDataDependence
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import fastmask
from fastmask.models.detection import losses, sampling
from fastmask.models.detection.sampling import Matcher, match, match_boxes
from fastmask.models.detection.transform import resize_masks
from fastmask.ops import box_iou, roi_align
from fastmask.structures import pad_targets

Target = dict[str, Tensor]


@pytest.fixture(params=[False, True], ids=["on the CPU", "static"])
def static(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether the program is the one of a GPU."""
    if request.param:
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    return bool(request.param)


def draw_target(num: int, side: int) -> Target:
    low = torch.rand(num, 2) * (side - 20)
    boxes = torch.cat([low, low + 4 + 16 * torch.rand(num, 2)], 1)
    masks = torch.zeros(num, side, side, dtype=torch.uint8)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes.int().tolist(), strict=True):
        mask[y1:y2, x1 : (x1 + x2) // 2 + 1] = 1
    return {"boxes": boxes, "labels": torch.randint(1, 5, (num,)), "masks": masks}


def draw_crowded(num: int, side: int) -> tuple[list[Tensor], list[Target]]:
    """Four images, of which the first has so many objects, and the others five."""
    return [torch.rand(3, side, side) for _ in range(4)], [draw_target(n, side) for n in (num, 5, 5, 5)]


class LargestTensor(TorchDispatchMode):
    """Bytes of the largest tensor that an operation returns."""

    bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        sizes = [value.untyped_storage().nbytes() for value in tree_leaves(out) if isinstance(value, Tensor)]
        self.bytes = max(self.bytes, *sizes, 0)
        return out


def test_no_tensor_is_larger_than_the_masks(static: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """3,000 objects in one of four images; masks padded to the batch would be four times as large."""
    for module, name in ((sampling, "MOST_PAIRS"), (sampling, "MOST_PAIRS_ON_CPU"), (losses, "MOST_PIXELS")):
        monkeypatch.setattr(module, name, 2**20)
    options = {"min_size": 64, "rpn_post_nms_top_n_train": 100, "box_batch_size_per_image": 32}
    model = slim_model(fastmask, **options).train()
    images, targets = draw_crowded(3000, 64)
    with LargestTensor() as largest:
        if static:
            batch, resized = model.transform(images, targets)
            sizes, padded = torch.tensor(batch.image_sizes), pad_targets(resized, batch.tensors, True)
            with NoDataDependence():
                found = model.losses(batch.tensors, sizes, padded)
        else:
            found = model(images, targets)
        sum(found.values()).backward()
    assert largest.bytes == 3015 * 64 * 64
    assert all(loss.isfinite() for loss in found.values())


@pytest.mark.parametrize("low_quality", [False, True], ids=["threshold", "low quality"])
def test_matching_in_parts(low_quality: bool, static: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bitwise that of the whole, with ties, padding, an image without instances, and boxes that are NaN."""
    boxes, candidates = (torch.randint(0, 8, (4, num, 4)).float() for num in (13, 90))
    for corners in (boxes, candidates):
        corners[..., 2:] += corners[..., :2] + 1
    boxes[2, 5, 0] = boxes[2, 9, 0] = math.nan
    valid = torch.arange(13) < torch.tensor([13, 2, 11, 0])[:, None]
    matcher = Matcher(0.7, 0.3, low_quality)
    for rows in (candidates, candidates[:1]):
        expected = match(matcher, box_iou(boxes, rows), valid)
        assert {-1, 0, 1} == set(expected[1].flatten().tolist())
        for most in (1, 400, 2000, 10**6):
            monkeypatch.setattr(sampling, "MOST_PAIRS", most)
            monkeypatch.setattr(sampling, "MOST_PAIRS_ON_CPU", most)
            for actual, wanted in zip(match_boxes(matcher, boxes, rows, valid), expected, strict=True):
                assert torch.equal(actual, wanted)


def test_masks_cropped_in_parts(static: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The values are those of all masks at once, bitwise on the CPU where the RoIs' own fit; no mask, no RoI: zeros."""
    masks = (torch.rand(11, 40, 50) < 0.5).byte()
    low = torch.rand(30, 2) * 30
    rois = torch.cat([torch.randint(3, 8, (30, 1)), low, low + torch.rand(30, 2) * 20], 1)
    expected = roi_align(masks[:, None].float(), rois, (7, 7))[:, 0]
    assert torch.equal(losses.crop_masks(masks, rois, (7, 7)), expected)
    monkeypatch.setattr(losses, "MOST_PIXELS", 5000)
    torch.testing.assert_close(losses.crop_masks(masks, rois, (7, 7)), expected, rtol=0, atol=1e-6)
    assert losses.crop_masks(masks, rois[:0], (7, 7)).shape == (0, 7, 7)
    if static:  # of an image without instances behind all others
        rois[:, 0] = 11
        assert not losses.crop_masks(masks, rois, (7, 7)).any()


@pytest.mark.parametrize("sizes", [((33, 50), (64, 97)), ((60, 40), (21, 14)), ((9, 9), (9, 9))], ids=str)
def test_masks_resized_as_bytes(sizes: tuple[tuple[int, int], tuple[int, int]]) -> None:
    masks = torch.rand(5, *sizes[0]) < 0.5
    expected = F.interpolate(masks[:, None].float(), size=sizes[1])[:, 0].byte()
    for kind in (torch.bool, torch.uint8, torch.int64, torch.float64):
        assert torch.equal(resize_masks(masks.to(kind), sizes[1]), expected)


PROGRAM = """
import importlib, resource, sys, torch
from helpers.slim import slim_model
from models.test_crowded import draw_crowded

library, num, side = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
torch.set_num_threads(1)
torch.manual_seed(0)
model = slim_model(importlib.import_module(library), min_size=side, max_size=side).train()
sum(model(*draw_crowded(5, side)).values()).backward()
images, targets = draw_crowded(num, side)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
sum(model(images, targets).values()).backward()
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**10)
"""


@pytest.mark.slow
def test_peak_memory_beside_torchvisions() -> None:
    """What a step of the slim model adds to the resident memory: four images of 512 x 512, 1,000 objects in one."""
    root = Path(__file__).parent.parent
    peak = {}
    for library in ("torchvision", "fastmask"):
        command = [sys.executable, "-c", PROGRAM, library, "1000", "512"]
        environment = os.environ | {"PYTHONPATH": str(root)}
        done = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True, check=True)
        peak[library] = float(done.stdout)
    print(f"\ncrowded step: {', '.join(f'{library} {value:.0f} MiB' for library, value in peak.items())}")
    assert peak["fastmask"] <= 0.6 * peak["torchvision"]
