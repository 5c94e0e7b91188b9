"""Stem convolution in Triton: an implicit matrix product over windows of an image of three channels.

A program takes ROWS x COLUMNS output pixels and OUTPUTS channels. Where pixels are four elements apart, as in the
Predictor's buffer (inference/program.py), two of them are 16 bytes, and with stride 2 a window's row begins at such a
pair or one pixel behind it: a row of 7 pixels is read as four pairs, 64 contiguous bytes, and is 32 terms of the
product, which has one such step for each row of the kernel. Terms beside the image's (the fourth element of a pixel,
the pixel before the window) are set to zero. Neighboring windows share most of their bytes, which the L1 cache has.

Cost in bytes: the image and the output once: 8.6 + 34 MB of bfloat16 at 800 x 1344, 13 us at 3.35 TB/s; cuDNN pads the
three channels to eight in a pass of its own. Speed: not yet measured.
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
from fastmask.kernels.launch import INTERPRET, on_device
from fastmask.kernels.variant import Variant, pointers

ROWS, COLUMNS = 4, 32  # output pixels of a program
OUTPUTS = 64  # output channels of a program at most
NUM_WARPS = 4
PAIR = 2 * stem_fallback.PIXEL  # elements of two pixels
DTYPES = (torch.float16, torch.bfloat16)
LARGEST = 2**31 - 2**20  # elements of an image, and of its output: beyond it, the eager fallback


@jit(do_not_specialize=["height", "pairs", "rows", "columns"])
def _stem_conv_kernel(
    # tensors
    x_ptr,  # [B, height, pairs, PAIR]: two pixels of three channels and something else
    weight_ptr,  # [KERNEL, DEPTH, outputs]: see fallback.stem.arrange_weight
    out_ptr,  # [B, rows, columns, outputs] out
    # sizes
    height,
    pairs,
    rows,
    columns,
    outputs,
    # constants
    KERNEL: tl.constexpr,  # rows of a window
    PADDING: tl.constexpr,
    DEPTH: tl.constexpr,  # elements of a window's row
    CHANNELS: tl.constexpr,
    PIXEL: tl.constexpr,
    PAIR: tl.constexpr,
    WIDE: tl.constexpr,  # whether products are of float32
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    OUTPUTS: tl.constexpr,
):
    # which pixels of which image, and which channels
    tiles_x = tl.cdiv(columns, COLUMNS)
    tiles = tiles_x * tl.cdiv(rows, ROWS)
    image = (tl.program_id(0) // tiles).to(tl.int64)
    tile = tl.program_id(0) % tiles
    offs_pixel = tl.arange(0, ROWS * COLUMNS)
    y = tile // tiles_x * ROWS + offs_pixel // COLUMNS
    x = tile % tiles_x * COLUMNS + offs_pixel % COLUMNS
    offs_o = tl.program_id(1) * OUTPUTS + tl.arange(0, OUTPUTS)
    mask_o = (offs_o < outputs)[None, :]

    # where the first row of each window begins, and which of its elements count
    offs_k = tl.arange(0, DEPTH)
    lead: tl.constexpr = PADDING % 2  # pixels between the pair's first and the window's
    line = 2 * y[:, None] - PADDING
    pair = (x - (PADDING + lead) // 2)[:, None] + (offs_k // PAIR)[None, :]
    mask_pair = (pair >= 0) & (pair < pairs)
    ptrs_x = x_ptr + image * height * pairs * PAIR + ((line * pairs + pair) * PAIR + (offs_k % PAIR)[None, :])
    pixel = offs_k // PIXEL
    counts = (pixel >= lead) & (pixel < lead + KERNEL) & (offs_k % PIXEL < CHANNELS)

    # a product for each row, with sums in float32
    ptrs_w = weight_ptr + offs_k[:, None] * outputs + offs_o[None, :]
    acc = tl.zeros([ROWS * COLUMNS, OUTPUTS], dtype=tl.float32)
    for tap in tl.static_range(KERNEL):
        mask = (line + tap >= 0) & (line + tap < height) & mask_pair
        window = tl.load(ptrs_x + tap * pairs * PAIR, mask=mask, other=0)
        weight = tl.load(ptrs_w + tap * DEPTH * outputs, mask=mask_o, other=0)
        window = tl.where(counts[None, :], window, 0)
        if WIDE:
            window, weight = window.to(tl.float32), weight.to(tl.float32)
        acc = tl.dot(window, weight, acc)

    ptrs_out = out_ptr + image * rows * columns * outputs + ((y * columns + x) * outputs)[:, None] + offs_o[None, :]
    mask = ((y < rows) & (x < columns))[:, None] & mask_o
    tl.store(ptrs_out, acc.to(out_ptr.dtype.element_ty), mask=mask)


def stem_conv(x: Tensor, weight: Tensor, padding: int) -> Tensor:
    """Shapes as in fallback.stem.stem_conv. The kernel takes half types whose pixels lie four elements apart, in rows
    of an even number of pixels; all else takes the eager fallback."""
    batch, _, height, width = x.shape
    kernel_size, depth, outputs = weight.shape
    rows, columns = ((side + 2 * padding - kernel_size) // stem_fallback.STRIDE + 1 for side in (height, width))
    large = max(height * width * stem_fallback.PIXEL, rows * columns * outputs) > LARGEST
    usual = x.dtype in DTYPES and width % 2 == 0 and stem_fallback.has_gaps(x) and ends_in_memory(x)
    if large or not usual or min(batch, outputs, rows, columns) < 1:
        return stem_fallback.stem_conv(x, weight, padding)
    out = empty_channels_last(x, batch, outputs, rows, columns)
    block = min(max(triton.next_power_of_2(outputs), 16), OUTPUTS)
    tiles = batch * triton.cdiv(rows, ROWS) * triton.cdiv(columns, COLUMNS)
    with on_device(x):
        _stem_conv_kernel[(tiles, triton.cdiv(outputs, block))](
            # tensors
            x_ptr=x.as_strided((batch, stem_fallback.PIXEL, height, width), x.stride()),
            weight_ptr=weight.contiguous(),
            out_ptr=out,
            # sizes
            height=height,
            pairs=width // 2,
            rows=rows,
            columns=columns,
            outputs=outputs,
            # constants
            KERNEL=kernel_size,
            PADDING=padding,
            DEPTH=depth,
            CHANNELS=stem_fallback.CHANNELS,
            PIXEL=stem_fallback.PIXEL,
            PAIR=PAIR,
            WIDE=INTERPRET,  # which has no product of bfloat16
            ROWS=ROWS,
            COLUMNS=COLUMNS,
            OUTPUTS=block,
            num_warps=NUM_WARPS,
        )
    return out


def ends_in_memory(x: Tensor) -> bool:
    """Whether the gap behind the last pixel is memory of the tensor's too."""
    end = x.storage_offset() + stem_fallback.PIXEL * x.shape[0] * x.shape[2] * x.shape[3]
    return x.untyped_storage().nbytes() >= end * x.element_size()


def variants() -> Iterator[Variant]:
    """Yield the audit's variants: half types, sizes of the kernel and of the output."""
    shapes = ((7, 3, 64), (3, 1, 64), (3, 1, 32), (5, 2, 24))
    for dtype, (kernel_size, padding, outputs) in itertools.product(("fp16", "bf16"), shapes):
        yield Variant(
            f"stem's convolution, {dtype}, {kernel_size} x {kernel_size} to {outputs}",
            _stem_conv_kernel,
            pointers(dtype, "x", "weight", "out"),
            {"KERNEL": kernel_size, "PADDING": padding, "DEPTH": stem_fallback.row_depth(kernel_size, padding)}
            | {"CHANNELS": stem_fallback.CHANNELS, "PIXEL": stem_fallback.PIXEL, "PAIR": PAIR, "WIDE": False}
            | {"ROWS": ROWS, "COLUMNS": COLUMNS, "OUTPUTS": min(triton.next_power_of_2(outputs), OUTPUTS)},
            {"num_warps": NUM_WARPS},
            multiples=("outputs",) if outputs % 16 == 0 else (),
            default=kernel_size == 7,
            wide=("LDG", "STG") if outputs == OUTPUTS else (),
        )
