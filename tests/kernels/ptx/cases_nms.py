"""Compiled NMS against the eager fallback and the reference."""

from collections.abc import Iterator

import pytest
import torch
from case_inputs import INF, NAN
from helpers.ptx import Bug, Case, same

from fastmask.kernels import reference
from fastmask.kernels.fallback import nms as nms_fallback
from fastmask.kernels.triton import nms as nms_triton, nms_runs as nms_runs_triton


def draw_boxes(batch, num, size=100.0, side=30.0):
    corner = torch.rand(batch, num, 2) * size
    return torch.cat([corner, corner + torch.rand(batch, num, 2) * side + 4], 2)


SORTED = {"COMPARISONS": 0, "MERGES": 0}  # constants of triton.nms for a case: sorts instead of counting
RUNS = {"COMPARISONS": 0, "run": 64}  # sorts of runs
WINDOWS = {"MAX_WORDS": 0, "MIN_WINDOW": 2}  # two blocks


def nms_case(
    boxes,
    scores,
    groups=None,
    valid=None,
    threshold=0.5,
    most=None,
    num_groups=0,
    presorted=None,
    run=nms_runs_triton.RUN,
    **constants,
) -> Case:
    most = boxes.shape[1] if most is None else most

    def suppress():
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(nms_runs_triton, "RUN", run)
            for name, value in constants.items():
                patch.setattr(nms_triton, name, value)
            return nms_triton.nms_padded(boxes, scores, groups, valid, threshold, most, num_groups, presorted)

    def check(out):
        indices, count = out
        wrong = []
        slow = boxes.shape[1] <= 80
        fast_indices, fast_count = nms_fallback.nms_padded(
            boxes, scores, groups, valid, threshold, most, num_groups, presorted
        )
        wrong += same("indices", indices, fast_indices) + same("count", count, fast_count)
        for b in range(len(boxes) if slow and presorted is None else 0):
            kept = reference.nms(boxes[b], scores[b], None if groups is None else groups[b],
                                 None if valid is None else valid[b], threshold, most)  # fmt: skip
            wrong += same(f"image {b}", indices[b, : int(count[b])], torch.tensor(kept, dtype=torch.int64))
        return wrong

    return Case(suppress, check)


