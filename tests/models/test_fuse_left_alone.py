"""Layers that fusing leaves as they are: unknown ones, subclasses, those with hooks, shared ones, a user's own."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers.fusing import FORMS, NEW, close, kinds, unsettle
from helpers.slim import slim_model
from torch import Tensor, nn

import fastmask
from fastmask.models import resnet
from fastmask.models.detection import mask_rcnn, rpn
from fastmask.models.detection.faster_rcnn import FastRCNNPredictor
from fastmask.models.prepare import prepare_for_inference
from fastmask.models.resnet import Bottleneck
from fastmask.ops.feature_pyramid_network import FeaturePyramidNetwork
from fastmask.ops.misc import Conv2dNormActivation


def bottleneck(**options: Any) -> Bottleneck:
    return Bottleneck(32, 8, norm_layer=nn.BatchNorm2d, **options).eval()


def put_in_body(module: nn.Module) -> nn.Module:
    """A slim model whose mask head begins with a module of 32 channels."""
    model = slim_model(fastmask).eval()
    model.roi_heads.mask_head = nn.Sequential(module, *model.roi_heads.mask_head)
    return model


class OwnConv(nn.Conv2d):
    pass


class OwnBlock(Bottleneck):
    pass


def with_hook(module: nn.Module, name: str) -> nn.Module:
    module.get_submodule(name).register_forward_hook(lambda *_: None)
    return module


def set_on(module: nn.Module, name: str, new: nn.Module) -> nn.Module:
    module.set_submodule(name, new)
    return module


def sequence(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(*layers)


def share_conv() -> nn.Module:
    conv = nn.Conv2d(32, 32, 1)
    return nn.Sequential(conv, nn.ReLU(), conv)


LEFT_ALONE: dict[str, Callable[[], nn.Module]] = {
    "block with a hook": lambda: with_hook(bottleneck(), "conv2"),
    "block with another activation": lambda: set_on(bottleneck(), "relu", nn.SiLU()),
    "block of a subclass": lambda: OwnBlock(32, 8).eval(),
    "block with another norm": lambda: Bottleneck(32, 8, norm_layer=lambda c: nn.GroupNorm(2, c)).eval(),
    "block with a padding mode": lambda: set_on(
        bottleneck(), "conv2", nn.Conv2d(8, 8, 3, 1, 1, padding_mode="reflect")
    ),
    "convolution of a subclass": lambda: sequence(OwnConv(32, 32, 1), nn.ReLU()),
    "convolution with a padding mode": lambda: sequence(nn.Conv2d(32, 32, 3, 1, 1, padding_mode="circular"), nn.ReLU()),
    "convolution with a hook": lambda: with_hook(sequence(nn.Conv2d(32, 32, 1), nn.ReLU()), "0"),
    "convolution without bias": lambda: sequence(nn.Conv2d(32, 32, 1, bias=False), nn.ReLU()),
    "convolution used twice": share_conv,
    "linear layer with a hook": lambda: with_hook(sequence(nn.Linear(14, 14), nn.ReLU()), "0"),
    "linear layer without bias": lambda: sequence(nn.Linear(14, 14, bias=False), nn.ReLU()),
}


@pytest.mark.parametrize("name", LEFT_ALONE)
def test_left_alone(name: str) -> None:
    model = put_in_body(LEFT_ALONE[name]()).double()
    ready, plain = prepare_for_inference(model, torch.float64, "kernel"), prepare_for_inference(model, torch.float64)
    assert not kinds(ready.roi_heads.mask_head[0]) & NEW
    assert kinds(ready.roi_heads.mask_head[1]) & NEW
    x = torch.randn(3, 32, 14, 14, dtype=torch.float64)
    with torch.no_grad():
        close(ready.roi_heads.mask_head(x), plain.roi_heads.mask_head(x))


PARTLY: dict[str, tuple[Callable[[], nn.Module], int]] = {  # and how many ReLUs are left
    "another activation": (lambda: sequence(nn.Conv2d(32, 32, 3, 1, 1), nn.GELU(), nn.Conv2d(32, 32, 1)), 0),
    "a ReLU with a hook": (lambda: with_hook(sequence(nn.Conv2d(32, 32, 3, 1, 1), nn.ReLU()), "1"), 1),
    "an identity with a hook": (lambda: with_hook(sequence(nn.Conv2d(32, 32, 1), nn.Identity(), nn.ReLU()), "1"), 1),
    "groups and dilation": (lambda: sequence(nn.Conv2d(32, 32, 3, 1, 2, 2, groups=4), nn.ReLU()), 0),
    "padding by name": (lambda: sequence(nn.Conv2d(32, 32, 3, padding="same"), nn.ReLU()), 0),
    "stride": (lambda: sequence(nn.Conv2d(32, 32, 1, 2), nn.ReLU()), 0),
    "1x1 with padding": (lambda: sequence(nn.Conv2d(32, 32, 1, padding=1), nn.ReLU()), 0),
    "pooling": (lambda: sequence(nn.Conv2d(32, 32, 3), nn.ReLU(), nn.MaxPool2d(3, 2, 1, ceil_mode=True)), 0),
    "pooling with a hook": (
        lambda: with_hook(sequence(nn.Conv2d(32, 32, 3), nn.ReLU(), nn.MaxPool2d(2)), "2"),
        0,
    ),
    "odd channels": (lambda: sequence(nn.Conv2d(32, 33, 3), nn.ReLU(), nn.Conv2d(33, 32, 1), nn.ReLU()), 0),
    "linear": (lambda: sequence(nn.Linear(14, 14), nn.ReLU()), 0),
    "downsample of its own": (lambda: bottleneck(downsample=nn.Sequential(nn.Conv2d(32, 32, 1), nn.Tanh())), 0),
    "downsample with a bias": (
        lambda: bottleneck(stride=2, downsample=nn.Sequential(nn.Conv2d(32, 32, 1, 2), nn.BatchNorm2d(32))),
        0,
    ),
}


@FORMS
@pytest.mark.parametrize("name", PARTLY)
def test_what_is_fused_in_part(name: str, form: Any) -> None:
    build, relus = PARTLY[name]
    model = put_in_body(build()).eval().double()
    unsettle(model)
    ready, plain = prepare_for_inference(model, torch.float64, form), prepare_for_inference(model, torch.float64)
    first = ready.roi_heads.mask_head[0]
    assert kinds(first) & NEW
    assert sum(type(module) is nn.ReLU for module in first.modules()) == relus
    x = torch.randn(3, 32, 14, 14, dtype=torch.float64)
    with torch.no_grad():
        close(ready.roi_heads.mask_head(x), plain.roi_heads.mask_head(x))


@pytest.mark.parametrize("taken", ["conv1", "bn1", "relu", "maxpool"])
def test_what_is_taken_out_of_a_body(taken: str) -> None:
    """The output of each child that is taken out stays the same."""
    torch.manual_seed(0)
    body = resnet.resnet18(weights=None).eval().double()
    unsettle(body)
    model = slim_model(fastmask).eval().double()
    model.backbone.body = fastmask.models._utils.IntermediateLayerGetter(body, {taken: "a", "layer1": "b"})
    x = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    ready, plain = (prepare_for_inference(model, torch.float64, form).backbone.body for form in ("kernel", "off"))
    with torch.no_grad():
        for ours, theirs in zip(ready(x).values(), plain(x).values(), strict=True):
            close(ours, theirs)


def test_users_sequences_are_left_alone() -> None:
    """A module that calls the layers of a sequence one by one may read what is between them."""

    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(nn.Conv2d(32, 32, 3, 1, 1), nn.ReLU(), nn.MaxPool2d(1))

        def forward(self, x: Tensor) -> Tensor:
            between = self.layers[1](self.layers[0](x))
            result: Tensor = self.layers[2](between) + between
            return result

    assert not kinds(prepare_for_inference(put_in_body(Own()), torch.float32, "kernel").roi_heads.mask_head[0]) & NEW


def test_parts_of_a_users_are_left_alone() -> None:
    class OwnPyramid(FeaturePyramidNetwork):
        def get_result_from_inner_blocks(self, x: Tensor, idx: int) -> Tensor:
            return 2 * super().get_result_from_inner_blocks(x, idx)

    class OwnHead(rpn.RPNHead):
        pass

    model = slim_model(fastmask).eval()
    model.backbone.fpn.__class__, model.rpn.head.__class__ = OwnPyramid, OwnHead
    ready = prepare_for_inference(model, torch.float32, "kernel")
    assert type(ready.backbone.fpn) is OwnPyramid
    assert type(ready.rpn.head) is OwnHead
    assert type(ready.roi_heads.mask_predictor) is mask_rcnn.MaskRCNNPredictor
    assert {nn.Conv2d, Conv2dNormActivation} & kinds(ready.rpn.head)


class OwnPredictor(FastRCNNPredictor):
    pass


class OwnLinear(nn.Linear):
    pass


def share_linear() -> nn.Module:
    predictor = FastRCNNPredictor(64, 2)
    predictor.bbox_pred = predictor.cls_score
    return predictor


PREDICTORS: dict[str, Callable[[], nn.Module]] = {
    "of a subclass": lambda: OwnPredictor(64, 3),
    "with a hook": lambda: with_hook(FastRCNNPredictor(64, 3), "bbox_pred"),
    "with another layer": lambda: set_on(FastRCNNPredictor(64, 3), "cls_score", OwnLinear(64, 3)),
    "without bias": lambda: set_on(FastRCNNPredictor(64, 3), "bbox_pred", nn.Linear(64, 12, bias=False)),
    "with one layer twice": share_linear,
    "of unequal inputs": lambda: set_on(FastRCNNPredictor(64, 3), "bbox_pred", nn.Linear(32, 12)),
}


@pytest.mark.parametrize("name", PREDICTORS)
def test_box_predictors_that_are_left_alone(name: str) -> None:
    model = slim_model(fastmask).eval()
    predictor = model.roi_heads.box_predictor = PREDICTORS[name]()
    assert type(prepare_for_inference(model, torch.float32, "kernel").roi_heads.box_predictor) is type(predictor)
