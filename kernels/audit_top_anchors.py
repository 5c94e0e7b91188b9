"""The variants of triton/top_anchors.py's kernels that audit.py compiles."""

from collections.abc import Iterator, Sequence
from typing import Any

from fastmask.kernels.audit_roi_align_backward import TYPES
from fastmask.kernels.triton import top_anchors as top_anchors_triton

LEVELS, ANCHORS = 5, 3
KEPT = (16, 1024, 2048, top_anchors_triton.MOST)  # few, an RPN's in use and in training, and the most


def variants(dtypes: Sequence[str]) -> Iterator[tuple[Any, ...]]:
    """The fields of Variant: dtypes, each digit of their keys, and how many are kept."""
    chunks = {name: getattr(top_anchors_triton, name) for name in ("CHUNK", "SUMMED", "BINS")}
    common: dict[str, Any] = {"LEVELS": LEVELS, "ANCHORS": ANCHORS}
    integers = dict.fromkeys(("counts_ptr", "earlier_ptr", "state_ptr", "next_ptr"), "*i32")
    integers |= dict.fromkeys(("kept_ptr", "places_ptr"), "*i64")
    options = {"num_warps": top_anchors_triton.NUM_WARPS}
    for dtype in dtypes:
        types = integers | {f"logits{level}_ptr": f"*{dtype}" for level in range(LEVELS)} | {"best_ptr": f"*{dtype}"}
        digits = top_anchors_triton.DIGITS[TYPES[dtype]]
        for digit in range(digits):
            name = f"top anchors, {dtype}, digit {digit}"
            constants = common | chunks | {"DIGIT": digit}
            yield name, top_anchors_triton._count_digits_kernel, types, constants, options, (), digit == 1, ()
        for kept in KEPT:
            name, first = f"top anchors, {dtype}, {kept}", kept == 1024
            constants = common | chunks | {"DIGITS": digits, "KEPT": kept}
            yield f"{name} kept", top_anchors_triton._keep_kernel, types, constants, options, (), first, ()
            sorting = {"num_warps": top_anchors_triton.SORT_WARPS}
            constants = common | {"KEPT": kept}
            yield f"{name} sorted", top_anchors_triton._sort_kept_kernel, types, constants, sorting, (), first, ()
