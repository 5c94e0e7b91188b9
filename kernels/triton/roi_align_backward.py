"""RoIAlign over a feature pyramid in Triton, backward: a gather of matrix products, bitwise reproducible.

Pixel model, source and differences: roi_align.py. Specification: the transpose of reference.multilevel_roi_align.
A program owns a tile of one map with all its channels. It counts the bins of each of its image's RoIs that reach the
tile, numbers these bins, and takes them SLOTS at a time: it finds the RoI of each (roi_bins.find_roi), its weight for
each pixel, and the sum as one matrix product. It stores once: no atomics on the result, no zero-fill and no cast.

      8 pixels        bins that reach the tile, in the RoIs' order, SLOTS at a time:
    +----------+      | RoI 3: 0 1 | RoI 9: 0 1 2 3 4 5 | RoI 17: 0 | ...
    | 4   tile |
    +----------+      sum [32 pixels, C] += weights [32 pixels, SLOTS] @ gradients [SLOTS, C]

A list of each tile's bins from a kernel of its own would need a bound on its length, which one large RoI breaks, and a
second path beyond it; the scan, of 512 RoIs at once, is a fifth of the instructions. Products of bfloat16 gradients
are exact (three bfloat16 a weight), those of float16 and float32 good to 2^-22; sums are float32's.
Cost in bytes: roofline.min_bytes, but the gradient's bins once for each tile they reach, and 24 a RoI and tile.
On an H200 (bc309f8), 8 x 512 RoIs, 7 x 7, 256 channels, bfloat16: 342 us, after 230 for PyTorch's copy of an NCHW
gradient and 12 for a sort. Predicted, on an H100:
- 3.07 ms before (README.md): four CTAs a tile scanned all RoIs and weighed every bin anew, one 2-byte load in flight.
- 0.303 ms now, 1 % over the target: one CTA a tile, weights once a product, a pixel's slack instead of two. An NCHW
  gradient's copy takes 0.07 ms more (triton/channels_last.py); PyTorch's reads 2 bytes of each 32, for 0.2 to 0.35 ms.
- 2.1e9 -> 1.3e8 instructions of a warp (590 a tile, 310 a scan, 516 a product; 22,480 tiles, 22,144 scans, 24,398
  products); 0.14 ms are bytes.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastmask.kernels.fallback import roi as roi_fallback
from fastmask.kernels.jit import jit
from fastmask.kernels.launch import INTERPRET, on_device
from fastmask.kernels.reference import compute_dtype
from fastmask.kernels.triton import channels_last as channels_last_triton
from fastmask.kernels.triton.roi_bins import (
    ALONG_X,
    HIGH,
    LOW,
    ROI,
    SCALE,
    WORDS,
    count_bins,
    find_bin,
    find_roi,
    table_by_map,
)
from fastmask.kernels.triton.roi_geometry import (
    MAX_LEVELS,
    VARYING,
    by_level,
    fits_digits,
    level_geometry,
    of_level,
    pack_ratios,
)
from fastmask.kernels.triton.roi_weights import tile_weights
from fastmask.kernels.tuning import tuned_value

TILE_Y, TILE_X = 4, 8  # pixels of a program, whose 32 rows keep the matrix products in registers
CHANNELS = {torch.bfloat16: 256, torch.float16: 128, torch.float32: 128}  # likewise
ROIS, GROUP = 512, 32  # of a program's scan, and of a step of its search
SLOTS = 32  # bins of a matrix product
NUM_WARPS = 4
REGISTERS = {torch.bfloat16: 168, torch.float16: 168, torch.float32: 255}  # on NVIDIA: 168 are three programs an SM
LARGEST = 2**31  # bins: they are counted in int32

# the values of all levels stand on one line
# fmt: off


@triton.jit
def _locate_tile(
    tile, batch, height0, height1, height2, height3, height4, width0, width1, width2, width3, width4,
    LEVELS: tl.constexpr, TILE_Y: tl.constexpr, TILE_X: tl.constexpr,
):
    """Number of a tile -> level and image, that map's height and width, the tile's first row and column there."""
    level = tl.full([], 0, tl.int32)
    past = batch * tl.cdiv(height0, TILE_Y) * tl.cdiv(width0, TILE_X)
    first = past * 0
    if LEVELS > 1:
        level += (tile >= past).to(tl.int32)
        first = tl.where(tile >= past, past, first)
        past += batch * tl.cdiv(height1, TILE_Y) * tl.cdiv(width1, TILE_X)
    if LEVELS > 2:
        level += (tile >= past).to(tl.int32)
        first = tl.where(tile >= past, past, first)
        past += batch * tl.cdiv(height2, TILE_Y) * tl.cdiv(width2, TILE_X)
    if LEVELS > 3:
        level += (tile >= past).to(tl.int32)
        first = tl.where(tile >= past, past, first)
        past += batch * tl.cdiv(height3, TILE_Y) * tl.cdiv(width3, TILE_X)
    if LEVELS > 4:
        level += (tile >= past).to(tl.int32)
        first = tl.where(tile >= past, past, first)
    height = of_level(level, height0, height1, height2, height3, height4, LEVELS)
    width = of_level(level, width0, width1, width2, width3, width4, LEVELS)
    tiles_y, tiles_x = tl.cdiv(height, TILE_Y), tl.cdiv(width, TILE_X)
    tile -= first
    line = tile // tiles_x
    image = line // tiles_y
    return level, image, height, width, (line - image * tiles_y) * TILE_Y, (tile - line * tiles_x) * TILE_X


@triton.jit
def _sum_one_by_one(
    grad_ptr, words_ptr, begin, end, channels, offs_c, mask_c, level, tile_y, tile_x, height, width,
    POOLED_H: tl.constexpr, POOLED_W: tl.constexpr, TILE_Y: tl.constexpr, TILE_X: tl.constexpr, RATIO: tl.constexpr,
):
    """The tile's sum, bin by bin: a pixel that no sample touches gets 0, not 0 * NaN as in a matrix product."""
    acc = tl.zeros([TILE_Y * TILE_X, offs_c.shape[0]], dtype=tl.float32)
    for k in range(begin, end):
        words = words_ptr + (k + tl.arange(0, 1)).to(tl.int64) * WORDS
        along_x = words + ALONG_X
        _, num_p = count_bins(tile_y, tl.load(words + SCALE), tl.load(words + LOW), tl.load(words + HIGH), POOLED_H)
        _, num_q = count_bins(
            tile_x, tl.load(along_x + SCALE), tl.load(along_x + LOW), tl.load(along_x + HIGH), POOLED_W
        )
        for rank in range(tl.sum(num_p * num_q, 0).to(tl.int32)):
            p, q = find_bin(words, rank + tl.arange(0, 1), tile_y, tile_x, POOLED_H, POOLED_W)
            weight = tile_weights(words, level, p, q, tile_y, tile_x, height, width, TILE_Y, TILE_X, RATIO)
            offs_b = tl.load(words + ROI).to(tl.int32, bitcast=True) * (POOLED_H * POOLED_W) + p * POOLED_W + q
            ptrs_g = grad_ptr + offs_b.to(tl.int64)[:, None] * channels + offs_c[None, :]
            grad = tl.load(ptrs_g, mask=mask_c[None, :], other=0).to(tl.float32)
            acc = tl.where(weight > 0, acc + weight * grad, acc)
    return acc


