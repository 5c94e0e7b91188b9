"""Crops transform masks exactly as pixels, and polygons as masks except near edges."""

import numpy as np
import pytest
from PIL import Image

from fastmask.cocoapi import mask as coco
from fastmask.data.crop import Crop, plan_jitter, plan_resize
from fastmask.data.records import Instance, ellipse_to_polygon
from fastmask.demo import Scenes


def draw_crop(original: tuple[int, int]) -> Crop:
    flipped = bool(np.random.rand() < 0.5)
    if np.random.rand() < 0.3:
        return plan_resize(original, int(np.random.randint(20, 300)), 400, flipped)
    return plan_jitter(original, (96, 128), 10 ** np.random.uniform(-1, 0.7), tuple(np.random.rand(2)), flipped)


def as_rle(mask: np.ndarray) -> Instance:
    return Instance("thing", rle=coco.encode(np.asfortranarray(mask.astype(np.uint8))))


def dilate(mask: np.ndarray) -> np.ndarray:
    """Dilation by a pixel, also from outside the crop, where the mask may continue."""
    padded = np.pad(mask, 1, constant_values=True)
    return np.any(
        [padded[1 + y : y - 1 or None, 1 + x : x - 1 or None] for y in (-1, 0, 1) for x in (-1, 0, 1)], axis=0
    )


def test_masks_are_transformed_as_pixels(seed: int) -> None:
    """An image that is white inside an instance."""
    for record in Scenes(8, seed, (120, 90)):
        for instance in record.instances:
            mask = instance.to_mask(120, 90)
            white = Image.fromarray(np.repeat(mask[:, :, None] * np.uint8(255), 3, axis=2))
            crop = draw_crop((120, 90))
            moved = np.array(crop.apply_image(white))
            assert moved.shape == (*crop.size, 3)
            np.testing.assert_array_equal(crop.apply_mask(instance), moved[:, :, 1] > 127)


def test_polygons_are_transformed_as_masks() -> None:
    for _ in range(30):
        polygon = ellipse_to_polygon(
            *np.random.uniform(30, 70, 2), *np.random.uniform(8, 40, 2), np.random.uniform(0, 7)
        )
        instance = Instance("thing", (polygon,))
        crop = draw_crop((100, 110))
        scale = crop.resized[0] / 100
        painted, warped = crop.apply_mask(instance), crop.apply_mask(as_rle(instance.to_mask(100, 110)))
        rim = painted.copy()
        for _ in range(1 + int(np.ceil(scale))):  # a pixel of the original, rounded to it, and one of the crop
            rim = dilate(rim)
        inner = ~painted
        for _ in range(1 + int(np.ceil(scale))):
            inner = dilate(inner)
        assert not (warped & ~rim).any()
        assert not (~inner & ~warped).any()


def test_points_and_boxes() -> None:
    crop = Crop((10, 20), (20, 60), 4, 6, (12, 40), flipped=True)
    moved = crop.apply_points(np.array([[0.0, 0], [20, 10], [5, 5]]))
    np.testing.assert_allclose(moved, [[46, -4], [-14, 16], [31, 6]])
    np.testing.assert_allclose(crop.apply_box(Instance("thing", box=(5, 5, 10, 9))), [16, 6, 31, 14])
    assert plan_resize((10, 20), 30, 50).resized == (25, 50)
    assert plan_resize((10, 20), 30, 100, room=(64, 45)).resized == (22, 45)


def test_an_edge_is_where_its_points_are() -> None:
    """The edges of a white rectangle land where its corners are mapped to."""
    pixels = np.zeros((64, 80, 3), np.uint8)
    pixels[16:48, 24:56] = 255
    crop = plan_jitter((64, 80), (96, 96), 2.4, (0.4, 0.3), flipped=True)
    white = np.array(crop.apply_image(Image.fromarray(pixels)))[:, :, 0] > 127
    x1, y1, x2, y2 = crop.apply_box(Instance("thing", box=(24, 16, 56, 48)))
    rows, columns = np.flatnonzero(white.any(1)), np.flatnonzero(white.any(0))
    box = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
    np.testing.assert_allclose(box, np.clip([x1, y1, x2, y2], 0, 96), atol=0.51)


@pytest.mark.parametrize("original", [(1, 1), (1, 300), (300, 1), (2, 2)])
def test_tiny_images(original: tuple[int, int]) -> None:
    for zoom in (0.01, 1.0, 5.0):
        crop = plan_jitter(original, (64, 96), zoom, (1.0, 0.0), True)
        assert 1 <= crop.size[0] <= 64
        assert 1 <= crop.size[1] <= 96
        assert crop.apply_image(Image.new("RGB", original[::-1])).size == crop.size[::-1]
    assert min(plan_resize(original, 800, 1333).resized) >= 1


def test_a_mask_of_another_size() -> None:
    crop = plan_resize((10, 12), 20, 30)
    with pytest.raises(ValueError, match=r"a mask must be \[10, 12\] as its image, got \[12, 10\]"):
        crop.apply_mask(as_rle(np.ones((12, 10), bool)))


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "CMYK"])
def test_channels_do_not_mix(mode: str) -> None:
    """Zeros in the last channel, which Pillow takes for transparency, leave the others what they are."""
    crop = plan_jitter((40, 50), (64, 64), 0.7, (0.5, 0.5), flipped=True)
    bands = [Image.fromarray(np.random.randint(0, 256, (40, 50), np.uint8)) for _ in Image.new(mode, (1, 1)).getbands()]
    bands[-1] = bands[-1].point(lambda value: value * (value > 128))
    moved = np.array(crop.apply_image(Image.merge(mode, bands))).reshape(*crop.size, -1)
    for c, band in enumerate(bands):
        assert np.array_equal(moved[:, :, c], np.array(crop.apply_image(band)))
