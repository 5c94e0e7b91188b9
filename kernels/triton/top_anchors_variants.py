"""Variants of top_anchors.py's kernels: dtypes, each digit of their keys, and the number kept."""

from collections.abc import Iterator

from fastmask.kernels.triton import top_anchors
from fastmask.kernels.triton.roi_geometry import MAX_LEVELS
from fastmask.kernels.variant import DTYPES, Variant, pointers


def variants() -> Iterator[Variant]:
    """What the audit compiles."""
    chunks = {name: getattr(top_anchors, name) for name in ("CHUNK", "SUMMED", "BINS")}
    common = {"LEVELS": MAX_LEVELS, "ANCHORS": 3}
    integers = pointers("i32", "counts", "earlier", "state", "next") | pointers("i64", "kept", "places")
    options, sorting = {"num_warps": top_anchors.NUM_WARPS}, {"num_warps": top_anchors.SORT_WARPS}
    for dtype in DTYPES:
        types = integers | pointers(dtype, "best", *(f"logits{level}" for level in range(MAX_LEVELS)))
        digits = top_anchors.DIGITS[DTYPES[dtype]]
        for digit in range(digits):
            name, constants = f"top anchors, {dtype}, digit {digit}", common | chunks | {"DIGIT": digit}
            yield Variant(name, top_anchors._count_digits_kernel, types, constants, options, default=digit == 1)
        for kept in (16, 1024, 2048, top_anchors.MAX_KEPT):  # few, an RPN's in use and in training, and the most
            name, default, constants = f"top anchors, {dtype}, {kept}", kept == 1024, common | {"KEPT": kept}
            every = constants | chunks | {"DIGITS": digits}
            yield Variant(f"{name} kept", top_anchors._keep_kernel, types, every, options, default=default)
            yield Variant(f"{name} sorted", top_anchors._sort_kept_kernel, types, constants, sorting, default=default)