@triton.jit
def _add_products(acc, weight, grad, PRECISION: tl.constexpr):
    """acc + weight @ grad, to about float32's own precision."""
    if PRECISION == "bf16":  # a float32 is a sum of three bfloat16
        weight0 = weight.to(tl.bfloat16)
        rest = weight - weight0.to(tl.float32)
        weight1 = rest.to(tl.bfloat16)
        acc = tl.dot((rest - weight1.to(tl.float32)).to(tl.bfloat16), grad, acc)
        acc = tl.dot(weight1, grad, acc)
        return tl.dot(weight0, grad, acc)
    elif PRECISION == "tf32":  # and, to 2 ** -22, of two of 11 bits, as is a float16 of one
        weight0, weight1 = _split(weight)
        if grad.dtype == tl.float32:
            grad0, grad1 = _split(grad)
            acc = tl.dot(weight0, grad1, acc, input_precision="tf32")
        else:
            grad0 = grad.to(tl.float32)
        acc = tl.dot(weight1, grad0, acc, input_precision="tf32")
        return tl.dot(weight0, grad0, acc, input_precision="tf32")
    else:
        return tl.dot(weight, grad.to(tl.float32), acc, input_precision="ieee")


@triton.jit
def _split(value):
    """float32 -> its first 11 bits and the rest."""
    first = (value.to(tl.int32, bitcast=True) & -8192).to(tl.float32, bitcast=True)
    return first, value - first


