"""Videos that a caller names, and the files that are written for them."""

import contextlib
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO
from urllib.parse import urlsplit

from fastmask.inference.image_files import VIDEO_OVERLAY_SUFFIX, VIDEO_SUFFIXES, name_outputs
from fastmask.inference.journal import lock_file

Source = str | os.PathLike[str]
LINES_SUFFIX = ".predictions.jsonl"
PARTIAL_SUFFIX = ".predictions.partial.jsonl"  # until the video's end
START = b'{"file_name": '  # of each line, which tells our files from others


def is_stream(source: Source) -> bool:
    """Whether a name is a camera's (``camera:0``, ``/dev/video0``) or an address (``rtsp://...``)."""
    return re.match(r"camera:|/dev/video|/dev/v4l/|[a-z][a-z0-9+.-]*://", os.fspath(source), re.IGNORECASE) is not None


def is_video(source: Source) -> bool:
    """Whether a name is that of a video file, by its ending, or of a stream."""
    text = os.fspath(source)
    return is_stream(text) or (Path(text).suffix.lower() in VIDEO_SUFFIXES and not os.path.isdir(text))


def name_videos(sources: Sequence[Source], folder: Path) -> list[str]:
    """Names of what is written for videos, without ending; no two are alike, and no overlaid video is a source."""
    paths = [Path(_name_stream(os.fspath(source)) if is_stream(source) else source) for source in sources]
    return [path.name for path in name_outputs(paths, folder, choose=lambda path: VIDEO_OVERLAY_SUFFIX)]


def _name_stream(text: str) -> str:
    """The last part of a path, or else the host: rtsp://10.0.0.2:554/door.sdp -> door, camera:0 -> camera-0."""
    if "://" in text:
        address = urlsplit(text)
        text = Path(address.path).stem or address.hostname or ""
    return re.sub(r"\W+", "-", text.rpartition("/")[2]).strip("-") or "video"


def check_lines(path: Path) -> None:
    """Raise a FileExistsError if a file that is there has something else than JSON Lines of ours."""
    with contextlib.suppress(FileNotFoundError), open(path, "rb") as file:
        line = file.readline()
        if line and (not line.startswith(START) or b'"frame": ' not in line):
            raise FileExistsError(f"{path} must be of an earlier run, or not be there, got another file of that name")


@contextlib.contextmanager
def open_lines(base: Path) -> Iterator[IO[str]]:
    """Open the partial JSON Lines, which no other run may have open, and empty them.

    Raises:
        ValueError: another run writes them.
        OSError: they cannot be written.
    """
    path = Path(f"{base}{PARTIAL_SUFFIX}")
    with open(path, "a", encoding="ascii") as file:
        lock_file(file, path)
        file.truncate(0)
        yield file
