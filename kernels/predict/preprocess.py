"""The work of preprocessing a batch of images."""

import functools

import numpy as np
import torch
from torch import Tensor
from triton import cdiv

from fastmask.kernels.predict import machine
from fastmask.kernels.predict.case import Built, Case
from fastmask.kernels.predict.inputs import PADDED_SIZE
from fastmask.kernels.predict.model import Work
from fastmask.kernels.triton import preprocess as gpu

FRAME, RESIZED = (720, 1280), (749, 1333)  # of a video, and what a longer side of 1333 makes of it
BRANCHES = ("if bytes == 1", "if bytes == 4", "if float16 != 0", "else of if float16 != 0")


def build(
    generator: torch.Generator,
    *,
    batch: int,
    dtype: torch.dtype,
    size: tuple[int, int] = FRAME,
    resized: tuple[int, int] = RESIZED,
    padded: tuple[int, int] = PADDED_SIZE,
) -> Built:
    frames = torch.randint(0, 256, (batch, *size, 3), generator=generator, dtype=torch.uint8)
    pixels = torch.empty(batch, 3, *padded, dtype=dtype, memory_format=torch.channels_last)
    images = list(frames.permute(0, 3, 1, 2))
    heights, widths = [resized[0]] * batch, [resized[1]] * batch
    run = functools.partial(gpu.preprocess, images, heights, widths, torch.zeros(3), torch.ones(3), pixels)
    return run, functools.partial(works, images, pixels)


def works(images: list[Tensor], pixels: Tensor) -> list[Work]:
    kinds = [gpu.DTYPES.index(image.dtype) for image in images]
    tiles = cdiv(pixels.shape[2], gpu.ROWS) * cdiv(pixels.shape[3], gpu.COLUMNS)
    taken = np.repeat(kinds, tiles)
    read = sum(image.nbytes for image in images)
    return [
        Work(
            "_preprocess_kernel",
            {name: taken == kind for kind, name in enumerate(BRANCHES)},
            hbm_bytes=read + pixels.nbytes,
            # a warp's three stores of 2 bytes, 6 apart, each touch all sectors that together they fill
            l2_bytes=read + pixels.nbytes * 3,
        )
    ]


def floor(batch: int) -> float:
    """Microseconds of reading the frames and writing the buffer once."""
    moved = batch * 3 * (FRAME[0] * FRAME[1] + 2 * PADDED_SIZE[0] * PADDED_SIZE[1])
    return moved / (machine.HBM * machine.HBM_EFFICIENCY) * 1e6 + machine.LAUNCH


CASES = {
    f"preprocessing, {batch} of 720 x 1280, uint8 to bf16": Case(
        functools.partial(build, batch=batch, dtype=torch.bfloat16), floor(batch)
    )
    for batch in (1, 8)
}
