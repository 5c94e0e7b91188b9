"""fastmask::paste_masks against its specification: both modes, three outputs, adversarial boxes, gradients, size."""

import numpy as np
import pytest
import torch
from helpers.inputs import FLOATS, NAN, adversarial_boxes, draw_boxes, draw_masks
from torch import Tensor

from fastmask.kernels import reference
from fastmask.kernels.launch import HAS_TRITON, INTERPRET
from fastmask.kernels.paste import paste_masks_backward_op, paste_masks_op

SIZE = (24 if INTERPRET else 60, 91)  # Triton's interpreter takes 2 ms for each row of each box
# two bilinear weights of float32 positions on a mask of 30 cells, then one rounding of the output
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4, torch.float16: 1e-3, torch.bfloat16: 5e-3}
MODES = pytest.mark.parametrize("continuous", [False, True], ids=["torchvision", "continuous"])


def draw_case(num: int = 5 if INTERPRET else 10) -> tuple[Tensor, Tensor]:
    boxes = torch.cat([draw_boxes(num, SIZE, 70), adversarial_boxes(SIZE)])
    return draw_masks(len(boxes)), boxes


@MODES
@pytest.mark.parametrize("padding", [0, 1, 2], ids="padding{}".format)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_meets_the_specification(dtype: torch.dtype, padding: int, continuous: bool, device: torch.device) -> None:
    masks, boxes = draw_case()
    masks = masks.to(dtype)
    actual = paste_masks_op(masks.to(device), boxes.to(device), *SIZE, "float", 0.5, continuous, False, padding)
    assert actual.dtype == dtype
    expected = reference.paste_masks(masks, boxes, SIZE, continuous, padding)
    torch.testing.assert_close(actual.double().cpu(), expected, rtol=0, atol=TOLERANCE[dtype])


