"""Variants of RoIAlign's backward kernel, and of the table that it reads, which is made for its tiles."""

import itertools
from collections.abc import Iterator

from fastmask.kernels.triton import roi_align_backward as backward, roi_bins
from fastmask.kernels.triton.roi_geometry import MAX_LEVELS, MIXED, TYPES, name_ratio
from fastmask.kernels.variant import DTYPES, Variant, pointers


def variants() -> Iterator[Variant]:
    """Yield the audit's variants: dtypes, levels, sampling ratios, pooled sizes, channels; RoIs counted and sorted."""
    tile = {"TILE_Y": backward.TILE_Y, "TILE_X": backward.TILE_X}
    for dtype, levels, ratio, (side, channels) in itertools.product(
        DTYPES, (4, 1), (2, 0, 1, 3, MIXED), ((7, 256), (14, 256), (7, 64), (7, 1), (14, 1024))
    ):
        of_c4 = (side, channels) == (14, 1024)  # of one level
        if of_c4 and (levels != 1 or ratio not in (2, 0)):
            continue
        if ratio < 0 and (levels, side, channels) != (4, 7, 256):
            continue
        if not of_c4 and (ratio not in (2, 0, MIXED) or (side, channels) != (7, 256)) and (levels, ratio) != (4, 2):
            continue
        torch_dtype, even = DTYPES[dtype], channels % 16 == 0
        yield Variant(
            f"RoIAlign backward, {dtype}, {levels} levels, ratio {name_ratio(ratio)}, {side} x {side}, C={channels}",
            backward._backward_kernel,
            pointers(dtype, "grad", *(f"out{level}" for level in range(MAX_LEVELS)))
            | pointers("fp32", "lines", "words")
            | pointers("i32", "starts"),
            {"LEVELS": levels, "POOLED_H": side, "POOLED_W": side, "RATIO": ratio, **tile}
            | {"CHANNELS": min(max(channels, 16), backward.CHANNELS[torch_dtype])}
            | {"PRECISION": backward.precision(torch_dtype)}
            | {"ROIS": backward.ROIS, "GROUP": backward.GROUP, "SLOTS": backward.SLOTS},
            {"num_warps": backward.NUM_WARPS, "num_stages": 1, "maxnreg": backward.REGISTERS[torch_dtype]},
            multiples=("channels", "columns") if even else ("columns",),
            default=(levels, ratio, side, channels) == (4, 2, 7, 256),
            wide=("LDG", "STG") if even else (),
            amd={"PRECISION": "ieee"},
        )
    ways = {"counted": (roi_bins.COUNTING, roi_bins.COMPARED), "sorted": (roi_bins.COLUMNS, 0)}
    shapes = itertools.product(ways.items(), ((4, 7), (1, 7), (1, 14)), (2, 0, MIXED))
    for (way, (columns, compared)), (levels, side), ratio in shapes:
        if ratio < 0 and levels == 1:
            continue
        yield Variant(
            f"RoIs' table, {way}, {levels} levels, sampling ratio {name_ratio(ratio)}{', 14 x 14' * (side == 14)}",
            roi_bins._table_kernel,
            TYPES
            | pointers("u8", "keys")
            | pointers("i64", "order")
            | pointers("i32", "starts")
            | pointers("fp32", "lines", "words"),
            {"LEVELS": levels, "POOLED_H": side, "POOLED_W": side, "RATIO": ratio, "ALIGNED": False, **tile}
            | {"BLOCK": columns, "COMPARED": compared},
            {"num_warps": 4},
            multiples=("columns",),
            default=(way, levels, ratio) == ("counted", 4, 2),
        )
