"""What newcomers type wrongly: one line names the option or the file, and what to do; nothing is computed before."""

import json
import sys
from pathlib import Path

import pytest

from fastmask.cli import main
from fastmask.demo import save_synthetic, synthetic_dataset
from fastmask.files import replace_file


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    save_synthetic(synthetic_dataset(2), path := tmp_path_factory.mktemp("data") / "shapes")
    return path


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("data check none", "none: no such file or directory"),
        ("data check DATA --contact-sheet sheet", "--contact-sheet must end as images do (.png, .jpg, ...), got"),
        ("data convert DATA folder --to coco --force", "folder must be a file, got a folder"),
        ("compare DATA/images --out folder", "--out must end as images do (.png, .jpg, ...), got"),
        (
            "evaluate DATA --weights none.pth",
            "--weights must be a file that is there, or a name, got none.pth: no such",
        ),
        ("evaluate DATA --results none.json", "none.json: no such file or directory"),
        ("evaluate DATA --results none.json --weights SHAPES_V1", "--weights must not be given with --results"),
        ("evaluate DATA --results none.json --size 64 64", "--size must not be given with --results"),
        ("evaluate DATA --results none.json --test-sizes 96", "--test-sizes must not be given with --results"),
        ("evaluate DATA --results none.json --flip", "--flip must not be given with --results"),
        (
            "export a.onnx --weights SHAPES_V1 --size 190 192",
            "--size must be a multiple of 32, as the model pads, got 190",
        ),
        ("train --resume --out new", "--resume needs a run in --out, or --data-path, --epochs to start one, got new"),
        ("train --data-path none --epochs 1", "none: no such file or directory"),
    ],
)
def test_one_line(
    arguments: str,
    said: str,
    shapes: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    assert main([word.replace("DATA", str(shapes)) for word in arguments.split()]) == 2
    printed = capsys.readouterr()
    assert not printed.out
    assert len(printed.err.splitlines()) == 1
    assert f": {said}" in printed.err


def test_a_full_disk_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="no space") as caught, replace_file(tmp_path / "a.json"):
        raise OSError(28, "no space left on device")
    assert caught.value.filename == str(tmp_path / "a.json")


def test_classes_are_counted_not_labels(shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Category ids with gaps, as COCO's: the model has a label for each number, the data three classes."""
    content = json.loads((shapes / "annotations.json").read_text())
    for each, key in [(e, "id") for e in content["categories"]] + [(e, "category_id") for e in content["annotations"]]:
        each[key] *= 10
    path = tmp_path / "gaps.json"
    path.write_text(json.dumps(content))
    command = f"train --data-path {path} --images {shapes / 'images'} --epochs 1 --model maskrcnn_slim_fpn --workers 0"
    assert main([*command.split(), "--weights", "none", "--out", str(tmp_path / "run")]) == 0
    assert capsys.readouterr().out.startswith("2 images, 3 classes, 1 steps of 2 images")


def test_an_extra_that_reads_weights_is_named(
    shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By every command that takes them, in one line."""
    weights = tmp_path / "own.h5"
    weights.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100))
    monkeypatch.setitem(sys.modules, "h5py", None)
    for command in (
        f"predict {shapes / 'images'} --out {tmp_path / 'out'}",
        f"evaluate {shapes} --out {tmp_path / 'out'}",
        f"compare {shapes / 'images'}",
        f"export {tmp_path / 'a.onnx'}",
        f"train --data-path {shapes} --epochs 1 --out {tmp_path / 'run'}",
    ):
        assert main([*command.split(), "--weights", str(weights), "--device", "cpu"]) == 2, command
        assert "need h5py: pip install 'fastmask-rcnn[h5]'\n" in capsys.readouterr().err, command
