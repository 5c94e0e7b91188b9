"""The work of the mask branch's last layers."""

import functools

import numpy as np
import torch
from torch import Tensor

from fastmask.kernels.predict import machine
from fastmask.kernels.predict.case import Built, Case
from fastmask.kernels.predict.inputs import CHANNELS
from fastmask.kernels.predict.model import Work
from fastmask.kernels.triton import class_masks as gpu

SIDE = 14  # of the mask head's maps
CLASSES = 91


def build(
    generator: torch.Generator,
    *,
    num: int,
    batch: int,
    dtype: torch.dtype,
    found: int | None = None,
    channels: int = CHANNELS,
    side: int = SIDE,
) -> Built:
    shape = (batch * num, channels, side, side)
    hidden = torch.randn(shape, generator=generator).to(dtype).contiguous(memory_format=torch.channels_last)
    weight = torch.randn(channels, channels, 2, 2, generator=generator).to(dtype)
    weight = weight.contiguous(memory_format=torch.channels_last)
    bias, last_bias = torch.zeros(channels, dtype=dtype), torch.zeros(CLASSES, dtype=dtype)
    last_weight = torch.randn(CLASSES, channels, generator=generator).to(dtype)
    labels = torch.randint(1, CLASSES, (batch * num,), generator=generator)
    count = torch.full((batch,), num if found is None else found)
    run = functools.partial(gpu.class_masks, hidden, weight, bias, last_weight, last_bias, labels, count)
    return run, functools.partial(works, hidden, weight, count)


def works(hidden: Tensor, weight: Tensor, count: Tensor) -> list[Work]:
    number, channels, height, width = hidden.shape
    pixels = height * width
    tile = gpu.tile_of(hidden.dtype, channels, machine.SHARED)
    rows = tile["ROWS"]
    first = np.arange(-(-number * pixels // rows)) * rows // pixels
    counts = (np.arange(number) % (number // len(count))) < np.repeat(count.numpy(), number // len(count))
    busy = counts[first] | counts[np.minimum(first + 1, number - 1)]
    blocks = gpu.QUARTERS * -(-weight.shape[1] // tile["COLUMNS"])
    programs = 4 // gpu.QUARTERS
    read = weight.nbytes / programs + hidden[0].nbytes / pixels * rows * (1 if tile["AT_ONCE"] else blocks)
    trips = {"if counts0": np.tile(busy, programs), "for block in range(": np.tile(busy * blocks, programs)}
    if not tile["AT_ONCE"]:
        trips["for k in range(0, channels"] = trips["for block in range("] * -(-channels // tile["DEPTH"])
    return [
        Work(
            "_class_masks_kernel",
            trips,
            hbm_bytes=hidden.nbytes + 4 * 4 * number * pixels,
            l2_bytes=float(busy.sum()) * programs * read,
        )
    ]


def flops(num: int, batch: int) -> float:
    return 2.0 * batch * num * SIDE**2 * CHANNELS * 4 * CHANNELS


TENSOR = 989e12  # operations a second of 16-bit products, from NVIDIA's whitepaper [N]
CASES = {
    f"mask branch's last layers, {what}, bf16": Case(
        functools.partial(build, num=100, batch=batch, dtype=torch.bfloat16),
        flops(100, batch) / TENSOR * 1e6 + machine.LAUNCH,
        2 * flops(100, batch) / TENSOR * 1e6,
    )
    for what, batch in (("100 detections", 1), ("8 x 100 detections", 8))
}
