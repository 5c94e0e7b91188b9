"""Where images and annotations are found: one rule for all formats and commands; only images are read and copied."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.images import draw_image_file
from PIL import Image

from fastmask import data
from fastmask.cli import main
from fastmask.data.records import box_to_polygon
from fastmask.data.splits import read_splits

pytest.importorskip("pycocotools.mask", reason="it rasterizes and evaluates")
SQUARE = box_to_polygon(1, 1, 9, 9)


def make_content(format: str, *names: str) -> dict[str, Any]:
    """A file of the format with one object in each image; labelme's has the first image alone."""
    if format == "labelme":
        return {"imagePath": names[0], "shapes": [{"label": "cat", "points": SQUARE.tolist()}]}
    if format == "via":
        shape = {"name": "polygon", "all_points_x": SQUARE[:, 0].tolist(), "all_points_y": SQUARE[:, 1].tolist()}
        regions = [{"shape_attributes": shape, "region_attributes": {"class": "cat"}}]
        return {name: {"filename": name, "regions": regions} for name in names}
    images = [{"id": i, "file_name": name} for i, name in enumerate(names)]
    annotations = [
        {"id": i, "image_id": i, "category_id": 1, "segmentation": [SQUARE.ravel().tolist()]} for i in range(len(names))
    ]
    return {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "cat"}]}


