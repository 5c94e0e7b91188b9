"""Small video files for tests, drawn and encoded with PyAV."""

import struct
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from helpers.images import draw_image

RATE = 44100  # of audio


def draw_frames(number: int = 24, height: int = 64, width: int = 96) -> list[np.ndarray]:
    """uint8 [h, w, 3]: shapes that move to the left."""
    wide = draw_image(height, width + 2 * number, 12)[0]
    pixels = (wide * 255).byte().permute(1, 2, 0).numpy()
    return [np.ascontiguousarray(pixels[:, 2 * i : 2 * i + width]) for i in range(number)]


def write_clip(
    path: Path,
    frames: Sequence[np.ndarray],
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    time_base: Fraction = Fraction(1, 24),
    ticks: Sequence[int] | None = None,
    audio: str | None = None,
    **options: Any,
) -> Path:
    """Encode frames; with ``audio`` also a tone of that codec, as long as the frames at 24 a second."""
    import av

    with av.open(str(path), "w", **options) as container:
        stream = container.add_stream(codec, rate=24)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt, stream.codec_context.time_base = pix_fmt, time_base
        if audio:
            tone = container.add_stream(audio, rate=RATE)
            tone.layout = "mono"
        for i, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = i if ticks is None else ticks[i], time_base
            container.mux(stream.encode(frame))
            if audio:
                samples = (np.sin(np.arange(RATE // 24) / 20) * 9999).astype(np.int16)[None]
                sound = av.AudioFrame.from_ndarray(samples, format="s16", layout="mono")
                sound.sample_rate, sound.time_base, sound.pts = RATE, Fraction(1, RATE), i * samples.shape[1]
                container.mux(tone.encode(sound))
        container.mux(stream.encode())
        if audio:
            container.mux(tone.encode())
    return path


def set_matrix(path: Path, matrix: Sequence[int]) -> Path:
    """Write a display matrix (a, b, c, d), each of -1, 0 and 1, into an MP4 file (ISO/IEC 14496-12, 8.3.2)."""
    data = bytearray(path.read_bytes())
    a, b, c, d = (65536 * value for value in matrix)
    start = data.index(b"tkhd") + 44  # version 0
    data[start : start + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    return path
