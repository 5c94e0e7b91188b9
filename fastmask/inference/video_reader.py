"""Frames of video files, cameras and streams, decoded one by one with PyAV: upright RGB, with their times."""

import collections
import os
import re
import sys
import threading
from collections.abc import Iterator
from fractions import Fraction
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastmask.inference.video_files import Source, is_stream

TIMEOUT = (10.0, 30.0)  # seconds to wait for a stream to open, and for its next packet
KEPT = 8  # frames of a camera that wait for the model; older ones are left out
BT709, BT601, RGB, UNSPECIFIED = 1, 5, 0, 2  # FFmpeg's color spaces
LIMITED, FULL = 1, 2  # FFmpeg's color ranges
HDR = {16: "PQ", 18: "HLG"}  # FFmpeg's transfer characteristics


class Frame(NamedTuple):
    """A decoded frame."""

    number: int  # from 0
    ticks: int  # its time, in units of the reader's time base, from the video's start
    image: Any  # av.VideoFrame, as it is stored
    packets: list[Any]  # of audio, which stand before it in the file


def import_av(source: Source) -> Any:
    """PyAV; ImportError, which names the extra, where it is not installed."""
    try:
        import av
        import av.logging
    except ImportError as error:
        raise ImportError(f"{source} needs PyAV: pip install 'fastmask-rcnn[video]' ({error})") from error
    return av


def locate(source: Source) -> tuple[str, dict[str, Any]]:
    """What PyAV opens, and how.

    Raises:
        ValueError: it is no camera, or this system's cameras cannot be read.
        FileNotFoundError: there is no such file or camera.
    """
    text = os.fspath(source)
    if not is_stream(text):
        if not os.path.exists(text):
            raise FileNotFoundError(f"{text}: no such file")
        return text if os.path.isabs(text) else os.path.join(".", text), {}  # "a:b.mp4" is no address
    if "://" in text:
        return text, {"timeout": TIMEOUT, "options": {"rtsp_transport": "tcp"} if text.startswith("rtsp") else {}}
    if sys.platform != "linux":
        raise ValueError(f"{text} must be read on Linux (v4l2); elsewhere give the address of a stream")
    _, colon, number = text.partition("camera:")
    if colon and not number.isdecimal():
        raise ValueError(f"a camera must be camera:0, camera:1, ..., got {text}")
    device = f"/dev/video{number}" if colon else text
    if not os.path.exists(device):
        raise FileNotFoundError(f"{text}: no such camera" + (f" ({device})" if colon else ""))
    return device, {"format": "v4l2"}


