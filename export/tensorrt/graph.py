"""Rewriting an ONNX graph into TensorRT's forms and checking it against what TensorRT parses, without TensorRT."""

import math
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from fastmask.export.tensorrt.rules import (
    ALL,
    INPUTS,
    NMS_BOXES,
    NUMBERS,
    OPSETS,
    REQUIRED,
    RULES,
    TOP_K,
    Rule,
)


def rewrite(model: onnx.ModelProto) -> None:
    """Rewrite an ``onnx.ModelProto``, in place, into forms that all versions from 10 on parse.

    A Clip on one side becomes Max or Min, which take integers too; ScatterND loses a reduction of "none", which 10.0 to
    10.8 refuse; an unsorted TopK, which the table lacks, becomes a sorted one; bool constants, which no layer of
    TensorRT's holds, are cast from numbers.
    """
    graph = model.graph
    for node in graph.node:
        if node.op_type == "Clip":
            low, high = (*node.input[1:], "", "")[:2]
            if bool(low) != bool(high):
                node.op_type = "Max" if low else "Min"
                node.input[:] = [node.input[0], low or high]
        if node.op_type == "TopK":
            for attribute in node.attribute:
                if attribute.name == "sorted":
                    attribute.i = 1
        if node.op_type == "ScatterND":
            kept = [
                attribute for attribute in node.attribute if attribute.name != "reduction" or attribute.s != b"none"
            ]
            del node.attribute[:]
            node.attribute.extend(kept)
    bools = [value for value in graph.initializer if value.data_type == TensorProto.BOOL]
    casts = []
    for value in bools:
        number = f"{value.name}_as_number"
        graph.initializer.append(numpy_helper.from_array(numpy_helper.to_array(value).astype(np.float32), number))
        casts.append(helper.make_node("Cast", [number], [value.name], name=f"{value.name}_cast", to=TensorProto.BOOL))
        graph.initializer.remove(value)
    nodes = [*casts, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)


INDEXED = ("Gather", "GatherElements", "GatherND", "ScatterND")


class Graph:
    """A model's graph with the types, shapes and constants of its tensors."""

    def __init__(self, model: onnx.ModelProto) -> None:
        inferred = onnx.shape_inference.infer_shapes(model).graph
        self.nodes = list(inferred.node)
        self.types: dict[str, str] = {}
        self.shapes: dict[str, tuple[int | None, ...] | None] = {"": None}
        for value in (*inferred.input, *inferred.output, *inferred.value_info):
            kind = value.type.tensor_type
            self.types[value.name] = TensorProto.DataType.Name(kind.elem_type)
            sides = (dim.dim_value if dim.HasField("dim_value") else None for dim in kind.shape.dim)
            self.shapes[value.name] = tuple(sides) if kind.HasField("shape") else None
        self.constants: dict[str, NDArray[Any]] = {}
        for constant in inferred.initializer:
            self.constants[constant.name] = numpy_helper.to_array(constant)
            self.types[constant.name] = TensorProto.DataType.Name(constant.data_type)
            self.shapes[constant.name] = tuple(constant.dims)
            if any(constant.name == given.name for given in inferred.input):  # which whoever runs it may replace
                del self.constants[constant.name]
        self.makers = {name: node for node in self.nodes for name in node.output}
        self.inputs = {value.name for value in inferred.input}
        self.outputs = {value.name for value in inferred.output}

    def number(self, name: str) -> float | None:
        """Return the constant of that name if it is one number."""
        value = self.constants.get(name)
        return None if value is None or value.size != 1 else value.item()


