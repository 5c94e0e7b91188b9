"""Ops of a ResNet's stem against their specification: stem_conv, max_pool2d."""

import pytest
import torch
import torch.nn.functional as F
from helpers.inputs import FLOATS, INF, NAN
from torch import Tensor

from fastmask.kernels import reference_layers
from fastmask.kernels.bias_act import bias_act_op
from fastmask.kernels.fallback import stem as stem_fallback
from fastmask.kernels.launch import HAS_TRITON, INTERPRET
from fastmask.kernels.max_pool2d import max_pool2d_op
from fastmask.kernels.stem_conv import stem_conv_op

# in the sum of the terms' sizes; Triton's interpreter truncates to bfloat16, which makes it an ulp
PRODUCT = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2 if INTERPRET else 6e-3}
CONVS = {  # kernel, padding, output channels
    "7 x 7": (7, 3, 64),
    "3 x 3": (3, 1, 32),
    "5 x 5": (5, 2, 24),
    "odd": (6, 3, 70),
    "without padding": (4, 0, 16),
}


@pytest.fixture(autouse=True)
def float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Disable TF32, which cuDNN uses by default."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def with_gaps(x: Tensor, between: float = NAN) -> Tensor:
    """Copy images into memory with four elements a pixel."""
    whole = F.pad(x, (0, 0, 0, 0, 0, 1), value=between)
    return whole.contiguous(memory_format=torch.channels_last)[:, :3]


def check_conv(x: Tensor, conv: str, device: torch.device) -> None:
    kernel_size, padding, outputs = CONVS[conv]
    weight = (torch.randn(outputs, 3, kernel_size, kernel_size) / 12).to(x.dtype)
    on_device = torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=device)
    on_device = with_gaps(x.to(device)) if stem_fallback.has_gaps(x) else on_device.copy_(x)
    actual = stem_conv_op(on_device, stem_fallback.arrange_weight(weight, padding).to(device), padding)
    expected = reference_layers.stem_conv(x, weight, padding)
    assert actual.dtype == x.dtype
    assert actual.is_contiguous(memory_format=torch.channels_last)
    assert actual.shape == expected.shape
    actual = actual.double().cpu()
    assert torch.equal(actual.isfinite(), expected.isfinite())
    assert torch.equal(actual.isnan(), expected.isnan())
    sizes = reference_layers.stem_conv(x.nan_to_num(0, 0, 0).abs(), weight.abs(), padding)
    counts = expected.isfinite()
    assert ((actual - expected).abs() <= PRODUCT[x.dtype] * sizes)[counts].all()


@pytest.mark.parametrize("conv", CONVS)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_conv_meets_the_specification(dtype: torch.dtype, conv: str, device: torch.device) -> None:
    """Windows on every border, tiles that are not whole; what lies between the pixels is NaN."""
    for height, width in ((20, 36),) if INTERPRET else ((13, 22), (26, 36), (7, 8)):
        check_conv(with_gaps(torch.randn(2, 3, height, width).to(dtype)), conv, device)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_conv_of_other_layouts(dtype: torch.dtype, device: torch.device) -> None:
    """Planes, pixels without gaps and rows of an odd number of pixels take the eager fallback."""
    x = torch.randn(2, 3, 14, 18).to(dtype)
    for other in (x, x.contiguous(memory_format=torch.channels_last), with_gaps(x[..., :17])):
        check_conv(other, "7 x 7", device)


