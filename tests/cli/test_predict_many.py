"""``fastmask predict`` on many images: interrupted and resumed, alone and by two ranks."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.images import draw_image_file
from PIL import Image
from torch import nn

from fastmask.cli import main
from fastmask.image_io import read_image
from fastmask.inference import journal, prefetch

SlimFile = tuple[Path, nn.Module]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
SCRIPT = str(Path(__file__).parent.parent / "helpers" / "slim_command.py")


def arguments(slim_file: SlimFile, out: Path, *more: Any) -> list[str]:
    weights, _ = slim_file
    return ["predict", "--model", "slim", "--weights", str(weights), "--score", "0.06", "--out", str(out)] + [
        str(argument) for argument in more
    ]


def results(out: Path) -> list[dict[str, Any]]:
    return json.loads((out / "predictions.json").read_text())


@pytest.fixture
def images(tmp_path: Path) -> list[Path]:
    (tmp_path / "images").mkdir()
    return [draw_image_file(tmp_path / "images" / f"p{i:02}.png", 60, 80 + i) for i in range(14)]


@pytest.fixture
def stop_at(slim_file: SlimFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Run on images, stopped at one of them -> the folder."""

    def stopped(at: Path, *images: Any) -> Path:
        def read(path: Path, channels: int) -> Image.Image:
            if path == at:
                raise KeyboardInterrupt
            return read_image(path, channels)

        with monkeypatch.context() as patch:
            patch.setattr(prefetch, "read_image", read)
            assert main(arguments(slim_file, tmp_path / "out", *images)) == 130
        return tmp_path / "out"

    return stopped


@pytest.fixture
def interrupted(stop_at: Callable[..., Path], images: list[Path]) -> Path:
    """The folder of a run that was stopped at its tenth image."""
    return stop_at(images[9], *images)


@pytest.fixture
def whole(slim_file: SlimFile, images: list[Path], tmp_path: Path) -> list[dict[str, Any]]:
    """Results of a run without an interruption."""
    assert main(arguments(slim_file, tmp_path / "whole", *images)) == 0
    assert not (tmp_path / "whole" / journal.PARTS).exists()
    return results(tmp_path / "whole")


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Paths that are read from here on."""
    paths: list[Path] = []
    monkeypatch.setattr(prefetch, "read_image", lambda path, channels: paths.append(path) or read_image(path, channels))
    return paths


def journal_of(folder: Path) -> Path:
    (part,) = (folder / journal.PARTS).glob("*.jsonl")
    return part


def test_an_interrupted_run_is_resumed(
    slim_file: SlimFile,
    images: list[Path],
    interrupted: Path,
    whole: list[dict[str, Any]],
    read: list[Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Predictions are kept; only the rest, changed images, and those cut off or without overlay are read again."""
    assert not (interrupted / journal.RESULTS).exists()
    found = json.loads((interrupted / journal.PARTIAL).read_text())
    assert found == whole[: len(found)]
    done = sorted({result["image_id"] for result in found})
    assert 3 < len(done) < 10
    part = journal_of(interrupted)
    part.write_text(part.read_text()[:-5])
    images[0].touch()
    (interrupted / "p01.predicted.png").unlink()
    assert main(arguments(slim_file, interrupted, *images)) == 0
    assert sorted(read) == [*images[:2], *images[len(done) - 1 :]]
    assert results(interrupted) == whole
    assert not (interrupted / journal.PARTS).exists()
    assert not (interrupted / journal.PARTIAL).exists()
    assert "in 14 images" in capsys.readouterr().out


def test_an_interruption_leaves_complete_results_alone(
    slim_file: SlimFile, images: list[Path], stop_at: Callable[..., Path], tmp_path: Path
) -> None:
    assert main(arguments(slim_file, tmp_path / "out", *images[:3])) == 0
    before = results(tmp_path / "out")
    stop_at(images[0], *images[:3])
    assert results(tmp_path / "out") == before


