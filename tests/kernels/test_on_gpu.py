"""Tests of the kernels that need a GPU: no host sync, graphs, streams, a second device."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchvision
from helpers.inputs import (
    adversarial_boxes,
    draw_boxes,
    draw_masks,
    draw_pyramid,
    finite,
    pyramid_scales,
    with_images,
)
from torch import Tensor

from fastmask import ops
from fastmask.kernels.bias_act import bias_act_op
from fastmask.kernels.class_masks import class_masks_op
from fastmask.kernels.decode import decode_boxes_op
from fastmask.kernels.fallback import stem as stem_fallback
from fastmask.kernels.keypoints import decode_keypoints_op
from fastmask.kernels.linear_add_relu import linear_add_relu_op
from fastmask.kernels.max_pool2d import max_pool2d_op
from fastmask.kernels.nms import nms_padded_op
from fastmask.kernels.paste import paste_masks_op
from fastmask.kernels.predict_anchors import predict_anchors_op
from fastmask.kernels.rle import encode_masks_op
from fastmask.kernels.roi_align import multilevel_roi_align_backward_op, multilevel_roi_align_op
from fastmask.kernels.roi_pool import roi_pool_backward_op, roi_pool_op
from fastmask.kernels.soft_nms import soft_nms_padded_op
from fastmask.kernels.stem_conv import stem_conv_op
from fastmask.kernels.top_anchors import top_anchors_op
from fastmask.ops.roi_align import level_limits
from fastmask.selftest.candidate_cases import list_candidate_cases
from fastmask.selftest.on_device import check_equal, check_graph, check_second_device, check_side_stream

pytestmark = pytest.mark.gpu

Op = Callable[..., Any]
SCALES = pyramid_scales(4)
LIMITS = level_limits(SCALES, 224, 4)


def draw_rois() -> Tensor:
    return with_images(torch.cat([draw_boxes(60), adversarial_boxes()]), 2)


def roi_align() -> tuple[Op, list[Tensor]]:
    """Of NCHW maps, which are copied channels-last."""
    return lambda rois, *maps: multilevel_roi_align_op(list(maps), rois, SCALES, LIMITS, 7, 7, 2, False), [
        draw_rois(),
        *draw_pyramid(4, channels=32),
    ]


def roi_align_channels_last() -> tuple[Op, list[Tensor]]:
    op, (rois, *maps) = roi_align()
    return op, [rois, *(feature.contiguous(memory_format=torch.channels_last) for feature in maps)]


def roi_align_few() -> tuple[Op, list[Tensor]]:
    """RoIs, for which NCHW maps are read where they are."""
    op, (rois, *maps) = roi_align()
    return op, [rois[:3], *maps]


def roi_align_backward() -> tuple[Op, list[Tensor]]:
    rois = draw_rois()
    sizes = (2, [50, 25, 13, 7], [75, 38, 19, 10])
    return lambda rois, grad: multilevel_roi_align_backward_op(grad, rois, *sizes, SCALES, LIMITS, 2, False), [
        rois,
        torch.randn(len(rois), 32, 7, 7),
    ]


def roi_pool() -> tuple[Op, list[Tensor]]:
    return lambda features, rois: roi_pool_op(features, rois, 0.25, 7, 7), [torch.randn(2, 32, 50, 75), draw_rois()]


def roi_pool_backward() -> tuple[Op, list[Tensor]]:
    rois = draw_rois()
    _, argmax = roi_pool_op(torch.randn(2, 32, 50, 75), rois, 0.25, 7, 7)
    return lambda grad, rois, argmax: roi_pool_backward_op(grad, rois, argmax, 0.25, 2, 50, 75), [
        torch.randn(len(rois), 32, 7, 7),
        rois,
        argmax,
    ]


def nms() -> tuple[Op, list[Tensor]]:
    return lambda boxes, scores, groups, valid: nms_padded_op(boxes, scores, groups, valid, 0.5, 100), [
        torch.stack([draw_boxes(5000) for _ in range(2)]),  # beyond what CUDA sorts in one block
        torch.rand(2, 5000),
        torch.randint(5, (2, 5000)),
        torch.rand(2, 5000) < 0.9,
    ]


def soft_nms() -> tuple[Op, list[Tensor]]:
    return lambda *inputs: soft_nms_padded_op(*inputs, 0.3, 0.5, True, 0.001, 100), nms()[1]


def nms_presorted() -> tuple[Op, list[Tensor]]:
    """As an RPN's levels."""
    runs = [2000, 2000, 1000]
    scores = [torch.rand(2, run).sort(dim=1, descending=True).values for run in runs]
    return lambda boxes, scores: nms_padded_op(boxes, scores, None, None, 0.7, 1000, 0, runs), [
        torch.stack([draw_boxes(5000) for _ in range(2)]),
        torch.cat(scores, 1),
    ]


