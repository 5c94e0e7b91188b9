"""fastmask::nms_padded against its specification: order, ties, groups, exact fractions, hostile boxes, padding."""

from fractions import Fraction

import pytest
import torch
from inputs import FLOATS, INF, NAN, draw_boxes, hostile_boxes
from torch import Tensor

from fastmask.kernels import cpu_nms, reference
from fastmask.kernels.launch import INTERPRET
from fastmask.kernels.nms import nms_padded_op


def check(
    boxes: Tensor,
    scores: Tensor,
    groups: Tensor | None,
    valid: Tensor | None,
    threshold: float,
    limit: int,
    device: torch.device,
) -> None:
    """One batch against the specification, image by image."""
    inputs = [None if t is None else t.to(device) for t in (boxes, scores, groups, valid)]
    indices, count = nms_padded_op(*inputs, threshold, limit)
    assert indices.shape == (len(boxes), limit)
    for b in range(len(boxes)):
        group, real = (None if t is None else t[b] for t in (groups, valid))
        expected = reference.nms(boxes[b], scores[b], group, real, threshold, limit)
        assert indices[b].tolist() == expected + [-1] * (limit - len(expected))
        assert count[b] == len(expected)


@pytest.mark.parametrize("num", [0, 1, 63, 64, 65, 129, 300], ids="N{}".format)
@pytest.mark.parametrize("grouped", [False, True], ids=["one group", "groups"])
def test_meets_the_specification(num: int, grouped: bool, device: torch.device) -> None:
    boxes = torch.stack([draw_boxes(num, largest=60) for _ in range(2)])
    scores = torch.rand(2, num)
    groups = torch.randint(-2, 3, (2, num)) if grouped else None
    check(boxes, scores, groups, None, 0.4, num, device)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_dtypes(dtype: torch.dtype, device: torch.device) -> None:
    """Half-typed boxes are what they are; only their IoU is computed in float32. Scores may be of another type."""
    boxes = draw_boxes(150, largest=60).to(dtype)[None]
    check(boxes, torch.rand(1, 150).half(), None, None, 0.3, 150, device)


def test_ties_keep_the_input_order(device: torch.device) -> None:
    boxes = draw_boxes(8, largest=40)[torch.randint(8, (200,))][None]
    scores = torch.randint(3, (1, 200)).float()
    scores[scores == 1] *= -0.0  # equal to 0.0
    check(boxes, scores, torch.randint(2, (1, 200)), None, 0.5, 200, device)


def test_special_scores_and_hostile_boxes(device: torch.device) -> None:
    boxes = torch.cat([hostile_boxes(), draw_boxes(40), hostile_boxes()])[None]
    scores = torch.rand(1, boxes.shape[1])
    scores[0, ::7], scores[0, 1::7], scores[0, 2::7], scores[0, 3::7] = NAN, INF, -INF, -NAN
    for threshold in (0.0, 0.5, 1.0, -1.0, 2.0, INF):
        check(boxes, scores, None, None, threshold, boxes.shape[1], device)


@pytest.mark.parametrize("limit", [0, 1, 5, 40, 500], ids="M{}".format)
def test_padding_and_max_output(limit: int, device: torch.device) -> None:
    boxes = torch.stack([draw_boxes(130, largest=30) for _ in range(3)])
    valid = torch.rand(3, 130) < torch.tensor([0.5, 0.0, 1.0])[:, None]
    for groups in (None, torch.randint(4, (3, 130))):
        check(boxes, torch.rand(3, 130), groups, valid, 0.2, limit, device)


