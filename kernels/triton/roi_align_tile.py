"""What a program of RoIAlign's forward kernel computes: its tile, and the registers for it."""

from typing import Any

import torch
import triton

COLUMNS = 8  # of a tile, at most
WARP_ELEMENTS = 256  # of a program's tile: 8 a thread
UNROLLED = (2, 3)  # sampling ratios; for more, the taps of a row of bins do not fit the registers
REGISTERS = 96  # on NVIDIA, where ptxas takes 72 and spills: see register_limit


def tile_of(pooled_width: int, channels: int, ratio: int, two: bool, most: int) -> dict[str, Any]:
    """A program's columns, channels (``most``: CHANNELS) and warps: 8 elements a thread, or with ``two`` tiles 16."""
    columns = min(triton.next_power_of_2(pooled_width), COLUMNS)
    block = min(triton.next_power_of_2(channels), max(most, WARP_ELEMENTS // columns))
    tiles = 2 if two and ratio == 2 and channels % (2 * block) == 0 else 1  # of more samples, two spill on gfx942
    tile = {"COLUMNS": columns, "CHANNELS": block, "TILES": tiles, "EVEN": channels % block == 0}
    return tile | {"UNROLL": ratio in UNROLLED, "num_warps": max(columns * block // WARP_ELEMENTS, 1)}


def register_limit(levels: int, pooled_width: int, dtype: torch.dtype, tile: dict[str, Any]) -> dict[str, int]:
    """Triton's option for two tiles of a half type in several blocks of columns of one level, such as C4's 14 x 14.

    ptxas aims at seven programs a multiprocessor there, and spills two registers for it on sm_90.
    """
    several = levels == 1 and pooled_width > tile["COLUMNS"] and tile["TILES"] == 2
    return {"maxnreg": REGISTERS} if several and dtype.itemsize == 2 else {}
