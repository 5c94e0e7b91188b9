"""YOLO's data sets as they are read: which labels are whose, lines, and what is broken."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fastmask import data
from fastmask.cli import main
from fastmask.data.records import count_left_out
from fastmask.data.splits import read_splits

pytest.importorskip("pycocotools.mask", reason="it rasterizes")
YAML = "names: [cat, dog]\n"
TRIANGLE = "1 0.1 0.2 0.5 0.2 0.5 0.75"  # in 40 x 80: (8, 8), (40, 8), (40, 30)


def texts(dataset: data.Dataset) -> list[str]:
    return [problem.text for problem in dataset.problems]


def write_image(folder: Path, image: str, label: str | None = None, text: str = TRIANGLE) -> None:
    """An image of 40 x 80 pixels, and its labels."""
    for name in (image, *([label] if label else [])):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (80, 40)).save(folder / image)
    if label:
        (folder / label).write_text(text)


def read_lines(folder: Path, *lines: str, yaml: str = YAML) -> data.Dataset:
    write_image(folder, "a.png", "a.txt", "\n".join(lines))
    (folder / "data.yaml").write_text(f"{yaml}train: .\n")
    return data.read_dataset(folder)


LAYOUTS: dict[str, tuple[dict[str, Any], dict[str, tuple[str, str]]]] = {
    "images and labels": (
        {"path": "../set", "train": "images/train", "val": "images/val"},
        {"train": ("images/train/a.png", "labels/train/a.txt"), "val": ("images/val/b.b.png", "labels/val/b.b.txt")},
    ),
    "roboflow": (
        {"train": "../train/images", "val": "../valid/images", "test": "../test/images"},
        {
            "train": ("train/images/a.png", "train/labels/a.txt"),
            "val": ("valid/images/b.png", "valid/labels/b.txt"),
            "test": ("test/images/c.png", "test/labels/c.txt"),
        },
    ),
    "beside": (
        {"path": "/content/drive/set", "train": "one", "val": "two"},
        {"train": ("one/a.png", "one/a.txt"), "val": ("two/b.png", "two/b.txt")},
    ),
    "of another machine": (
        {"path": "C:\\data\\set", "train": "C:\\data\\set\\images\\one", "validation": "/data/set/images/two"},
        {"train": ("images/one/a.png", "labels/one/a.txt"), "val": ("images/two/deep/b.png", "labels/two/deep/b.txt")},
    ),
    "lists": (
        {"train": "train.txt", "val": ["lists/val.txt"]},
        {"train": ("images/a.png", "labels/a.txt"), "val": ("images/sub/b.png", "labels/sub/b.txt")},
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Images and labels of each split, from the file and its folder, for all commands."""
    content, files = LAYOUTS[layout]
    folder = tmp_path / "images" / "set"  # not what becomes "labels"
    for image, label in files.values():
        write_image(folder, image, label)
    (folder / "train.txt").write_text("./images/a.png\n\n")
    (folder / "lists").mkdir()
    (folder / "lists" / "val.txt").write_text("/elsewhere/images/sub/b.png\r\n")
    (folder / "data.yaml").write_text(json.dumps(content | {"names": {"0": "cat", 1: "dog"}}))
    for given in (folder, folder / "data.yaml"):
        assert data.find_format(given) == "yolo"
        splits = data.read_all(given)
        assert list(splits) == list(files)
        for split, dataset in splits.items():
            assert dataset.problems == []
            (record,) = dataset.records
            assert record.file.resolve() == folder / files[split][0]
            assert record.size == (40, 80)
            (instance,) = record.instances
            assert instance.category == "dog"
            np.testing.assert_allclose(instance.polygons, [[[8, 8], [40, 8], [40, 30]]], rtol=1e-12)
            assert dataset.categories == {"cat": 1, "dog": 2}
        assert [len(split.records) for split in read_splits(given) if split] == [1, 1]
    assert main(["data", "check", str(folder)]) == 0
    assert capsys.readouterr().out.count("1 images (0 without objects), 1 objects: ") == len(files)
    (tmp_path / "results.json").write_text("[]")
    evaluate = ["evaluate", str(folder), "--results", str(tmp_path / "results.json"), "--out", str(tmp_path / "out")]
    assert main(evaluate) == 0
    assert f"{folder}: the split val is read, {folder / 'data.yaml'}" in capsys.readouterr().out
    convert = ["data", "convert", str(folder), str(tmp_path / "out.json"), "--to", "coco"]
    assert main(convert) == 2
    assert "must be one data set, got the splits train (" in capsys.readouterr().err
    assert main([*convert, "--split", "val"]) == 0
    assert len(data.read_dataset(tmp_path / "out.json").records) == 1
    assert main([*evaluate, "--split", "test"]) == (0 if "test" in files else 2)
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    for image, _ in files.values():
        shutil.move(folder / image, moved / Path(image).name)
    if layout == "lists":  # the images are elsewhere, the labels where the data.yaml says
        dataset = data.read_dataset(folder, images=moved, split="val")
        assert [(record.file, len(record.instances)) for record in dataset.records] == [(moved / "b.png", 1)]


