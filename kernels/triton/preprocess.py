"""Preprocessing of a batch in Triton: one launch reads images in place and writes every pixel of the padded buffer.

Source and differences: preprocess.py. Specification: reference_layers.preprocess.
A table, all that is copied to the device, has each image's address, type, sizes and strides. A program owns ROWS x
COLUMNS pixels of one image's place in the buffer: it finds their four neighbors once and interpolates three channels;
pixels beyond the image become zero in the same pass. Images of several types and sizes may be mixed: a program reads
its image's address and type as numbers, so that none of them is a variant. Images of more channels take several
launches; of one or two, each channel is computed three times.
Cost in bytes: the images and the buffer once. On an H200 (bc309f8), 800 x 1333: 20 us, 125 for eight.
Predicted (README.md) for one frame of 720 x 1280, uint8, to 800 x 1344 in bfloat16, on an H100:
- as torch's operations, one after the other: seven launches, 17 us, and 127 MB of passes, 38 us at 3.35 TB/s.
- 13 us now; 82 for eight frames, one launch instead of 49.
- what binds is the issue of instructions: 810 for four pixels, 48 of them loads; the bytes are 4 us.
"""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from fastmask.kernels.fallback import preprocess as preprocess_fallback
from fastmask.kernels.jit import jit
from fastmask.kernels.launch import INTERPRET, on_device
from fastmask.kernels.variant import DTYPES as VARIANT_DTYPES, Variant, pointers

ROWS, COLUMNS = 8, 64  # pixels of a program
NUM_WARPS = 4
MAX_TABLES = 256  # that are kept on devices
CHANNELS = 3  # of a launch
LARGEST = 2**31  # programs of a launch, and pixels along a side of an image: beyond it, the eager fallback
DTYPES = (torch.uint8, torch.float32, torch.float16, torch.bfloat16)
WORDS = 10  # of a table's row
_tables: dict[Any, Tensor] = {}  # on devices, by their words and the stream that copied them


@triton.jit
def _neighbors(offs, size, resized, ROUNDING: tl.constexpr):
    """Output pixels along an axis -> the lower of their two input pixels, the upper one, and its share."""
    scale = tl.div_rn(size.to(tl.float32), tl.maximum(resized, 1).to(tl.float32))
    if ROUNDING == "fma":
        position = tl.fma(scale, offs.to(tl.float32) + 0.5, -0.5)
    else:  # the same: a product of float32 is exact in float64
        position = (scale.to(tl.float64) * (offs.to(tl.float64) + 0.5) - 0.5).to(tl.float32)
    position = tl.maximum(position, 0.0)
    lower = tl.minimum(position.to(tl.int32), size - 1)
    share = tl.minimum(position - lower.to(tl.float32), 1.0)
    upper = tl.minimum(lower + (size != resized).to(tl.int32), size - 1)  # along an axis that stays, pixels do not mix
    return lower, upper, share


@triton.jit
def _blend(ptr, top, bottom, left, right, share_y, share_x, inside):
    """One channel, interpolated from the four neighbors of each pixel."""
    above = (1 - share_x) * tl.load(ptr + (top + left), mask=inside, other=0).to(tl.float32)
    above += share_x * tl.load(ptr + (top + right), mask=inside, other=0).to(tl.float32)
    below = (1 - share_x) * tl.load(ptr + (bottom + left), mask=inside, other=0).to(tl.float32)
    below += share_x * tl.load(ptr + (bottom + right), mask=inside, other=0).to(tl.float32)
    return (1 - share_y) * above + share_y * below


@triton.jit
def _blend_channels(address, DTYPE: tl.constexpr, stride_c, top, bottom, left, right, share_y, share_x, inside):
    ptr = address.to(tl.pointer_type(DTYPE))
    first = _blend(ptr, top, bottom, left, right, share_y, share_x, inside)
    second = _blend(ptr + stride_c, top, bottom, left, right, share_y, share_x, inside)
    third = _blend(ptr + 2 * stride_c, top, bottom, left, right, share_y, share_x, inside)
    return first, second, third


