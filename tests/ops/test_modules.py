"""Modules against torchvision's: state dicts, seeds, outputs; copying, pickling, casting."""

import copy
import pickle
from collections import OrderedDict
from typing import Any

import pytest
import torch
import torchvision.ops as tv
from torch import nn
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool, LastLevelP6P7

from fastmask import ops
from fastmask.ops.feature_pyramid_network import ExtraFPNBlock


def draw_maps() -> OrderedDict[str, torch.Tensor]:
    shapes = {"0": (3, 33, 41), "1": (5, 17, 21), "2": (7, 9, 11)}
    return OrderedDict((name, torch.randn(2, *shape)) for name, shape in shapes.items())


BLOCKS = {
    "none": (lambda: None, lambda: None),
    "maxpool": (ops.LastLevelMaxPool, LastLevelMaxPool),
    "p6p7 on c5": (lambda: ops.LastLevelP6P7(7, 6), lambda: LastLevelP6P7(7, 6)),
    "p6p7 on p5": (lambda: ops.LastLevelP6P7(6, 6), lambda: LastLevelP6P7(6, 6)),
}


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("norm", [None, nn.BatchNorm2d], ids=["bare", "norm"])
def test_fpn(block: str, norm: type[nn.Module] | None, seed: int) -> None:
    networks = []
    for module, build in zip((ops, tv), BLOCKS[block], strict=True):
        torch.manual_seed(seed)
        networks.append(module.FeaturePyramidNetwork([3, 5, 7], 6, build(), norm))
    ours, theirs = networks
    weights, expected = ours.state_dict(), theirs.state_dict()
    assert list(weights) == list(expected)
    assert all(torch.equal(weights[key], expected[key]) for key in expected)  # the same seed, the same weights
    maps = draw_maps()
    actual, wanted = ours(maps), theirs(maps)
    assert list(actual) == list(wanted)
    assert list(maps) == ["0", "1", "2"]
    for name in wanted:
        torch.testing.assert_close(actual[name], wanted[name], rtol=1e-5, atol=1e-5)


def test_fpn_under_autocast_upsamples_in_half(monkeypatch: pytest.MonkeyPatch) -> None:
    """Upsampling copies values; the sums stay bfloat16, a rounding away from torchvision's."""
    seen = []

    def interpolate(x: torch.Tensor, **options: Any) -> torch.Tensor:
        seen.append(x.dtype)
        return plain(x, **options)

    plain = torch.nn.functional.interpolate
    monkeypatch.setattr(torch.nn.functional, "interpolate", interpolate)
    network, maps = ops.FeaturePyramidNetwork([3, 5, 7], 6), draw_maps()
    expected = network(maps)
    with torch.autocast("cpu", torch.bfloat16):
        actual = network(maps)
    assert seen == [torch.float32] * 2 + [torch.bfloat16] * 2
    for name, level in actual.items():
        assert level.dtype == torch.bfloat16
        torch.testing.assert_close(level.float(), expected[name], rtol=0.05, atol=0.05)


def test_fpn_loads_old_checkpoints() -> None:
    """torchvision's first version had no ".0" in its keys."""
    network = ops.FeaturePyramidNetwork([3, 5, 7], 6)
    weights = network.state_dict()
    old = {}
    for blocks in ("inner_blocks", "layer_blocks"):
        for kind in ("weight", "bias"):
            old |= {f"{blocks}.{i}.{kind}": weights[f"{blocks}.{i}.0.{kind}"] for i in range(3)}
    fresh = ops.FeaturePyramidNetwork([3, 5, 7], 6)
    fresh.load_state_dict(old)
    assert all(torch.equal(fresh.state_dict()[key], value) for key, value in weights.items())


def test_fpn_takes_a_users_own_block() -> None:
    class Doubled(ExtraFPNBlock):
        def forward(self, results, x, names):  # type: ignore[no-untyped-def]
            names.append("twice")
            results.append(2 * results[-1])
            return results, names

    maps = draw_maps()
    actual = ops.FeaturePyramidNetwork([3, 5, 7], 6, Doubled())(maps)
    assert torch.equal(actual["twice"], 2 * actual["2"])
    with pytest.raises(TypeError, match=r"extra_blocks must be fastmask's ExtraFPNBlock, got torch\..*ReLU"):
        ops.FeaturePyramidNetwork([3], 6, nn.ReLU())
    with pytest.raises(ValueError, match=r"in_channels_list must be positive, got \[3, 0\]"):
        ops.FeaturePyramidNetwork([3, 0], 6)
    with pytest.raises(NotImplementedError):
        ExtraFPNBlock()([], [], [])


def test_fpn_calls_what_subclasses_override() -> None:
    class Doubled(ops.FeaturePyramidNetwork):
        def get_result_from_layer_blocks(self, x: torch.Tensor, idx: int) -> torch.Tensor:
            return 2 * super().get_result_from_layer_blocks(x, idx)

    maps, network = draw_maps(), Doubled([3, 5, 7], 6)
    plain = ops.FeaturePyramidNetwork([3, 5, 7], 6)
    plain.load_state_dict(network.state_dict())
    for name, level in plain(maps).items():
        assert torch.equal(network(maps)[name], 2 * level)


