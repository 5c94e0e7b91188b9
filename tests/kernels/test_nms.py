"""fastmask::nms_padded against its specification: order, ties, groups, exact fractions, adversarial boxes, padding."""

from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import pytest
import torch
from helpers.inputs import FLOATS, INF, NAN, adversarial_boxes, draw_boxes
from torch import Tensor

from fastmask.kernels import reference
from fastmask.kernels.fallback import nms as nms_fallback
from fastmask.kernels.launch import HAS_TRITON, INTERPRET
from fastmask.kernels.nms import nms_padded_op


def check(
    boxes: Tensor,
    scores: Tensor,
    groups: Tensor | None,
    valid: Tensor | None,
    threshold: float,
    limit: int,
    device: torch.device,
    num_groups: int = 0,
    presorted: Sequence[int] | None = None,
) -> None:
    """One batch against the specification, image by image."""
    inputs = [None if t is None else t.to(device) for t in (boxes, scores, groups, valid)]
    indices, count = nms_padded_op(*inputs, threshold, limit, num_groups, presorted)
    if presorted is not None:
        groups = torch.arange(len(presorted)).repeat_interleave(torch.tensor(presorted)).expand(len(boxes), -1)
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
    """Half-typed boxes are not rounded; only their IoU is computed in float32. Scores may be of another type."""
    boxes = draw_boxes(150, largest=60).to(dtype)[None]
    check(boxes, torch.rand(1, 150).half(), None, None, 0.3, 150, device)


def test_ties_keep_the_input_order(device: torch.device) -> None:
    boxes = draw_boxes(8, largest=40)[torch.randint(8, (200,))][None]
    scores = torch.randint(3, (1, 200)).float()
    scores[scores == 1] *= -0.0  # equal to 0.0
    check(boxes, scores, torch.randint(2, (1, 200)), None, 0.5, 200, device)


def test_special_scores_and_adversarial_boxes(device: torch.device) -> None:
    boxes = torch.cat([adversarial_boxes(), draw_boxes(40), adversarial_boxes()])[None]
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
    num = 2 * nms_fallback.BLOCK + 3
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
        num //= 40
    boxes = draw_boxes(num, (2000, 3000)).to(device)[None]
    scores, group = torch.rand(1, num, device=device), torch.randint(groups, (1, num), device=device)
    indices, count = nms_padded_op(boxes, scores, group, None, 0.5, num)
    kept = indices[0, : count[0]]
    assert (scores[0, kept].diff() <= 0).all()
    one = group[0, kept] == 7  # a group alone gives what it gave among the others
    members = (group[0] == 7).nonzero().squeeze(1)
    alone, few = nms_padded_op(boxes[:, members], scores[:, members], None, None, 0.5, len(members))
    assert torch.equal(members[alone[0, : few[0]]], kept[one])


