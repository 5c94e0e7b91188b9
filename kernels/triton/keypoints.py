"""Decoding of keypoint heatmaps in Triton: the maximum of a heatmap that is resized to its box, searched best first.

Source and differences: keypoints.py. Specification: reference_layers.decode_keypoints. Bounds of cells:
fallback/keypoints.py. A program takes a heatmap:
1. It bounds the samples of all cells, which lie between four pixels and stay in registers, SIDE x SIDE of them.
2. It computes the samples of the cell with the highest bound, TILE x TILE at once, and so on, until no bound that is
   left reaches the largest sample so far. A heatmap with a peak takes about three cells, noise takes dozens.

    bounds  -1 0 1 ... w-1     samples of the best cell    key: the sample's bits, in the order of numbers, NaN last;
       -1  [ .  .  .      ]    [ .  .  . ]                 then the index from the end: the largest key is the first
        0  [ .  9  .      ] -> [ .  .  . ] -> largest key  of the largest samples
      h-1  [ .  .  .      ]    [ .  .  . ]

Cost in bytes: each heatmap once. Samples are rounded as in the fallback. Predicted for 17 heatmaps of 100 detections:
190 us, of which more than half are instructions of the bounds. Speed: not yet measured.
"""

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastmask.kernels.fallback import keypoints as keypoints_fallback
from fastmask.kernels.jit import jit
from fastmask.kernels.launch import on_device
from fastmask.kernels.reference import compute_dtype
from fastmask.kernels.variant import DTYPES, Variant, pointers

SIDE = 64  # cells of an axis, one more than pixels
TILE = 16  # samples of an axis
NUM_WARPS = 16
LARGEST_BOX = 2**15  # pixels of a side: beyond it indices of samples are no int32
SLACK = tl.constexpr(keypoints_fallback.SLACK * 2.0**-23)

_INF = tl.constexpr(float("inf"))
_LOWEST = tl.constexpr(-3.4028234663852886e38)


@triton.jit
def _locate(index, scale):
    """A sample's place among pixels."""
    return scale * (index + 0.5) - 0.5


@triton.jit
def _first_sample(cell, scale, density, samples):
    """The first sample of a cell, as a float; beyond the last one, their number. ``density``: samples a pixel."""
    guess = tl.ceil((cell + 0.5) * density - 0.5) - 1  # rounded: the first is one of three
    first = guess + tl.where(tl.floor(_locate(guess, scale)) < cell, 1.0, 0.0)
    first += tl.where(tl.floor(_locate(guess + 1, scale)) < cell, 1.0, 0.0)
    return tl.minimum(tl.maximum(first, 0.0), samples)


@triton.jit
def _weigh_near(away):
    return (1.25 * away - 2.25) * away * away + 1


@triton.jit
def _weigh_far(away):
    return ((-0.75 * away + 3.75) * away - 6) * away + 3


@triton.jit
def _combine(tap0, tap1, tap2, tap3, part):
    """Cubic convolution at a part of the way from tap1 to tap2, summed in PyTorch's order."""
    rest = 1 - part
    value = tap0 * _weigh_far(part + 1) + tap1 * _weigh_near(part)
    return value + tap2 * _weigh_near(rest) + tap3 * _weigh_far(rest + 1)


@triton.jit
def _load_tap(map_ptr, row, column, rows, columns):
    """Pixels in float32, the border repeated."""
    row = tl.minimum(tl.maximum(row, 0), rows - 1)
    column = tl.minimum(tl.maximum(column, 0), columns - 1)
    return tl.load(map_ptr + row * columns + column).to(tl.float32)


@triton.jit
def _load_row(map_ptr, row, column, rows, columns, part):
    """Pixels of four columns from ``column`` on, combined -> a value for each part."""
    tap0 = _load_tap(map_ptr, row, column, rows, columns)
    tap1 = _load_tap(map_ptr, row, column + 1, rows, columns)
    tap2 = _load_tap(map_ptr, row, column + 2, rows, columns)
    tap3 = _load_tap(map_ptr, row, column + 3, rows, columns)
    return _combine(tap0, tap1, tap2, tap3, part)


@triton.jit
def _bound_row(map_ptr, row, column, rows, columns):
    """Extremes of Bernstein coefficients from ``column`` on, the largest pixel, and whether one is not finite."""
    before = _load_tap(map_ptr, row, column, rows, columns)
    start = _load_tap(map_ptr, row, column + 1, rows, columns)
    end = _load_tap(map_ptr, row, column + 2, rows, columns)
    after = _load_tap(map_ptr, row, column + 3, rows, columns)
    second, third = start + (end - before) * 0.25, end - (after - start) * 0.25
    high = tl.maximum(tl.maximum(start, end), tl.maximum(second, third))
    low = tl.minimum(tl.minimum(start, end), tl.minimum(second, third))
    finite = (tl.abs(before) < _INF) & (tl.abs(start) < _INF) & (tl.abs(end) < _INF) & (tl.abs(after) < _INF)
    return high, low, tl.where(tl.abs(start) < _INF, tl.abs(start), 0.0), finite


