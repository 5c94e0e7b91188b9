"""Which ONNX operators TensorRT 10 and 11 parse, with which types and attributes: those that we need, and no others.

Sources: https://github.com/onnx/onnx-tensorrt, docs/operators.md of TensorRT 10.15 (operators, types, restrictions) and
onnxOpImporters.cpp of 10.15 (dd0a3a9f) and 10.6 (0137504e), for what must be constant and which attributes are read;
docs.nvidia.com/deeplearning/tensorrt/latest/_static/operators/TopK.html, NMS.html and Gather.html for the limits. The
parser's source of 11 was not at hand; its documentation adds that types are never converted, which ONNX's own need not
be. None of these settles, and no TensorRT was at hand to try, a ScatterND at as many indices as NMS happens to keep
(8.5 and 10.0 have refused operators after such a number elsewhere: NVIDIA/TensorRT issues 3527 and 3903).
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

TOP_K = 3840  # ITopKLayer: the largest K
NMS_BOXES = 5000  # INMSLayer: candidates of an image, of all classes together; of more, only the best are considered
OPSETS = (9, 24)
INPUTS = frozenset({"FLOAT", "FLOAT16", "INT64", "UINT8"})  # UINT8 must go straight into a Cast
FLOATS = frozenset({"FLOAT", "FLOAT16", "BFLOAT16"})
NUMBERS = FLOATS | {"INT32", "INT64"}
BOOL = frozenset({"BOOL"})
ALL = NUMBERS | BOOL


class Rule(NamedTuple):
    """What TensorRT parses of one operator."""

    types: frozenset[str]  # of data
    data: tuple[int, ...] | None = None  # inputs that are data: all, or these; others are indices, shapes, conditions
    constant: tuple[int, ...] = ()  # inputs that must be there, and constants
    attributes: Mapping[str, tuple[Any, ...] | None] = {}  # those that may be there; with these values, or any
    outputs: int = 1  # which must all have names


def one_of(*values: Any) -> tuple[Any, ...]:
    return values


ANY = None
AXIS = {"axis": ANY}
REDUCED = {"keepdims": ANY, "noop_with_empty_axes": ANY}
CONVOLVED = dict.fromkeys(("group", "pads", "strides", "dilations", "kernel_shape"), ANY)
CONVOLVED |= {"auto_pad": one_of("NOTSET")}

RULES: dict[str, Rule] = {
    **dict.fromkeys(("Abs", "Add", "Div", "Max", "Min", "Mul", "Sub"), Rule(NUMBERS)),
    **dict.fromkeys(("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"), Rule(NUMBERS)),
    **dict.fromkeys(("And", "Not"), Rule(BOOL)),
    **dict.fromkeys(("Ceil", "Exp", "Floor", "HardSwish", "Sigmoid", "Sqrt", "MatMul", "Clip"), Rule(FLOATS)),
    **dict.fromkeys(("ReduceMax", "ReduceMin", "ReduceProd", "ReduceSum"), Rule(NUMBERS, (0,), (1,), REDUCED)),
    **dict.fromkeys(("Squeeze", "Unsqueeze"), Rule(ALL, (0,), (1,))),
    "Cast": Rule(ALL | {"UINT8"}, attributes={"to": one_of("FLOAT", "FLOAT16", "BFLOAT16", "INT32", "INT64", "BOOL")}),
    "Concat": Rule(ALL, attributes=AXIS),
    "Conv": Rule(FLOATS, attributes=CONVOLVED),
    "ConvTranspose": Rule(FLOATS, attributes=CONVOLVED | {"output_padding": ANY}),
    "Einsum": Rule(FLOATS, attributes={"equation": ANY}),  # of two tensors, without broadcasting
    "Expand": Rule(ALL, (0,)),
    "Gather": Rule(ALL, (0,), attributes=AXIS),
    "GatherElements": Rule(ALL, (0,), attributes=AXIS),
    "GatherND": Rule(ALL, (0,), attributes={"batch_dims": one_of(0)}),
    "Gemm": Rule(FLOATS, attributes={"alpha": one_of(1.0), "beta": one_of(1.0), "transA": ANY, "transB": ANY}),
    "HardSigmoid": Rule(FLOATS, attributes={"alpha": ANY, "beta": ANY}),
    "MaxPool": Rule(
        FLOATS,
        attributes=dict.fromkeys(("ceil_mode", "kernel_shape", "pads", "strides"), ANY)
        | {"auto_pad": one_of("NOTSET"), "dilations": one_of(1), "storage_order": one_of(0)},
    ),
    "NonMaxSuppression": Rule(frozenset({"FLOAT", "FLOAT16"}), (0, 1), (2, 3, 4), {"center_point_box": one_of(0)}),
    "Pad": Rule(NUMBERS, (0, 2), (1, 2), {"mode": one_of("constant")}),
    "Range": Rule(NUMBERS, None, (0, 1, 2)),
    "ReduceMean": Rule(FLOATS, (0,), (1,), REDUCED),
    "Relu": Rule(FLOATS | {"INT64"}),
    "Reshape": Rule(ALL, (0,), (1,), attributes={"allowzero": ANY}),
    "Resize": Rule(
        FLOATS,
        (0,),
        attributes={
            "mode": one_of("nearest", "linear"),
            "coordinate_transformation_mode": one_of(
                "half_pixel", "pytorch_half_pixel", "tf_half_pixel_for_nn", "asymmetric", "align_corners"
            ),
            "nearest_mode": one_of("floor", "ceil", "round_prefer_floor", "round_prefer_ceil"),
            "keep_aspect_ratio_policy": one_of("stretch"),
            "antialias": one_of(0),
            "exclude_outside": one_of(0),
            "extrapolation_value": ANY,
            "cubic_coeff_a": ANY,
        },
    ),
    "RoiAlign": Rule(
        frozenset({"FLOAT", "FLOAT16"}),
        (0, 1),
        attributes={
            "mode": one_of("avg"),
            "coordinate_transformation_mode": one_of("half_pixel", "output_half_pixel"),
            **dict.fromkeys(("output_height", "output_width", "sampling_ratio", "spatial_scale"), ANY),
        },
    ),
    "ScatterND": Rule(NUMBERS, (0, 2)),  # 10.0 to 10.8 refuse the attribute "reduction" even where it says "none"
    "Shape": Rule(ALL, attributes={"start": ANY, "end": ANY}),
    "Slice": Rule(ALL, (0,), (1, 2, 3, 4)),
    "Softmax": Rule(FLOATS, attributes=AXIS),
    "Tile": Rule(ALL, (0,)),
    "TopK": Rule(NUMBERS, (0,), (1,), AXIS | {"largest": ANY, "sorted": one_of(1)}, outputs=2),
    "Transpose": Rule(ALL, attributes={"perm": ANY}),
    "Where": Rule(ALL, (1, 2)),
}
REQUIRED = {  # attributes whose default TensorRT reads otherwise than ONNX, or that its versions read differently
    "RoiAlign": ("sampling_ratio", "coordinate_transformation_mode", "mode"),
    "Resize": ("mode", "coordinate_transformation_mode"),
}