def test_images_elsewhere(tmp_path: Path) -> None:
    """With ``images``, a folder for each split, whose labels are where the data.yaml says; else both have one file."""
    for split in ("train", "val"):
        write_image(tmp_path / "all", f"{split}/{split}.png", f"../set/labels/{split}/{split}.txt")
    (tmp_path / "set" / "data.yaml").write_text(f"{YAML}train: images/train\nval: images/val\n")
    splits = data.read_all(tmp_path / "set", images=tmp_path / "all")
    for split, dataset in splits.items():
        assert dataset.problems == []
        assert [record.file for record in dataset.records] == [tmp_path / "all" / split / f"{split}.png"]
        assert [len(record.instances) for record in dataset.records] == [1]
    with pytest.raises(ValueError, match="train and val must have images of their own"):
        data.read_all(tmp_path / "set", images=tmp_path / "all" / "train")


def test_lines(tmp_path: Path) -> None:
    """Polygons and boxes in one file, empty lines, Windows' ends of lines, a byte-order mark, a class as a float."""
    lines = ["\ufeff" + TRIANGLE, "0 0.5 0.5 0.25 0.5\r", "", "0.0 0 0 1.005 0 1.005 1 0 1"]
    dataset = read_lines(tmp_path, *lines)
    assert dataset.problems == []
    polygon, box, whole = dataset.records[0].instances
    assert [instance.category for instance in (polygon, box, whole)] == ["dog", "cat", "cat"]
    assert (box.box, box.has_mask()) == ((30, 10, 50, 30), False)
    assert whole.bounds() == pytest.approx((0, 0, 80.4, 40))
    assert count_left_out(dataset) == {"masks (of objects with a box alone)": 1}
    (tmp_path / "a.txt").unlink()
    write_image(tmp_path, "b.png", "b.txt", " \n\n")
    dataset = data.read_dataset(tmp_path)
    assert [len(record.instances) for record in dataset.records] == [0, 0]  # background
    assert dataset.problems == []


BROKEN = {
    "1 0.1 0.2 0.5 0.2 0.5": "an even number of coordinates, got 5: a box and its score?",
    "1 0.1 0.2 0.5 0.2 0.5 0.7 0.9": "an even number of coordinates, got 7",
    "1 0.1 0.2": "a box or three corners, got 2 coordinates",
    "1": "a box or three corners, got 0 coordinates",
    "1 0.1 nan 0.5 0.2": "coordinates must be finite, got NaN or infinity",
    "1 0.1 0.2 inf 0.2": "coordinates must be finite",
    "2 0.1 0.2 0.5 0.2": "the class must be one of 0 to 1, got 2",
    "-1 0.1 0.2 0.5 0.2": "the class must be one of 0 to 1, got -1",
    "nan 0.1 0.2 0.5 0.2": "the class must be one of 0 to 1, got nan",
    "0.5 0.1 0.2 0.5 0.2": "the class must be one of 0 to 1, got 0.5",
    "cat 0.1 0.2 0.5 0.2": "a line must be numbers, got 'cat'",
    "1 0_1 0.2 0.5 0.2": "a line must be numbers, got '0_1'",
    "1,0.1,0.2,0.5,0.2": "a line must be numbers, got '1,0.1,0.2,0.5,0.2'",
    "1 10 20 50 20": "coordinates must be normalized, in [0, 1], got 50",
    "1 0.5 0.5 -0.2 0.2": "coordinates must be normalized, in [0, 1], got -0.2",
    "1 0.5 0.5 -0.005 0.2": "a box's width and height must be at least 0, got -0.005 and 0.2",
    "1 0.1 0.2 0.5 0.2 1.02 0.7": "coordinates must be normalized, in [0, 1], got 1.02",
    "1 " + "0.5 " * 2**21: "a line must have at most 4194304 characters, got 8388610",
    "\0": "a line must be numbers, got '\\x00'",
}


