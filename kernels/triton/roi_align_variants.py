"""Variants of RoIAlign's forward kernel: dtypes, levels, sampling ratios, layouts, pooled sizes, channels."""

import itertools
from collections.abc import Iterator

import triton.language as tl

from fastmask.kernels.triton import roi_align, roi_align_tile
from fastmask.kernels.triton.roi_geometry import MAX_LEVELS, MIXED, TYPES, name_ratio
from fastmask.kernels.variant import DTYPES, Variant, pointers

SHAPES = {"7 x 7": (7, 256), "14 x 14": (14, 256), "1 x 1": (1, 256)}
SHAPES |= {f"C={channels}": (7, channels) for channels in (64, 80, 3)}
SHAPES |= {"C4's 14 x 14": (14, 1024)}  # of one level
LAYOUTS = {"NHWC": (16, tl.int32), "NHWC of odd width": (1, tl.int32), "NHWC of over 2^31": (16, tl.int64)}


def variants() -> Iterator[Variant]:
    """Yield the audit's variants: other layouts and shapes of four levels and sampling ratio 2 only."""
    ratios = (2, 0, 1, 3, 4, 5, MIXED)
    for dtype, levels, ratio, layout, shape in itertools.product(DTYPES, (4, 1), ratios, LAYOUTS, SHAPES):
        first, usual = (levels, ratio) == (4, 2), (layout, shape) == ("NHWC", "7 x 7")
        if ratio < 0 and levels == 1:
            continue
        of_c4 = shape == "C4's 14 x 14" and layout == "NHWC"
        if (levels == 1 and ratio not in (2, 0)) or (not usual and not first and not of_c4):
            continue
        if of_c4 and levels != 1:
            continue
        if layout != "NHWC" and shape != "7 x 7":
            continue
        (unit, offset), (side, channels) = LAYOUTS[layout], SHAPES[shape]
        wide = unit == 16 and channels % 16 == 0
        tile = roi_align_tile.tile_of(side, channels, ratio, wide and offset == tl.int32, roi_align.CHANNELS)
        yield Variant(
            f"RoIAlign forward, {layout}, {dtype}, {levels} levels, sampling ratio {name_ratio(ratio)}, {shape}",
            roi_align._forward_kernel,
            TYPES | pointers(dtype, "out", *(f"map{level}" for level in range(MAX_LEVELS))),
            {"LEVELS": levels, "RATIO": ratio, "ALIGNED": False, "POOLED_H": side, "POOLED_W": side}
            | {"UNIT": unit, "OFFSET": offset, "PACK": 2 if wide and dtype == "bf16" else 1}
            | {name: value for name, value in tile.items() if name != "num_warps"},
            {"num_warps": tile["num_warps"]} | roi_align_tile.register_limit(levels, side, DTYPES[dtype], tile),
            multiples=("channels",) if channels % 16 == 0 else (),
            default=first and usual,
            wide=("LDG", "STG") if wide else (),
        )
