"""Compiled kernels of a ResNet's stem, its convolution and its max pooling, against the reference.

On sm_90 Triton makes tl.dot of 64 rows or more wgmma, which is not executed here: there the convolution's programs get
32 pixels, and mma.sync; their real number is executed as compiled for sm_80, and for sm_90 it is compiled and audited.
"""

from collections.abc import Iterator
from unittest import mock

import torch
import torch.nn.functional as F
import triton
from case_inputs import BF16, FP16, FP32, INF, NAMES, NAN
from helpers.ptx import Bug, Case, close

from fastmask.kernels import reference_layers
from fastmask.kernels.fallback import stem as stem_fallback
from fastmask.kernels.triton import max_pool2d as max_pool2d_triton, stem_conv as stem_conv_triton

TOLERANCE = {FP32: 1e-6, FP16: 1e-3, BF16: 8e-3}


def conv_case(batch, height, width, kernel_size, padding, outputs, dtype, adversarial=False):
    x = torch.randn(batch, 3, height, width).to(dtype)
    if adversarial:
        x[0, 0, 5, 8], x[0, 2, -1, -1], x[0, 1, 0, 0] = NAN, INF, -INF
    images = F.pad(x, (0, 0, 0, 0, 0, 1), value=NAN).contiguous(memory_format=torch.channels_last)[:, :3]
    weight = (torch.randn(outputs, 3, kernel_size, kernel_size) / 12).to(dtype)
    arranged = stem_fallback.arrange_weight(weight, padding)

    def run():
        new = triton.runtime.driver.active.get_current_target().arch >= 90
        rows, columns = (2, 16) if new else (stem_conv_triton.ROWS, stem_conv_triton.COLUMNS)
        with mock.patch.multiple(stem_conv_triton, ROWS=rows, COLUMNS=columns):
            return stem_conv_triton.stem_conv(images, arranged, padding)

    def check(out):
        return close("maps", out, reference_layers.stem_conv(x, weight, padding), 4 * TOLERANCE[dtype])

    return Case(run, check)


def pool_case(shape, geometry, dtype, bias=False, elements=512):
    x = torch.randn(shape).bfloat16().to(dtype).contiguous(memory_format=torch.channels_last)
    x[0, 0, 1, 1], x[0, -1, -1, -1], x[-1, 0] = NAN, NAN, -INF
    added = torch.randn(shape[1]).to(dtype) if bias else None

    def run():
        with mock.patch.object(max_pool2d_triton, "ELEMENTS", elements):
            return max_pool2d_triton.max_pool2d(x, added, *geometry)

    def check(out):
        expected = reference_layers.max_pool2d(x, added, *geometry)
        return close("maps", out, expected, 4 * TOLERANCE[dtype] if bias else 0)

    return Case(run, check)


def cases() -> Iterator[tuple[str, Case]]:
    for dtype in (BF16, FP16):
        name = NAMES[dtype]
        yield f"stem's convolution {name}, 7 x 7", conv_case(2, 17, 42, 7, 3, 64, dtype, adversarial=True)
        yield f"stem's convolution {name}, 3 x 3 to 24", conv_case(1, 18, 36, 3, 1, 24, dtype, adversarial=True)
        yield f"stem's convolution {name}, 6 x 6 to 80", conv_case(1, 13, 20, 6, 3, 80, dtype)
    for dtype in (FP32, BF16, FP16):
        name = NAMES[dtype]
        yield f"max pooling {name}, 3 x 3, bias", pool_case((2, 64, 13, 18), (3, 2, 1), dtype, bias=True)
        yield f"max pooling {name}, 1 x 1, C=72", pool_case((2, 72, 7, 9), (1, 2, 0), dtype)
    yield "max pooling bf16, 3 x 3, C=5", pool_case((1, 5, 12, 11), (3, 2, 1), BF16, elements=128)
    yield "max pooling fp32, 2 x 2, C=16", pool_case((2, 16, 12, 11), (2, 1, 1), FP32, bias=True)


def bugs() -> Iterator[tuple[str, Bug]]:
    case = conv_case(1, 9, 20, 7, 3, 64, BF16, adversarial=True)
    gap = "window = tl.load", "counts = pixel >= 0\n        window = tl.load", case
    yield "stem's convolution, what lies between pixels", Bug("triton.stem_conv", *gap)
    border = "(pair < pairs)", "(pair <= pairs)", conv_case(1, 9, 20, 7, 3, 64, BF16)
    yield "stem's convolution, a pair of the next row", Bug("triton.stem_conv", *border)
    case = pool_case((1, 32, 9, 11), (3, 2, 1), FP32)
    column = "(column < width)", "(column <= width)", case
    yield "max pooling, a column beyond the row", Bug("triton.max_pool2d", *column)
    rows = "mask=mask & (y + i < rows)", "mask=mask & (y + i <= rows)", case
    yield "max pooling, a row beyond the image", Bug("triton.max_pool2d", *rows)
