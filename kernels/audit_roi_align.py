"""The variants of RoIAlign's forward kernels that audit.py compiles."""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import triton.language as tl

from fastmask.kernels.triton import (
    channels_last as channels_last_triton,
    roi_align as roi_align_triton,
    roi_align_apart as roi_align_apart_triton,
)


def forward_variants(dtypes: Sequence[str]) -> Iterator[tuple[Any, ...]]:
    """The fields of Variant: layouts, pooled sizes, channels; the kernels for maps that are not channels-last."""
    shapes = {"7 x 7": (7, 256), "14 x 14": (14, 256), "1 x 1": (1, 256)}
    shapes |= {f"C={channels}": (7, channels) for channels in (64, 80, 3)}
    layouts = {"NHWC": (16, tl.int32), "NHWC of odd width": (1, tl.int32), "NHWC of over 2^31": (16, tl.int64)}
    types = {f"{name}{i}": "fp32" for name in ("scale", "limit") for i in range(5)} | {"rois_ptr": "*fp32"}
    for dtype, levels, ratio in itertools.product(dtypes, (4, 1), (2, 0, 1, 3, 4, 5)):
        if ratio not in (2, 0) and levels == 1:
            continue
        first = (levels, ratio) == (4, 2)
        suffix = f"{dtype}, {levels} levels, sampling ratio {ratio}"
        pointers = {f"{name}{i}_ptr": f"*{dtype}" for name in ("map", "out") for i in range(5)} | {
            "out_ptr": f"*{dtype}"
        }
        constants = {"LEVELS": levels, "RATIO": ratio, "ALIGNED": False}
        for (layout, (unit, offset)), (shape, (side, channels)) in itertools.product(layouts.items(), shapes.items()):
            if (layout, shape) != ("NHWC", "7 x 7") and (not first or (layout != "NHWC" and shape != "7 x 7")):
                continue
            wide = unit == 16 and channels % 16 == 0
            tile = roi_align_triton.tile_of(
                side, channels, ratio, wide and offset == tl.int32, roi_align_triton.CHANNELS
            )
            yield (
                f"RoIAlign forward, {layout}, {suffix}, {shape}",
                roi_align_triton._forward_kernel,
                types | pointers,
                constants
                | {"POOLED_H": side, "POOLED_W": side, "UNIT": unit, "OFFSET": offset}
                | {"PACK": 2 if wide and dtype == "bf16" else 1}
                | {name: value for name, value in tile.items() if name != "num_warps"},
                {"num_warps": tile["num_warps"]},
                ("channels",) if channels % 16 == 0 else (),
                first and (layout, shape) == ("NHWC", "7 x 7"),
                ("LDG", "STG") if wide else (),
            )
        if ratio in (2, 0):
            yield (
                f"RoIAlign forward, NCHW, {suffix}",
                roi_align_apart_triton._apart_kernel,
                types | pointers,
                constants
                | {"POOLED_H": 7, "POOLED_W": 7}
                | {"BINS": roi_align_apart_triton.BINS, "CHANNELS": roi_align_apart_triton.CHANNELS},
                {"num_warps": roi_align_apart_triton.NUM_WARPS},
                ("channels",),
                first,
                ("STG",),
            )
        if ratio == 2:
            for flat in (True, False):
                yield (
                    f"channels-last copies, {dtype}, {levels} levels{'' if flat else ', rows apart'}",
                    channels_last_triton._copy_kernel,
                    pointers,
                    {"LEVELS": levels, "FLAT": flat}
                    | {"PIXELS": channels_last_triton.PIXELS, "CHANNELS": channels_last_triton.CHANNELS},
                    {"num_warps": channels_last_triton.NUM_WARPS},
                    ("channels",),
                    first and flat,
                    ("STG",),
                )
