"""What ``fastmask tune`` times each knob on, the benchmarks' inputs at a model's shapes, and what counts as equal."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

import fastmask
from fastmask.benchmarks.case import Rule
from fastmask.benchmarks.cases import nms as nms_cases, roi_align as roi_cases
from fastmask.benchmarks.cases.model import comparable, half_rule
from fastmask.benchmarks.inputs import PADDED_SIZE, blob_masks, textured
from fastmask.evaluation.agreement import matched_share
from fastmask.kernels.knobs import Knob
from fastmask.kernels.paste import paste_masks_op
from fastmask.kernels.rle import encode_masks_op
from fastmask.ops.masks import choose_capacity

MASKS = 100  # an image
FEW = 7  # detections where few are found
# of sums in another order: products of float32 accumulated in it, or one rounding of the output
TOLERANCES = {torch.float32: 1e-4, torch.float16: 2**-10, torch.bfloat16: 2**-7}
SHARE = 0.95  # of detections that must match: masks of fewer rows at once may be convolved in another order


class Shapes(NamedTuple):
    """What a model works on."""

    size: tuple[int, int] = PADDED_SIZE  # (height, width) of padded images
    batch: int = 1
    dtype: torch.dtype = torch.bfloat16
    model: Callable[[], Any] | None = None  # makes it; None: settings of Predictor are not tuned


class Workload(NamedTuple):
    """One call to time.

    Args:
        name: in the table.
        make: called where the values to try are in force -> the call.
        capturable: whether the call never waits for the device, so that its time is that of a CUDA graph.
    """

    name: str
    make: Callable[[], Callable[[], Any]]
    capturable: bool = True


Build = Callable[[Shapes, torch.device], list[Workload]]


def fixed(name: str, run: Callable[[], Any]) -> Workload:
    """Of a call that looks its values up each time."""
    return Workload(name, lambda: run)


def roi_align(shapes: Shapes, device: torch.device) -> list[Workload]:
    """The box head's and the mask head's RoIAlign on channels-last maps."""
    options: dict[str, Any] = {"batch": shapes.batch, "dtype": shapes.dtype, "size": shapes.size}
    boxes = roi_cases.roi_align(_generator(), device, num=1000, **options)
    masks = roi_cases.roi_align(_generator(), device, num=MASKS, pooled=14, **options)
    return [
        fixed("1000 RoIs of 7 x 7", boxes.capturable["fastmask"]),
        fixed(f"{MASKS} RoIs of 14 x 14", masks.capturable["fastmask"]),
    ]


def roi_align_apart(shapes: Shapes, device: torch.device) -> list[Workload]:
    """RoIAlign of few RoIs on float32 maps that are not channels-last, as torchvision's users have it."""
    options: dict[str, Any] = {"batch": shapes.batch, "channels_last": False, "size": shapes.size}
    cases = {num: roi_cases.roi_align(_generator(), device, num=num, **options) for num in (200, 400)}
    return [fixed(f"{num} RoIs of 7 x 7, NCHW", case.capturable["fastmask"]) for num, case in cases.items()]


def roi_align_backward(shapes: Shapes, device: torch.device) -> list[Workload]:
    """RoIAlign's backward in a training step."""
    options: dict[str, Any] = {"batch": shapes.batch, "dtype": shapes.dtype, "size": shapes.size}
    case = roi_cases.roi_align(_generator(), device, num=512, way="backward", **options)
    return [fixed("512 RoIs of 7 x 7", case.capturable["fastmask"])]


def nms(shapes: Shapes, device: torch.device) -> list[Workload]:
    """NMS of the RPN and of the classes."""
    levels = nms_cases.rpn_nms(_generator(), device, shapes.batch)
    return [
        fixed("RPN's 4819 boxes in 5 levels", levels.capturable["fastmask"]),
        _class_nms(device, 20_000),
    ]


def nms_counted(shapes: Shapes, device: torch.device) -> list[Workload]:
    """NMS of 1,500 and 3,000 boxes in classes, which may be counted or sorted."""
    return [_class_nms(device, num) for num in (1500, 3000)]


