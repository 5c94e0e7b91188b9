"""Predictions as supervision's types, in every form of masks."""

import sys
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from helpers.images import draw_image
from helpers.slim import calibrate_on_images, slim_model
from torch import Tensor, nn

import fastmask
from fastmask import Predictor
from fastmask.interop import to_supervision, to_supervision_keypoints

SIZE = (100, 130)
CATEGORIES = ["background", "one", "two", "three"]  # of five labels


@pytest.fixture(scope="module")
def sv() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of OpenCV, which is not installed
        return pytest.importorskip("supervision", reason="pip install 'fastmask-rcnn[supervision]'")


@pytest.fixture(scope="module")
def model() -> nn.Module:
    model = slim_model(fastmask, keypoints=4, box_score_thresh=0.0).eval()
    calibrate_on_images(model)
    return model


@pytest.fixture(scope="module")
def image() -> Tensor:
    return draw_image(*SIZE)[0]


def test_every_form_of_masks_is_the_same_detections(sv: Any, model: nn.Module, image: Tensor) -> None:
    """Those of torchvision's form are the reference: boxes, labels, scores and masks above 0.5."""
    with torch.no_grad():
        (expected,) = model([image])
    assert len(expected["boxes"]) > 1
    for form in ("rle", "bool", "packed", "float", None):
        prediction = expected if form is None else Predictor(model, "exact", masks=form)([image])[0]
        found = to_supervision(prediction, CATEGORIES, size=SIZE)
        assert isinstance(found, sv.Detections)
        np.testing.assert_allclose(found.xyxy, expected["boxes"].numpy(), atol=1e-3)
        np.testing.assert_allclose(found.confidence, expected["scores"].numpy(), atol=1e-5)
        assert found.class_id.tolist() == expected["labels"].tolist()
        assert found.mask.dtype == bool
        assert found.mask.shape == (len(found), *SIZE)
        assert (found.mask == (expected["masks"][:, 0] > 0.5).numpy()).mean() > 0.999
        names = [*CATEGORIES, "4"]
        assert found.data["class_name"].tolist() == [names[label] for label in expected["labels"].tolist()]
        if form not in ("packed", None):
            assert (to_supervision(prediction).mask == found.mask).all()
            assert to_supervision(prediction).data == {}
    assert len(found[found.confidence >= found.confidence[0]]) >= 1  # which selects masks and names, too
    drawn = sv.MaskAnnotator().annotate(np.zeros((*SIZE, 3), np.uint8), found)
    assert (drawn.any(2) == found.mask.any(0)).mean() > 0.99


def test_keypoints(sv: Any, model: nn.Module, image: Tensor) -> None:
    (prediction,) = Predictor(model, "exact")([image])
    found = to_supervision_keypoints(prediction, CATEGORIES)
    assert isinstance(found, sv.KeyPoints)
    assert np.array_equal(found.xy, prediction["keypoints"][:, :, :2].numpy())
    assert np.array_equal(found.keypoint_confidence, prediction["keypoints_scores"].numpy())
    assert np.array_equal(found.detection_confidence, prediction["scores"].numpy())
    assert found.class_id.tolist() == prediction["labels"].tolist()
    assert len(found.data["class_name"]) == len(found.xy) > 1
    del prediction["keypoints"]
    with pytest.raises(ValueError, match="prediction must have keypoints, got boxes, labels, scores"):
        to_supervision_keypoints(prediction)


def empty(masks: Any = None) -> dict[str, Any]:
    prediction = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64), "scores": torch.zeros(0)}
    return prediction if masks is None else prediction | {"masks": masks}


def test_nothing_detected(sv: Any) -> None:
    for masks, size, shape in (
        (None, None, None),
        ([], None, None),
        ([], (4, 5), (0, 4, 5)),
        (torch.zeros(0, 1, 4, 5), None, (0, 4, 5)),
        (torch.zeros(0, 4, 1, dtype=torch.uint8), (4, 5), (0, 4, 5)),
    ):
        found = to_supervision(empty(masks), CATEGORIES, size=size)
        assert len(found) == 0
        assert (None if found.mask is None else found.mask.shape) == shape
        assert found.data["class_name"].shape == (0,)


def test_other_masks_are_refused(sv: Any) -> None:
    def convert(masks: Any, size: tuple[int, int] | None = None, side: float = 20.0) -> Any:
        boxes = torch.tensor([[1.0, 2, side, side]])
        one = {"boxes": boxes, "labels": torch.tensor([1]), "scores": torch.tensor([0.5]), "masks": masks}
        return to_supervision(one, size=size)

    soft, packed = torch.ones(1, 1, 28, 28), torch.zeros(1, 30, 5, dtype=torch.uint8)
    for arguments, message in (
        ((soft, None, 300.0), 'masks must be pasted into the image, not "soft", got 28 x 28 pixels$'),
        ((soft,), r'not "soft", got 28 x 28 pixels; size=\(h, w\) says that the image is of that size'),
        ((soft, (40, 50)), r"masks must be of the image's size \(40, 50\), got \(28, 28\)"),
        ((packed,), r"size must be the image's \(h, w\) with packed masks \(1, 30, 5\), got None"),
        ((packed, (30, 41)), r"packed masks \(1, 30, 5\), got \(30, 41\)"),
        ((torch.zeros(1, 2, 30, 40),), r"masks must be RLE, .*, got float32 \(1, 2, 30, 40\)"),
        ((torch.zeros(1, 30, 40, dtype=torch.int64),), r"masks must be RLE, .*, got int64 \(1, 30, 40\)"),
    ):
        with pytest.raises(ValueError, match=message):
            convert(*arguments)
    assert convert(soft, (28, 28)).mask.all()


def test_without_supervision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "supervision", None)
    for convert in (to_supervision, to_supervision_keypoints):
        with pytest.raises(
            ImportError, match=rf"{convert.__name__} needs supervision: pip install 'fastmask-rcnn\[sup"
        ):
            convert(empty())
