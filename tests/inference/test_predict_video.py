"""``predict_video``: lines, overlaid video, order, memory, interrupts, errors."""

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.clips import draw_frames, set_matrix, write_clip
from torch import nn

from fastmask import Predictor
from fastmask.cocoapi import mask as coco
from fastmask.inference import predict_video, video_reader, video_writer
from fastmask.inference.coco_results import to_coco_results
from fastmask.inference.video_reader import VideoReader, to_pixels
from fastmask.inference.video_writer import VideoWriter

av = pytest.importorskip("av", reason="it reads the videos")

TICKS = [0, 10, 25, 26, 60, 61, 333, 1000, 1001, 1040, 1080, 1100]


class FixedPredictor:
    """Finds one box with its mask in each frame, of a label that alternates."""

    categories = ("__background__", "cat", "dog")

    def __init__(self, at_frame: Callable[[int], object] = lambda number: None) -> None:
        self.at_frame = at_frame

    def stream(self, images: Iterator[np.ndarray], *, progress: bool, ahead: int) -> Iterator[Any]:
        assert not progress
        for number, image in enumerate(images):
            self.at_frame(number)
            mask = np.zeros(image.shape[:2], np.uint8, order="F")
            mask[5:20, 5:40] = 1
            yield {
                "boxes": torch.tensor([[5.0, 5, 40, 20]]),
                "labels": torch.tensor([1 + number % 2]),
                "scores": torch.tensor([0.9]),
                "masks": [coco.encode(mask)],
            }


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def read_times(path: Path) -> list[float]:
    with VideoReader(path) as reader:
        return [float(frame.ticks * reader.time_base) for frame in reader]


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    frames = draw_frames(len(TICKS))
    return write_clip(tmp_path / "clip.mp4", frames, time_base=Fraction(1, 1000), ticks=TICKS, audio="aac")


def test_frames_have_the_predictions_of_images(model: nn.Module, clip: Path, tmp_path: Path) -> None:
    """In order, at the times of the source; the overlaid video has the same frames, drawn on."""
    with VideoReader(clip) as reader:
        frames = [to_pixels(frame.image) for frame in reader]
    predictor = Predictor(model, "exact", batch=2)
    seen: list[Any] = []
    predicted = predict_video(predictor, clip, tmp_path / "out", on_frame=seen.append)
    assert sorted(os.listdir(tmp_path / "out")) == ["clip.predicted.mp4", "clip.predictions.jsonl"]
    lines = read_lines(predicted.lines)
    assert seen == lines
    assert [list(line) for line in lines] == [["file_name", "frame", "time", "detections"]] * len(TICKS)
    assert [(line["frame"], line["time"]) for line in lines] == [(i, tick / 1000) for i, tick in enumerate(TICKS)]
    expected = [to_coco_results(i, predictor([frames[i & ~1], frames[i | 1]])[i & 1]) for i in range(len(TICKS))]
    assert [line["detections"] for line in lines] == expected
    assert (predicted.frames, predicted.detections, predicted.faults) == (len(TICKS), sum(map(len, expected)), [])
    assert predicted.detections > 20
    assert read_times(tmp_path / "out" / "clip.predicted.mp4") == [tick / 1000 for tick in TICKS]
    with av.open(str(predicted.overlay)) as container:
        assert len(container.streams.audio) == 1
        assert (container.streams.video[0].width, container.streams.video[0].height) == (96, 64)


def test_classes_colors_and_every(clip: Path, tmp_path: Path) -> None:
    """The box of a dog, in the color of its class; frames keep their numbers and times."""
    predicted = predict_video(FixedPredictor(), clip, tmp_path, name="x", classes=["dog"], every=5)
    lines = read_lines(predicted.lines)
    assert [(line["frame"], line["time"]) for line in lines] == [(i, TICKS[i] / 1000) for i in (0, 5, 10)]
    assert [len(line["detections"]) for line in lines] == [0, 1, 0]
    assert read_times(predicted.overlay) == [TICKS[i] / 1000 for i in (0, 5, 10)]
    with VideoReader(clip) as before, VideoReader(predicted.overlay) as after:
        frames = [[to_pixels(frame.image).astype(int) for frame in reader] for reader in (before, after)]
    for i, drawn in zip((0, 5, 10), frames[1], strict=True):
        change = np.abs(drawn - frames[0][i])
        assert (change[6:19, 6:39].mean() > 3 * change[50:].mean() + 3) == (
            i == 5
        )  # in the box, and where nothing is drawn
    with pytest.raises(ValueError, match="classes must be among the model's"):
        predict_video(FixedPredictor(), clip, tmp_path, classes=["bird"])
    with pytest.raises(ValueError, match="every must be at least 1, got 0"):
        predict_video(FixedPredictor(), clip, tmp_path, every=0)


