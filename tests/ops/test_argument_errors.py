"""Where torchvision raises, we raise an error that is caught by what catches torchvision's, patched or imported."""

import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchvision
from torch import rand

import fastmask
from fastmask.checks import ArgumentError

MAP, BOX = rand(1, 2, 4, 4), torch.tensor([[0.0, 0, 3, 3]])
INTEGERS = (torch.ones(1, 2, 4, 4, dtype=torch.int64), torch.ones(1, 5, dtype=torch.int64))
CASES: dict[str, Callable[[Any], object]] = {  # ops of either library -> an error
    "nms: boxes [N]": lambda ops: ops.nms(rand(4), rand(3), 0.5),
    "nms: boxes [N, 5]": lambda ops: ops.nms(rand(3, 5), rand(3), 0.5),
    "nms: scores [N, 2]": lambda ops: ops.nms(rand(3, 4), rand(3, 2), 0.5),
    "nms: another number of scores": lambda ops: ops.nms(rand(3, 4), rand(4), 0.5),
    "nms: integers": lambda ops: ops.nms(torch.ones(3, 4, dtype=torch.int64), torch.ones(3, dtype=torch.int64), 0.5),
    "batched_nms: boxes [N, 5]": lambda ops: ops.batched_nms(rand(3, 5), rand(3), torch.zeros(3), 0.5),
    "batched_nms: another number of idxs": lambda ops: ops.batched_nms(rand(3, 4), rand(3), torch.zeros(2), 0.5),
    "roi_align: RoIs [K, 4]": lambda ops: ops.roi_align(MAP, BOX, 2),
    "roi_align: boxes [L, 5]": lambda ops: ops.roi_align(MAP, [rand(1, 5)], 2),
    "roi_align: no boxes": lambda ops: ops.roi_align(MAP, 3, 2),
    "roi_align: integers": lambda ops: ops.roi_align(*INTEGERS, 2),
    "roi_pool: RoIs [K, 4]": lambda ops: ops.roi_pool(MAP, BOX, 2),
    "roi_pool: boxes [L, 5]": lambda ops: ops.roi_pool(MAP, [rand(1, 5)], 2),
    "roi_pool: integers": lambda ops: ops.roi_pool(*INTEGERS, 2),
    "RoIAlign: RoIs [K, 4]": lambda ops: ops.RoIAlign(2, 1.0, 2)(MAP, BOX),
    "MultiScaleRoIAlign: boxes [L, 5]": lambda ops: ops.MultiScaleRoIAlign(["0"], 2, 2)(
        {"0": MAP}, [rand(1, 5)], [(8, 8)]
    ),
    "MultiScaleRoIAlign: no image": lambda ops: ops.MultiScaleRoIAlign(["0"], 2, 2)({"0": MAP}, [BOX], []),
    "FeaturePyramidNetwork: no channels": lambda ops: ops.FeaturePyramidNetwork([0, 2], 3),
    "box_iou: boxes [N, 5]": lambda ops: ops.box_iou(rand(3, 5), rand(3, 4)),
    "box_iou: format": lambda ops: ops.box_iou(rand(3, 4), rand(3, 4), fmt="x"),
    "box_area: format": lambda ops: ops.box_area(rand(3, 4), fmt="x"),
    "box_convert: format": lambda ops: ops.box_convert(rand(3, 4), "xwyh", "xyxy"),
    "box_convert: boxes [N, 5]": lambda ops: ops.box_convert(rand(3, 5), "xywh", "xyxy"),
    "clip_boxes_to_image: boxes [N, 3]": lambda ops: ops.clip_boxes_to_image(rand(3, 3), (3, 4)),
    "masks_to_boxes: masks [H, W]": lambda ops: ops.masks_to_boxes(rand(3, 3)),
    "generalized_box_iou_loss: numbers": lambda ops: ops.generalized_box_iou_loss(rand(3, 4), rand(2, 4)),
    "sigmoid_focal_loss: shapes": lambda ops: ops.sigmoid_focal_loss(rand(3), rand(4)),
}
WORDS: dict[str, Callable[[Any], object]] = {  # what torchvision's own tests look for in the message
    "Invalid (reduction) ": lambda lib: lib.ops.generalized_box_iou_loss(rand(3, 4), rand(3, 4), reduction="xyz"),
    "Invalid (reduction)": lambda lib: lib.ops.distance_box_iou_loss(rand(3, 4), rand(3, 4), reduction="xyz"),
    "Invalid": lambda lib: lib.ops.complete_box_iou_loss(rand(3, 4), rand(3, 4), reduction="xyz"),
    "Invalid ": lambda lib: lib.ops.sigmoid_focal_loss(rand(3), rand(3), reduction="xyz"),
    "Invalid alpha value": lambda lib: lib.ops.sigmoid_focal_loss(rand(3), rand(3), alpha=-2),
    "Trainable layers should be in the range [0,5], got 6": lambda lib: build_backbone(lib, trainable_layers=6),
    "Each returned layer should be in the range [1,4]. Got [0, 1]": lambda lib: build_backbone(
        lib, returned_layers=[0, 1]
    ),
    "Trainable backbone layers should be in the range [0,5], got 6": lambda lib: (
        lib.models.detection.backbone_utils._validate_trainable_layers(True, 6, 5, 3)
    ),
}
LABELS = torch.ones(2, dtype=torch.int64)
TARGETS: dict[str, Any] = {
    "none": None,
    "a number": [{"boxes": 0.0, "labels": LABELS[:1]}],
    "[4]": [{"boxes": rand(4), "labels": LABELS[:1]}],
    "[N, 5]": [{"boxes": rand(1, 5), "labels": LABELS[:1]}],
    "no width": [{"boxes": torch.tensor([[1.0, 3, 1, 4], [2, 4, 3, 4]]), "labels": LABELS}],
}


