"""The variants of RoIAlign's backward kernels that audit.py compiles."""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from fastmask.kernels.triton import (
    roi_align_backward as backward,
    roi_bins as roi_bins_triton,
    roi_geometry as roi_geometry_triton,
)

TYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def backward_variants(dtypes: Sequence[str]) -> Iterator[tuple[Any, ...]]:
    """The fields of Variant: dtypes, levels, ratios, pooled sizes and channels; the table; the RoIs' keys."""
    geometry = {f"{name}{i}": "fp32" for name in ("scale", "limit") for i in range(5)} | {"rois_ptr": "*fp32"}
    tile = {"TILE_Y": backward.TILE_Y, "TILE_X": backward.TILE_X}
    for dtype, levels, ratio, (side, channels) in itertools.product(
        dtypes, (4, 1), (2, 0, 1, 3), ((7, 256), (14, 256), (7, 64), (7, 1))
    ):
        first = (levels, ratio, side, channels) == (4, 2, 7, 256)
        if not first and (ratio not in (2, 0) or (side, channels) != (7, 256)) and (levels, ratio) != (4, 2):
            continue
        block = min(max(channels, 16), backward.CHANNELS[TYPES[dtype]])
        yield (
            f"RoIAlign backward, {dtype}, {levels} levels, ratio {ratio}, {side} x {side}, C={channels}",
            backward._backward_kernel,
            {f"out{i}_ptr": f"*{dtype}" for i in range(5)}
            | {"grad_ptr": f"*{dtype}", "lines_ptr": "*fp32", "words_ptr": "*fp32", "starts_ptr": "*i32"},
            {"LEVELS": levels, "POOLED_H": side, "POOLED_W": side, "RATIO": ratio, "CHANNELS": block}
            | {"PRECISION": backward.precision(TYPES[dtype]), **tile}
            | {"ROIS": backward.ROIS, "GROUP": backward.GROUP, "SLOTS": backward.SLOTS},
            {"num_warps": backward.NUM_WARPS, "num_stages": 1, "maxnreg": backward.REGISTERS[TYPES[dtype]]},
            ("channels", "columns") if channels % 16 == 0 else ("columns",),
            first,
            ("LDG", "STG") if channels % 16 == 0 else (),
            {"PRECISION": "ieee"},
        )
    ways = {"counted": (roi_bins_triton.COUNTING, roi_bins_triton.COMPARED), "sorted": (roi_bins_triton.COLUMNS, 0)}
    for (way, (columns, compared)), levels, ratio in itertools.product(ways.items(), (4, 1), (2, 0)):
        yield (
            f"RoIs' table, {way}, {levels} levels, sampling ratio {ratio}",
            roi_bins_triton._table_kernel,
            geometry
            | {"keys_ptr": "*u8", "order_ptr": "*i64", "starts_ptr": "*i32"}
            | {"lines_ptr": "*fp32", "words_ptr": "*fp32"},
            {"LEVELS": levels, "POOLED_H": 7, "POOLED_W": 7, "RATIO": ratio, "ALIGNED": False}
            | {**tile, "BLOCK": columns, "COMPARED": compared},
            {"num_warps": 4},
            ("columns",),
            (way, levels, ratio) == ("counted", 4, 2),
            (),
        )
    for levels, keys in itertools.product((4, 1), ("u8", "i32")):
        yield (
            f"RoIs' maps, {levels} levels, {keys}",
            roi_geometry_triton._keys_kernel,
            geometry | {"keys_ptr": f"*{keys}"},
            {"LEVELS": levels, "ALIGNED": False, "BLOCK": roi_geometry_triton.KEYS},
            {"num_warps": 4},
            (),
            (levels, keys) == (4, "u8"),
            (),
        )
