"""Self-test cases of the ops: inputs, calls, and checks against kernels/reference.py."""

import functools
import itertools

import torch
from torch import Tensor

from fastmask.kernels import reference
from fastmask.kernels.nms import nms_padded_op
from fastmask.kernels.paste import paste_masks_backward_op, paste_masks_op
from fastmask.kernels.rle import encode_masks_op
from fastmask.kernels.roi_align import multilevel_roi_align_backward_op, multilevel_roi_align_op
from fastmask.kernels.roi_pool import roi_pool_backward_op, roi_pool_op
from fastmask.kernels.soft_nms import soft_nms_padded_op
from fastmask.ops.roi_align import level_limits
from fastmask.selftest.candidate_cases import list_candidate_cases
from fastmask.selftest.inputs import (
    adversarial_boxes,
    away_from_limits,
    draw_boxes,
    draw_masks,
    draw_pyramid,
    pyramid_scales,
    with_images,
)
from fastmask.selftest.layer_cases import list_layer_cases
from fastmask.selftest.op_case import OpCase, check_close, count_of, fill_like

SCALES = pyramid_scales(4)
LIMITS = level_limits(SCALES, 56, 4)  # of 224 / 4: so that the boxes drawn reach all levels
CHANNELS, SIDE = 256, 7
IMAGE = (60, 91)  # that masks are pasted on
LEVELS = [90, 30, 10]  # boxes of each, as an RPN's; the largest is more than one block of the kernel's
KEPT = 60  # boxes at most
CAPACITY = 2**18  # bytes of RLE
# float32 positions of up to 75 pixels, between values that differ by up to 8; then one rounding of the output
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4, torch.float16: 4e-3, torch.bfloat16: 3e-2}
RATIOS = [1, 3, 2, 1]  # samples a bin and axis of each level
# two bilinear weights of float32 positions on a mask of 30 cells, then one rounding of the output
PASTE_TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4, torch.float16: 1e-3, torch.bfloat16: 5e-3}


def list_op_cases() -> list[OpCase]:
    """List the cases of all ops; draws come from torch's own generator."""
    return [
        *list_layer_cases(),
        *list_candidate_cases(),
        OpCase("RoIAlign", "multilevel_roi_align", _draw_maps, _align, _check_align),
        OpCase("RoIAlign, channels last", "multilevel_roi_align", _draw_channels_last, _align, _check_align),
        OpCase("RoIAlign, levels' ratios", "multilevel_roi_align", _draw_maps, _align_each, _check_align_each),
        OpCase(
            "RoIAlign backward", "multilevel_roi_align_backward", _draw_grad, _align_backward, _check_align_backward
        ),
        OpCase("RoIPool", "roi_pool", _draw_map, _roi_pool, _check_roi_pool),
        OpCase("RoIPool backward", "roi_pool_backward", _draw_pool_grad, _pool_backward, _check_pool_backward),
        OpCase("NMS", "nms_padded", _draw_groups, _nms, _check_nms),
        *(
            OpCase(
                f"soft-NMS, {'gaussian' if gaussian else 'linear'}",
                "soft_nms_padded",
                _draw_groups,
                functools.partial(_soft_nms, gaussian),
                functools.partial(_check_soft_nms, gaussian),
            )
            for gaussian in (False, True)
        ),
        OpCase("NMS, presorted", "nms_padded", _draw_levels, _nms_presorted, _check_nms_presorted),
        *(
            OpCase(f"paste, {output}", "paste_masks", _draw_masks, functools.partial(_paste, output), check)
            for output, check in (("float", _check_paste), ("bool", _check_inside), ("packed", _check_packed))
        ),
        OpCase("paste backward", "paste_masks_backward", _draw_paste_grad, _paste_backward, _check_paste_backward),
        OpCase("RLE", "encode_masks", _draw_masks, _encode, _check_encode),
    ]


def _draw_boxes(num: int, kind: str, size: tuple[int, int] = (200, 300), largest: float = 150) -> Tensor:
    boxes = draw_boxes(count_of(kind, num), size, largest)
    return torch.cat([boxes, adversarial_boxes(size)]) if kind == "adversarial" else boxes