@triton.jit
def _store_tile(out, acc, rows, columns, width, channels, offs_c, mask_c, TILE_X: tl.constexpr):
    """The tile's sums, as far as the map's rows and columns from the tile's first on go."""
    offs_y, offs_x = tl.arange(0, acc.shape[0]) // TILE_X, tl.arange(0, acc.shape[0]) % TILE_X
    ptrs_out = out + (offs_y.to(tl.int64) * width + offs_x)[:, None] * channels + offs_c[None, :]
    mask = ((offs_y < rows) & (offs_x < columns))[:, None] & mask_c[None, :]
    tl.store(ptrs_out, acc.to(out.dtype.element_ty), mask=mask)


@jit(do_not_specialize=VARYING)
def _backward_kernel(
    # tensors
    grad_ptr,  # [K, POOLED_H, POOLED_W, C]
    lines_ptr,  # [6, columns] triton/roi_bins.py's table
    words_ptr,  # [columns, 16]
    starts_ptr,  # [LEVELS * batch + 1] where each (level, image) begins there
    out0_ptr, out1_ptr, out2_ptr, out3_ptr, out4_ptr,  # [B, H_l, W_l, C] out
    # sizes
    batch,
    channels,
    columns,
    height0, height1, height2, height3, height4,
    width0, width1, width2, width3, width4,
    # constants
    LEVELS: tl.constexpr,
    POOLED_H: tl.constexpr,
    POOLED_W: tl.constexpr,
    RATIO: tl.constexpr,
    PRECISION: tl.constexpr,  # of the products: see precision
    TILE_Y: tl.constexpr,
    TILE_X: tl.constexpr,
    CHANNELS: tl.constexpr,
    ROIS: tl.constexpr,
    GROUP: tl.constexpr,
    SLOTS: tl.constexpr,
):
    # --- 1. locate the tile and its image's RoIs
    level, image, height, width, row, column = _locate_tile(
        tl.program_id(0), batch, height0, height1, height2, height3, height4, width0, width1, width2, width3, width4,
        LEVELS, TILE_Y, TILE_X,
    )
    offs_c = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    mask_c = offs_c < channels
    tile_y, tile_x = row.to(tl.float32), column.to(tl.float32)
    ptrs_map = starts_ptr + level * batch + image
    begin, end = tl.load(ptrs_map), tl.load(ptrs_map + 1)

    acc = tl.zeros([TILE_Y * TILE_X, CHANNELS], dtype=tl.float32)
    for block in range(begin, end, ROIS):
        # --- 2. count the bins of each RoI that reach the tile
        offs_k = block + tl.arange(0, ROIS)
        ptrs = lines_ptr + offs_k
        scale, low, high = tl.load(ptrs), tl.load(ptrs + columns), tl.load(ptrs + 2 * columns)
        _first, num_p = count_bins(tile_y, scale, low, high, POOLED_H)
        ptrs += 3 * columns
        scale, low, high = tl.load(ptrs), tl.load(ptrs + columns), tl.load(ptrs + 2 * columns)
        _first, num_q = count_bins(tile_x, scale, low, high, POOLED_W)
        num_bins = tl.where(offs_k < end, num_p * num_q, 0.0).to(tl.int32)
        ends = tl.cumsum(num_bins, 0)
        group_ends = tl.max(tl.reshape(ends, [ROIS // GROUP, GROUP]), 1)
        total = tl.max(group_ends, 0)

        for done in range(0, total, SLOTS):
            # --- 3. find the next SLOTS bins: their RoIs, and their places there
            wanted = done + tl.arange(0, SLOTS)
            member, rank = find_roi(ends, group_ends, wanted, GROUP)
            words = words_ptr + (block + member).to(tl.int64) * WORDS
            p, q = find_bin(words, rank, tile_y, tile_x, POOLED_H, POOLED_W)

            # --- 4. multiply what they give each pixel by their gradients
            weight = tile_weights(words, level, p, q, tile_y, tile_x, height, width, TILE_Y, TILE_X, RATIO)
            offs_b = tl.load(words + ROI).to(tl.int32, bitcast=True) * (POOLED_H * POOLED_W) + p * POOLED_W + q
            ptrs_g = grad_ptr + offs_b.to(tl.int64)[:, None] * channels + offs_c[None, :]
            grad = tl.load(ptrs_g, mask=(wanted < total)[:, None] & mask_c[None, :], other=0)
            acc = _add_products(acc, weight, grad, PRECISION)

    # --- 5. store the tile; bin by bin if an inf or NaN may have met a weight of 0
    out = of_level(level, out0_ptr, out1_ptr, out2_ptr, out3_ptr, out4_ptr, LEVELS)
    row, column = tile_y.to(tl.int32), tile_x.to(tl.int32)  # two registers fewer in the loop; exact to LARGEST
    out += ((image.to(tl.int64) * height + row) * width + column) * channels
    if tl.abs(tl.sum(tl.reshape(acc, [TILE_Y * TILE_X * CHANNELS]), 0)) < float("inf"):
        _store_tile(out, acc, height - row, width - column, width, channels, offs_c, mask_c, TILE_X)
    else:
        each = _sum_one_by_one(
            grad_ptr, words_ptr, begin, end, channels, offs_c, mask_c, level, tile_y, tile_x, height, width,
            POOLED_H, POOLED_W, TILE_Y, TILE_X, RATIO,
        )
        _store_tile(out, each, height - row, width - column, width, channels, offs_c, mask_c, TILE_X)


# fmt: on


def multilevel_roi_align_backward(
    grad: Tensor,
    rois: Tensor,
    batch: int,
    heights: Sequence[int],
    widths: Sequence[int],
    scales: Sequence[float],
    level_limits: Sequence[float],
    sampling_ratio: int,
    aligned: bool,
    level_ratios: Sequence[int] | None = None,
) -> list[Tensor]:
    """Gradient [K, C, ph, pw] -> one [B, C, H_l, W_l] a level, channels-last, dtype of ``grad``; deterministic.

    float64 takes the eager fallback, as do over MAX_LEVELS levels, LARGEST bins, 2^16 bins a RoI or 2^26 pixels a side.
    """
    num_rois, channels, pooled_height, pooled_width = grad.shape
    bins = pooled_height * pooled_width * max(num_rois, 2 * ROIS * GROUP)  # or triton.roi_bins.find_roi's keys
    large = max(bins, 32 * max(*heights, *widths)) >= LARGEST or not fits_digits(level_ratios)
    if compute_dtype(grad, rois) == torch.float64 or len(heights) > MAX_LEVELS or large:
        return roi_fallback.multilevel_roi_align_backward(
            grad, rois, batch, heights, widths, scales, level_limits, sampling_ratio, aligned, level_ratios
        )
    sizes = list(zip(heights, widths, strict=True))
    outs = [roi_fallback.empty_channels_last(grad, batch, channels, height, width) for height, width in sizes]
    tile_y, tile_x = tuned_value("roi_align_backward.tile", (TILE_Y, TILE_X), grad.device)
    tiles = sum(batch * triton.cdiv(height, tile_y) * triton.cdiv(width, tile_x) for height, width in sizes)
    if tiles == 0 or channels == 0:
        return outs
    geometry = {**level_geometry(scales, level_limits), "LEVELS": len(sizes), "ALIGNED": aligned}
    pooled, ratio = (pooled_height, pooled_width), pack_ratios(sampling_ratio, level_ratios)
    block = min(max(triton.next_power_of_2(channels), 16), CHANNELS[grad.dtype])  # tensor cores need no less
    with on_device(rois):
        if not grad.is_contiguous(memory_format=torch.channels_last):  # PyTorch's copy reads 2 bytes of 32, one by one
            (grad,) = channels_last_triton.copy([grad])
        lines, words, starts = table_by_map(
            rois.contiguous(), batch, heights, widths, geometry, pooled, ratio, (tile_y, tile_x), ROIS
        )
        _backward_kernel[(tiles, triton.cdiv(channels, block))](
            # tensors
            grad_ptr=grad.permute(0, 2, 3, 1),
            lines_ptr=lines,
            words_ptr=words,
            starts_ptr=starts,
            **by_level("out{}_ptr", outs),
            # sizes
            batch=batch,
            channels=channels,
            columns=lines.shape[1],
            **by_level("height{}", heights),
            **by_level("width{}", widths),
            # constants
            LEVELS=len(sizes),
            POOLED_H=pooled_height,
            POOLED_W=pooled_width,
            RATIO=ratio,
            PRECISION=precision(grad.dtype),
            TILE_Y=tile_y,
            TILE_X=tile_x,
            CHANNELS=block,
            ROIS=ROIS,
            GROUP=GROUP,
            SLOTS=SLOTS,
            num_warps=NUM_WARPS,
            num_stages=1,
            **({} if INTERPRET or torch.version.hip else {"maxnreg": REGISTERS[grad.dtype]}),
        )
    return outs


def precision(dtype: torch.dtype) -> str:
    """The precision of _add_products: Triton's interpreter has no bfloat16 products, and AMD's are float32 anyway."""
    if torch.version.hip:
        return "ieee"
    return "bf16" if dtype == torch.bfloat16 and not INTERPRET else "tf32"
