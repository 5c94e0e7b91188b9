"""LVIS's annotation files: images by coco_url, 1,203 categories, and what COCO's average precision does not use."""

import json
from pathlib import Path
from typing import Any

import pytest
from helpers.images import draw_image_file

from fastmask.cli import main
from fastmask.data import read_dataset

pytest.importorskip("pycocotools.mask", reason="it rasterizes")
URL = "http://images.cocodataset.org/train2017/000000000009.jpg"
NUMBER = 1203


@pytest.fixture
def lvis(tmp_path: Path) -> Path:
    """An image of each class of LVIS's, all of them in a few images; a subset of ids with gaps."""
    content: dict[str, Any] = {"images": [], "annotations": [], "categories": []}
    for i in range(3):
        name = f"train2017/{i:012}.jpg"
        (tmp_path / "train2017").mkdir(exist_ok=True)
        draw_image_file(tmp_path / name, 48, 64)
        image = {"id": i + 1, "coco_url": f"http://images.cocodataset.org/{name}", "height": 48, "width": 64}
        content["images"].append(image | {"neg_category_ids": [4, 9], "not_exhaustive_category_ids": [7] * i})
    for i in range(1, NUMBER + 1):
        more = {"synonyms": ["x"], "def": "a thing", "frequency": "r", "synset": "x.n.01", "image_count": 1}
        content["categories"].append({"id": i, "name": f"class_{i}", "instance_count": 1} | more)
        x, y = i % 50, i % 35
        square = [x, y, x + 12, y, x + 12, y + 12, x, y + 12]
        annotation = {"id": i, "image_id": i % 3 + 1, "category_id": i, "segmentation": [square]}
        content["annotations"].append(annotation | {"bbox": [x, y, 12, 12], "area": 144})
    path = tmp_path / "annotations" / "lvis_v1_train.json"
    path.parent.mkdir()
    path.write_text(json.dumps(content))
    return path


def test_read(lvis: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Images by the last folder and name of their address, also with ``images``; one sentence; short summaries."""
    for images in (None, tmp_path, tmp_path / "train2017"):
        dataset = read_dataset(lvis, images=images)
        assert dataset.problems == []
        assert [record.file for record in dataset.records] == [tmp_path / f"train2017/{i:012}.jpg" for i in range(3)]
    assert (len(dataset.categories), dataset.categories["class_1203"]) == (NUMBER, NUMBER)
    assert main(["data", "check", str(lvis)]) == 0
    printed = capsys.readouterr()
    assert (
        "lvis_v1_train.json: neg_category_ids of 3 images and not_exhaustive_category_ids of 2 are not used: "
        "evaluate computes COCO's average precision, not LVIS's own (federated) one\n"
    ) in printed.out
    assert "class_90 1, and 1173 more\n" in printed.out
    assert len(printed.out) < 1200
    content = json.loads(lvis.read_text())
    content["categories"] = [each for each in content["categories"] if each["id"] in (2, 700)]  # a subset
    content["annotations"] = [each for each in content["annotations"] if each["category_id"] in (2, 700)]
    content["images"] = [
        {"id": 1 + i, "coco_url": f"{URL}?x=1"} | more
        for i, more in enumerate(({}, {"file_name": "train2017/000000000001.jpg"}, {"coco_url": 5}, {"coco_url": "x/"}))
    ]
    lvis.write_text(json.dumps(content))
    dataset = read_dataset(lvis)
    assert dataset.categories == {"class_2": 2, "class_700": 700}
    names = [record.file.name for record in dataset.records]
    assert names == ["000000000009.jpg", "000000000001.jpg", "x"]
    assert [problem.text for problem in dataset.problems[:1]] == ["it must have an id and a file_name"]
    assert dataset.notes == ()


@pytest.mark.slow
def test_train_a_step(lvis: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A model of 1,204 classes; nothing prints a line for each of them."""
    other = json.loads(lvis.read_text())
    other["categories"] = [
        each | {"name": f"other {each['id']}" if each["id"] > 3 else each["name"]} for each in other["categories"]
    ]
    val = tmp_path / "annotations" / "other.json"
    val.write_text(json.dumps(other))
    out = tmp_path / "out"
    command = [
        "train",
        "--data-path",
        str(lvis),
        "--val",
        str(val),
        "--model",
        "maskrcnn_slim_fpn",
        "--weights",
        "none",
    ]
    assert main([*command, "--epochs", "1", "--workers", "0", "--min-size", "48", "--out", str(out)]) == 0
    assert main(["evaluate", str(lvis), "--weights", str(out / "best.pth"), "--out", str(tmp_path / "e")]) == 0
    assert main(["evaluate", str(val), "--weights", str(out / "best.pth"), "--out", str(tmp_path / "f")]) == 0
    printed = capsys.readouterr()
    assert max(map(len, [*printed.out.splitlines(), *printed.err.splitlines()])) < 1000
    assert len(printed.err.splitlines()) < 100