def _class_nms(device: torch.device, num: int) -> Workload:
    case = nms_cases.batched_nms(_generator(), device, num=num, groups=80, threshold=0.5, clustered=False)
    return fixed(f"{num} boxes in 80 classes", case.capturable["fastmask"])


def paste_masks(shapes: Shapes, device: torch.device) -> list[Workload]:
    """Pasting 100 masks, bool."""
    masks, boxes = blob_masks(_generator(), device, MASKS, shapes.size)
    args = (masks[:, 0], boxes, *shapes.size, "bool", 0.5, False, False, 1)
    return [fixed(f"{MASKS} masks on {shapes.size}", lambda: paste_masks_op(*args))]


def encode_masks(shapes: Shapes, device: torch.device) -> list[Workload]:
    """The RLE of 100 masks an image."""
    num = MASKS * shapes.batch
    masks, boxes = blob_masks(_generator(), device, num, shapes.size)
    sizes = torch.tensor([shapes.size] * num, device=device)
    args = (masks[:, 0], boxes, sizes, choose_capacity(num, shapes.size[1]), 0.5, False, False, 1)
    return [fixed(f"{num} masks on {shapes.size}", lambda: encode_masks_op(*args))]


def predictor(shapes: Shapes, device: torch.device) -> list[Workload]:
    """A Predictor's call on two batches, where it finds all that it may, and where it finds few."""
    if shapes.model is None:
        return []
    model, generator = shapes.model(), _generator()
    images = [(textured(generator, shapes.size) * 255).byte().to(device) for _ in range(2 * shapes.batch)]

    def make(threshold: float) -> Callable[[], Any]:
        before, model.roi_heads.score_thresh = model.roi_heads.score_thresh, threshold
        try:  # its settings are those that are being tried
            made = fastmask.Predictor(model, shapes.size, shapes.batch, shapes.dtype)
        finally:
            model.roi_heads.score_thresh = before
        return lambda: made(images)

    usual = float(model.roi_heads.score_thresh)
    scores = torch.cat([found["scores"] for found in make(usual)()]).sort(descending=True).values
    workloads = [Workload("call, usual detections", lambda: make(usual), False)]
    if len(scores) > FEW * len(images):
        few = float(scores[FEW * len(images)])
        workloads.append(Workload(f"call, {FEW} detections", lambda: make(few), False))
    return workloads


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


WORKLOADS: dict[str, Build] = {
    build.__name__: build
    for build in (roi_align, roi_align_apart, roi_align_backward, nms, nms_counted, paste_masks, encode_masks)
} | {"predictor": predictor}


def rule_of(knob: Knob) -> Rule:
    """What a choice's results must have in common with the default's: all bits, or all but those of rounding."""
    if knob.name in RULES:
        return RULES[knob.name]
    return same_bits if knob.exact else close


def same_bits(actual: Any, expected: Any) -> None:
    for one, other in zip(_tensors(actual), _tensors(expected), strict=True):
        assert one.shape == other.shape, f"shapes differ: {tuple(one.shape)} and {tuple(other.shape)}"
        assert torch.equal(one, other), f"{int((one != other).sum())} of {one.numel()} elements differ"


def close(actual: Any, expected: Any) -> None:
    for one, other in zip(_tensors(actual), _tensors(expected), strict=True):
        tolerance = TOLERANCES[other.dtype]
        torch.testing.assert_close(one, other, rtol=tolerance, atol=1e-4)


def same_detections(actual: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    """See SHARE."""
    pairs = [*zip(_plain(actual), _plain(expected), strict=True)]
    weights = [len(mine["boxes"]) + len(other["boxes"]) for mine, other in pairs]
    matched = sum(weight * matched_share(*pair) for weight, pair in zip(weights, pairs, strict=True))
    assert matched >= SHARE * sum(weights), f"only {matched / sum(weights):.3f} of the detections match"


RULES: dict[str, Rule] = {  # of what a Predictor finds; other forms round elsewhere, in bfloat16
    "predictor.mask_buckets": same_detections,
    "predictor.fuse": half_rule,
}


def _plain(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return comparable(found) if all("masks" in one for one in found) else found


def _tensors(output: Any) -> list[Tensor]:
    if isinstance(output, Tensor):
        return [output]
    return [tensor for part in output for tensor in _tensors(part)]