@pytest.mark.parametrize("way", ["counted", "runs", "sorted"])
@pytest.mark.parametrize("num_groups", [0, 3, 300, 40_000], ids="G{}".format)
def test_orders(way: str, num_groups: int, device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """Boxes are counted or sorted, by their groups or a hash of these, which may collide; one image or several."""
    if HAS_TRITON:
        monkeypatch.setattr("fastmask.kernels.triton.nms.COMPARISONS", 2**30 if way == "counted" else 0)
        monkeypatch.setattr("fastmask.kernels.triton.nms.MERGES", 2**30 if way == "runs" else 0)
        monkeypatch.setattr("fastmask.kernels.triton.nms_runs.RUN", 64)
    boxes = torch.stack([draw_boxes(70, largest=60) for _ in range(2)])
    scores, valid = torch.randint(9, (2, 70)).float(), torch.rand(2, 70) < 0.8
    scores[0, ::9], scores[1, ::9], scores[1, 1::9] = NAN, -INF, -0.0
    groups = torch.randint(3, (2, 70))
    for real in (groups, groups * 11 - 9, groups << 60):  # a group beyond num_groups stays a group of its own
        check(boxes, scores, real, valid, 0.3, 70, device, num_groups)
    check(boxes[:1], scores[:1], groups[:1], None, 0.3, 70, device, num_groups)
    check(boxes, scores, None, valid, 0.3, 9, device)
    if HAS_TRITON:
        monkeypatch.setattr("fastmask.kernels.triton.nms.MAX_BUCKETS", 2)
    check(boxes, scores, groups * 11 - 9, valid, 0.3, 70, device)


@pytest.mark.parametrize(
    ("runs", "dtype"),
    [([130], torch.float32), ([70, 0, 33, 1, 26], torch.float16), ([13] * 10, torch.float32)],
    ids=["one run", "five runs", "ten runs"],
)
def test_presorted_runs(runs: list[int], dtype: torch.dtype, device: torch.device) -> None:
    """Presorted runs, as of an RPN: no sort, and ties across runs in the input's order."""
    boxes = torch.stack([draw_boxes(130, largest=60) for _ in range(2)])
    scores = (torch.rand(2, 130) * 20).round().to(dtype)
    scores[0, ::9], scores[0, 1::9] = INF, -INF
    scores = torch.cat([run.sort(dim=1, descending=True).values for run in scores.split(runs, 1)], 1)
    scores[1, :2] = NAN
    check(boxes, scores, None, None, 0.3, 20, device, presorted=runs)
    check(boxes[1:], scores[1:], None, torch.rand(1, 130) < 0.7, 0.3, 130, device, presorted=runs)


def test_scores_that_rise_in_a_run_count_as_the_lowest_before(device: torch.device) -> None:
    """An ulp of a sigmoid must not break the order; nothing else is promised either."""
    boxes, scores, runs = draw_boxes(100, largest=60)[None], torch.rand(1, 100), [40, 60]
    scores[0, 50], scores[0, 3] = NAN, NAN
    lowest = torch.cat([run.nan_to_num(2).cummin(1).values for run in scores.split(runs, 1)], 1)
    indices, count = nms_padded_op(boxes.to(device), scores.to(device), None, None, 0.3, 100, 0, runs)
    groups = (torch.arange(100) >= 40).long()
    assert indices[0, : count[0]].tolist() == reference.nms(boxes[0], lowest[0], groups, None, 0.3, 100)


@pytest.mark.parametrize(("window", "splits"), [(1, 1), (2, 16)], ids=str)
def test_groups_beyond_the_window(
    window: int, splits: int, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Several launches then resolve a group of four blocks, window after window, and stop where enough is kept."""
    if HAS_TRITON:
        monkeypatch.setattr("fastmask.kernels.triton.nms.MAX_WORDS", 0)
        monkeypatch.setattr("fastmask.kernels.triton.nms.MIN_WINDOW", window)
        monkeypatch.setattr("fastmask.kernels.triton.nms_pairs.SPLITS", splits)
    boxes, scores = draw_boxes(200, largest=100)[None], torch.rand(1, 200)
    check(boxes, scores, None, None, 0.4, 200, device)
    check(boxes, scores, None, None, 0.4, 70, device)
    groups, valid = (torch.arange(200) > 20).long()[None], torch.rand(1, 200) < 0.9
    check(boxes, scores, groups, valid, 0.2, 200, device)
    check(boxes, scores, groups, valid, -1.0, 200, device)
    check(boxes.view(2, 100, 4), scores.view(2, 100), None, None, 0.4, 100, device)


@pytest.mark.parametrize("side", [1e-30, 1e-20, 1e-12, 1e12, 1e18], ids=str)
def test_boxes_of_any_size(side: float, device: torch.device) -> None:
    """Areas that underflow, are subnormal, or are close to the largest float, alone and beside others."""
    boxes = draw_boxes(60, largest=60) * (side / 30)
    check(boxes[None], torch.rand(1, 60), None, None, 0.4, 60, device)
    check(torch.cat([boxes, draw_boxes(30)])[None], torch.rand(1, 90), None, None, 0.4, 90, device)


def exceeds_by_fma(inter: np.ndarray, union: np.ndarray, threshold: np.floating, half_gap: np.floating) -> np.ndarray:
    """fma(-threshold, union, inter) > half_gap * union in float32, rounded once: to odd in float64, then to float32."""
    product = -threshold.astype(np.float64) * union.astype(np.float64)  # exact
    total = product + inter
    part = total - product
    error = (product - (total - part)) + (inter.astype(np.float64) - part)
    bits = total.view(np.int64)
    odd = np.isfinite(total) & (error != 0) & (bits % 2 == 0)
    rounded = np.where(odd, bits + np.where((error > 0) == (total > 0), 1, -1), bits).view(np.float64)
    exceeds: np.ndarray = rounded.astype(np.float32) > half_gap * union
    return exceeds


@pytest.mark.parametrize("millions", [10, pytest.param(100, marks=pytest.mark.slow)], ids="{}M".format)
def test_the_pair_test_without_division_is_the_division(millions: int) -> None:
    """At the threshold and three floats around it, at fractions of integers, anywhere; unions down to 2^-80."""
    rng = np.random.default_rng(torch.randint(2**31, ()).item())
    thresholds = [0.5, 0.7, 0.3, 0.1, 0.6, 0.05, 0.9, 1 / 3, 2.0**-20, 1.0, 0.999999, *rng.random(9), 1e-5, 0.25]
    number = millions * 1_000_000 // (3 * len(thresholds))
    with np.errstate(all="ignore"):
        for value in thresholds:
            threshold = nms_fallback.largest_not_above(value, np.dtype(np.float32))
            half_gap = np.float32((np.nextafter(threshold, np.float32(np.inf)) - threshold) / np.float32(2))
            union = np.ldexp((rng.random(number) + 1).astype(np.float32), rng.integers(-80, 100, number))
            near = (threshold * union).view(np.int32) + rng.integers(-3, 4, number, np.int32)
            whole = rng.integers(1, 1 << 24, number).astype(np.float32)
            for inter, under in (
                (near.view(np.float32), union),
                (np.round(whole * threshold) + rng.integers(-1, 2, number).astype(np.float32), whole),
                (union * rng.random(number, np.float32), union),
            ):
                expected = inter / under > threshold
                assert np.array_equal(exceeds_by_fma(inter, under, threshold, half_gap), expected), value


def test_registration_is_sound(device: torch.device) -> None:
    boxes, scores = draw_boxes(9)[None].to(device), torch.rand(1, 9, device=device)
    groups, valid = torch.randint(2, (1, 9), device=device), torch.rand(1, 9, device=device) < 0.5
    torch.library.opcheck(nms_padded_op, (boxes, scores, groups, valid, 0.5, 5))
    torch.library.opcheck(nms_padded_op, (boxes, scores, None, valid, 0.5, 5, 0, [4, 5]))
    torch.library.opcheck(nms_padded_op, (boxes.requires_grad_(), scores.requires_grad_(), None, None, 0.5, 12))
