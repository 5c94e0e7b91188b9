"""Workloads of ``fastmask tune``, the benchmarks' inputs at a model's shapes, and checks of their results."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

import fastmask
from fastmask.benchmarks.case import Check
from fastmask.benchmarks.cases import nms as nms_cases, roi_align as roi_cases
from fastmask.benchmarks.cases.model import check_bf16, decode_detections
from fastmask.benchmarks.inputs import PADDED_SIZE, blob_masks, textured_image
from fastmask.evaluation.agreement import matched_share
from fastmask.kernels.knobs import Knob
from fastmask.kernels.paste import paste_masks_op
from fastmask.kernels.rle import encode_masks_op
from fastmask.ops.masks import choose_capacity

MASKS = 100  # per image
FEW = 7  # detections per image of the workload with few
# of sums in another order: float32 products accumulated in float32, or one rounding of the output
TOLERANCES = {torch.float32: 1e-4, torch.float16: 2**-10, torch.bfloat16: 2**-7}
SHARE = 0.95  # minimum share of matching detections: smaller batches of masks may be convolved in another order


class Shapes(NamedTuple):
    """Shapes of a model's inputs."""

    size: tuple[int, int] = PADDED_SIZE  # (height, width) of padded images
    batch: int = 1
    dtype: torch.dtype = torch.bfloat16
    model: Callable[[], Any] | None = None  # builds the model; None: settings of Predictor are not tuned


class Workload(NamedTuple):
    """One call to time.

    Args:
        name: in the table.
        make: builds the call, with the values to try in force.
        capturable: whether the call has no host sync, so that a CUDA graph of it is timed.
    """

    name: str
    make: Callable[[], Callable[[], Any]]
    capturable: bool = True


Build = Callable[[Shapes, torch.device], list[Workload]]


def fixed_workload(name: str, run: Callable[[], Any]) -> Workload:
    """The workload of a call that reads its values each time."""
    return Workload(name, lambda: run)


def roi_align(shapes: Shapes, device: torch.device) -> list[Workload]:
    """The box head's and the mask head's RoIAlign on channels-last feature maps."""
    options: dict[str, Any] = {"batch": shapes.batch, "dtype": shapes.dtype, "size": shapes.size}
    boxes = roi_cases.roi_align(_generator(), device, num=1000, **options)
    masks = roi_cases.roi_align(_generator(), device, num=MASKS, pooled=14, **options)
    return [
        fixed_workload("1000 RoIs of 7 x 7", boxes.capturable["fastmask"]),
        fixed_workload(f"{MASKS} RoIs of 14 x 14", masks.capturable["fastmask"]),
    ]


def roi_align_apart(shapes: Shapes, device: torch.device) -> list[Workload]:
    """RoIAlign of few RoIs on contiguous float32 feature maps, as torchvision's users have them."""
    options: dict[str, Any] = {"batch": shapes.batch, "channels_last": False, "size": shapes.size}
    cases = {num: roi_cases.roi_align(_generator(), device, num=num, **options) for num in (200, 400)}
    return [fixed_workload(f"{num} RoIs of 7 x 7, NCHW", case.capturable["fastmask"]) for num, case in cases.items()]


def roi_align_backward(shapes: Shapes, device: torch.device) -> list[Workload]:
    """RoIAlign's backward in a training step."""
    options: dict[str, Any] = {"batch": shapes.batch, "dtype": shapes.dtype, "size": shapes.size}
    case = roi_cases.roi_align(_generator(), device, num=512, way="backward", **options)
    return [fixed_workload("512 RoIs of 7 x 7", case.capturable["fastmask"])]


def nms(shapes: Shapes, device: torch.device) -> list[Workload]:
    """NMS of the RPN and of the classes."""
    levels = nms_cases.rpn_nms(_generator(), device, shapes.batch)
    return [
        fixed_workload("RPN's 4819 boxes in 5 levels", levels.capturable["fastmask"]),
        _class_nms(device, 20_000),
    ]


def nms_counted(shapes: Shapes, device: torch.device) -> list[Workload]:
    """NMS of 1,500 and 3,000 boxes in classes, which may be counted or sorted."""
    return [_class_nms(device, num) for num in (1500, 3000)]


