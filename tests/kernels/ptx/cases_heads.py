"""Compiled kernels of preprocessing and of the mask and keypoint branches against the reference.

On sm_90 Triton makes tl.dot of 64 rows or more wgmma, which is not executed here: there the mask branch's programs get
32 rows, and mma.sync; their real number is executed as compiled for sm_80, and for sm_90 it is compiled and audited.
"""

from collections.abc import Iterator
from unittest import mock

import torch
import triton
from case_inputs import BF16, FP16, FP32, INF, NAMES, NAN
from helpers.ptx import Bug, Case, close

from fastmask.kernels import reference_layers
from fastmask.kernels.triton import (
    class_masks as class_masks_triton,
    keypoints as keypoints_triton,
    preprocess as preprocess_triton,
)

MEAN, STD = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])


def mask_case(
    dtype, num, batch, channels, middle, classes, size, precision="ieee", shared=227 * 1024, adversarial=False
):
    hidden = torch.randn(num, channels, *size).to(dtype).contiguous(memory_format=torch.channels_last)
    weight = (torch.randn(channels, middle, 2, 2) / channels**0.5).to(dtype)
    weight = weight.contiguous(memory_format=torch.channels_last)
    bias, last_bias = torch.randn(middle).to(dtype), torch.randn(classes).to(dtype)
    last_weight = (torch.randn(classes, middle) / middle**0.5).to(dtype)
    labels, count = torch.randint(classes, (num,)), torch.arange(batch, 0, -1).clamp(max=num // batch)
    if adversarial:
        labels[0], labels[-1], hidden[1, 0, 3, 3], hidden[1, :, 5, 5] = 2**40, -3, NAN, INF
    inputs = hidden, weight, bias, last_weight, last_bias, labels, count

    def run():
        rows = {"ROWS": 32} if triton.runtime.driver.active.get_current_target().arch >= 90 else {}
        with (
            mock.patch.dict(class_masks_triton.AT_ONCE, rows),
            mock.patch.dict(class_masks_triton.IN_STEPS, rows),
            mock.patch.object(class_masks_triton, "shared_memory", return_value=shared),
            mock.patch.object(class_masks_triton, "precision", return_value=precision if dtype == FP32 else "half"),
        ):
            return class_masks_triton.class_masks(*inputs)

    def check(out):
        return close("masks", out, reference_layers.class_masks(*inputs), 2e-3 if precision == "tf32" else 1e-5)

    return Case(run, check)


def preprocess_case(images, sizes, padded, dtype=FP32, more=0, layout=torch.channels_last):
    def run():
        pixels = torch.empty(len(images) + more, 3, *padded, dtype=dtype).contiguous(memory_format=layout)
        heights, widths = [height for height, _ in sizes], [width for _, width in sizes]
        preprocess_triton.preprocess(images, heights, widths, MEAN, STD, pixels)
        return pixels

    def check(out):
        expected = reference_layers.preprocess(images, sizes, MEAN, STD, padded)
        return close("pixels", out, torch.cat([expected, torch.zeros(more, 3, *padded)]), 1e-5)

    return Case(run, check, images)


def keypoint_case(dtype, num, points, size, adversarial=False):
    """Boxes of a pixel, of fewer than the heatmap and of more, in one axis of so many that a cell has over a tile."""
    heatmaps = 3 * torch.randn(num, points, *size).to(dtype)
    heatmaps[..., size[0] // 2, size[1] // 3] += 9  # a peak
    low, sides = torch.rand(num, 2) * 30, torch.tensor([[0.3, 0.2], [20.0, 31.5], [70.2, 260.9], [130.0, 7.0]])[:num]
    boxes = torch.cat((low, low + sides), 1)
    if adversarial:
        heatmaps[0, 0], heatmaps[1, 0, 3, 3], heatmaps[2, 0, 0, 0] = 0, NAN, -INF
        boxes[3] = torch.tensor([0, NAN, 5, 5])
    inputs = heatmaps, boxes, 300, 300

    def check(out):
        keypoints, scores = reference_layers.decode_keypoints(*inputs)
        return close("scores", out[1], scores, 1e-4) + close("keypoints", out[0], keypoints, 1e-4)

    return Case(lambda: keypoints_triton.decode_keypoints(*inputs), check)


def cases() -> Iterator[tuple[str, Case]]:
    yield "keypoints fp32", keypoint_case(FP32, 3, 2, (56, 56))
    yield "keypoints bf16, 5 x 9, adversarial", keypoint_case(BF16, 4, 1, (5, 9), adversarial=True)
    yield "mask branch bf16, C=256", mask_case(BF16, 2, 1, 256, 64, 3, (14, 14))
    yield "mask branch fp16, C=64, two images", mask_case(FP16, 4, 2, 64, 64, 3, (14, 14))
    yield "mask branch bf16, C=20 to 70, adversarial", mask_case(BF16, 4, 2, 20, 70, 3, (12, 11), adversarial=True)
    yield "mask branch bf16, C=40, in steps", mask_case(BF16, 2, 1, 40, 64, 3, (14, 14), shared=65_536)
    yield "mask branch fp16, C=300", mask_case(FP16, 2, 1, 300, 16, 3, (14, 14))
    yield "mask branch fp32, C=40", mask_case(FP32, 2, 1, 40, 64, 3, (12, 11))
    yield "mask branch fp32, C=1 to 1", mask_case(FP32, 2, 1, 1, 1, 1, (12, 11))
    yield (
        "mask branch fp32 by tf32, C=70, adversarial",
        mask_case(FP32, 4, 1, 70, 64, 3, (12, 11), "tf32", adversarial=True),
    )

    def noise(*shape):
        return torch.randint(0, 256, shape, dtype=torch.uint8)

    images = [noise(3, 17, 30), noise(20, 33, 3).permute(2, 0, 1), noise(1, 9, 9).expand(3, 9, 9), noise(3, 1, 1)]
    sizes = [(16, 57), (11, 20), (9, 33), (3, 5)]
    for dtype in (FP32, BF16):
        name = f"preprocessing, uint8 to {NAMES[dtype]}, a batch that is not full"
        yield name, preprocess_case(images, sizes, (16, 72), dtype, more=1)
    others = [torch.rand(3, 17, 30), torch.rand(3, 12, 9).half(), torch.rand(20, 33, 3).bfloat16().permute(2, 0, 1)]
    yield "preprocessing, kinds mixed to fp16", preprocess_case([images[0], *others], sizes, (16, 57), FP16)
    broken = [torch.rand(3, 10, 12), torch.rand(3, 10, 12)]
    broken[0][0, 5, 5], broken[1][1, 0, 11] = NAN, -INF
    sizes = [(10, 12), (13, 7)]
    yield "preprocessing, NaN, fp32 to NCHW", preprocess_case(broken, sizes, (13, 12), layout=torch.contiguous_format)
    yield "preprocessing, no images", preprocess_case([], [], (8, 8), more=2)


def bugs() -> Iterator[tuple[str, Bug]]:
    case = mask_case(BF16, 3, 1, 64, 64, 3, (14, 14))
    yield (
        "mask branch, the wrong detection's class",
        Bug("triton.class_masks", "later = pixel >= pixels", "later = pixel > pixels", case),
    )
    case = mask_case(BF16, 4, 2, 20, 70, 3, (12, 11), adversarial=True)
    yield (
        "mask branch, padding is read",
        Bug("triton.class_masks", "counts = tl.where(later, counts1, counts0) & inside", "counts = inside", case),
    )
    yield (
        "keypoints, the last of equal samples",
        Bug(
            "triton.keypoints",
            "(index ^ 0x7FFFFFFF).to(tl.int64)",
            "index.to(tl.int64)",
            keypoint_case(FP32, 2, 1, (9, 5)),
        ),
    )
    images, sizes = [torch.randint(0, 256, (3, 17, 30), dtype=torch.uint8)], [(16, 57)]
    case = preprocess_case(images, sizes, (16, 60))
    yield (
        "preprocessing, a pixel beyond the row",
        Bug("triton.preprocess", "(x < resized_x)[None, :]", "(x <= resized_x)[None, :]", case),
    )
    yield (
        "preprocessing, beyond the last row",
        Bug(
            "triton.preprocess",
            "(size != resized).to(tl.int32), size - 1)",
            "(size != resized).to(tl.int32), size)",
            case,
        ),
    )
