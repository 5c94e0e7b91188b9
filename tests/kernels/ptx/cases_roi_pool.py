"""Compiled RoIPool, forward and backward, against the reference."""

from collections.abc import Iterator

import torch
from case_inputs import BF16, FP16, FP32, INF, NAMES, NAN, pyramid, some_rois
from helpers.ptx import Bug, Case, close, same

from fastmask.kernels import reference
from fastmask.kernels.triton import roi_pool as roi_pool_triton


def roi_pool_case(features, rois, pooled=(5, 5), scale=0.25):
    def run():
        return roi_pool_triton.roi_pool(features, rois, scale, *pooled)

    def check(out):
        expected, argmax = reference.roi_pool(features, rois, scale, *pooled)
        return same("out", out[0], expected) + same("argmax", out[1], argmax)

    return Case(run, check)


def roi_pool_backward_case(dtype, channels, rois, batch, pooled=(5, 5), size=(16, 20), scale=0.25):
    features = torch.randn(batch, channels, *size).to(dtype)
    _, argmax = reference.roi_pool(features, rois, scale, *pooled)
    grad = torch.randn(len(rois), channels, *pooled).to(dtype)

    def run():
        return roi_pool_triton.roi_pool_backward(grad, rois, argmax, scale, batch, *size)

    def check(out):
        expected = torch.zeros(batch, channels, size[0] * size[1], dtype=torch.float64)
        for k in range(len(rois)):
            if bool((argmax[k] >= 0).any()):
                image = expected[int(rois[k, 0])]
                hit = argmax[k].flatten(1)
                image.scatter_add_(1, hit.clamp(min=0), torch.where(hit >= 0, grad[k].flatten(1).double(), 0.0))
        return close("out", out, expected.view(batch, channels, *size), 1e-5)

    return Case(run, check)


def cases() -> Iterator[tuple[str, Case]]:
    six = some_rois(6, 2)
    for dtype in (FP32, BF16, FP16):
        for last in (False, True):
            yield (
                f"RoIPool {NAMES[dtype]}, {'NHWC' if last else 'NCHW'}, C=32",
                roi_pool_case(pyramid(1, 2, 32, dtype, last)[0], six),
            )
    features = pyramid(1, 2, 33, FP32, True)[0]
    features[0, :, 3:6, 3:9] = NAN
    features[1, :, 8:12, 3:9] = -INF
    features[:, 1] = 1.0  # ties
    yield (
        "RoIPool fp32, NHWC, C=33, adversarial RoIs, NaN, ties",
        roi_pool_case(features, some_rois(8, 2, True), (3, 4)),
    )
    yield "RoIPool fp16, NCHW, C=1", roi_pool_case(pyramid(1, 2, 1, FP16, False)[0], six, (7, 7))
    yield "RoIPool bf16, NHWC, C=144 in two blocks", roi_pool_case(pyramid(1, 2, 144, BF16, True)[0], six[:3], (2, 2))
    for dtype in (FP32, BF16, FP16):
        yield f"RoIPool backward {NAMES[dtype]}, C=32", roi_pool_backward_case(dtype, 32, six, 2)
    yield (
        "RoIPool backward fp32, adversarial RoIs, C=33",
        roi_pool_backward_case(FP32, 33, some_rois(6, 2, True), 2, (3, 4)),
    )
    yield (
        "RoIPool backward fp32, C=72 in two blocks, 40 RoIs",
        roi_pool_backward_case(FP32, 72, some_rois(40, 1), 1, (2, 2), (9, 10)),
    )


def bugs() -> Iterator[tuple[str, Bug]]:
    features, six = pyramid(1, 2, 33, FP32, True)[0], some_rois(6, 2)
    yield (
        "RoIPool, the last of equal values",
        Bug("triton.roi_pool", "value > best", "value >= best", roi_pool_case(features.round(), six)),
    )
    roi = "block + lanes < end", "block + lanes <= end", roi_pool_backward_case(FP32, 32, some_rois(40, 2), 2)
    yield "RoIPool backward, one RoI of the next map", Bug("triton.roi_pool", *roi)
