"""``fastmask predict`` on the slim model: results, overlays, skipped images, wrong arguments."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.exact import assert_matched
from helpers.images import draw_image_file
from PIL import Image
from torch import nn

from fastmask.cli import main
from fastmask.cocoapi import mask as coco_mask
from fastmask.image_io import read_image
from fastmask.inference.image_files import find_images, image_ids, name_outputs
from fastmask.models._presets import to_float

COCO = pytest.importorskip("pycocotools.coco", reason="it reads the results").COCO


def predict(weights: Path, folder: Path, *arguments: Any) -> int:
    return main(["predict", "--model", "slim", "--weights", str(weights), "--out", str(folder), *map(str, arguments)])


def test_results_match_torchvisions(slim_file: tuple[Path, nn.Module], tmp_path: Path) -> None:
    """The JSON, loaded by pycocotools, holds the detections of torchvision's model above the score."""
    weights, theirs = slim_file
    paths = [draw_image_file(tmp_path / f"{i}.png", 128, 150 + 20 * i) for i in range(3)]
    assert predict(weights, tmp_path / "out", "--score", 0.06, *paths) == 0
    truth = COCO()
    truth.dataset = {"images": [{"id": i} for i in range(3)], "annotations": [], "categories": []}
    truth.createIndex()
    results = truth.loadRes(str(tmp_path / "out" / "predictions.json"))
    theirs.roi_heads.score_thresh = 0.06
    actual, expected = [], []
    for i, path in enumerate(paths):
        image = to_float(read_image(path))
        with torch.no_grad():
            expected += theirs([image])
        found = results.loadAnns(results.getAnnIds(imgIds=[i]))
        assert len(found)
        assert {result["file_name"] for result in found} == {str(path)}
        masks = np.stack([coco_mask.decode(result["segmentation"]) for result in found])
        boxes = torch.tensor([result["bbox"] for result in found])
        actual.append(
            {
                "boxes": torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], 1),
                "labels": torch.tensor([result["category_id"] for result in found]),
                "scores": torch.tensor([result["score"] for result in found]),
                "masks": torch.from_numpy(masks)[:, None].float(),
            }
        )
        overlay = Image.open(tmp_path / "out" / f"{i}.predicted.png")
        assert overlay.size == (image.shape[2], image.shape[1])
        assert not np.array_equal(np.array(overlay), np.array(read_image(path)))
    assert_matched(actual, expected)


