"""Max pooling of channels-last maps in Triton, without indices, with bias and ReLU in its epilogue.

A program takes COLUMNS output pixels of ROWS rows and CHANNELS channels; a thread reads and writes 16 bytes at a time.
It walks down its rows: where windows overlap, the maximum of an input row is kept for the row below, so that an output
of 3 x 3 reads six pixels, not nine; those of neighboring columns are in the L1 cache.

Cost in bytes: the map read once, the output written once: 34 + 8.6 MB of bfloat16 for a stem's at 800 x 1344, 13 us at
3.35 TB/s; PyTorch's own kernel writes an index of 8 bytes for each output too. Speed: not yet measured.
"""

import itertools
from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastmask.kernels.fallback import stem as stem_fallback
from fastmask.kernels.fallback.roi import empty_channels_last
from fastmask.kernels.jit import jit
from fastmask.kernels.launch import on_device
from fastmask.kernels.variant import DTYPES, Variant, pointers

ROWS = 2  # output rows of a program
ELEMENTS = 2048  # of each of them
CHANNELS = 64  # of a program at most
NUM_WARPS = 4
LARGEST = 2**31 - 2**20  # elements of an image: beyond it, the eager fallback


@triton.jit
def _read(ptrs, line, column, height, width, mask):
    """Read a pixel of each window, in float32; -inf beyond the image."""
    inside = (column >= 0) & (column < width) & (line >= 0) & (line < height)
    return tl.load(ptrs, mask=inside[:, None] & mask, other=float("-inf")).to(tl.float32)


@triton.jit
def _largest_of_row(ptrs, line, column, height, width, channels, mask, KERNEL: tl.constexpr):
    """The maximum of the windows' pixels in one row of an image.

    ``ptrs``: of the windows' first pixels, ``line``, ``column``: the row and their columns.
    """
    best = _read(ptrs, line, column, height, width, mask)
    for i in tl.static_range(1, KERNEL):
        value = _read(ptrs + i * channels, line, column + i, height, width, mask)
        best = tl.maximum(best, value, propagate_nan=tl.PropagateNan.ALL)
    return best


@jit(do_not_specialize=["height", "width", "rows", "columns"])
def _max_pool2d_kernel(
    # tensors
    x_ptr,  # [B, height, width, channels]
    bias_ptr,  # [channels]
    out_ptr,  # [B, rows, columns, channels] out
    # sizes
    height,
    width,
    rows,
    columns,
    channels,
    # constants
    BIAS: tl.constexpr,  # and ReLU
    KERNEL: tl.constexpr,
    STRIDE: tl.constexpr,
    PADDING: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    # which pixels of which image, and which channels
    tiles_x = tl.cdiv(columns, COLUMNS)
    tiles = tiles_x * tl.cdiv(rows, ROWS)
    image = (tl.program_id(0) // tiles).to(tl.int64)
    tile = tl.program_id(0) % tiles
    y = tile // tiles_x * ROWS
    x = tile % tiles_x * COLUMNS + tl.arange(0, COLUMNS)
    offs_c = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    mask = (x < columns)[:, None] & (offs_c < channels)[None, :]
    if BIAS:
        bias = tl.load(bias_ptr + offs_c[None, :], mask=(offs_c < channels)[None, :], other=0).to(tl.float32)

    line, column = y * STRIDE - PADDING, x * STRIDE - PADDING
    x_ptr += image * height * width * channels
    ptrs_x = x_ptr + (line * width + column)[:, None] * channels + offs_c[None, :]
    out_ptr += image * rows * columns * channels
    ptrs_out = out_ptr + (y * columns + x)[:, None] * channels + offs_c[None, :]
    last = _largest_of_row(ptrs_x, line, column, height, width, channels, mask, KERNEL)
    for i in tl.static_range(ROWS):
        if i > 0 and KERNEL <= STRIDE:  # else they overlap by one: a window's last row is the first of the one below
            ptrs = ptrs_x + i * STRIDE * width * channels
            last = _largest_of_row(ptrs, line + i * STRIDE, column, height, width, channels, mask, KERNEL)
        best = last
        for tap in tl.static_range(1, KERNEL):
            ptrs = ptrs_x + (i * STRIDE + tap) * width * channels
            last = _largest_of_row(ptrs, line + (i * STRIDE + tap), column, height, width, channels, mask, KERNEL)
            best = tl.maximum(best, last, propagate_nan=tl.PropagateNan.ALL)
        if BIAS:
            best += bias
            best = tl.where(best < 0, 0.0, best)  # NaN stays
        ptrs = ptrs_out + i * columns * channels
        tl.store(ptrs, best.to(out_ptr.dtype.element_ty), mask=mask & (y + i < rows))


def max_pool2d(x: Tensor, bias: Tensor | None, kernel_size: int, stride: int, padding: int) -> Tensor:
    """Shapes as in fallback.stem.max_pool2d. float64, maps whose channels are not last, and windows that overlap by
    more than one pixel take the eager fallback."""
    batch, channels, height, width = x.shape
    rows, columns = ((side + 2 * padding - kernel_size) // stride + 1 for side in (height, width))
    large = height * width * channels > LARGEST
    last = x.is_contiguous(memory_format=torch.channels_last) and x.numel() > 0
    usual = kernel_size <= stride + 1 and 2 * padding <= kernel_size and min(rows, columns) > 0
    if large or not last or not usual or x.dtype == torch.float64:
        return stem_fallback.max_pool2d(x, bias, kernel_size, stride, padding)
    out = empty_channels_last(x, batch, channels, rows, columns)
    block = min(triton.next_power_of_2(channels), CHANNELS)
    wide = ELEMENTS // block
    tiles = batch * triton.cdiv(rows, ROWS) * triton.cdiv(columns, wide)
    with on_device(x):
        _max_pool2d_kernel[(tiles, triton.cdiv(channels, block))](
            # tensors
            x_ptr=x,
            bias_ptr=x if bias is None else bias.contiguous(),
            out_ptr=out,
            # sizes
            height=height,
            width=width,
            rows=rows,
            columns=columns,
            channels=channels,
            # constants
            BIAS=bias is not None,
            KERNEL=kernel_size,
            STRIDE=stride,
            PADDING=padding,
            ROWS=ROWS,
            COLUMNS=wide,
            CHANNELS=block,
            num_warps=NUM_WARPS,
        )
    return out


def variants() -> Iterator[Variant]:
    """Yield the audit's variants: dtypes, windows, widths of accesses."""
    pools = {  # kernel, stride, padding; channels; whether bias and ReLU follow
        "stem's": ((3, 2, 1), 64, True),
        "3 x 3": ((3, 2, 1), 64, False),
        "3 x 3, odd channels": ((3, 2, 1), 24, True),
        "1 x 1": ((1, 2, 0), 256, False),
        "2 x 2": ((2, 2, 0), 64, False),
    }
    for dtype, (name, ((kernel, stride, padding), channels, bias)) in itertools.product(DTYPES, pools.items()):
        even, block = channels % 16 == 0, min(triton.next_power_of_2(channels), CHANNELS)
        yield Variant(
            f"max pooling, {dtype}, {name}",
            _max_pool2d_kernel,
            pointers(dtype, "x", "bias", "out"),
            {"KERNEL": kernel, "STRIDE": stride, "PADDING": padding, "BIAS": bias}
            | {"ROWS": ROWS, "COLUMNS": ELEMENTS // block, "CHANNELS": block},
            {"num_warps": NUM_WARPS},
            multiples=("channels",) if even else (),
            default=name == "stem's",
            wide=("LDG", "STG") if even else (),
        )