def build_backbone(library: Any, **options: Any) -> object:
    build = library.models.detection.backbone_utils.resnet_fpn_backbone
    return build(backbone_name="resnet18", weights=None, **options)


def catch(call: Callable[[Any], object], library: Any) -> Exception:
    with pytest.raises((ValueError, RuntimeError, AssertionError)) as caught:
        call(library)
    return caught.value


def bases(error: Exception) -> set[type]:
    return {kind for kind in (ValueError, RuntimeError, AssertionError) if isinstance(error, kind)}


@pytest.mark.parametrize("case", CASES)
def test_errors_are_torchvisions_kinds(case: str) -> None:
    ours, theirs = (catch(CASES[case], library.ops) for library in (fastmask, torchvision))
    assert type(ours) is ArgumentError
    assert bases(theirs) <= bases(ours)
    with fastmask.patch_torchvision(keys=("CPU",)):
        assert bases(theirs) <= bases(catch(CASES[case], torchvision.ops))


@pytest.mark.parametrize("words", WORDS)
def test_errors_have_torchvisions_words(words: str) -> None:
    for library in (fastmask, torchvision):
        error = catch(WORDS[words], library)
        assert words.partition(" (")[0].strip() in str(error)
        assert isinstance(error, ValueError)


@pytest.mark.parametrize("case", TARGETS)
def test_bad_targets_are_assertion_errors(case: str) -> None:
    """torchvision asserts what it checks of targets."""
    for library in (fastmask, torchvision):
        model = library.models.detection.fasterrcnn_resnet50_fpn(
            weights=None, weights_backbone=None, num_classes=2, min_size=32, max_size=64
        )
        with pytest.raises(AssertionError):
            model([rand(3, 32, 32)], TARGETS[case])


def test_an_argument_error_crosses_processes() -> None:
    error = pickle.loads(pickle.dumps(ArgumentError("boxes must be [N, 4], got (4,)")))
    assert type(error) is ArgumentError
    assert str(error) == "boxes must be [N, 4], got (4,)"