class VideoReader:
    """Iterates over the frames of a video.

    Args:
        source: a file; a camera, ``camera:0`` or ``/dev/video0``; or an address, such as ``rtsp://...``.
        audio: also read its audio, as packets.

    Raises:
        ImportError: PyAV is not installed.
        FileNotFoundError: there is no such file or camera.
        ValueError: it cannot be read, or has no video.

    Attributes:
        live: frames come when they come, and without an end: they are read in a thread, and those for which there is no
            time are left out.
        total: about how many frames there are; None: unknown.
        skipped: number of frames, after the first, that were left out as nobody took them in time.
        guessed: number of frames whose time is unknown, or not after the one before.
        faults: what of the video could not be read; complete after the last frame.
        rest: packets of audio after the last frame.
    """

    def __init__(self, source: Source, audio: bool = False) -> None:
        self.source = source
        self.av = import_av(source)
        file, options = locate(source)
        try:
            self.container = self.av.open(file, metadata_errors="replace", **options)
        except self.av.FFmpegError as error:
            raise ValueError(f"{source} cannot be read as a video: {error.strerror}") from error
        streams = [
            stream
            for stream in self.container.streams.video
            if stream.codec_context and not stream.disposition & self.av.stream.Disposition.attached_pic
        ]
        if not streams:
            kinds = sorted({stream.type for stream in self.container.streams} - {"video"})
            self.container.close()
            raise ValueError(f"{source} must have a video stream, got {', '.join(kinds) or 'none at all'}")
        best = self.container.streams.best("video")
        self.stream = best if best in streams else streams[0]
        self.audio = [stream for stream in self.container.streams.audio if audio]
        self.others = [stream for stream in self.container.streams if stream not in (self.stream, *self.audio)]
        self.live = is_stream(source) and self.container.duration is None
        if not self.live:
            self.stream.thread_type = "AUTO"
        self.time_base: Fraction = self.stream.time_base
        self.rate: Fraction = self.stream.average_rate or self.stream.guessed_rate or Fraction(25)
        start = None if self.live else self.container.start_time  # microseconds
        self._start = None if start is None else round(Fraction(start, 1_000_000) / self.time_base)
        self._last: int | None = None  # ticks of the frame before
        self._end = 0  # of the last packet, in ticks
        self._undecoded = self._damaged = 0
        self.skipped = self.guessed = 0
        self.faults: list[str] = []
        self.rest: list[Any] = []
        self._live = Live(self._decode()) if self.live else None

    @property
    def total(self) -> int | None:
        duration = self._duration()
        return self.stream.frames or (None if duration is None else round(duration * self.rate)) or None

    @property
    def hdr(self) -> str | None:
        """PQ or HLG, if the video has a high dynamic range."""
        return HDR.get(self.stream.codec_context.color_trc)

    def __iter__(self) -> Iterator[Frame]:
        if self._live is None:
            yield from self._decode()
            return
        first: Frame | None = None
        for frame in self._live:  # numbers and times count from the first one that is taken
            if first is None:
                first, frame = frame, frame._replace(packets=[])
            self.skipped = self._live.skipped - first.number
            packets = move_packets(frame.packets, first.ticks * self.time_base)
            yield Frame(frame.number - first.number, frame.ticks - first.ticks, frame.image, packets)

    def __enter__(self) -> "VideoReader":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._live is None or self._live.stop():  # or else a thread still waits in it
            self.container.close()

    def _decode(self) -> Iterator[Frame]:
        number, packets = 0, []
        for packet in self._demux():
            if packet is not None and packet.stream.index != self.stream.index:
                packets += [packet] if packet.dts is not None else []
                continue
            try:
                images = self.stream.decode(packet)
            except self.av.FFmpegError:
                self._undecoded += 1
                continue
            for image in images:
                self._damaged += image.is_corrupt
                ticks, start = self._find_ticks(image.pts), (self._start or 0) * self.time_base
                yield Frame(number, ticks, image, move_packets(packets, start))
                number, packets = number + 1, []
        self.rest = move_packets(packets, (self._start or 0) * self.time_base)
        self._find_faults()

    def _demux(self) -> Iterator[Any]:
        """Packets of video and audio; at the end, or at an error, what makes the decoder give its last frames."""
        packets = self.container.demux(self.stream, *self.audio)
        while True:
            try:
                packet = next(packets, None)
            except (self.av.FFmpegError, OSError) as error:
                late = isinstance(error, self.av.error.ExitError)
                self.faults.append(f"no data for {TIMEOUT[1]:.0f} s" if late else f"{error.strerror or error}")
                yield None
                return
            if packet is None:
                return
            ticks = packet.dts if packet.pts is None else packet.pts
            if packet.stream.index == self.stream.index and ticks is not None:
                self._end = max(self._end, ticks + (packet.duration or 0))
            yield packet

    def _find_ticks(self, pts: int | None) -> int:
        step = max(1, round(1 / (self.rate * self.time_base)))
        if pts is not None and self._start is None:
            self._start = pts
        ticks = None if pts is None else pts - (self._start or 0)
        if ticks is None or (self._last is not None and ticks <= self._last):
            self.guessed += 1
            ticks = 0 if self._last is None else self._last + (step if ticks is None else 1)
        self._last = ticks
        return ticks

    def _duration(self) -> Fraction | None:
        """Seconds, as the file's header has them for the video stream, or else for the whole file."""
        if self.stream.duration:
            return Fraction(self.stream.duration * self.time_base)
        stated = re.fullmatch(r"(\d+):(\d+):(\d+(?:\.\d+)?)", self.stream.metadata.get("DURATION", "").strip("\0"))
        if stated:  # Matroska's
            return int(stated[1]) * 3600 + int(stated[2]) * 60 + Fraction(stated[3])
        duration = self.container.duration
        return None if not duration or self.live else Fraction(duration, 1_000_000)

    def _find_faults(self) -> None:
        """Name what is missing or broken of a file that has been read to its end."""
        for count, what in ((self._undecoded, "that cannot be decoded"), (self._damaged * (not self.live), "damaged")):
            if count:
                self.faults.append(f"frames {what}: {count}")
        duration = self._duration()
        if duration is None or self.live:
            return
        known = self.stream.duration or "DURATION" in self.stream.metadata  # else the audio's may be longer
        start = self.stream.start_time if self.stream.duration else self._start
        end = (self._end - (start or 0)) * self.time_base
        if duration - end > (Fraction(1, 10) if known else 1 + duration / 20):
            self.faults.append(f"it is truncated: it ends at {float(end):.1f} s of {float(duration):.1f} s")