def test_broken_lines(tmp_path: Path) -> None:
    """Each is named with its file and line; the good ones stay."""
    lines = [line for broken in list(BROKEN)[:16] for line in (broken, TRIANGLE)]
    dataset = read_lines(tmp_path, *lines)
    assert len(dataset.records[0].instances) == 16
    expected = list(BROKEN.values())
    for number, (problem, text) in enumerate(zip(dataset.problems, expected, strict=False)):
        assert problem.kind == "broken annotation"
        assert problem.where == f"{tmp_path / 'a.txt'}: line {2 * number + 1}"
        assert text in problem.text
    for line, text in list(BROKEN.items())[16:]:
        (problem,) = read_lines(tmp_path, line, TRIANGLE).problems
        assert text in problem.text
    many = read_lines(tmp_path, *["x"] * 1000)
    assert len(many.problems) == 21
    assert many.problems[-1].text == "980 more lines are broken"
    (problem,) = read_lines(tmp_path, "7 0 0 1 1", yaml="names: {3: cat, 9: dog}\n").problems
    assert problem.text == "the class must be one of 3, 9, got 7"
    assert read_lines(tmp_path, "9 0 0 1 1", yaml="names: {3: cat, 9: dog}\n").categories == {"cat": 4, "dog": 10}


def test_keypoints_are_no_polygons(tmp_path: Path) -> None:
    """Lines of a data.yaml with kpt_shape: their boxes alone are read, and a note says so."""
    dataset = read_lines(
        tmp_path, "0 0.5 0.5 0.25 0.5 0.1 0.1 2 0.2 0.2 2", TRIANGLE, yaml=f"{YAML}kpt_shape: [2, 3]\n"
    )
    assert [instance.box for instance in dataset.records[0].instances] == [(30, 10, 50, 30)]
    assert dataset.notes[-1] == "data.yaml: boxes alone are read of lines with keypoints (kpt_shape)"
    assert texts(dataset) == ["a line must have a class, a box and 6 values of keypoints (kpt_shape), got 7 values"]


def test_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Labels without an image, labels of two images, images that cannot be read or are not there, and folders."""
    write_image(tmp_path, "images/a.png", "labels/a.txt")
    write_image(tmp_path, "images/b.png", "labels/c.txt")
    (tmp_path / "labels" / "classes.txt").write_text("cat\ndog\n")
    (tmp_path / "images" / "a.jpg").write_bytes(b"torn")
    (tmp_path / "data.yaml").write_text(f"{YAML}train: images\nval: none\n")
    splits = data.read_all(tmp_path)
    assert [len(record.instances) for record in splits["train"].records] == [0, 1, 0]
    label = tmp_path / "labels" / "a.txt"
    assert splits["train"].problems == [
        data.Problem(
            "missing image",
            str(tmp_path / "images"),
            f"labels must be of an image, got 1 files that are of none, first {tmp_path / 'labels' / 'c.txt'}",
        ),
        data.Problem("missing image", str(label), "1 objects have no place, as their image cannot be read"),
        data.Problem("duplicate", str(label), "it has the labels of two images, a.jpg and a.png"),
    ]
    assert (splits["val"].records, [problem.kind for problem in splits["val"].problems]) == ([], ["missing folder"])
    text = "it must be a folder of images or a text file of their names, got 'none', which is not there"
    train = ["train", "--epochs", "1", "--out", str(tmp_path / "out"), "--data-path"]
    for command in (train, ["evaluate"]):
        assert main([*command, str(tmp_path)]) == 2
        assert f"must have images, got none: data.yaml: val: {text}" in capsys.readouterr().err
    (tmp_path / "list.txt").write_text("images/a.png\nimages/gone.png\n\n../../../../etc/passwd\n")
    (tmp_path / "data.yaml").write_text(f"{YAML}train: list.txt\n")
    dataset = data.read_dataset(tmp_path)
    assert [(record.file.name, record.size) for record in dataset.records] == [("a.png", (40, 80)), ("gone.png", None)]
    assert texts(dataset) == ["its name must be of an image in the data set, got '../../../../etc/passwd'"]
    assert count_left_out(dataset)["missing images"] == 1


def test_upright(tmp_path: Path) -> None:
    """Labels are of the image as its EXIF orientation shows it."""
    dataset = read_lines(tmp_path, TRIANGLE)
    exif = Image.Exif()
    exif[274] = 6
    Image.new("RGB", (40, 80)).save(tmp_path / "a.png", exif=exif)
    dataset = data.read_dataset(tmp_path)
    assert dataset.records[0].size == (40, 80)
    assert dataset.records[0].load().size == (80, 40)
    np.testing.assert_allclose(dataset.records[0].instances[0].polygons[0][2], [40, 30])


@pytest.mark.parametrize(
    ("yaml", "message"),
    [
        ("names: [cat", "data.yaml must be a YAML file"),
        ("- cat\n", "must have names and train or val, as YOLO's data.yaml, got ['cat']"),
        ("names: [cat]\ntrain:\n", "must have train, val or test, got ['names', 'train']"),
        ("train: .\n", "must have names, a list or by number, or nc, their number, up to 10000, got None"),
        ("train: .\nnc: 1000000\n", "must have names, a list or by number, or nc"),
        ("train: .\nnames: {cat: 0}\n", "must have names with numbers from 0, got {'cat': 0}"),
        ("train: .\nnames: cat\n", "must have names, a list or by number, or nc"),
        ("train: .\nnames: [cat]\nkpt_shape: 17\n", "as its kpt_shape, got 17"),
    ],
)
def test_files_that_are_no_data_sets(
    yaml: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "data.yaml").write_text(yaml)
    assert main(["data", "check", str(tmp_path)]) == 2
    assert message in capsys.readouterr().err


def test_names(tmp_path: Path) -> None:
    """YAML's own words, repeated names, a number of classes alone, and numbers that do not fit."""
    yaml = "names: [no, cat, cat, 7, 2020-01-01]\nnc: 4\n"
    dataset = read_lines(tmp_path, "0 0.5 0.5 1 1", yaml=yaml)
    assert dataset.categories == {"0": 1, "cat": 2, "cat (2)": 3, "7": 4, "4": 5}
    assert texts(dataset) == [
        "a name must be text, in quotes where YAML reads it otherwise, got False: the number 0 is its name",
        "the name cat is taken",
        "a name must be text, in quotes where YAML reads it otherwise, "
        "got datetime.date(2020, 1, 1): the number 4 is its name",
        "nc must be the number of names, 5, got 4",
    ]
    assert read_lines(tmp_path, yaml="nc: 3\n").categories == {"class_0": 1, "class_1": 2, "class_2": 3}
    (problem,) = read_lines(tmp_path, yaml="names: {0: cat, x: dog}\n").problems
    assert (problem.where, problem.text) == ("data.yaml: names['x']", "it must have a number of its own, from 0")
    (problem,) = read_lines(tmp_path, yaml=f"{YAML}path: 5\n").problems
    assert problem.text == "path: it must be text, got 5"


