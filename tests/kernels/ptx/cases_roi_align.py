"""Compiled RoIAlign, forward and backward, against the reference in float64."""

from collections.abc import Iterator

import pytest
import torch
import triton.language as tl
from case_inputs import BF16, FP16, FP32, INF, NAMES, NAN, geometry, pyramid, some_rois
from helpers.ptx import Bug, Case, close

from fastmask.kernels import reference
from fastmask.kernels.fallback import roi as roi_fallback
from fastmask.kernels.triton import (
    roi_align as roi_align_triton,
    roi_align_backward as roi_align_backward_triton,
    roi_bins as roi_bins_triton,
)

MIXED = (3, 0, 1, 2)  # samples a bin and axis of each level
OF_ONE_IMAGE = torch.tensor([0, 1, 1, 1, 1])  # times RoIs: they are of image 0
# RoIs on the map whose one sample lies on its right border: x1, x2, width, bins a row
BORDERS = [(138.5, 238.5, 226, 14), (50.25, 75.25, 69, 7), (22.5, 28.5, 27, 7), (11.125, 12.0625, 12, 14)]


def roi_align_case(features, rois, pooled=(5, 5), ratio=2, aligned=False, offset=None):
    """``ratio``: of all levels, or each one's; ``offset``: another type of offsets in a map than the launcher's."""
    scales, limits = geometry(len(features))
    rest = (*pooled, 2, aligned, ratio) if isinstance(ratio, tuple) else (*pooled, ratio, aligned)

    def run():
        with pytest.MonkeyPatch.context() as patch:
            if offset is not None:
                patch.setattr(roi_align_triton, "offset_type", lambda _: offset)
            return roi_align_triton.multilevel_roi_align(features, rois, scales, limits, *rest)

    def check(out):
        wide = [f.double() for f in features]
        expected = reference.multilevel_roi_align(wide, rois, scales, limits, *rest)
        return close("out", out, expected, 2e-4)

    return Case(run, check)


def border_roi(x1, x2):
    return torch.tensor([[0.0, x1, 4, x2, 20]]) * torch.tensor([1.0, 4, 4, 4, 4])


def border_case(x1, x2, width, num_bins, last):
    """A sample on the border of the map, which counts unless a product is rounded."""
    roi = border_roi(x1, x2)
    features = torch.ones(1, 16, 8, width)
    features = features.contiguous(memory_format=torch.channels_last) if last else features
    rest = (roi, [0.25], [1e9], num_bins, num_bins, 2, False)

    def check(out):
        wrong = close("out", out, reference.multilevel_roi_align([features.double()], *rest), 1e-5)
        return wrong + ([] if (out[0, 0, 0] - 0.5).abs().min() < 1e-5 else ["no bin has one of two columns"])

    return Case(lambda: roi_align_triton.multilevel_roi_align([features], *rest), check)