def _draw_rois(num: int, kind: str) -> Tensor:
    return away_from_limits(with_images(_draw_boxes(num, kind), 2), LIMITS)


def _draw_maps(dtype: torch.dtype, kind: str) -> list[Tensor]:
    return [_draw_rois(16, kind), *(feature.to(dtype) for feature in draw_pyramid(4, channels=CHANNELS))]


def _draw_channels_last(dtype: torch.dtype, kind: str) -> list[Tensor]:
    rois, *maps = _draw_maps(dtype, kind)
    return [rois, *(feature.contiguous(memory_format=torch.channels_last) for feature in maps)]


def _align(rois: Tensor, *maps: Tensor) -> list[Tensor]:
    return [multilevel_roi_align_op(list(maps), rois, SCALES, LIMITS, SIDE, SIDE, 2, False)]


def _align_each(rois: Tensor, *maps: Tensor) -> list[Tensor]:
    return [multilevel_roi_align_op(list(maps), rois, SCALES, LIMITS, SIDE, SIDE, 2, False, RATIOS)]


def _align_exactly(rois: Tensor, maps: list[Tensor], ratios: list[int] | None = None) -> Tensor:
    return reference.multilevel_roi_align(maps, rois.double(), SCALES, LIMITS, SIDE, SIDE, 2, False, ratios)


def _check_align(inputs: list[Tensor], outputs: list[Tensor], ratios: list[int] | None = None) -> None:
    rois, *maps = inputs
    expected = _align_exactly(rois, [feature.double() for feature in maps], ratios)
    check_close(outputs[0], expected, TOLERANCE[maps[0].dtype])


def _check_align_each(inputs: list[Tensor], outputs: list[Tensor]) -> None:
    _check_align(inputs, outputs, RATIOS)


def _draw_grad(dtype: torch.dtype, kind: str) -> list[Tensor]:
    rois = _draw_rois(10, kind)
    return [rois, torch.randn(len(rois), CHANNELS, SIDE, SIDE).to(dtype)]


def _align_backward(rois: Tensor, grad: Tensor) -> list[Tensor]:
    heights, widths = ([feature.shape[axis] for feature in _empty_maps()] for axis in (2, 3))
    return list(multilevel_roi_align_backward_op(grad, rois, 2, heights, widths, SCALES, LIMITS, 2, False))


def _empty_maps() -> list[Tensor]:
    return [feature.new_zeros(2, CHANNELS, *feature.shape[2:]) for feature in draw_pyramid(4, 1, 1)]


def _check_align_backward(inputs: list[Tensor], outputs: list[Tensor]) -> None:
    """Check some channels, and the sum of all: the reference is slow."""
    rois, grad = inputs
    some = torch.randperm(CHANNELS)[:6]
    chosen = [
        torch.cat([values.double()[:, some], values.double().sum(1, keepdim=True)], 1) for values in (grad, *outputs)
    ]
    maps = [feature[:, : len(some) + 1].double().requires_grad_() for feature in _empty_maps()]
    with torch.enable_grad():
        total = (_align_exactly(rois, maps) * chosen[0]).sum()
    gradients = torch.autograd.grad(total, maps, allow_unused=True) if len(rois) else [None] * len(maps)
    for actual, feature, expected in zip(chosen[1:], maps, gradients, strict=True):
        expected = torch.zeros_like(feature) if expected is None else expected  # of a level without RoIs
        _check_sums(actual, expected, TOLERANCE[grad.dtype])


def _draw_map(dtype: torch.dtype, kind: str) -> list[Tensor]:
    return [torch.randn(2, 32, 50, 75).to(dtype), _draw_rois(16, kind)]


def _roi_pool(features: Tensor, rois: Tensor) -> list[Tensor]:
    return list(roi_pool_op(features, rois, 0.25, SIDE, SIDE))


def _check_roi_pool(inputs: list[Tensor], outputs: list[Tensor]) -> None:
    features, rois = inputs
    for actual, expected in zip(outputs, reference.roi_pool(features, rois, 0.25, SIDE, SIDE), strict=True):
        check_close(actual, expected, 0)


