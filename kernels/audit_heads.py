"""The variants that audit.py compiles of what stands before and behind the network: preprocessing, the mask branch."""

from collections.abc import Iterator, Sequence
from typing import Any

from fastmask.kernels.audit_roi_align_backward import TYPES
from fastmask.kernels.triton import class_masks as class_masks_triton, preprocess as preprocess_triton

H100, GEFORCE, AMD = 232_448, 101_376, 65_536  # bytes of shared memory that a program may have
MASKS = {  # channels in and in the middle, shared memory
    "C=256": (256, 256, H100),
    "C=64": (64, 64, H100),
    "C=3 to 80": (3, 80, H100),
    "C=512": (512, 256, H100),
    "C=256, GeForce": (256, 256, GEFORCE),
    "C=256, little shared memory": (256, 256, AMD),
    "C=40 to 70": (40, 70, H100),
}


def variants(dtypes: Sequence[str]) -> Iterator[tuple[Any, ...]]:
    """The fields of Variant: dtypes, channels, sizes of maps, precisions of float32; types of the buffer."""
    for dtype in (*dtypes, "fp64"):
        yield (
            f"preprocessing, to {dtype}",
            preprocess_triton._preprocess_kernel,
            {"table_ptr": "*i64", "mean_ptr": "*fp32", "std_ptr": "*fp32", "out_ptr": f"*{dtype}"},
            {"ROUNDING": "fma", "WORDS": preprocess_triton.WORDS}
            | {"ROWS": preprocess_triton.ROWS, "COLUMNS": preprocess_triton.COLUMNS},
            {"num_warps": preprocess_triton.NUM_WARPS},
            (),
            dtype != "fp64",
            (),
        )
    values = ("hidden_ptr", "weight_ptr", "bias_ptr", "last_weight_ptr", "last_bias_ptr")
    for dtype in dtypes:
        types = dict.fromkeys(values, f"*{dtype}") | {"labels_ptr": "*i64", "count_ptr": "*i64"}
        precision = "tf32" if dtype == "fp32" else "half"
        for name, (channels, middle, shared) in MASKS.items():
            tile, amd = (
                {**place, "EVEN": middle % place["COLUMNS"] == 0}
                for place in (class_masks_triton.tile_of(TYPES[dtype], channels, size) for size in (shared, AMD))
            )
            options = ("num_warps", "num_stages")
            yield (
                f"mask branch, {dtype}, {precision}, {name}",
                class_masks_triton._class_masks_kernel,
                types | {"out_ptr": "*fp32"},
                {"PRECISION": precision, "QUARTERS": class_masks_triton.QUARTERS}
                | {key: value for key, value in tile.items() if key not in options},
                {key: tile[key] for key in options},
                tuple(key for key, size in (("channels", channels), ("middle", middle)) if size % 16 == 0),
                name == "C=256",
                (),
                amd | ({"PRECISION": "ieee"} if dtype == "fp32" else {}),
            )
