"""torch.fx and torchvision's create_feature_extractor on our modules: the graph is torchvision's."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

import fastmask
from fastmask.models.detection import backbone_utils, faster_rcnn

NAMES = [name for name in fastmask.models.resnet.__all__ if name.startswith(("resne", "wide"))]
SMALL = ("resnet18", "resnet34", "resnet50", "resnext50_32x4d")  # of both kinds of blocks, with groups and without
RESNETS = [name if name in SMALL else pytest.param(name, marks=pytest.mark.slow) for name in NAMES]


def randomize_norms(model: nn.Module) -> None:
    """Statistics of norms that folding has to take into account."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d | fastmask.ops.FrozenBatchNorm2d):
            module.running_mean.uniform_(-0.1, 0.1)
            module.running_var.uniform_(0.8, 1.25)


@pytest.mark.parametrize("name", RESNETS)
def test_resnets_trace(name: str, seed: int) -> None:
    model, theirs = (getattr(library.models, name)(weights=None) for library in (fastmask, torchvision))
    assert get_graph_node_names(model) == get_graph_node_names(theirs)
    randomize_norms(model)
    x = torch.rand(2, 3, 32, 32)
    for training in (True, False):
        model.train(training)
        traced = torch.fx.symbolic_trace(model)
        assert list(traced.state_dict()) == list(model.state_dict())
        ours, wanted = traced(x), model(x)
        if training:  # the same operations; in eval mode norms are folded where nothing is traced
            assert torch.equal(ours, wanted)
        torch.testing.assert_close(ours, wanted, rtol=1e-3, atol=1e-4 * float(wanted.detach().abs().max()))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("norm_layer", [nn.BatchNorm2d, fastmask.ops.FrozenBatchNorm2d])
def test_features_are_the_models(training: bool, norm_layer: Callable[..., nn.Module], seed: int) -> None:
    model = fastmask.models.resnet18(weights=None, norm_layer=norm_layer).double().train(training)
    randomize_norms(model)
    layers = {f"layer{i}": str(i - 1) for i in range(1, 5)}
    extractor = create_feature_extractor(model, {**layers, "layer4.1.bn2": "norm"})
    x = torch.rand(2, 3, 64, 64, dtype=torch.float64)
    features = extractor(x)
    wanted = fastmask.models._utils.IntermediateLayerGetter(model, layers)(x)
    assert features.pop("norm").shape == features["3"].shape
    torch.testing.assert_close(dict(features), dict(wanted), rtol=1e-10, atol=1e-10)
    gradients = [
        torch.autograd.grad(sum(value.sum() for value in maps.values()), list(model.layer1.parameters()))
        for maps in (features, wanted)
    ]
    torch.testing.assert_close(*gradients, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("autocast", [False, True])
def test_backbones_with_a_pyramid_trace(autocast: bool, seed: int) -> None:
    backbone = backbone_utils.resnet_fpn_backbone(backbone_name="resnet18", weights=None).eval()
    randomize_norms(backbone)
    x = torch.rand(1, 3, 64, 96)
    traced = torch.fx.symbolic_trace(backbone)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        ours, wanted = traced(x), backbone(x)
    for key, value in wanted.items():
        assert ours[key].dtype == value.dtype
        largest = float(value.abs().max())
        torch.testing.assert_close(ours[key], value, rtol=0, atol=(0.1 if autocast else 1e-4) * largest)


class Call(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[..., Tensor], *arguments: Any) -> None:
        super().__init__()
        self.function = function
        self.arguments = arguments

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, *self.arguments)


@pytest.mark.parametrize(
    ("module", "x"),
    [
        (faster_rcnn.TwoMLPHead(8, 4), torch.rand(3, 2, 2, 2, requires_grad=True)),
        (faster_rcnn.FastRCNNConvFCHead((2, 2, 2), [3], [4]), torch.rand(3, 2, 2, 2)),
        (fastmask.ops.FrozenBatchNorm2d(2), torch.rand(3, 2, 2, 2)),
        (Call(fastmask.ops.remove_small_boxes, 0.5), torch.rand(9, 4)),
        (Call(fastmask.ops.clip_boxes_to_image, (1, 2)), 3 * torch.rand(9, 4)),
        (Call(fastmask.ops.box_convert, "xywh", "cxcywh"), torch.rand(9, 4)),
        (Call(fastmask.ops.sigmoid_focal_loss, torch.ones(9)), torch.rand(9)),
    ],
    ids=lambda value: getattr(getattr(value, "function", value), "__name__", type(value).__name__),
)
def test_what_torchvision_traces_traces(module: nn.Module, x: Tensor) -> None:
    assert torch.equal(torch.fx.symbolic_trace(module)(x), module(x))
