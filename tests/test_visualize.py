"""Drawing of detections: what it changes in an image, and what it leaves unchanged."""

import numpy as np
import pytest
import torch
from helpers.inputs import NAN
from PIL import Image

from fastmask.cocoapi import mask as coco
from fastmask.skeletons import Skeleton
from fastmask.visualize import _choose_color, _dilate, _erode, _place_caption, draw_detections


def make_detections(masks: torch.Tensor) -> dict[str, torch.Tensor]:
    """Detections with masks [N, H, W] bool and the boxes around them."""
    boxes = [
        [m.any(0).nonzero().min(), m.any(1).nonzero().min(), m.any(0).nonzero().max(), m.any(1).nonzero().max()]
        for m in masks
    ]
    return {
        "boxes": torch.tensor(boxes, dtype=torch.float32),
        "labels": torch.arange(1, len(masks) + 1),
        "scores": torch.linspace(0.9, 0.5, len(masks)),
        "masks": masks,
    }


def disc(height: int, width: int, y: float, x: float, radius: float) -> torch.Tensor:
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return (rows - y) ** 2 + (columns - x) ** 2 <= radius**2


def test_masks_are_tinted_with_a_contour() -> None:
    masks = disc(300, 400, 150, 200, 100)[None]
    gray = Image.new("RGB", (400, 300), (128, 128, 128))
    detections = make_detections(masks) | {"boxes": torch.tensor([[0.0, 0, 399, 299]])}
    drawn = np.array(draw_detections(gray, detections, ["background", "disc"])).astype(int)
    color = np.array(_choose_color(0))
    assert np.abs(drawn[150, 200] - (0.7 * 128 + 0.3 * color)).max() <= 1  # inside
    assert (drawn[150, 100] == color).all()  # its contour
    around = np.lib.stride_tricks.sliding_window_view(np.pad(masks[0].numpy(), 1), (3, 3)).any((2, 3))
    rim = (around & ~masks[0].numpy())[40:]  # below the caption
    assert np.array_equal((drawn[40:] == 0).all(2), rim)
    assert (drawn[150, 20] == 128).all()  # outside
    assert (np.array(gray) == 128).all()  # the caller's own image


def test_images_of_other_modes() -> None:
    """Grayscale is drawn as RGB, also of 16 bits; of four channels, the first three."""
    detections = make_detections(disc(120, 160, 60, 50, 30)[None])
    planes = np.random.randint(0, 256, (120, 160, 4), dtype=np.uint8)
    gray = np.repeat(planes[:, :, :1], 3, axis=2)
    for pixels, rgb in (
        (planes, planes[:, :, :3]),
        (planes[:, :, 0], gray),
        (planes[:, :, 0].astype(np.uint16) * 256, gray),
    ):
        drawn = draw_detections(Image.fromarray(pixels), detections)
        assert np.array_equal(np.array(drawn), np.array(draw_detections(Image.fromarray(rgb), detections)))


def test_forms_of_masks_are_drawn_alike() -> None:
    masks = torch.stack([disc(120, 160, 60, 50, 30), disc(120, 160, 70, 100, 20)])
    detections = make_detections(masks)
    rles = [coco.encode(np.asfortranarray(mask.numpy().view(np.uint8))) for mask in masks]
    image = Image.fromarray(np.random.randint(0, 256, (120, 160, 3), dtype=np.uint8))
    expected = np.array(draw_detections(image, detections))
    for other in (masks[:, None].float() * 0.9, rles):
        assert np.array_equal(np.array(draw_detections(image, detections | {"masks": other})), expected)


def test_the_smallest_is_on_top() -> None:
    masks = torch.stack([disc(300, 300, 150, 150, 20), disc(300, 300, 150, 150, 120)])
    drawn = np.array(draw_detections(Image.new("RGB", (300, 300)), make_detections(masks))).astype(int)
    below = 0.3 * np.array(_choose_color(1))
    assert np.abs(drawn[150, 150] - (0.7 * below + 0.3 * np.array(_choose_color(0)))).max() <= 2


def test_no_detections_change_nothing() -> None:
    image = Image.fromarray(np.random.randint(0, 256, (30, 40, 3), dtype=np.uint8))
    nothing = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64), "scores": torch.zeros(0)}
    for detections in (nothing, nothing | {"masks": torch.zeros(0, 1, 30, 40)}):
        assert np.array_equal(np.array(draw_detections(image, detections)), np.array(image))


@pytest.mark.parametrize("mode", ["L", "RGBA", "P"])
def test_images_of_any_mode(mode: str) -> None:
    detections = make_detections(disc(60, 80, 30, 40, 10)[None])
    drawn = draw_detections(Image.new(mode, (80, 60)), detections)
    assert (drawn.mode, drawn.size) == ("RGB", (80, 60))


