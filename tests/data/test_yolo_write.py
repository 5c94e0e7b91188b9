"""YOLO's data sets as they are written: objects of several parts, masks, what is left out, names and images."""

from pathlib import Path

import numpy as np
import pytest
from helpers.images import draw_image_file

from fastmask import data
from fastmask.cli import main
from fastmask.data.polygons import signed_area
from fastmask.data.records import box_to_polygon, encode_polygons
from fastmask.data.yolo_write import clip_polygon, join_polygons

coco_mask = pytest.importorskip("pycocotools.mask", reason="it rasterizes")


def make_coco(folder: Path) -> Path:
    """Two splits; a square, a triangle, two parts, two parts that overlap, a box alone, a crowd, and one outside."""
    square, far = box_to_polygon(2, 2, 12, 12), box_to_polygon(20, 20, 30, 30)
    objects = [((square,), {}), ((square, far), {}), ((square, square + 5), {}), ((square - 8,), {})]
    objects += [((), {"box": (5.0, 6.0, 15.5, 26.0)}), ((square,), {"crowd": True}), ((square + 90,), {})]
    instances = tuple(data.Instance(["dog", "cat"][i % 2], parts, **more) for i, (parts, more) in enumerate(objects))
    for split, number in (("train", 2), ("val", 1)):
        (folder / split).mkdir(parents=True)
        files = [draw_image_file(folder / split / f"{i}.png", 40, 50) for i in range(number)]
        records = [data.Record(file, (40, 50), instances if i == 0 else ()) for i, file in enumerate(files)]
        data.write_dataset(data.Dataset(records, {"cat": 3, "dog": 7}, []), folder / split / "coco.json", "coco")
    return folder


def test_write(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All splits at once; classes, objects and their pixels are kept, and what cannot be written is named."""
    source = make_coco(tmp_path / "coco")
    assert main(["data", "convert", str(source), str(tmp_path / "yolo"), "--to", "yolo"]) == 1
    printed = capsys.readouterr().err.splitlines()
    first = f"fastmask data: cannot be written: {source / 'train' / '0.png'}: "
    assert [line.removeprefix(first) for line in printed if line.startswith(first)] == [
        "cat is cut at the edge of the image: it reaches out of it",
        "a crowd of cat",
        "dog is cut at the edge of the image: it reaches out of it",
        "dog has no area inside of the image",
    ]
    file = tmp_path / "yolo" / "data.yaml"
    text = "2 objects with a box alone beside polygons, which fastmask reads, and ultralytics refuses in one data set"
    assert f"fastmask data: cannot be written: {file}: {text}" in printed
    assert (tmp_path / "yolo" / "data.yaml").read_text() == (
        'train: images/train\nval: images/val\nnc: 2\nnames:\n  0: "cat"\n  1: "dog"\n'
    )
    assert (tmp_path / "yolo" / "labels" / "train" / "1.txt").read_text() == ""
    before, after = data.read_all(source), data.read_all(tmp_path / "yolo")
    for split in ("train", "val"):
        assert after[split].problems == []
        assert after[split].categories == {"cat": 1, "dog": 2}
        one, other = before[split].records[0].instances[:5], after[split].records[0].instances
        assert [each.category for each in other] == [each.category for each in one]
        for mine, theirs in zip(one, other, strict=True):
            assert np.array_equal(mine.to_mask(40, 50), theirs.to_mask(40, 50))
            assert mine.has_mask() == theirs.has_mask()
        np.testing.assert_allclose(other[0].polygons[0], one[0].polygons[0], atol=1e-5)
        assert len(other[1].polygons) == len(other[2].polygons) == 1
        np.testing.assert_allclose(other[4].bounds(), (5, 6, 15.5, 26), atol=1e-5)
    assert main(["data", "convert", str(source), str(tmp_path / "yolo"), "--to", "yolo"]) == 2
    assert "must not be there already; --force" in capsys.readouterr().err
    yolo = str(tmp_path / "yolo")
    assert main(["data", "convert", yolo, yolo, "--to", "yolo", "--force"]) == 2
    assert "must be another file than what is read" in capsys.readouterr().err
    assert main(["data", "convert", yolo, str(tmp_path / "back.json"), "--to", "coco", "--split", "train"]) == 0
    back = data.read_dataset(tmp_path / "back.json")
    assert [each.category for each in back.records[0].instances] == [each.category for each in one]


def test_write_names_and_images(tmp_path: Path) -> None:
    """Names that YAML would read otherwise; images of one name; an image that is missing takes its labels along."""
    names = ["no", "7", 'a: "b" # c', "Zürich 猫 🙂", "a\u2028b\x7f\ufeff\n", "~"]
    for folder in ("x", "y"):
        (tmp_path / folder).mkdir()
        draw_image_file(tmp_path / folder / "a.png", 40, 80)
    files = [tmp_path / "x" / "a.png", tmp_path / "y" / "a.png", tmp_path / "gone.png"]
    instances = tuple(data.Instance(name, (box_to_polygon(0, 0, 9, 9),)) for name in names)
    records = [data.Record(file, (40, 80), instances) for file in files]
    dataset = data.Dataset(records, {name: i for i, name in enumerate(names, 1)}, [])
    problems = data.write_dataset({"val": dataset}, tmp_path / "out", "yolo")
    assert [problem.kind for problem in problems] == ["missing image", "cannot be written"]
    assert "its 6 objects, as there is no image" in problems[1].text
    back = data.read_dataset(tmp_path / "out")
    assert back.problems == []
    assert list(back.categories) == names
    assert [record.file.name for record in back.records] == ["a.png", "a_.png"]
    assert [[each.category for each in record.instances] for record in back.records] == [names] * 2
    with pytest.raises(ValueError, match="dataset must have classes for the format yolo, got none"):
        data.write_dataset(data.Dataset([], {}, []), tmp_path / "none", "yolo")
    with pytest.raises(ValueError, match="dataset must be one split for the format coco, got train, val"):
        data.write_dataset({"train": dataset, "val": dataset}, tmp_path / "out.json", "coco")


def test_clipped_and_joined_polygons() -> None:
    """Clipping keeps the pixels inside, joining those of parts apart from one another."""
    for _ in range(40):
        polygon = np.random.uniform(-30, 80, (np.random.randint(3, 12), 2))
        clipped = clip_polygon(polygon, 50, 40)
        if not len(clipped):
            continue
        assert clipped.min() >= 0
        assert (clipped.max(0) <= [50, 40]).all()
        whole = coco_mask.decode(encode_polygons([polygon + 30], 140, 150))[30:70, 30:80]  # clipped after it is drawn
        inside = coco_mask.decode(encode_polygons([clipped], 40, 50))
        assert (whole != inside).sum() <= 0.05 * whole.sum() + 12  # pixels that a side only touches
    parts = [box_to_polygon(10 * x + 1, 10 * y + 1, 10 * x + 8, 10 * y + 7) for x in range(4) for y in range(3)]
    parts[5] = parts[5][::-1]
    joined = join_polygons(parts)
    assert abs(signed_area(join_polygons([parts[0], parts[1]]))) == 84
    assert encode_polygons([joined], 40, 50) == encode_polygons(parts, 40, 50)
