"""Dispatch of ops into PyTorch: below autograd where nothing requires gradients, and as usual elsewhere."""

import importlib
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.inputs import draw_boxes, draw_pyramid, pyramid_scales, with_images
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import fastmask.kernels
from fastmask.kernels import dispatch, launch
from fastmask.kernels.bias_act import bias_act_op
from fastmask.kernels.launch import HAS_TRITON, KERNELS, OPS
from fastmask.kernels.roi_align import multilevel_roi_align_op
from fastmask.ops.roi_align import level_limits

SCALES = pyramid_scales(2)

pytestmark = pytest.mark.skipif(not HAS_TRITON, reason="where there are no kernels, ops are PyTorch's own custom ops")


@pytest.fixture
def autograd_results(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Results of needs_autograd, call by call."""
    results: list[bool] = []
    original = dispatch.needs_autograd

    def note(args: Any, kwargs: Any) -> bool:
        results.append(original(args, kwargs))
        return results[-1]

    monkeypatch.setattr(dispatch, "needs_autograd", note)
    return results


def align(device: torch.device, gradients: bool) -> Tensor:
    maps = [feature.to(device).requires_grad_(gradients) for feature in draw_pyramid(2)]
    rois = with_images(draw_boxes(3), 2).to(device)
    out: Tensor = multilevel_roi_align_op(maps, rois, SCALES, level_limits(SCALES, 224, 4), 2, 2, 2, False)
    return out


def test_every_op_has_its_kernel() -> None:
    for path in Path(fastmask.kernels.__file__).parent.glob("*.py"):
        if re.search(r"^    register\(", path.read_text(), re.MULTILINE):
            importlib.import_module(f"fastmask.kernels.{path.stem}")
    assert set(KERNELS) == {f"fastmask::{name}" for name in OPS}


def test_a_pytorch_without_these_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ops stay PyTorch's own custom ops."""
    registered = {}

    class Plain:
        _qualname = "fastmask::roi_pool"

        def register_kernel(self, device: str) -> Any:
            return lambda kernel: registered.update({device: kernel})

    monkeypatch.setattr(launch, "dispatch", None)
    monkeypatch.setitem(KERNELS, Plain._qualname, None)
    monkeypatch.setattr(launch, "SWITCHED_OFF", frozenset())
    launch.register(Plain(), len, print)
    assert registered == {"cpu" if launch.INTERPRET else "cuda": len}


def test_autograd_is_entered_for_gradients_only(device: torch.device, autograd_results: list[bool]) -> None:
    assert not align(device, gradients=False).requires_grad
    assert align(device, gradients=True).requires_grad  # of a list's tensors too
    with torch.no_grad():
        assert not align(device, gradients=True).requires_grad
    with torch.inference_mode():
        assert align(device, gradients=False).is_inference()
    assert autograd_results == [False, True, False, False]


def test_modes_and_transforms_see_the_op_as_ever(device: torch.device, autograd_results: list[bool]) -> None:
    with FakeTensorMode():
        assert align(torch.device("cpu"), gradients=False).shape == (3, draw_pyramid(2)[0].shape[1], 2, 2)
    maps = [feature.to(device) for feature in draw_pyramid(2)]
    rois, limits = with_images(draw_boxes(3), 2).to(device), level_limits(SCALES, 224, 4)
    traced = torch.fx.experimental.proxy_tensor.make_fx(
        lambda rois: multilevel_roi_align_op(maps, rois, SCALES, limits, 2, 2, 2, False)
    )(rois)
    assert torch.ops.fastmask.multilevel_roi_align.default in {node.target for node in traced.graph.nodes}
    assert autograd_results[:2] == [True, True]


def _write(y: Tensor, value: float) -> None:
    """Write in place as a kernel does, unseen by PyTorch."""
    y.detach().numpy()[:] = value


def test_what_an_op_writes_to_counts_a_version() -> None:
    """So that autograd notices when something that it saved has changed."""
    op = torch.library.custom_op("fastmask_test::write_", _write, mutates_args={"y"})
    op.__class__ = dispatch.Op
    y = torch.zeros(4)
    product = torch.ones(4, requires_grad=True) * y
    version = y._version
    op(y, 3.0)
    assert y.tolist() == [3.0] * 4
    assert y._version == version + 1
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.sum().backward()


@pytest.mark.parametrize("inside", [False, True], ids=["around the op", "inside the launcher"])
def test_compiled_programs_do_not_look_into_launchers(device: torch.device, inside: bool) -> None:
    """Neither where a graph breaks just before an op, nor in a graph: what Dynamo compiles has no launcher's frame."""
    compiled: list[str] = []

    def note(graph: torch.fx.GraphModule, inputs: list[Any]) -> Any:
        compiled.append(str(graph.code))
        return graph.forward

    def function(y: Tensor, bias: Tensor) -> Tensor:
        y = y + 1
        if not inside:
            torch._dynamo.graph_break()
        bias_act_op(y, bias, None, True)
        return y * 2

    torch._dynamo.reset()
    y = torch.randn(2, 16, 3, 5, device=device).contiguous(memory_format=torch.channels_last)
    bias = torch.randn(16, device=device)
    actual = torch.compile(function, backend=note)(y, bias)
    torch.testing.assert_close(actual, torch.relu(y + 1 + bias[:, None, None]) * 2)
    assert len(compiled) == (1 if inside else 2)
    assert sum("bias_act_" in code for code in compiled) == 1
    torch._dynamo.reset()