def test_a_rotated_video_is_predicted_upright(tmp_path: Path) -> None:
    """And its overlaid video is upright without being rotated."""
    path = set_matrix(write_clip(tmp_path / "a.mp4", draw_frames(3, 63, 95), pix_fmt="yuv444p"), (0, 1, -1, 0))
    predicted = predict_video(FixedPredictor(), path, tmp_path)
    assert read_lines(predicted.lines)[0]["detections"][0]["segmentation"]["size"] == [95, 63]
    with VideoReader(path) as before, VideoReader(predicted.overlay) as after:
        source, drawn = (next(iter(reader)).image for reader in (before, after))
        assert np.abs(to_pixels(drawn).astype(int) - to_pixels(source))[40:].mean() < 8
        assert (drawn.height, drawn.width, drawn.rotation) == (95, 63, 0)


def test_memory_is_bounded(tmp_path: Path, model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    """However slow the encoder is, the reader is a few frames ahead."""
    clip = write_clip(tmp_path / "long.mp4", draw_frames(60, 32, 32))
    counts = {"read": 0, "written": 0, "ahead": 0}
    write = VideoWriter.write

    def count_read(image: Any) -> np.ndarray:
        counts["read"] += 1
        counts["ahead"] = max(counts["ahead"], counts["read"] - counts["written"])
        return to_pixels(image)

    def count_written(self: VideoWriter, *frame: Any) -> None:
        time.sleep(0.005)
        write(self, *frame)
        counts["written"] += 1

    monkeypatch.setitem(predict_video.__globals__, "to_pixels", count_read)
    monkeypatch.setattr(VideoWriter, "write", count_written)
    batch = 2
    assert predict_video(Predictor(model, (32, 32), batch, detections=2), clip, tmp_path).frames == 60
    waiting = predict_video.__globals__["WAITING"]
    assert 2 * batch < counts["ahead"] <= 5 * batch + waiting + 1


@pytest.mark.usefixtures("interruptible")
def test_an_interrupt_completes_the_files(clip: Path, tmp_path: Path) -> None:
    """A real signal while a frame is predicted: what was done is there, and is whole."""

    def interrupt(number: int) -> None:
        if number == 6:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)

    with pytest.raises(KeyboardInterrupt, match=r"interrupted: 6 detections in 6 frames of .*clip.mp4"):
        predict_video(FixedPredictor(at_frame=interrupt), clip, tmp_path / "out")
    assert sorted(os.listdir(tmp_path / "out")) == ["clip.predicted.mp4", "clip.predictions.jsonl"]
    assert [line["frame"] for line in read_lines(tmp_path / "out" / "clip.predictions.jsonl")] == list(range(6))
    assert read_times(tmp_path / "out" / "clip.predicted.mp4") == [tick / 1000 for tick in TICKS[:6]]

    def at_once(number: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt, match="before the first frame"):
        predict_video(FixedPredictor(at_frame=at_once), clip, tmp_path / "none")
    assert os.listdir(tmp_path / "none") == []


@pytest.mark.usefixtures("interruptible")
def test_a_camera_until_it_is_interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it recorded is whole; the frames between are counted."""
    monkeypatch.setattr(video_reader, "locate", lambda _: ("testsrc=size=96x64:rate=24", {"format": "lavfi"}))
    notes: list[str] = []

    def wait(number: int) -> None:
        time.sleep(0.01)
        if number == 20:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)

    with pytest.raises(KeyboardInterrupt, match="20 detections in 20 frames of camera:0"):
        predict_video(FixedPredictor(at_frame=wait), "camera:0", tmp_path, on_note=notes.append)
    monkeypatch.undo()
    lines = read_lines(tmp_path / "camera-0.predictions.jsonl")
    assert [round(line["time"] * 24) for line in lines] == [line["frame"] for line in lines]
    assert read_times(tmp_path / "camera-0.predicted.mp4") == pytest.approx([line["time"] for line in lines], abs=1e-6)
    assert "camera:0 is faster than its predictions: " in notes[0]


def test_an_error_leaves_nothing_that_looks_whole(clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lines that were written stay, under another name; the next run replaces them."""

    def fail(number: int) -> None:
        if number == 6:
            raise RuntimeError("no memory")

    def full(self: VideoWriter, *frame: Any) -> None:
        raise OSError(28, "No space left on device")

    out = tmp_path / "out"
    with pytest.raises(RuntimeError, match="no memory"):
        predict_video(FixedPredictor(at_frame=fail), clip, out)
    assert os.listdir(out) == ["clip.predictions.partial.jsonl"]
    assert [line["frame"] for line in read_lines(out / "clip.predictions.partial.jsonl")] == list(range(6))
    with monkeypatch.context() as patch:
        patch.setattr(VideoWriter, "write", full)
        with pytest.raises(OSError, match="No space left"):
            predict_video(FixedPredictor(), clip, out)
    assert os.listdir(out) == ["clip.predictions.partial.jsonl"]
    for _ in range(2):  # over the files of an earlier run, too
        assert predict_video(FixedPredictor(), clip, out).frames == len(TICKS)
    assert sorted(os.listdir(out)) == ["clip.predicted.mp4", "clip.predictions.jsonl"]
    assert threading.active_count() < 10