def cases() -> Iterator[tuple[str, Case]]:
    b, s, g = draw_boxes(1, 200), torch.rand(1, 200), torch.randint(3, (1, 200))
    yield "NMS fp32, 200 boxes in 3 groups", nms_case(b, s, g)
    yield "NMS fp32, 200 boxes, two images, no groups", nms_case(draw_boxes(2, 200), torch.rand(2, 200))
    yield "NMS bf16, 200 boxes in 3 groups, some invalid", nms_case(b.bfloat16(), s, g, torch.rand(1, 200) > 0.3)
    yield (
        "NMS fp16, 130 boxes, some invalid, 20 out",
        nms_case(draw_boxes(2, 130).half(), torch.rand(2, 130).half(), None, torch.rand(2, 130) > 0.3, 0.3, 20),
    )
    apart = draw_boxes(1, 230, 1000.0, 10.0)
    yield "NMS fp32, one group of 230, nearly all kept", nms_case(apart, torch.rand(1, 230))
    yield (
        "NMS fp32, groups of 150 and 80, nearly all kept",
        nms_case(apart, torch.rand(1, 230), (torch.arange(230) >= 150).long()[None] * 7),
    )
    yield (
        "NMS fp32, nearly all kept, 100 out of two images",
        nms_case(draw_boxes(2, 200, 1000.0, 10.0), torch.rand(2, 200), torch.randint(2, (2, 200)), None, 0.5, 100),
    )
    yield "NMS fp32, ties of score", nms_case(b, (s * 5).round() / 5, g)
    chain = torch.stack([torch.arange(100.0), torch.zeros(100), torch.arange(100.0) + 4, torch.ones(100)], 1)[None]
    yield (
        "NMS fp32, a chain at IoU 3/5 and threshold 0.6",
        nms_case(chain, torch.linspace(1, 0, 100)[None], None, None, 0.6),
    )
    three = chain.clone()
    three[..., 2] -= 1
    yield (
        "NMS fp32, a chain at IoU 1/2 and threshold 0.5",
        nms_case(three, torch.linspace(1, 0, 100)[None], None, None, 0.5),
    )
    far = torch.tensor([[[500.0, 500, 510, 510]]])
    yield (
        "NMS fp32, a chain over the end of a step",
        nms_case(torch.cat([far, chain], 1), torch.linspace(1, 0, 101)[None], None, None, 0.5),
    )
    yield "NMS fp32, a chain, random order", nms_case(chain, torch.rand(1, 100), None, None, 0.3)
    adversarial = draw_boxes(1, 70)
    adversarial[0, ::7, 1] = NAN
    adversarial[0, 3::7, 2] = INF
    adversarial[0, 5::14, 0] = -INF
    adversarial[0, 6::14] = adversarial[0, 6::14].flip(1)  # inverted
    adversarial[0, 8::14] = adversarial[0, 8::14, :1]  # no area
    scores = torch.rand(1, 70)
    scores[0, 11] = NAN
    scores[0, 12], scores[0, 13] = 0.0, -0.0
    yield "NMS fp32, NaN and inf boxes and scores", nms_case(adversarial, scores, torch.randint(2, (1, 70)))
    yield "NMS fp16, NaN and inf boxes and scores", nms_case(adversarial.half(), scores.half())
    yield "NMS fp32, one box", nms_case(b[:, :1], s[:, :1])
    yield "NMS fp32, one output of 65", nms_case(draw_boxes(1, 65), s[:, :65], g[:, :65], None, 0.5, 1)
    yield "NMS fp32, no output of 64", nms_case(draw_boxes(1, 64), s[:, :64], g[:, :64], None, 0.5, 0)
    yield "NMS fp32, 64 boxes of 64 groups", nms_case(draw_boxes(1, 64), s[:, :64], torch.randperm(64)[None])
    yield (
        "NMS fp32, 1100 boxes in 40 groups",
        nms_case(draw_boxes(1, 1100, 300.0), torch.rand(1, 1100), torch.randint(40, (1, 1100)), None, 0.5, 1500),
    )
    odd = torch.rand(1, 451)[:, 1:].view(1, 90, 5)[..., :4]
    odd = torch.cat([odd[..., :2], odd[..., :2] + odd[..., 2:]], 2) * 50
    yield (
        "NMS fp32, 90 boxes at an odd address",
        nms_case(
            torch.cat([torch.zeros(1), odd.flatten()])[1:].view(1, 90, 4), torch.rand(1, 90), torch.randint(3, (1, 90))
        ),
    )
    yield from order_cases()
    yield from window_cases()
    yield from threshold_cases()


def order_cases() -> Iterator[tuple[str, Case]]:
    """Cases of full sorts and presorted runs."""
    boxes, scores = draw_boxes(2, 200), torch.rand(2, 200)
    scores[0, 3], scores[0, 4], scores[1, 5], scores[1, 6], scores[1, 7] = NAN, -NAN, 0.0, -0.0, -INF
    groups, valid = torch.randint(3, (2, 200)), torch.rand(2, 200) > 0.3
    yield "NMS fp32, sorted, a batch in 3 groups", nms_case(boxes, scores, groups, valid, num_groups=3, **SORTED)
    yield "NMS fp32, sorted, a batch, any groups", nms_case(boxes, scores, groups << 40, valid, **SORTED)
    yield "NMS fp32, sorted, a batch in 300 groups", nms_case(boxes, scores, groups * 99, num_groups=300, **SORTED)
    yield "NMS fp32, sorted, two images", nms_case(boxes, scores, None, valid, **SORTED)
    yield "NMS fp32, sorted, one image", nms_case(boxes[:1], scores[:1], groups[:1], None, 0.5, 30, 3, **SORTED)
    yield from run_cases()
    runs = [90, 0, 64, 1, 45]
    ranked = torch.cat([run.sort(dim=1, descending=True).values for run in scores.split(runs, 1)], 1)
    yield "NMS fp32, presorted, a batch", nms_case(boxes, ranked, None, valid, presorted=runs)
    yield (
        "NMS fp16, presorted, ties",
        nms_case(boxes.half(), (ranked * 8).round().half(), presorted=runs, threshold=0.3),
    )
    yield "NMS fp32, presorted, broken promise", nms_case(boxes, scores, presorted=runs)
    yield "NMS fp32, ten runs", nms_case(boxes[:1], scores[:1], presorted=[20] * 10)
    clash = torch.tensor([0, 1 << 62, 5, -7])[groups + (torch.arange(200) % 2)]
    with_one_bucket = {"MAX_BUCKETS": 2}
    yield "NMS fp32, groups that share a hash", nms_case(boxes, scores, clash, **with_one_bucket)
    yield "NMS fp32, groups beyond their number", nms_case(boxes, scores, groups * 3 - 4, num_groups=2)


