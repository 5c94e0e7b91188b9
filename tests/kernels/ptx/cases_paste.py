"""Compiled mask pasting, forward and backward, against the reference."""

from collections.abc import Iterator
from unittest import mock

import numpy as np
import torch
from case_inputs import BF16, FP16, FP32, NAMES, mask_boxes, some_masks
from helpers.ptx import Bug, Case, close

from fastmask.kernels import reference
from fastmask.kernels.triton import paste as paste_triton, paste_backward as paste_backward_triton


def probabilities(masks, boxes, size, continuous, logits, padding):
    p = masks.double().sigmoid() if logits else masks.double()
    return reference.paste_masks(p, boxes, size, continuous, padding)


def paste_case(
    masks, boxes, size, output, continuous=False, logits=False, padding=1, threshold=0.5, programs=None
) -> Case:
    def run():
        with mock.patch.object(paste_triton, "PROGRAMS", programs or paste_triton.PROGRAMS):
            return paste_triton.paste_masks(masks, boxes, *size, output, threshold, continuous, logits, padding)

    def check(out):
        expected = probabilities(masks, boxes, size, continuous, logits, padding)
        # a box corner that float32 puts on the other side of a whole pixel is not what this is about
        if output == "float":
            return close("out", out, expected, 2e-5)
        if output == "packed":
            bits = np.unpackbits(out.numpy(), axis=-1)
            if bits[..., size[1] :].any():
                return ["bits beyond the row's end"]
            out = torch.from_numpy(bits[..., : size[1]]).bool()
        limit = expected >= threshold if continuous else expected > threshold
        wrong = (out != limit) & ((expected - threshold).abs() > 1e-5)
        return [f"{int(wrong.sum())} pixels are wrong, first at {wrong.nonzero()[0].tolist()}"] if wrong.any() else []

    return Case(run, check)


def paste_backward_case(masks, boxes, size, continuous=False, logits=False, padding=1) -> Case:
    grad = torch.randn(len(masks), *size).to(masks.dtype)

    def run():
        return paste_backward_triton.paste_masks_backward(grad, masks, boxes, continuous, logits, padding)

    def check(out):
        leaf = masks.double().requires_grad_()
        p = leaf.sigmoid() if logits else leaf
        reference.paste_masks(p, boxes, size, continuous, padding).backward(grad.double())
        return close("out", out, leaf.grad, 2e-4)

    return Case(run, check)


def cases() -> Iterator[tuple[str, Case]]:
    yield from forward_cases()
    yield from backward_cases()


def forward_cases() -> Iterator[tuple[str, Case]]:
    size = (40, 60)
    boxes = mask_boxes(3, size)
    for dtype in (FP32, BF16, FP16):
        for output in ("float", "bool", "packed"):
            continuous, logits = (output == "bool") != (dtype == BF16), dtype != FP32
            masks = some_masks(3).to(dtype)
            masks = (masks * 8 - 4) if logits else masks
            mode = "continuous" if continuous else "torchvision"
            yield (
                f"paste {NAMES[dtype]} to {output}, {mode}, 40x60",
                paste_case(masks, boxes, size, output, continuous, logits),
            )
    adversarial = mask_boxes(2, size, True)
    for output, continuous in (("float", False), ("float", True), ("packed", False), ("bool", True)):
        yield (
            f"paste fp32 to {output}, adversarial boxes, {'continuous' if continuous else 'torchvision'}",
            paste_case(some_masks(len(adversarial)), adversarial, size, output, continuous),
        )
    yield "paste fp32 to bool, 33x1", paste_case(some_masks(3), mask_boxes(3, (33, 9)), (33, 1), "bool")
    yield (
        "paste fp32 to float, 1x64, M=14",
        paste_case(some_masks(2, 14), mask_boxes(2, (5, 64)), (1, 64), "float", True),
    )
    yield (
        "paste fp16 to packed, 70x61, M=14, padding 0",
        paste_case(some_masks(2, 14).half(), mask_boxes(2, (70, 61)), (70, 61), "packed", False, True, 0),
    )
    yield (
        "paste fp32 to bool, 64x64, threshold 0.3",
        paste_case(some_masks(2), mask_boxes(2, (64, 64)), (64, 64), "bool", threshold=0.3),
    )

    for output in (
        "float",
        "bool",
        "packed",
    ):  # several tiles, a program a mask or many, a cell of many pixels and of few
        yield (
            f"paste fp32 to {output}, 37x300, M=2, padding 2",
            paste_case(some_masks(2, 2), mask_boxes(2, (37, 300)), (37, 300), output, padding=2),
        )
    boxes = torch.tensor([[-5.0, -5, 310, 20], [0, 0, 300, 12], [120, 1, 140, 11]])
    for continuous in (False, True):
        mode = "continuous" if continuous else "torchvision"
        yield (
            f"paste fp32 to bool, 12x300, a program a mask, {mode}",
            paste_case(some_masks(3), boxes, (12, 300), "bool", continuous, programs=3),
        )
    yield (
        "paste fp32 to packed, 12x300, a program a mask",
        paste_case(some_masks(3), boxes, (12, 300), "packed", programs=3),
    )


def backward_cases() -> Iterator[tuple[str, Case]]:
    size = (40, 60)
    boxes = mask_boxes(2, size)
    for dtype, continuous, logits in (
        (FP32, False, False),
        (FP32, True, True),
        (BF16, False, True),
        (FP16, True, False),
    ):
        masks = some_masks(2).to(dtype)
        yield (
            f"paste backward {NAMES[dtype]}, {'continuous' if continuous else 'torchvision'}, 40x60",
            paste_backward_case(masks, boxes, size, continuous, logits),
        )
    adversarial = mask_boxes(1, (20, 150), True)
    yield (
        "paste backward fp32, adversarial boxes, M=7, 20x150",
        paste_backward_case(some_masks(len(adversarial), 7), adversarial, (20, 150)),
    )
    yield (
        "paste backward fp32, adversarial boxes, M=7, continuous",
        paste_backward_case(some_masks(len(adversarial), 7), adversarial, (20, 150), True),
    )


def bugs() -> Iterator[tuple[str, Bug]]:
    boxes, size = mask_boxes(3, (40, 60)), (40, 60)
    wide = torch.tensor([[-9.0, -9, 70, 50], [0, 0, 70, 40]])
    beyond = "(x < right)", "(x <= right)", paste_case(torch.ones(2, 28, 28), wide, size, "bool")
    yield "paste, one pixel beyond the row", Bug("triton.paste", *beyond)
    bits = "<< (7 - x % 8)", "<< (x % 8)", paste_case(some_masks(3), boxes, size, "packed")
    yield "paste, bits in the other order", Bug("triton.paste", *bits)
    cells = "cells < SIDE", "cells <= SIDE", paste_backward_case(some_masks(2), boxes[:2], size)
    yield "paste backward, one cell beyond the last", Bug("triton.paste_backward", *cells)