def find_problems(model: onnx.ModelProto) -> list[str]:
    """Find what TensorRT 10 or 11 would not parse, or would read otherwise than ONNX; see rules.py."""
    problems = [
        f"domain {opset.domain or 'ai.onnx'!r} must be ONNX's, of opset {OPSETS[0]} to {OPSETS[1]}, got {opset.version}"
        for opset in model.opset_import
        if opset.domain not in ("", "ai.onnx") or not OPSETS[0] <= opset.version <= OPSETS[1]
    ]
    if model.functions:
        problems.append(f"functions must be inlined, got {', '.join(function.name for function in model.functions)}")
    unknown = sorted({node.op_type for node in model.graph.node if node.op_type not in RULES or node.domain})
    problems += [f"{name} is not in the table of what is parsed" for name in unknown]
    if problems:
        return problems
    graph = Graph(model)
    for name in sorted(graph.inputs):
        if graph.types[name] not in INPUTS:
            problems.append(f"input {name} must be one of {', '.join(sorted(INPUTS))}, got {graph.types[name]}")
        sides = graph.shapes[name]
        if sides is None or None in sides or len(sides) > 8 or math.prod(side or 0 for side in sides) >= 2**31:
            problems.append(f"input {name} must be of known sides, at most 8, and less than 2^31 elements, got {sides}")
    for names, what, kinds in ((graph.constants, "constant", NUMBERS), (graph.outputs, "output", ALL)):
        wrong = [name for name in sorted(names) if graph.types.get(name) not in kinds]
        problems += [f"{what} {name} must not be {graph.types.get(name)}" for name in wrong]
    for node in graph.nodes:
        problems += [f"{node.op_type} {node.name!r}: {what}" for what in _check_node(node, graph, RULES[node.op_type])]
    return problems


def _check_node(node: onnx.NodeProto, graph: Graph, rule: Rule) -> Iterator[str]:
    own = {attribute.name: _plain(helper.get_attribute_value(attribute)) for attribute in node.attribute}
    if node.op_type == "Cast":
        own["to"] = TensorProto.DataType.Name(own["to"])
    for name, value in own.items():
        if name not in rule.attributes:
            yield f"attribute {name} is not in the table"
            continue
        allowed = rule.attributes[name]
        values = value if isinstance(value, list) else [value]
        if allowed is not None and any(value not in allowed for value in values):
            yield f"{name} must be one of {', '.join(map(str, allowed))}, got {value}"
    yield from (f"{name} must be given" for name in REQUIRED.get(node.op_type, ()) if name not in own)
    for place, name in enumerate(node.input):
        kind = graph.types.get(name, "unknown") if name else None
        if kind == "UINT8" and not (node.op_type == "Cast" and name in graph.inputs):
            yield f"input {place} is UINT8, which only a Cast of a graph's input may take"
        elif kind == "UINT8" and own["to"] not in ("FLOAT", "FLOAT16"):
            yield f"UINT8 must be cast to FLOAT or FLOAT16, got {own['to']}"
        elif kind is not None and (rule.data is None or place in rule.data) and kind not in rule.types:
            yield f"input {place} must be one of {', '.join(sorted(rule.types))}, got {kind}"
    for place in rule.constant:
        if place >= len(node.input) or node.input[place] not in graph.constants:
            yield f"input {place} must be a constant"
    if node.op_type in INDEXED and bool((graph.constants.get(node.input[1], np.zeros(0)) < 0).any()):
        yield "indices must not be negative"
    if sum(map(bool, node.output)) != rule.outputs:
        yield f"outputs with a name must be {rule.outputs}, got {sum(map(bool, node.output))}"
    if node.op_type in LIMITS:
        yield from LIMITS[node.op_type](node, graph)


def _plain(value: Any) -> Any:
    return value.decode() if isinstance(value, bytes) else list(value) if not isinstance(value, (int, float)) else value


def _top_k(node: onnx.NodeProto, graph: Graph) -> Iterator[str]:
    number, sides = graph.number(node.input[1]), graph.shapes.get(node.input[0])
    axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), -1)
    if sides is None or sides[axis] is None:
        yield f"the axis must be of known size, got axis {axis} of {sides}"
        return
    limit = min(TOP_K, sides[axis] or 0)
    if number is None or not 1 <= number <= limit:
        yield f"K must be one number in [1, {limit}], got {number}"
    if (axis - len(sides) if axis >= 0 else axis) < -4:
        yield f"axis must be one of the last four, got {axis} of {sides}"


def _nms(node: onnx.NodeProto, graph: Graph) -> Iterator[str]:
    boxes, scores = (graph.shapes.get(name) for name in node.input[:2])
    if boxes is None or scores is None or len(boxes) != 3 or len(scores) != 3 or scores[1] is None or scores[2] is None:
        yield f"boxes and scores must have three known sides, got {boxes} and {scores}"
        return
    together = scores[2] if _one_class_each(node.input[1], graph) else scores[1] * scores[2]
    if together > NMS_BOXES:
        yield f"candidates of an image, over all classes, must be at most {NMS_BOXES}, got {together}"
    max_output, iou, min_score = (graph.number(name) for name in (*node.input[2:5], *[""] * (5 - len(node.input))))
    if max_output is None or max_output < 1:
        yield f"max_output_boxes_per_class must be one number from 1 on, got {max_output}"
    if iou is None or not 0 <= iou <= 1:
        yield f"iou_threshold must be one number in [0, 1], got {iou}"
    if min_score is None or not 0 <= min_score < 1:
        yield f"score_threshold must be one number in [0, 1), as no other is documented, got {min_score}"


