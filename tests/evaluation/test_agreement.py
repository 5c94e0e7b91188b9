"""The rule of agreement by which float32 paths are compared."""

import pytest
import torch

from fastmask.evaluation.agreement import Tolerance, matched_share


def detections(num: int) -> dict[str, torch.Tensor]:
    boxes = torch.arange(num)[:, None] * 20 + torch.tensor([0.0, 0, 10, 10])
    masks = torch.zeros(num, 1, 20, 20)
    masks[..., 5:15, 5:15] = 0.9
    return {"boxes": boxes, "labels": torch.ones(num), "scores": torch.full((num,), 0.5), "masks": masks}


def test_equal_and_empty() -> None:
    assert matched_share(detections(5), detections(5)) == 1.0
    assert matched_share(detections(0), detections(0)) == 1.0
    assert matched_share(detections(3), detections(0)) == 0.0
    assert matched_share(detections(3), detections(1)) == 0.5


@pytest.mark.parametrize(
    ("name", "change", "share"),
    [("boxes", 0.9, 1), ("boxes", 1.1, 0.8), ("scores", 9e-4, 1), ("scores", 2e-3, 0.8), ("labels", 1, 0.8)],
)
def test_tolerances_of_a_match(name: str, change: float, share: float) -> None:
    other = detections(5)
    other[name][2] += change
    assert matched_share(detections(5), other) == pytest.approx(share)


def test_a_wider_tolerance() -> None:
    other = detections(5)
    other["boxes"][0] += 1.5
    other["scores"][1] += 5e-3
    other["masks"][2, 0, 5, 5] = 0  # 99 of 100 pixels
    for tolerance, matched in (
        (Tolerance(), 2),
        (Tolerance(pixels=2), 3),
        (Tolerance(score=0.01), 3),
        (Tolerance(mask_iou=0.98), 3),
        (Tolerance(2, 0.01, 0.98), 5),
    ):
        assert matched_share(detections(5), other, tolerance) == pytest.approx(matched / 5)


def test_masks_must_overlap() -> None:
    other = detections(5)
    other["masks"][1, 0, 5, 5] = 0  # 99 of 100 pixels
    assert matched_share(detections(5), other) == pytest.approx(0.8)
    other["masks"][1] = 0
    mine = detections(5)
    mine["masks"][1] = 0
    assert matched_share(mine, other) == 1.0


def test_duplicates_have_no_match() -> None:
    copies = {name: value.repeat_interleave(10, 0) for name, value in detections(1).items()}
    assert matched_share(copies, detections(1)) == pytest.approx(2 / 11)
