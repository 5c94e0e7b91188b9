"""``fastmask predict`` on many pictures: interrupted and taken up again, alone and by two ranks."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from pictures import picture_file
from PIL import Image
from torch import nn

from fastmask import feed
from fastmask.cli import _journal, main
from fastmask.images import read_image

SlimFile = tuple[Path, nn.Module]


def arguments(slim_file: SlimFile, out: Path, *more: Any) -> list[str]:
    weights, _ = slim_file
    return ["predict", "--model", "slim", "--weights", str(weights), "--score", "0.06", "--out", str(out)] + [
        str(argument) for argument in more
    ]


def results(out: Path) -> list[dict[str, Any]]:
    return json.loads((out / "predictions.json").read_text())


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    (tmp_path / "pictures").mkdir()
    return [picture_file(tmp_path / "pictures" / f"p{i:02}.png", 60, 80 + i) for i in range(14)]


@pytest.fixture
def interrupted(slim_file: SlimFile, pictures: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a run that was stopped at its tenth picture."""

    def read(path: Path) -> Image.Image:
        if path == pictures[9]:
            raise KeyboardInterrupt
        return read_image(path)

    with monkeypatch.context() as patch:
        patch.setattr(feed, "read_image", read)
        assert main(arguments(slim_file, tmp_path / "out", *pictures)) == 130
    return tmp_path / "out"


@pytest.fixture
def whole(slim_file: SlimFile, pictures: list[Path], tmp_path: Path) -> list[dict[str, Any]]:
    """What one run without an interruption finds."""
    assert main(arguments(slim_file, tmp_path / "whole", *pictures)) == 0
    assert not (tmp_path / "whole" / _journal.PARTS).exists()
    return results(tmp_path / "whole")


def test_a_run_is_taken_up(
    slim_file: SlimFile,
    pictures: list[Path],
    interrupted: Path,
    whole: list[dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """What was found is kept; only the rest, what has changed, and a line that was cut off are looked at again."""
    found = results(interrupted)
    assert found == whole[: len(found)]
    done = sorted({entry["image_id"] for entry in found})
    assert 2 < len(done) < 10
    (part,) = (interrupted / _journal.PARTS).iterdir()
    part.write_text(part.read_text()[:-5])
    pictures[0].touch()
    read = []
    monkeypatch.setattr(feed, "read_image", lambda path: read.append(path) or read_image(path))
    assert main(arguments(slim_file, interrupted, *pictures)) == 0
    assert sorted(read) == [pictures[0], *pictures[len(done) - 1 :]]
    assert results(interrupted) == whole
    assert not (interrupted / _journal.PARTS).exists()
    assert "in 14 pictures" in capsys.readouterr().out


def test_other_settings_are_refused(
    slim_file: SlimFile, pictures: list[Path], interrupted: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = arguments(slim_file, interrupted, "--score", "0.5", pictures[0])
    assert main(other) == 2
    printed = capsys.readouterr().err
    assert "must be an unfinished run with these settings, got one with score 0.06: run it as it was" in printed
    assert main([*other, "--restart"]) == 0
    assert not (interrupted / _journal.PARTS).exists()


def test_a_broken_journal_is_named(
    slim_file: SlimFile, pictures: list[Path], interrupted: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (part,) = (interrupted / _journal.PARTS).iterdir()
    lines = part.read_text().split("\n")
    part.write_text("\n".join([lines[0], "{oops", *lines[2:]]))
    assert main(arguments(slim_file, interrupted, *pictures)) == 2
    assert "0000-00000.jsonl must hold JSON, got '{oops' in line 2: use --restart" in capsys.readouterr().err


def test_two_ranks_give_the_union_of_one(
    slim_file: SlimFile, pictures: list[Path], interrupted: Path, whole: list[dict[str, Any]], tmp_path: Path
) -> None:
    """They go on from where one process was stopped; a broken picture is named once, the rest is complete."""
    torn = pictures[0].parent / "torn.png"
    torn.write_bytes(pictures[0].read_bytes()[:300])
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    script = str(Path(__file__).parent / "slim_command.py")
    done = subprocess.run(
        [*launcher, script, *arguments(slim_file, interrupted, pictures[0].parent)],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())},  # sums in the same order, hence equal
    )
    assert done.returncode == 1, done.stderr
    assert done.stderr.count("skipped") == 1
    assert done.stdout.count("in 14 pictures") == 1
    assert results(interrupted) == whole
    assert len(list(interrupted.glob("*.predicted.png"))) == 14
    assert not (interrupted / _journal.PARTS).exists()


def test_results_only(slim_file: SlimFile, pictures: list[Path], tmp_path: Path) -> None:
    """Fixed sizes and batches have the same kind of answers."""
    out = tmp_path / "out"
    assert main(arguments(slim_file, out, "--no-pictures", "--size", 128, 160, "--batch", 4, *pictures)) == 0
    assert [path.name for path in out.iterdir()] == ["predictions.json"]
    assert {entry["image_id"] for entry in results(out)} <= set(range(1, 15))
    for wrong, message in {
        ("--dtype", "int8"): "dtype must be 'auto' or a floating torch.dtype, got torch.int8",
        ("--batch", "0"): "batch must be at least 1, got 0",
        ("--size", "0", "5"): "size must be at least 1, got",
    }.items():
        assert main(arguments(slim_file, out, *wrong, pictures[0])) == 2, message
