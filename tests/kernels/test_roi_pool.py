"""fastmask::roi_pool against its specification."""

import pytest
import torch
from helpers.inputs import FLOATS, INF, LAYOUTS, NAN, adversarial_boxes, draw_boxes, strided, with_images

from fastmask.kernels import reference
from fastmask.kernels.fallback import roi as roi_fallback
from fastmask.kernels.launch import INTERPRET
from fastmask.kernels.roi_pool import roi_pool_backward_op, roi_pool_op


def draw_rois(num: int = 12) -> torch.Tensor:
    boxes = torch.cat([draw_boxes(num), adversarial_boxes()])
    boxes[:3] = boxes[:3].round() + 0.5  # halves: the rounding rule
    return with_images(boxes, 2)


@pytest.mark.parametrize("scale", [1.0, 0.125], ids="scale{}".format)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_meets_the_specification(dtype: torch.dtype, scale: float, device: torch.device) -> None:
    features, rois = torch.randn(2, 4, 25, 38).to(dtype), draw_rois(4 if INTERPRET else 12)
    actual, argmax = roi_pool_op(features.to(device), rois.to(device), scale, 3, 2)
    expected, where = reference.roi_pool(features, rois, scale, 3, 2)
    assert actual.dtype == dtype
    torch.testing.assert_close(actual.cpu(), expected, rtol=0, atol=0)
    torch.testing.assert_close(argmax.cpu(), where, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_bins_that_end_between_two_pixels(dtype: torch.dtype, device: torch.device) -> None:
    """Sides of whole bins: 7 x (1 / 7) is not 1 everywhere, and one ulp is one pixel more."""
    features = torch.randn(1, 2, 40, 160, dtype=dtype)
    sides = 7 * torch.arange(1.0, 4.0 if INTERPRET else 23.0)
    rois = torch.stack([0 * sides, 0 * sides, 0 * sides, sides - 1, (sides - 1).clamp(max=34)], 1)
    for bins in (7, 14):
        actual, argmax = roi_pool_op(features.to(device), rois.to(device), 1.0, bins, bins)
        expected, where = reference.roi_pool(features, rois, 1.0, bins, bins)
        assert torch.equal(actual.cpu(), expected)
        assert torch.equal(argmax.cpu(), where)


def test_images_one_after_the_other(monkeypatch: pytest.MonkeyPatch, device: torch.device) -> None:
    features, rois = torch.randn(2, 4, 25, 38, device=device).double(), draw_rois().to(device)  # eager fallback
    together = roi_pool_op(features, rois, 1.0, 3, 2)
    monkeypatch.setattr(roi_fallback, "SMALL", 0)
    for whole, alone in zip(together, roi_pool_op(features, rois, 1.0, 3, 2), strict=True):
        assert torch.equal(whole, alone)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("num_rois", [0, 1, 65], ids="K{}".format)
def test_any_strides(num_rois: int, layout: str, device: torch.device) -> None:
    features = strided(torch.randn(2, 5, 25, 38), layout)
    rois = with_images(draw_boxes(num_rois, (25, 38), 30), 2)
    actual, argmax = roi_pool_op(features.to(device), rois.to(device), 1.0, 2, 3)
    expected, where = reference.roi_pool(features, rois, 1.0, 2, 3)
    torch.testing.assert_close(actual.cpu(), expected, rtol=0, atol=0)
    torch.testing.assert_close(argmax.cpu(), where, rtol=0, atol=0)
    assert actual.stride() == argmax.stride() == (30, 1, 15, 5)


def test_ties_take_the_first_and_nan_never_wins(device: torch.device) -> None:
    features = torch.tensor([[3.0, 3, NAN, 3], [NAN, NAN, NAN, NAN], [-INF, -INF, 1, 1]], device=device)[None, None]
    rois = torch.tensor([[0.0, 0, 0, 3, 0], [0, 0, 1, 3, 1], [0, 0, 2, 1, 2]], device=device)
    best, where = roi_pool_op(features, rois, 1.0, 1, 1)
    lowest = torch.finfo(torch.float32).min  # what torchvision gives where nothing was larger
    assert best.flatten().tolist() == [3, lowest, lowest]
    assert where.flatten().tolist() == [0, -1, -1]


@pytest.mark.parametrize("shape", [(0, 5, 8, 8), (2, 0, 8, 8), (2, 5, 0, 8)], ids=str)
def test_maps_without_elements_give_zeros(shape: tuple[int, ...], device: torch.device) -> None:
    features = torch.zeros(shape, device=device, requires_grad=True)
    pooled, _ = roi_pool_op(features, with_images(draw_boxes(3), 1).to(device), 1.0, 2, 2)
    assert pooled.shape == (3, shape[1], 2, 2)
    assert not pooled.any()
    pooled.sum().backward()
    assert features.grad.shape == shape


@pytest.mark.parametrize("layout", LAYOUTS[:3])
def test_gradients(layout: str, device: torch.device) -> None:
    features = strided(torch.randn(2, 3, 9, 11, dtype=torch.float64, device=device), layout).requires_grad_()
    rois = torch.cat([with_images(draw_boxes(6, (9, 11), 9), 2), torch.tensor([[0, NAN, 0, 3, 3], [5, 0, 0, 5, 5]])])
    rois = rois.double().to(device)
    torch.autograd.gradcheck(lambda f: roi_pool_op(f, rois, 1.0, 2, 2)[0], features, fast_mode=True)


@pytest.mark.parametrize("dtype", FLOATS[1:], ids=str)
@pytest.mark.parametrize("scale", [1.0, 0.125], ids="scale{}".format)
def test_gradients_meet_the_argmaxima(scale: float, dtype: torch.dtype, device: torch.device) -> None:
    """Each pixel gets the gradients of all bins whose maximum it is, summed in float32; bitwise reproducible."""
    features = torch.randn(2, 5, 9, 13, device=device).to(dtype)
    rois = draw_rois(6).to(device)
    grads = []
    for _ in range(2):
        leaf = features.clone().requires_grad_()
        pooled, argmax = roi_pool_op(leaf, rois, scale, 3, 2)
        grad = torch.linspace(-1, 1, pooled.numel(), device=device).view(pooled.shape).to(dtype)
        pooled.backward(grad)
        grads.append(leaf.grad)
    assert torch.equal(*grads)
    expected = torch.zeros(2, 5, 9 * 13, dtype=torch.float64)
    for roi, where, values in zip(rois.cpu(), argmax.cpu(), grad.double().cpu(), strict=True):
        for channel, (places, gradients) in enumerate(zip(where, values, strict=True)):
            for place, value in zip(places.flatten().tolist(), gradients.flatten(), strict=True):
                if place >= 0:
                    expected[int(roi[0]), channel, place] += value
    assert expected.any()
    rounded = {torch.float32: 1e-6, torch.float16: 2**-11, torch.bfloat16: 2**-7 if INTERPRET else 2**-8}[dtype]
    torch.testing.assert_close(grads[0].double().cpu().flatten(2), expected, rtol=rounded, atol=1e-6)


def test_a_map_that_has_no_rois(device: torch.device) -> None:
    features = torch.randn(3, 5, 8, 8, device=device, requires_grad=True)
    for rois in (torch.zeros(0, 5), torch.tensor([[1.0, 0, 0, 4, 4], [7, 0, 0, 4, 4]])):
        features.grad = None
        roi_pool_op(features, rois.to(device), 1.0, 2, 2)[0].sum().backward()
        assert features.grad[1].any() == (len(rois) > 0)
        assert not features.grad[[0, 2]].any()


def test_registration_is_sound(device: torch.device) -> None:
    rois = with_images(draw_boxes(4), 2).to(device)
    for grad in (False, True):
        features = torch.randn(2, 3, 9, 11, device=device, requires_grad=grad)
        torch.library.opcheck(roi_pool_op, (features, rois, 0.5, 2, 3))
    pooled, argmax = roi_pool_op(features.detach(), rois, 0.5, 2, 3)
    torch.library.opcheck(roi_pool_backward_op, (torch.randn_like(pooled), rois, argmax, 0.5, 2, 9, 11))
