"""A model as an ONNX file of standard operators, without Loop, If or NonZero."""

import collections
import contextlib
import os
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from fastmask.export.module import INPUTS, Deployed, Shape
from fastmask.export.tensorrt.module import TensorRTModel

OPSETS = (18, 20)  # what was tested; 18 is the first with all that is needed
FORBIDDEN = ("Loop", "If", "NonZero", "Scan", "SequenceMap")  # what depends on what is in an image


class Written(NamedTuple):
    """What is in a file."""

    nodes: int
    bytes: int
    opset: int
    operators: dict[str, int]  # how many of each


def write_onnx(
    deployed: Deployed, path: Path, shape: Shape, *, opset: int = OPSETS[0], categories: Sequence[str] | None = None
) -> Written:
    """Export, check and write a model; a file that is there is replaced.

    Args:
        deployed: the model; a :class:`TensorRTModel` makes a graph that is held against what TensorRT parses.
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

    from fastmask.export.onnx_ops import FOR_TENSORRT, TRANSLATIONS
    from fastmask.export.tensorrt.graph import problems, rewrite

    for_tensorrt = isinstance(deployed, TensorRTModel)
    deployed.check(shape)
    if for_tensorrt and shape.dynamic:
        raise ValueError("for TensorRT a graph must be of one batch and size, got a dynamic one")
    if not OPSETS[0] <= opset <= OPSETS[1]:
        raise ValueError(f"opset must be in [{OPSETS[0]}, {OPSETS[1]}], got {opset}")
    with torch.no_grad(), quiet():
        program = torch.onnx.export(
            deployed,
            deployed.example(shape),
            input_names=list(INPUTS),
            output_names=list(deployed.outputs()),
            dynamic_shapes=deployed.dynamic_shapes() if shape.dynamic else None,
            opset_version=opset,
            custom_translation_table=FOR_TENSORRT if for_tensorrt else TRANSLATIONS,
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    del model.metadata_props[:]
    if for_tensorrt:
        rewrite(model)
    onnx.helper.set_model_props(model, deployed.told(shape, categories))
    try:
        onnx.checker.check_model(model, full_check=True)
    except Exception as error:  # of two kinds, in two modules
        raise ValueError(f"onnx refuses the graph: {str(error).strip().splitlines()[0]}") from error
    fixed = [one for value in model.graph.input for one in value.type.tensor_type.shape.dim[:1] if one.dim_value]
    if shape.dynamic and fixed:
        raise ValueError("the graph must be of any batch, got one that the exporter made constant")
    operators = count_operators(model)
    others = {node.domain for node in model.graph.node} - {"", "ai.onnx"}
    refused = operators.keys() & set(FORBIDDEN)
    if refused or others:
        raise ValueError(f"the graph must have standard operators without control flow, got {refused or others}")
    wrong = problems(model) if for_tensorrt else []
    if wrong:
        raise ValueError(f"TensorRT refuses the graph: {'; '.join(wrong[:3])}{' ...' if len(wrong) > 3 else ''}")
    onnx.save(model, path)
    return Written(sum(operators.values()), path.stat().st_size, opset, operators)


def count_operators(model: Any) -> dict[str, int]:
    """How many of each there are, the most first; inside of functions and branches as well."""
    found: collections.Counter[str] = collections.Counter()
    graphs = [model.graph, *model.functions]
    while graphs:
        for node in graphs.pop().node:
            found[node.op_type] += 1
            for attribute in node.attribute:
                graphs += [attribute.g] if attribute.HasField("g") else list(attribute.graphs)
    return dict(found.most_common())


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the exporter's warnings of its own deprecations, and without its prints."""
    with warnings.catch_warnings(), open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        warnings.simplefilter("ignore")
        yield