def write(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


JSON_FORMATS = ("coco", "via", "labelme")
NAMES = {
    "7/a.png": "7/a.png",
    "7\\a.png": "7/a.png",
    ".\\7\\\\a.png": "7/a.png",
    "C:\\Users\\me\\7\\a.png": "7/a.png",
    "c:/elsewhere/b.png": "b.png",
    "\\\\server\\share\\7\\a.png": "7/a.png",
    "/data/upload/7/a.png": "7/a.png",
    "/data/upload/9/b.png": "b.png",
    "/mnt/file[1].png": "file[1].png",
    "..\\..\\media\\b.png": "b.png",
}


@pytest.mark.parametrize("format", JSON_FORMATS)
def test_names_of_images(format: str, tmp_path: Path) -> None:
    """Backslashes, drives, servers and another machine's absolute names, beside annotations and with ``images``."""
    for folder in ("set", "other"):
        (tmp_path / folder / "7").mkdir(parents=True)
        for name in set(NAMES.values()):
            draw_image_file(tmp_path / folder / name, 8, 8)
    for number, (name, expected) in enumerate(NAMES.items()):
        file = write(tmp_path / "set" / f"{number}.json", make_content(format, name))
        for images, folder in ((None, "set"), (tmp_path / "other", "other")):
            dataset = data.read_dataset(file, images=images)
            assert [record.file for record in dataset.records] == [tmp_path / folder / expected], name
            assert dataset.problems == []
    file = write(tmp_path / "set" / "a.json", make_content(format, "train/b.png"))
    assert not data.read_dataset(file).records[0].file.exists()  # a relative name means what it says
    assert data.read_dataset(file, images=tmp_path / "other").records[0].file == tmp_path / "other" / "b.png"
    missing = write(tmp_path / "set" / "b.json", make_content(format, "C:\\x\\none.png"))
    assert data.read_dataset(missing).records[0].file == tmp_path / "set" / "none.png"
    (tmp_path / "set" / "7\\a.png").write_bytes((tmp_path / "set" / "b.png").read_bytes())  # as some unpack archives
    assert data.read_dataset(tmp_path / "set" / "1.json").records[0].file == tmp_path / "set" / "7\\a.png"


@pytest.mark.parametrize("format", JSON_FORMATS)
def test_names_that_lead_out(format: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """They are named; nothing but images is read or copied, wherever it is."""
    folder = tmp_path / "a" / "b" / "set"
    folder.mkdir(parents=True)
    secret = tmp_path / "secret"
    secret.write_text("password")
    bad = ["../../../secret", str(secret), "../../../../../../../../etc/passwd", "a\0.png", "x" * 300, "..", "7/"]
    for number, name in enumerate(bad[:6]):
        write(folder / f"{number}.json", make_content(format, name))
        dataset = data.read_dataset(folder / f"{number}.json")
        assert len(dataset.records) == 0
        assert "its name must be of " in dataset.problems[0].text
    source = str(folder if format == "labelme" else write(folder / "all.json", make_content(format, *bad)))
    assert main(["data", "convert", source, str(tmp_path / "masks"), "--to", "masks"]) == 1
    assert list((tmp_path / "masks" / "JPEGImages").iterdir()) == []
    assert "secret'" in capsys.readouterr().err
    for file in folder.iterdir():
        file.unlink()
    draw_image_file(tmp_path / "c.png", 12, 12)
    draw_image_file(tmp_path / "a" / "b" / "c.png", 12, 12)
    dataset = data.read_dataset(write(folder / "c.json", make_content(format, "../../../c.png")))
    assert [problem.kind for problem in dataset.problems] == ["outside the folder"]
    assert dataset.records[0].file.resolve() == tmp_path / "c.png"
    for name in ("../c.png", str(tmp_path / "c.png")):  # beside the folder; said in full, as we write it
        assert data.read_dataset(write(folder / "c.json", make_content(format, name))).problems == []
    images = tmp_path / "images"
    images.mkdir()
    path = write(folder / "c.json", make_content(format, "../../../c.png"))
    assert "its name must be of an image in the data set" in data.read_dataset(path, images=images).problems[0].text
    draw_image_file(images / "c.png", 12, 12)
    dataset = data.read_dataset(path, images=images)
    assert (dataset.records[0].file, dataset.problems) == (images / "c.png", [])


def test_names_whose_ends_are_one_file(tmp_path: Path) -> None:
    """None of them gets an image that may be another one's."""
    (tmp_path / "images").mkdir()
    draw_image_file(tmp_path / "images" / "1.png", 8, 8)
    names = ("cats/1.png", "dogs/1.png", "1.png")
    for format in ("coco", "via"):
        dataset = data.read_dataset(
            write(tmp_path / "a.json", make_content(format, *names)), images=tmp_path / "images"
        )
        assert [record.file.name for record in dataset.records] == ["1.png"]
        rule = "its name must end as one file of its own, got "
        texts = [problem.text for problem in dataset.problems if rule in problem.text]
        assert texts == [f"{rule}'cats/1.png' beside '1.png'", f"{rule}'dogs/1.png' beside '1.png'"]


def test_only_images_are_copied(tmp_path: Path) -> None:
    """A text of an image's name, a torn image and none are named; an image of another size is copied and named.

    A mask of another size than its image is left out and named; an image without a file is saved.
    """
    good = draw_image_file(tmp_path / "good.png", 20, 20)
    (tmp_path / "text.png").write_text("password")
    (tmp_path / "torn.png").write_bytes(good.read_bytes()[:200])
    objects = (data.Instance("cat", (SQUARE,)),)
    names = {"good": 20, "text": 20, "torn": 20, "none": 20, "larger": 30}
    (tmp_path / "larger.png").write_bytes(good.read_bytes())
    records = [data.Record(tmp_path / f"{name}.png", (size, size), objects) for name, size in names.items()]
    problems = data.write_dataset(data.Dataset(records, {"cat": 1}, []), tmp_path / "set", "masks")
    assert [problem.kind for problem in problems] == ["broken image", "broken image", "missing image", "wrong size"]
    assert sorted(file.name for file in (tmp_path / "set" / "JPEGImages").iterdir()) == ["good.png", "larger.png"]
    objects += (data.Instance("cat", rle={"size": [30, 20], "counts": [0, 600]}),)
    drawn = data.Record(Path("drawn.png"), (20, 20), objects, image=Image.new("RGB", (20, 20)))
    (problem,) = data.write_dataset(data.Dataset([drawn], {"cat": 1}, []), tmp_path / "other", "masks")
    assert problem.text == "objects left out: 1 masks of another size than the image"
    assert data.read_dataset(tmp_path / "other").records[0].load().size == (20, 20)


def test_mask_images_and_their_photos(tmp_path: Path) -> None:
    """Found by the whole name without its ending: not by its beginning, nor by a pattern; an image comes first."""
    for folder in ("SegmentationObject", "SegmentationClass", "JPEGImages"):
        (tmp_path / folder).mkdir()
    for name in ("a", "a.1", "b[2]"):
        Image.fromarray(np.ones((8, 8), np.uint8)).save(tmp_path / "SegmentationObject" / f"{name}.png")
        draw_image_file(tmp_path / "JPEGImages" / f"{name}.jpg", 8, 8)
    (tmp_path / "JPEGImages" / "a.csv").write_text("1")
    classes = np.full((8, 8), 2**31 - 1, np.int32)  # no array of all classes below it
    Image.fromarray(classes).save(tmp_path / "SegmentationClass" / "a.1.tif")
    (tmp_path / "SegmentationClass" / "a.1.tif").rename(tmp_path / "SegmentationClass" / "a.1.png")
    (tmp_path / "labels.txt").write_text("cat\n\ndog\n")
    Image.fromarray(np.full((8, 8), 3, np.uint8)).save(tmp_path / "SegmentationClass" / "b[2].png")
    dataset = data.read_dataset(tmp_path)
    assert [record.file.name for record in dataset.records] == ["a.1.jpg", "a.jpg", "b[2].jpg"]
    classes_found = [record.instances[0].category for record in dataset.records]
    assert classes_found == [f"class {2**31 - 1}", "object", "dog"]
    (tmp_path / "labels.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match=r"labels.txt must be text in UTF-8"):
        data.read_dataset(tmp_path)


def test_more_classes_than_a_border_leaves(tmp_path: Path) -> None:
    """255 is the border's number, so that the 255th class has another."""
    file = draw_image_file(tmp_path / "a.png", 20, 20)
    names = [f"class name {number}" for number in range(300)]
    boxes = [box_to_polygon(x, y, x + 1, y + 1) for y in range(15) for x in range(20)]
    objects = tuple(data.Instance(name, (box,)) for name, box in zip(names, boxes, strict=True))
    categories = {name: number for number, name in enumerate(names, 1)}
    dataset = data.Dataset([data.Record(file, (20, 20), objects)], categories, [])
    assert data.write_dataset(dataset, tmp_path / "set", "masks") == []
    back = data.read_dataset(tmp_path / "set")
    assert [instance.category for instance in back.records[0].instances] == names
    assert back.categories == categories


def make_splits(folder: Path, layout: str) -> Path:
    """Two images to train on and one to evaluate on, of 8 x 8 pixels."""
    sets = {"train": ("a.png", "b.png"), "val": ("c.png",)}
    for split, names in sets.items():
        content = make_content("coco", *names)
        where, images = {
            "folders": (f"{split}/annotations.json", split),
            "roboflow": (f"{split.replace('val', 'valid')}/_annotations.coco.json", split.replace("val", "valid")),
            "coco": (f"annotations/instances_{split}2017.json", f"{split}2017"),
            "cvat": (f"annotations/instances_{split.capitalize()}.json", f"images/{split.capitalize()}"),
            "files": (f"annotations/{split}.json", "images"),
            "inner": (f"{split}/annotations/instances_default.json", f"{split}/images"),
        }[layout]
        write(folder / where, content)
        (folder / images).mkdir(parents=True, exist_ok=True)
        for name in names:
            draw_image_file(folder / images / name, 8, 8)
    return folder


@pytest.mark.parametrize("layout", ["folders", "roboflow", "coco", "cvat", "files", "inner"])
def test_splits(layout: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All commands find them: check has both, evaluate and train what is meant, convert names them."""
    folder = make_splits(tmp_path / "set", layout)
    splits = read_splits(folder)
    assert [len(split.records) for split in splits] == [2, 1]
    assert all(record.file.exists() for split in splits for record in split.records)
    assert main(["data", "check", str(folder)]) == 0
    printed = capsys.readouterr()
    assert f"2 images (0 without objects), 2 objects: {folder}, train" in printed.out
    assert f"1 images (0 without objects), 1 objects: {folder}, val" in printed.out
    files = [[record.file for record in data.read_dataset(folder, split=name).records] for name in ("train", "val")]
    assert files == [[record.file for record in dataset.records] for dataset in data.read_all(folder).values()]
    results = write(tmp_path / "results.json", [])
    assert main(["evaluate", str(folder), "--results", str(results), "--out", str(tmp_path / "out")]) == 0
    assert f"{folder}: the split val is read" in capsys.readouterr().out
    assert main(["data", "convert", str(folder), str(tmp_path / "out.json"), "--to", "coco"]) == 2
    assert "must be one data set, got the splits train (" in capsys.readouterr().err


def test_a_split_beside_other_annotations(tmp_path: Path) -> None:
    """Neither is chosen in silence; JSON of other kinds is no annotation."""
    write(tmp_path / "test" / "b.json", make_content("coco", "b.png"))
    write(tmp_path / "settings.json", {"lr": 0.1})
    assert data.read_dataset(tmp_path).notes == (f"{tmp_path}: the split val is read, {tmp_path / 'test'}",)
    write(tmp_path / "a.json", make_content("labelme", "a.png"))
    rule = r"must be one data set, got the split val \(.*test\) and a.json: name one"
    for read in (data.read_dataset, data.read_all):
        with pytest.raises(ValueError, match=rule):
            read(tmp_path)
    (record,) = data.read_dataset(tmp_path / "a.json").records
    assert record.file == tmp_path / "a.png"


def test_splits_of_images_of_the_same_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With ``images``, each split gets its own; never those of the other."""
    for split in ("train", "val"):
        write(tmp_path / split / "a.json", make_content("coco", "images/a.png"))
        (tmp_path / "all" / split).mkdir(parents=True)
        draw_image_file(tmp_path / "all" / split / "a.png", 12, 12)
    splits = data.read_all(tmp_path, images=tmp_path / "all")
    for split, dataset in splits.items():
        assert [record.file for record in dataset.records] == [tmp_path / "all" / split / "a.png"]
    wrong = tmp_path / "all" / "train"
    rule = f"train and val must have images of their own (--images), got {wrong / 'a.png'} in both"
    assert main(["data", "check", str(tmp_path), "--images", str(wrong)]) == 2
    assert rule in capsys.readouterr().err
    command = ["train", "--data-path", str(tmp_path / "train"), "--val", str(tmp_path / "val"), "--images", str(wrong)]
    assert main([*command, "--epochs", "1", "--out", str(tmp_path / "out")]) == 2
    assert rule in capsys.readouterr().err


def test_annotations_beside_images(tmp_path: Path) -> None:
    """CVAT's and labelme's exports: a folder of annotations, and one of images beside it."""
    (tmp_path / "images" / "default").mkdir(parents=True)
    file = draw_image_file(tmp_path / "images" / "a.png", 8, 8)
    nested = draw_image_file(tmp_path / "images" / "default" / "b.png", 8, 8)
    path = write(tmp_path / "annotations" / "instances_default.json", make_content("coco", "a.png", "b.png"))
    for given in (path, path.parent, tmp_path):
        assert [record.file for record in data.read_dataset(given).records] == [file, nested]
        assert [record.file for record in read_splits(given).train.records] == [file, nested]
    path.unlink()
    for stem in ("train", "a"):  # of images, not splits
        write(tmp_path / "annotations" / f"{stem}.json", make_content("labelme", "a.png"))
    assert [record.file for record in data.read_dataset(tmp_path).records] == [file, file]
    assert data.find_format(tmp_path) == "labelme"


def test_folders_of_two_formats(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Both are named; either can be chosen."""
    draw_image_file(tmp_path / "a.png", 12, 12)
    write(tmp_path / "a.json", make_content("labelme", "a.png"))
    write(tmp_path / "b.json", make_content("labelme", "b.png"))
    write(tmp_path / "via.json", make_content("via", "a.png"))
    assert main(["data", "check", str(tmp_path)]) == 2
    assert "(--format), got labelme (a.json, ...), via (via.json)" in capsys.readouterr().err
    assert len(data.read_dataset(tmp_path, "labelme").records) == 2
    assert len(data.read_dataset(tmp_path, "via").records) == 1


def test_options_of_train(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """``--format`` and ``--images`` are there, and are those of the other commands."""
    write(tmp_path / "a.json", make_content("coco", "a.png"))
    command = ["train", "--data-path", str(tmp_path), "--epochs", "1", "--out", str(tmp_path / "out")]
    for options, message in (
        (["--format", "via"], "must be annotations of the format via, got none"),
        (["--images", str(tmp_path / "none")], f"images (--images) must be a folder, got {tmp_path / 'none'}"),
    ):
        assert main([*command, *options]) == 2
        assert message in capsys.readouterr().err
        assert main(["data", "check", str(tmp_path), *options]) == 2
        assert message in capsys.readouterr().err
    write(tmp_path / "val" / "a.json", make_content("coco", "a.png"))
    (tmp_path / "a.json").unlink()
    assert main(command) == 2
    assert "must have a split train, got val" in capsys.readouterr().err
