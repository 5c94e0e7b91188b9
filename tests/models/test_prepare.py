"""fastmask.models.prepare: weights are prepared once, for the same predictions."""

import pytest
import torch
from helpers.slim import slim_model
from torch import nn

import fastmask
from fastmask import ops
from fastmask.models.prepare import prepare_for_inference

V2 = pytest.param("maskrcnn_resnet50_fpn_v2", marks=pytest.mark.slow)  # test_fuse.py has it as well


@pytest.mark.parametrize("name", ["maskrcnn_resnet50_fpn", V2])
def test_prepared_weights(name: str) -> None:
    """A copy without any norm gives the same in float64; the model stays as it was."""
    options = {"weights": None, "weights_backbone": None, "num_classes": 3, "box_detections_per_img": 10}
    model = fastmask.models.get_model(name, **options).eval().double()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d | ops.FrozenBatchNorm2d):
            for values in (module.weight, module.bias, module.running_mean):
                values.data.uniform_(0.5, 1.5)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    ready = prepare_for_inference(model, torch.float64)
    assert not [m for m in ready.modules() if isinstance(m, nn.BatchNorm2d | ops.FrozenBatchNorm2d | nn.GroupNorm)]
    pixels, sizes = torch.randn(1, 3, 64, 96, dtype=torch.float64), torch.tensor([[60, 90]])
    rois = torch.randn(7, 256, 7, 7, dtype=torch.float64).to(memory_format=torch.channels_last)
    with torch.no_grad():
        maps, expected = (either.extract_features(pixels).maps for either in (ready, model))
        for level in expected:
            scale = expected[level].abs().max()
            torch.testing.assert_close(maps[level] / scale, expected[level] / scale, rtol=0, atol=1e-9)
        heads = [either.roi_heads.box_head(rois) for either in (ready, model)]
        torch.testing.assert_close(*heads, rtol=1e-9, atol=1e-9)
        cached = ready.rpn.anchor_generator.all_anchors((64, 96), list(maps.values()))
        assert cached is ready.rpn.anchor_generator.all_anchors((64, 96), list(maps.values()))
        assert torch.equal(cached, torch.cat(ready.rpn.anchor_generator.anchors((64, 96), list(maps.values()))))
        ready.infer(pixels, sizes)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_a_norm_with_a_hook_stays() -> None:
    hooked = slim_model(fastmask, "BatchNorm2d").eval()
    hooked.backbone.body["bn1"].register_forward_hook(lambda *_: None)
    left = [
        name
        for name, m in prepare_for_inference(hooked, torch.float32).named_modules()
        if isinstance(m, nn.BatchNorm2d)
    ]
    assert left == ["backbone.body.bn1"]


def test_shared_layers_are_not_folded() -> None:
    """Folding one norm into a convolution that is used twice would change the other use."""
    conv, norm, other = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.BatchNorm2d(4)
    other.running_mean.uniform_(1, 2)
    model = slim_model(fastmask).eval()
    model.roi_heads.mask_head.add_module("one", nn.Sequential(conv, norm, nn.ReLU(), conv, norm))
    model.roi_heads.mask_head.add_module("two", nn.Sequential(conv, other))
    ready = prepare_for_inference(model.eval(), torch.float32)
    x = torch.randn(1, 4, 5, 5)
    for name in ("one", "two"):
        expected = model.roi_heads.mask_head.get_submodule(name)(x)
        torch.testing.assert_close(ready.roi_heads.mask_head.get_submodule(name)(x), expected)
