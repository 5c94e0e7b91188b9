"""``predict_files`` on folders, classes, crops and colors, with a predictor of fixed detections."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.images import draw_image_file
from PIL import ExifTags, Image

from fastmask.cocoapi import mask as coco
from fastmask.image_io import read_image
from fastmask.inference import predict_files
from fastmask.inference.choose_classes import find_labels
from fastmask.inference.image_files import find_images, name_outputs
from fastmask.visualize import save_overlay

BOXES = [[10.0, 20, 60.5, 90.2], [-5, -5, 30, 30], [90, 5, 119.5, 40], [200, 200, 240, 240]]  # the last one is outside
CATEGORIES = ["__background__", "cat", "dog", "cat", "N/A"]


class FixedPredictor:
    """Finds the same in each image: boxes with discs as masks."""

    categories = CATEGORIES

    def stream(self, images: list[Path], **_: Any) -> Iterator[Any]:
        for path in images:
            try:
                width, height = read_image(path).size
            except (OSError, ValueError) as error:
                yield error
                continue
            yield {
                "boxes": torch.tensor(BOXES),
                "labels": torch.tensor([1, 2, 3, 1]),
                "scores": torch.tensor([0.9, 0.8, 0.7, 0.6]),
                "masks": [coco.encode(np.asfortranarray(disc(box, height, width), np.uint8)) for box in BOXES],
            }


def disc(box: list[float], height: int, width: int) -> np.ndarray:
    rows, columns = np.mgrid[:height, :width]
    x1, y1, x2, y2 = box
    return ((columns - (x1 + x2) / 2) / (x2 - x1)) ** 2 + ((rows - (y1 + y2) / 2) / (y2 - y1)) ** 2 <= 0.25


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder with images in it and in folders of it, and what is no image."""
    folder = tmp_path / "photos"
    for place in ("", "x", "x/y", "z", ".hidden"):
        (folder / place).mkdir(exist_ok=True, parents=True)
        draw_image_file(folder / place / "a.png", 100, 120)
    (folder / "x" / "b.predicted.png").write_bytes((folder / "a.png").read_bytes())
    (folder / "x" / "b.1.crop.png").write_bytes((folder / "a.png").read_bytes())
    (folder / "x" / "noending").write_bytes((folder / "a.png").read_bytes())
    (folder / "x" / "LICENSE").write_text("text")
    Image.open(folder / "a.png").save(folder / "j.jfif", "JPEG")
    (folder / "x" / "again").symlink_to(folder)
    return folder


ALL = ["a.png", "j.jfif", "x/a.png", "x/noending", "x/y/a.png", "z/a.png"]


