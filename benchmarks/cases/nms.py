"""NMS in groups: an RPN's levels, and classes."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastmask import ops
from fastmask.benchmarks.case import HAS_TORCHVISION, Case, Entry
from fastmask.benchmarks.inputs import IMAGE_SIZE, boxes_in, clustered_boxes
from fastmask.kernels import reference
from fastmask.kernels.nms import nms_padded_op
from fastmask.kernels.roofline import min_bytes

SAMPLE = 200  # boxes that are compared with the literal reference
LEVELS = [1000, 1000, 1000, 1000, 819]  # candidates that an RPN keeps of each level of a padded image of 800 x 1344


def batched_nms(
    generator: torch.Generator, device: torch.device, *, num: int, groups: int, threshold: float, clustered: bool
) -> Case:
    boxes = clustered_boxes(generator, num) if clustered else boxes_in(generator, num, IMAGE_SIZE)
    boxes, scores = boxes.to(device), torch.rand(num, generator=generator).to(device)
    labels = torch.randint(groups, (num,), generator=generator).to(device)
    providers: dict[str, Callable[[], Any]] = {}
    if HAS_TORCHVISION:
        import torchvision

        providers["torchvision"] = lambda: torchvision.ops.batched_nms(boxes, scores, labels, threshold)
    providers["fastmask"] = lambda: ops.batched_nms(boxes, scores, labels, threshold)

    def agree(ours: Tensor, theirs: Tensor) -> None:
        # torchvision's coordinate offsets round: a handful of boxes whose IoU is at the threshold may differ
        differing = len(set(ours.tolist()) ^ set(theirs.tolist()))
        assert differing <= max(2, num // 1000), f"{differing} of {num} boxes differ"

    def sample() -> None:
        few = boxes[:SAMPLE], scores[:SAMPLE], labels[:SAMPLE]
        expected = reference.nms(few[0].cpu(), few[1].cpu(), few[2].cpu(), None, threshold, SAMPLE)
        assert ops.batched_nms(*few, threshold).tolist() == expected, "kept boxes differ"

    inputs = f"{num} {'clustered' if clustered else 'random'} boxes float32 in {groups} groups, IoU {threshold}"
    args = (boxes[None], scores[None], labels[None], None, threshold, num, groups)

    def padded() -> Tensor:
        indices: Tensor = nms_padded_op(*args)[0][0]
        return indices

    moved = min_bytes(nms_padded_op, *args)
    return Case(providers, agree, inputs, moved, sample=sample, capturable={"fastmask": padded})


def rpn_nms(generator: torch.Generator, device: torch.device, batch: int | None = None) -> Case:
    """What an RPN does for a batch, level after level by score: torchvision image after image, ours in one call."""
    batch, num = batch or (8 if device.type == "cuda" else 2), sum(LEVELS)
    boxes = torch.stack([boxes_in(generator, num, IMAGE_SIZE) for _ in range(batch)]).to(device)
    runs = torch.rand(batch, num, generator=generator).split(LEVELS, dim=1)
    scores = torch.cat([run.sort(dim=1, descending=True).values for run in runs], 1).to(device)
    levels = torch.arange(len(LEVELS)).repeat_interleave(torch.tensor(LEVELS)).expand(batch, -1).to(device)
    images = list(zip(boxes, scores, levels, strict=True))
    providers: dict[str, Callable[[], Any]] = {}
    if HAS_TORCHVISION:
        import torchvision

        providers["torchvision"] = lambda: [torchvision.ops.batched_nms(*image, 0.7)[:1000] for image in images]

    def ours() -> list[Tensor]:
        indices, count = ops.nms_padded(boxes, scores, presorted=LEVELS, iou_threshold=0.7, max_output=1000)
        return [indices, count]

    providers["fastmask"] = ours

    def agree(ours: list[Tensor], theirs: list[Tensor]) -> None:
        for indices, count, expected in zip(*ours, theirs, strict=True):
            differing = len(set(indices[:count].tolist()) ^ set(expected.tolist()))
            assert differing <= 2, f"{differing} of {len(expected)} boxes differ"

    def sample() -> None:
        few = [tensor[:1, :: num // SAMPLE] for tensor in (boxes, scores, levels)]
        runs = few[2][0].bincount().tolist()
        indices, count = ops.nms_padded(*few[:2], presorted=runs, iou_threshold=0.7, max_output=SAMPLE)
        expected = reference.nms(few[0][0].cpu(), few[1][0].cpu(), few[2][0].cpu(), None, 0.7, SAMPLE)
        assert indices[0, : count[0]].tolist() == expected, "kept boxes differ"

    inputs = f"{batch} x 4819 random boxes float32 in 5 levels, each by score, IoU 0.7, 1000 kept"
    moved = min_bytes(nms_padded_op, boxes, scores, None, None, 0.7, 1000, 0, LEVELS)
    return Case(providers, agree, inputs, moved, sample=sample, capturable={"fastmask": ours})


def rpn(clustered: bool) -> Entry:
    return Entry(functools.partial(batched_nms, num=4819, groups=5, threshold=0.7, clustered=clustered))


def classes(num: int, clustered: bool, chosen: bool = True) -> Entry:
    build = functools.partial(batched_nms, num=num, groups=80, threshold=0.5, clustered=clustered)
    return Entry(build, chosen, (("NMS in 80 classes, " + ("clustered" if clustered else "random"), "boxes", num),))


ENTRIES: dict[str, Entry] = {
    "NMS, RPN, random": rpn(clustered=False),
    "NMS, RPN, clustered": rpn(clustered=True),
    "NMS, RPN, a batch": Entry(rpn_nms),
    "NMS, 1k in 80 classes, random": classes(1_000, clustered=False),
    "NMS, 4k in 80 classes, random": classes(4_000, clustered=False, chosen=False),
    "NMS, 20k in 80 classes, random": classes(20_000, clustered=False),
    "NMS, 100k in 80 classes, random": classes(100_000, clustered=False),
    "NMS, 1k in 80 classes, clustered": classes(1_000, clustered=True, chosen=False),
    "NMS, 4k in 80 classes, clustered": classes(4_000, clustered=True, chosen=False),
    "NMS, 20k in 80 classes, clustered": classes(20_000, clustered=True),
    "NMS, 100k in 80 classes, clustered": classes(100_000, clustered=True),
}