def test_broken_files_are_named_and_the_rest_go_on(
    slim_file: tuple[Path, nn.Module], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    weights, _ = slim_file
    whole = [draw_image_file(tmp_path / name) for name in ("a.jpg", "z.png")]
    torn = tmp_path / "torn.jpg"
    torn.write_bytes(whole[0].read_bytes()[:2000])
    text = tmp_path / "text.jpg"
    text.write_text("not an image")
    strip = tmp_path / "strip.png"  # of which resizing leaves no rows
    Image.new("RGB", (1400, 1)).save(strip)
    odd = (torn, text, tmp_path / "none.png", strip, tmp_path / ("long" * 80))
    assert predict(weights, tmp_path / "out", whole[0], *odd, whole[1]) == 1
    printed = capfd.readouterr()
    for name in ("torn.jpg", "text.jpg", "none.png", "strip.png", "longlong"):
        assert sum("skipped" in line and name in line for line in printed.err.split("\n")) == 1
    assert "in 2 images" in printed.out
    assert "img/s" not in printed.err  # no progress bar: the standard error is no terminal
    made = ["a.predicted.jpg", "predictions.json", "predictions.parts", "z.predicted.png"]
    assert sorted(os.listdir(tmp_path / "out")) == made
    assert "5 skipped, which the same command tries again" in printed.out
    other = draw_image_file(tmp_path / "other.png")  # what was skipped keeps no other command out
    assert predict(weights, tmp_path / "out", "--score", 0.9, other) == 0
    assert predict(weights, tmp_path / "out", whole[0], *odd, whole[1]) == 1
    results = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert {result["image_id"] for result in results} <= {1, 7}
    capfd.readouterr()
    assert predict(weights, tmp_path / "alone", text) == 1
    printed = capfd.readouterr()
    assert (printed.out, list((tmp_path / "alone").iterdir())) == ("", [])
    assert "no image could be predicted (1 skipped)" in printed.err


def test_a_score_of_one_keeps_nothing(slim_file: tuple[Path, nn.Module], tmp_path: Path) -> None:
    path = draw_image_file(tmp_path / "a.png")
    assert predict(slim_file[0], tmp_path / "out", "--score", 1, path) == 0
    assert np.array_equal(np.array(Image.open(tmp_path / "out" / "a.predicted.png")), np.array(Image.open(path)))
    assert json.loads((tmp_path / "out" / "predictions.json").read_text()) == []


def test_wrong_arguments(slim_file: tuple[Path, nn.Module], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = draw_image_file(tmp_path / "a.png")
    taken = tmp_path / "taken"
    (taken / "predictions.json").mkdir(parents=True)
    for arguments, message in {
        ("--score", "1.5"): "--score must be in [0, 1], got 1.5",
        ("--score", "nan"): "--score must be in [0, 1], got nan",
        ("--model", "resnet50"): "--model must be one of fasterrcnn_",
        ("--device", "abacus"): "--device must be one that this machine has, got 'abacus'",
        ("--device", "meta"): "got 'meta' (known are cpu, cuda, mps, xpu)",
        ("--weights", "none.pth"): "--weights must be a file that is there, or a name, got none.pth: no such file",
        ("--weights", str(path)): "a.png must be a checkpoint",
        ("--model", "maskrcnn_resnet50_fpn_v2"): "slim.pth is not of this model",
        ("--out", str(path / "out")): "not a directory",
        ("--out", str(taken)): "is a directory",
        (str(taken),): "taken must hold images, got none",
    }.items():
        assert predict(slim_file[0], tmp_path / "out", path, *arguments) == 2
        printed = capsys.readouterr().err
        assert printed.startswith("fastmask predict: ")
        assert message in printed
        assert printed.count("\n") == 1


def test_which_images_are_meant(tmp_path: Path) -> None:
    for name in ("b.JPG", "a.png", "notes.txt", "paper.pdf", "._a.jpg", "a.predicted.png", "b.predicted.jpg"):
        (tmp_path / name).touch()
    (tmp_path / "folder.jpg").mkdir()
    a, b = tmp_path / "a.png", tmp_path / "b.JPG"
    assert find_images([tmp_path]) == [a, b]
    again = tmp_path / "folder.jpg" / ".." / "a.png"
    assert find_images([b, tmp_path, tmp_path / "notes.txt", b, again]) == [b, a, tmp_path / "notes.txt"]


def test_image_ids() -> None:
    assert image_ids([Path("000000397133.jpg"), Path("x/000000000008.jpg")]) == [397133, 8]
    assert image_ids([Path("7.jpg"), Path("street.jpg")]) == [1, 2]
    assert image_ids([Path("7.jpg"), Path("007.png")]) == [1, 2]
    assert image_ids([]) == []


def test_no_overlay_replaces_an_image_or_another_overlay(tmp_path: Path) -> None:
    given = ("a.png", "x/a.jpg", "a-2.jpg", "b.predicted.png", "b.jpg", "b.bmp", "c" * 250)
    paths = [tmp_path / name for name in given]
    names = list(map(str, name_outputs(paths, tmp_path)))
    assert names == ["a", "a-2", "a-2-2", "b.predicted", "b", "b-2", "c" * 200]
    names = list(map(str, name_outputs(paths, tmp_path, (), lambda path: ".predicted.png")))
    assert names == ["a", "a-2", "a-2-2", "b.predicted", "b-2", "b-3", "c" * 200]


def test_what_is_missing_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Before anything is loaded or written; so is an option that another one makes void."""
    image, there = draw_image_file(tmp_path / "a.png"), tmp_path / "there.onnx"
    there.touch()
    for arguments, message in {
        (tmp_path / "none.jpg",): f"must be files or folders that are there, got {tmp_path / 'none.jpg'}: no such file",
        (tmp_path / "none", tmp_path / "no.png"): f"got {tmp_path / 'none'}, {tmp_path / 'no.png'}: no such file",
        (image, "--weights", "best.pth"): "--weights must be a file that is there, or a name, got best.pth",
        (image, "--weights", tmp_path / "run"): f"or a name, got {tmp_path / 'run'}: no such file",
        (image, "--exported", tmp_path / "none.onnx"): "--exported must be a file that is there, got ",
        (image, "--onnx", there, "--weights", "COCO_V1"): "--weights must not be given with --exported",
        (image, "--exported", there, "--model", "maskrcnn_resnet50_fpn"): "--model must not be given with --exported",
        (image, "--json", there): "there.onnx must be of an earlier run",
        (image, "--json", tmp_path / "none" / "a.json"): "--json must be a file in a folder that is there, got ",
    }.items():
        there.write_text("{}")
        assert main(["predict", *map(str, arguments), "--out", str(tmp_path / "out")]) == 2
        printed = capsys.readouterr()
        assert message in printed.err
        assert (printed.out, printed.err.count("\n")) == ("", 1)
        assert list((tmp_path / "out").glob("*")) == []


def test_json_to_the_standard_output(
    slim_file: tuple[Path, nn.Module], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """It has the results alone, of the classes that are asked for; with --quiet nothing else is printed."""
    path, out, copy = draw_image_file(tmp_path / "a.png"), tmp_path / "out", tmp_path / "copy.json"
    options = ("--score", 0.06, "--classes", "two", "four", "--color-by", "class")
    assert predict(slim_file[0], out, path, *options, "--json", "-") == 0
    printed = capfd.readouterr()
    results = json.loads(printed.out)
    assert results == json.loads((out / "predictions.json").read_text())
    assert {result["category_id"] for result in results} <= {2, 4}
    assert f"{len(results)} detections in 1 image: " in printed.err
    assert predict(slim_file[0], out, path, *options, "--json", copy, "--quiet") == 0
    assert json.loads(copy.read_text()) == results
    assert predict(slim_file[0], out, path, *options, "--json", copy, "--quiet") == 0  # its own may be replaced
    assert capfd.readouterr() == ("", "")
    assert predict(slim_file[0], out, path, "--classes", "five") == 2
    assert "--classes must be among the model's (one, two, three, four), got 'five'" in capfd.readouterr().err
