"""Images inside of labelme's files: ``imageData``, the content of an image file in base64."""

import base64
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from fastmask.image_io import read_image_size


class ImageData(NamedTuple):
    """What a reader keeps of an image inside of a file, which may be of many megabytes."""

    size: tuple[int, int] | None  # (height, width); None where it is broken
    fault: str = ""


def describe_data(value: Any, file: Path) -> ImageData | None:
    """The size, or fault, of the ``imageData`` of a file; None where it has none."""
    if value in (None, ""):
        return None
    try:
        return ImageData(read_image_size(f"imageData of {file}", _decode(value)))
    except ValueError as error:
        return ImageData(None, str(error))


def read_embedded(file: Path) -> bytes:
    """The content of the image in a labelme file, which is parsed for it.

    Raises:
        ValueError: the file or its ``imageData`` is broken.
        OSError: the file cannot be read.
    """
    try:
        content = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} must be JSON, got a broken file: {error}") from error
    return _decode(content.get("imageData") if isinstance(content, Mapping) else None)


def _decode(value: Any) -> bytes:
    if not isinstance(value, str):
        raise ValueError(f"imageData must be text in base64, got {type(value).__name__}")
    try:
        return base64.b64decode(value.partition(";base64,")[2] if value.startswith("data:") else value)
    except ValueError as error:
        raise ValueError(f"imageData must be text in base64: {error}") from error