def _one_class_each(scores: str, graph: Graph) -> bool:
    """Whether all but one class of each box are at a score below 0: ``Where(Equal(its class, classes), score, -1)``."""
    where = graph.makers.get(scores)
    if where is None or where.op_type != "Where":
        return False
    low = graph.constants.get(where.input[2])
    if low is None or not bool((low < 0).all()):
        return False
    chosen = graph.makers.get(where.input[0])
    if chosen is not None and chosen.op_type == "Cast":
        known = graph.constants.get(chosen.input[0])
        return known is not None and known.ndim == 3 and bool(((known != 0).sum(1) <= 1).all())
    if chosen is None or chosen.op_type != "Equal":
        return False
    for own, every in (chosen.input, reversed(chosen.input)):
        classes, shape = graph.constants.get(every), graph.shapes.get(own)
        if classes is not None and classes.ndim >= 2 and len(np.unique(classes)) == classes.shape[-2] == classes.size:
            return shape is not None and len(shape) == 3 and shape[1] == 1
    return False


def _roi_align(node: onnx.NodeProto, graph: Graph) -> Iterator[str]:
    own = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    if own.get("sampling_ratio", 1) < 1:
        yield f"sampling_ratio must be at least 1, got {own['sampling_ratio']}"
    if own.get("spatial_scale", 1.0) <= 0:
        yield f"spatial_scale must be above 0, got {own['spatial_scale']}"
    shape = graph.shapes.get(node.input[1])
    if shape is None or len(shape) != 2 or shape[1] != 4:
        yield f"rois must be [K, 4], got {shape}"
    if graph.types.get(node.input[0]) != graph.types.get(node.input[1]):
        yield "features and rois must be of one type"


def _reshape(node: onnx.NodeProto, graph: Graph) -> Iterator[str]:
    """A side of 0 may mean two things: there must be none."""
    if bool((graph.constants.get(node.input[1], np.ones(1)) == 0).any()):
        yield "no side may be 0"


def _gather_nd(node: onnx.NodeProto, graph: Graph) -> Iterator[str]:
    sides = graph.shapes.get(node.input[1])
    if not sides or sides[-1] is None:
        yield f"the last side of indices must be known, got {sides}"


def _resize(node: onnx.NodeProto, graph: Graph) -> Iterator[str]:
    sides = graph.shapes.get(node.input[0])
    given = [graph.constants.get(name) for name in node.input[2:] if name]
    alone = len(given) == 1 and given[0] is not None and len(given[0]) == len(sides or ())
    if not alone or any(node.input[1:2]):
        yield "no RoI and, constant and for each side of the input, scales or sizes must be given"


def _einsum(node: onnx.NodeProto, graph: Graph) -> Iterator[str]:
    """Before 10.12: two tensors, lower-case letters, each once in a tensor, of one size in both."""
    equation = (
        b"".join(attribute.s for attribute in node.attribute if attribute.name == "equation").decode().replace(" ", "")
    )
    terms = equation.partition("->")[0].split(",")
    if not re.fullmatch(r"[a-z]+,[a-z]+->[a-z]*", equation) or any(len(set(term)) != len(term) for term in terms):
        yield f"equation must be of two tensors, each letter once in each, got {equation}"
        return
    sides: dict[str, set[int | None]] = {}
    for term, name in zip(terms, node.input, strict=True):
        for letter, side in zip(term, graph.shapes.get(name) or [None] * len(term), strict=True):
            sides.setdefault(letter, set()).add(side)
    for letter, sizes in sides.items():
        if len(sizes) > 1 or None in sizes:
            yield f"{letter} must be of one known size in both tensors, got {sizes}"


LIMITS = {
    "TopK": _top_k,
    "NonMaxSuppression": _nms,
    "RoiAlign": _roi_align,
    "Reshape": _reshape,
    "GatherND": _gather_nd,
    "Resize": _resize,
    "Einsum": _einsum,
}