def test_another_image_of_the_same_name(
    slim_file: SlimFile, images: list[Path], interrupted: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Overlays that are called otherwise than before are drawn again."""
    other = images[0].with_suffix(".bmp")
    Image.open(images[1]).save(other)
    assert main(arguments(slim_file, interrupted, other, *images)) == 0
    assert len(list(interrupted.glob("*.predicted.png"))) == 15
    for overlay, image in (("p00", other), ("p00-2", images[0])):
        assert Image.open(interrupted / f"{overlay}.predicted.png").size == Image.open(image).size


def test_other_settings_and_images_are_refused(
    slim_file: SlimFile, images: list[Path], interrupted: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = journal_of(interrupted).read_text()
    other = arguments(slim_file, interrupted, "--score", "0.5", images[0])
    assert main(other) == 2
    printed = capsys.readouterr().err
    assert "must be an unfinished run with these settings, got one with score 0.06: run it as it was" in printed
    assert main(arguments(slim_file, interrupted, *images[1:])) == 2
    assert f"run on these images, got one on others ({images[0]}, ...)" in capsys.readouterr().err
    assert journal_of(interrupted).read_text() == before
    images[0].unlink()  # what is gone is no reason
    assert main(arguments(slim_file, interrupted, *images[1:])) == 0
    assert main([*other[:-1], str(images[1]), "--restart"]) == 0
    assert not (interrupted / journal.PARTS).exists()


def test_nothing_predicted_leaves_results_alone(
    slim_file: SlimFile, images: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a disk or a device fails, the results of an earlier run are still there."""
    command = arguments(slim_file, tmp_path / "out", *images[:2])
    assert main(command) == 0
    before = results(tmp_path / "out")
    with monkeypatch.context() as patch:
        patch.setattr(prefetch, "read_image", lambda *_: (_ for _ in ()).throw(OSError("unplugged")))
        assert main(command) == 1
    assert results(tmp_path / "out") == before
    assert main(command) == 0


def test_wrong_arguments_restart_nothing(slim_file: SlimFile, images: list[Path], interrupted: Path) -> None:
    before = journal_of(interrupted).read_text()
    assert main([*arguments(slim_file, interrupted, *images), "--restart", "--batch", "0"]) == 2
    assert journal_of(interrupted).read_text() == before


def test_two_runs_at_once(
    slim_file: SlimFile, images: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with journal.lock_folder(tmp_path / "out"):
        assert main(arguments(slim_file, tmp_path / "out", images[0])) == 2
    assert "out must be free, got another run in it" in capsys.readouterr().err
    assert main(arguments(slim_file, tmp_path / "out", images[0])) == 0


def test_skipped_images_are_tried_again(
    slim_file: SlimFile, images: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the same command, without the rest."""
    broken = [images[1], images[4]]

    def reading(path: Path, channels: int) -> Image.Image:
        tried.append(path)
        if path in broken:
            raise MemoryError if path == images[1] else OSError("unplugged")
        return read_image(path, channels)

    monkeypatch.setattr(prefetch, "read_image", reading)
    command = arguments(slim_file, tmp_path / "out", *images[:6])
    tried: list[Path] = []
    for expected in (images[:6], broken):
        tried.clear()
        assert main(command) == 1
        assert sorted(tried) == expected
    tried.clear()
    mended, broken = broken, []
    assert main(command) == 0
    assert sorted(tried) == mended
    assert main(arguments(slim_file, tmp_path / "whole", *images[:6])) == 0
    assert results(tmp_path / "out") == results(tmp_path / "whole")


def test_a_broken_journal_is_named(
    slim_file: SlimFile, images: list[Path], interrupted: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    part = journal_of(interrupted)
    lines = part.read_text().split("\n")
    part.write_text("\n".join([lines[0], "{oops", *lines[2:]]))
    assert main(arguments(slim_file, interrupted, *images)) == 2
    assert "0000-00000.jsonl must hold JSON, got b'{oops" in capsys.readouterr().err


def test_two_ranks_give_the_union_of_one(
    slim_file: SlimFile, images: list[Path], interrupted: Path, whole: list[dict[str, Any]], tmp_path: Path
) -> None:
    """They go on where one process was stopped; a broken image is named once, the rest is complete."""
    torn = images[0].parent / "torn.png"
    torn.write_bytes(images[0].read_bytes()[:300])
    done = subprocess.run(
        [*TORCHRUN, SCRIPT, *arguments(slim_file, interrupted, images[0].parent)],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ
        | {
            "OMP_NUM_THREADS": str(torch.get_num_threads()),
            "PYTHONPATH": str(Path(SCRIPT).parent.parent),
        },  # sums in the same order, hence equal
    )
    assert done.returncode == 1, done.stderr
    assert done.stderr.count("skipped") == 1
    assert done.stdout.count("in 14 images") == 1
    assert results(interrupted) == whole
    assert len(list(interrupted.glob("*.predicted.png"))) == 14
    assert (interrupted / journal.PARTS / journal.FINISHED).exists()


@pytest.mark.slow
def test_two_ranks_say_once_what_is_wrong(slim_file: SlimFile, images: list[Path], tmp_path: Path) -> None:
    command = [*TORCHRUN, SCRIPT, *arguments(slim_file, tmp_path / "out", "--batch", 0, images[0])]
    wrong = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert wrong.returncode != 0
    assert wrong.stderr.count("fastmask predict: --batch must be at least 1, got 0") == 1
    assert "Connection" not in wrong.stderr  # of a rank that another one left alone


def test_results_only(slim_file: SlimFile, images: list[Path], tmp_path: Path) -> None:
    """Fixed sizes and batches have the same kind of results."""
    out = tmp_path / "out"
    assert main(arguments(slim_file, out, "--no-overlays", "--size", 128, 160, "--batch", 4, *images)) == 0
    assert [path.name for path in out.iterdir()] == ["predictions.json"]
    assert {result["image_id"] for result in results(out)} <= set(range(1, 15))
    with pytest.raises(SystemExit, match="2"):
        main(arguments(slim_file, out, "--dtype", "int8", images[0]))
    for wrong, message in {
        ("--batch", "0"): "batch must be at least 1, got 0",
        ("--size", "0", "5"): "size must be at least 1, got",
    }.items():
        assert main(arguments(slim_file, out, *wrong, images[0])) == 2, message
