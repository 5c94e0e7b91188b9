"""Images inside of labelme's files: used by all commands where no file is found, and by none where one is."""

import base64
import io
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.images import draw_image_file
from PIL import Image
from torch import nn

from fastmask import data
from fastmask.cli import main
from fastmask.data import embedded
from fastmask.data.augment import Augmentation
from fastmask.data.loading import training_loader

pytest.importorskip("pycocotools.mask", reason="it rasterizes")
SHAPES = [{"label": "cat", "points": [[2, 2], [40, 2], [40, 30]]}]


def write(folder: Path, name: str, content: bytes | str | None, **more: Any) -> Path:
    """A labelme file with imageData."""
    text = base64.b64encode(content).decode() if isinstance(content, bytes) else content
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}.json"
    path.write_text(json.dumps({"imagePath": f"{name}.png", "imageData": text, "shapes": SHAPES} | more))
    return path


def encode(height: int = 64, width: int = 96, format: str = "PNG", **more: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.randint(0, 255, (height, width, 3), np.uint8)).save(file, format, **more)
    return file.getvalue()


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    """Four files: one with its image, one with a path that leads elsewhere, one upright by EXIF, one with a file."""
    exif = Image.Exif()
    exif[274] = 6
    write(tmp_path / "labels", "a", encode())
    write(tmp_path / "labels", "b", encode(), imagePath="../../../elsewhere/b.png")
    write(tmp_path / "labels", "c", encode(96, 64, "JPEG", exif=exif), imagePath=None)
    write(tmp_path / "labels", "d", encode())
    draw_image_file(tmp_path / "labels" / "d.png", 64, 96)
    return tmp_path / "labels"


def test_every_command(
    labels: Path, slim_file: tuple[Path, nn.Module], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    note = f"{labels}: 3 of 4 images are read from imageData, as their files are not found"
    assert main(["data", "check", str(labels), "--contact-sheet", str(tmp_path / "sheet.png")]) == 1
    printed = capsys.readouterr()
    assert note in printed.out
    assert "4 images (0 without objects), 4 objects" in printed.out
    assert "left out" not in printed.out
    (line,) = printed.err.splitlines()  # the path that leads out is named
    assert "b.json: its name must be of an image in the data set, got '../../../elsewhere/b.png'" in line
    dataset = data.read_dataset(labels)
    assert [record.embedded and record.embedded.name for record in dataset.records] == [
        "a.json",
        "b.json",
        "c.json",
        None,
    ]
    assert [record.size for record in dataset.records] == [(64, 96), (64, 96), (64, 96), None]
    assert [record.load().size for record in dataset.records] == [(96, 64)] * 4
    (batch,) = training_loader(dataset, 4, Augmentation(min_size=(64,), max_size=96, flip=0.0))
    assert (tuple(batch.pixels.shape), batch.problems) == ((4, 3, 64, 96), ())
    out = ["--out", str(tmp_path / "out"), "--classes", "one=cat"]
    assert main(["evaluate", str(labels), "--weights", str(slim_file[0]), "--model", "slim", *out]) == 0
    assert "4 images" in capsys.readouterr().out


@pytest.mark.parametrize("format", ["coco", "via", "labelme", "masks", "yolo"])
def test_convert(format: str, labels: Path, tmp_path: Path) -> None:
    """The images become files, byte by byte; labelme's stays without imageData."""
    before = data.add_sizes(data.read_dataset(labels))
    target = tmp_path / "out" / ("set" if format in ("labelme", "masks", "yolo") else "set.json")
    assert data.write_dataset(before, target, format, source=labels) == []
    after = data.add_sizes(data.read_dataset(target, format))
    assert after.problems == []
    assert [record.embedded for record in after.records] == [None] * 4
    for old, new in zip(before.records, after.records, strict=True):
        assert np.array_equal(np.asarray(old.load()), np.asarray(new.load()))
        assert old.read_content() in (None, new.file.read_bytes())
        assert np.array_equal(old.instances[0].to_mask(64, 96), new.instances[0].to_mask(64, 96))
    with pytest.raises(FileExistsError):
        data.write_dataset(before, target, format)
    if format == "labelme":
        assert json.loads((target / "a.json").read_text())["imageData"] is None


def test_a_file_comes_first(tmp_path: Path) -> None:
    """If both are there, the file is read, and another size, or what is broken, is named."""
    file = draw_image_file(tmp_path / "a.png", 40, 50)
    path = write(tmp_path, "a", encode(40, 50))
    assert data.read_dataset(path).problems == []
    assert data.read_dataset(path).records[0].embedded is None
    for content, kind, text in (
        (encode(20, 50), "wrong size", f"imageData is (20, 50), {file} is (40, 50), and is what is read"),
        ("%%%", "broken imageData", f"imageData of {path} cannot be read as an image: "),
    ):
        dataset = data.read_dataset(write(tmp_path, "a", content))
        assert [problem.kind for problem in dataset.problems] == [kind]
        assert text in dataset.problems[0].text
        assert dataset.records[0].load().size == (50, 40)
    for empty in (None, ""):
        assert data.read_dataset(write(tmp_path, "a", empty)).problems == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("abc", "imageData must be text in base64: Incorrect padding"),
        (b"no image", "cannot be read as an image: its format is unknown"),
        ([1, 2], "imageData must be text in base64, got list"),
    ],
)
def test_broken(content: Any, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is named, and so is the image, which is missing."""
    assert main(["data", "check", str(write(tmp_path, "a", content))]) == 1
    broken, missing = capsys.readouterr().err.splitlines()
    assert broken.startswith("fastmask data: broken imageData: a.json: ")
    assert message in broken
    assert missing.startswith("fastmask data: missing image: ")


def test_torn_pixels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An image whose header alone is whole is named when it is decoded; other writers of data URLs are read."""
    path = write(tmp_path, "a", encode()[:2000])
    assert main(["data", "check", str(path)]) == 1
    assert f"broken image: {tmp_path / 'a.png'}: {path} cannot be read as an image" in capsys.readouterr().err
    (problem,) = data.write_dataset(data.read_dataset(path), tmp_path / "out" / "set.json", "coco")
    assert problem.kind == "broken image"  # and is not written
    assert os.listdir(tmp_path / "out") == ["set.json"]
    path = write(tmp_path, "a", "data:image/png;base64," + base64.b64encode(encode()).decode())
    assert data.read_dataset(path).records[0].load().size == (96, 64)
    os.remove(path)
    with pytest.raises(FileNotFoundError):
        embedded.read_embedded(path)


def test_masks_in_images_of_unknown_size(tmp_path: Path) -> None:
    """A mask's image is as large as imageData."""
    mask = base64.b64encode(encode(4, 6)).decode()
    shape = {"label": "cat", "shape_type": "mask", "points": [[1, 2], [7, 6]], "mask": mask}
    dataset = data.read_dataset(write(tmp_path, "a", encode(), shapes=[shape]))
    assert dataset.problems == []
    assert dataset.records[0].instances[0].to_mask(64, 96)[2:6, 1:7].any()


def test_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No record keeps an image, and each is parsed and decoded once for a load."""
    for i in range(3):
        write(tmp_path, f"i{i}", encode(300, 400))
    dataset = data.read_dataset(tmp_path)
    assert len(repr(dataset)) < 3000
    calls = []
    decode = embedded._decode
    monkeypatch.setattr(embedded, "_decode", lambda value: calls.append(1) or decode(value))
    for record in dataset.records:
        record.load()
    assert len(calls) == 3
