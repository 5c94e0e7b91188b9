"""``fastmask demo``: its sheet, its tables and its times."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from fastmask.cli import main
from fastmask.cli.demo import wait_passively
from fastmask.cocoapi import mask as coco
from fastmask.data import Instance, Record, read_dataset
from fastmask.data.crop import plan_resize
from fastmask.demo import synthetic_dataset
from fastmask.demo.comparison import HEADING, draw_comparison
from fastmask.demo.run import PHOTOS

STAGES = 12  # the model's ten, all of it, a whole call


@pytest.fixture(autouse=True)
def _few_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of its times, of which .ci/run measures all."""
    monkeypatch.setattr("fastmask.cli._demo.ROUNDS", (1, 1))


def test_demo(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Few images, all of which .ci/run draws; nothing is asked for outside."""

    def refuse(*_: object) -> None:
        raise AssertionError("a network was asked for")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "empty"))
    assert main(["demo", "--number", "9", "--seed", "5", "--device", "cpu", "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert "Photos, on which the weights were chosen, not trained: 4" in printed
    assert "Images drawn with seed 5, never seen in training: 9" in printed
    assert "quadrilateral" in printed
    assert "RoIAlign 14 x 14" in printed
    metrics = json.loads((tmp_path / "out" / "demo.json").read_text())
    for part, number in (("photos", 4), ("synthetic", 9)):
        mask = metrics[part]["metrics"]["mask"]
        assert mask["ap50"] > 0.5
        assert f"{mask['ap']:.3f}  {mask['ap50']:.3f}" in printed
        assert metrics[part]["images"] == number
    weights = {"photos": "BALLOON_V1", "synthetic": "SHAPES_V1", "times": "BALLOON_V1"}
    assert {part: metrics[part]["weights"] for part in metrics} == weights
    assert (metrics["synthetic"]["seed"], list(metrics["times"]["devices"])) == (5, ["cpu"])
    times = metrics["times"]["milliseconds"]["cpu"]
    assert len(times) == STAGES
    assert max(list(times.values())[:10]) > 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["demo.json", "demo.png"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    sheet = np.asarray(Image.open(tmp_path / "out" / "demo.png")).astype(int)
    photo = read_dataset(PHOTOS).records[0].load()
    crop = plan_resize((photo.height, photo.width), 480, 960)
    first = np.asarray(crop.apply_image(photo))
    assert abs(find_panel(sheet, 0, first.shape) - first).mean() < 2
    first = np.asarray(synthetic_dataset(1, 5).records[0].load().resize((320, 320), Image.Resampling.BILINEAR))
    top = len(sheet) - (HEADING + 4 * 324)
    assert abs(find_panel(sheet, top, first.shape) - first).mean() < 2


def find_panel(sheet: NDArray[np.int64], top: int, shape: tuple[int, ...]) -> NDArray[np.int64]:
    """The first panel of a comparison below a row of the sheet, which is centered."""
    (columns,) = (sheet[top + HEADING + 2 : top + HEADING + 2 + shape[0]] < 250).any((0, 2)).nonzero()
    return sheet[top + HEADING + 2 :, columns[0] :][: shape[0], : shape[1]]


@pytest.mark.gpu
def test_demo_on_a_gpu(tmp_path: Path) -> None:
    assert main(["demo", "--device", "cuda", "--out", str(tmp_path)]) == 0
    metrics = json.loads((tmp_path / "demo.json").read_text())
    assert metrics["synthetic"]["metrics"]["mask"]["ap"] >= 0.79  # in bfloat16
    assert metrics["photos"]["metrics"]["mask"]["ap50"] > 0.7
    assert set(metrics["times"]["milliseconds"]) == {"cuda:0", "cpu"}


def test_demo_on_own_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = read_dataset(PHOTOS).records[3]
    files = [str(record.file)]
    assert main(["demo", "--image", *files, *files, "--device", "cpu", "--out", str(tmp_path)]) == 0
    assert capsys.readouterr().out.count(f"{record.file.name}: ") == 2
    metrics = json.loads((tmp_path / "demo.json").read_text())
    assert all(result["score"] > 0.5 for result in metrics["detections"])
    best = max(metrics["detections"], key=lambda result: result["score"])
    assert record.size is not None
    truth = [item.to_rle(*record.size) for item in record.instances]
    assert coco.iou([best["segmentation"]], truth, [0] * len(truth)).max() > 0.8
    assert Image.open(tmp_path / "demo.png").width > 2 * 384


def test_threads_wait_passively() -> None:
    """Unless PyTorch is there already, or the user wants something else."""
    program = "import os; from fastmask.cli.demo import wait_passively as f; f(); print(os.environ['OMP_WAIT_POLICY'])"
    quiet = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    for environment, expected in ((quiet, "PASSIVE"), (quiet | {"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE")):
        command = [sys.executable, "-c", program]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        assert done.stdout.strip() == expected
    before = os.environ.get("OMP_WAIT_POLICY")
    wait_passively()
    assert os.environ.get("OMP_WAIT_POLICY") == before


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