def nms_one_group() -> tuple[Op, list[Tensor]]:
    """Of more boxes than one window has."""
    return lambda boxes, scores: nms_padded_op(boxes, scores, None, None, 0.5, 40_000), [
        draw_boxes(40_000, (4000, 6000), 60)[None],
        torch.rand(1, 40_000),
    ]


def decode() -> tuple[Op, list[Tensor]]:
    """As of a box head: nine candidates of each of 500 proposals."""
    settings = ([10.0, 10.0, 5.0, 5.0], 4.0, 0.01, 0.05, True)
    return lambda *inputs: decode_boxes_op(*inputs, *settings), [
        torch.randn(2, 4500, 4),
        torch.stack([draw_boxes(500) for _ in range(2)]),
        torch.tensor([[200, 300], [150, 90]]),
        torch.rand(2, 4500),
        torch.tensor([500, 400]),
    ]


def draws_of(number: int) -> tuple[Op, list[Tensor]]:
    case = list_candidate_cases()[number]
    return case.call, case.draw(torch.float32, "adversarial")


def decode_levels() -> tuple[Op, list[Tensor]]:
    return draws_of(0)


def select_candidates() -> tuple[Op, list[Tensor]]:
    return draws_of(1)


def take_kept() -> tuple[Op, list[Tensor]]:
    return draws_of(2)


def scale_boxes() -> tuple[Op, list[Tensor]]:
    return draws_of(3)


def paste() -> tuple[Op, list[Tensor]]:
    return lambda masks, boxes: paste_masks_op(masks, boxes, 200, 300, "packed", 0.5, False, True, 1), [
        4 * torch.randn(20, 28, 28),
        draw_boxes(20),
    ]


def rle() -> tuple[Op, list[Tensor]]:
    return lambda masks, boxes, sizes: encode_masks_op(masks, boxes, sizes, 2**17, 0.5, False, True, 1), [
        8 * draw_masks(20) - 4,
        draw_boxes(20),
        torch.tensor([[200, 300]]).repeat(20, 1),
    ]


def bias_act() -> tuple[Op, list[Tensor]]:
    """With the residual of a coarser map."""

    def op(y: Tensor, bias: Tensor, residual: Tensor) -> Tensor:
        y = y.clone()
        bias_act_op(y, bias, residual, True)
        return y

    sizes = ((2, 64, 50, 75), (2, 64, 25, 38))
    y, residual = (torch.randn(size).contiguous(memory_format=torch.channels_last) for size in sizes)
    return op, [y, torch.randn(64), residual]


