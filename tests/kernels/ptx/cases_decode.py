"""Compiled kernels between the large layers against the reference: box decoding, candidates, gathering after NMS."""

import math
from collections.abc import Iterator

import torch
from case_inputs import BF16, FP16, FP32, INF, NAMES, NAN, mask_boxes
from helpers.ptx import Bug, Case, close

from fastmask.kernels import reference_layers
from fastmask.kernels.triton import (
    candidates as candidates_triton,
    decode as decode_triton,
    decode_levels as decode_levels_triton,
    take as take_triton,
)
from fastmask.selftest import candidate_cases

SIZE = (200, 300)
GROWTH = math.log(1000 / 16)


def decode_case(dtype, each, above, counted, adversarial=False) -> Case:
    references = torch.stack([mask_boxes(45, SIZE, adversarial) for _ in range(2)])
    num = references.shape[1]
    deltas = (torch.randn(2, num * each, 4) * 1.5).to(dtype)
    if adversarial:
        deltas[:, ::7, 0], deltas[:, 1::7, 2], deltas[:, 2::7, 3], deltas[:, 3::7, 1] = NAN, INF, -INF, -INF
    scores = (torch.rand(2, num * each) * 8).round() / 8
    count = torch.tensor([num, 20]) if counted else None
    weights = [10.0, 10.0, 5.0, 5.0] if above else [1.0, 1.0, 1.0, 1.0]
    arguments = (deltas, references, torch.tensor([SIZE, (90, 80)]), scores, count, weights, GROWTH, 0.01, 0.25, above)

    def check(out):
        boxes, valid = reference_layers.decode_boxes(*arguments)
        near = ((boxes[..., 2:] - boxes[..., :2] - 0.01).abs() <= 0.02).any(2)
        finite = boxes.isfinite() & (references.abs() < 1e6).all(2).repeat_interleave(each, 1)[..., None]
        wrong = (valid != out[1]) & ~near
        errors = close("boxes", torch.where(finite, out[0], 0), torch.where(finite, boxes, 0), 2e-2)
        return errors + ([f"{int(wrong.sum())} of valid are wrong"] if wrong.any() else [])

    return Case(lambda: decode_triton.decode_boxes(*arguments), check)


def describe_errors(check, inputs, out) -> list[str]:
    try:
        check(inputs, list(out))
    except AssertionError as error:
        return [" ".join(str(error).split())[:300]]
    return []


def levels_case(dtype, kind) -> Case:
    inputs = candidate_cases.draw_levels(dtype, kind)
    logits, index, anchors, sizes, *deltas = inputs
    arguments = (logits, index, candidate_cases.LENGTHS, deltas, anchors, sizes, *candidate_cases.LEVEL_SETTINGS)
    return Case(
        lambda: decode_levels_triton.decode_levels(*arguments),
        lambda out: describe_errors(candidate_cases.check_levels, inputs, out),
    )


def classes_case(dtype, kind) -> Case:
    inputs = candidate_cases.draw_classes(dtype, kind)
    arguments = (*inputs, candidate_cases.SLOTS, *candidate_cases.CLASS_SETTINGS)
    return Case(
        lambda: candidates_triton.select_candidates(*arguments),
        lambda out: describe_errors(candidate_cases.check_classes, inputs, out),
    )


def many_classes_case(classes) -> Case:
    """Candidates of so many classes that a program has several warps."""
    logits, deltas = torch.randn(4, classes), torch.randn(4, classes, 4)
    logits[:, 200:203] += 12
    boxes, sizes = mask_boxes(4, SIZE)[None], torch.tensor([SIZE])
    arguments = (logits, deltas, boxes, sizes, torch.tensor([4]), 19, [10.0, 10.0, 5.0, 5.0], GROWTH, 0.01, 0.05)

    def check(out):
        expected = reference_layers.select_candidates(*arguments)
        same_rows = torch.equal(out[1], expected[1]) and torch.equal(out[3], expected[3])
        errors = close("boxes", out[0], expected[0], 2e-2) + close("scores", out[2], expected[2], 1e-5)
        return errors + ([] if same_rows else ["labels or valid are wrong"])

    return Case(lambda: candidates_triton.select_candidates(*arguments), check)


def kept_case(labeled) -> Case:
    kept, boxes, scores, labels = candidate_cases.draw_kept(FP32, "adversarial")
    arguments = (kept, boxes, scores, labels if labeled else None)

    def check(out):
        expected = reference_layers.take_kept(*arguments)
        return [
            f"output {i} is wrong"
            for i, (one, other) in enumerate(zip(out, expected, strict=True))
            if not torch.equal(one.nan_to_num(7.5), other.nan_to_num(7.5))
        ]

    return Case(lambda: take_triton.take_kept(*arguments), check)


def scale_case() -> Case:
    inputs = candidate_cases.draw_detections(FP32, "adversarial")
    return Case(
        lambda: take_triton.scale_boxes(*inputs), lambda out: describe_errors(candidate_cases.check_scaled, inputs, out)
    )


def cases() -> Iterator[tuple[str, Case]]:
    for dtype in (FP32, BF16, FP16):
        yield f"decode {NAMES[dtype]}, as an RPN", decode_case(dtype, 1, False, False)
        yield f"decode {NAMES[dtype]}, as a box head", decode_case(dtype, 3, True, True)
    yield "decode fp32, adversarial boxes and deltas", decode_case(FP32, 2, False, True, True)
    for dtype in (FP32, BF16, FP16):
        yield f"RPN's candidates {NAMES[dtype]}", levels_case(dtype, "ordinary")
        yield f"box head's candidates {NAMES[dtype]}", classes_case(dtype, "ordinary")
    yield "rows NMS keeps", kept_case(False)
    yield "rows NMS keeps, labels", kept_case(True)
    yield "boxes scaled", scale_case()
    yield "RPN's candidates fp32, adversarial", levels_case(FP32, "adversarial")
    yield "box head's candidates fp32, adversarial", classes_case(FP32, "adversarial")
    yield "box head's candidates fp32, 300 classes", many_classes_case(300)


def bugs() -> Iterator[tuple[str, Bug]]:
    beyond = "mask = offs < filled", "mask = offs <= filled", decode_case(FP32, 1, False, False)
    yield "decode, one box beyond the last", Bug("triton.decode", *beyond)
    limit = "score > min_score", "score >= min_score", decode_case(FP32, 1, True, False)
    yield "decode, scores on the threshold", Bug("triton.decode", *limit)
    yield (
        "RPN's candidates, the level before",
        Bug("triton.decode_levels", "beyond = level > i", "beyond = level >= i", levels_case(FP32, "ordinary")),
    )
    yield (
        "box head's candidates, background among them",
        Bug("triton.candidates", "(label > 0)", "(label >= 0)", classes_case(FP32, "ordinary")),
    )
    yield (
        "rows NMS keeps, the row before the first",
        Bug("triton.take", "valid = kept >= 0", "valid = kept >= -1", kept_case(True)),
    )
    yield "boxes scaled by the other axis", Bug("triton.take", "2 * end + 1 - axis", "2 * end + axis", scale_case())
