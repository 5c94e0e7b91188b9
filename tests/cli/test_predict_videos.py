"""``fastmask predict`` on videos: outputs, exit codes, what is refused."""

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from helpers.clips import draw_frames, write_clip
from helpers.images import draw_image_file
from torch import nn

from fastmask.cli import main
from fastmask.inference.video_writer import VideoWriter

pytest.importorskip("av", reason="it reads the videos")

SlimFile = tuple[Path, nn.Module]


def predict(slim_file: SlimFile, out: Path, *arguments: Any) -> int:
    command = ["predict", "--model", "slim", "--weights", slim_file[0], "--score", "0.06", "--out", out, *arguments]
    return main([str(word) for word in command])


def test_videos_and_images(slim_file: SlimFile, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Each has its outputs; a broken video is named, and the rest goes on."""
    photo = draw_image_file(tmp_path / "a.png")
    clip, other = (write_clip(tmp_path / name, draw_frames(5)) for name in ("a.mp4", "b.MKV"))
    torn = tmp_path / "torn.mp4"
    torn.write_bytes(clip.read_bytes()[:700])
    out = tmp_path / "out"
    assert predict(slim_file, out, clip, torn, photo, tmp_path / "none.mov", other) == 1
    printed = capfd.readouterr()
    made = [f"{name}.{end}" for name in "ab" for end in ("predicted.mp4", "predictions.jsonl")]
    assert sorted(os.listdir(out)) == sorted([*made, "a.predicted.png", "predictions.json"])
    assert "in 1 image: " in printed.out
    for name in ("a.mp4", "b.MKV"):
        assert f"detections in 5 frames of {tmp_path / name} (" in printed.out
    assert f"skipped: {torn} cannot be read as a video: Invalid data" in printed.err
    assert f"skipped: {tmp_path / 'none.mov'}: no such file" in printed.err
    assert printed.err.count("\n") == 2  # no progress bar

    copy = tmp_path / "copy.jsonl"
    assert predict(slim_file, out, clip, other, "--quiet", "--json", copy, "--every", 2, "--classes", "two") == 0
    assert capfd.readouterr() == ("", "")
    lines = [json.loads(line) for line in copy.read_text().splitlines()]
    assert [(line["file_name"], line["frame"]) for line in lines] == [
        (str(f), i) for f in (clip, other) for i in (0, 2, 4)
    ]
    found = [result for line in lines for result in line["detections"]]
    assert {result["category_id"] for result in found} <= {2}
    assert predict(slim_file, out, other, "--json", "-", "--no-overlays") == 0
    printed = capfd.readouterr()
    assert printed.out == (out / "b.predictions.jsonl").read_text()
    assert "in 5 frames of" in printed.err


@pytest.mark.usefixtures("interruptible")
def test_an_interrupt(slim_file: SlimFile, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """It says how many frames the files have, and ends as other interrupted commands do."""
    write = VideoWriter.write

    def interrupt(self: VideoWriter, pixels: Any, ticks: int, packets: Any) -> None:
        write(self, pixels, ticks, packets)
        if ticks == 512 * 3:  # of 12288 a second
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.2)

    monkeypatch.setattr(VideoWriter, "write", interrupt)
    assert predict(slim_file, tmp_path / "out", write_clip(tmp_path / "a.mp4", draw_frames(24))) == 130
    lines = (tmp_path / "out" / "a.predictions.jsonl").read_text().splitlines()
    assert 4 <= len(lines) < 24
    assert f"interrupted: {sum(len(json.loads(line)['detections']) for line in lines)} " in (
        err := capsys.readouterr().err
    )
    assert f"detections in {len(lines)} frames of " in err


def test_what_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Before a model is loaded, in one line, and nothing is written."""
    clip, photo = write_clip(tmp_path / "a.mp4", draw_frames(2)), draw_image_file(tmp_path / "a.png")
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "a.predictions.jsonl").write_text("mine\n")
    videos = tmp_path / "videos"
    videos.mkdir()
    (videos / "b.mp4").write_bytes(clip.read_bytes())
    for arguments, message in {
        (clip, "--save-crops"): f"--save-crops must be given with images alone, got the video {clip}",
        (clip, "--format", "png"): f"--format must be given with images, got png with the video {clip}",
        (clip, photo, "--json", "-"): f"--json must be given with images or with videos, got {photo} and {clip}",
        (photo, "--every", 2): "--every must be given with videos, got --every 2 with images",
        (clip, "--json", photo): f"{photo} must be of an earlier run",
        (clip, "--out", taken): "a.predictions.jsonl must be of an earlier run, or not be there",
        (tmp_path / "none.mp4",): "none.mp4: no such file",
        ("camera:77",): "camera:77: no such camera (/dev/video77)",
        ("camera:front",): "a camera must be camera:0, camera:1, ..., got camera:front",
        (videos,): f"must hold images, got none; 1 video in folders ({videos / 'b.mp4'}) must be named to be predicted",
        (clip, "--every", 0, "--weights", "SHAPES_V1"): "--every must be at least 1, got 0",
    }.items():
        assert main(["predict", "--out", str(tmp_path / "out"), *map(str, arguments)]) == 2, message
        printed = capsys.readouterr()
        assert message in printed.err
        assert (printed.out, printed.err.count("\n")) == ("", 1)
        assert list(tmp_path.glob("out/*")) == []
    monkeypatch.setitem(sys.modules, "av", None)
    assert main(["predict", "--out", str(tmp_path / "out"), str(clip)]) == 2
    assert f"{clip} needs PyAV: pip install 'fastmask-rcnn[video]'" in capsys.readouterr().err


def test_ranks_are_refused(tmp_path: Path) -> None:
    from argparse import Namespace

    from fastmask.cli._videos import check_videos

    with pytest.raises(ValueError, match="videos must be predicted by one process, got 2"):
        check_videos(Namespace(every=1), [], ["a.mp4"], 2)


def test_videos_in_folders_of_images(slim_file: SlimFile, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """They are left out, counted and named; overlaid videos of an earlier run are not mentioned."""
    draw_image_file(tmp_path / "a.png")
    for name in ("a.mp4", "b.mov", "c.predicted.mp4"):
        (tmp_path / name).touch()
    assert predict(slim_file, tmp_path / "out", tmp_path) == 0
    printed = capsys.readouterr()
    names = f"{tmp_path / 'a.mp4'}, {tmp_path / 'b.mov'}"
    assert printed.err == f"fastmask predict: 2 videos in folders ({names}) must be named to be predicted\n"
    assert "in 1 image" in printed.out