@MODES
@pytest.mark.parametrize("width", [1, 7, 8, 63, 64, 65], ids="W{}".format)
def test_bool_and_packed_are_the_thresholded_floats(width: int, continuous: bool, device: torch.device) -> None:
    masks, boxes = (t.to(device) for t in draw_case())
    rest = (SIZE[0], width), (0.4, continuous, False, 1)
    values, inside, packed = (paste_masks_op(masks, boxes, *rest[0], o, *rest[1]) for o in ("float", "bool", "packed"))
    assert torch.equal(inside, values >= 0.4 if continuous else values > 0.4)
    assert packed.shape == (len(masks), SIZE[0], -(-width // 8))
    bits = np.unpackbits(packed.cpu().numpy(), axis=-1, count=width)
    assert np.array_equal(bits.astype(bool), inside.cpu().numpy())


def test_the_threshold_itself(device: torch.device) -> None:
    """torchvision's mode takes probabilities above the threshold, the continuous mode also those on it."""
    masks, boxes = torch.full((1, 4, 4), 0.5, device=device), torch.tensor([[0.0, 0, 8, 8]], device=device)
    for continuous, count in ((False, 0), (True, 36)):  # half a cell fades out on each side
        assert paste_masks_op(masks, boxes, 8, 8, "bool", 0.5, continuous, False, 0).sum() == count


@pytest.mark.parametrize("threshold", [0.0, -0.5])
def test_beyond_the_box_nothing_is_mask(threshold: float, device: torch.device) -> None:
    """The mask ends half a cell beyond the box, even where every probability counts."""
    box = torch.tensor([[10.3, 12.2, 30.7, 33.1]], device=device)
    pasted = paste_masks_op(torch.rand(1, 28, 28, device=device), box, *SIZE, "bool", threshold, True, False, 0)
    (left, top, right, bottom), cell = box[0].double().tolist(), torch.tensor([20.4, 20.9], dtype=torch.float64) / 28
    x, y = torch.arange(SIZE[1]) + 0.5, torch.arange(SIZE[0]) + 0.5
    inside_x = (x > left - cell[0] / 2) & (x < right + cell[0] / 2)
    inside_y = (y > top - cell[1] / 2) & (y < bottom + cell[1] / 2)
    assert torch.equal(pasted[0].cpu(), inside_y[:, None] & inside_x)


@MODES
def test_logits(continuous: bool, device: torch.device) -> None:
    masks, boxes = (t.to(device) for t in draw_case())
    logits = 8 * masks - 4
    expected = paste_masks_op(logits.sigmoid(), boxes, *SIZE, "float", 0.5, continuous, False, 1)
    actual = paste_masks_op(logits, boxes, *SIZE, "float", 0.5, continuous, True, 1)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("side", [1, 2, 14, 28], ids="M{}".format)
@MODES
def test_mask_sides(side: int, continuous: bool, dtype: torch.dtype, device: torch.device) -> None:
    _, boxes = draw_case()
    masks = torch.rand(len(boxes), side, side).to(dtype)
    actual = paste_masks_op(masks.to(device), boxes.to(device), *SIZE, "float", 0.5, continuous, False, 1)
    expected = reference.paste_masks(masks, boxes, SIZE, continuous, 1)
    torch.testing.assert_close(actual.double().cpu(), expected, rtol=0, atol=TOLERANCE[dtype])


@pytest.mark.skipif(not HAS_TRITON, reason="how the Triton kernel shares its work out")
@pytest.mark.parametrize("programs", [1, 7, 1000], ids="{} programs".format)
@pytest.mark.parametrize("output", ["bool", "packed"])
def test_any_number_of_programs(
    output: str, programs: int, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One program walks several tiles, several share one, and most have nothing to do."""
    from fastmask.kernels.triton import paste as paste_triton

    masks, boxes = draw_masks(3, 5).to(device), torch.tensor([[2.0, 1, 78, 19], [-9, -9, 99, 99], [30, 3, 31, 20]])
    expected = paste_masks_op(masks, boxes.to(device), 21, 83, output, 0.5, False, False, 1)
    monkeypatch.setattr(paste_triton, "TILE", 32)
    monkeypatch.setattr(paste_triton, "PROGRAMS", 3 * programs)
    assert torch.equal(paste_masks_op(masks, boxes.to(device), 21, 83, output, 0.5, False, False, 1), expected)


@pytest.mark.skipif(not HAS_TRITON, reason="tests what takes the eager fallback instead of Triton")
@pytest.mark.parametrize("output", ["bool", "packed"])
def test_images_too_large_for_int32(output: str, device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    from fastmask.kernels.triton import paste as paste_triton

    masks, boxes = torch.ones(2, 4, 4, device=device), torch.tensor([[2.0, 1, 7, 9], [-9, -9, 99, 99]], device=device)
    expected = paste_masks_op(masks, boxes, 12, 13, output, 0.5, False, False, 0)
    monkeypatch.setattr(paste_triton, "LARGEST", 12)
    assert torch.equal(paste_masks_op(masks, boxes, 12, 13, output, 0.5, False, False, 0), expected)


@pytest.mark.parametrize("size", [(0, 5), (5, 0), (0, 0), (1, 1)], ids=str)
@pytest.mark.parametrize("output", ["float", "bool", "packed"])
def test_empty(size: tuple[int, int], output: str, device: torch.device) -> None:
    for num in (0, 3):
        masks, boxes = draw_masks(num).to(device), draw_boxes(num).to(device)
        pasted = paste_masks_op(masks, boxes, *size, output, 0.5, False, False, 1)
        assert pasted.shape == (num, size[0], -(-size[1] // 8) if output == "packed" else size[1])


def test_nan_probabilities_are_no_mask(device: torch.device) -> None:
    masks, boxes = draw_masks(2).to(device), torch.tensor([[5.0, 5, 40, 40], [5, 5, 40, 40]], device=device)
    masks[0] = NAN
    inside = paste_masks_op(masks, boxes, *SIZE, "bool", 0.01, False, False, 1)
    assert not inside[0].any()
    assert inside[1].any()


@MODES
@pytest.mark.parametrize("logits", [False, True], ids=["probabilities", "logits"])
def test_gradients(continuous: bool, logits: bool, device: torch.device) -> None:
    boxes = torch.cat([draw_boxes(3, (20, 30), 25), adversarial_boxes((20, 30))]).to(device)
    masks = torch.randn(len(boxes), 5, 5, dtype=torch.float64, device=device, requires_grad=True)

    def paste(masks: Tensor) -> Tensor:
        return paste_masks_op(masks, boxes, 20, 30, "float", 0.5, continuous, logits, 1)

    torch.autograd.gradcheck(paste, masks, fast_mode=True)
    paste(masks.half().requires_grad_()).sum().backward()  # an expanded gradient, and a half type


@MODES
@pytest.mark.parametrize("logits", [False, True], ids=["probabilities", "logits"])
@pytest.mark.parametrize("side", [1, 5, 28], ids="M{}".format)
@pytest.mark.parametrize("padding", [0, 1, 2], ids="padding{}".format)
def test_gradients_meet_float64(padding: int, side: int, logits: bool, continuous: bool, device: torch.device) -> None:
    """Each cell's gradient is a sum over the pixels that it reaches; float32 places those to 1e-5 of a cell."""
    boxes = torch.cat([draw_boxes(3, SIZE, 50), adversarial_boxes(SIZE)])
    if INTERPRET and device.type == "cpu":  # a program for each row of cells
        boxes, side = boxes[::2], min(side, 8)
    masks = torch.randn(len(boxes), side, side)
    grad = torch.rand(len(boxes), *SIZE) * 2 - 1
    grads = []
    for dtype in (torch.float32, torch.float64):
        leaf = masks.to(device, dtype, copy=True).requires_grad_()
        pasted = paste_masks_op(leaf, boxes.to(device), *SIZE, "float", 0.5, continuous, logits, padding)
        pasted.backward(grad.to(pasted))
        grads.append(leaf.grad.double())
    scale = grads[1].abs().flatten(1).amax(1).clamp(min=1)[:, None, None]
    torch.testing.assert_close(grads[0] / scale, grads[1] / scale, rtol=0, atol=1e-3)


def test_over_two_to_the_31_elements(device: torch.device) -> None:
    """100 masks on an image of 25 megapixels: 2.5e9 bools, of which only the boxes' are ever written."""
    if INTERPRET and device.type == "cpu":
        pytest.skip("a minute and 2.5 GB in Triton's interpreter; without it, and on a GPU, it runs")
    boxes = torch.tensor([[4900.0, 4950, 4990, 4995]], device=device).repeat(100, 1)
    masks = draw_masks(1).to(device).repeat(100, 1, 1)
    inside = paste_masks_op(masks, boxes, 5000, 5000, "bool", 0.5, False, False, 1)
    assert inside.numel() > 2**31
    assert inside[99].any()
    moved = boxes[:1] - torch.tensor([4800.0, 4900, 4800, 4900], device=device)
    expected = paste_masks_op(masks[:1], moved, 100, 200, "bool", 0.5, False, False, 1)
    assert torch.equal(inside[99, 4900:, 4800:], expected[0])


def test_registration_is_sound(device: torch.device) -> None:
    masks, boxes = draw_masks(3, 5).to(device), draw_boxes(3, SIZE, 70).to(device)
    for output in ("float", "bool", "packed"):
        for grad in (False, True):
            leaf = masks.clone().requires_grad_(grad)
            torch.library.opcheck(paste_masks_op, (leaf, boxes, 12, 13, output, 0.5, False, True, 1))
        if output == "float":
            torch.library.opcheck(paste_masks_op, (leaf.transpose(1, 2), boxes, 12, 13, output, 0.5, True, False, 1))
    torch.library.opcheck(
        paste_masks_backward_op, (torch.randn(3, 12, 13, device=device), masks, boxes, False, True, 1)
    )


def test_autocast_leaves_the_gradient_alone(device: torch.device) -> None:
    boxes = draw_boxes(3, SIZE, 70).to(device)
    masks = draw_masks(3, 7).to(device)
    grads = []
    for enabled in (False, True):
        leaf = masks.clone().requires_grad_()
        with torch.autocast(device.type, torch.bfloat16, enabled=enabled):
            paste_masks_op(leaf, boxes, *SIZE, "float", 0.5, False, False, 1).square().sum().backward()
        grads.append(leaf.grad)
    assert torch.equal(*grads)