@triton.jit
def _store_channel(ptrs_out, value, channel: tl.constexpr, mean_ptr, std_ptr, largest, inside, mask):
    """Store one channel, normalized; zeros beyond the image."""
    std = tl.load(std_ptr + channel)
    value = tl.fma(value, 1 / (largest * std), -tl.load(mean_ptr + channel) / std)
    value = tl.where(inside, value, 0.0)
    tl.store(ptrs_out, value.to(ptrs_out.dtype.element_ty), mask=mask)


@jit(do_not_specialize=["height", "width", "stride_b", "stride_c", "stride_y", "stride_x"])
def _preprocess_kernel(
    # tensors
    table_ptr,  # [B, WORDS] int64: see table_of
    mean_ptr,  # [3] float32
    std_ptr,  # [3] float32
    out_ptr,  # [B, 3, H, W] out
    # sizes
    height,  # H
    width,  # W
    # strides
    stride_b,  # of the output
    stride_c,
    stride_y,
    stride_x,
    # constants
    ROUNDING: tl.constexpr,  # of positions: see _neighbors
    WORDS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    # --- 1. locate this program's pixels of the buffer
    tiles_x = tl.cdiv(width, COLUMNS)
    tiles = tiles_x * tl.cdiv(height, ROWS)
    image = tl.program_id(0) // tiles
    tile = tl.program_id(0) - image * tiles
    y = tile // tiles_x * ROWS + tl.arange(0, ROWS)
    x = tile % tiles_x * COLUMNS + tl.arange(0, COLUMNS)

    # --- 2. read the image's row of the table
    words = table_ptr + image * WORDS
    address, bytes, float16 = tl.load(words), tl.load(words + 1), tl.load(words + 2)
    size_y, size_x = tl.load(words + 3).to(tl.int32), tl.load(words + 4).to(tl.int32)
    resized_y, resized_x = tl.load(words + 5).to(tl.int32), tl.load(words + 6).to(tl.int32)
    step_c, step_y, step_x = tl.load(words + 7), tl.load(words + 8), tl.load(words + 9)
    inside = (y < resized_y)[:, None] & (x < resized_x)[None, :]

    # --- 3. sample its pixels bilinearly, by their type
    y0, y1, share_y = _neighbors(y, size_y, resized_y, ROUNDING)
    x0, x1, share_x = _neighbors(x, size_x, resized_x, ROUNDING)
    top, bottom = (y0 * step_y)[:, None], (y1 * step_y)[:, None]
    left, right = (x0 * step_x)[None, :], (x1 * step_x)[None, :]
    share_y, share_x = share_y[:, None], share_x[None, :]
    largest = tl.where(bytes == 1, 255.0, 1.0)
    if bytes == 1:
        red, green, blue = _blend_channels(
            address, tl.uint8, step_c, top, bottom, left, right, share_y, share_x, inside
        )
    elif bytes == 4:
        red, green, blue = _blend_channels(
            address, tl.float32, step_c, top, bottom, left, right, share_y, share_x, inside
        )
    elif float16 != 0:
        red, green, blue = _blend_channels(
            address, tl.float16, step_c, top, bottom, left, right, share_y, share_x, inside
        )
    else:
        red, green, blue = _blend_channels(
            address, tl.bfloat16, step_c, top, bottom, left, right, share_y, share_x, inside
        )

    # --- 4. normalize and store; zeros beyond the image
    offs_out = (
        image.to(tl.int64) * stride_b + (y.to(tl.int64) * stride_y)[:, None] + (x.to(tl.int64) * stride_x)[None, :]
    )
    mask = (y < height)[:, None] & (x < width)[None, :]
    ptrs_out = out_ptr + offs_out
    step = tl.cast(stride_c, tl.int64)
    _store_channel(ptrs_out, red, 0, mean_ptr, std_ptr, largest, inside, mask)
    _store_channel(ptrs_out + step, green, 1, mean_ptr, std_ptr, largest, inside, mask)
    _store_channel(ptrs_out + 2 * step, blue, 2, mean_ptr, std_ptr, largest, inside, mask)


def preprocess(
    images: Sequence[Tensor], heights: Sequence[int], widths: Sequence[int], mean: Tensor, std: Tensor, pixels: Tensor
) -> None:
    """Shapes as in fallback.preprocess.preprocess; images of other types than DTYPES become float32 first."""
    batch, _, height, width = pixels.shape
    programs = batch * triton.cdiv(height, ROWS) * triton.cdiv(width, COLUMNS)
    if max(programs, *(max(image.shape) for image in images), 0) >= LARGEST:
        return preprocess_fallback.preprocess(images, heights, widths, mean, std, pixels)
    if programs == 0:
        return None
    if pixels.shape[1] != CHANNELS:  # three at a time, or one of them three times
        for first in group_channels(pixels.shape[1]):
            parts = [three_channels(tensor, 0, first) for tensor in (mean, std, *images)]
            preprocess(parts[2:], heights, widths, parts[0], parts[1], three_channels(pixels, 1, first))
        return None
    images = [image if image.dtype in DTYPES else image.float() for image in images]
    with on_device(pixels):
        _preprocess_kernel[(programs,)](
            # tensors
            table_ptr=table_of(images, heights, widths, batch, pixels.device),
            mean_ptr=mean.float().contiguous(),
            std_ptr=std.float().contiguous(),
            out_ptr=pixels,
            # sizes
            height=height,
            width=width,
            # strides
            **dict(zip(("stride_b", "stride_c", "stride_y", "stride_x"), pixels.stride(), strict=True)),
            # constants
            ROUNDING="float64" if INTERPRET else "fma",  # of two roundings, in the interpreter
            WORDS=WORDS,
            ROWS=ROWS,
            COLUMNS=COLUMNS,
            num_warps=NUM_WARPS,
        )
    return None


def group_channels(channels: int) -> Sequence[int]:
    """The first channel of each launch. The last three of several launches may overlap those before."""
    if channels < CHANNELS:
        return range(channels)
    return [*range(0, channels - CHANNELS, CHANNELS), channels - CHANNELS]


def three_channels(x: Tensor, axis: int, first: int) -> Tensor:
    """A view of three channels along an axis; where there are fewer, of one of them, three times."""
    if x.shape[axis] >= CHANNELS:
        return x.narrow(axis, first, CHANNELS)
    shape = [CHANNELS if i == axis else -1 for i in range(x.ndim)]
    return x.narrow(axis, first, 1).expand(shape)


def table_of(
    images: Sequence[Tensor], heights: Sequence[int], widths: Sequence[int], batch: int, device: torch.device
) -> Tensor:
    """Table of each image's address, bytes of a value, whether that is a float16, sizes before and after, strides.

    A video's frames reuse few addresses: tables are cached, for the CUDA stream that copied them.
    """
    rows = [
        (image.data_ptr(), image.itemsize, image.dtype == torch.float16, *image.shape[1:], *resized, *image.stride())
        for image, *resized in zip(images, heights, widths, strict=False)
    ]
    words = tuple(itertools.chain(*rows, itertools.repeat(0, (batch - len(rows)) * WORDS)))
    if device.type == "cpu":
        return torch.from_numpy(np.array(words, np.int64))
    if torch.cuda.is_current_stream_capturing():
        return fill_table(words, device)
    key = words, device, torch.cuda.current_stream(device).cuda_stream
    table = _tables.get(key)
    if table is None:
        if len(_tables) >= MAX_TABLES:
            _tables.clear()
        host = torch.from_numpy(np.array(words, np.int64)).pin_memory()
        table = _tables[key] = host.to(device, non_blocking=True)
    return table


def fill_table(words: Sequence[int], device: torch.device) -> Tensor:
    """Make a table for a CUDA graph, whose replays may not read memory of the host."""
    table = torch.zeros(len(words), dtype=torch.int64, device=device)
    for number, word in enumerate(words):
        if word:
            table[number].fill_(word)
    return table


def variants() -> Iterator[Variant]:
    """Yield the audit's variants: types of the buffer."""
    for dtype in (*VARIANT_DTYPES, "fp64"):
        yield Variant(
            f"preprocessing, to {dtype}",
            _preprocess_kernel,
            pointers("i64", "table") | pointers("fp32", "mean", "std") | pointers(dtype, "out"),
            {"ROUNDING": "fma", "WORDS": WORDS, "ROWS": ROWS, "COLUMNS": COLUMNS},
            {"num_warps": NUM_WARPS},
            default=dtype != "fp64",
        )
