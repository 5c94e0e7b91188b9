"""Inputs of the cases: RoIs, pyramids, masks and boxes, ordinary and adversarial."""

import torch

NAN, INF = float("nan"), float("inf")
FP32, FP16, BF16 = torch.float32, torch.float16, torch.bfloat16
NAMES = {FP32: "fp32", FP16: "fp16", BF16: "bf16"}


def pyramid(levels, batch, channels, dtype, last, size=(64, 80)):
    maps = [
        torch.randn(batch, channels, -(-size[0] // s), -(-size[1] // s)).to(dtype) for s in (4, 8, 16, 32, 64)[:levels]
    ]
    return [m.contiguous(memory_format=torch.channels_last) if last else m for m in maps]


def some_rois(num, batch, adversarial=False, size=(64, 80)):
    sides = 2 ** (torch.rand(num, 2) * 5 + 1)
    center = torch.rand(num, 2) * torch.tensor([size[1], size[0]])
    rois = torch.cat([torch.randint(batch, (num, 1)).float(), center - sides / 2, center + sides / 2], 1)
    if adversarial:
        rows = [
            [0, 10, 10, 10, 10], [0, 60, 20, 10, 70], [0, NAN, 1, 20, 20], [NAN, 1, 1, 20, 20], [-1, 1, 1, 20, 20],
            [batch, 1, 1, 20, 20], [0, -INF, 0, INF, 20], [0, -40, -40, -10, -10], [0, 0, 0, size[1], size[0]],
            [0, -30, -30, size[1] + 30, size[0] + 30], [0, size[1] + 3, 3, size[1] + 30, 30], [0, 1e30, 1, 2e30, 5],
            [0, -4, -4, 4, 4], [0, 5, 5, 5.001, 5.001],
        ]  # fmt: skip
        rois = torch.cat([rois, torch.tensor(rows)])
    return rois


SCALES, LIMITS = [0.25, 0.125, 0.0625, 0.03125, 0.015625], [10.0, 20.0, 40.0, 60.0, 1e9]


def geometry(levels):
    return SCALES[:levels], [*LIMITS[: levels - 1], 1e9]


def some_masks(num, side=28):
    axis = torch.linspace(-1, 1, side)
    blob = torch.sigmoid(8 * (torch.rand(num, 1, 1) - torch.hypot(axis[:, None], axis[None])))
    return torch.where((torch.arange(num) % 2 == 0)[:, None, None], blob, torch.rand(num, side, side))


def mask_boxes(num, size, adversarial=False):
    sides = 4 + torch.rand(num, 2) * torch.tensor([size[1], size[0]]) * 0.7
    center = torch.rand(num, 2) * torch.tensor([size[1], size[0]])
    boxes = torch.cat([center - sides / 2, center + sides / 2], 1)
    if adversarial:
        h, w = size
        rows = [
            [0, 0, w, h], [-20, -20, w + 20, h + 20], [5, 5, 5, 5], [30, 9, 10, 30], [NAN, 1, 9, 9], [-INF, 0, INF, 9],
            [-1e30, 0, 1e30, 9], [w + 4, 0, w + 9, 9], [-30, -30, -5, -5], [0, 0, 0.3, 0.3], [3, 2.5, 4.5, 30],
            [0, 4, w, 9],
        ]  # fmt: skip
        boxes = torch.cat([boxes, torch.tensor(rows, dtype=FP32)])
    return boxes
