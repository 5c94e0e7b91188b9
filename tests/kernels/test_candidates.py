"""Ops between the large layers against their specifications: candidates of an RPN and a box head, kept rows."""

import math

import pytest
import torch
from helpers.inputs import FLOATS, INF, NAN, draw_boxes
from torch import Tensor

from fastmask.kernels.decode import decode_levels_op, select_candidates_op
from fastmask.kernels.fallback import decode as decode_fallback
from fastmask.kernels.launch import INTERPRET
from fastmask.kernels.take import scale_boxes_op, take_kept_op
from fastmask.selftest import candidate_cases
from fastmask.selftest.op_case import DRAWS, OpCase

CASES = pytest.mark.parametrize("case", candidate_cases.list_candidate_cases(), ids=lambda case: case.op)
SETTINGS = ([10.0, 10.0, 5.0, 5.0], math.log(1000 / 16), 1e-2, 0.05)


@CASES
@pytest.mark.parametrize("kind", DRAWS)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_meets_the_specification(case: OpCase, kind: str, dtype: torch.dtype, device: torch.device) -> None:
    inputs = case.draw(dtype, kind)
    outputs = case.call(*[tensor.to(device) for tensor in inputs])
    case.check(inputs, [output.cpu() for output in outputs])
    if kind == "ordinary":
        assert all(output.numel() == 0 or output.any() for output in outputs)


