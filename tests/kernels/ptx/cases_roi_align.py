"""Compiled RoIAlign, forward and backward, against the reference in float64."""

from collections.abc import Iterator

import torch
from case_inputs import BF16, FP16, FP32, NAMES, geometry, pyramid, some_rois
from helpers.ptx import Bug, Case, close

from fastmask.kernels import gpu_roi_align, gpu_roi_align_backward, reference


def roi_align_case(features, rois, pooled=(5, 5), ratio=2, aligned=False):
    scales, limits = geometry(len(features))

    def run():
        return gpu_roi_align.multilevel_roi_align(features, rois, scales, limits, *pooled, ratio, aligned)

    def check(out):
        wide = [f.double() for f in features]
        expected = reference.multilevel_roi_align(wide, rois, scales, limits, *pooled, ratio, aligned)
        return close("out", out, expected, 2e-4)

    return Case(run, check)


def roi_align_backward_case(dtype, channels, levels, rois, batch, pooled=(5, 5), ratio=2, aligned=False, size=(64, 80)):
    scales, limits = geometry(levels)
    maps = [
        torch.zeros(batch, channels, -(-size[0] // s), -(-size[1] // s), dtype=torch.float64)
        for s in (4, 8, 16, 32, 64)
    ]
    maps = maps[:levels]
    grad = torch.randn(len(rois), channels, *pooled).to(dtype)

    def run():
        return gpu_roi_align_backward.multilevel_roi_align_backward(
            grad, rois, batch, [m.shape[2] for m in maps], [m.shape[3] for m in maps], scales, limits, ratio, aligned
        )

    def check(outs):
        leaves = [m.clone().requires_grad_() for m in maps]
        pooled_maps = reference.multilevel_roi_align(leaves, rois, scales, limits, *pooled, ratio, aligned)
        if pooled_maps.requires_grad:  # some sample lies in a map
            pooled_maps.backward(grad.double())
        wrong = []
        for level, (out, leaf) in enumerate(zip(outs, leaves, strict=True)):
            expected = torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
            wrong += close(f"level {level}", out, expected, 5e-4)
        return wrong

    return Case(run, check)


def cases() -> Iterator[tuple[str, Case]]:
    yield from forward_cases()
    yield from backward_cases()


def forward_cases() -> Iterator[tuple[str, Case]]:
    six = some_rois(6, 2)
    for dtype in (FP32, BF16, FP16):
        for last in (False, True):
            for ratio in (2, 0):
                name = f"RoIAlign {NAMES[dtype]}, {'NHWC' if last else 'NCHW'}, 4 levels, C=64, ratio {ratio}"
                yield name, roi_align_case(pyramid(4, 2, 64, dtype, last), six, ratio=ratio)
    hostile = some_rois(4, 2, True)
    yield (
        "RoIAlign fp32, NHWC, hostile RoIs, C=32, aligned",
        roi_align_case(pyramid(4, 2, 32, FP32, True), hostile, ratio=2, aligned=True),
    )
    yield (
        "RoIAlign fp32, NCHW, hostile RoIs, C=5, ratio 0",
        roi_align_case(pyramid(4, 2, 5, FP32, False), hostile, ratio=0),
    )
    yield (
        "RoIAlign bf16, NHWC, C=33, 5 levels, 3x4",
        roi_align_case(pyramid(5, 2, 33, BF16, True), six, (3, 4), 2, True),
    )
    yield (
        "RoIAlign fp16, NHWC, C=272 in two blocks, 1 level",
        roi_align_case(pyramid(1, 1, 272, FP16, True), six[:2] * torch.tensor([0, 1, 1, 1, 1]), (2, 2)),
    )
    yield (
        "RoIAlign fp32, NCHW, C=80 in two blocks, 2 levels",
        roi_align_case(pyramid(2, 2, 80, FP32, False), six[:3], (3, 3)),
    )
    yield (
        "RoIAlign fp32, C=1, one level, ratio 1",
        roi_align_case(pyramid(1, 1, 1, FP32, False), six[:3] * torch.tensor([0, 1, 1, 1, 1]), (2, 3), 1),
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


def backward_cases() -> Iterator[tuple[str, Case]]:
    six = some_rois(6, 2)
    for dtype in (FP32, BF16, FP16):
        for ratio in (2, 0):
            yield (
                f"RoIAlign backward {NAMES[dtype]}, 4 levels, C=64, ratio {ratio}",
                roi_align_backward_case(dtype, 64, 4, six, 2, (3, 3), ratio),
            )
    yield (
        "RoIAlign backward fp32, hostile RoIs, C=32, aligned",
        roi_align_backward_case(FP32, 32, 4, some_rois(4, 2, True), 2, (3, 3), 2, True),
    )
    yield (
        "RoIAlign backward fp32, hostile RoIs, C=7, ratio 0",
        roi_align_backward_case(FP32, 7, 2, some_rois(2, 2, True), 2, (2, 3), 0),
    )
    yield (
        "RoIAlign backward bf16, C=72 in two blocks, 1 level",
        roi_align_backward_case(BF16, 72, 1, six[:3] * torch.tensor([0, 1, 1, 1, 1]), 1, (2, 2), 2, False, (40, 44)),
    )
    yield (
        "RoIAlign backward fp32, 40 RoIs of one image, C=16",
        roi_align_backward_case(FP32, 16, 2, some_rois(40, 1), 1, (2, 2), 2, False, (40, 44)),
    )


def bugs() -> Iterator[tuple[str, Bug]]:
    six = some_rois(6, 2)
    tap = "row0 + column1", "row1 + column1", roi_align_case(pyramid(4, 2, 32, FP32, True), six)
    yield "RoIAlign, a tap of the wrong row", Bug("gpu_roi_align", *tap)
    channel = "offs_c < channels", "offs_c <= channels", roi_align_case(pyramid(2, 2, 33, BF16, False), six)
    yield "RoIAlign, one channel beyond the last", Bug("gpu_roi_align", *channel)
    roi = "offs_k < end", "offs_k <= end", roi_align_backward_case(FP32, 32, 4, some_rois(40, 2), 2, (3, 3))
    yield "RoIAlign backward, one RoI of the next map", Bug("gpu_roi_align_backward", *roi)