@triton.jit
def _has_samples(cell, scale, density, samples):
    return _first_sample(cell + 1, scale, density, samples) > _first_sample(cell, scale, density, samples)


@triton.jit
def _find_bounds(map_ptr, rows, columns, SIDE: tl.constexpr):
    """Bounds of all cells [SIDE, SIDE], inf beside a pixel that is not finite, and the largest finite pixel."""
    y, x = tl.arange(0, SIDE)[:, None], tl.arange(0, SIDE)[None, :]
    low0, high1 = tl.zeros([SIDE, SIDE], tl.float32), tl.zeros([SIDE, SIDE], tl.float32)
    high2, low3, most = low0, low0, low0
    finite = tl.full([SIDE, SIDE], 1, tl.int1)
    for i in tl.range(4, loop_unroll_factor=1):  # a row of taps at once: all of them do not fit into registers
        high, low, size, row_finite = _bound_row(map_ptr, y - 2 + i, x - 2, rows, columns)
        low0, low3 = tl.where(i == 0, low, low0), low
        high1, high2 = tl.where(i == 1, high, high1), tl.where(i == 2, high, high2)
        most, finite = tl.maximum(most, size), finite & row_finite
    first = high1 + tl.maximum((high2 - low0) * 0.25, 0.0)
    bounds = tl.maximum(first, high2 + tl.maximum((high1 - low3) * 0.25, 0.0))
    return tl.where(finite, bounds, _INF), tl.max(tl.max(most, axis=1), axis=0)


@triton.jit
def _make_key(value, index):
    """int64, larger for a larger value, NaN the largest, and for an earlier index."""
    bits = tl.where(value == 0, 0.0, value).to(tl.int32, bitcast=True)
    bits = tl.where(value == value, tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits), 0x7FFFFFFF)
    return (bits.to(tl.int64) << 32) | (index ^ 0x7FFFFFFF).to(tl.int64)


@triton.jit
def _value_of(key):
    """The value of a key, NaN for one of NaN."""
    bits = (key >> 32).to(tl.int32)
    return tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits).to(tl.float32, bitcast=True)


@triton.jit
def _search_cell(
    map_ptr, cell_y, cell_x, rows, columns, scale_y, scale_x, density_y, density_x, samples_y, samples_x,
    TILE: tl.constexpr,
):  # fmt: skip
    """The largest key of a cell's samples; its numbers count from 0, which is before the first pixel."""
    before_y, before_x = cell_y.to(tl.float32) - 1, cell_x.to(tl.float32) - 1
    first_y = _first_sample(before_y, scale_y, density_y, samples_y)
    first_x = _first_sample(before_x, scale_x, density_x, samples_x)
    end_y = _first_sample(before_y + 1, scale_y, density_y, samples_y)
    end_x = _first_sample(before_x + 1, scale_x, density_x, samples_x)
    end_y, end_x, across = end_y.to(tl.int32), end_x.to(tl.int32), samples_x.to(tl.int32)
    best = tl.full([], -(2**63), tl.int64)
    for start_x in range(first_x.to(tl.int32), end_x, TILE):
        x = start_x + tl.arange(0, TILE)
        part_x = _locate(x.to(tl.float32), scale_x) - before_x
        tap0 = _load_row(map_ptr, cell_y - 2, cell_x - 2, rows, columns, part_x)
        tap1 = _load_row(map_ptr, cell_y - 1, cell_x - 2, rows, columns, part_x)
        tap2 = _load_row(map_ptr, cell_y, cell_x - 2, rows, columns, part_x)
        tap3 = _load_row(map_ptr, cell_y + 1, cell_x - 2, rows, columns, part_x)
        for start_y in range(first_y.to(tl.int32), end_y, TILE):
            y = start_y + tl.arange(0, TILE)
            part_y = _locate(y.to(tl.float32), scale_y) - before_y
            value = _combine(tap0[None, :], tap1[None, :], tap2[None, :], tap3[None, :], part_y[:, None])
            key = _make_key(value, y[:, None] * across + x[None, :])
            key = tl.where((y < end_y)[:, None] & (x < end_x)[None, :], key, -(2**63))
            best = tl.maximum(best, tl.max(tl.max(key, axis=1), axis=0))
    return best


