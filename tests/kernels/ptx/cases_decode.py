"""Compiled decoding of boxes against the reference."""

import math
from collections.abc import Iterator

import torch
from case_inputs import BF16, FP16, FP32, INF, NAMES, NAN, mask_boxes
from helpers.ptx import Bug, Case, close

from fastmask.kernels import gpu_decode, reference_layers

SIZE = (200, 300)
GROWTH = math.log(1000 / 16)


def decode_case(dtype, each, above, counted, hostile=False) -> Case:
    references = torch.stack([mask_boxes(45, SIZE, hostile) for _ in range(2)])
    num = references.shape[1]
    deltas = (torch.randn(2, num * each, 4) * 1.5).to(dtype)
    if hostile:
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

    return Case(lambda: gpu_decode.decode_boxes(*arguments), check)


def cases() -> Iterator[tuple[str, Case]]:
    for dtype in (FP32, BF16, FP16):
        yield f"decode {NAMES[dtype]}, as an RPN", decode_case(dtype, 1, False, False)
        yield f"decode {NAMES[dtype]}, as a box head", decode_case(dtype, 3, True, True)
    yield "decode fp32, hostile boxes and deltas", decode_case(FP32, 2, False, True, True)


def bugs() -> Iterator[tuple[str, Bug]]:
    beyond = "mask = offs < filled", "mask = offs <= filled", decode_case(FP32, 1, False, False)
    yield "decode, one box beyond the last", Bug("gpu_decode", *beyond)
    limit = "score > min_score", "score >= min_score", decode_case(FP32, 1, True, False)
    yield "decode, scores on the threshold", Bug("gpu_decode", *limit)