def roi_align_backward_case(
    dtype,
    channels,
    levels,
    rois,
    batch,
    pooled=(5, 5),
    ratio=2,
    aligned=False,
    size=(64, 80),
    values=(),
    last=False,
    counted=True,
):
    """``last``: the gradient is channels-last, and not copied; ``counted``: up to so many RoIs are not sorted."""
    scales, limits = geometry(levels)
    rest = (2, aligned, ratio) if isinstance(ratio, tuple) else (ratio, aligned)
    heights, widths = ([-(-side // s) for s in (4, 8, 16, 32, 64)[:levels]] for side in size)
    grad = torch.randn(len(rois), channels, *pooled).to(dtype)
    for number, value in enumerate(values):
        grad[number % len(rois), number % channels, 0, -1] = value
    if last:
        grad = grad.contiguous(memory_format=torch.channels_last)

    def run():
        with pytest.MonkeyPatch.context() as patch:
            if not counted:
                patch.setattr(roi_bins_triton, "COUNTED", 0)
            return differentiate()

    def differentiate():
        return roi_align_backward_triton.multilevel_roi_align_backward(
            grad, rois, batch, heights, widths, scales, limits, *rest
        )

    def check(outs):
        expected = roi_fallback.multilevel_roi_align_backward(
            grad.double(), rois.double(), batch, heights, widths, scales, limits, *rest
        )
        pairs = enumerate(zip(outs, expected, strict=True))
        return [error for level, pair in pairs for error in close(f"level {level}", *pair, 5e-4)]

    return Case(run, check)


def cases() -> Iterator[tuple[str, Case]]:
    yield from forward_cases()
    yield from backward_cases()
    cropped = [feature[..., :-1] for feature in pyramid(2, 1, 32, FP32, False)]
    yield "RoIAlign fp32, NCHW, rows apart, copied", roi_align_case(cropped, some_rois(6, 2) * OF_ONE_IMAGE)


def forward_cases() -> Iterator[tuple[str, Case]]:
    six = some_rois(6, 2)
    for dtype in (FP32, BF16, FP16):
        for last in (False, True):
            for ratio in (2, 0):
                name = f"RoIAlign {NAMES[dtype]}, {'NHWC' if last else 'NCHW'}, 4 levels, C=64, ratio {ratio}"
                yield name, roi_align_case(pyramid(4, 2, 64, dtype, last), six, ratio=ratio)
    adversarial = some_rois(4, 2, True)
    yield (
        "RoIAlign fp32, NHWC, adversarial RoIs, C=32, aligned",
        roi_align_case(pyramid(4, 2, 32, FP32, True), adversarial, ratio=2, aligned=True),
    )
    yield (
        "RoIAlign fp32, NCHW, adversarial RoIs, C=5, ratio 0",
        roi_align_case(pyramid(4, 2, 5, FP32, False), adversarial, ratio=0),
    )
    yield (
        "RoIAlign bf16, NHWC, C=33, 5 levels, 3x4",
        roi_align_case(pyramid(5, 2, 33, BF16, True), six, (3, 4), 2, True),
    )
    yield (
        "RoIAlign fp16, NHWC, C=272 in two blocks, 1 level",
        roi_align_case(pyramid(1, 1, 272, FP16, True), six[:2] * OF_ONE_IMAGE, (2, 2)),
    )
    yield (
        "RoIAlign fp32, NCHW, C=80 in two blocks, 2 levels",
        roi_align_case(pyramid(2, 2, 80, FP32, False), six[:3], (3, 3)),
    )
    yield (
        "RoIAlign fp32, C=1, one level, ratio 1",
        roi_align_case(pyramid(1, 1, 1, FP32, False), six[:3] * OF_ONE_IMAGE, (2, 3), 1),
    )
    sliced = [
        torch.randn(2, m.shape[2], m.shape[3], 67).to(BF16)[..., 3:].permute(0, 3, 1, 2)
        for m in pyramid(4, 2, 64, BF16, True)
    ]
    yield "RoIAlign bf16, NHWC, C=64 of 67, odd address", roi_align_case(sliced, six)
    wide = [
        m.permute(3, 1, 0, 2).repeat_interleave(2, 3).contiguous()[..., ::2].permute(2, 1, 3, 0)
        for m in pyramid(3, 2, 32, FP32, False)
    ]
    yield "RoIAlign fp32, permuted strides, C=32, 3 levels", roi_align_case(wide, six[:3])
    expanded = [m[:1, :1].expand_as(m) for m in pyramid(2, 2, 32, FP32, False)]
    yield "RoIAlign fp32, expanded, C=32, 2 levels", roi_align_case(expanded, six[:3])
    odd = torch.cat([torch.zeros(1), six.flatten()])[1:].view(-1, 5)
    yield "RoIAlign fp32, RoIs at an odd address", roi_align_case(pyramid(4, 2, 32, FP32, True), odd)
    yield (
        "RoIAlign bf16, NHWC, adversarial RoIs, C=64, ratio 3, 3x10",
        roi_align_case(pyramid(4, 2, 64, BF16, True), adversarial, (3, 10), 3),
    )
    yield (
        "RoIAlign bf16, NHWC, adversarial RoIs, C=40, ratio 0",
        roi_align_case(pyramid(4, 2, 40, BF16, True), adversarial, (3, 4), 0),
    )
    yield (
        "RoIAlign bf16, NHWC, C=272 in three blocks",
        roi_align_case(pyramid(1, 1, 272, BF16, True), six[:2] * OF_ONE_IMAGE, (2, 2)),
    )
    yield (
        "RoIAlign fp32, NHWC, offsets of 64 bits",
        roi_align_case(pyramid(4, 2, 32, FP32, True), six[:3], offset=tl.int64),
    )
    yield (
        "RoIAlign bf16, NHWC, C=256 in two tiles, ratio 5",
        roi_align_case(pyramid(2, 1, 256, BF16, True), six[:2] * OF_ONE_IMAGE, (3, 3), 5),
    )
    hits = adversarial[[0, 1, 4, 9, 12]] * OF_ONE_IMAGE
    yield "RoIAlign fp32, NHWC, C=256 in two tiles", roi_align_case(pyramid(2, 1, 256, FP32, True), hits, (2, 7))
    case = roi_align_case(pyramid(1, 1, 256, BF16, True), six[:1] * OF_ONE_IMAGE, (14, 14))
    yield "RoIAlign bf16, NHWC, C=256 in two tiles, 14x14 of one level, as C4's", case
    one = [m.as_strided(m.shape, (7, *m.stride()[1:])) for m in pyramid(2, 1, 32, BF16, True)]
    yield (
        "RoIAlign bf16, NHWC, one image of an odd stride",
        roi_align_case(one, six[:3] * OF_ONE_IMAGE),
    )
    for dtype, ratio in ((FP32, 2), (BF16, 0)):
        yield (
            f"RoIAlign {NAMES[dtype]}, NCHW, few RoIs, ratio {ratio}",
            roi_align_case(pyramid(4, 2, 24, dtype, False), six[:1], (3, 5), ratio),
        )
    yield (
        "RoIAlign fp32, NCHW, few RoIs, 80 bins, C=1",
        roi_align_case(pyramid(2, 2, 1, FP32, False), six[:1], (8, 10), 1),
    )
    for dtype, last in ((BF16, True), (FP32, False)):
        maps, rois = pyramid(4, 2, 24, dtype, last), torch.cat((six, adversarial[:3]))
        name = f"RoIAlign {NAMES[dtype]}, {'NHWC' if last else 'NCHW'}, a ratio of each level"
        yield name, roi_align_case(maps, rois if last else rois[5:7], (3, 5), MIXED, True)
    for x1, x2, width, num_bins in BORDERS:
        for last in (True, False):
            layout = "NHWC" if last else "NCHW"
            yield f"RoIAlign fp32, {layout}, a sample at {width}", border_case(x1, x2, width, num_bins, last)


def backward_cases() -> Iterator[tuple[str, Case]]:
    six = some_rois(6, 2)
    for dtype in (FP32, BF16, FP16):
        for ratio in (2, 0):
            yield (
                f"RoIAlign backward {NAMES[dtype]}, 4 levels, C=64, ratio {ratio}",
                roi_align_backward_case(dtype, 64, 4, six, 2, (3, 3), ratio),
            )
    yield (
        "RoIAlign backward bf16, a ratio of each level, C=16, aligned",
        roi_align_backward_case(BF16, 16, 4, some_rois(4, 2, True), 2, (3, 3), MIXED, True),
    )
    yield (
        "RoIAlign backward fp32, adversarial RoIs, C=32, aligned",
        roi_align_backward_case(FP32, 32, 4, some_rois(4, 2, True), 2, (3, 3), 2, True),
    )
    yield (
        "RoIAlign backward fp32, adversarial RoIs, C=7, ratio 0",
        roi_align_backward_case(FP32, 7, 2, some_rois(2, 2, True), 2, (2, 3), 0),
    )
    yield (
        "RoIAlign backward bf16, C=72 in two blocks, 1 level",
        roi_align_backward_case(BF16, 72, 1, six[:3] * OF_ONE_IMAGE, 1, (2, 2), 2, False, (40, 44)),
    )
    yield (
        "RoIAlign backward bf16, channels-last, C=72 in two blocks, 1 level",
        roi_align_backward_case(BF16, 72, 1, six[3:] * OF_ONE_IMAGE, 1, (2, 2), size=(40, 44), last=True),
    )
    yield (
        "RoIAlign backward bf16, C=272 in two blocks, 7x7",
        roi_align_backward_case(BF16, 272, 2, some_rois(4, 1, size=(24, 24)), 1, (7, 7), 2, False, (24, 24)),
    )
    yield (
        "RoIAlign backward bf16, channels-last, C=256, 14x14 of one level, as C4's",
        roi_align_backward_case(BF16, 256, 1, border_roi(1.5, 6.5), 1, (14, 14), size=(32, 32), last=True),
    )
    for dtype in (FP32, BF16):
        yield (
            f"RoIAlign backward {NAMES[dtype]}, gradients that are not finite, C=16",
            roi_align_backward_case(
                dtype, 16, 1, some_rois(5, 1, size=(24, 24)), 1, (3, 3), 2, True, (24, 24), (NAN, INF, -INF)
            ),
        )
    yield (
        "RoIAlign backward bf16, 520 RoIs of one image, C=16",
        roi_align_backward_case(BF16, 16, 1, some_rois(520, 1, size=(24, 24)), 1, (1, 1), 1, False, (24, 24)),
    )
    yield (
        "RoIAlign backward fp32, 140 sorted RoIs, 2 levels, C=16",
        roi_align_backward_case(FP32, 16, 2, some_rois(140, 2), 2, (1, 2), 1, size=(24, 24), counted=False),
    )
    yield (
        "RoIAlign backward fp32, 40 RoIs of one image, C=16",
        roi_align_backward_case(FP32, 16, 2, some_rois(40, 1), 1, (2, 2), 2, False, (40, 44)),
    )

    for x1, x2, width, num_bins in BORDERS:
        case = roi_align_backward_case(FP32, 16, 1, border_roi(x1, x2), 1, (num_bins,) * 2, size=(32, 4 * width))
        yield f"RoIAlign backward fp32, a sample at {width}", case


def bugs() -> Iterator[tuple[str, Bug]]:
    six = some_rois(6, 2)
    tap = "row0 + offs1", "row1 + offs1", roi_align_case(pyramid(4, 2, 32, FP32, True), six)
    yield "RoIAlign, a tap of the wrong row", Bug("triton.roi_align", *tap)
    channel = "offs_c < channels", "offs_c <= channels", roi_align_case(pyramid(2, 2, 33, BF16, False), six)
    yield "RoIAlign, one channel beyond the last", Bug("triton.roi_align", *channel)
    inner = "samples_x - 1, samples_x", "samples_x - 4, samples_x"
    beyond = torch.tensor([[0, 40.0, 10, 96, 30]])  # by three samples
    bug = Bug("triton.roi_align", *inner, roi_align_case(pyramid(4, 2, 32, FP32, True), beyond))
    yield "RoIAlign, all samples count although the last does not", bug
    border = "place <= high", "place < high", border_case(*BORDERS[0], True)
    yield "RoIAlign, the border does not count", Bug("triton.roi_geometry", *border)
    pixel = "offs_pixel < height * width", "offs_pixel <= height * width"
    bug = Bug("triton.channels_last", *pixel, roi_align_case(pyramid(2, 1, 32, FP32, False), six * OF_ONE_IMAGE))
    yield "channels-last copies, one pixel beyond the last", bug
    last = "offs_bin < POOLED_H * POOLED_W", "offs_bin <= POOLED_H * POOLED_W"
    bug = Bug("triton.roi_align_apart", *last, roi_align_case(pyramid(4, 2, 24, FP32, False), six[:1], (3, 5)))
    yield "RoIAlign, NCHW, one bin beyond the last", bug
    roi = "offs_k < end", "offs_k <= end", roi_align_backward_case(FP32, 32, 4, some_rois(40, 2), 2, (3, 3))
    yield "RoIAlign backward, one RoI of the next map", Bug("triton.roi_align_backward", *roi)
    rank = "others[:, None] < own", "others[:, None] <= own", roi_align_backward_case(FP32, 16, 2, some_rois(9, 2), 2)
    yield "RoIAlign backward, RoIs that count themselves", Bug("triton.roi_bins", *rank)
