"""fastmask.patch_torchvision and programs: compiled ones run on our ops, exported ones hold torchvision's."""

import pytest
import torch
import torchvision
from helpers.inputs import draw_boxes, with_images
from torch import Tensor

import fastmask

KEYS = {"cpu": ("CPU",), "cuda": ("CUDA",)}


def test_compiled_code(device: torch.device) -> None:
    """Strides are those of torchvision's shape functions, also for channels-last features."""
    features = torch.randn(1, 4, 20, 20, device=device).to(memory_format=torch.channels_last)
    rois = with_images(draw_boxes(5, (20, 20), 15), 1).to(device)

    def pool(features: Tensor) -> Tensor:
        return torchvision.ops.roi_align(features, rois, 3, 1.0, 2).flatten(1) + 1

    with fastmask.patch_torchvision(KEYS[device.type]):
        expected = pool(features)
        actual = torch.compile(pool, backend="aot_eager")(features)
    torch.testing.assert_close(actual, expected)


def test_compiled_under_autocast(device: torch.device) -> None:
    """It works during and after the patch: torchvision's shape functions refuse half features with float32 boxes."""
    features = torch.randn(1, 4, 20, 20, device=device)
    weight = torch.randn(4, 4, 1, 1, device=device)
    rois = with_images(draw_boxes(5, (20, 20), 15), 1).to(device)

    def pool(features: Tensor, weight: Tensor) -> Tensor:
        with torch.autocast(device.type, torch.bfloat16):
            return torch.ops.torchvision.roi_align(torch.conv2d(features, weight), rois, 1.0, 3, 3, 2, False)

    expected = pool(features, weight)
    with fastmask.patch_torchvision(KEYS[device.type]):
        patched = torch.compile(pool, backend="aot_eager")(features, weight)
    torch._dynamo.reset()
    after = torch.compile(pool, backend="aot_eager")(features, weight)
    for actual in (patched, after):
        assert actual.dtype == torch.bfloat16
        torch.testing.assert_close(actual, expected, rtol=2**-6, atol=2**-6)


@pytest.mark.filterwarnings("ignore:.torch.jit.(script|trace). is deprecated", "ignore:Converting a tensor")
def test_programs_hold_torchvisions_ops() -> None:
    """Scripted, traced and exported programs must load where fastmask is not installed."""
    boxes, scores, idxs = draw_boxes(9), torch.rand(9), torch.randint(2, (9,))
    features = torch.randn(1, 2, 9, 9)

    class Align(torch.nn.Module):
        def forward(self, features: Tensor, rois: Tensor) -> Tensor:
            return torchvision.ops.roi_align(features, rois, 2)

    with fastmask.patch_torchvision(("CPU",)):
        scripted = torch.jit.script(torchvision.ops.batched_nms)
        traced = torch.jit.trace(lambda b, s, i: torchvision.ops.batched_nms(b, s, i, 0.5), (boxes, scores, idxs))
        exported = torch.export.export(Align(), (features, with_images(boxes, 1)))
    expected = torchvision.ops.batched_nms(boxes, scores, idxs, 0.5)
    assert torch.equal(scripted(boxes, scores, idxs, 0.5), expected)
    assert torch.equal(traced(boxes, scores, idxs), expected)
    for program in (traced.inlined_graph, exported.graph):
        assert "torchvision" in str(program)
        assert "fastmask" not in str(program)
