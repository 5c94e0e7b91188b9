"""Convolutions' epilogues against their specification: bias_act_, predict_anchors, linear_add_relu, conv_relu."""

import pytest
import torch
import torch.nn.functional as F
from helpers.inputs import FLOATS, NAN
from torch import Tensor

from fastmask.kernels import reference_layers
from fastmask.kernels.bias_act import bias_act_op
from fastmask.kernels.conv_relu import conv_relu_op
from fastmask.kernels.launch import HAS_TRITON, INTERPRET
from fastmask.kernels.linear_add_relu import linear_add_relu_op
from fastmask.kernels.predict_anchors import predict_anchors_op

# of a sum rounded once; Triton's interpreter truncates to bfloat16, which makes that an ulp
TOLERANCE = {
    torch.float64: 1e-12,
    torch.float32: 1e-6,
    torch.float16: 1e-3,
    torch.bfloat16: 1e-2 if INTERPRET else 4e-3,
}
# of a product's output in the sum of its terms' sizes, some of which are rounded before; worst case
PRODUCT = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2 if INTERPRET else 1e-2}


def draw(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Draw numbers that half types represent exactly, channels-last."""
    values = torch.randn(shape).bfloat16().to(dtype)
    return values.contiguous(memory_format=torch.channels_last) if len(shape) == 4 else values


def check(y: Tensor, bias: Tensor, residual: Tensor | None, relu: bool, device: torch.device) -> None:
    expected = reference_layers.bias_act(y, bias, residual, relu).to(y.dtype).double()
    actual = y.to(device, copy=True)
    assert bias_act_op(actual, bias.to(device), None if residual is None else residual.to(device), relu) is None
    torch.testing.assert_close(
        actual.double().cpu(), expected, rtol=TOLERANCE[y.dtype], atol=TOLERANCE[y.dtype], equal_nan=True
    )


@pytest.mark.parametrize("relu", [False, True], ids=["sum", "relu"])
@pytest.mark.parametrize("small", [None, (13, 10), (7, 5), (5, 9)], ids=["alone", "residual", "half", "nearest"])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_meets_the_specification(
    dtype: torch.dtype, small: tuple[int, int] | None, relu: bool, device: torch.device
) -> None:
    for channels in (1, 3, 64, 72):
        residual = None if small is None else draw(2, channels, *small, dtype=dtype)
        check(draw(2, channels, 13, 10, dtype=dtype), draw(channels, dtype=dtype), residual, relu, device)


def test_more_channels_and_pixels_than_a_program_has(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    if HAS_TRITON:
        from fastmask.kernels.triton import bias_act as bias_act_triton

        monkeypatch.setattr(bias_act_triton, "ELEMENTS", 4096)
        monkeypatch.setattr(bias_act_triton, "CHANNELS", 256)
    for small in (None, (9, 35), (5, 18)):
        residual = None if small is None else draw(2, 330, *small)
        check(draw(2, 330, 9, 35), draw(330), residual, True, device)


@pytest.mark.parametrize("sizes", [(3, 6), (7, 49), (13, 25), (25, 50), (42, 84), (41, 83)], ids=str)
def test_the_nearest_pixel_is_interpolates(sizes: tuple[int, int], device: torch.device) -> None:
    """Also where a quotient is rounded across a whole number."""
    small, large = sizes
    residual = torch.arange(small * 3.0).view(1, 1, small, 3).to(device)
    y, bias = torch.zeros(1, 1, large, 7, device=device), torch.zeros(1, device=device)
    bias_act_op(y, bias, residual, False)
    assert torch.equal(y, F.interpolate(residual, size=(large, 7), mode="nearest"))


def test_other_layouts(device: torch.device) -> None:
    """Planes, slices, and residuals of other strides."""
    whole = draw(2, 16, 5, 12).to(device)
    for y in (torch.randn(2, 8, 5, 6, device=device), whole[:, 4:12], whole[:, :8, :, ::2]):
        bias, residual = torch.randn(16)[::2].to(device), torch.randn(2, 8, *y.shape[2:], device=device)
        before, around = y.clone(), whole.clone()
        bias_act_op(y, bias, residual, True)
        expected = reference_layers.bias_act(before.cpu(), bias.cpu(), residual.cpu(), True)
        torch.testing.assert_close(y.double().cpu(), expected, rtol=1e-6, atol=1e-6)
        y.copy_(before)
        assert torch.equal(whole, around)
    check(draw(2, 8, 5, 6), draw(16)[::2], torch.randn(2, 8, 2, 3), True, device)


def test_adversarial_values(device: torch.device) -> None:
    """NaN stays NaN, as in PyTorch; a sum beyond the largest number is infinite."""
    y = torch.tensor([NAN, -float("inf"), float("inf"), -0.0, -1e-30, 6e4, -6e4, 3e38]).view(1, 8, 1, 1)
    check(y, torch.tensor([1.0, 1, -1, 0, 0, 6e4, 0, 3e38]), None, True, device)
    check(y, torch.tensor([1.0, 1, NAN, 0, 0, 6e4, 0, 0]), y.clone(), False, device)
    check(y[:, 3:7].half(), torch.tensor([0.0, 0, 6e4, 0]).half(), None, True, device)


@pytest.mark.parametrize("shape", [(0, 8, 3, 3), (2, 8, 0, 3), (1, 8, 1, 1)], ids=str)
def test_empty_and_small(shape: tuple[int, ...], device: torch.device) -> None:
    check(draw(*shape), draw(8), draw(*shape), True, device)


@pytest.mark.skipif(not HAS_TRITON, reason="tests what takes the eager fallback instead of Triton")
def test_too_large_for_int32(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    from fastmask.kernels.triton import (
        bias_act as bias_act_triton,
        linear_add_relu as linear_add_relu_triton,
        predict_anchors as predict_anchors_triton,
    )

    monkeypatch.setattr(linear_add_relu_triton, "LARGEST", 20)
    monkeypatch.setattr(bias_act_triton, "LARGEST", 20)
    monkeypatch.setattr(predict_anchors_triton, "LARGEST", 20)
    check(draw(2, 8, 5, 6), draw(8), draw(2, 8, 3, 3), True, device)
    check_anchors([draw(2, 8, 5, 6)], 3, torch.float32, device)
    product = [t.bfloat16().to(device) for t in (draw(30, 16), draw(24, 16), draw(24), draw(30, 24))]
    expected = (product[0] @ product[1].t()).float() + product[2] + product[3]
    assert torch.equal(linear_add_relu_op(*product), expected.relu().bfloat16())


def check_anchors(hidden: list[Tensor], anchors: int, dtype: torch.dtype, device: torch.device) -> None:
    channels = hidden[0].shape[1]
    hidden = [level.to(dtype) for level in hidden]
    weight, bias, outer = draw(5 * anchors, channels, dtype=dtype), draw(channels, dtype=dtype), draw(5 * anchors)
    arguments = (bias, weight, outer.to(dtype))
    on_device = [level.to(device) for level in hidden], *(values.to(device) for values in arguments)
    logits, deltas = predict_anchors_op(*on_device, anchors)
    expected, bounds = [], []
    for level in hidden:
        values = reference_layers.bias_act(level, bias, None, True).to(dtype).double()
        rows = values.permute(0, 2, 3, 1).flatten(0, 2)
        expected.append(rows @ weight.double().T + outer.double())
        bounds.append(rows @ weight.double().abs().T + outer.double().abs())
    assert logits.is_contiguous()
    assert deltas.is_contiguous()
    assert logits.dtype == deltas.dtype == dtype
    both = torch.cat([logits, deltas], 1).double().cpu()
    assert both.shape == (sum(level.shape[0] * level.shape[2] * level.shape[3] for level in hidden), 5 * anchors)
    assert ((both - torch.cat(expected)).abs() <= PRODUCT[dtype] * torch.cat(bounds)).all()


@pytest.mark.parametrize("levels", [1, 2, 5, 6], ids="L{}".format)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_predict_anchors(dtype: torch.dtype, levels: int, device: torch.device) -> None:
    for channels, anchors in ((32, 3), (72, 1), (5, 7), (40, 15)):
        sizes = [(13 + i, 10 - i) for i in range(levels)]
        check_anchors([draw(2, channels, *size) for size in sizes], anchors, dtype, device)


def test_predict_anchors_of_planes_and_of_nothing(device: torch.device) -> None:
    check_anchors([torch.randn(2, 8, 5, 6), draw(2, 8, 3, 3)], 3, torch.float32, device)
    check_anchors([draw(0, 8, 5, 6), draw(0, 8, 3, 3)], 3, torch.float32, device)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_linear_add_relu(dtype: torch.dtype, device: torch.device) -> None:
    """Less than a tile, several of them, none at all; rows that are not whole."""
    for pixels, depth, outputs in ((37, 16, 24), (300, 80, 130), (5, 200, 3), (0, 16, 16)):
        x, weight, bias = (
            draw(pixels, depth, dtype=dtype),
            draw(outputs, depth, dtype=dtype),
            draw(outputs, dtype=dtype),
        )
        residual = draw(pixels, outputs, dtype=dtype)
        actual = linear_add_relu_op(*(t.to(device) for t in (x, weight, bias, residual)))
        assert actual.dtype == dtype
        x, weight, bias, residual = (t.double() for t in (x, weight, bias, residual))
        expected = (x @ weight.T + bias + residual).relu()
        bound = x.abs() @ weight.abs().T + bias.abs() + residual.abs()
        assert actual.shape == expected.shape
        assert ((actual.double().cpu() - expected).abs() <= PRODUCT[dtype] * bound).all()


def test_linear_add_relu_of_other_strides(device: torch.device) -> None:
    x, weight, residual = (torch.randn(size).bfloat16().to(device) for size in ((32, 40), (32, 24), (24, 40)))
    bias = torch.zeros(24, device=device).bfloat16()
    actual = linear_add_relu_op(x.t(), weight.t(), bias, residual.t())
    expected = linear_add_relu_op(x.t().contiguous(), weight.t().contiguous(), bias, residual.t().contiguous())
    assert torch.equal(actual, expected)


@pytest.mark.parametrize("residual", [False, True], ids=["alone", "residual"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_conv_relu(dtype: torch.dtype, residual: bool, device: torch.device) -> None:
    """Earlier contents of the memory do not matter: on a GPU, the allocator's is full of NaN."""
    if dtype == torch.float16 and device.type == "cpu":
        pytest.skip("PyTorch has no such convolution on every CPU")
    for kernel, stride in ((1, 1), (3, 1), (3, 2)):
        x, weight, bias = draw(2, 32, 16, 24, dtype=dtype), draw(64, 32, kernel, kernel, dtype=dtype), draw(64)
        geometry = ([stride] * 2, [kernel // 2] * 2, [1, 1], 1)
        plain = F.conv2d(x.double(), weight.double(), bias.double(), *geometry)
        other = draw(*plain.shape, dtype=dtype) if residual else None
        expected = (plain if other is None else plain + other.double()).relu()
        arguments = [None if t is None else t.to(device) for t in (x, weight, bias.to(dtype), other)]
        for _ in range(3):
            if device.type == "cuda":
                torch.cuda.empty_cache()
                filled = [torch.full((size,), NAN, device=device) for size in (64, 2**12, 2**16, 2**20, 2**24)]
                del filled
            actual = conv_relu_op(*arguments, *geometry)
            assert actual.isfinite().all()
            tolerance = 1e-2 if dtype != torch.bfloat16 else 5e-2  # TF32's and half types' products, 288 of them
            scale = expected.abs().amax()
            torch.testing.assert_close(actual.double().cpu() / scale, expected / scale, rtol=0, atol=tolerance)


def test_registration_is_sound(device: torch.device) -> None:
    for residual in (None, draw(2, 16, 5, 6), draw(2, 16, 3, 3)):
        other = None if residual is None else residual.to(device)
        torch.library.opcheck(bias_act_op, (draw(2, 16, 5, 6).to(device), draw(16).to(device), other, True))
    hidden = [draw(2, 16, 5, 6).to(device), draw(2, 16, 3, 3).to(device)]
    anchors = (draw(16).to(device), draw(15, 16).to(device), draw(15).to(device), 3)
    torch.library.opcheck(predict_anchors_op, (hidden, *anchors))
    product = (draw(9, 16), draw(24, 16), draw(24), draw(9, 24))
    torch.library.opcheck(linear_add_relu_op, tuple(t.to(device) for t in product))
    convolution = (draw(2, 16, 5, 6).to(device), draw(16, 16, 3, 3).to(device), draw(16).to(device), None)
    torch.library.opcheck(conv_relu_op, (*convolution, [1, 1], [1, 1], [1, 1], 1))
