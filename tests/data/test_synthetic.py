"""Synthetic images: exact masks, the same for the same seed, saved and read back."""

import itertools
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastmask.cli import main
from fastmask.data import read_dataset
from fastmask.demo import CLASSES, SCENES, Scenes, draw_scene, drawing, synthetic_dataset
from fastmask.demo.shapes import REACH, SHAPES, convex_sdf, draw_shape, ellipse_sdf, find_half_planes


def grid(side: int = 41) -> tuple[np.ndarray, np.ndarray]:
    axis = np.arange(side, dtype=np.float32) - side // 2 + np.float32(0.25)
    return axis[None, :], axis[:, None]


def test_ellipse_is_inside_its_equation() -> None:
    x, y = grid()
    angle = np.random.uniform(0, 7)
    u, v = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    level = (u / 15) ** 2 + (v / 7) ** 2
    distance = ellipse_sdf(15, 7, angle)(x, y)
    clear = abs(level - 1) > 1e-5
    assert ((distance < 0) == (level < 1))[clear].all()
    along = ellipse_sdf(15, 7, 0.0)(np.float32([[14, 15, 16.5]]), np.float32([[0]]))
    np.testing.assert_allclose(along, [[-1, 0, 1.5]], atol=1e-5)


def test_polygon_is_between_its_sides() -> None:
    corners = np.array([[12, 3], [-2, 15], [-14, -1], [3, -9]], float)
    x, y = grid()
    inside = np.ones((41, 41), bool)
    for (x0, y0), (x1, y1) in itertools.pairwise([*corners, corners[0]]):
        inside &= (x1 - x0) * (y - y0) - (y1 - y0) * (x - x0) > 0
    distance = convex_sdf(*find_half_planes(corners), limit=50)(x, y)
    assert ((distance < 0) == inside)[abs(distance) > 1e-4].all()


@pytest.mark.parametrize("kind", SHAPES)
def test_shapes_stay_in_reach(kind: str) -> None:
    x, y = grid(121)
    for _ in range(20):
        inside = draw_shape(np.random.default_rng(np.random.randint(2**31)), kind, 40)(x, y) < 0
        assert inside.sum() > 100
        assert np.hypot(x, y)[inside].max() <= 40 * REACH


@pytest.mark.parametrize("scene", SCENES)
def test_masks_are_the_visible_parts(scene: str, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mask holds the pixels whose center is inside the object and inside no object drawn later."""
    shapes = []
    draw_object, place_shape = drawing._draw_object, drawing._place_shape

    def place(*args: object) -> object:
        shape = place_shape(*args)
        shapes.append([shape, False])
        return shape

    def draw(*args: object) -> None:
        shapes[-1][1] = True
        draw_object(*args)

    monkeypatch.setattr(drawing, "_place_shape", place)
    monkeypatch.setattr(drawing, "_draw_object", draw)
    drawn = draw_scene(np.random.default_rng(seed), (150, 200), scene)
    owner = np.full((150, 200), -1)
    kept = [shape for shape, was_drawn in shapes if was_drawn]
    for number, (part, distance) in enumerate(kept):
        owner[part][distance < 0] = number
    assert len(drawn.masks) == len(drawn.labels) == len(kept) >= (1 if scene == "figures" else 2)
    for number, mask in enumerate(drawn.masks):
        np.testing.assert_array_equal(mask, owner == number)
        assert mask.sum() >= drawing.MIN_VISIBLE


def test_masks_are_where_objects_are_drawn(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """White objects on black: antialiasing leaves pixels of a mask more than half white."""
    monkeypatch.setattr(drawing, "_draw_background", lambda generator, size, scene: np.zeros((*size, 3), np.float32))
    monkeypatch.setattr(drawing, "_draw_surface", lambda _, depth, *rest: np.ones((*depth.shape, 3), np.float32))
    drawn = draw_scene(np.random.default_rng(seed), (96, 128))
    bright, inside = drawn.image[:, :, 0] / 255, drawn.masks.any(0)
    noise = 0.12
    assert bright[inside].min() > 0.5 - noise
    assert bright[~inside].max() < 0.875 + noise  # where three edges meet
    assert (bright[~inside] < 0.5 + noise).mean() > 0.98


def test_same_seed_same_images(seed: int) -> None:
    scenes, again = Scenes(10**9, seed), Scenes(7, seed)
    for number in (0, 3, 6):
        first, second = scenes[number], again[number]
        assert first.image is not None
        np.testing.assert_array_equal(np.array(first.image), np.array(second.image))
        assert first.instances == second.instances
    assert scenes[10**9 - 1].instances
    assert again[-1].instances == again[6].instances
    assert [record.id for record in again[2:4]] == [3, 4]
    assert scenes[0].instances != Scenes(1, seed + 1)[0].instances
    with pytest.raises(IndexError, match="index must be below 7, got 7"):
        again[7]


def test_categories_are_those_of_the_scene(seed: int) -> None:
    for scene in SCENES:
        dataset = synthetic_dataset(12, seed, scene=scene)
        used = {instance.category for record in dataset.records for instance in record.instances}
        assert {(name, CLASSES.index(name) + 1) for name in used} <= set(dataset.categories.items())
        assert len(dataset.categories) == {"shapes": 3, "grains": 1, "mixed": 4, "figures": 1}[scene]


def test_numbers_of_instances(seed: int) -> None:
    for scene, least, most in (("shapes", 1, 7), ("grains", 5, 28)):
        numbers = [len(record.instances) for record in Scenes(20, seed, scene=scene)]
        assert least <= min(numbers)
        assert max(numbers) <= most
        assert len(set(numbers)) > 1


def test_bad_requests() -> None:
    with pytest.raises(ValueError, match="scene must be one of shapes, grains, mixed, figures, got 'cats'"):
        Scenes(1, scene="cats")
    with pytest.raises(ValueError, match="size must be at least 32, got"):
        synthetic_dataset(1, size=(8, 64))
    with pytest.raises(ValueError, match="number must be at least 0, got -1"):
        Scenes(-1)


def test_saved_and_read_back(tmp_path: Path, seed: int, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--number", "4", "--seed", str(seed), "--size", "64", "96", "--scene", "grains"]
    assert main(["data", "draw", str(tmp_path / "set"), *options]) == 0
    assert "4 images" in capsys.readouterr().out
    read = read_dataset(tmp_path / "set")
    assert not read.problems
    assert read.categories == synthetic_dataset(0, scene="grains").categories == {"grain": 4}
    for saved, drawn in zip(read.records, Scenes(4, seed, (64, 96), "grains"), strict=True):
        assert drawn.image is not None
        np.testing.assert_array_equal(np.array(Image.open(saved.file)), np.array(drawn.image))
        assert saved.id == drawn.id
        for first, second in zip(saved.instances, drawn.instances, strict=True):
            assert (first.category, first.bounds()) == (second.category, second.bounds())
            np.testing.assert_array_equal(first.to_mask(64, 96), second.to_mask(64, 96))
    assert main(["data", "check", str(tmp_path / "set")]) == 0
    assert main(["data", "draw", str(tmp_path / "set"), "--size", "3", "3"]) == 2
    assert "size must be at least 32" in capsys.readouterr().err