def _draw_pool_grad(dtype: torch.dtype, kind: str) -> list[Tensor]:
    features, rois = _draw_map(dtype, kind)
    _, argmax = reference.roi_pool(features, rois, 0.25, SIDE, SIDE)
    return [torch.randn(argmax.shape).to(dtype), rois, argmax]


def _pool_backward(grad: Tensor, rois: Tensor, argmax: Tensor) -> list[Tensor]:
    return [roi_pool_backward_op(grad, rois, argmax, 0.25, 2, 50, 75)]


def _check_pool_backward(inputs: list[Tensor], outputs: list[Tensor]) -> None:
    grad, rois, argmax = inputs
    expected = torch.zeros(2, 32, 50 * 75, dtype=torch.float64)
    for roi, values, pixels in zip(rois, grad.double().flatten(2), argmax.flatten(2), strict=True):
        if bool((pixels >= 0).any()):
            expected[int(roi[0])].scatter_add_(1, pixels.clamp(min=0), torch.where(pixels >= 0, values, 0))
    _check_sums(outputs[0].flatten(2), expected, TOLERANCE[grad.dtype])


def _draw_groups(dtype: torch.dtype, kind: str) -> list[Tensor]:
    num = count_of(kind, sum(LEVELS))
    boxes = torch.stack([draw_boxes(num, largest=60) for _ in range(2)])
    scores = torch.rand(2, num)
    if kind == "adversarial":
        adversarial = adversarial_boxes()
        boxes[:, : len(adversarial)], boxes[:, 50:80] = adversarial, boxes[:, 100:130]
        scores[:, ::5], scores[:, 1::9], scores[:, 2::9] = 0.5, torch.nan, -torch.inf
    groups = torch.rand(2, num).square().mul(3).long()  # the first is the largest
    return [boxes.to(dtype), scores, groups, torch.rand(2, num) < 0.9]


def _nms(boxes: Tensor, scores: Tensor, groups: Tensor, valid: Tensor) -> list[Tensor]:
    return list(nms_padded_op(boxes, scores, groups, valid, 0.4, KEPT))


def _check_nms(inputs: list[Tensor], outputs: list[Tensor]) -> None:
    for indices, count, boxes, scores, groups, valid in zip(*outputs, *inputs, strict=True):
        expected = reference.nms(boxes, scores, groups, valid, 0.4, KEPT)
        check_close(count, torch.tensor(len(expected)), 0)
        check_close(indices, torch.tensor(expected + [-1] * (KEPT - len(expected))), 0)


def _soft_nms(gaussian: bool, boxes: Tensor, scores: Tensor, groups: Tensor, valid: Tensor) -> list[Tensor]:
    return list(soft_nms_padded_op(boxes, scores, groups, valid, 0.3, 0.5, gaussian, 0.1, KEPT))


def _check_soft_nms(gaussian: bool, inputs: list[Tensor], outputs: list[Tensor]) -> None:
    for indices, decayed, count, boxes, scores, groups, valid in zip(*outputs, *inputs, strict=True):
        picks, values = reference.soft_nms(boxes, scores, groups, valid, 0.3, 0.5, gaussian, 0.1, KEPT)
        check_close(count, torch.tensor(len(picks)), 0)
        check_close(indices, torch.tensor(picks + [-1] * (KEPT - len(picks))), 0)
        check_close(decayed, torch.tensor(values + [0.0] * (KEPT - len(picks))), 0)


def _levels_of(boxes: Tensor) -> list[int]:
    num = boxes.shape[1]
    return LEVELS if num == sum(LEVELS) else [num, 0, 0]


def _draw_levels(dtype: torch.dtype, kind: str) -> list[Tensor]:
    boxes, scores, _, valid = _draw_groups(dtype, kind)
    levels = scores.nan_to_num(0.5).split(_levels_of(boxes), dim=1)
    return [boxes, torch.cat([level.sort(dim=1, descending=True).values for level in levels], 1), valid]


