"""Standard output that cannot be written, messages in the options' names, images that no model takes."""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.images import draw_image_file
from PIL import Image
from torch import nn

from fastmask.cli import main, make_parsers
from fastmask.cli._messages import name_options
from fastmask.data import read_dataset
from fastmask.data.augment import Augmentation
from fastmask.data.loading import training_loader
from fastmask.demo import save_synthetic, synthetic_dataset


@pytest.mark.parametrize(
    "command", ["--help", "data check SET", "evaluate SET --results SET/none.json", "predict IMAGE", "env"]
)
def test_output_that_cannot_be_written(
    command: str,
    slim_file: tuple[Path, nn.Module],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A full disk is named in one line; of a pipe that is closed nothing is said."""
    save_synthetic(synthetic_dataset(1, 1, (64, 96)), tmp_path / "set")
    (tmp_path / "set" / "none.json").write_text("[]")
    image = draw_image_file(tmp_path / "a.png", 64, 96)
    words = command.replace("SET", str(tmp_path / "set")).replace("IMAGE", str(image)).split()
    monkeypatch.chdir(tmp_path)
    if words[0] == "predict":
        words += ["--model", "slim", "--weights", str(slim_file[0])]
    reader, writer = os.pipe()
    os.close(reader)
    said = "fastmask: the standard output cannot be written: [Errno 28] No space left on device\n"
    for name, file in (("full", "/dev/full"), ("closed", writer)):
        with pytest.MonkeyPatch.context() as patch, open(file, "w") as output:
            patch.setattr(sys, "stdout", output)
            with pytest.raises(SystemExit, match="2" if name == "full" else "141"):
                main(words)
        assert capsys.readouterr().err == (said if name == "full" else "")


def test_the_process_ends_in_one_line(tmp_path: Path) -> None:
    """Python itself says nothing more when it ends."""
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, "-m", "fastmask", "--help"], stdout=full, stderr=subprocess.PIPE)
    assert (done.returncode, done.stderr.count(b"\n")) == (2, 1)


@pytest.mark.parametrize(
    ("command", "message", "expected"),
    [
        ("train", "batch_size must be at least 1, got 0", "--batch-size must be at least 1, got 0"),
        ("train", "dataset must have images, got none", "--data-path must have images, got none"),
        ("train", "a.pth must be the same, got lr 1 (now 2), size None (now (64, 96)), model a (now b)", None),
        ("train", "lower lr or batch_size, or set max_grad_norm", "lower --lr or --batch-size, or set --max-grad-norm"),
        ("train", "runs/batch_size/lr must not be 'lr', batch_size.csv or --lr", ""),
        ("train", "images must be at most 7 times as long as wide", ""),
        ("export", "opset and target must not be given", "--opset and --target must not be given"),
        ("export", "file must end in .onnx", ""),
        ("predict", "box_score_thresh must be in [0, 1]", "--score must be in [0, 1]"),
        ("data", "attribute must be None", "--class-attribute must be None"),
        ("data", "score must be a number", ""),
    ],
)
def test_messages_name_the_options(command: str, message: str, expected: str | None) -> None:
    dests = [action.dest for action in make_parsers()[1][command]._actions]
    args = argparse.Namespace(command=command, **dict.fromkeys([*dests, "class_attribute"]))
    if expected is None:
        expected = "a.pth must be the same, got --lr 1 (now 2), --size None (now (64, 96)), --model a (now b)"
    assert name_options(message, args) == (expected or message)


@pytest.mark.parametrize("size", [(5000, 1), (10, 20000)], ids=["low", "narrow"])
def test_images_that_are_too_long(
    size: tuple[int, int], slim_file: tuple[Path, nn.Module], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each command that reads images names the file, its size, and the limit of the model at hand."""
    path = tmp_path / "strip.png"
    Image.new("L", size).save(path)
    size_said = f"got {size[0]} x {size[1]} pixels (width x height): cut it into pieces"
    image = {"id": 1, "file_name": "strip.png", "width": size[0], "height": size[1]}
    box = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, *size], "area": size[0] * size[1], "iscrowd": 0}
    content = {"images": [image], "annotations": [box], "categories": [{"id": 1, "name": "one"}]}
    annotations = str(tmp_path / "a.json")
    Path(annotations).write_text(json.dumps(content))
    model = ["--model", "slim", "--weights", str(slim_file[0]), "--out"]
    for limit, code, words in (
        (1333, 1, ["data", "check", annotations]),
        (200, 1, ["predict", str(path), *model, str(tmp_path / "predictions")]),
        (200, 2, ["compare", str(path), *model, str(tmp_path / "c.png")]),
        (200, 1, ["evaluate", annotations, *model, str(tmp_path / "evaluation")]),
    ):
        assert main(words) == code, words
        rule = f"images must be at most {limit} times as long as wide, as they are resized to {limit} pixels"
        (line,) = (line for line in capsys.readouterr().err.splitlines() if "times as long" in line)
        assert f"{path}: {rule}, {size_said}" in line
    for zoom in (None, (0.5, 1.0)):
        augmentation = Augmentation((64,), 96, zoom=zoom, canvas=(96, 96))
        loader = training_loader(read_dataset(Path(annotations)), 1, augmentation, masks=False, workers=0)
        with pytest.raises(
            ValueError, match=r"images in a row cannot be read; the first one: .*strip\.png: images must"
        ):
            next(iter(loader))