def stem() -> tuple[Op, list[Tensor]]:
    """Images in the first channels of a buffer; the convolution, and the max pooling behind it."""

    def op(pixels: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return max_pool2d_op(stem_conv_op(pixels[:, :3], weight, 3), bias, 3, 2, 1)

    pixels = torch.randn(2, 4, 100, 154).bfloat16().contiguous(memory_format=torch.channels_last)
    return op, [
        pixels,
        stem_fallback.arrange_weight(torch.randn(64, 3, 7, 7), 3).bfloat16(),
        torch.randn(64).bfloat16(),
    ]


def predict_anchors() -> tuple[Op, list[Tensor]]:
    maps = [level.contiguous(memory_format=torch.channels_last) for level in draw_pyramid(5, channels=64)]
    return lambda bias, weight, outer, *hidden: predict_anchors_op(list(hidden), bias, weight, outer, 3), [
        torch.randn(64),
        torch.randn(15, 64),
        torch.randn(15),
        *maps,
    ]


def top_anchors() -> tuple[Op, list[Tensor]]:
    """Of five levels, the first in 19 chunks; counters must begin at zero in every call."""
    maps = [torch.randn(2, 3, 200 >> level, 128 >> level).bfloat16() for level in range(5)]
    return lambda *maps: top_anchors_op(list(maps), 1000), maps


def linear_add_relu() -> tuple[Op, list[Tensor]]:
    sizes = ((3000, 64), (256, 64), (256,), (3000, 256))
    return linear_add_relu_op, [torch.randn(size).bfloat16() for size in sizes]


def class_masks(dtype: torch.dtype) -> tuple[Op, list[Tensor]]:
    """Of two images of 30 detections each; counts, classes and pixels change from one set of inputs to the next."""
    shapes = ((60, 256, 14, 14), (256, 256, 2, 2), (256,), (91, 256), (91,))
    hidden, weight, *rest = (torch.randn(shape).div(16).to(dtype) for shape in shapes)
    tensors = [tensor.contiguous(memory_format=torch.channels_last) for tensor in (hidden, weight)]
    return class_masks_op, [*tensors, *rest, torch.randint(91, (60,)), torch.randint(31, (2,))]


def class_masks_bfloat16() -> tuple[Op, list[Tensor]]:
    return class_masks(torch.bfloat16)


def class_masks_float32() -> tuple[Op, list[Tensor]]:
    """float32 masks, in TF32."""
    return class_masks(torch.float32)


def decode_keypoints() -> tuple[Op, list[Tensor]]:
    """Heatmaps with and without a peak: programs search different numbers of cells."""
    heatmaps, boxes = torch.randn(40, 17, 56, 56), draw_boxes(40)
    heatmaps[::2, :, 20, 30] += 20
    return lambda *inputs: decode_keypoints_op(*inputs, 2000, 2000), [heatmaps, boxes]


CASES = pytest.mark.parametrize(
    "case",
    [
        roi_align, roi_align_channels_last, roi_align_few, roi_align_backward, roi_pool, roi_pool_backward, nms,
        nms_presorted, nms_one_group, decode, decode_levels, select_candidates, take_kept, scale_boxes, paste, rle,
        bias_act, stem, predict_anchors, top_anchors, linear_add_relu, class_masks_bfloat16, class_masks_float32,
        decode_keypoints, soft_nms,
    ],
    ids=lambda case: case.__name__,
)  # fmt: skip


def flat(output: Any) -> list[Tensor]:
    return [output] if isinstance(output, Tensor) else list(output)


def return_list(op: Op) -> Callable[..., list[Tensor]]:
    return lambda *inputs: flat(op(*inputs))


@CASES
def test_nothing_waits_for_the_device(case: Callable[[], tuple[Op, list[Tensor]]]) -> None:
    op, inputs = case()
    inputs = [tensor.cuda() for tensor in inputs]
    op(*inputs)  # compiling does wait
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        op(*inputs)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@CASES
def test_in_a_graph(case: Callable[[], tuple[Op, list[Tensor]]]) -> None:
    op, first = case()
    _, second = case()
    check_graph(return_list(op), first, second)


@CASES
def test_on_a_side_stream(case: Callable[[], tuple[Op, list[Tensor]]]) -> None:
    op, inputs = case()
    check_side_stream(return_list(op), inputs)


@CASES
def test_on_the_second_device(case: Callable[[], tuple[Op, list[Tensor]]]) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("there is no second GPU")
    op, inputs = case()
    check_second_device(return_list(op), inputs)


@CASES
def test_bitwise_equal_over_100_runs(case: Callable[[], tuple[Op, list[Tensor]]]) -> None:
    """Results are bitwise reproducible: no order of summation can change."""
    op, inputs = case()
    inputs = [tensor.cuda() for tensor in inputs]
    expected = flat(op(*inputs))
    for _ in range(100):
        check_equal(flat(op(*inputs)), expected)


@pytest.mark.parametrize("ratio", [2, 0], ids=["fixed", "adaptive"])
@pytest.mark.parametrize("aligned", [False, True], ids=["legacy", "aligned"])
def test_roi_align_against_torchvision(ratio: int, aligned: bool) -> None:
    """Maps of any size and RoIs on and off them, forward and backward, 30 draws."""
    for _ in range(30):
        batch, channels, height, width = (int(size) for size in torch.randint(1, 60, (4,)))
        boxes = torch.cat([draw_boxes(40, (2 * height, 2 * width), 60), adversarial_boxes((2 * height, 2 * width))])
        # off whole pixels: a sample on the very border of a map counts or not by its last bit
        boxes = boxes[finite(boxes)] + 0.1 + 0.3 * torch.rand(4)
        rois = with_images(boxes, batch).cuda()
        features = torch.randn(batch, channels, height, width, device="cuda")
        results = []
        for module in (ops, torchvision.ops):
            leaf = features.clone().requires_grad_()
            pooled = module.roi_align(leaf, rois, (5, 3), 0.5, ratio, aligned)
            pooled.backward(torch.linspace(-1, 1, pooled.numel(), device="cuda").view(pooled.shape))
            results.append((pooled.detach(), leaf.grad))
        for ours, theirs in zip(*results, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=2e-4)


def test_nms_against_torchvision() -> None:
    """torchvision's GPU kernel divides and compares in float32 its own way: one pair in a million may differ there."""
    differing = total = 0
    for _ in range(30):
        num, threshold = int(torch.randint(1, 3000, ())), float(torch.rand(()))
        boxes, scores = draw_boxes(num, largest=120).cuda(), torch.randperm(num).float().cuda()
        ours, theirs = ops.nms(boxes, scores, threshold), torchvision.ops.nms(boxes, scores, threshold)
        assert (scores[ours].diff() < 0).all()
        differing += len(set(ours.tolist()) ^ set(theirs.tolist()))
        total += len(theirs)
    assert differing <= total / 1000


def test_roi_pool_against_torchvision() -> None:
    for _ in range(30):
        batch, channels, height, width = (int(size) for size in torch.randint(1, 60, (4,)))
        rois = with_images(draw_boxes(40, (2 * height, 2 * width), 60), batch).cuda()
        features = torch.randn(batch, channels, height, width, device="cuda")
        ours, theirs = (module.roi_pool(features, rois, (5, 3), 0.5) for module in (ops, torchvision.ops))
        assert torch.equal(ours, theirs)
