"""Compiled run-length encoding against the reference, on the masks that the compiled paste kernel gives."""

from collections.abc import Iterator
from unittest import mock

import torch
from case_inputs import BF16, FP16, FP32, NAMES, mask_boxes, some_masks
from helpers.ptx import Bug, Case

from fastmask.kernels import reference
from fastmask.kernels.triton import paste as paste_triton, rle as rle_triton


def rle_case(
    masks, boxes, sizes, continuous=False, logits=False, padding=1, threshold=0.5, capacity=6000, programs=None
) -> Case:
    """Check that the bytes encode the paste kernel's own masks."""

    def run():
        with mock.patch.object(rle_triton, "PROGRAMS", programs or rle_triton.PROGRAMS):
            buffer, offsets = rle_triton.encode_masks(
                masks, boxes, torch.tensor(sizes), capacity, threshold, continuous, logits, padding
            )
        pasted = [
            paste_triton.paste_masks(
                masks[i : i + 1], boxes[i : i + 1], *sizes[i], "bool", threshold, continuous, logits, padding
            )
            for i in range(len(masks))
        ]
        return buffer, offsets, pasted

    def check(out):
        buffer, offsets, pasted = out
        wrong = []
        for i, mask in enumerate(pasted):
            expected = reference.encode_mask(mask[0])
            if offsets[i + 1] > capacity:
                if int(offsets[i + 1] - offsets[i]) < len(expected):
                    wrong.append(f"mask {i}: asks for fewer bytes than it needs")
                continue
            actual = bytes(buffer[offsets[i] : offsets[i + 1]].tolist())
            if actual != expected:
                wrong.append(f"mask {i}: {actual[:60]!r} instead of {expected[:60]!r}")
        return wrong

    return Case(run, check)


def cases() -> Iterator[tuple[str, Case]]:
    size = (40, 60)
    boxes = mask_boxes(5, size)
    for dtype, continuous, logits in (
        (FP32, False, False),
        (BF16, False, True),
        (FP16, True, True),
        (FP32, True, False),
    ):
        masks = some_masks(5).to(dtype)
        masks = masks * 8 - 4 if logits else masks
        yield (
            f"RLE {NAMES[dtype]}, {'continuous' if continuous else 'torchvision'}, 5 masks",
            rle_case(masks, boxes, [size] * 5, continuous, logits),
        )
    adversarial = mask_boxes(1, size, True)
    yield "RLE fp32, adversarial boxes", rle_case(some_masks(len(adversarial)), adversarial, [size] * len(adversarial))
    yield (
        "RLE fp32, adversarial boxes, continuous",
        rle_case(some_masks(len(adversarial)), adversarial, [size] * len(adversarial), True),
    )
    sizes = [(40, 60), (1, 7), (64, 3), (33, 17), (16, 16)]
    yield "RLE fp32, images of several sizes, M=14", rle_case(some_masks(5, 14), mask_boxes(5, (30, 30)), sizes)
    yield "RLE fp32, too small a buffer", rle_case(some_masks(5), boxes, [size] * 5, capacity=200)
    yield (
        "RLE fp32, all noise, over 512 runs",
        rle_case(
            torch.rand(2, 28, 28), torch.tensor([[0.0, 0, 60, 50], [2, 2, 55, 45]]), [(50, 60)] * 2, threshold=0.5
        ),
    )
    full = torch.ones(3, 28, 28)
    yield (
        "RLE fp32, all of the image",
        rle_case(full, torch.tensor([[-9.0, -9, 70, 50], [0, 0, 60, 40], [-9, -9, 70, 20]]), [size] * 3, padding=0),
    )
    noise, boxes = torch.rand(2, 28, 28), torch.tensor([[-3.0, 0, 60, 58], [2, 2, 55, 45]])
    for continuous in (False, True):  # of several steps, and of more changes than a chunk keeps
        mode = "continuous" if continuous else "torchvision"
        yield f"RLE fp32, a chunk a mask, {mode}", rle_case(noise, boxes, [(57, 60)] * 2, continuous, programs=2)
    yield (
        "RLE fp32, a chunk a mask, too small a buffer",
        rle_case(noise, boxes, [(57, 60)] * 2, programs=2, capacity=700),
    )


def bugs() -> Iterator[tuple[str, Bug]]:
    boxes, sizes = torch.tensor([[0.0, 0, 60, 50], [2, 2, 55, 45]]), [(50, 60)] * 2
    noise = rle_case(torch.rand(2, 28, 28), boxes, sizes)
    yield (
        "RLE, one chunk's changes missing",
        Bug("triton.rle", "chunks, pid.to(tl.int64), SUMMED", "chunks, pid.to(tl.int64) - 1, SUMMED", noise),
    )
    yield "RLE, the word before is the same one", Bug("triton.rle", "tl.maximum(lanes - 1, 0)", "lanes", noise)
    yield (
        "RLE, one mask's changes missing",
        Bug("triton.rle", "totals_ptr, number * 0, number,", "totals_ptr, number * 0, number - 1,", noise),
    )
    yield (
        "RLE, a run of the next part",
        Bug("triton.rle", "tl.minimum(first_run + share, changes + 1)", "changes + 1", noise),
    )
    short = rle_case(torch.rand(2, 28, 28), boxes, sizes, programs=2, capacity=700)
    yield "RLE, positions beyond the buffer", Bug("triton.rle", "(rank < limit)", "(rank >= 0)", short)