def run_cases() -> Iterator[tuple[str, Case]]:
    """Sorts of runs and their merges: more runs than are searched at once, some of them empty, or none of padding."""
    boxes, scores = draw_boxes(2, 650, 400.0), (torch.rand(2, 650) * 50).round()
    scores[0, 3], scores[0, 4], scores[1, 5], scores[1, 6], scores[1, 7] = NAN, -NAN, 0.0, -0.0, -INF
    groups, valid = torch.randint(9, (2, 650)), torch.rand(2, 650) > 0.8
    valid[0, 64:200] = False
    yield "NMS fp32, runs, a batch in 9 groups", nms_case(boxes, scores, groups, valid, num_groups=9, **RUNS)
    yield "NMS fp32, runs, any groups", nms_case(boxes[:1], scores[:1], groups[:1] << 40, None, 0.5, 40, **RUNS)
    yield "NMS fp32, runs, two images", nms_case(boxes[:, :130], scores[:, :130], None, valid[:, :130], **RUNS)
    few = boxes[:1, :300], scores[:1, :300], groups[:1, :300]
    yield "NMS fp32, one run", nms_case(*few, valid[:1, :300], num_groups=9, COMPARISONS=0)


def window_cases() -> Iterator[tuple[str, Case]]:
    """Cases of groups that are longer than the window of the pairs' words."""
    near, far = draw_boxes(1, 520, 200.0), draw_boxes(1, 520, 900.0, 10.0)
    scores = torch.rand(1, 520)
    yield "NMS fp32, five windows", nms_case(near, scores, threshold=0.6, **WINDOWS)
    yield "NMS fp32, five windows, nearly all kept", nms_case(far, scores, threshold=0.2, **WINDOWS)
    yield "NMS fp32, five windows, 100 out", nms_case(far, scores, None, None, 0.2, 100, **WINDOWS)
    groups = (torch.arange(520) > 60).long()[None]
    valid = torch.rand(1, 520) > 0.1
    yield "NMS fp32, windows of a group from within a block", nms_case(near, scores, groups, valid, 0.6, **WINDOWS)
    two = torch.cat([near[:, :260], far[:, :260]])
    yield "NMS fp32, windows of two images", nms_case(two, scores.view(2, 260), threshold=0.4, **WINDOWS)
    yield "NMS fp32, one block a window", nms_case(near, scores, threshold=0.6, MAX_WORDS=0, MIN_WINDOW=1)
    many = draw_boxes(1, 1500, 300.0)
    yield "NMS fp32, one group of 24 blocks", nms_case(many, torch.rand(1, 1500), threshold=0.7)


