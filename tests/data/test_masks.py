"""Mask images, and outlines of masks."""

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.images import draw_image_file
from PIL import Image

from fastmask import data
from fastmask.data.polygons import outline


def even_odd(polygons: tuple[np.ndarray, ...], height: int, width: int) -> np.ndarray:
    """Pixels whose middle is inside an odd number of times."""
    y, x = np.mgrid[:height, :width] + 0.5
    inside = np.zeros((height, width), bool)
    for polygon in polygons:
        for (x0, y0), (x1, y1) in zip(polygon, np.roll(polygon, -1, axis=0), strict=True):
            if y0 != y1:
                inside ^= ((y0 > y) != (y1 > y)) & (x < (x1 - x0) * (y - y0) / (y1 - y0) + x0)
    return inside


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_outlines_of_anything(share: float) -> None:
    """Speckle has parts in holes in parts, and corners that only touch."""
    for height, width in ((1, 1), (1, 9), *((7, 5),) * 50, *((24, 31),) * 3):
        mask = (torch.rand(height, width) < share).numpy()
        polygons = outline(mask)
        assert np.array_equal(even_odd(polygons, height, width), mask)
    rings = np.zeros((11, 11), bool)
    for i, value in enumerate((True, False, True, False)):
        rings[i : 11 - i, i : 11 - i] = value
    assert [len(polygon) for polygon in outline(rings)] == [10, 10]
    assert outline(np.zeros((4, 4), bool)) == ()


def folder_of(path: Path, objects: np.ndarray, classes: np.ndarray | None, names: str = "cat\ndog\n") -> Path:
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
    """255 belongs to nobody; the class is that of most pixels; classes beyond the names are numbered."""
    objects, classes = np.zeros((20, 30), np.uint8), np.zeros((20, 30), np.uint8)
    objects[2:8, 2:8], classes[2:8, 2:8] = 1, 2
    classes[2:4, 2:8] = 1
    objects[10:15, 10:20], classes[10:15, 10:20] = 7, 9
    objects[1, 2:8] = 255
    found = data.read_dataset(folder_of(tmp_path / "set", objects, classes))
    (record,) = found.records
    assert found.problems == []
    assert [one.category for one in record.objects] == ["dog", "class 9"]
    assert found.categories == {"cat": 1, "dog": 2, "class 9": 3}
    assert record.objects[0].bounds() == (2, 2, 8, 8)
    assert record.file == tmp_path / "set" / "JPEGImages" / "a.jpg"
    assert record.size == (20, 30)


def test_names(tmp_path: Path) -> None:
    """Pascal VOC's own in its own folders; ``object`` without class images."""
    ones = np.ones((4, 4), np.uint8)
    voc = folder_of(tmp_path / "VOC2012", ones, ones * 20)
    (voc / "labels.txt").unlink()
    assert data.read_dataset(voc).records[0].objects[0].category == "tvmonitor"
    assert data.read_dataset(folder_of(tmp_path / "own", ones, None)).records[0].objects[0].category == "object"


def test_more_than_255_objects(tmp_path: Path) -> None:
    """In 16 bits; what is hidden behind others is told."""
    file = draw_image_file(tmp_path / "a.png", 30, 30)
    spots = [np.array([[x, y], [x + 1, y], [x + 1, y + 1], [x, y + 1]], float) for y in range(20) for x in range(20)]
    objects = tuple(data.Object("spot", (spot,)) for spot in spots)
    hidden = data.Object("spot", (spots[0],))
    dataset = data.Dataset([data.Record(file, (30, 30), (hidden, *objects))], {"spot": 1}, [])
    (problem,) = data.write_dataset(dataset, tmp_path / "set", "masks")
    assert problem.text == "1 objects are crowds, hidden or empty"
    found = data.read_dataset(tmp_path / "set")
    assert len(found.records[0].objects) == 400
    assert {one.mask(30, 30).sum() for one in found.records[0].objects} == {1}


def test_broken_mask_images(tmp_path: Path) -> None:
    """Are named and left out."""
    ones = np.ones((4, 4), np.uint8)
    folder = folder_of(tmp_path / "set", ones, ones)
    for name in ("b", "c", "d"):
        Image.fromarray(ones).save(folder / "SegmentationObject" / f"{name}.png")
    Image.new("RGB", (4, 4)).save(folder / "SegmentationObject" / "b.png")
    (folder / "SegmentationObject" / "c.png").write_bytes(b"\x89PNG")
    Image.fromarray(np.ones((4, 5), np.uint8)).save(folder / "SegmentationClass" / "d.png")
    found = data.read_dataset(folder)
    assert len(found.records) == 1
    assert [problem.where for problem in found.problems] == ["b.png", "c.png", "d.png"]
    for problem, text in zip(found.problems, ("got RGB", "cannot be read", "must be (4, 4), got (4, 5)"), strict=True):
        assert text in problem.text
    with pytest.raises(ValueError, match="must be a folder of mask images"):
        data.read_dataset(tmp_path, "masks")