def test_formats_beside_one_another(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A folder of two formats names both, and either can be chosen; other YAML and JSON files are no annotations."""
    read_lines(tmp_path, TRIANGLE)
    (tmp_path / "args.yaml").write_text("model: yolo.pt\ndata: data.yaml\nval: true\n")
    (tmp_path / "settings.json").write_text("{}")
    assert data.find_format(tmp_path) == "yolo"
    content = {"images": [{"id": 1, "file_name": "a.png"}], "annotations": [], "categories": []}
    (tmp_path / "coco.json").write_text(json.dumps(content))
    assert main(["data", "check", str(tmp_path)]) == 2
    assert f"(--format), got {tmp_path / 'coco.json'} and yolo (data.yaml)" in capsys.readouterr().err
    assert len(data.read_dataset(tmp_path, "yolo").records[0].instances) == 1
    assert len(data.read_dataset(tmp_path, "coco").records[0].instances) == 0
    (tmp_path / "coco.json").unlink()
    (tmp_path / "other.yml").write_text(f"{YAML}train: .\n")
    assert main(["data", "check", str(tmp_path)]) == 2
    assert "must hold one data.yaml, got data.yaml, other.yml: name one" in capsys.readouterr().err
    assert main(["data", "check", str(tmp_path / "other.yml")]) == 0
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "a.txt").write_text(TRIANGLE)
    assert main(["data", "check", str(tmp_path / "labels")]) == 2
    assert "got none, but labels of YOLO's, which are read by their data.yaml" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert main(["data", "check", str(tmp_path / "empty"), "--format", "yolo"]) == 2
    assert "must be a data.yaml or a folder with one, got none" in capsys.readouterr().err


def test_without_pyyaml(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Each command says what to install; other data sets need none."""
    read_lines(tmp_path, TRIANGLE)
    monkeypatch.setitem(sys.modules, "yaml", None)
    train = ["train", "--epochs", "1", "--out", str(tmp_path / "out"), "--data-path"]
    for command in (["data", "check"], ["evaluate"], train):
        assert main([*command, str(tmp_path)]) == 2
        assert "data.yaml needs PyYAML: pip install 'fastmask-rcnn[yaml]'" in capsys.readouterr().err