def draw_head(num: int, classes: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    boxes = torch.stack([draw_boxes(num), draw_boxes(num)])
    deltas = torch.randn(2 * num, classes, 4).to(dtype)
    return [torch.randn(2 * num, classes).to(dtype), deltas, boxes, torch.tensor([[200, 300], [150, 90]])]


@pytest.mark.parametrize(("classes", "slots"), [(1, 0), (2, 1), (91, 90), (300, 299), (1204, 19), (2049, 19)], ids=str)
def test_any_number_of_classes(classes: int, slots: int, device: torch.device) -> None:
    """One alone, those of LVIS, and more than the kernel takes; without a threshold every class has a slot."""
    inputs = [*draw_head(3, classes), torch.tensor([3, 1])]
    inputs[0][:, 5:12] += 12  # above a few hundredths
    settings = (*SETTINGS[:3], 0.03 if slots == 19 else 0.0)
    found = select_candidates_op(*(tensor.to(device) for tensor in inputs), slots, *settings)
    expected = decode_fallback.select_candidates(*inputs, slots, *settings)
    assert torch.equal(found[1].cpu(), expected[1])
    assert torch.equal(found[3].cpu(), expected[3])
    torch.testing.assert_close(found[2].cpu(), expected[2], rtol=2e-6, atol=1e-7)
    torch.testing.assert_close(found[0].cpu(), expected[0], rtol=0, atol=0.01)
    assert bool(found[3].any()) == (slots > 0)


def test_more_classes_than_slots(device: torch.device) -> None:
    """Worked example: the first classes that are above the threshold, never a slot of the next RoI."""
    inputs = [torch.zeros(4, 6), torch.zeros(4, 6, 4), draw_boxes(4)[None], torch.tensor([[200, 300]])]
    inputs[2] = inputs[2].clamp(10, 80) + torch.tensor([0.0, 0, 9, 9])
    inputs[0][1, 2:] = NAN
    inputs[0][2, 4] = INF
    inputs[0][3, [0, 3]] = -INF
    tensors = [tensor.to(device) for tensor in [*inputs, torch.tensor([4])]]
    boxes, labels, scores, valid = select_candidates_op(*tensors, 3, *SETTINGS)
    assert labels.tolist() == [[1, 2, 3, *[0] * 6, 1, 2, 4]]
    assert valid.tolist() == [[label > 0 for label in labels[0].tolist()]]
    torch.testing.assert_close(scores[0, [0, 9]].cpu(), torch.tensor([1 / 6, 1 / 4]))
    torch.testing.assert_close(boxes[0, [0, 2, 9, 11]].cpu(), inputs[2][0, [0, 0, 3, 3]])


@pytest.mark.parametrize("layout", ["rows of one tensor", "columns"])
def test_layouts_of_a_head(layout: str, device: torch.device) -> None:
    """Results do not depend on the strides, bitwise."""
    logits, deltas, boxes, sizes = (tensor.to(device) for tensor in draw_head(5, 7))
    count = torch.tensor([5, 4], device=device)
    expected = select_candidates_op(logits, deltas, boxes, sizes, count, 6, *SETTINGS)
    if layout == "columns":
        logits, deltas = logits.t().contiguous().t(), deltas.permute(2, 1, 0).contiguous().permute(2, 1, 0)
    else:
        rows = torch.cat([deltas.flatten(1), logits, torch.zeros_like(logits)], 1)
        logits, deltas = rows[:, 28:35], rows[:, :28].unflatten(1, (-1, 4))
    for actual, values in zip(
        select_candidates_op(logits, deltas, boxes, sizes, count, 6, *SETTINGS), expected, strict=True
    ):
        assert torch.equal(actual, values)


@pytest.mark.parametrize("layout", ["planes", "channels last", "joined"])
@pytest.mark.parametrize("levels", [1, 3, 5, 6])
def test_layouts_and_numbers_of_levels(levels: int, layout: str, device: torch.device) -> None:
    """Deltas of convolutions, of one product for all of a level's outputs, and of more levels than the kernel takes."""
    shapes = [(16 >> i) or 1 for i in range(levels)]
    deltas = []
    for side in shapes:
        values = torch.randn(2, 16, side, side + 1)
        if layout != "planes":
            values = values.contiguous(memory_format=torch.channels_last)
        deltas.append(values[:, 3:15] if layout == "joined" else values[:, 3:15].clone())
    sides = [3 * side * (side + 1) for side in shapes]
    starts = [sum(sides[:i]) for i in range(levels)]
    lengths = [min(side, 40) for side in sides]
    index = torch.cat(
        [
            start + torch.stack([torch.randperm(side)[:length] for _ in range(2)])
            for start, side, length in zip(starts, sides, lengths, strict=True)
        ],
        1,
    )
    logits, anchors = torch.randn(index.shape), draw_boxes(sum(sides))
    sizes = torch.tensor([[200, 300], [150, 90]])
    expected = decode_fallback.decode_levels(logits, index, lengths, deltas, anchors, sizes, *SETTINGS)
    inputs = [tensor.to(device) for tensor in (logits, index, anchors, sizes)]
    found = decode_levels_op(*inputs[:2], lengths, [tensor.to(device) for tensor in deltas], *inputs[2:], *SETTINGS)
    torch.testing.assert_close(found[0].cpu(), expected[0], rtol=0, atol=0.01)
    torch.testing.assert_close(found[1].cpu(), expected[1], rtol=1e-6, atol=1e-7)
    assert (found[2].cpu() != expected[2]).float().mean() < 0.02


@pytest.mark.skipif(not INTERPRET, reason="what the kernel does with them; on a GPU the fallback would fail")
def test_places_beyond_a_level_are_read_nowhere(device: torch.device) -> None:
    """What a top-k over padded levels may give of logits of -inf."""
    inputs = candidate_cases.draw_levels(torch.float32, "ordinary")
    inputs[1][:, 3] = candidate_cases.ANCHORS * 13 * 19 + 40
    expected = candidate_cases.decode_levels(*(tensor.to(device) for tensor in inputs))
    inputs[1][:, 3] = candidate_cases.ANCHORS * 13 * 19 - 1
    for actual, values in zip(
        candidate_cases.decode_levels(*(tensor.to(device) for tensor in inputs)), expected, strict=True
    ):
        assert torch.equal(actual, values)


def test_registrations_are_sound(device: torch.device) -> None:
    logits, index, anchors, sizes, *deltas = (
        tensor.to(device) for tensor in candidate_cases.draw_levels(torch.bfloat16, "ordinary")
    )
    arguments = (logits, index, candidate_cases.LENGTHS, deltas, anchors, sizes, *candidate_cases.LEVEL_SETTINGS)
    torch.library.opcheck(decode_levels_op, arguments)
    inputs = [tensor.to(device) for tensor in candidate_cases.draw_classes(torch.bfloat16, "ordinary")]
    torch.library.opcheck(select_candidates_op, (*inputs, candidate_cases.SLOTS, *candidate_cases.CLASS_SETTINGS))
    inputs = [tensor.to(device) for tensor in candidate_cases.draw_kept(torch.float32, "ordinary")]
    torch.library.opcheck(take_kept_op, tuple(inputs))
    torch.library.opcheck(take_kept_op, (*inputs[:3], None))
    for num in (50, 1):
        boxes, *sizes = (tensor.to(device) for tensor in candidate_cases.draw_detections(torch.float32, "ordinary"))
        torch.library.opcheck(scale_boxes_op, (boxes[:1, :num], *(size[:1] for size in sizes)))
