"""Targets that do not fit are named, where they are on the host; elsewhere nothing is read."""

import math

import pytest
import torch
from helpers.slim import slim_model
from helpers.static import NoDataDependence
from helpers.training import Target, draw_batch
from torch import nn

import fastmask
from fastmask.models.detection.targets import check_targets

BAD_TARGETS = {
    "targets must be one dict an image (3), got None": lambda t: None,
    "targets must be one dict an image (3), got 1": lambda t: t[:1],
    "targets[0] must have boxes, labels, masks, got boxes, labels": lambda t: [
        {k: v for k, v in t[0].items() if k != "masks"},
        *t[1:],
    ],
    "targets[1]['boxes'] must be [N, 4], got (4,)": lambda t: [t[0], t[1] | {"boxes": torch.zeros(4)}, t[2]],
    "targets[2]['boxes'] must be a tensor, got list": lambda t: [*t[:2], t[2] | {"boxes": [1]}],
    "targets[0]['labels'] must be int64, got torch.int32": lambda t: [t[0] | {"labels": t[0]["labels"].int()}, *t[1:]],
    "targets[0]['boxes'] must have positive width and height, got [5.0, 5.0, 5.0, 9.0]": lambda t: [
        {"boxes": torch.tensor([[5.0, 5, 5, 9]]), "labels": torch.ones(1).long(), "masks": torch.ones(1, 100, 140)},
        *t[1:],
    ],
    "targets[1]['boxes'] must be finite, got [5.0, 5.0, inf, 9.0]": lambda t: spoil(t, "boxes", [5, 5, math.inf, 9]),
    "targets[1]['boxes'] must be finite, got [-inf, 5.0, 7.0, 9.0]": lambda t: spoil(t, "boxes", [-math.inf, 5, 7, 9]),
    "targets[1]['boxes'] must be finite, got [nan, 5.0, 7.0, 9.0]": lambda t: spoil(t, "boxes", [math.nan, 5, 7, 9]),
    "targets[1]['labels'] must be in [1, 4], got 0": lambda t: spoil(t, "labels", 0),
    "targets[1]['labels'] must be in [1, 4], got -1": lambda t: spoil(t, "labels", -1),
    "targets[1]['labels'] must be in [1, 4], got 5": lambda t: spoil(t, "labels", 5),
    "targets[1]['masks'] must be in [0, 1], got 255": lambda t: spoil(t, "masks", 255),
    "targets[1]['masks'] must be in [0, 1], got -1": lambda t: [t[0], t[1] | {"masks": -t[1]["masks"].float()}, t[2]],
    "targets[1]['masks'] must be in [0, 1], got nan": lambda t: [
        t[0],
        t[1] | {"masks": t[1]["masks"].float() / 0},
        t[2],
    ],
}


def spoil(targets: list[Target], key: str, value: object) -> list[Target]:
    """Another value in the last instance of the second image."""
    values = targets[1][key].clone()
    values[-1] = torch.tensor(value, dtype=values.dtype)
    return [targets[0], targets[1] | {key: values}, targets[2]]


@pytest.mark.parametrize("message", BAD_TARGETS)
def test_bad_targets_say_so(message: str) -> None:
    model = slim_model(fastmask).train()
    images, targets = draw_batch(torch.float32)
    with pytest.raises(ValueError) as raised:  # noqa: PT011 -- compared below, whole
        model(images, BAD_TARGETS[message](targets))
    assert str(raised.value) == message


def test_labels_of_a_users_own_predictor() -> None:
    """How many classes it has is not known before it runs."""

    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = fastmask.models.detection.faster_rcnn.FastRCNNPredictor(64, 9)

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return self.inner(x)

    model = slim_model(fastmask).train()
    model.roi_heads.box_predictor = Own()
    images, targets = draw_batch(torch.float32)
    with pytest.raises(ValueError, match=r"targets\[1\]\['labels'\] must be at least 1, got 0"):
        model(images, spoil(targets, "labels", 0))
    model(images, targets)


def test_good_masks_of_any_dtype() -> None:
    images, targets = draw_batch(torch.float32)
    for dtype in (torch.bool, torch.uint8, torch.int64, torch.float32, torch.float16):
        check_targets([target | {"masks": target["masks"].to(dtype)} for target in targets], images, True, 5)


def test_values_on_a_device_are_not_read() -> None:
    """A stand-in for a GPU: the meta device has no values at all."""
    images, targets = draw_batch(torch.float32)
    targets = [{key: value.to("meta") for key, value in target.items()} for target in spoil(targets, "labels", 0)]
    with NoDataDependence():
        check_targets(targets, images, True, 5)
