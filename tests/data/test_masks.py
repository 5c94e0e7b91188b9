"""Mask images, as fastmask writes them and Pascal VOC has them."""

from pathlib import Path

import numpy as np
import pytest
from helpers.images import draw_image_file
from PIL import Image

from fastmask import data


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
    (problem,) = dataset.problems
    assert problem.kind == "mixed classes"
    assert problem.text.endswith("get that of most: object 1: dog 24, cat 12 pixels")
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
    assert problem.text == "objects left out: 1 hidden or empty"
    dataset = data.read_dataset(tmp_path / "set")
    assert len(dataset.records[0].instances) == 400
    assert {instance.to_mask(30, 30).sum() for instance in dataset.records[0].instances} == {1}


def test_broken_mask_images(tmp_path: Path) -> None:
    """They are named and left out."""
    ones = np.ones((4, 4), np.uint8)
    folder = write_folder(tmp_path / "set", ones, ones)
    for name in ("b", "c", "d"):
        Image.fromarray(ones).save(folder / "SegmentationObject" / f"{name}.png")
    Image.new("LA", (4, 4)).save(folder / "SegmentationObject" / "b.png")
    (folder / "SegmentationObject" / "c.png").write_bytes(b"\x89PNG")
    Image.fromarray(np.ones((4, 5), np.uint8)).save(folder / "SegmentationClass" / "d.png")
    dataset = data.read_dataset(folder)
    assert len(dataset.records) == 1
    assert [problem.where for problem in dataset.problems] == [f"SegmentationObject/{name}.png" for name in "bcd"]
    for problem, text in zip(dataset.problems, ("got LA", "cannot be read", "must be (4, 4), got (4, 5)"), strict=True):
        assert text in problem.text
    with pytest.raises(ValueError, match="must be a folder of mask images"):
        data.read_dataset(tmp_path, "masks")
