"""fastmask::decode_boxes against its specification: calls of an RPN and a box head, adversarial boxes, exact steps."""

import math

import pytest
import torch
from helpers.inputs import FLOATS, INF, NAN, adversarial_boxes, draw_boxes
from torch import Tensor

from fastmask.kernels import reference_layers
from fastmask.kernels.decode import decode_boxes_op
from fastmask.kernels.fallback import decode as decode_fallback

SIZES = torch.tensor([[200, 300], [150, 90]])
LEVELS = ([1.0, 1.0, 1.0, 1.0], math.log(1000 / 16), 1e-3, 0.0, False)  # as an RPN's
CLASSES = ([10.0, 10.0, 5.0, 5.0], math.log(1000 / 16), 1e-2, 0.25, True)  # as a box head's
UNEQUAL = ([10.0, 8.0, 5.0, 4.0], 1.0, 2.0, 0.25, False)
SETTINGS = pytest.mark.parametrize("settings", [LEVELS, CLASSES, UNEQUAL], ids=["levels", "classes", "unequal"])
# of corners below 1e5: three roundings of float32 and an exponential that is off by 4e-7 of the box's size
TOLERANCE = {torch.float64: 1e-10, torch.float32: 2e-6}
Inputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]


def draw_inputs(each: int, counted: bool) -> Inputs:
    """``each`` candidates of each reference; some scores lie on a threshold."""
    references = torch.stack([draw_boxes(40), draw_boxes(40)])
    deltas = torch.randn(2, 40 * each, 4) * torch.tensor([1.0, 1, 2, 2])
    scores = (torch.rand(2, 40 * each) * 8).round() / 8
    return deltas, references, SIZES, scores, torch.tensor([40, 25]) if counted else None


def on(device: torch.device, inputs: Inputs) -> list[Tensor | None]:
    return [None if tensor is None else tensor.to(device) for tensor in inputs]


@SETTINGS
@pytest.mark.parametrize(("each", "counted"), [(1, False), (3, True)], ids=["one each", "three each"])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_meets_the_specification(
    dtype: torch.dtype, each: int, counted: bool, settings: tuple[object, ...], device: torch.device
) -> None:
    deltas, *rest = draw_inputs(each, counted)
    deltas = deltas.to(dtype)
    boxes, valid = decode_boxes_op(*on(device, (deltas, *rest)), *settings)
    assert boxes.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    expected, counts = reference_layers.decode_boxes(deltas, *rest, *settings)
    limit = TOLERANCE[boxes.dtype] * 300 * 62.5
    torch.testing.assert_close(boxes.double().cpu(), expected, rtol=0, atol=limit)
    border = ((expected[..., 2:] - expected[..., :2] - settings[2]).abs() <= 2 * limit).any(2)
    assert int((~border).sum()) >= 10  # half of 80 or 240: boxes off the image have sides of 0, near the least
    assert torch.equal(valid.cpu() | border, counts | border)
    assert 0 < int(valid.sum()) < valid.numel()


@SETTINGS
def test_all_but_the_exponential_is_exact(settings: tuple[object, ...], device: torch.device) -> None:
    """Without growth results are bitwise those of eager PyTorch, also for invalid boxes and deltas that are NaN or inf.

    On a GPU eager PyTorch multiplies by a weight's reciprocal; the kernel divides, as it does on a CPU.
    """
    references = torch.cat([draw_boxes(80), adversarial_boxes()])[None].expand(2, -1, -1)
    deltas = torch.randn(2, 100, 4)
    deltas[..., 2:] = 0
    deltas[:, ::11, 0], deltas[:, 1::13, 1], deltas[:, 2::17, 0] = NAN, -INF, INF
    scores = torch.rand(2, 100)
    scores[:, ::7] = NAN
    inputs = (deltas, references, SIZES, scores, torch.tensor([100, 90]))
    actual = decode_boxes_op(*on(device, inputs), *settings)
    expected = decode_fallback.decode_boxes(*inputs, *settings)
    torch.testing.assert_close(actual[0].cpu(), expected[0], rtol=0, atol=0, equal_nan=True)
    assert torch.equal(actual[1].cpu(), expected[1])


def test_growth_is_bounded(device: torch.device) -> None:
    """Worked example: a box of 2 x 4 around (50, 50) grows to the clip, by infinity no further; NaN is no valid box."""
    deltas = torch.tensor([[[0.0, 0, 99, INF], [0, 0, -INF, 0], [0, 0, NAN, 0]]], device=device)
    references = torch.tensor([[[49.0, 48, 51, 52]]], device=device)
    inputs = (deltas, references, torch.tensor([[100, 100]], device=device), torch.ones(1, 3, device=device), None)
    boxes, valid = decode_boxes_op(*inputs, [1.0, 1.0, 1.0, 1.0], math.log(10), 1e-3, 0.5, False)
    torch.testing.assert_close(boxes[0, 0].cpu(), torch.tensor([40.0, 30, 60, 70]), rtol=1e-5, atol=0)
    assert boxes[0, 1].tolist() == [50, 48, 50, 52]
    assert boxes[0, 2, [0, 2]].isnan().all()
    assert valid.tolist() == [[True, False, False]]


@pytest.mark.parametrize("shape", [(0, 5), (2, 0)], ids=["no images", "no boxes"])
def test_nothing(shape: tuple[int, int], device: torch.device) -> None:
    boxes = torch.zeros(*shape, 4, device=device)
    sizes = torch.zeros(shape[0], 2, dtype=torch.int64, device=device)
    for count in (None, sizes[:, 0]):
        decoded, valid = decode_boxes_op(boxes, boxes.clone(), sizes, boxes[..., 0], count, *LEVELS)
        assert decoded.shape == (*shape, 4)
        assert valid.shape == shape


def test_opcheck(device: torch.device) -> None:
    for each, counted in ((1, False), (3, True)):
        inputs = on(device, draw_inputs(each, counted))
        torch.library.opcheck(decode_boxes_op, (*inputs, *CLASSES))
        torch.library.opcheck(decode_boxes_op, (inputs[0].bfloat16(), *inputs[1:], *LEVELS))