def _nms_presorted(boxes: Tensor, scores: Tensor, valid: Tensor) -> list[Tensor]:
    return list(nms_padded_op(boxes, scores, None, valid, 0.4, KEPT, 0, _levels_of(boxes)))


def _check_nms_presorted(inputs: list[Tensor], outputs: list[Tensor]) -> None:
    boxes, scores, valid = inputs
    levels = _levels_of(boxes)
    groups = torch.arange(len(levels)).repeat_interleave(torch.tensor(levels)).expand(2, -1)
    _check_nms([boxes, scores, groups, valid], outputs)


def _draw_masks(dtype: torch.dtype, kind: str) -> list[Tensor]:
    boxes = _draw_boxes(12, kind, IMAGE, 70)
    return [draw_masks(len(boxes)).to(dtype), boxes]


def _paste(output: str, masks: Tensor, boxes: Tensor) -> list[Tensor]:
    return [paste_masks_op(masks, boxes, *IMAGE, output, 0.5, False, False, 1)]


def _check_paste(inputs: list[Tensor], outputs: list[Tensor]) -> None:
    masks, boxes = inputs
    check_close(outputs[0], reference.paste_masks(masks, boxes, IMAGE, False, 1), 0, PASTE_TOLERANCE[masks.dtype])


def _check_inside(inputs: list[Tensor], outputs: list[Tensor]) -> None:
    """But for pixels whose probability is within the tolerance of the threshold."""
    masks, boxes = inputs
    exact = reference.paste_masks(masks, boxes, IMAGE, False, 1)
    sure = (exact - 0.5).abs() > PASTE_TOLERANCE[masks.dtype]
    check_close(outputs[0] & sure, (exact > 0.5) & sure, 0)


def _check_packed(inputs: list[Tensor], outputs: list[Tensor]) -> None:
    bits = outputs[0][..., None] >> torch.arange(7, -1, -1, dtype=torch.uint8) & 1
    _check_inside(inputs, [bits.flatten(2)[..., : IMAGE[1]].bool()])
    check_close(bits.flatten(2)[..., IMAGE[1] :].sum(), torch.tensor(0), 0)


def _draw_paste_grad(dtype: torch.dtype, kind: str) -> list[Tensor]:
    masks, boxes = _draw_masks(dtype, kind)
    return [torch.randn(len(masks), *IMAGE).to(dtype), masks, boxes]


def _paste_backward(grad: Tensor, masks: Tensor, boxes: Tensor) -> list[Tensor]:
    return [paste_masks_backward_op(grad, masks, boxes, False, False, 1)]


def _check_paste_backward(inputs: list[Tensor], outputs: list[Tensor]) -> None:
    grad, masks, boxes = inputs
    exact = masks.double().requires_grad_()
    with torch.enable_grad():
        total = (reference.paste_masks(exact, boxes, IMAGE, False, 1) * grad.double()).sum() + 0 * exact.sum()
    (expected,) = torch.autograd.grad(total, exact)
    _check_sums(outputs[0], expected, PASTE_TOLERANCE[masks.dtype])


def _encode(masks: Tensor, boxes: Tensor) -> list[Tensor]:
    """Encode masks, and paste them as bool for the check."""
    sizes = fill_like(IMAGE, masks).expand(len(masks), 2)
    return [*encode_masks_op(masks, boxes, sizes, CAPACITY, 0.5, False, False, 1), *_paste("bool", masks, boxes)]


def _check_encode(inputs: list[Tensor], outputs: list[Tensor]) -> None:
    buffer, offsets, inside = outputs
    text = buffer.numpy().tobytes()
    for number, (start, end) in enumerate(itertools.pairwise(offsets.tolist())):
        actual, expected = text[start:end], reference.encode_mask(inside[number])
        assert actual == expected, f"mask {number} is {actual!r} instead of {expected!r}"


def _check_sums(actual: Tensor, expected: Tensor, tolerance: float) -> None:
    """Sums of many gradients: relative to the largest."""
    largest = float(expected.abs().max()) if expected.numel() else 0.0
    check_close(actual, expected, tolerance, tolerance * max(largest, 1.0))
