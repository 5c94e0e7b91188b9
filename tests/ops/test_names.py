"""Errors name what is not provided, and refuse TorchScript; the ops compile and export."""

import importlib
import inspect

import pytest
import torch
from torch import nn

from fastmask import ops
from fastmask.checks import NOT_PROVIDED


@pytest.mark.parametrize("name", NOT_PROVIDED)
def test_what_is_missing_says_so(name: str) -> None:
    with pytest.raises(AttributeError, match=rf"fastmask.ops does not provide {name}: .* torchvision.ops"):
        getattr(ops, name)


def test_every_name_has_a_docstring() -> None:
    assert all(getattr(ops, name).__doc__ for name in ops.__all__)


def test_unknown_names() -> None:
    for module in (ops, importlib.import_module("fastmask.ops.misc")):
        with pytest.raises(AttributeError, match=f"module '{module.__name__}' has no attribute 'nmss'"):
            _ = module.nmss
    with pytest.raises(AttributeError, match="does not provide MLP"):
        _ = importlib.import_module("fastmask.ops.misc").MLP


FUNCTIONS = [name for name in ops.__all__ if inspect.isfunction(getattr(ops, name))]
MODULES = [
    ops.RoIAlign(2, 1.0, 2),
    ops.RoIPool(2, 1.0),
    ops.MultiScaleRoIAlign(["0"], 2, 2),
    ops.MultiScaleRoIPool(["0"], 2),
    ops.SqueezeExcitation(3, 2),
    ops.FrozenBatchNorm2d(3),
    ops.Conv2dNormActivation(3, 6),
    ops.FeaturePyramidNetwork([3], 6, ops.LastLevelMaxPool()),
    ops.LastLevelP6P7(3, 3),
    nn.Sequential(ops.FrozenBatchNorm2d(3)),
]


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:FutureWarning")
@pytest.mark.parametrize("target", [*FUNCTIONS, *MODULES], ids=lambda t: t if isinstance(t, str) else type(t).__name__)
def test_scripting_is_refused(target: str | nn.Module) -> None:
    with pytest.raises(RuntimeError, match=r"does not support torch\.jit\.script.*torch\.export"):
        torch.jit.script(getattr(ops, target) if isinstance(target, str) else target)


def test_every_module_class_is_tested_above() -> None:
    classes = {name for name in ops.__all__ if inspect.isclass(getattr(ops, name))}
    tested = {type(child).__name__ for module in MODULES for child in module.modules()}
    assert classes <= tested


def calls_nms(boxes: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    return ops.nms(boxes, scores, 0.5)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:FutureWarning")
def test_scripting_a_function_that_calls_ours_is_refused() -> None:
    with pytest.raises(RuntimeError, match=r"does not support torch\.jit\.script"):
        torch.jit.script(calls_nms)


def test_the_ops_compile_and_export_without_breaks() -> None:
    """The padded forms are static: one graph, no host sync, the same results."""

    def program(features: torch.Tensor, boxes: torch.Tensor, scores: torch.Tensor) -> tuple[torch.Tensor, ...]:
        indices, count = ops.nms_padded(boxes[None], scores[None], iou_threshold=0.5, max_output=8)
        kept = boxes[indices[0].clamp(min=0)]
        rois = torch.cat([torch.zeros_like(kept[:, :1]), kept], 1)
        pooled = ops.multilevel_roi_align([features, features[:, :, ::2, ::2]], rois, 4, [0.5, 0.25], 2)
        pasted = ops.paste_masks(pooled[:, 0].sigmoid(), kept, (30, 40))
        return indices, count, pooled, pasted, ops.roi_pool(features, rois, 2)

    boxes = torch.rand(20, 4) * 20 + torch.tensor([0.0, 0, 20, 20])
    arguments = (torch.randn(1, 3, 20, 30), boxes, torch.rand(20))
    expected = program(*arguments)
    compiled = torch.compile(program, fullgraph=True, backend="aot_eager")(*arguments)

    class Program(nn.Module):
        def forward(self, *arguments: torch.Tensor) -> tuple[torch.Tensor, ...]:
            return program(*arguments)

    exported = torch.export.export(Program(), arguments).module()(*arguments)
    for results in (compiled, exported):
        for actual, wanted in zip(results, expected, strict=True):
            torch.testing.assert_close(actual, wanted)


@pytest.mark.parametrize("num", [2, 7, 20], ids="N{}".format)
def test_nms_exports(num: int) -> None:
    """The number of kept boxes is only known at run time: the exported program serves any."""

    class Keep(nn.Module):
        def forward(self, boxes: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            return boxes[ops.batched_nms(boxes, scores, scores > 0.5, 0.5)]

    boxes = torch.rand(20, 4) * 20 + torch.tensor([0.0, 0, 20, 20])
    scores = torch.rand(20)
    dynamic = {0: torch.export.Dim.AUTO}
    program = torch.export.export(Keep(), (boxes, scores), dynamic_shapes=(dynamic, dynamic)).module()
    assert torch.equal(program(boxes[:num], scores[:num]), Keep()(boxes[:num], scores[:num]))
    assert Keep()(boxes[:0], scores[:0]).shape == (0, 4)