def test_conv_where_memory_ends_with_the_last_pixel(device: torch.device) -> None:
    """There is no gap behind it, so that PyTorch reads it."""
    x = with_gaps(torch.randn(2, 3, 8, 10)).bfloat16()
    memory = torch.zeros(2 * 8 * 10 * 4 - 1, dtype=torch.bfloat16, device=device)
    short = memory.as_strided(x.shape, x.stride()).copy_(x)
    weight = stem_fallback.arrange_weight(torch.randn(64, 3, 7, 7).bfloat16(), 3).to(device)
    actual, expected = stem_conv_op(short, weight, 3), stem_conv_op(with_gaps(x.to(device)), weight, 3)
    torch.testing.assert_close(actual, expected, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("conv", ["7 x 7", "odd"])
def test_conv_keeps_nan_and_infinity_in_their_windows(conv: str, device: torch.device) -> None:
    if device.type == "cpu" and not INTERPRET:
        pytest.skip("PyTorch's own convolution on the CPU spreads them to pixels beside a window")
    x = torch.randn(1, 3, 26, 40).bfloat16()
    x[0, 0, 9, 12], x[0, 2, 20, 31], x[0, 1, 0, 0], x[0, 1, 25, 39] = NAN, INF, -INF, NAN
    check_conv(with_gaps(x), conv, device)


def test_conv_weight_is_arranged_as_it_was() -> None:
    for kernel_size, padding, outputs in CONVS.values():
        weight = torch.randn(outputs, 3, kernel_size, kernel_size, dtype=torch.float64)
        x = torch.randn(2, 3, 15, 20, dtype=torch.float64)
        actual = stem_fallback.stem_conv(x, stem_fallback.arrange_weight(weight, padding), padding)
        torch.testing.assert_close(actual, F.conv2d(x, weight, stride=2, padding=padding))


@pytest.mark.parametrize("sizes", [(0, 8, 10), (2, 7, 7)], ids=str)
def test_conv_of_nothing_and_of_little(sizes: tuple[int, ...], device: torch.device) -> None:
    batch, *size = sizes
    check_conv(with_gaps(torch.randn(batch, 3, *size).bfloat16()), "7 x 7", device)


POOLS = {"stem's": (3, 2, 1), "every second": (1, 2, 0), "halves": (2, 2, 0), "2 x 2, overlapping": (2, 1, 1)}
POOLS |= {"thirds": (3, 3, 1), "overlapping more": (3, 1, 1)}


def draw(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Channels-last; numbers of which half types lose nothing."""
    return torch.randn(shape).bfloat16().to(dtype).contiguous(memory_format=torch.channels_last)


def check_pool(x: Tensor, bias: Tensor | None, geometry: tuple[int, int, int], device: torch.device) -> None:
    """Results are bitwise those of pooling, then a bias, then ReLU, except for the sign of a zero."""
    on_device, ours = x.to(device), None if bias is None else bias.to(device)
    actual = max_pool2d_op(on_device, ours, *geometry)
    expected = F.max_pool2d(on_device, *geometry)
    if ours is not None:
        bias_act_op(expected, ours, None, True)
    assert actual.shape == expected.shape
    assert actual.dtype == x.dtype
    exactly = 1e-2 if INTERPRET and x.dtype == torch.bfloat16 else 0  # which truncates to it
    torch.testing.assert_close(actual, expected, rtol=exactly, atol=exactly, equal_nan=True)
    exact = reference_layers.max_pool2d(x, bias, *geometry)
    tolerance = 1e-2 if x.dtype == torch.bfloat16 else 1e-3
    torch.testing.assert_close(actual.double().cpu(), exact, rtol=tolerance, atol=tolerance, equal_nan=True)


@pytest.mark.parametrize("bias", [False, True], ids=["alone", "bias and ReLU"])
@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_pool_meets_the_specification(dtype: torch.dtype, pool: str, bias: bool, device: torch.device) -> None:
    for channels, height, width in ((72, 13, 9), (5, 6, 8)) if INTERPRET else ((64, 13, 42), (5, 9, 8), (72, 6, 7)):
        added = torch.randn(channels).bfloat16().to(dtype) if bias else None
        check_pool(draw(2, channels, height, width, dtype=dtype), added, POOLS[pool], device)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_pool_of_nan_and_infinity(dtype: torch.dtype, device: torch.device) -> None:
    """NaN is the maximum, wherever in a window it is; a window of -inf gives -inf."""
    x = draw(1, 16, 12, 14, dtype=dtype)
    x[0, 0, 3, 3], x[0, 1, 4, 4], x[0, 2, 0, 0], x[0, 3, 11, 13], x[0, 4] = NAN, NAN, NAN, NAN, -INF
    x[0, 5, 6, 6], x[0, 6, 6, 6] = INF, -INF
    for pool in ("stem's", "every second", "2 x 2, overlapping"):
        check_pool(x, None, POOLS[pool], device)
        check_pool(x, torch.randn(16).to(dtype), POOLS[pool], device)


def test_pool_of_other_layouts_and_of_nothing(device: torch.device) -> None:
    """Planes and slices; a batch of none, of which PyTorch makes none."""
    whole = draw(2, 16, 9, 12)
    for x in (torch.randn(2, 8, 9, 12), whole[:, 4:12], whole[..., ::2], draw(0, 8, 5, 6), draw(1, 1, 1, 1)):
        check_pool(x, torch.randn(x.shape[1]), POOLS["stem's"], device)


def test_pool_that_cannot_be(device: torch.device) -> None:
    for x, geometry in ((draw(1, 8, 2, 2), (3, 3, 0)), (draw(1, 8, 9, 9), (3, 2, 2))):
        with pytest.raises(RuntimeError):
            max_pool2d_op(x.to(device), None, *geometry)


@pytest.mark.skipif(not HAS_TRITON, reason="tests what takes the eager fallback instead of Triton")
def test_too_large_for_int32(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    from fastmask.kernels.triton import max_pool2d as max_pool2d_triton, stem_conv as stem_conv_triton

    for module in (max_pool2d_triton, stem_conv_triton):
        monkeypatch.setattr(module, "LARGEST", 20)
    check_conv(with_gaps(torch.randn(1, 3, 8, 10).bfloat16()), "7 x 7", device)
    check_pool(draw(2, 8, 5, 6), torch.randn(8), POOLS["stem's"], device)


@pytest.mark.skipif(not HAS_TRITON, reason="Triton is for Linux only: elsewhere there is one path")
def test_the_kernel_is_what_runs(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel runs on CUDA tensors, and on CPU tensors in the interpreter, for its own layouts and types."""
    from fastmask.kernels.launch import on_device
    from fastmask.kernels.triton import max_pool2d as max_pool2d_triton, stem_conv as stem_conv_triton

    launched: list[str] = []
    for name, module in (("conv", stem_conv_triton), ("pool", max_pool2d_triton)):
        monkeypatch.setattr(module, "on_device", lambda t, name=name: launched.append(name) or on_device(t))
    runs = device.type == "cuda" or INTERPRET
    for dtype, expected in ((torch.bfloat16, ["conv", "pool"]), (torch.float32, ["pool"]), (torch.float64, [])):
        weight = stem_fallback.arrange_weight(torch.randn(16, 3, 3, 3), 1).to(device, dtype)
        y = stem_conv_op(with_gaps(torch.randn(1, 3, 8, 10).to(device, dtype)), weight, 1)
        max_pool2d_op(y, None, 3, 2, 1)
        assert launched == (expected if runs else [])
        launched.clear()


def test_registration_is_sound(device: torch.device) -> None:
    weight = stem_fallback.arrange_weight(torch.randn(24, 3, 7, 7).bfloat16(), 3).to(device)
    for x in (torch.randn(2, 3, 9, 14), with_gaps(torch.randn(2, 3, 9, 14))):
        torch.library.opcheck(stem_conv_op, (x.bfloat16().to(device), weight, 3))
    for bias in (None, torch.randn(16).to(device)):
        torch.library.opcheck(max_pool2d_op, (draw(2, 16, 9, 8).to(device), bias, 3, 2, 1))