def test_odd_boxes_labels_and_sizes() -> None:
    """Boxes inverted, outside, empty, larger than the image or NaN; labels without a name; an image of one pixel."""
    detections = {
        "boxes": torch.tensor(
            [[50.0, 50, 10, 10], [-90, -90, -50, -50], [9, 9, 9, 9], [-1e4, -1e4, 1e4, 1e4], [0, 0, NAN, 9]]
        ),
        "labels": torch.tensor([0, 7, -1, 1, 1]),
    }
    for size in ((64, 48), (1, 1)):
        assert draw_detections(Image.new("RGB", size), detections, ["nothing", "thing"]).size == size


def test_tensors_of_any_kind() -> None:
    detections = make_detections(disc(60, 80, 30, 40, 10)[None])
    expected = np.array(draw_detections(Image.new("RGB", (80, 60)), detections))
    other = {"boxes": detections["boxes"].bfloat16().requires_grad_(), "masks": detections["masks"][:, None].half()}
    assert np.array_equal(np.array(draw_detections(Image.new("RGB", (80, 60)), detections | other)), expected)


def test_captions_avoid_each_other() -> None:
    taken: list[tuple[float, float, float, float]] = []
    for _ in range(12):  # boxes in the same place
        area = _place_caption((100, 100, 300, 300), (60, 12), (640, 480), taken)
        assert 0 <= area[0] < area[2] < 640
        assert 0 <= area[1] < area[3] < 480
        assert not [t for t in taken if area[0] < t[2] and t[0] < area[2] and area[1] < t[3] and t[1] < area[3]]
        taken.append(area)
    corner = _place_caption((-50, -50, 2000, 2000), (60, 12), (640, 480), [])
    assert corner == (0, 0, 60, 12)


@pytest.mark.parametrize("steps", [1, 2, 3, 16])
def test_erosion(steps: int) -> None:
    """A pixel stays if the mask holds the whole square of ``2 * steps + 1`` pixels around it; dilation is its dual."""
    mask = np.random.rand(40, 50) < 0.97
    window = 2 * steps + 1
    expected = np.lib.stride_tricks.sliding_window_view(np.pad(mask, steps), (window, window)).all((2, 3))
    assert np.array_equal(_erode(mask, steps), expected)
    around = np.lib.stride_tricks.sliding_window_view(np.pad(~mask, steps), (window, window)).any((2, 3))
    assert np.array_equal(_dilate(~mask, steps), around)


def test_neighbors_differ_in_color() -> None:
    for i in range(30):
        assert max(abs(a - b) for a, b in zip(_choose_color(i), _choose_color(i + 1), strict=True)) > 80


def test_keypoints_are_joined_by_limbs() -> None:
    """White where visible, black inside a ring where hidden, nothing where not annotated, nor below a score of 2."""
    keypoints = torch.tensor([[[30.0, 40, 2], [90, 40, 1], [60, 90, 0]], [[200, 40, 1], [260, 40, 1], [230, 90, 1]]])
    detections = {"boxes": torch.tensor([[10.0, 10, 110, 110], [180, 10, 280, 110]]), "labels": torch.tensor([1, 2])}
    detections |= {"keypoints": keypoints}
    skeletons = {1: Skeleton(3, limbs=((0, 1), (1, 2))), 2: Skeleton(3, limbs=((0, 1), (1, 2)))}
    gray = Image.new("RGB", (300, 200), (128, 128, 128))
    drawn = np.array(draw_detections(gray, detections, skeletons=skeletons))
    assert (drawn[40, 30] == 255).all()
    assert (drawn[40, 90] == 0).all()
    assert (drawn[90, 60] == 128).all()
    assert (drawn[40, 60] == _choose_color(0)).all()  # the limb between the first two
    assert (drawn[65, 75] == 128).all()  # none to the third
    scores = torch.tensor([[9.0, 9, 9], [2, 2, 1.9]])
    drawn = np.array(draw_detections(gray, detections | {"keypoints_scores": scores}, skeletons=skeletons))
    assert (drawn[40, 200] == 255).all()
    assert (drawn[40, 230] == _choose_color(1)).all()
    assert (drawn[90, 230] == 128).all()
    alone = np.array(draw_detections(gray, detections))
    assert (alone[40, 30] == 255).all()
    assert (alone[40, 60] == 128).all()  # no limbs are known
    person = torch.full((1, 17, 3), 2.0)
    person[0, :, 0], person[0, :, 1] = 20, 150
    person[0, 5:7, 0] = torch.tensor([150.0, 250])  # shoulders
    whole = {"boxes": torch.tensor([[10.0, 10, 290, 190]]), "labels": torch.tensor([1]), "keypoints": person}
    assert (np.array(draw_detections(gray, whole))[150, 200] == _choose_color(0)).all()  # COCO's limb between them
