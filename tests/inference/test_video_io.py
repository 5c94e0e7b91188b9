"""Videos read and written with PyAV: pixels, colors, times, rotation, audio, faults, cameras."""

import itertools
import threading
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.clips import draw_frames, set_matrix, write_clip

from fastmask.inference import video_reader, video_writer
from fastmask.inference.video_files import is_video, name_videos
from fastmask.inference.video_reader import KEPT, Frame, Live, VideoReader, locate, to_pixels
from fastmask.inference.video_writer import VideoWriter

av = pytest.importorskip("av", reason="it reads the videos")

# Kr and Kb of ITU-R BT.709, BT.601 and BT.2020
WEIGHTS = {"709": (0.2126, 0.0722), "601": (0.299, 0.114), "2020": (0.2627, 0.0593)}


def read(source: Path) -> tuple[list[float], list[np.ndarray]]:
    """Times in seconds, and frames."""
    with VideoReader(source) as reader:
        found = [(float(frame.ticks * reader.time_base), to_pixels(frame.image)) for frame in reader]
        assert not reader.faults
    return [time for time, _ in found], [pixels for _, pixels in found]


def to_ycbcr(rgb: tuple[int, ...], standard: str, full: bool) -> list[int]:
    """The definition of all three standards, of 8 bits."""
    kr, kb = WEIGHTS[standard]
    r, g, b = (value / 255 for value in rgb)
    y = kr * r + (1 - kr - kb) * g + kb * b
    cb, cr = (b - y) / (2 - 2 * kb), (r - y) / (2 - 2 * kr)
    low, luma, chroma = (0, 255, 255) if full else (16, 219, 224)
    return [round(low + luma * y), round(128 + chroma * cb), round(128 + chroma * cr)]


