"""Variants of RoIPool's kernels: dtypes and layouts."""

import itertools
from collections.abc import Iterator

from fastmask.kernels.triton import roi_pool
from fastmask.kernels.variant import DTYPES, Variant, pointers

SCALARS = {"spatial_scale": "fp32", "lowest": "fp32"}


def variants() -> Iterator[Variant]:
    """Yield the audit's variants."""
    layouts = {"NHWC": (True, 16), "NHWC of odd width": (True, 1), "NCHW": (False, 1)}
    for dtype, (layout, (last, multiple)) in itertools.product(DTYPES, layouts.items()):
        yield Variant(
            f"RoIPool forward, {layout}, {dtype}",
            roi_pool._forward_kernel,
            SCALARS | pointers(dtype, "map", "out") | pointers("fp32", "rois") | pointers("i64", "argmax"),
            {"POOLED_H": 7, "POOLED_W": 7, "CHANNELS_LAST": last, "MULTIPLE": multiple}
            | {"BINS": roi_pool.BINS, "CHANNELS": roi_pool.CHANNELS},
            {"num_warps": roi_pool.NUM_WARPS},
            multiples=("channels",),
            default=multiple == 16,
            wide=("LDG", "STG") if multiple == 16 else (),
        )
    for dtype in DTYPES:
        yield Variant(
            f"RoIPool backward, {dtype}",
            roi_pool._backward_kernel,
            SCALARS
            | pointers(dtype, "grad", "out")
            | pointers("fp32", "rois")
            | pointers("i64", "argmax", "order", "starts"),
            {"POOLED_H": 7, "POOLED_W": 7, "TILE": roi_pool.TILE}
            | {"CHANNELS": roi_pool.GRAD_CHANNELS, "ROIS": roi_pool.ROIS},
            {"num_warps": 4},
            multiples=("channels",),
            default=True,
            wide=("STG",),
        )
