"""fastmask::class_masks against its specification: shapes, counts, adversarial labels and pixels; what PyTorch does."""

import pytest
import torch
from helpers.inputs import FLOATS, HALF, INF, NAN
from torch import Tensor

from fastmask.kernels import reference_layers
from fastmask.kernels.class_masks import class_masks_op
from fastmask.kernels.launch import HAS_TRITON, INTERPRET

# probabilities; the fallback rounds to a half type after each layer, the kernel only its inputs
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 3e-3, torch.bfloat16: 2e-2}
SHAPES = {  # detections, images, channels in, in the middle, classes, height, width
    "slim": (4, 2, 64, 64, 5, 14, 14),
    "odd channels": (3, 1, 40, 70, 3, 14, 14),
    "one channel": (2, 1, 1, 1, 1, 12, 12),
    "many channels": (2, 1, 300, 16, 4, 12, 11),
    "small maps": (6, 2, 17, 64, 4, 8, 9),
    "maps of a pixel": (3, 1, 16, 16, 4, 1, 1),
}


@pytest.fixture(autouse=True)
def float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without TF32, which cuDNN takes by default."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def draw(shape: str, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    num, batch, channels, middle, classes, height, width = SHAPES[shape]
    hidden = torch.randn(num, channels, height, width).contiguous(memory_format=torch.channels_last)
    weights = torch.randn(channels, middle, 2, 2) / channels**0.5, torch.randn(middle)
    last = torch.randn(classes, middle) / middle**0.5, torch.randn(classes)
    labels, count = torch.randint(classes, (num,)), torch.randint(num // batch + 1, (batch,))
    count[0] = num // batch
    return [*(tensor.to(dtype) for tensor in (hidden, *weights, *last)), labels, count]


def run(device: torch.device, inputs: list[Tensor]) -> Tensor:
    return class_masks_op(*(tensor.to(device) for tensor in inputs))


def check(device: torch.device, inputs: list[Tensor]) -> None:
    actual, expected = run(device, inputs), reference_layers.class_masks(*inputs)
    dtype = inputs[0].dtype
    assert actual.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(actual.double().cpu(), expected, rtol=0, atol=TOLERANCE[dtype], equal_nan=True)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_meets_the_specification(dtype: torch.dtype, shape: str, device: torch.device) -> None:
    check(device, draw(shape, dtype))


def test_any_layout(device: torch.device) -> None:
    hidden, weight, *rest = draw("odd channels")
    expected = run(device, [hidden, weight, *rest])
    for other in (hidden.contiguous(), hidden.repeat_interleave(2, dim=3)[..., ::2]):
        spread = weight.repeat_interleave(3, dim=1)[:, ::3]
        actual = run(device, [other, spread.contiguous(memory_format=torch.channels_last), *rest])
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_padding_is_zero_and_is_not_looked_at(dtype: torch.dtype, device: torch.device) -> None:
    hidden, *rest, labels, count = draw("slim", dtype)
    count[:] = torch.tensor([1, 0])
    expected = run(device, [hidden, *rest, labels, count])
    hidden[1:], labels[1:] = NAN, torch.tensor([-7, 2**40, 5])
    actual = run(device, [hidden, *rest, labels, count])
    assert torch.equal(actual, expected)
    assert actual[0].all()
    assert not actual[1:].any()


def test_labels_of_no_class_give_zeros(device: torch.device) -> None:
    *inputs, labels, count = draw("slim")
    labels[:], count[:] = torch.tensor([5, -1, -(2**40), 4]), 2
    check(device, [*inputs, labels, count])
    found = run(device, [*inputs, labels, count])
    assert found.flatten(1).any(1).tolist() == [False, False, False, True]


@pytest.mark.parametrize("shape", ["slim", "odd channels"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_pixels_that_are_not_finite_stay_alone(dtype: torch.dtype, shape: str, device: torch.device) -> None:
    inputs = draw(shape, dtype)
    inputs[0][0, 3, 2, 5], inputs[0][0, 1, 13, 13], inputs[0][1, 0, 0, 0] = NAN, INF, -INF
    inputs[0][0, :, 7, 7] = INF
    inputs[1][:] = inputs[1].abs()  # an infinite sum, and not of both signs
    inputs[0][1, :, 4, 4] = -INF  # which the ReLU takes off
    check(device, inputs)
    assert run(device, inputs)[0].isnan().sum() >= 4


@pytest.mark.parametrize("images", [0, 2])
def test_empty(images: int, device: torch.device) -> None:
    hidden, *weights, labels, count = draw("slim")
    assert run(device, [hidden[:0], *weights, labels[:0], count[:images]]).shape == (0, 28, 28)


@pytest.mark.skipif(not HAS_TRITON, reason="how the Triton kernel shares its work out")
@pytest.mark.parametrize("quarters", [1, 4], ids="{} quarters".format)
@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_any_share_and_little_shared_memory(
    dtype: torch.dtype, quarters: int, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fastmask.kernels.triton import class_masks as class_masks_triton

    inputs = draw("odd channels", dtype)
    monkeypatch.setattr(class_masks_triton, "QUARTERS", quarters)
    check(device, inputs)
    monkeypatch.setattr(class_masks_triton, "shared_memory", lambda _: 65_536)
    check(device, inputs)


@pytest.mark.skipif(not HAS_TRITON, reason="tests what takes the eager fallback instead of Triton")
def test_more_than_int32_counts(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    from fastmask.kernels.triton import class_masks as class_masks_triton

    monkeypatch.setattr(class_masks_triton, "LARGEST", 100)
    check(device, draw("slim"))


@pytest.mark.skipif(INTERPRET or not HAS_TRITON, reason="the interpreter multiplies in float32")
def test_precision_is_as_convolutions_are_set(monkeypatch: pytest.MonkeyPatch) -> None:
    from fastmask.kernels.triton import class_masks as class_masks_triton

    assert class_masks_triton.precision(torch.float32) == ("ieee" if torch.version.hip else "")
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    assert class_masks_triton.precision(torch.float32) == ("ieee" if torch.version.hip else "tf32")
    assert class_masks_triton.precision(torch.bfloat16) == "half"


@pytest.mark.gpu
def test_tf32_is_as_exact_as_cudnns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten bits of each factor: the sum of 64 products is off by 2^-11 times about its root."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    inputs = draw("slim")
    actual = run(torch.device("cuda"), inputs).double().cpu()
    torch.testing.assert_close(actual, reference_layers.class_masks(*inputs), rtol=0, atol=3e-3)


def test_registration_is_sound(device: torch.device) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        torch.library.opcheck(class_masks_op, [tensor.to(device) for tensor in draw("small maps", dtype)])
