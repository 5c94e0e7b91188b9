"""Names, signatures and submodules are torchvision's; errors name what is not provided, and refuse TorchScript."""

import importlib
import inspect

import pytest
import torch
import torchvision
import torchvision.ops as tv
from torch import nn
from torchvision.models.detection.roi_heads import paste_masks_in_image

from fastmask import ops
from fastmask.checks import NOT_PROVIDED

NEWEST = tuple(int(part) for part in torchvision.__version__.split(".")[:2]) >= (0, 29)
OURS_ALONE = {"nms_padded", "multilevel_roi_align", "paste_masks", "paste_masks_in_image", "encode_masks"}
FROM_FPN_FILE = {"LastLevelMaxPool", "LastLevelP6P7"}
SHARED = sorted(set(ops.__all__) - OURS_ALONE - FROM_FPN_FILE)
SUBMODULES = {
    "boxes": [
        "nms",
        "batched_nms",
        "box_area",
        "box_convert",
        "box_iou",
        "clip_boxes_to_image",
        "complete_box_iou",
        "distance_box_iou",
        "generalized_box_iou",
        "masks_to_boxes",
        "remove_small_boxes",
    ],
    "poolers": ["MultiScaleRoIAlign"],
    "misc": ["Conv2dNormActivation", "FrozenBatchNorm2d"],
    "feature_pyramid_network": ["ExtraFPNBlock", "FeaturePyramidNetwork", "LastLevelMaxPool", "LastLevelP6P7"],
    "roi_align": ["roi_align", "RoIAlign"],
    "roi_pool": ["roi_pool", "RoIPool"],
    "focal_loss": ["sigmoid_focal_loss"],
    "giou_loss": ["generalized_box_iou_loss"],
    "diou_loss": ["distance_box_iou_loss"],
    "ciou_loss": ["complete_box_iou_loss"],
}


def parameters(function: object) -> list[tuple[str, object, object]]:
    return [(p.name, p.default, p.kind) for p in inspect.signature(function).parameters.values()]


@pytest.mark.parametrize("name", SHARED)
def test_signatures(name: str) -> None:
    ours, theirs = getattr(ops, name), getattr(tv, name)
    assert parameters(ours) == parameters(theirs)
    assert ours.__doc__


def test_signature_of_paste() -> None:
    assert parameters(ops.paste_masks_in_image) == parameters(paste_masks_in_image)


@pytest.mark.parametrize("submodule", SUBMODULES)
def test_imports_translate_one_to_one(submodule: str) -> None:
    ours, theirs = (importlib.import_module(f"{package}.ops.{submodule}") for package in ("fastmask", "torchvision"))
    for name in SUBMODULES[submodule]:
        assert parameters(getattr(ours, name)) == parameters(getattr(theirs, name))
        if hasattr(ops, name):
            assert getattr(ops, name) is getattr(ours, name)


def test_everything_of_torchvision_is_provided_or_named_as_missing() -> None:
    ours = set(SHARED) | set(NOT_PROVIDED)
    assert set(tv.__all__) <= ours
    assert not NEWEST or set(tv.__all__) == ours


@pytest.mark.parametrize("name", NOT_PROVIDED)
def test_what_is_missing_says_so(name: str) -> None:
    with pytest.raises(AttributeError, match=rf"fastmask.ops does not provide {name}: .* torchvision.ops"):
        getattr(ops, name)


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