def test_frozen_batch_norm() -> None:
    trained = nn.BatchNorm2d(5, eps=1e-3).train()
    for _ in range(3):
        trained(torch.randn(4, 5, 6, 6) * 3 + 1)
    nn.init.normal_(trained.weight)
    nn.init.normal_(trained.bias)
    ours, theirs = (module.FrozenBatchNorm2d(5, eps=1e-3) for module in (ops, tv))
    assert repr(ours) == repr(theirs)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert list(ours.parameters()) == []
    for module in (ours, theirs):
        module.load_state_dict(trained.state_dict())  # with its num_batches_tracked
    x = torch.randn(2, 5, 7, 9)
    torch.testing.assert_close(ours(x), theirs(x), rtol=0, atol=0)
    torch.testing.assert_close(ours(x), trained.eval()(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"kernel_size": 1},
        {"kernel_size": (3, 5), "dilation": (2, 1)},
        {"kernel_size": 5, "dilation": 2, "stride": 2, "groups": 2},
        {"norm_layer": None},
        {"norm_layer": None, "bias": False, "activation_layer": None},
        {"padding": 0, "bias": True, "activation_layer": nn.SiLU, "inplace": None},
        {"padding": "same", "activation_layer": nn.Hardswish, "inplace": False},
    ],
    ids=str,
)
def test_conv_norm_activation(options: dict[str, object], seed: int) -> None:
    pair = []
    for module in (ops, tv):
        torch.manual_seed(seed)
        pair.append(module.Conv2dNormActivation(4, 6, **options).eval())
    ours, theirs = pair
    assert str(ours) == str(theirs)
    assert ours.out_channels == 6
    x = torch.randn(2, 4, 13, 11)
    assert torch.equal(ours(x), theirs(x))


@pytest.mark.parametrize("options", [{}, {"activation": nn.SiLU, "scale_activation": nn.Hardsigmoid}], ids=str)
def test_squeeze_and_excitation(options: dict[str, object], seed: int) -> None:
    pair = []
    for module in (ops, tv):
        torch.manual_seed(seed)
        pair.append(module.SqueezeExcitation(6, 3, **options))
    ours, theirs = pair
    assert str(ours) == str(theirs)
    x = torch.randn(2, 6, 13, 11)
    assert torch.equal(ours(x), theirs(x))


MODULES = {
    "RoIAlign": lambda: ops.RoIAlign(2, 1.0, 2),
    "RoIPool": lambda: ops.RoIPool(2, 1.0),
    "MultiScaleRoIAlign": lambda: ops.MultiScaleRoIAlign(["0"], 2, 2),
    "MultiScaleRoIPool": lambda: ops.MultiScaleRoIPool(["0"], 2),
    "SqueezeExcitation": lambda: ops.SqueezeExcitation(3, 2),
    "FrozenBatchNorm2d": lambda: ops.FrozenBatchNorm2d(3),
    "Conv2dNormActivation": lambda: ops.Conv2dNormActivation(3, 6).eval(),
    "FeaturePyramidNetwork": lambda: ops.FeaturePyramidNetwork([3, 5, 7], 6, ops.LastLevelP6P7(7, 6)),
}


@pytest.mark.parametrize("name", MODULES)
def test_copy_pickle_cast(name: str) -> None:
    maps = draw_maps()
    boxes = [torch.tensor([[2.0, 3, 20, 30]]), torch.zeros(0, 4)]

    def call(module: nn.Module, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
        typed = OrderedDict((key, value.to(dtype)) for key, value in maps.items())
        if name == "FeaturePyramidNetwork":
            return list(module(typed).values())
        if name.startswith("MultiScale"):
            return [module(typed, boxes, [(33, 41)] * 2)]
        return [module(typed["0"], boxes) if name in ("RoIAlign", "RoIPool") else module(typed["0"])]

    module = MODULES[name]()
    expected = call(module)
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert all(torch.equal(a, b) for a, b in zip(call(other), expected, strict=True))
    for other in (module.to(memory_format=torch.channels_last), copy.deepcopy(module).double()):
        typed = torch.float64 if other is not module else torch.float32
        for actual, wanted in zip(call(other, typed), expected, strict=True):
            torch.testing.assert_close(actual.float(), wanted, rtol=1e-4, atol=1e-4)
    for dtype, tolerance in ((torch.float16, 2e-2), (torch.bfloat16, 1e-1)):
        for actual, wanted in zip(call(copy.deepcopy(module).to(dtype), dtype), expected, strict=True):
            assert actual.dtype == dtype
            torch.testing.assert_close(actual.float(), wanted, rtol=tolerance, atol=tolerance)
