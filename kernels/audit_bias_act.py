"""The audit's variants of the kernels behind convolutions: their epilogue, and the end of the RPN's head."""

from collections.abc import Iterator, Sequence
from typing import Any

from fastmask.kernels.triton import (
    bias_act as bias_act_triton,
    linear_add_relu as linear_add_relu_triton,
    predict_anchors as predict_anchors_triton,
)
from fastmask.kernels.triton.roi_geometry import MAX_LEVELS

RESIDUALS = {"alone": (False, False), "residual": (True, False), "coarser residual": (True, True)}


def variants(dtypes: Sequence[str]) -> Iterator[tuple[Any, ...]]:
    """See Variant."""
    for dtype in dtypes:
        for name, (residual, nearest) in RESIDUALS.items():
            for layout, multiple, block in (("", True, 256), (", odd width", False, 64)):
                yield (
                    f"epilogue, {dtype}, {name}{layout}",
                    bias_act_triton._bias_act_kernel,
                    {f"{pointer}_ptr": f"*{dtype}" for pointer in ("y", "bias", "residual")}
                    | {"scale_y": "fp32", "scale_x": "fp32"},
                    {"RESIDUAL": residual, "NEAREST": nearest, "RELU": not nearest}
                    | {"PIXELS": bias_act_triton.ELEMENTS // block, "CHANNELS": block},
                    {"num_warps": bias_act_triton.NUM_WARPS},
                    ("channels",) if multiple else (),
                    multiple and not residual,
                    ("LDG", "STG") if multiple else (),
                )
        for levels in (1, MAX_LEVELS):
            yield (
                f"RPN's predictions, {dtype}, {levels} level{'s' if levels > 1 else ''}",
                predict_anchors_triton._predict_anchors_kernel,
                {f"hidden{level}_ptr": f"*{dtype}" for level in range(MAX_LEVELS)}
                | {f"{name}_ptr": f"*{dtype}" for name in ("hidden_bias", "weight", "bias", "logits", "deltas")},
                {"LEVELS": levels, "ANCHORS": 3, "OUTPUTS": 16, "WIDE": False}
                | {"PIXELS": predict_anchors_triton.PIXELS, "CHANNELS": predict_anchors_triton.CHANNELS},
                {"num_warps": predict_anchors_triton.NUM_WARPS, "num_stages": predict_anchors_triton.NUM_STAGES},
                ("channels",),
                levels > 1,
                (),
            )
        if dtype != "fp32":
            yield (
                f"product with residual, {dtype}",
                linear_add_relu_triton._linear_add_relu_kernel,
                {f"{name}_ptr": f"*{dtype}" for name in ("x", "weight", "bias", "residual", "out")},
                {"WIDE": False, "PIXELS": linear_add_relu_triton.PIXELS}
                | {"OUTPUTS": linear_add_relu_triton.OUTPUTS, "DEPTH": linear_add_relu_triton.DEPTH},
                {"num_warps": linear_add_relu_triton.NUM_WARPS, "num_stages": linear_add_relu_triton.NUM_STAGES},
                ("outputs", "depth"),
                dtype == "bf16",
                ("STG",),
            )