@jit(do_not_specialize=["points", "rows", "columns", "height", "width"])
def _decode_keypoints_kernel(
    # tensors
    maps_ptr,  # [N, K, rows, columns]
    boxes_ptr,  # [N, 4] (x1, y1, x2, y2)
    keypoints_ptr,  # [N, K, 3] float32 out
    scores_ptr,  # [N, K] float32 out
    # sizes
    points,  # K
    rows,
    columns,
    height,  # limits of boxes
    width,
    # constants
    SIDE: tl.constexpr,
    TILE: tl.constexpr,
):
    # --- 1. the box, and how its samples lie
    number = tl.program_id(0)
    map_ptr = maps_ptr + number.to(tl.int64) * rows * columns
    ptr_box = boxes_ptr + number // points * 4
    x1, y1 = tl.load(ptr_box).to(tl.float32), tl.load(ptr_box + 1).to(tl.float32)
    x2, y2 = tl.load(ptr_box + 2).to(tl.float32), tl.load(ptr_box + 3).to(tl.float32)
    side_x, side_y = tl.maximum(x2 - x1, 1.0), tl.maximum(y2 - y1, 1.0)
    known = (tl.abs(x1) < _INF) & (tl.abs(y1) < _INF) & (tl.abs(x2) < _INF) & (tl.abs(y2) < _INF)
    known = known & (tl.ceil(side_x) <= width) & (tl.ceil(side_y) <= height)
    key = tl.full([], 0, tl.int64)
    samples_x, samples_y = tl.where(known, tl.ceil(side_x), 1.0), tl.where(known, tl.ceil(side_y), 1.0)
    if known:
        scale_x = tl.div_rn(columns.to(tl.float32), samples_x)
        scale_y = tl.div_rn(rows.to(tl.float32), samples_y)
        density_x = tl.div_rn(samples_x, columns.to(tl.float32))
        density_y = tl.div_rn(samples_y, rows.to(tl.float32))
        # --- 2. bounds of all cells, -inf without samples
        bounds, most = _find_bounds(map_ptr, rows, columns, SIDE)
        y, x = tl.arange(0, SIDE), tl.arange(0, SIDE)
        sampled_y = (y <= rows) & _has_samples(y.to(tl.float32) - 1, scale_y, density_y, samples_y)
        sampled_x = (x <= columns) & _has_samples(x.to(tl.float32) - 1, scale_x, density_x, samples_x)
        bounds = tl.where(sampled_y[:, None] & sampled_x[None, :], bounds, -_INF)
        cells = y[:, None] * SIDE + x[None, :]
        slack = SLACK * most
        # --- 3. the best cell, until none can hold the maximum
        key += -(2**63)
        bound = tl.max(tl.max(bounds, axis=1), axis=0)
        least = tl.full([], _LOWEST, tl.float32)
        while bound >= least:
            cell = tl.min(tl.min(tl.where(bounds == bound, cells, SIDE * SIDE), axis=1), axis=0)
            found = _search_cell(
                map_ptr, cell // SIDE, cell % SIDE, rows, columns,
                scale_y, scale_x, density_y, density_x, samples_y, samples_x, TILE,
            )  # fmt: skip
            key = tl.maximum(key, found)
            best = _value_of(key)
            least = tl.where(best == best, tl.maximum(best - slack, _LOWEST), _INF)
            bounds = tl.where(cells == cell, -_INF, bounds)
            bound = tl.max(tl.max(bounds, axis=1), axis=0)

    # --- 4. the sample's center
    index, across = (key & 0x7FFFFFFF).to(tl.int32) ^ 0x7FFFFFFF, samples_x.to(tl.int32)
    index = tl.where(known, index, 0)
    row = index // across
    center_x, center_y = (index - row * across).to(tl.float32) + 0.5, row.to(tl.float32) + 0.5
    ptr_out = keypoints_ptr + number * 3
    tl.store(ptr_out, tl.where(known, center_x * tl.div_rn(side_x, samples_x) + x1, 0.0))
    tl.store(ptr_out + 1, tl.where(known, center_y * tl.div_rn(side_y, samples_y) + y1, 0.0))
    tl.store(ptr_out + 2, tl.where(known, 1.0, 0.0))
    tl.store(scores_ptr + number, tl.where(known, _value_of(key), 0.0))


def decode_keypoints(heatmaps: Tensor, boxes: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Shapes as in fallback.keypoints.decode_keypoints. float64, and large heatmaps and boxes, take the fallback."""
    number, points, rows, columns = heatmaps.shape
    large = max(rows, columns) >= SIDE or max(height, width) > LARGEST_BOX or number * points >= 2**29
    if compute_dtype(heatmaps, boxes) == torch.float64 or large:
        return keypoints_fallback.decode_keypoints(heatmaps, boxes, height, width)
    keypoints = heatmaps.new_empty((number, points, 3), dtype=torch.float32)
    scores = heatmaps.new_empty((number, points), dtype=torch.float32)
    if scores.numel() == 0:
        return keypoints, scores
    with on_device(heatmaps):
        _decode_keypoints_kernel[(number * points,)](
            # tensors
            maps_ptr=heatmaps.contiguous(),
            boxes_ptr=boxes.contiguous(),
            keypoints_ptr=keypoints,
            scores_ptr=scores,
            # sizes
            points=points,
            rows=rows,
            columns=columns,
            height=height,
            width=width,
            # constants
            SIDE=SIDE,
            TILE=TILE,
            num_warps=NUM_WARPS,
            enable_fp_fusion=False,  # each step is rounded as in eager PyTorch
        )
    return keypoints, scores


def variants() -> Iterator[Variant]:
    """Yield the audit's variants: dtypes of heatmaps."""
    for dtype in DTYPES:
        yield Variant(
            f"keypoints, {dtype}",
            _decode_keypoints_kernel,
            pointers(dtype, "maps") | pointers("fp32", "boxes", "keypoints", "scores"),
            {"SIDE": SIDE, "TILE": TILE},
            {"num_warps": NUM_WARPS, "enable_fp_fusion": False},
            default=dtype == "fp32",
        )
