"""The audit's variants of the kernels behind convolutions: their epilogue, and the end of the RPN's head."""

from collections.abc import Iterator, Sequence
from typing import Any

from fastmask.kernels import gpu_bias_act, gpu_linear_add_relu, gpu_predict_anchors
from fastmask.kernels.gpu_roi_geometry import MAX_LEVELS

RESIDUALS = {"alone": (False, False), "residual": (True, False), "coarser residual": (True, True)}


def variants(dtypes: Sequence[str]) -> Iterator[tuple[Any, ...]]:
    """See audit.Variant."""
    for dtype in dtypes:
        for name, (residual, nearest) in RESIDUALS.items():
            for layout, multiple, block in (("", True, 256), (", odd width", False, 64)):
                yield (
                    f"epilogue, {dtype}, {name}{layout}",
                    gpu_bias_act._bias_act_kernel,
                    {f"{pointer}_ptr": f"*{dtype}" for pointer in ("y", "bias", "residual")}
                    | {"scale_y": "fp32", "scale_x": "fp32"},
                    {"RESIDUAL": residual, "NEAREST": nearest, "RELU": not nearest}
                    | {"PIXELS": gpu_bias_act.ELEMENTS // block, "CHANNELS": block},
                    {"num_warps": gpu_bias_act.NUM_WARPS},
                    ("channels",) if multiple else (),
                    multiple and not residual,
                    ("LDG", "STG") if multiple else (),
                )
        for levels in (1, MAX_LEVELS):
            yield (
                f"RPN's predictions, {dtype}, {levels} level{'s' if levels > 1 else ''}",
                gpu_predict_anchors._predict_anchors_kernel,
                {f"hidden{level}_ptr": f"*{dtype}" for level in range(MAX_LEVELS)}
                | {f"{name}_ptr": f"*{dtype}" for name in ("hidden_bias", "weight", "bias", "logits", "deltas")},
                {"LEVELS": levels, "ANCHORS": 3, "OUTPUTS": 16, "WIDE": False}
                | {"PIXELS": gpu_predict_anchors.PIXELS, "CHANNELS": gpu_predict_anchors.CHANNELS},
                {"num_warps": gpu_predict_anchors.NUM_WARPS, "num_stages": gpu_predict_anchors.NUM_STAGES},
                ("channels",),
                levels > 1,
                (),
            )
        if dtype != "fp32":
            yield (
                f"product with residual, {dtype}",
                gpu_linear_add_relu._linear_add_relu_kernel,
                {f"{name}_ptr": f"*{dtype}" for name in ("x", "weight", "bias", "residual", "out")},
                {"WIDE": False, "PIXELS": gpu_linear_add_relu.PIXELS}
                | {"OUTPUTS": gpu_linear_add_relu.OUTPUTS, "DEPTH": gpu_linear_add_relu.DEPTH},
                {"num_warps": gpu_linear_add_relu.NUM_WARPS, "num_stages": gpu_linear_add_relu.NUM_STAGES},
                ("outputs", "depth"),
                dtype == "bf16",
                ("STG",),
            )
