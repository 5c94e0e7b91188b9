"""An overlaid video, written frame by frame with PyAV: H.264 in MP4, with the times and the audio of its source."""

import os
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastmask.files import check_free
from fastmask.inference.image_files import VIDEO_OVERLAY_SUFFIX
from fastmask.inference.video_files import LINES_SUFFIX, PARTIAL_SUFFIX, Source, check_lines, is_stream
from fastmask.inference.video_reader import BT601, BT709, FULL, LIMITED, guess_colorspace, import_av

COMMENT = "overlaid by fastmask predict"  # in the file, which tells ours from others
SMPTE170M = 6  # FFmpeg's name for BT.601 in a file
CODECS = {  # the first one that PyAV was built with; libx264's files play everywhere
    "libx264": {"preset": "veryfast", "crf": "20"},
    "libopenh264": {"b": "8000000"},
    "mpeg4": {"flags": "+qscale", "global_quality": str(3 * 118)},
}
MPEG4_TIME_BASE = Fraction(1, 60000)  # where the source's is finer than MPEG-4 allows: 1/65535
MAX_TICKS = 2**31  # of a second in MP4


class VideoWriter:
    """Encodes frames to a file.

    Args:
        path: of the file, which is replaced.
        size: (height, width) of all frames. Odd ones are kept, by not subsampling colors.
        time_base: seconds of a tick.
        rate: frames per second, on average.
        aspect: width of a pixel by its height.
        audio: streams whose packets are copied, of an open container of PyAV's.

    Attributes:
        codec: name of the encoder.
        left_out: what of the audio MP4 cannot hold.

    Raises:
        OSError: the file cannot be written.
    """

    def __init__(
        self,
        path: Path,
        size: tuple[int, int],
        time_base: Fraction,
        rate: Fraction,
        aspect: Fraction | None = None,
        audio: Sequence[Any] = (),
    ) -> None:
        self.av = import_av(path)
        self.time_base = time_base
        self.codec = next(name for name in CODECS if name in self.av.codecs_available and self._is_encoder(name))
        self.left_out: list[str] = []
        self._last: int | None = None
        try:
            self._open(path, size, rate, aspect, audio)
        except self.av.FFmpegError:
            if not audio:
                raise
            self.container.close()
            self.left_out = [stream.codec_context.name for stream in audio]
            self._open(path, size, rate, aspect, ())

    def _is_encoder(self, name: str) -> bool:
        try:
            return bool(self.av.Codec(name, "w").is_encoder)
        except self.av.FFmpegError:
            return False

    def _open(
        self, path: Path, size: tuple[int, int], rate: Fraction, aspect: Fraction | None, audio: Sequence[Any]
    ) -> None:
        height, width = size
        self.container = self.av.open(os.fspath(path), "w", format="mp4")
        self.container.metadata["comment"] = COMMENT
        self.stream = self.container.add_stream(self.codec, rate=rate, options=CODECS[self.codec])
        self.stream.width, self.stream.height = width, height
        odd = (height % 2 or width % 2) and self.codec == "libx264"
        self.stream.pix_fmt = "yuv444p" if odd else "yuv420p"
        context = self.stream.codec_context
        context.time_base = self._choose_time_base()
        self.space = guess_colorspace(height, width)
        context.colorspace = context.color_primaries = context.color_trc = BT709 if self.space == BT709 else SMPTE170M
        context.color_range = LIMITED
        if aspect:
            context.sample_aspect_ratio = aspect
        self.audio: dict[int, Any] = {}  # by index in the source
        for stream in audio:
            try:
                self.audio[stream.index] = self.container.add_stream_from_template(stream)
            except ValueError:
                self.left_out.append(stream.codec_context.name)
        self.container.start_encoding()

    def _choose_time_base(self) -> Fraction:
        limit = 65535 if self.codec == "mpeg4" else MAX_TICKS
        return self.time_base if self.time_base.denominator < limit else MPEG4_TIME_BASE

    def write(self, pixels: NDArray[np.uint8], ticks: int, packets: Sequence[Any] = ()) -> None:
        """Encode a frame.

        Args:
            pixels: RGB [H, W, 3].
            ticks: its time, after that of the frame before.
            packets: of audio, which come before it.
        """
        for packet in packets:
            self._copy(packet)
        context = self.stream.codec_context
        pts = round(ticks * self.time_base / context.time_base)
        self._last = pts if self._last is None else max(pts, self._last + 1)
        image = self.av.VideoFrame.from_ndarray(pixels, format="rgb24")
        colors = {"src_color_range": FULL, "dst_color_range": LIMITED, "dst_colorspace": self.space}
        frame = image.reformat(format=self.stream.pix_fmt, src_colorspace=BT601, **colors)
        frame.pts, frame.time_base = self._last, context.time_base
        self.container.mux(self.stream.encode(frame))

    def _copy(self, packet: Any) -> None:
        if packet.stream.index in self.audio:
            packet.stream = self.audio[packet.stream.index]
            self.container.mux(packet)

    def finish(self, packets: Sequence[Any] = ()) -> None:
        """Encode what the encoder has kept, copy the last packets of audio, and complete the file."""
        for packet in packets:
            self._copy(packet)
        self.container.mux(self.stream.encode())
        self.container.close()

    def close(self) -> None:
        """Close the file as it is."""
        self.container.close()


def is_ours(path: Path) -> bool:
    """Whether a file is an overlaid video of ours."""
    av = import_av(path)
    try:
        with av.open(os.fspath(path), metadata_errors="replace") as container:
            return bool(container.metadata.get("comment") == COMMENT)
    except (av.FFmpegError, OSError):
        return False


def check_outputs(base: Path, source: Source, overlay: bool) -> None:
    """Raise an error if what would be written is the source, or is there and not of an earlier run.

    Args:
        base: of the files, without ending.
        source: that is read.
        overlay: an overlaid video is written, too.

    Raises:
        ValueError: it is the source.
        FileExistsError: it is not of an earlier run.
    """
    targets = [Path(f"{base}{LINES_SUFFIX}"), Path(f"{base}{PARTIAL_SUFFIX}")]
    video = Path(f"{base}{VIDEO_OVERLAY_SUFFIX}")
    check_free([*targets, video], True, [] if is_stream(source) else [Path(source)])
    for path in targets:
        check_lines(path)
    if overlay and os.path.lexists(video) and not is_ours(video):
        raise FileExistsError(f"{video} must be of an earlier run, or not be there, got another file of that name")
