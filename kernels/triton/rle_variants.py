"""Variants of RLE's kernels: dtypes and modes of the changes and positions; the text, counted and written."""

import itertools
from collections.abc import Iterator

from fastmask.kernels.triton import rle
from fastmask.kernels.triton.mask_geometry import BOX_TYPES, MODES
from fastmask.kernels.variant import DTYPES, Variant, pointers

TYPES = BOX_TYPES | pointers("i64", "sizes", "counts", "changes", "totals", "slots", "positions", "lengths", "offsets")


def variants() -> Iterator[Variant]:
    """Yield the audit's variants."""
    names = ("SLOTS", "BLOCK", "WORD", "UNROLLED", "SUMMED")
    for dtype, mode, positions in itertools.product(DTYPES, MODES, (False, True)):
        yield Variant(
            f"RLE's {'positions' if positions else 'changes'}, {dtype}, {mode}",
            rle._changes_kernel,
            TYPES | pointers(dtype, "masks"),
            {"POSITIONS": positions, **MODES[mode], **{name: getattr(rle, name) for name in names}},
            {"num_warps": rle.NUM_WARPS, "enable_fp_fusion": False},
            default=mode == "torchvision",
        )
    for write in (False, True):
        yield Variant(
            f"RLE's text, {'written' if write else 'counted'}",
            rle._text_kernel,
            TYPES | pointers("u8", "buffer"),
            {"WRITE": write, "SUMMED": rle.SUMMED, "BLOCK": rle.RUNS, "LONGEST": rle.LONGEST},
            {"num_warps": rle.TEXT_WARPS},
            default=True,
        )
