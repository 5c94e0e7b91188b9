"""Settings and inputs at the edge of what models take: as torchvision, or one ValueError that names them."""

from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from helpers.exact import assert_exact
from helpers.images import draw_image
from helpers.slim import slim_model, slim_pair
from helpers.training import draw_batch, train_pair
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode

import fastmask
from fastmask import Predictor
from fastmask.models.detection.faster_rcnn import FastRCNNPredictor
from fastmask.models.detection.mask_rcnn import MaskRCNNPredictor
from fastmask.training.loss_module import LossModule

MEAN, STD = [0.4, 0.5, 0.6], [0.2, 0.3, 0.4]


@torch.no_grad()
def check_same(theirs: nn.Module, ours: nn.Module) -> int:
    """-> detections of two images."""
    images = [draw_image(100, 140)[0].double(), draw_image(90, 64)[0].double()]
    theirs.double(), ours.double()
    for actual, expected in zip(ours(images), theirs(images), strict=True):
        assert_exact(actual, expected)
        assert actual["masks"].shape == expected["masks"].shape
    return sum(len(found["boxes"]) for found in ours(images))


@pytest.mark.parametrize("name", ["rpn_pre_nms_top_n_test", "rpn_post_nms_top_n_test", "box_detections_per_img"])
def test_none_of_something(name: str) -> None:
    theirs, ours = (slim_model(library, **{name: 0}).eval() for library in (torchvision, fastmask))
    ours.load_state_dict(theirs.state_dict())
    assert check_same(theirs, ours) == 0


@pytest.mark.parametrize("name", ["rpn_pre_nms_top_n_train", "rpn_post_nms_top_n_train"])
def test_training_without_proposals(name: str) -> None:
    theirs, ours = train_pair(**{name: 0})
    images, targets = draw_batch()
    expected, actual = theirs(images, targets), ours(images, targets)
    for key, loss in expected.items():
        torch.testing.assert_close(actual[key], loss, rtol=1e-9, atol=1e-9)


def test_background_alone() -> None:
    """A model of one class, the background, finds nothing."""
    model = slim_model(fastmask).eval()
    model.roi_heads.box_predictor = FastRCNNPredictor(64, 1)
    model.roi_heads.mask_predictor = MaskRCNNPredictor(32, 32, 1)
    with torch.no_grad():
        (found,) = model([torch.rand(3, 60, 70)])
    shapes = {name: tuple(values.shape) for name, values in found.items()}
    assert shapes == {"boxes": (0, 4), "labels": (0,), "scores": (0,), "masks": (0, 1, 60, 70)}


@pytest.mark.parametrize("kind", [list, tuple, np.array, torch.tensor], ids=["list", "tuple", "array", "tensor"])
def test_mean_and_std_of_any_kind(kind: Any) -> None:
    theirs, ours = slim_pair(image_mean=kind(MEAN), image_std=kind(STD))
    plain = slim_pair(image_mean=MEAN, image_std=STD)[1]
    plain.load_state_dict(ours.state_dict())
    image = draw_image(100, 140)[0]
    for actual, expected in zip(*(Predictor(model, "exact")([image]) for model in (ours, plain)), strict=True):
        assert torch.equal(actual["boxes"], expected["boxes"])
    for one, other in zip(LossModule(ours).buffers(), LossModule(plain).buffers(), strict=True):
        torch.testing.assert_close(one, other)
    assert check_same(theirs, ours) > 0


@pytest.mark.parametrize("training", [False, True], ids=["inference", "training"])
def test_no_image(training: bool) -> None:
    with pytest.raises(ValueError, match="images must be at least one image, got none"):
        slim_model(fastmask).train(training)([], [])


@pytest.mark.parametrize("strides", [16, torch.tensor([4, 8]), {"0": 3}], ids=["number", "tensor", "dict"])
def test_strides_of_a_users_backbone(strides: Any) -> None:
    """Only our own backbones' strides are read; those of others are inferred from their maps."""

    class Own(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner, self.strides, self.out_channels = inner, strides, inner.out_channels

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return self.inner(x)

    model = slim_model(fastmask).eval()
    pixels = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        expected = model.extract_features(pixels).scales
        model.backbone = Own(model.backbone)
        found = model.extract_features(pixels).scales
    assert {name: expected[name] for name in found} == found


def infer(model: nn.Module, **options: Any) -> Any:
    sizes = torch.zeros(2, 2, dtype=torch.int64, **options)
    return model.infer(torch.empty(2, 3, 64, 96, **options), sizes, trim=True)


def check_static(model: nn.Module, image: Tensor, found: Any) -> None:
    assert found.boxes.shape == (2, 30, 4)
    assert found.masks.shape == (2, 30, 28, 28)
    with pytest.raises(ValueError, match="images must have values, got meta or fake tensors"):
        model([image])


@pytest.mark.parametrize("moved", [False, True], ids=["built there", "moved there"])
def test_meta(moved: bool) -> None:
    with torch.device("cpu" if moved else "meta"):
        model = slim_model(fastmask).eval()
    model = model.to("meta")
    with torch.no_grad():
        check_static(model, torch.rand(3, 64, 64, device="meta"), infer(model, device="meta"))


def test_fake_tensors() -> None:
    """Construction, the static program and a training step, as tools that count memory run them."""
    with FakeTensorMode():
        model = slim_model(fastmask).eval()
        with torch.no_grad():
            check_static(model, torch.rand(3, 64, 64), infer(model))
        target = {"boxes": torch.rand(2, 4), "labels": torch.ones(2).long(), "masks": torch.zeros(2, 64, 64).byte()}
        losses = model.train()([torch.rand(3, 64, 64)], [target])
        torch.stack(list(losses.values())).sum().backward()
        assert model.backbone.body["conv1"].weight.grad.shape == (16, 3, 7, 7)
