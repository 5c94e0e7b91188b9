"""Compiled NMS against the CPU path and the reference."""

from collections.abc import Iterator

import torch
from case_inputs import INF, NAN
from helpers.ptx import Bug, Case, same

from fastmask.kernels import cpu_nms, gpu_nms, reference


def clustered(batch, num, size=100.0, side=30.0):
    corner = torch.rand(batch, num, 2) * size
    return torch.cat([corner, corner + torch.rand(batch, num, 2) * side + 4], 2)


def nms_case(boxes, scores, groups=None, valid=None, threshold=0.5, most=None) -> Case:
    most = boxes.shape[1] if most is None else most

    def run():
        return gpu_nms.nms_padded(boxes, scores, groups, valid, threshold, most)

    def check(out):
        indices, count = out
        wrong = []
        slow = boxes.shape[1] <= 80
        fast_indices, fast_count = cpu_nms.nms_padded(boxes, scores, groups, valid, threshold, most)
        wrong += same("indices", indices, fast_indices) + same("count", count, fast_count)
        for b in range(len(boxes) if slow else 0):
            kept = reference.nms(boxes[b], scores[b], None if groups is None else groups[b],
                                 None if valid is None else valid[b], threshold, most)  # fmt: skip
            wrong += same(f"image {b}", indices[b, : int(count[b])], torch.tensor(kept, dtype=torch.int64))
        return wrong

    return Case(run, check)


def cases() -> Iterator[tuple[str, Case]]:
    b, s, g = clustered(1, 200), torch.rand(1, 200), torch.randint(3, (1, 200))
    yield "NMS fp32, 200 boxes in 3 groups", nms_case(b, s, g)
    yield "NMS fp32, 200 boxes, two images, no groups", nms_case(clustered(2, 200), torch.rand(2, 200))
    yield "NMS bf16, 200 boxes in 3 groups, some invalid", nms_case(b.bfloat16(), s, g, torch.rand(1, 200) > 0.3)
    yield (
        "NMS fp16, 130 boxes, some invalid, 20 out",
        nms_case(clustered(2, 130).half(), torch.rand(2, 130).half(), None, torch.rand(2, 130) > 0.3, 0.3, 20),
    )
    apart = clustered(1, 230, 1000.0, 10.0)
    yield "NMS fp32, one group of 230, nearly all kept", nms_case(apart, torch.rand(1, 230))
    yield (
        "NMS fp32, groups of 150 and 80, nearly all kept",
        nms_case(apart, torch.rand(1, 230), (torch.arange(230) >= 150).long()[None] * 7),
    )
    yield (
        "NMS fp32, nearly all kept, 100 out of two images",
        nms_case(clustered(2, 200, 1000.0, 10.0), torch.rand(2, 200), torch.randint(2, (2, 200)), None, 0.5, 100),
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
    hostile = clustered(1, 70)
    hostile[0, ::7, 1] = NAN
    hostile[0, 3::7, 2] = INF
    hostile[0, 5::14, 0] = -INF
    hostile[0, 6::14] = hostile[0, 6::14].flip(1)  # inverted
    hostile[0, 8::14] = hostile[0, 8::14, :1]  # no area
    scores = torch.rand(1, 70)
    scores[0, 11] = NAN
    scores[0, 12], scores[0, 13] = 0.0, -0.0
    yield "NMS fp32, NaN and inf boxes and scores", nms_case(hostile, scores, torch.randint(2, (1, 70)))
    yield "NMS fp16, NaN and inf boxes and scores", nms_case(hostile.half(), scores.half())
    yield "NMS fp32, one box", nms_case(b[:, :1], s[:, :1])
    yield "NMS fp32, one output of 65", nms_case(clustered(1, 65), s[:, :65], g[:, :65], None, 0.5, 1)
    yield "NMS fp32, no output of 64", nms_case(clustered(1, 64), s[:, :64], g[:, :64], None, 0.5, 0)
    yield "NMS fp32, 64 boxes of 64 groups", nms_case(clustered(1, 64), s[:, :64], torch.randperm(64)[None])
    yield (
        "NMS fp32, 1100 boxes in 40 groups",
        nms_case(clustered(1, 1100, 300.0), torch.rand(1, 1100), torch.randint(40, (1, 1100)), None, 0.5, 1500),
    )
    odd = torch.rand(1, 451)[:, 1:].view(1, 90, 5)[..., :4]
    odd = torch.cat([odd[..., :2], odd[..., :2] + odd[..., 2:]], 2) * 50
    yield (
        "NMS fp32, 90 boxes at an odd address",
        nms_case(
            torch.cat([torch.zeros(1), odd.flatten()])[1:].view(1, 90, 4), torch.rand(1, 90), torch.randint(3, (1, 90))
        ),
    )


def bugs() -> Iterator[tuple[str, Bug]]:
    boxes, scores = clustered(1, 230, 200.0, 30.0), torch.rand(1, 230)
    chain = torch.stack([torch.arange(100.0), torch.zeros(100), torch.arange(100.0) + 4, torch.ones(100)], 1)[None]
    half = chain - torch.tensor([0.0, 0, 1, 0])
    falling = torch.linspace(1, 0, 100)[None]
    reads = "offs < num", "offs <= num", nms_case(boxes, scores)
    yield "NMS, one box beyond the last", Bug("gpu_nms", *reads)
    limit = "> threshold\n", ">= threshold\n", nms_case(half, falling, threshold=0.5)
    yield "NMS, IoU of the threshold suppresses", Bug("gpu_nms", *limit)
    division = "tl.div_rn(inter, union)", "inter / union", nms_case(chain / 3, falling, threshold=0.6)
    yield "NMS, approximate division", Bug("gpu_nms", *division)
