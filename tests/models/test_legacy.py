"""Builders called as before torchvision 0.13, positional and with ``pretrained``: results and warnings as there."""

import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torchvision
from torch import nn

import fastmask
from fastmask.models import detection

RCNNS = ["maskrcnn_resnet50_fpn", "maskrcnn_resnet50_fpn_v2", "fasterrcnn_resnet50_fpn", "fasterrcnn_resnet50_fpn_v2"]
RESNETS = [name for name in fastmask.models.resnet.__all__ if name.startswith(("resne", "wide"))]
Call = tuple[tuple[Any, ...], dict[str, Any]]
CALLS: list[Call] = [
    ((None,), {}),
    ((True,), {}),
    ((False, False), {}),
    ((), {"weights": True}),
    ((), {"weights": False}),
    ((), {"weights": "legacy"}),
    ((), {"pretrained": True}),
    ((), {"pretrained": False, "progress": False}),
]
RCNN_CALLS: list[Call] = [
    ((None, True, 5), {}),
    ((None, False, 5, None), {}),
    ((None, False, 5, True, 2), {"min_size": 300}),
    ((), {"pretrained_backbone": True}),
    ((), {"pretrained_backbone": False}),
    ((), {"pretrained": False, "pretrained_backbone": False}),
    ((), {"pretrained": True, "pretrained_backbone": True}),
    ((), {"weights": None, "weights_backbone": True}),
]
BACKBONE_CALLS: list[Call] = [
    (("resnet18", None), {}),
    (("resnet50", True), {}),
    (("resnet18", False), {}),
    (("resnet18",), {"pretrained": True}),
    (("resnet50", "IMAGENET1K_V2"), {}),
    (("resnet34", None, nn.BatchNorm2d, 2), {"returned_layers": [2, 3]}),
    ((), {"backbone_name": "resnext50_32x4d", "pretrained": False}),
    ((), {"backbone_name": "wide_resnet50_2", "pretrained": True, "trainable_layers": 5}),
]


@pytest.fixture(autouse=True)
def loaded(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The weights that are loaded, by name; models are on meta, and nothing is downloaded."""
    names: list[str] = []
    models = {torchvision.models.get_model_weights(name).__name__: name for name in [*RESNETS, *RCNNS]}

    def get_state_dict(self: Any, *_: object, **__: object) -> dict[str, torch.Tensor]:
        names.append(repr(self))
        options = {"weights_backbone": None} if "rcnn" in models[type(self).__name__] else {}
        return torchvision.models.get_model(models[type(self).__name__], weights=None, **options).state_dict()

    for library in (fastmask, torchvision):
        monkeypatch.setattr(library.models.WeightsEnum, "get_state_dict", get_state_dict)
    with torch.device("meta"):
        yield names


def observe(builder: Any, call: Call, loaded: list[str]) -> dict[str, Any]:
    """What a call does: warnings, weights that it loads, state dict, trained parameters."""
    loaded.clear()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = builder(*call[0], **call[1])
    if "fastmask" in builder.__module__:
        assert {warning.filename for warning in caught} <= {__file__}  # the line that called
    return {
        "warnings": [(warning.category, str(warning.message)) for warning in caught],
        "loaded": list(loaded),
        "state": [(key, value.shape) for key, value in model.state_dict().items()],
        "trained": [name for name, parameter in model.named_parameters() if parameter.requires_grad],
    }


@pytest.mark.parametrize("name", [*RESNETS, *RCNNS])
def test_old_calls_are_torchvisions(name: str, loaded: list[str]) -> None:
    builders = [library.models.get_model_builder(name) for library in (fastmask, torchvision)]
    """All calls of one R-CNN of each version and of one ResNet; of the others, those that load their own weights."""
    few = [((True,), {}), ((), {"pretrained": True})]
    if name in RCNNS:
        few += [((), {"pretrained_backbone": True}), ((), {"weights": None, "weights_backbone": True})]
    every = {"resnet18": CALLS} | dict.fromkeys((RCNNS[0], RCNNS[3]), CALLS + RCNN_CALLS)
    for call in every.get(name, few):
        ours, theirs = (observe(builder, call, loaded) for builder in builders)
        assert theirs["warnings"]
        assert ours == theirs, call


@pytest.mark.parametrize("call", BACKBONE_CALLS, ids=str)
def test_old_calls_of_the_backbone_are_torchvisions(call: Call, loaded: list[str]) -> None:
    ours, theirs = (
        observe(library.models.detection.backbone_utils.resnet_fpn_backbone, call, loaded)
        for library in (fastmask, torchvision)
    )
    assert theirs["warnings"]
    assert ours == theirs


@pytest.mark.parametrize("name", [*RESNETS, *RCNNS])
def test_new_calls_do_not_warn(name: str, loaded: list[str]) -> None:
    member = fastmask.models.get_model_weights(name).DEFAULT
    for weights in (None, member.name):
        found = observe(fastmask.models.get_model_builder(name), ((), {"weights": weights, "progress": False}), loaded)
        wanted = [repr(member)] if weights else [w for w in found["loaded"] if w == "ResNet50_Weights.IMAGENET1K_V1"]
        assert (found["warnings"], found["loaded"]) == ([], wanted)


def test_the_slim_model_takes_them_too(tmp_path: Any) -> None:
    with torch.device("cpu"), pytest.warns(UserWarning, match="Using 'weights', 'progress', and 'num_classes' as posi"):
        assert detection.maskrcnn_slim_fpn(None, False, 3).roi_heads.box_predictor.cls_score.out_features == 3
    with pytest.raises(ValueError, match="weights must be SHAPES_V1, DEFAULT or a file"):
        detection.maskrcnn_slim_fpn(weights=tmp_path / "none.pth")


@pytest.mark.parametrize("library", [fastmask, torchvision])
@pytest.mark.parametrize("options", [{"weights": None, "pretrained": True}, {"pretrain": True}])
def test_names_that_exclude_each_other(library: Any, options: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'pretrain"):
        library.models.resnet18(**options)


@pytest.mark.filterwarnings("ignore:.*is deprecated since 0.13")
def test_mistaken_calls_say_so() -> None:
    with pytest.raises(TypeError, match="resnet18 must get at most 2 positional arguments, got 3"):
        fastmask.models.resnet18(None, True, 10)
    with pytest.raises(TypeError, match="weights must be given to resnet18 once, got None and 'DEFAULT'"):
        fastmask.models.resnet18(None, weights="DEFAULT")
    with pytest.raises(TypeError, match="weights must be ResNet18_Weights, its member's name or None, got float"):
        fastmask.models.resnet18(0.5)
