"""``fastmask compare`` on the slim model: its table, its image, wrong arguments; and the IoU of masks."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.images import draw_image_file
from PIL import Image
from torch import nn

from fastmask.cli import main
from fastmask.evaluation.agreement import mask_ious
from fastmask.inference.bfloat16 import has_native_bfloat16


def compare(weights: Path, *arguments: Any) -> int:
    return main(["compare", "--model", "slim", "--weights", str(weights), "--score", "0.06", *map(str, arguments)])


def test_table_and_image(slim_file: tuple[Path, nn.Module], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Padded as the model does, everything matches; where the size is the model's own, so it does there."""
    images = [draw_image_file(tmp_path / f"{i}.png", 128, 160) for i in range(2)]
    out = tmp_path / "comparison.png"
    assert compare(slim_file[0], *images, "--size", 128, 160, "--out", out) == 0
    header, *rows, last, first, second, native = capsys.readouterr().out.splitlines()
    for line, where in ((first, "exact"), (second, "128 x 160")):
        kept, total = map(int, re.findall(r"keeps (\d+) of float32's (\d+) detections", line)[0])
        assert 0 < kept <= total
        assert line.startswith(f"{where}, bfloat16: ")
        assert line.endswith(f"{'enough' if kept >= 0.99 * total else 'too few'} for --dtype bfloat16")
    assert native == (
        "this CPU " + ("computes bfloat16 itself" if has_native_bfloat16() else "only emulates bfloat16: slower")
    )
    assert header.split() == ["detections", "matched", "mask", "IoU"]
    assert [row[:24].strip() for row in rows] == [
        "exact, float32",
        "128 x 160, float32",
        "exact, bfloat16",
        "128 x 160, bfloat16",
    ]
    numbers = [row[24:].split() for row in rows]
    for number, share, iou in numbers[:2]:
        assert int(number) > 10
        assert float(share.rstrip("%")) >= 100 - 100 / int(number) - 0.1  # all but one, which may be on a border
        assert float(iou) > 0.999
    for _, share, iou in numbers[2:]:
        assert 0 <= float(share.rstrip("%")) < 100
        assert 0.5 < float(iou) < 1
    assert last.endswith(str(out))
    with Image.open(out) as sheet:
        assert sheet.width == 5 * 160
        assert sheet.height > 128


def test_wrong_arguments(slim_file: tuple[Path, nn.Module], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torn = tmp_path / "torn.png"
    torn.write_text("no image")
    assert compare(slim_file[0], torn) == 2
    assert "torn.png cannot be read as an image" in capsys.readouterr().err
    assert compare(slim_file[0], draw_image_file(tmp_path / "good.png"), "--size", 0, 5) == 2
    assert "size must be at least 1, got (0, 5)" in capsys.readouterr().err


def test_mask_ious() -> None:
    masks = torch.zeros(4, 4, 4, dtype=torch.bool)
    masks[0, :2], masks[1, :1], masks[2, :, :2] = True, True, True
    expected = {"labels": torch.tensor([1, 1, 2, 3]), "masks": masks}
    actual = {"labels": torch.tensor([1, 2, 3]), "masks": masks[[1, 0, 3]]}
    assert mask_ious(actual, expected).tolist() == [0.5, 1, pytest.approx(1 / 3), 1]
    nothing = {"labels": torch.zeros(0), "masks": masks[:0]}
    assert mask_ious(nothing, expected).tolist() == [0, 0, 0, 0]
    assert mask_ious(actual, nothing).tolist() == []
