"""Views: masks go exactly as pixels do, polygons as masks do but for their rims."""

import numpy as np
import pytest
from PIL import Image

from fastmask.cocoapi import mask as coco
from fastmask.data.crop import Crop, plan_jitter, plan_resize
from fastmask.data.records import Object, ellipse_to_polygon
from fastmask.demo import Scenes


def draw_view(original: tuple[int, int]) -> Crop:
    mirrored = bool(np.random.rand() < 0.5)
    if np.random.rand() < 0.3:
        return plan_resize(original, int(np.random.randint(20, 300)), 400, mirrored)
    return plan_jitter(original, (96, 128), 10 ** np.random.uniform(-1, 0.7), tuple(np.random.rand(2)), mirrored)


def as_rle(mask: np.ndarray) -> Object:
    return Object("thing", rle=coco.encode(np.asfortranarray(mask.astype(np.uint8))))


def grown(mask: np.ndarray) -> np.ndarray:
    """By a pixel; also from beyond the view, where it may go on."""
    padded = np.pad(mask, 1, constant_values=True)
    return np.any(
        [padded[1 + y : y - 1 or None, 1 + x : x - 1 or None] for y in (-1, 0, 1) for x in (-1, 0, 1)], axis=0
    )


def test_masks_go_as_pixels_do(seed: int) -> None:
    """An image that is white where an object of a drawn scene is."""
    for record in Scenes(8, seed, (120, 90)):
        for one in record.objects:
            mask = one.mask(120, 90)
            white = Image.fromarray(np.repeat(mask[:, :, None] * np.uint8(255), 3, axis=2))
            view = draw_view((120, 90))
            moved = np.array(view.image(white))
            assert moved.shape == (*view.size, 3)
            np.testing.assert_array_equal(view.mask(one), moved[:, :, 1] > 127)


def test_polygons_go_as_masks_do() -> None:
    for _ in range(30):
        polygon = ellipse_to_polygon(
            *np.random.uniform(30, 70, 2), *np.random.uniform(8, 40, 2), np.random.uniform(0, 7)
        )
        one = Object("thing", (polygon,))
        view = draw_view((100, 110))
        scale = view.resized[0] / 100
        painted, warped = view.mask(one), view.mask(as_rle(one.mask(100, 110)))
        rim = painted.copy()
        for _ in range(1 + int(np.ceil(scale))):  # a pixel of the original, rounded to it, and one of the view
            rim = grown(rim)
        inner = ~painted
        for _ in range(1 + int(np.ceil(scale))):
            inner = grown(inner)
        assert not (warped & ~rim).any()
        assert not (~inner & ~warped).any()


def test_points_and_boxes() -> None:
    view = Crop((10, 20), (20, 60), 4, 6, (12, 40), mirrored=True)
    np.testing.assert_allclose(view.points(np.array([[0.0, 0], [20, 10], [5, 5]])), [[46, -4], [-14, 16], [31, 6]])
    np.testing.assert_allclose(view.box(Object("thing", box=(5, 5, 10, 9))), [16, 6, 31, 14])
    assert plan_resize((10, 20), 30, 50).resized == (25, 50)
    assert plan_resize((10, 20), 30, 100, room=(64, 45)).resized == (22, 45)


def test_an_edge_is_where_its_points_are() -> None:
    """A bright rectangle's edges land at the pixels that the corners are mapped to."""
    pixels = np.zeros((64, 80, 3), np.uint8)
    pixels[16:48, 24:56] = 255
    view = plan_jitter((64, 80), (96, 96), 2.4, (0.4, 0.3), mirrored=True)
    seen = np.array(view.image(Image.fromarray(pixels)))[:, :, 0] > 127
    x1, y1, x2, y2 = view.box(Object("thing", box=(24, 16, 56, 48)))
    rows, columns = np.flatnonzero(seen.any(1)), np.flatnonzero(seen.any(0))
    found = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
    np.testing.assert_allclose(found, np.clip([x1, y1, x2, y2], 0, 96), atol=0.51)


@pytest.mark.parametrize("original", [(1, 1), (1, 300), (300, 1), (2, 2)])
def test_slight_images(original: tuple[int, int]) -> None:
    for zoom in (0.01, 1.0, 5.0):
        view = plan_jitter(original, (64, 96), zoom, (1.0, 0.0), True)
        assert 1 <= view.size[0] <= 64
        assert 1 <= view.size[1] <= 96
        assert view.image(Image.new("RGB", original[::-1])).size == view.size[::-1]
    assert min(plan_resize(original, 800, 1333).resized) >= 1


def test_a_mask_of_another_size() -> None:
    view = plan_resize((10, 12), 20, 30)
    with pytest.raises(ValueError, match=r"a mask must be \[10, 12\] as its image, got \[12, 10\]"):
        view.mask(as_rle(np.ones((12, 10), bool)))
