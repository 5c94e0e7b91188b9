"""The variants of gpu_top_anchors.py's kernels that audit.py compiles."""

from collections.abc import Iterator, Sequence
from typing import Any

from fastmask.kernels import gpu_top_anchors
from fastmask.kernels.audit_roi_align_backward import TYPES

LEVELS, ANCHORS = 5, 3
KEPT = (16, 1024, 2048, gpu_top_anchors.MOST)  # few, an RPN's in use and in training, and the most


def variants(dtypes: Sequence[str]) -> Iterator[tuple[Any, ...]]:
    """The fields of audit.Variant: dtypes, each digit of their keys, and how many are kept."""
    chunks = {name: getattr(gpu_top_anchors, name) for name in ("CHUNK", "SUMMED", "BINS")}
    common: dict[str, Any] = {"LEVELS": LEVELS, "ANCHORS": ANCHORS}
    integers = dict.fromkeys(("counts_ptr", "earlier_ptr", "state_ptr", "next_ptr"), "*i32")
    integers |= dict.fromkeys(("kept_ptr", "places_ptr"), "*i64")
    options = {"num_warps": gpu_top_anchors.NUM_WARPS}
    for dtype in dtypes:
        types = integers | {f"logits{level}_ptr": f"*{dtype}" for level in range(LEVELS)} | {"best_ptr": f"*{dtype}"}
        digits = gpu_top_anchors.DIGITS[TYPES[dtype]]
        for digit in range(digits):
            name = f"top anchors, {dtype}, digit {digit}"
            constants = common | chunks | {"DIGIT": digit}
            yield name, gpu_top_anchors._count_digits_kernel, types, constants, options, (), digit == 1, ()
        for kept in KEPT:
            name, first = f"top anchors, {dtype}, {kept}", kept == 1024
            constants = common | chunks | {"DIGITS": digits, "KEPT": kept}
            yield f"{name} kept", gpu_top_anchors._keep_kernel, types, constants, options, (), first, ()
            sorting = {"num_warps": gpu_top_anchors.SORT_WARPS}
            constants = common | {"KEPT": kept}
            yield f"{name} sorted", gpu_top_anchors._sort_kept_kernel, types, constants, sorting, (), first, ()
