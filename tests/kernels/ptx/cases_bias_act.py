"""Compiled epilogues of convolutions, and the end of the RPN's head, against the reference."""

from collections.abc import Iterator
from unittest import mock

import torch
from case_inputs import BF16, FP16, FP32, NAMES, NAN
from helpers.ptx import Bug, Case, close

from fastmask.kernels import reference_layers
from fastmask.kernels.triton import (
    bias_act as bias_act_triton,
    linear_add_relu as linear_add_relu_triton,
    predict_anchors as predict_anchors_triton,
)

TOLERANCE = {FP32: 1e-6, FP16: 1e-3, BF16: 4e-3}


def draw(*shape, dtype=FP32):
    values = torch.randn(shape).bfloat16().to(dtype)
    return values.contiguous(memory_format=torch.channels_last) if len(shape) == 4 else values


def epilogue_case(y, bias, residual, relu, elements=None) -> Case:
    def run():
        out = y.clone()
        with mock.patch.object(bias_act_triton, "ELEMENTS", elements or bias_act_triton.ELEMENTS):
            bias_act_triton.bias_act_(out, bias, residual, relu)
        return out

    def check(out):
        expected = reference_layers.bias_act(y, bias, residual, relu).to(y.dtype).double()
        return close("out", out, expected, TOLERANCE[y.dtype] * expected.nan_to_num().abs().amax().item())

    return Case(run, check)


def anchors_case(hidden, anchors) -> Case:
    dtype, channels = hidden[0].dtype, hidden[0].shape[1]
    bias, weight, outer = (
        draw(*shape, dtype=dtype) for shape in ((channels,), (5 * anchors, channels), (5 * anchors,))
    )

    def run():
        return torch.cat(predict_anchors_triton.predict_anchors(hidden, bias, weight, outer, anchors), 1)

    def check(out):
        rows = []
        for level in hidden:
            values = reference_layers.bias_act(level, bias, None, True).to(dtype).double()
            rows.append(values.permute(0, 2, 3, 1).flatten(0, 2) @ weight.double().T + outer.double())
        expected = torch.cat(rows)
        return close("out", out, expected, TOLERANCE[dtype] * expected.abs().amax().item())

    return Case(run, check)


def product_case(pixels, depth, outputs, dtype, tile=(32, 32, 32)) -> Case:
    """Tiles of so few rows that Triton takes mma on sm_90 too; see helpers/ptx."""
    x, weight, bias = draw(pixels, depth, dtype=dtype), draw(outputs, depth, dtype=dtype), draw(outputs, dtype=dtype)
    residual = draw(pixels, outputs, dtype=dtype)
    names = dict(zip(("PIXELS", "OUTPUTS", "DEPTH"), tile, strict=True))

    def run():
        with mock.patch.multiple(linear_add_relu_triton, **names):
            return linear_add_relu_triton.linear_add_relu(x, weight, bias, residual)

    def check(out):
        expected = (x.double() @ weight.double().T + bias.double() + residual.double()).relu()
        return close("out", out, expected, TOLERANCE[dtype] * expected.abs().amax().item())

    return Case(run, check)


def cases() -> Iterator[tuple[str, Case]]:
    for dtype in (FP32, BF16, FP16):
        for name, small in (("alone", None), ("residual", (9, 7)), ("coarser residual", (5, 4))):
            residual = None if small is None else draw(2, 64, *small, dtype=dtype)
            y, bias = draw(2, 64, 9, 7, dtype=dtype), draw(64, dtype=dtype)
            case = epilogue_case(y, bias, residual, name != "residual", 1024)
            yield f"epilogue {NAMES[dtype]}, {name}, C=64", case
    for channels in (1, 33, 272):
        y, bias, residual = draw(1, channels, 5, 6), draw(channels), draw(1, channels, 2, 5)
        yield f"epilogue fp32, coarser residual, C={channels}", epilogue_case(y, bias, residual, True, 512)
    y = draw(1, 8, 3, 3)
    y[0, 1, 1] = NAN
    yield "epilogue fp32, NaN, C=8", epilogue_case(y, draw(8), None, True)
    for dtype in (FP32, BF16, FP16):
        maps = [draw(2, 48, 7, 9 - level, dtype=dtype) for level in range(5)]
        yield f"RPN's predictions {NAMES[dtype]}, 5 levels, C=48", anchors_case(maps, 3)
    yield "RPN's predictions fp32, C=33, 7 anchors", anchors_case([draw(1, 33, 5, 6), draw(1, 33, 2, 2)], 7)
    for dtype in (FP32, BF16):
        hidden = [draw(1, 40, 5, 8, dtype=dtype)]
        yield f"RPN's predictions {NAMES[dtype]}, C=40, 15 anchors of one level, as C4's", anchors_case(hidden, 15)
    yield "RPN's predictions bf16, C=16, an anchor", anchors_case([draw(1, 16, 9, 9, dtype=BF16)], 1)

    for dtype in (BF16, FP16):
        yield f"product with residual {NAMES[dtype]}, 70 x 80 -> 48", product_case(70, 80, 48, dtype)
        yield f"product with residual {NAMES[dtype]}, 33 x 17 -> 35", product_case(33, 17, 35, dtype)


def bugs() -> Iterator[tuple[str, Bug]]:
    case = epilogue_case(draw(2, 48, 9, 7), draw(48), draw(2, 48, 5, 4), True, 512)
    yield "epilogue, beyond the line", Bug("triton.bias_act", "offs_pixel < width)", "offs_pixel <= width)", case)
    yield "epilogue, the other image's row", Bug("triton.bias_act", "(line // height).to", "(line // width).to", case)
    hidden = [draw(1, 48, 7, 9), draw(1, 48, 4, 5)]
    pixel = "first + offs_pixel < pixels", "first + offs_pixel <= pixels", anchors_case(hidden, 3)
    yield "RPN's predictions, a pixel of the next level", Bug("triton.predict_anchors", *pixel)
    channel = "mask_c = offs_c < channels", "mask_c = offs_c <= channels", anchors_case(hidden, 3)
    yield "RPN's predictions, one channel beyond", Bug("triton.predict_anchors", *channel)
    row = "offs_pixel < pixels - first", "offs_pixel <= pixels - first", product_case(70, 80, 48, BF16)
    yield "product with residual, one pixel beyond", Bug("triton.linear_add_relu", *row)
    step = "offs_k < depth - start", "offs_k <= depth - start", product_case(40, 72, 32, BF16)
    yield "product with residual, one column beyond", Bug("triton.linear_add_relu", *step)