class Live:
    """Reads frames in a thread as they come; keeps the newest ones and counts the others."""

    def __init__(self, frames: Iterator[Frame]) -> None:
        self._frames: collections.deque[Frame] = collections.deque()
        self._changed = threading.Condition()
        self._ended = False
        self._error: BaseException | None = None
        self.skipped = 0
        self._thread = threading.Thread(target=self._read, args=(frames,), daemon=True)
        self._thread.start()

    def _read(self, frames: Iterator[Frame]) -> None:
        try:
            for frame in frames:
                with self._changed:
                    if self._ended:
                        return
                    if len(self._frames) == KEPT:
                        left_out = self._frames.popleft()
                        self._frames[0] = self._frames[0]._replace(packets=left_out.packets + self._frames[0].packets)
                        self.skipped += 1
                    self._frames.append(frame)
                    self._changed.notify()
        except BaseException as error:
            self._error = error
        finally:
            with self._changed:
                self._ended = True
                self._changed.notify()

    def __iter__(self) -> Iterator[Frame]:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._frames or self._ended)
                if not self._frames:
                    break
                frame = self._frames.popleft()
            yield frame
        if self._error is not None:
            raise self._error

    def stop(self) -> bool:
        """Whether the thread has ended, in five seconds."""
        with self._changed:
            self._ended = True
        self._thread.join(5)
        return not self._thread.is_alive()


def move_packets(packets: list[Any], start: Fraction) -> list[Any]:
    """Let the times of packets count from so many seconds."""
    for packet in packets:
        ticks = round(start / packet.time_base)
        packet.pts, packet.dts = None if packet.pts is None else packet.pts - ticks, packet.dts - ticks
    return packets


def guess_colorspace(height: int, width: int) -> int:
    """The color space of a video that does not state it, as players guess it: BT.709 of HD, BT.601 below."""
    return BT709 if width >= 1280 or height > 576 else BT601


def to_pixels(image: Any) -> NDArray[np.uint8]:
    """A decoded frame as upright RGB [H, W, 3], by its color space, color range and display matrix."""
    space = image.colorspace
    if space in (RGB, UNSPECIFIED):
        space = guess_colorspace(image.height, image.width)
    full = image.color_range == FULL or image.format.name.startswith("yuvj")
    colors = {"src_colorspace": space, "src_color_range": FULL if full else LIMITED, "dst_color_range": FULL}
    pixels: NDArray[np.uint8] = image.reformat(format="rgb24", **colors).to_ndarray()
    (a, b), (c, d) = read_matrix(image)
    if abs(b) + abs(c) > abs(a) + abs(d):
        pixels, a, d = pixels.transpose(1, 0, 2), c, b
    return np.ascontiguousarray(pixels[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1])


def read_matrix(image: Any) -> tuple[tuple[int, int], tuple[int, int]]:
    """What turns and mirrors a frame in its display matrix: x' = ax + cy, y' = bx + dy (libavutil/display.h)."""
    data = image.side_data.get("DISPLAYMATRIX")
    if data is None:
        return (1, 0), (0, 1)
    matrix = np.frombuffer(data, np.int32).reshape(3, 3).tolist()
    return (matrix[0][0], matrix[0][1]), (matrix[1][0], matrix[1][1])


def is_transposed(image: Any) -> bool:
    """Whether a frame's display matrix exchanges height and width."""
    (a, b), (c, d) = read_matrix(image)
    return abs(b) + abs(c) > abs(a) + abs(d)