@pytest.mark.parametrize("full", [False, True], ids=["limited", "full"])
@pytest.mark.parametrize(
    ("standard", "tag", "height"), [("709", 1, 64), ("601", 6, 64), ("2020", 9, 64), ("601", 2, 64), ("709", 2, 720)]
)
def test_colors_are_read_as_the_standards_define_them(standard: str, tag: int, height: int, full: bool) -> None:
    """Where a video does not state its standard (2), by its size."""
    for rgb in ((200, 30, 60), (20, 180, 90), (90, 60, 220)):
        values = to_ycbcr(rgb, standard, full)
        planes = [
            np.full((rows, 96), value, np.uint8)
            for rows, value in zip((height, height // 4, height // 4), values, strict=True)
        ]
        frame = av.VideoFrame.from_ndarray(np.concatenate(planes), format="yuv420p")
        frame.colorspace, frame.color_range = tag, 2 if full else 1
        assert np.abs(to_pixels(frame).astype(int) - rgb).max() <= 3


@pytest.mark.parametrize("shape", [(64, 96), (63, 95), (720, 96)], ids=["even", "odd", "HD"])
@pytest.mark.parametrize("codec", ["libx264", "mpeg4"])
def test_what_is_written_is_read_again(
    shape: tuple[int, int], codec: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sizes, odd ones as well, and colors, which the file states; a codec that is missing is passed over."""
    monkeypatch.setattr(video_writer, "CODECS", {"no such codec": {}, codec: video_writer.CODECS[codec]})
    rgb, path = (200, 30, 60), tmp_path / "a.mp4"
    writer = VideoWriter(path, shape, Fraction(1, 90000), Fraction(24), Fraction(4, 3))
    ticks = [0, 3000, 3001, 90000]
    for tick in ticks:
        writer.write(np.full((*shape, 3), rgb, np.uint8), tick)
    writer.finish()
    times, frames = read(path)
    assert times == pytest.approx([tick / 90000 for tick in ticks], abs=1e-9 if codec == "libx264" else 2e-5)
    assert all(frame.shape == (*shape, 3) and np.abs(frame.astype(int) - rgb).max() <= 4 for frame in frames)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.sample_aspect_ratio == Fraction(4, 3)
        frame = next(container.decode(stream))
        standard = "709" if shape[0] == 720 else "601"
        assert (frame.colorspace, frame.color_range) == ({"709": 1, "601": 6}[standard], 1)
        assert abs(bytes(frame.planes[0])[0] - to_ycbcr(rgb, standard, False)[0]) <= 3


def test_display_matrices(tmp_path: Path) -> None:
    """All eight, against NumPy's own turns; PyAV names the angles of four."""
    frames = draw_frames(2)
    path = write_clip(tmp_path / "a.mp4", frames)
    stored = read(path)[1][0]
    turns = {(1, 0, 0, 1): 0, (0, -1, 1, 0): 1, (-1, 0, 0, -1): 2, (0, 1, -1, 0): 3}
    mirrored = {(-1, 0, 0, 1): 0, (0, 1, 1, 0): 1, (1, 0, 0, -1): 2, (0, -1, -1, 0): 3}
    for matrices, expected in ((turns, stored), (mirrored, stored[:, ::-1])):
        for matrix, count in matrices.items():
            with VideoReader(set_matrix(path, matrix)) as reader:
                frame = next(iter(reader))
                assert video_reader.is_transposed(frame.image) == bool(count % 2)
                assert matrices is mirrored or frame.image.rotation % 360 == 90 * count
                assert np.array_equal(to_pixels(frame.image), np.rot90(expected, count)), matrix


@pytest.mark.parametrize("pix_fmt", ["gray", "gray10le", "yuv420p10le", "yuva444p", "bgr0", "yuv444p", "yuv411p"])
def test_pixel_formats(pix_fmt: str, tmp_path: Path) -> None:
    """Of a lossless codec: 8 bits are left of 10, and alpha is ignored."""
    pixels = np.repeat(np.arange(40, 232, 2, dtype=np.uint8)[None, :, None], 64, 0).repeat(3, 2)
    path = write_clip(tmp_path / "a.mkv", [pixels], "ffv1", pix_fmt)
    assert np.abs(read(path)[1][0].astype(int) - pixels).max() <= 2


TICKS = [0, 10, 25, 26, 60, 61, 333, 1000]


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.ts"])
def test_times_are_the_files(name: str, tmp_path: Path) -> None:
    """Of a variable frame rate; from the start of the file, which is 1.4 s in a transport stream."""
    path = write_clip(tmp_path / name, draw_frames(8), time_base=Fraction(1, 1000), ticks=TICKS)
    assert read(path)[0] == pytest.approx([tick / 1000 for tick in TICKS], abs=1e-9)
    with VideoReader(path) as reader:
        assert [frame.number for frame in reader] == list(range(8))
        assert reader.total in (8, None) or name != "a.mp4"


def test_frames_without_times(tmp_path: Path) -> None:
    """They follow one another, and are counted."""
    path = write_clip(tmp_path / "a.h264", draw_frames(6), format="h264")
    with VideoReader(path) as reader:
        seconds = [float(frame.ticks * reader.time_base) for frame in reader]
        assert len(seconds) == 6
        assert all(a < b for a, b in itertools.pairwise(seconds))
        assert reader.guessed >= 5


@pytest.mark.parametrize("audio", ["aac", "libmp3lame", "pcm_s16le", "adpcm_ms", None])
def test_audio_is_copied(audio: str | None, tmp_path: Path) -> None:
    """The same data at the same times; or else named, as MP4 has no ADPCM."""
    source = write_clip(tmp_path / ("a.avi" if audio == "adpcm_ms" else "a.mkv"), draw_frames(), audio=audio)
    with VideoReader(source, audio=True) as reader:
        writer = VideoWriter(tmp_path / "b.mp4", (64, 96), reader.time_base, reader.rate, None, reader.audio)
        for frame in reader:
            writer.write(to_pixels(frame.image), frame.ticks, frame.packets)
        writer.finish(reader.rest)
    assert writer.left_out == (["adpcm_ms"] if audio == "adpcm_ms" else [])
    with av.open(str(tmp_path / "b.mp4")) as container:
        assert len(container.streams.audio) == (audio not in (None, "adpcm_ms"))
    data, times = [], []
    for path in (source, tmp_path / "b.mp4") if writer.audio else ():
        with av.open(str(path)) as container:
            packets = [packet for packet in container.demux(audio=0) if packet.size]
        data.append(b"".join(map(bytes, packets)))
        times += [float(packet.pts * packet.time_base) for packet in packets[:1]]
    assert len(set(data)) <= 1
    assert not times or abs(times[0] - times[1]) < 0.03  # the encoder's delay, which Matroska counts from 0


def cut(path: Path, share: float) -> Path:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    return path


@pytest.mark.parametrize(("name", "options"), [("a.mp4", {"movflags": "faststart"}), ("a.mkv", {}), ("a.avi", {})])
def test_what_is_left_of_a_truncated_file_is_read(name: str, options: dict[str, str], tmp_path: Path) -> None:
    path = cut(write_clip(tmp_path / name, draw_frames(48), "mjpeg", "yuvj420p", options=options), 0.55)
    with VideoReader(path) as reader:
        frames = [to_pixels(frame.image) for frame in reader]
        assert 12 < len(frames) < 40
        assert any("it is truncated: it ends at" in fault and "of 2.0 s" in fault for fault in reader.faults) or (
            name == "a.avi" and "truncated" in str(reader.faults)
        )


def test_damaged_data_are_named(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mp4", draw_frames(48), options={"movflags": "faststart"})
    data = bytearray(path.read_bytes())
    middle = data.index(b"mdat") + (len(data) - data.index(b"mdat")) // 2
    data[middle : middle + 200] = b"\xa5" * 200
    path.write_bytes(data)
    with VideoReader(path) as reader:
        assert 40 < len(list(reader)) <= 48
        assert any("cannot be decoded" in fault or "damaged" in fault for fault in reader.faults)


def test_what_is_no_video_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = tmp_path / "text.mp4"
    text.write_text("no video")
    no_header = cut(write_clip(tmp_path / "cut.mp4", draw_frames(4)), 0.5)
    sound = tmp_path / "sound.mkv"
    with av.open(str(sound), "w") as container:
        tone = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        silence.sample_rate = 8000
        container.mux(tone.encode(silence))
    for source, message in {
        text: "text.mp4 cannot be read as a video: Invalid data",
        no_header: "cut.mp4 cannot be read as a video: Invalid data",
        sound: "sound.mkv must have a video stream, got audio",
        tmp_path / "none.mp4": "none.mp4: no such file",
        "camera:x": "a camera must be camera:0, camera:1, ..., got camera:x",
        "camera:77": r"camera:77: no such camera \(/dev/video77\)",
        "/dev/video78": "/dev/video78: no such camera",
        "rtsp://127.0.0.1:9/a": "rtsp://127.0.0.1:9/a cannot be read as a video: Connection refused",
    }.items():
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            VideoReader(source)
    monkeypatch.setattr(video_reader.sys, "platform", "darwin")
    with pytest.raises(ValueError, match="camera:0 must be read on Linux"):
        locate("camera:0")


def test_names() -> None:
    videos = ["a.MP4", "x/b.mkv", "camera:0", "/dev/video3", "rtsp://10.0.0.2:554/door.sdp", "http://cam.local/"]
    assert all(map(is_video, videos))
    assert not any(map(is_video, ["a.jpg", "a.gif", "folder", "mp4", "camera.png", "a:b.png"]))
    assert name_videos(videos, Path("out")) == ["a", "b", "camera-0", "video3", "door", "cam-local"]
    assert name_videos(["x/a.mp4", "y/a.mov", "out/a.predicted.mp4"], Path("out")) == ["a-2", "a-3", "a.predicted"]


def test_a_camera_that_is_too_fast() -> None:
    """The newest frames are kept, with all audio; the others are counted. Errors and interrupts reach the reader."""
    done = threading.Event()

    def frames() -> Iterator[Frame]:
        yield from (Frame(i, i, None, [f"audio {i}"]) for i in range(30))
        done.set()
        raise OSError("unplugged")

    live = Live(frames())
    done.wait(10)
    found: list[Any] = []
    with pytest.raises(OSError, match="unplugged"):
        found.extend(live)
    assert live.stop()
    assert [frame.number for frame in found] in [list(range(30 - KEPT, 30)), [0, *range(30 - KEPT, 30)]]
    assert live.skipped == 30 - len(found)
    assert [packet for frame in found for packet in frame.packets] == [f"audio {i}" for i in range(30)]


def test_an_endless_source(monkeypatch: pytest.MonkeyPatch) -> None:
    """FFmpeg's test pattern in a camera's place: numbers and times go on, whatever is left out."""
    monkeypatch.setattr(video_reader, "locate", lambda _: ("testsrc=size=96x64:rate=24", {"format": "lavfi"}))
    with VideoReader("camera:0") as reader:
        assert reader.live
        assert reader.total is None
        found = list(itertools.islice(reader, 20))
        numbers = [frame.number for frame in found]
        assert numbers == sorted(set(numbers))
        assert [round(float(frame.ticks * reader.time_base) * 24) for frame in found] == numbers
    assert not reader._live._thread.is_alive()
