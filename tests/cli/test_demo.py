"""``fastmask demo``: its sheet, its table, its times, and the weights that come with the package."""

import json
import socket
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fastmask.cli import main
from fastmask.cocoapi import mask as coco
from fastmask.data import Instance, Record
from fastmask.demo import CLASSES, Scenes, synthetic_dataset
from fastmask.demo.comparison import HEADING, draw_comparison
from fastmask.models import Checkpoint, detection, get_model_weights
from fastmask.models.detection.slim import WEIGHTS_FILE

STAGES = 12  # the model's ten, all of it, a whole call


def test_demo(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Few images, all of which .ci/run draws; nothing is asked for outside."""

    def refuse(*_: object) -> None:
        raise AssertionError("a network was asked for")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "empty"))
    assert main(["demo", "--number", "9", "--seed", "5", "--device", "cpu", "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert "Images drawn with seed 5, never seen in training: 9" in printed
    assert "quadrilateral" in printed
    assert "RoIAlign 14 x 14" in printed
    metrics = json.loads((tmp_path / "out" / "demo.json").read_text())
    mask = metrics["metrics"]["mask"]
    assert mask["ap50"] > 0.5
    assert f"{mask['ap']:.3f}  {mask['ap50']:.3f}" in printed
    assert (metrics["images"], metrics["seed"], list(metrics["devices"])) == (9, 5, ["cpu"])
    times = metrics["milliseconds"]["cpu"]
    assert len(times) == STAGES
    assert max(list(times.values())[:10]) > 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["demo.json", "demo.png"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    sheet = np.asarray(Image.open(tmp_path / "out" / "demo.png"))
    assert sheet.shape[1] > 1500
    first = np.asarray(synthetic_dataset(1, 5).records[0].load().resize((320, 320), Image.Resampling.BILINEAR))
    shown = sheet[HEADING + 2 :, 2:][:320, :320]
    assert abs(shown.astype(int) - first).mean() < 2


@pytest.mark.gpu
def test_demo_on_a_gpu(tmp_path: Path) -> None:
    assert main(["demo", "--device", "cuda", "--out", str(tmp_path)]) == 0
    metrics = json.loads((tmp_path / "demo.json").read_text())
    assert metrics["metrics"]["mask"]["ap"] >= 0.79  # in bfloat16
    assert set(metrics["milliseconds"]) == {"cuda:0", "cpu"}


def test_demo_on_own_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    drawn = Scenes(1, 7, (200, 300))[0]
    drawn.load().save(tmp_path / "shapes.png")
    files = [str(tmp_path / "shapes.png")]
    assert main(["demo", "--image", *files, *files, "--device", "cpu", "--out", str(tmp_path)]) == 0
    assert capsys.readouterr().out.count("shapes.png: ") == 2
    metrics = json.loads((tmp_path / "demo.json").read_text())
    assert metrics["detections"]
    assert all(result["score"] > 0.5 for result in metrics["detections"])
    best = max(metrics["detections"], key=lambda result: result["score"])
    overlaps = coco.iou([best["segmentation"]], [item.rle for item in drawn.instances], [0] * len(drawn.instances))
    assert overlaps.max() > 0.6
    assert Image.open(tmp_path / "demo.png").width > 2 * 384


def test_wrong_arguments(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "torn.png").write_bytes(b"torn")
    for options, message in (
        (["--number", "0"], "--number must be at least 1, got 0"),
        (["--seed", "-1"], "seed must be at least 0, got -1"),
        (["--score", "2"], "--score must be in [0, 1], got 2.0"),
        (["--device", "tpu"], "tpu"),
        (["--image", str(tmp_path / "torn.png")], "torn.png"),
        (["--image", str(tmp_path / "none.png")], "none.png"),
    ):
        assert main(["demo", "--device", "cpu", "--out", str(tmp_path), *options]) == 2
        assert message in capsys.readouterr().err
    (tmp_path / "file").touch()
    assert main(["demo", "--number", "1", "--out", str(tmp_path / "file")]) == 2
    assert "file" in capsys.readouterr().err


def test_comparison_shows_what_there_is() -> None:
    """A white square on black, found half as wide: truth and prediction are tinted where their masks are."""
    pixels = np.zeros((40, 60, 3), np.uint8)
    pixels[10:30, 20:40] = 255
    mask, half = np.zeros((2, 40, 60), np.uint8)
    mask[10:30, 20:40] = 1
    half[10:30, 20:30] = 1
    square, found = (coco.encode(np.asfortranarray(each)) for each in (mask, half))
    record = Record(Path("drawn.png"), (40, 60), (Instance("square", rle=square),), 1, Image.fromarray(pixels))
    entry = {"category_id": 1, "bbox": [20, 10, 10, 20], "score": 0.9, "segmentation": found}
    sheet = np.asarray(draw_comparison([record], [[entry]], ["", "square"], side=80))[HEADING:].astype(int)
    assert sheet.shape == (84, 3 * 124, 3)
    panels = [sheet[2:82, start : start + 120] for start in (2, 126, 250)]
    colored = [np.ptp(panel, axis=2) > 30 for panel in panels]
    inside = np.s_[44:56, 44:76]  # away from boxes, rims and captions
    assert not colored[0].any()
    assert colored[1][inside].all()
    assert colored[2][inside][:, :12].all()
    assert not colored[2][inside][:, 20:].any()
    alone = draw_comparison([record._replace(instances=())], [[entry]], ["", "square"], side=80)
    assert alone.size == (2 * 124, HEADING + 84)


def test_shipped_weights() -> None:
    """They are what the enum says, small, and of finite halves."""
    weights = detection.MaskRCNN_Slim_FPN_Weights.DEFAULT
    assert get_model_weights("maskrcnn_slim_fpn").SHAPES_V1 is weights
    assert WEIGHTS_FILE.stat().st_size <= 6e6
    file = Checkpoint(WEIGHTS_FILE)
    assert {name: weights.meta[name] for name in file.meta} == file.meta
    assert weights.meta["categories"][1:] == list(CLASSES[:3])
    model = detection.maskrcnn_slim_fpn(weights="DEFAULT")
    assert sum(parameter.numel() for parameter in model.parameters()) == weights.meta["num_params"]
    for key, value in model.state_dict().items():
        assert value.isfinite().all()
        assert value.dtype == (torch.int64 if key.endswith("num_batches_tracked") else torch.float32)
        assert torch.equal(value, file.get_state_dict()[key].to(value.dtype))
    metrics = json.loads((WEIGHTS_FILE.parent / "epochs.json").read_text())[-1]
    assert metrics["mask"][0] == pytest.approx(weights.meta["_metrics"]["synthetic-shapes"]["mask_map"] / 100, abs=1e-3)
