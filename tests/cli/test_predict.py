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
from fastmask.inference.image_files import find_images, image_ids, overlay_paths
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
    assert "7/7" in printed.err  # the progress bar's end
    made = ["a.predicted.png", "predictions.json", "predictions.parts", "z.predicted.png"]
    assert sorted(os.listdir(tmp_path / "out")) == made
    assert "5 skipped, which the same command tries again" in printed.out
    other = draw_image_file(tmp_path / "other.png")  # what was skipped keeps no other command out
    assert predict(weights, tmp_path / "out", "--score", 0.9, other) == 0
    assert predict(weights, tmp_path / "out", whole[0], *odd, whole[1]) == 1
    results = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert {result["image_id"] for result in results} <= {1, 7}
    assert predict(weights, tmp_path / "alone", text) == 1
    assert json.loads((tmp_path / "alone" / "predictions.json").read_text()) == []


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
        ("--model", "resnet50"): "--model must be one of fasterrcnn_resnet50_fpn, ",
        ("--device", "abacus"): "--device must be one that this machine has, got 'abacus'",
        ("--device", "meta"): "got 'meta' (known are cpu, cuda, mps, xpu)",
        ("--weights", "none.pth"): "weights must be COCO_V1, DEFAULT or a file, got 'none.pth'",
        ("--weights", str(path)): "a.png must be a checkpoint",
        ("--model", "maskrcnn_resnet50_fpn_v2"): "slim.pth is not of this model",
        ("--out", str(path / "out")): "Not a directory",
        ("--out", str(taken)): "Is a directory",
        (str(taken),): "taken must hold images, got none",
    }.items():
        assert predict(slim_file[0], tmp_path / "out", path, *arguments) == 2
        printed = capsys.readouterr().err
        assert printed.startswith("fastmask predict: ")
        assert message in printed
        assert printed.count("\n") == 1


def test_which_images_are_meant(tmp_path: Path) -> None:
    for name in ("b.JPG", "a.png", "notes.txt", "paper.pdf", "._a.jpg", "a.predicted.png"):
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
    paths = [tmp_path / name for name in ("a.png", "x/a.jpg", "a-2.jpg", "b.predicted.png", "b.jpg", "c" * 250)]
    names = [path.name.removesuffix(".predicted.png") for path in overlay_paths(paths, tmp_path)]
    assert names == ["a", "a-2", "a-2-2", "b.predicted", "b-2", "c" * 200]