def _class_nms(device: torch.device, num: int) -> Workload:
    case = nms_cases.batched_nms(_generator(), device, num=num, groups=80, threshold=0.5, clustered=False)
    return fixed_workload(f"{num} boxes in 80 classes", case.capturable["fastmask"])


def paste_masks(shapes: Shapes, device: torch.device) -> list[Workload]:
    """Pasting 100 masks, bool."""
    masks, boxes = blob_masks(_generator(), device, MASKS, shapes.size)
    args = (masks[:, 0], boxes, *shapes.size, "bool", 0.5, False, False, 1)
    return [fixed_workload(f"{MASKS} masks on {shapes.size}", lambda: paste_masks_op(*args))]


def encode_masks(shapes: Shapes, device: torch.device) -> list[Workload]:
    """The RLE of 100 masks an image."""
    num = MASKS * shapes.batch
    masks, boxes = blob_masks(_generator(), device, num, shapes.size)
    sizes = torch.tensor([shapes.size] * num, device=device)
    args = (masks[:, 0], boxes, sizes, choose_capacity(num, shapes.size[1]), 0.5, False, False, 1)
    return [fixed_workload(f"{num} masks on {shapes.size}", lambda: encode_masks_op(*args))]


def predictor(shapes: Shapes, device: torch.device) -> list[Workload]:
    """A Predictor's call on two batches, with all and with few detections."""
    if shapes.model is None:
        return []
    model, generator = shapes.model(), _generator()
    images = [(textured_image(generator, shapes.size) * 255).byte().to(device) for _ in range(2 * shapes.batch)]

    def make(threshold: float) -> Callable[[], Any]:
        before, model.roi_heads.score_thresh = model.roi_heads.score_thresh, threshold
        try:  # a new Predictor takes the settings to try
            predictor = fastmask.Predictor(model, shapes.size, shapes.batch, shapes.dtype)
        finally:
            model.roi_heads.score_thresh = before
        return lambda: predictor(images)

    usual = float(model.roi_heads.score_thresh)
    scores = torch.cat([prediction["scores"] for prediction in make(usual)()]).sort(descending=True).values
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


def choose_check(knob: Knob) -> Check:
    """The check of a choice's results against the default's: all bits, or all but those of rounding."""
    if knob.name in CHECKS:
        return CHECKS[knob.name]
    return check_bits if knob.exact else check_close


def check_bits(actual: Any, expected: Any) -> None:
    for a, b in zip(_tensors(actual), _tensors(expected), strict=True):
        assert a.shape == b.shape, f"shapes differ: {tuple(a.shape)} and {tuple(b.shape)}"
        assert torch.equal(a, b), f"{int((a != b).sum())} of {a.numel()} elements differ"


def check_close(actual: Any, expected: Any) -> None:
    for a, b in zip(_tensors(actual), _tensors(expected), strict=True):
        tolerance = TOLERANCES[b.dtype]
        torch.testing.assert_close(a, b, rtol=tolerance, atol=1e-4)


def check_detections(actual: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    """Check that at least SHARE of the detections match."""
    pairs = [*zip(_decode(actual), _decode(expected), strict=True)]
    weights = [len(mine["boxes"]) + len(other["boxes"]) for mine, other in pairs]
    matched = sum(weight * matched_share(*pair) for weight, pair in zip(weights, pairs, strict=True))
    assert matched >= SHARE * sum(weights), f"only {matched / sum(weights):.3f} of the detections match"


CHECKS: dict[str, Check] = {  # of a Predictor's detections; other forms round elsewhere, in bfloat16
    "predictor.mask_buckets": check_detections,
    "predictor.fuse": check_bf16,
}


def _decode(predictions: list[dict[str, Any]]) -> list[dict[str, Any]]:
    has_masks = all("masks" in prediction for prediction in predictions)
    return decode_detections(predictions) if has_masks else predictions


def _tensors(output: Any) -> list[Tensor]:
    if isinstance(output, Tensor):
        return [output]
    return [tensor for part in output for tensor in _tensors(part)]
