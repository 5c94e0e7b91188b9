"""Reading image files as RGB, upright, 8 bits per channel."""

import os

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

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
TRANSPOSED = {ORIENTATIONS[value] for value in (5, 6, 7, 8)}  # those that exchange height and width


def read_image(path: Path) -> Image.Image:
    """Read an image file of any format of Pillow's as RGB, with its EXIF orientation applied.

    16-bit grayscale is scaled to 8 bits; an alpha channel is dropped, as torchvision's readers do.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is truncated, not an image, or its pixels have no usual scale (floats, 32-bit integers).
    """
    try:
        with (
            open(path, "rb") as file,
            Image.open(file) as image,
        ):  # given a path, Pillow transposes memory-mapped TIFFs wrongly
            image.load()
            return to_upright_rgb(image)
    except FileNotFoundError:
        raise
    except UnidentifiedImageError as error:
        raise ValueError(f"{os.fspath(path)} cannot be read as an image: its format is unknown") from error
    except Exception as error:  # Pillow's readers raise many types
        raise ValueError(f"{os.fspath(path)} cannot be read as an image: {error}") from error


def read_image_size(path: Path) -> tuple[int, int]:
    """(height, width) of what :func:`read_image` returns, from the file's header alone.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not an image.
    """
    try:
        with open(path, "rb") as file, Image.open(file) as image:
            transposed = _read_orientation(image) in TRANSPOSED
            return (image.width, image.height) if transposed else (image.height, image.width)
    except FileNotFoundError:
        raise
    except Exception as error:  # as above
        raise ValueError(f"{os.fspath(path)} cannot be read as an image: {error}") from error


def to_upright_rgb(image: Image.Image) -> Image.Image:
    """Convert an open image as :func:`read_image` does; ValueError if its pixels have no usual scale."""
    rgb, orientation = _to_eight_bit_rgb(image), _read_orientation(image)
    return rgb if orientation is None else rgb.transpose(orientation)


def _read_orientation(image: Image.Image) -> Image.Transpose | None:
    """How the EXIF orientation transposes the image; None without, or if the metadata cannot be read."""
    try:
        return ORIENTATIONS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # each format's parser of metadata raises other types
        return None


def _to_eight_bit_rgb(image: Image.Image) -> Image.Image:
    """Pillow's conversion to RGB, but with 16 bits scaled to 8, which Pillow would clip."""
    if image.mode == "F":
        raise ValueError("its pixels are floats, whose scale is unknown")
    if image.mode == "I" and image.format != "PNG":  # older Pillow opens 16-bit PNG as mode I
        raise ValueError("its pixels are 32-bit integers, whose scale is unknown")
    if image.mode.startswith("I"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    elif image.mode in ("P", "LA", "PA"):  # converting a transparent palette to RGB warns
        image = image.convert("RGBA")
    return image.convert("RGB")
