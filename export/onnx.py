"""A model as an ONNX file of standard operators, without Loop, If or NonZero; translations of single ops."""

import collections
import contextlib
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from fastmask.export.module import INPUTS, ExportableModel, Shape
from fastmask.export.tensorrt.module import TensorRTExportableModel
from fastmask.kernels.launch import OPS

OPSETS = (18, 20)  # those that are tested; 18 is the first with every operator needed
FORBIDDEN = ("Loop", "If", "NonZero", "Scan", "SequenceMap")  # control flow and data-dependent shapes


class OnnxSummary(NamedTuple):
    """Contents of an ONNX file."""

    nodes: int
    bytes: int
    opset: int
    operators: dict[str, int]  # how many of each


def write_onnx(
    exportable: ExportableModel,
    path: Path,
    shape: Shape,
    *,
    opset: int = OPSETS[0],
    categories: Sequence[str] | None = None,
) -> OnnxSummary:
    """Export, check and write a model; a file that is there is replaced.

    Args:
        exportable: the model; the graph of a :class:`TensorRTExportableModel` is checked against what TensorRT parses.
        path: of the file.
        shape: of its inputs, or an example of it.
        opset: of ONNX's operators.
        categories: names of labels, for the file's metadata.

    Raises:
        ImportError: onnx or onnxscript is not installed.
        ValueError: the shape or the opset does not fit.
        OSError: the file cannot be written.
    """
    import onnx

    from fastmask.export import onnx_keypoints, onnx_ops, onnx_trim
    from fastmask.export.tensorrt.graph import find_problems, rewrite

    for_tensorrt = isinstance(exportable, TensorRTExportableModel)
    exportable.check(shape)
    if exportable.model.roi_heads.box_nms != "hard":
        got = exportable.model.roi_heads.box_nms
        raise ValueError(f"box_nms must be hard: ONNX has no soft-NMS, which a .pt2 package has, got {got}")
    if for_tensorrt and shape.dynamic:
        raise ValueError("for TensorRT a graph must be of one batch and size, got a dynamic one")
    if not OPSETS[0] <= opset <= OPSETS[1]:
        raise ValueError(f"opset must be in [{OPSETS[0]}, {OPSETS[1]}], got {opset}")
    table = onnx_trim.TRANSLATIONS if exportable.trim else onnx_ops.TRANSLATIONS
    table = (onnx_ops.FOR_TENSORRT if for_tensorrt else table) | onnx_keypoints.TRANSLATIONS
    with torch.no_grad(), silence():
        program = torch.onnx.export(
            exportable,
            exportable.make_example(shape),
            input_names=list(INPUTS),
            output_names=list(exportable.outputs()),
            dynamic_shapes=exportable.dynamic_shapes() if shape.dynamic else None,
            opset_version=opset,
            custom_translation_table=table,
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    del model.metadata_props[:]
    if for_tensorrt:
        rewrite(model)
    onnx.helper.set_model_props(model, exportable.format_metadata(shape, categories))
    try:
        onnx.checker.check_model(model, full_check=True)
    except Exception as error:  # of two kinds, in two modules
        raise ValueError(f"onnx refuses the graph: {str(error).strip().splitlines()[0]}") from error
    fixed = [dim for value in model.graph.input for dim in value.type.tensor_type.shape.dim[:1] if dim.dim_value]
    if shape.dynamic and fixed:
        raise ValueError("the graph must be of any batch, got one that the exporter made constant")
    operators = count_operators(model)
    others = {node.domain for node in model.graph.node} - {"", "ai.onnx"}
    refused = operators.keys() & set(FORBIDDEN)
    if refused or others:
        raise ValueError(f"the graph must have standard operators without control flow, got {refused or others}")
    problems = find_problems(model) if for_tensorrt else []
    if problems:
        more = " ..." if len(problems) > 3 else ""
        raise ValueError(f"TensorRT refuses the graph: {'; '.join(problems[:3])}{more}")
    onnx.save(model, path)
    return OnnxSummary(sum(operators.values()), path.stat().st_size, opset, operators)


def translations() -> dict[Any, Callable[..., Any]]:
    """Translations of fastmask's ops to ONNX's standard operators, for an export of your own module.

    Returns:
        ``custom_translation_table`` of ``torch.onnx.export``, opset 18 or later: functions by op. An op that cannot be
        exported has one that raises a ValueError with its name.

    Raises:
        ImportError: onnx or onnxscript is not installed.
    """
    from fastmask.export import onnx_keypoints
    from fastmask.export.onnx_public_ops import TRANSLATIONS, refuse

    ops = torch.ops.fastmask
    refused = {getattr(ops, name).default: refuse(name) for name in OPS if hasattr(ops, name)}
    return refused | TRANSLATIONS | onnx_keypoints.TRANSLATIONS


def count_operators(model: Any) -> dict[str, int]:
    """Count the operators of a model, the most frequent first, those of functions and branches included."""
    counts: collections.Counter[str] = collections.Counter()
    graphs = [model.graph, *model.functions]
    while graphs:
        for node in graphs.pop().node:
            counts[node.op_type] += 1
            for attribute in node.attribute:
                graphs += [attribute.g] if attribute.HasField("g") else list(attribute.graphs)
    return dict(counts.most_common())


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Silence the exporter's warnings of its own deprecations, and its prints."""
    with warnings.catch_warnings(), open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        warnings.simplefilter("ignore")
        yield
