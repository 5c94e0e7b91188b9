"""Compiled top-k of anchors against its specification."""

from collections.abc import Iterator

import pytest
import torch
from case_inputs import BF16, FP16, FP32, INF, NAMES, NAN
from helpers.ptx import Bug, Case, same

from fastmask.kernels import reference_layers
from fastmask.kernels.triton import top_anchors as top_anchors_triton


def choice_case(logits, number, chunk=512) -> Case:
    def choose():
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(top_anchors_triton, "CHUNK", chunk)
            return top_anchors_triton.top_anchors(logits, number)

    def check(out):
        best, places = reference_layers.top_anchors(logits, number)
        return same("places", out[1], places) + same("best", out[0].nan_to_num(9.0), best.nan_to_num(9.0))

    return Case(choose, check)


def maps(dtype, *shapes, batch=2, scale=2.0) -> list[torch.Tensor]:
    levels = [(torch.randn(batch, 3, *shape) * scale).round() for shape in shapes]
    return [level.to(dtype).contiguous(memory_format=torch.channels_last) for level in levels]


def cases() -> Iterator[tuple[str, Case]]:
    for dtype in (FP32, BF16, FP16):
        yield (
            f"best anchors {NAMES[dtype]}, ties in three levels",
            choice_case(maps(dtype, (20, 32), (10, 16), (2, 3)), 100),
        )
    yield "best anchors fp32, hardly any ties", choice_case(maps(FP32, (20, 32), (3, 4), scale=1e6), 50)
    special = maps(FP32, (20, 32), (5, 8), (1, 1))
    for level in special:
        level[:, 0, ::2] = -INF
        level[:, 1, ::3], level[:, 2, 0, 0] = INF, NAN
    yield "best anchors fp32, NaN and inf", choice_case(special, 300)
    yield "best anchors bf16, all equal", choice_case([level * 0 for level in maps(BF16, (20, 32), (20, 20))], 600)
    planes = [torch.randn(1, 3, 20, 32).bfloat16(), torch.randn(1, 3, 4, 5).bfloat16()]
    yield "best anchors bf16, planes, one of each level", choice_case(planes, 1)
    joined = torch.randn(2, 9, 7, 15)[..., :3].permute(0, 3, 1, 2)
    yield "best anchors fp32, a pitch of 15, five levels, one chunk", choice_case([joined] * 5, 40, 4096)


def bugs() -> Iterator[tuple[str, Bug]]:
    ties = choice_case([level * 0 for level in maps(BF16, (20, 32))], 600)
    order = "ties += tl.load(", "ties += 0 * tl.load(", ties
    yield "best anchors, ties of earlier chunks are forgotten", Bug("triton.top_anchors", *order)
    beyond = "mask = index < num", "mask = index <= num", choice_case(maps(FP32, (20, 32)), 100)
    yield "best anchors, a logit beyond the last", Bug("triton.top_anchors", *beyond)
    prefix = "== prefix)", ">= prefix)", choice_case(maps(FP32, (20, 32), scale=50.0), 100)
    yield "best anchors, digits of other prefixes count", Bug("triton.top_anchors", *prefix)