def threshold_cases() -> Iterator[tuple[str, Case]]:
    """IoUs at the threshold and a float beside it, in boxes of any size, and thresholds of any sign."""
    width = torch.randint(1, 1 << 12, (1, 120, 1)).float()
    part = (width * torch.rand(1, 120, 1)).round()
    pairs = torch.cat([torch.cat([width * 0, width * 0, w, width * 0 + 1], 2) for w in (width, part)], 1)
    groups, scores = torch.arange(240)[None] % 120, -torch.arange(240.0)[None]
    for i in (0, 40, 80):
        exact = float((part / width)[0, i, 0])
        below = float(torch.nextafter(torch.tensor(exact), torch.tensor(0.0)))
        yield f"NMS fp32, IoU at the threshold, {i}", nms_case(pairs, scores, groups, None, exact)
        yield f"NMS fp32, IoU a float above the threshold, {i}", nms_case(pairs, scores, groups, None, below)
    for side in (1e-20, 1e-30, 1e-12, 1e12, 1e18):
        yield f"NMS fp32, boxes of {side:.0e}", nms_case(draw_boxes(1, 100) * (side / 30), torch.rand(1, 100))
    adversarial = draw_boxes(1, 70)
    adversarial[0, ::7, 1] = NAN
    adversarial[0, 3::7, 2] = INF
    adversarial[0, 6::14] = adversarial[0, 6::14].flip(1)  # inverted
    for threshold in (0.0, -0.5, 1e-7, 1.0, 1e30):
        yield f"NMS fp32, threshold {threshold}", nms_case(adversarial, torch.rand(1, 70), threshold=threshold)
    yield (
        "NMS fp32, threshold 0, five windows in groups",
        nms_case(draw_boxes(1, 520, 600.0), torch.rand(1, 520), torch.randint(2, (1, 520)), threshold=0.0, **WINDOWS),
    )


def bugs() -> Iterator[tuple[str, Bug]]:
    boxes, scores = draw_boxes(1, 230, 200.0, 30.0), torch.rand(1, 230)
    reads = "own < num", "own <= num", nms_case(boxes, scores)
    yield "NMS, one box beyond the last", Bug("triton.nms_order", *reads)
    # inter is half an integer beside 0.7 * union, to which a rounded product is too far away
    union = torch.randint(1 << 22, 1 << 23, (1, 120, 1)).float()
    inter = (union * 0.7 * 2).round() / 2
    pairs = torch.cat([torch.cat([union * 0, union * 0, w, union * 0 + 1], 2) for w in (union, inter)], 1)
    at_threshold = nms_case(pairs, -torch.arange(240.0)[None], torch.arange(240)[None] % 120, None, 0.7)
    product = "tl.fma(-threshold, union, inter)", "inter - threshold * union", at_threshold
    yield "NMS, a product rounded before its sum", Bug("triton.nms_pairs", *product)
    half = "half_gap * union", "2 * half_gap * union", at_threshold
    yield "NMS, IoU a float above the threshold does not count", Bug("triton.nms_pairs", *half)
    many = nms_case(draw_boxes(1, 520, 200.0), torch.rand(1, 520), threshold=0.6)
    filled = "kept_low, mask=fills_block", "kept_low", nms_case(boxes, scores, (torch.arange(230) >= 150).long()[None])
    yield "NMS, kept words of a block of two groups", Bug("triton.nms_resolve", *filled)
    near = "near_low & kept_low", "near_low & 0", many
    yield "NMS, the block before is forgotten", Bug("triton.nms_resolve", *near)
    windows = nms_case(draw_boxes(1, 520, 200.0), torch.rand(1, 520), threshold=0.6, **WINDOWS)
    yield (
        "NMS, strikes miss half a block",
        Bug(
            "triton.nms_pairs",
            "kept = tl.load(kept_ptr + column * 2 + half)",
            "kept = tl.load(kept_ptr + column * 2 + half) * half",
            windows,
        ),
    )
    tiny = nms_case(
        pairs * 2.0**-73, -torch.arange(240.0)[None], torch.arange(240)[None] % 120, None, 0.7
    )  # unions of 2^-124
    yield "NMS, small areas are not seen", Bug("triton.nms_pairs", "area < SMALLEST_AREA", "area < 0", tiny)
