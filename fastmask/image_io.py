"""Reading image files as RGB, or with other numbers of channels: upright, 8 bits per channel."""

import io
import os
from typing import IO

import numpy as np
from PIL import ExifTags, Image, TiffImagePlugin, UnidentifiedImageError

Path = str | os.PathLike[str]
ORIENTATIONS = {  # EXIF 2.32, section 4.6.4
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# endings of images in a folder
JPEG_SUFFIXES = {".jfif", ".jpe", ".jpeg", ".jpg"}
SUFFIXES = {".apng", ".avif", ".bmp", ".dib", ".gif", ".jp2", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp"}
SUFFIXES |= JPEG_SUFFIXES
TRANSPOSED = {ORIENTATIONS[value] for value in (5, 6, 7, 8)}  # those that exchange height and width


def read_image(path: Path, channels: int = 3, content: bytes | None = None) -> Image.Image:
    """Read an image file of any format of Pillow's, with its EXIF orientation applied.

    12-bit and 16-bit grayscale is scaled to 8 bits; of a file with several frames or pages, the first is read.

    Args:
        path: of the file.
        channels: 3 is RGB, without any alpha channel, and 1 is grayscale, as torchvision's readers convert to either;
            any other number must be that of the file: 4 of RGBA and CMYK, 2 of grayscale with alpha.
        content: the file's, where it is known already; ``path`` is for messages then.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is truncated, not an image, of another number of channels, or its pixels have no usual scale
            (floats, 32-bit integers).
    """
    try:
        with (
            _open(path, content) as file,
            Image.open(file) as image,
        ):  # given a path, Pillow transposes memory-mapped TIFFs wrongly
            image.load()
            return to_upright(image, channels)
    except FileNotFoundError:
        raise
    except UnidentifiedImageError as error:
        raise ValueError(f"{os.fspath(path)} cannot be read as an image: its format is unknown") from error
    except Exception as error:  # Pillow's readers raise many types
        raise ValueError(f"{os.fspath(path)} cannot be read as an image: {error}") from error


def read_image_size(path: Path, content: bytes | None = None) -> tuple[int, int]:
    """(height, width) of what :func:`read_image` returns, from the file's header alone; ``content`` as there.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not an image.
    """
    try:
        with _open(path, content) as file, Image.open(file) as image:
            transposed = _read_orientation(image) in TRANSPOSED
            return (image.width, image.height) if transposed else (image.height, image.width)
    except FileNotFoundError:
        raise
    except UnidentifiedImageError as error:
        raise ValueError(f"{os.fspath(path)} cannot be read as an image: its format is unknown") from error
    except Exception as error:  # as above
        raise ValueError(f"{os.fspath(path)} cannot be read as an image: {error}") from error


def _open(path: Path, content: bytes | None) -> IO[bytes]:
    return open(path, "rb") if content is None else io.BytesIO(content)


def is_image(path: Path) -> bool:
    """Whether a file's header is an image's, whatever the file is called."""
    try:
        with open(path, "rb") as file, Image.open(file):
            return True
    except Image.DecompressionBombError:
        return True
    except Exception:  # as above
        return False


def is_jpeg(path: Path) -> bool:
    """Whether a file is a JPEG by its ending or, where that is no image's, by its first bytes."""
    suffix = os.path.splitext(path)[1].lower()
    if suffix in SUFFIXES:
        return suffix in JPEG_SUFFIXES
    try:
        with open(path, "rb") as file:
            return file.read(3) == b"\xff\xd8\xff"  # ISO/IEC 10918-1, table B.1: SOI, then a marker
    except OSError:
        return False


def count_frames(path: Path) -> int:
    """The number of an animation's frames or a TIFF's pages; 1 of all other images, and of files that are none."""
    try:
        with open(path, "rb") as file, Image.open(file) as image:
            several = image.format != "MPO" and getattr(image, "is_animated", False)  # phones': a photo and its preview
            return int(getattr(image, "n_frames", 1)) if several else 1
    except Exception:  # as above
        return 1


def to_upright(image: Image.Image, channels: int = 3) -> Image.Image:
    """Convert an open image as :func:`read_image` does; ValueError if its channels or their scale do not fit."""
    converted, orientation = convert_image(image, channels), _read_orientation(image)
    return converted if orientation is None else converted.transpose(orientation)


def _read_orientation(image: Image.Image) -> Image.Transpose | None:
    """How the EXIF orientation transposes the image; None without, or if the metadata cannot be read."""
    try:
        return ORIENTATIONS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # each format's parser of metadata raises other types
        return None


def convert_image(image: Image.Image, channels: int = 3) -> Image.Image:
    """A copy of 8 bits per channel and a number of channels, see :func:`read_image`; Pillow would clip 16 bits."""
    if image.mode == "F":
        raise ValueError("its pixels are floats, whose scale is unknown")
    if image.mode == "I" and image.format not in ("PNG", "PPM"):  # older Pillow opens 16-bit PNG as mode I
        raise ValueError("its pixels are 32-bit integers, whose scale is unknown")
    if image.mode.startswith("I"):
        image = _to_8_bits(image)
    elif image.mode in ("P", "PA") or (image.mode == "LA" and channels in (1, 3)):
        image = image.convert("RGBA")  # converting a transparent palette to RGB warns
    if channels in (1, 3):
        return image.convert("L" if channels == 1 else "RGB")
    if len(image.getbands()) != channels:
        raise ValueError(f"it must have {channels} channels, got {len(image.getbands())}")
    return image.copy()


def _to_8_bits(image: Image.Image) -> Image.Image:
    """Grayscale of 16 bits, or of a TIFF's 12, as 8 bits; a TIFF whose 0 is white is inverted, as Pillow leaves it."""
    tags = getattr(image, "tag_v2", {})
    bits = tags.get(TiffImagePlugin.BITSPERSAMPLE, (16,))[0] if image.format == "TIFF" else 16
    pixels = (np.asarray(image) >> (max(bits, 8) - 8)).astype(np.uint8)
    if image.format == "TIFF" and tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 0:
        pixels = 255 - pixels
    return Image.fromarray(pixels)


def check_image_name(argument: str, path: Path) -> None:
    """ValueError if the name of an image that is to be written has no ending that Pillow writes."""
    if Image.registered_extensions().get(os.path.splitext(path)[1].lower(), "") not in Image.SAVE:
        raise ValueError(f"{argument} must end as images do (.png, .jpg, ...), got {path}")
