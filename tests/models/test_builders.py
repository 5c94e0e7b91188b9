"""Every builder at full size: losses, two steps, and static programs. Slow; test_inference.py has their detections."""

import pytest
import torch
from helpers.exact import assert_matched
from helpers.images import draw_image
from helpers.slim import slim_pair
from helpers.static import NoDataDependence
from helpers.training import draw_batch
from torch import nn

import fastmask
from fastmask import Predictor
from fastmask.models import detection

BUILDERS = fastmask.models.list_models(detection)


def build(name: str, **options: object) -> nn.Module:
    options |= {} if name == "maskrcnn_slim_fpn" else {"weights_backbone": None}
    small = {"min_size": 96, "max_size": 160, "rpn_post_nms_top_n_train": 50, "rpn_post_nms_top_n_test": 50}
    return fastmask.models.get_model(name, num_classes=3, box_detections_per_img=10, **small | options)


@pytest.mark.slow
@pytest.mark.parametrize("name", BUILDERS)
def test_two_steps_and_static_programs(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each parameter that is trained gets a gradient; inference is one graph without a data-dependent op."""
    model = build(name).train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-3, momentum=0.9)
    images, targets = draw_batch(torch.float32)
    heads = model.roi_heads
    for target in targets if heads.has_keypoint() else ():  # at random places of the boxes
        x0, y0, x1, y1 = target["boxes"][:, :, None].unbind(1)
        spots = torch.rand(2, len(x0), heads.num_keypoints())
        x, y = x0 + spots[0] * (x1 - x0), y0 + spots[1] * (y1 - y0)
        target["keypoints"] = torch.stack((x, y, torch.full_like(x, 2)), dim=2)
    before = {key: value.clone() for key, value in model.named_parameters()}
    for _ in range(2):
        losses = model(images, targets)
        assert len(losses) == 4 + heads.has_mask() + heads.has_keypoint()
        optimizer.zero_grad()
        sum(losses.values()).backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)
        optimizer.step()
    changed = [not torch.equal(value, before[key]) for key, value in model.named_parameters()]
    assert sum(changed) > 0.9 * len(changed)
    model.eval()
    pixels, sizes = torch.randn(1, 3, 96, 128), torch.tensor([[90, 120]])
    with torch.no_grad():
        with NoDataDependence():
            expected = model.infer(pixels, sizes)
        torch._dynamo.reset()
        found = torch.compile(model.infer, fullgraph=True, backend="eager")(pixels, sizes)
    torch.testing.assert_close(tuple(found), tuple(expected))


@pytest.mark.parametrize("fuse", ["off", "kernel"])
def test_a_predictor_of_a_mobilenet(fuse: str) -> None:
    """Hardswish and gates stay as they are between folded and fused convolutions."""
    model = slim_pair(body="mobilenet")[1]
    images = [draw_image(128, 160)[0] for _ in range(3)]
    with torch.no_grad():
        expected = model(images)
    predictions = Predictor(model, "exact", dtype=torch.float32, masks="float", fuse=fuse)(images)
    assert assert_matched(predictions, expected) > 30