def test_no_other_file_is_replaced(clip: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    for name in ("clip.predicted.mp4", "clip.predictions.jsonl", "clip.predictions.partial.jsonl"):
        other = out / name
        other.write_bytes(clip.read_bytes() if name.endswith("mp4") else b'{"frame": 1}\n')
        with pytest.raises(FileExistsError, match=f"{name} must be of an earlier run, or not be there"):
            predict_video(FixedPredictor(), clip, out)
        other.unlink()
    overlaid = predict_video(FixedPredictor(), clip, out).overlay
    with pytest.raises(ValueError, match=r"clip.predicted.mp4 must be another file than what is read"):
        predict_video(FixedPredictor(), overlaid, out, name="clip")
    assert predict_video(FixedPredictor(), overlaid, out).overlay == out / "clip.predicted.predicted.mp4"


def test_two_runs_at_once(clip: Path, tmp_path: Path) -> None:
    def again(number: int) -> None:
        with pytest.raises(ValueError, match=r"clip.predictions.partial.jsonl must be free, got another run in it"):
            predict_video(FixedPredictor(), clip, tmp_path)

    assert predict_video(FixedPredictor(at_frame=again), clip, tmp_path, every=6).frames == 2


def test_faults_and_empty_videos(tmp_path: Path) -> None:
    """A truncated video has the frames that it has; without any there are no files."""
    path = write_clip(tmp_path / "a.mkv", draw_frames(48), "mjpeg", "yuvj420p")
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    notes: list[str] = []
    predicted = predict_video(FixedPredictor(), path, tmp_path / "out", on_note=notes.append)
    assert 16 < predicted.frames < 32
    assert len(read_lines(predicted.lines)) == predicted.frames == len(read_times(predicted.overlay))
    assert "a.mkv: it is truncated: it ends at" in str(predicted.faults)
    assert notes == []
    path.write_bytes(data[: data.index(b"\xff\xd8\xff") + 20])
    with pytest.raises(ValueError, match=r"a.mkv must have a frame that can be decoded, got none"):
        predict_video(FixedPredictor(), path, tmp_path / "none")
    assert os.listdir(tmp_path / "none") == []


def test_a_size_that_changes(tmp_path: Path) -> None:
    """The overlaid video keeps the first one, which is said; results have their frame's."""
    part, both = tmp_path / "part.mjpeg", tmp_path / "both.mjpeg"
    clips = [write_clip(part, draw_frames(6, h), "mjpeg", "yuvj420p", format="mjpeg").read_bytes() for h in (64, 48)]
    both.write_bytes(b"".join(clips))
    notes: list[str] = []
    predicted = predict_video(FixedPredictor(), both, tmp_path, on_note=notes.append)
    sizes = [tuple(line["detections"][0]["segmentation"]["size"]) for line in read_lines(predicted.lines)]
    assert sizes == [(64, 96)] * 6 + [(48, 96)] * 6
    with VideoReader(predicted.overlay) as reader:
        assert [(frame.image.height, frame.image.width) for frame in reader] == [(64, 96)] * 12
    assert any("changes its size: 6 frames of its overlaid video are resized" in note for note in notes)


def test_results_alone(clip: Path, tmp_path: Path) -> None:
    predicted = predict_video(FixedPredictor(), clip, tmp_path / "out", overlays=False)
    assert predicted.overlay is None
    assert os.listdir(tmp_path / "out") == ["clip.predictions.jsonl"]


def test_streams_that_are_left_out_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_clip(tmp_path / "a.avi", draw_frames(4), "mjpeg", "yuvj420p", audio="adpcm_ms")
    notes: list[str] = []
    monkeypatch.setattr(video_writer, "CODECS", {"mpeg4": video_writer.CODECS["mpeg4"]})
    predict_video(FixedPredictor(), path, tmp_path, on_note=notes.append)
    assert notes == [
        f"{path} has streams that its overlaid video has not: adpcm_ms audio",
        f"{path} is encoded with mpeg4, as this PyAV has no libx264",
    ]
