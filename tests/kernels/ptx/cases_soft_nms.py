"""Compiled soft-NMS against the reference, bit by bit, and beyond a step of the kernel against the fallback."""

from collections.abc import Iterator

import torch
from case_inputs import INF, NAN
from cases_nms import draw_boxes
from helpers.ptx import Bug, Case, same

from fastmask.kernels import reference
from fastmask.kernels.fallback import soft_nms as soft_nms_fallback
from fastmask.kernels.triton import soft_nms as soft_nms_triton


def soft_nms_case(boxes, scores, groups=None, valid=None, gaussian=False, iou=0.3, least=0.001, most=None) -> Case:
    most = boxes.shape[1] if most is None else most
    args = boxes, scores, groups, valid, iou, 0.5, gaussian, least, most

    def check(out):
        indices, decayed, count = out
        named = zip(("indices", "decayed", "count"), out, soft_nms_fallback.soft_nms_padded(*args), strict=True)
        wrong = [text for name, actual, expected in named for text in same(name, actual, expected)]
        for b in range(len(boxes) if boxes.shape[1] <= 40 else 0):
            picks, values = reference.soft_nms(boxes[b], scores[b], None if groups is None else groups[b],
                                               None if valid is None else valid[b], *args[4:])  # fmt: skip
            wrong += same(f"image {b}", indices[b, : int(count[b])], torch.tensor(picks, dtype=torch.int64))
            wrong += same(f"scores {b}", decayed[b, : int(count[b])], torch.tensor(values).to(scores.dtype))
        return wrong

    return Case(lambda: soft_nms_triton.soft_nms_padded(*args), check)


def cases() -> Iterator[tuple[str, Case]]:
    boxes, scores, groups = draw_boxes(2, 40, 60.0), torch.rand(2, 40), torch.randint(3, (2, 40)) << 40
    valid = torch.rand(2, 40) < 0.7
    yield "soft-NMS linear fp32, groups, padding", soft_nms_case(boxes, scores, groups, valid)
    yield "soft-NMS gaussian fp32, groups, padding", soft_nms_case(boxes, scores, groups, valid, True, most=50)
    yield "soft-NMS gaussian bf16, 9 of 40", soft_nms_case(boxes.bfloat16(), scores.bfloat16(), gaussian=True, most=9)
    odd = draw_boxes(1, 40, 60.0)
    odd[0, 1::9, 1], odd[0, 3::9, 2], odd[0, 5::9] = NAN, INF, odd[0, 5::9].flip(1)
    ties = torch.randint(1, 4, (1, 40)).float() / 4
    ties[0, ::8], ties[0, 1::8], ties[0, 2::8] = NAN, INF, -0.0
    yield "soft-NMS linear fp32, NaN, inf and ties", soft_nms_case(odd, ties, iou=0.0, least=0.0)
    many = draw_boxes(1, 1100, 400.0), torch.rand(1, 1100)
    yield "soft-NMS gaussian fp32, two steps", soft_nms_case(*many, gaussian=True, most=7)


def bugs() -> Iterator[tuple[str, Bug]]:
    boxes, scores = draw_boxes(1, 1100, 400.0), torch.rand(1, 1100)
    few = soft_nms_case(boxes, scores, least=0.7, most=5)
    yield (
        "soft-NMS, one box beyond the last",
        Bug("triton.soft_nms", "mask = offs < num\n", "mask = offs <= num\n", few),
    )
    crowd = soft_nms_case(draw_boxes(1, 60, 20.0), torch.rand(1, 60), gaussian=True)
    reduced = "tl.floor(near * _LOG2_E + 0.5)", "tl.floor(near * _LOG2_E)", crowd
    yield "soft-NMS, exp by a polynomial beyond its interval", Bug("triton.soft_nms", *reduced)
    yield "soft-NMS, the pick stays", Bug("triton.soft_nms", " & (offs != pick)", "", crowd)