@pytest.mark.parametrize(
    ("overlap", "threshold"),
    [("3/5", 0.6), ("3/10", 0.3), ("1/5", 0.2), ("4/5", 0.8), ("1/10", 0.1), ("2/5", 0.4), ("1/2", 0.5), ("7/10", 0.7)],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_threshold_counts_as_double(
    overlap: str, threshold: float, dtype: torch.dtype, device: torch.device
) -> None:
    """Two boxes of an exact fraction: float32's 3/5 is above the double 0.6, so torchvision's CPU kernel drops one."""
    ratio = Fraction(overlap)
    boxes = torch.tensor([[0, 0, 10, 10], [0, 0, 10, 10 * ratio.numerator / ratio.denominator]], dtype=dtype)[None]
    rounded = float(torch.tensor(ratio.numerator, dtype=dtype) / ratio.denominator)
    indices, _ = nms_padded_op(boxes.to(device), torch.tensor([[0.9, 0.8]]).to(device), None, None, threshold, 2)
    assert (indices[0, 1] == -1) == (rounded > threshold)
    check(boxes, torch.tensor([[0.9, 0.8]]), None, None, threshold, 2, device)


def test_suppression_chains_across_blocks(device: torch.device) -> None:
    """Each box removes only the next: every second one stays, whichever block it falls into."""
    num = 2 * cpu_nms.BLOCK + 3
    left = torch.arange(num).float() * 3
    boxes = torch.stack([left, torch.zeros(num), left + 10, torch.ones(num)], 1)[None]
    indices, count = nms_padded_op(boxes.to(device), -left[None].to(device), None, None, 0.5, num)
    assert indices[0, : count[0]].tolist() == list(range(0, num, 2))


@pytest.mark.parametrize("grouped", [False, True], ids=["one group", "groups"])
def test_transposed_inputs(grouped: bool, device: torch.device) -> None:
    """A sort's indices lie in memory as its input does."""
    boxes = torch.stack([draw_boxes(70, largest=60) for _ in range(3)])
    scores, groups, valid = torch.rand(70, 3).t(), torch.randint(3, (70, 3)).t(), (torch.rand(70, 3) < 0.8).t()
    check(boxes, scores, groups if grouped else None, valid, 0.3, 70, device)


def test_strides(device: torch.device) -> None:
    boxes, scores = draw_boxes(70, largest=60), torch.rand(70)
    expected = nms_padded_op(boxes[None].to(device), scores[None].to(device), None, None, 0.5, 70)
    wide = torch.empty(4, 70, 1, dtype=torch.float32).permute(2, 1, 0).copy_(boxes[None]).to(device)
    every = torch.stack([scores, scores], 1)[:, 0][None].to(device)
    for actual, wanted in zip(nms_padded_op(wide, every, None, None, 0.5, 70), expected, strict=True):
        assert torch.equal(actual, wanted)


def test_far_apart_in_memory(device: torch.device) -> None:
    """Offsets beyond int32: a view of 2^31 elements, of which 70 rows are touched."""
    memory = torch.empty(2**31 + 1000, dtype=torch.float16, device=device)
    boxes = torch.as_strided(memory, (1, 70, 4), (1, 2**31 // 69, 1))
    boxes.copy_(draw_boxes(70, largest=60)[None])
    check(boxes, torch.rand(1, 70), None, None, 0.3, 70, device)


@pytest.mark.parametrize(("num", "groups"), [(20_000, 80), (100_000, 80)], ids=str)
def test_many_candidates(num: int, groups: int, device: torch.device) -> None:
    """Memory is linear in N: N x N bits of 100,000 boxes would be 1.2 GB, N x N floats 40 GB."""
    if INTERPRET and device.type == "cpu":
        num //= 20
    boxes = draw_boxes(num, (2000, 3000)).to(device)[None]
    scores, group = torch.rand(1, num, device=device), torch.randint(groups, (1, num), device=device)
    indices, count = nms_padded_op(boxes, scores, group, None, 0.5, num)
    kept = indices[0, : count[0]]
    assert (scores[0, kept].diff() <= 0).all()
    one = group[0, kept] == 7  # a group alone gives what it gave among the others
    members = (group[0] == 7).nonzero().squeeze(1)
    alone, few = nms_padded_op(boxes[:, members], scores[:, members], None, None, 0.5, len(members))
    assert torch.equal(members[alone[0, : few[0]]], kept[one])


def test_registration_is_sound(device: torch.device) -> None:
    boxes, scores = draw_boxes(9)[None].to(device), torch.rand(1, 9, device=device)
    groups, valid = torch.randint(2, (1, 9), device=device), torch.rand(1, 9, device=device) < 0.5
    torch.library.opcheck(nms_padded_op, (boxes, scores, groups, valid, 0.5, 5))
    torch.library.opcheck(nms_padded_op, (boxes.requires_grad_(), scores.requires_grad_(), None, None, 0.5, 12))