def test_folders_inside_folders(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Overlays, crops and file names keep the folders apart; another run finds nothing of what this one wrote."""
    assert find_images([photos]) == [photos / "a.png", photos / "j.jfif"]
    assert find_images([photos], recursive=True) == [photos / name for name in ALL]
    assert find_images([photos / "z", photos], True) == [photos / name for name in ["z/a.png", *ALL[:-1]]]
    out = photos / "out"
    found = predict_files(FixedPredictor(), [photos], out, recursive=True, crops=True)
    stems = [name.rpartition(".")[0] or name for name in ALL]
    endings = [".jpg" if stem == "j" else ".png" for stem in stems]
    assert found.overlays == [out / f"{stem}.predicted{end}" for stem, end in zip(stems, endings, strict=True)]
    crops = {out / "crops" / f"{stem}.{number}.crop.png" for stem in stems for number in range(1, 5)}
    assert {*out.rglob("*.png"), *out.rglob("*.jpg")} == {*found.overlays, *crops}
    results = json.loads((out / "predictions.json").read_text())
    assert list(dict.fromkeys(result["file_name"] for result in results)) == [str(photos / name) for name in ALL]
    assert find_images([photos], recursive=True) == [photos / name for name in ALL]
    monkeypatch.chdir(photos / "x")
    assert name_outputs([Path("a.png"), Path("../z/a.png")], Path("o"), [Path(), Path("../z")]) == [
        Path("a"),
        Path("a-2"),
    ]
    (tmp_path / "deep" / "er").mkdir(parents=True)
    with pytest.raises(ValueError, match="deep must hold images, got none: --recursive"):
        find_images([tmp_path / "deep"])


def test_crops(photos: Path, tmp_path: Path) -> None:
    """A crop is the image's pixels in the box, with the mask as alpha; those of an earlier run go."""
    out = tmp_path / "out"
    (image,) = [np.array(Image.open(photos / "a.png"))]
    predict_files(FixedPredictor(), [photos / "a.png"], out, crops=True, overlays=False)
    for number, area in enumerate([(10, 20, 61, 91), (0, 0, 30, 30), (90, 5, 120, 40), (119, 99, 120, 100)], 1):
        crop = Image.open(out / "crops" / f"a.{number}.crop.png")
        inside = np.s_[area[1] : area[3], area[0] : area[2]]
        assert np.array_equal(np.array(crop)[:, :, :3], image[inside])
        assert np.array_equal(np.array(crop)[:, :, 3], disc(BOXES[number - 1], 100, 120)[inside] * 255)
    predict_files(FixedPredictor(), [photos / "a.png"], out, crops=True, overlays=False, classes=["dog"])
    assert sorted(path.name for path in out.iterdir()) == ["crops", "predictions.json"]
    assert [path.name for path in (out / "crops").iterdir()] == ["a.1.crop.png"]
    assert np.array_equal(np.array(Image.open(out / "crops" / "a.1.crop.png"))[:, :, :3], image[:30, :30])
    with pytest.raises(
        ValueError, match=r"images must not be in .*crops, which crops are written to, got .*a\.1\.crop"
    ):
        predict_files(FixedPredictor(), [out / "crops" / "a.1.crop.png"], out, crops=True)


def test_classes(photos: Path, tmp_path: Path) -> None:
    """Those of a name, of whatever label, with their masks; others stay out of results."""
    image = photos / "a.png"
    (prediction,) = FixedPredictor().stream([image])
    predict_files(FixedPredictor(), [image], tmp_path / "out", overlays=False, classes=["cat"])
    results = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert [(result["category_id"], result["segmentation"]["counts"]) for result in results] == [
        (label, prediction["masks"][i]["counts"].decode()) for label, i in ((1, 0), (3, 2), (1, 3))
    ]
    assert find_labels(["dog", "cat"], CATEGORIES) == {1, 2, 3}
    assert find_labels(["2", "7"], None) == {2, 7}
    for classes, categories, message in (
        (["cat", "cow"], CATEGORIES, r"classes must be among the model's \(cat, dog\), got 'cow'"),
        (["N/A"], CATEGORIES, r"\(cat, dog\), got 'N/A'"),
        (["__background__"], CATEGORIES, "got '__background__'"),
        (["cat"], None, "classes must be labels, as the weights have no names of classes, got 'cat'"),
        ("cat", CATEGORIES, "classes must be a list of names, got 'cat'"),
        ([], CATEGORIES, "classes must be a list of names"),
    ):
        with pytest.raises(ValueError, match=message):
            find_labels(classes, categories)


def test_colors(photos: Path, tmp_path: Path) -> None:
    """By class, detections of one class have one color; else each its own."""
    places = {1: (20, 10), 3: (5, 119)}  # row and column on the outlines of two boxes
    seen = {}
    for color_by in ("instance", "class"):
        (overlay,) = predict_files(
            type("Same", (FixedPredictor,), {"stream": same_class})(),
            [photos / "a.png"],
            tmp_path / color_by,
            color_by=color_by,
        ).overlays
        pixels = np.array(Image.open(overlay))
        seen[color_by] = {tuple(pixels[y + 25, x]) for y, x in places.values()}
    assert (len(seen["instance"]), len(seen["class"])) == (2, 1)
    with pytest.raises(ValueError, match="color_by must be one of instance, class"):
        predict_files(FixedPredictor(), [photos / "a.png"], tmp_path, color_by="score")


def same_class(self: FixedPredictor, images: list[Path], **_: Any) -> Iterator[Any]:
    for prediction in FixedPredictor.stream(self, images):
        yield prediction | {"labels": torch.tensor([1, 1, 1, 1])}


def test_notes_and_skips(photos: Path, tmp_path: Path) -> None:
    """Files of several frames are named once each, as is what is missing; nothing predicted leaves nothing behind."""
    first = Image.open(photos / "a.png")
    for name in ("moving.gif", "pages.tif"):
        first.save(photos / name, save_all=True, append_images=[first.transpose(Image.Transpose.ROTATE_180)])
    out, notes, skips = tmp_path / "out", [], []
    predict_files(FixedPredictor(), [photos, "gone.png"], out, on_note=notes.append, on_skip=skips.append)
    assert sorted(notes) == [
        f"{photos / name} has 2 frames or pages: only the first is predicted" for name in ("moving.gif", "pages.tif")
    ]
    assert skips == ["gone.png: no such file"]
    with pytest.raises(
        ValueError, match=r"images must be files or folders that are there, got gone\.png: no such file"
    ):
        predict_files(FixedPredictor(), ["gone.png"], out)
    (photos / "torn.png").write_bytes(b"torn")
    nothing = predict_files(FixedPredictor(), [photos / "torn.png"], tmp_path / "none")
    assert (nothing.images, nothing.results, len(nothing.skipped)) == (0, None, 1)
    assert list((tmp_path / "none").iterdir()) == []


def test_the_bar_needs_a_terminal(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unless it is asked for."""
    shown = []

    class Watched(FixedPredictor):
        def stream(self, images: list[Path], *, progress: bool, **_: Any) -> Iterator[Any]:
            shown.append(progress)
            return super().stream(images)

    for terminal, progress in ((True, None), (False, None), (False, True), (True, False)):
        monkeypatch.setattr(sys.stderr, "isatty", lambda terminal=terminal: terminal)
        predict_files(Watched(), [photos], tmp_path / "out", overlays=False, progress=progress)
    assert shown == [True, False, True, False]


def test_formats_of_overlays(tmp_path: Path) -> None:
    """JPEG where the image is one; both formats show the same, upright, also of gray, CMYK and 16 bits."""
    smooth = np.add.outer(np.arange(90.0), np.arange(140.0)).astype(np.uint8)
    color = Image.fromarray(np.stack([smooth, smooth[::-1], smooth[:, ::-1]], axis=2))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    color.save(tmp_path / "turned.jpg", exif=exif)
    color.convert("CMYK").save(tmp_path / "ink.jpeg")
    color.convert("L").save(tmp_path / "gray.JPG")
    Image.fromarray(smooth.astype(np.uint16) * 256).save(tmp_path / "deep.png")
    color.save(tmp_path / "bare", "JPEG")
    images = [tmp_path / name for name in ("turned.jpg", "ink.jpeg", "gray.JPG", "bare", "deep.png")]
    drawn, notes = {}, []
    for format in ("auto", "jpeg", "png"):
        found = predict_files(
            FixedPredictor(), images, tmp_path / "out", format=format, color_by="class", on_note=notes.append
        )
        assert [path.suffix for path in found.overlays] == {
            "auto": [*[".jpg"] * 4, ".png"],
            "jpeg": [".jpg"] * 5,
            "png": [".png"] * 5,
        }[format]
        drawn[format] = [Image.open(path) for path in found.overlays]
        kinds = [{".jpg": "JPEG", ".png": "PNG"}[path.suffix] for path in found.overlays]
        assert [each.format for each in drawn[format]] == kinds
    assert [note.replace(str(tmp_path), "") for note in notes] == [
        "1 overlay of another format stays: /out/deep.predicted.png",
        "5 overlays of another format stay: /out/turned.predicted.jpg",
    ]
    for path, coded, exact in zip(images, drawn["jpeg"], drawn["png"], strict=True):
        assert coded.size == exact.size == read_image(path).size
        error = np.abs(np.array(coded).astype(int) - np.array(exact))
        assert error.mean() < 4
        assert (np.array(exact) != np.array(read_image(path))).any()
    with pytest.raises(ValueError, match="format must be one of auto, jpeg, png, got 'jpg'"):
        predict_files(FixedPredictor(), images, tmp_path, format="jpg")
    with pytest.raises(ValueError, match=r"a\.jpg must have sides of at most 65500 pixels, got \(65501, 1\)"):
        save_overlay(Image.new("RGB", (65501, 1)), tmp_path / "a.jpg")


def test_another_format_is_another_run(tmp_path: Path) -> None:
    """An interrupted run goes on in its own format alone, or anew."""

    class Stops(FixedPredictor):
        def stream(self, images: list[Path], **_: Any) -> Iterator[Any]:
            yield from super().stream(images[:1])
            raise KeyboardInterrupt

    images = [draw_image_file(tmp_path / name, 100, 120) for name in ("a.jpg", "b.jpg")]
    with pytest.raises(KeyboardInterrupt):
        predict_files(Stops(), images, tmp_path / "out")
    with pytest.raises(ValueError, match="must be an unfinished run with these settings, got one with format auto"):
        predict_files(FixedPredictor(), images, tmp_path / "out", format="png")
    found = predict_files(FixedPredictor(), images, tmp_path / "out", format="png", restart=True)
    assert [path.name for path in found.overlays if path.exists()] == ["a.predicted.png", "b.predicted.png"]
