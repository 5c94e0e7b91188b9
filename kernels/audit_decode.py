"""The variants that audit.py compiles of what stands between the large layers: candidates, and what NMS keeps."""

from collections.abc import Iterator, Sequence
from typing import Any

from fastmask.kernels.triton import (
    candidates as candidates_triton,
    decode as decode_triton,
    decode_levels as decode_levels_triton,
    take as take_triton,
)
from fastmask.kernels.triton.roi_geometry import MAX_LEVELS

NUMBERS = ("weight_x", "weight_y", "weight_w", "weight_h", "most_growth", "min_size", "min_score")
OUTPUTS = {"boxes_ptr": "*fp32", "scores_ptr": "*fp32", "valid_ptr": "*i8", "labels_ptr": "*i64"}
CLASSES = {"": (128, 32), ", LVIS": (2048, 32), ", few": (2, 1), ", all kept": (2048, 2048)}  # classes, slots; padded


def variants(dtypes: Sequence[str]) -> Iterator[tuple[Any, ...]]:
    """The fields of Variant."""
    numbers = dict.fromkeys(NUMBERS, "fp32")
    places = {f"{name}_ptr": "*i64" for name in ("sizes", "count", "index", "kept")}
    for dtype in dtypes:
        for counted in (False, True):
            yield (
                f"decode, {'classes' if counted else 'levels'}, {dtype}",
                decode_triton._decode_kernel,
                OUTPUTS | places | numbers | {"references_ptr": "*fp32", "deltas_ptr": f"*{dtype}"},
                {"ABOVE": counted, "HAS_COUNT": counted, "BLOCK": decode_triton.BLOCK},
                {"num_warps": decode_triton.NUM_WARPS, "enable_fp_fusion": False},
                (),
                True,
                (),
            )
        for levels in (1, MAX_LEVELS):
            yield (
                f"RPN's candidates, {dtype}, {levels} level{'s' if levels > 1 else ''}",
                decode_levels_triton._decode_levels_kernel,
                OUTPUTS
                | places
                | numbers
                | {f"deltas{level}_ptr": f"*{dtype}" for level in range(MAX_LEVELS)}
                | {"logits_ptr": f"*{dtype}", "anchors_ptr": "*fp32"},
                {"LEVELS": levels, "BLOCK": decode_levels_triton.BLOCK},
                {"num_warps": decode_levels_triton.NUM_WARPS, "enable_fp_fusion": False},
                (),
                levels > 1,
                (),
            )
        for name, (classes, slots) in CLASSES.items():
            yield (
                f"box head's candidates, {dtype}{name}",
                candidates_triton._select_kernel,
                OUTPUTS
                | places
                | numbers
                | {"logits_ptr": f"*{dtype}", "deltas_ptr": f"*{dtype}", "references_ptr": "*fp32"},
                {"CLASSES": classes, "SLOTS": slots},
                {"num_warps": candidates_triton.warps_of(classes), "enable_fp_fusion": False},
                (),
                name == "",
                (),
            )
    for labels in (False, True):
        yield (
            f"what NMS keeps{', labels' if labels else ''}",
            take_triton._take_kernel,
            {f"{name}_ptr": "*fp32" for name in ("boxes", "scores", "boxes_out", "scores_out", "rois")}
            | {"kept_ptr": "*i64", "labels_ptr": "*i64", "labels_out_ptr": "*i64"},
            {"HAS_LABELS": labels, "BLOCK": take_triton.BLOCK},
            {"num_warps": take_triton.NUM_WARPS},
            (),
            True,
            (),
        )
    yield (
        "boxes scaled",
        take_triton._scale_kernel,
        {"boxes_ptr": "*fp32", "boxes_out_ptr": "*fp32"}
        | {f"{name}_ptr": "*i64" for name in ("originals", "sizes", "sizes_out")},
        {"BLOCK": take_triton.BLOCK},
        {"num_warps": take_triton.NUM_WARPS},
        (),
        True,
        (),
    )
