"""Non-maximum suppression in groups: the RPN's levels, and classes; soft-NMS in classes."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastmask import ops
from fastmask.benchmarks.case import HAS_TORCHVISION, Case, CaseSpec
from fastmask.benchmarks.inputs import IMAGE_SIZE, boxes_in, clustered_boxes
from fastmask.kernels import reference
from fastmask.kernels.nms import nms_padded_op
from fastmask.kernels.roofline import min_bytes
from fastmask.kernels.soft_nms import soft_nms_padded_op

SAMPLE = 200  # boxes compared with the literal reference
LEVELS = [1000, 1000, 1000, 1000, 819]  # an RPN's candidates per level, of a padded image of 800 x 1344


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

    def check(ours: Tensor, theirs: Tensor) -> None:
        # torchvision's coordinate offsets round: a handful of boxes whose IoU is at the threshold may differ
        differing = len(set(ours.tolist()) ^ set(theirs.tolist()))
        assert differing <= max(2, num // 1000), f"{differing} of {num} boxes differ"

    def sample() -> None:
        few = boxes[:SAMPLE], scores[:SAMPLE], labels[:SAMPLE]
        expected = reference.nms(few[0].cpu(), few[1].cpu(), few[2].cpu(), None, threshold, SAMPLE)
        assert ops.batched_nms(*few, threshold).tolist() == expected, "kept boxes differ"

    inputs = f"{num} {'clustered' if clustered else 'random'} boxes float32 in {groups} groups, IoU {threshold}"
    args = (boxes[None], scores[None], labels[None], None, threshold, num, groups)

    def run_padded() -> Tensor:
        indices: Tensor = nms_padded_op(*args)[0][0]
        return indices

    moved = min_bytes(nms_padded_op, *args)
    return Case(providers, check, inputs, moved, sample=sample, capturable={"fastmask": run_padded})


def rpn_nms(generator: torch.Generator, device: torch.device, batch: int | None = None) -> Case:
    """NMS of an RPN's batch, each level sorted by score: torchvision image by image, fastmask in one call."""
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

    def check(ours: list[Tensor], theirs: list[Tensor]) -> None:
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
    return Case(providers, check, inputs, moved, sample=sample, capturable={"fastmask": ours})


def soft_nms(generator: torch.Generator, device: torch.device, *, num: int, gaussian: bool) -> Case:
    """100 outputs of soft-NMS in 80 classes; the baseline is the paper's loop over picks, each in a few PyTorch ops."""
    boxes, scores = clustered_boxes(generator, num).to(device), torch.rand(num, generator=generator).to(device)
    labels = torch.randint(80, (num,), generator=generator).to(device)

    def loop() -> list[Tensor]:
        remaining, kept, decayed = scores.clone(), [], []
        for _ in range(100):
            best = remaining.argmax()
            kept.append(best)
            decayed.append(remaining[best])
            iou = ops.box_iou(boxes[best][None], boxes)[0]
            decay = (-(iou**2) / 0.5).exp() if gaussian else torch.where(iou > 0.3, 1 - iou, 1.0)
            remaining = torch.where(labels == labels[best], remaining * decay, remaining)
            remaining = torch.where(remaining < 0.001, -1, remaining).index_fill(0, best, -1)
        return [torch.stack(kept), torch.stack(decayed)]

    args = (boxes[None], scores[None], labels[None], None, 0.3, 0.5, gaussian, 0.001, 100)
    own: dict[str, Callable[[], Any]] = {"fastmask": lambda: [out[0] for out in soft_nms_padded_op(*args)[:2]]}
    providers = {"PyTorch loop": loop} | own

    def check(ours: list[Tensor], theirs: list[Tensor]) -> None:
        torch.testing.assert_close(ours[1], theirs[1], rtol=1e-5, atol=1e-6)  # equal but for rounding, so may picks be

    def sample() -> None:
        few = boxes[:SAMPLE], scores[:SAMPLE], labels[:SAMPLE]
        settings = (0.3, 0.5, gaussian, 0.001, 100)
        on_cpu, one = [values.cpu() for values in few], [values[None] for values in few]
        expected = reference.soft_nms(on_cpu[0], on_cpu[1], on_cpu[2], None, *settings)[0]
        actual = soft_nms_padded_op(one[0], one[1], one[2], None, *settings)[0][0]
        assert [i for i in actual.tolist() if i >= 0] == expected, "kept boxes differ"

    kind = "gaussian" if gaussian else "linear"
    inputs = f"{num} clustered boxes float32 in 80 groups, {kind}, 100 kept; baseline: a loop over picks"
    return Case(providers, check, inputs, min_bytes(soft_nms_padded_op, *args), sample=sample, capturable=own)


def make_soft_spec(num: int, gaussian: bool) -> CaseSpec:
    return CaseSpec(functools.partial(soft_nms, num=num, gaussian=gaussian), providers=("PyTorch loop", "fastmask"))


def make_rpn_spec(clustered: bool) -> CaseSpec:
    return CaseSpec(functools.partial(batched_nms, num=4819, groups=5, threshold=0.7, clustered=clustered))


def make_class_spec(num: int, clustered: bool, default: bool = True) -> CaseSpec:
    build = functools.partial(batched_nms, num=num, groups=80, threshold=0.5, clustered=clustered)
    return CaseSpec(build, default, (("NMS in 80 classes, " + ("clustered" if clustered else "random"), "boxes", num),))


SPECS: dict[str, CaseSpec] = {
    "NMS, RPN, random": make_rpn_spec(clustered=False),
    "NMS, RPN, clustered": make_rpn_spec(clustered=True),
    "NMS, RPN, a batch": CaseSpec(rpn_nms),
    "NMS, 1k in 80 classes, random": make_class_spec(1_000, clustered=False),
    "NMS, 4k in 80 classes, random": make_class_spec(4_000, clustered=False, default=False),
    "NMS, 20k in 80 classes, random": make_class_spec(20_000, clustered=False),
    "NMS, 100k in 80 classes, random": make_class_spec(100_000, clustered=False),
    "NMS, 1k in 80 classes, clustered": make_class_spec(1_000, clustered=True, default=False),
    "NMS, 4k in 80 classes, clustered": make_class_spec(4_000, clustered=True, default=False),
    "NMS, 20k in 80 classes, clustered": make_class_spec(20_000, clustered=True),
    "NMS, 100k in 80 classes, clustered": make_class_spec(100_000, clustered=True),
    "soft-NMS, 1k in 80 classes, linear": make_soft_spec(1_000, gaussian=False),
    "soft-NMS, 1k in 80 classes, gaussian": make_soft_spec(1_000, gaussian=True),
}
