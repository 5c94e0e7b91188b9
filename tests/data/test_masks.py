"""Mask images, and polygons of masks."""

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.images import draw_image_file
from PIL import Image

from fastmask import data
from fastmask.data.polygons import mask_to_polygons


def even_odd(polygons: tuple[np.ndarray, ...], height: int, width: int) -> np.ndarray:
    """The mask [h, w] of polygons by the even-odd rule at pixel centers."""
    y, x = np.mgrid[:height, :width] + 0.5
    inside = np.zeros((height, width), bool)
    for polygon in polygons:
        for (x0, y0), (x1, y1) in zip(polygon, np.roll(polygon, -1, axis=0), strict=True):
            if y0 != y1:
                inside ^= ((y0 > y) != (y1 > y)) & (x < (x1 - x0) * (y - y0) / (y1 - y0) + x0)
    return inside


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_polygons_of_random_masks(share: float) -> None:
    """Noise has components inside holes of components, and components that touch at corners only."""
    for height, width in ((1, 1), (1, 9), *((7, 5),) * 50, *((24, 31),) * 3):
        mask = (torch.rand(height, width) < share).numpy()
        polygons = mask_to_polygons(mask)
        assert np.array_equal(even_odd(polygons, height, width), mask)
    rings = np.zeros((11, 11), bool)
    for i, value in enumerate((True, False, True, False)):
        rings[i : 11 - i, i : 11 - i] = value
    assert [len(polygon) for polygon in mask_to_polygons(rings)] == [10, 10]
    assert mask_to_polygons(np.zeros((4, 4), bool)) == ()


def write_folder(path: Path, objects: np.ndarray, classes: np.ndarray | None, names: str = "cat\ndog\n") -> Path:
    (path / "SegmentationObject").mkdir(parents=True)
    (path / "SegmentationClass").mkdir()
    (path / "JPEGImages").mkdir()
    (path / "labels.txt").write_text(names)
    Image.fromarray(objects).save(path / "SegmentationObject" / "a.png")
    if classes is not None:
        Image.fromarray(classes).save(path / "SegmentationClass" / "a.png")
    draw_image_file(path / "JPEGImages" / "a.jpg", *objects.shape)
    return path


def test_classes_and_borders(tmp_path: Path) -> None:
    """255 is void; an instance has the class of most of its pixels; classes beyond the names are numbered."""
    objects, classes = np.zeros((20, 30), np.uint8), np.zeros((20, 30), np.uint8)
    objects[2:8, 2:8], classes[2:8, 2:8] = 1, 2
    classes[2:4, 2:8] = 1
    objects[10:15, 10:20], classes[10:15, 10:20] = 7, 9
    objects[1, 2:8] = 255
    dataset = data.read_dataset(write_folder(tmp_path / "set", objects, classes))
    (record,) = dataset.records
    assert dataset.problems == []
    assert [instance.category for instance in record.instances] == ["dog", "class 9"]
    assert dataset.categories == {"cat": 1, "dog": 2, "class 9": 3}
    assert record.instances[0].bounds() == (2, 2, 8, 8)
    assert record.file == tmp_path / "set" / "JPEGImages" / "a.jpg"
    assert record.size == (20, 30)


def test_names(tmp_path: Path) -> None:
    """Pascal VOC's in a folder of its name; ``object`` without class images."""
    ones = np.ones((4, 4), np.uint8)
    voc = write_folder(tmp_path / "VOC2012", ones, ones * 20)
    (voc / "labels.txt").unlink()
    assert data.read_dataset(voc).records[0].instances[0].category == "tvmonitor"
    assert data.read_dataset(write_folder(tmp_path / "own", ones, None)).records[0].instances[0].category == "object"


def test_more_than_255_objects(tmp_path: Path) -> None:
    """They are written in 16 bits; hidden instances are named."""
    file = draw_image_file(tmp_path / "a.png", 30, 30)
    spots = [np.array([[x, y], [x + 1, y], [x + 1, y + 1], [x, y + 1]], float) for y in range(20) for x in range(20)]
    instances = tuple(data.Instance("spot", (spot,)) for spot in spots)
    hidden = data.Instance("spot", (spots[0],))
    dataset = data.Dataset([data.Record(file, (30, 30), (hidden, *instances))], {"spot": 1}, [])
    (problem,) = data.write_dataset(dataset, tmp_path / "set", "masks")
    assert problem.text.startswith("1 objects are crowds, hidden, empty")
    dataset = data.read_dataset(tmp_path / "set")
    assert len(dataset.records[0].instances) == 400
    assert {instance.to_mask(30, 30).sum() for instance in dataset.records[0].instances} == {1}


def test_broken_mask_images(tmp_path: Path) -> None:
    """They are named and left out."""
    ones = np.ones((4, 4), np.uint8)
    folder = write_folder(tmp_path / "set", ones, ones)
    for name in ("b", "c", "d"):
        Image.fromarray(ones).save(folder / "SegmentationObject" / f"{name}.png")
    Image.new("RGB", (4, 4)).save(folder / "SegmentationObject" / "b.png")
    (folder / "SegmentationObject" / "c.png").write_bytes(b"\x89PNG")
    Image.fromarray(np.ones((4, 5), np.uint8)).save(folder / "SegmentationClass" / "d.png")
    dataset = data.read_dataset(folder)
    assert len(dataset.records) == 1
    assert [problem.where for problem in dataset.problems] == ["b.png", "c.png", "d.png"]
    for problem, text in zip(
        dataset.problems, ("got RGB", "cannot be read", "must be (4, 4), got (4, 5)"), strict=True
    ):
        assert text in problem.text
    with pytest.raises(ValueError, match="must be a folder of mask images"):
        data.read_dataset(tmp_path, "masks")
