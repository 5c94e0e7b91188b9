"""Pictures from files, as a model sees them: RGB, upright, 8 bits a channel."""

import os

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

Path = str | os.PathLike[str]
TURNS = {  # EXIF 2.32, 4.6.4
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
SIDEWAYS = {TURNS[number] for number in (5, 6, 7, 8)}


def read_image(path: Path) -> Image.Image:
    """A picture file of any kind Pillow reads -> RGB, turned as its EXIF orientation says.

    16-bit greyscale is scaled to 8 bits; an alpha channel is dropped, as torchvision's readers do.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is torn, not a picture, or of a kind without a usual scale (floats, 32-bit integers).
    """
    try:
        with open(path, "rb") as file, Image.open(file) as picture:  # by name, Pillow maps turned TIFFs wrongly
            picture.load()
            return upright_rgb(picture)
    except FileNotFoundError:
        raise
    except UnidentifiedImageError as error:
        raise ValueError(f"{os.fspath(path)} cannot be read as a picture: it is of no kind that is known") from error
    except Exception as error:  # Pillow's readers raise whatever their parsing trips over
        raise ValueError(f"{os.fspath(path)} cannot be read as a picture: {error}") from error


def upright_size(path: Path) -> tuple[int, int]:
    """(height, width) of the picture that :func:`read_image` would give, from the file's first bytes.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not a picture.
    """
    try:
        with open(path, "rb") as file, Image.open(file) as picture:
            turned = _turn(picture) in SIDEWAYS
            return (picture.width, picture.height) if turned else (picture.height, picture.width)
    except FileNotFoundError:
        raise
    except Exception as error:  # as above
        raise ValueError(f"{os.fspath(path)} cannot be read as a picture: {error}") from error


def upright_rgb(picture: Image.Image) -> Image.Image:
    """A picture that is open already, as :func:`read_image` gives one; ValueError for kinds without a usual scale."""
    return _upright(_eight_bit_rgb(picture), picture)


def _upright(rgb: Image.Image, picture: Image.Image) -> Image.Image:
    """Turned as the picture's EXIF says."""
    turn = _turn(picture)
    return rgb if turn is None else rgb.transpose(turn)


def _turn(picture: Image.Image) -> Image.Transpose | None:
    """What the picture's EXIF says; metadata that cannot be read says nothing."""
    try:
        return TURNS.get(picture.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # each format's parser trips in its own way, over what is not pixels
        return None


def _eight_bit_rgb(picture: Image.Image) -> Image.Image:
    """Pillow's own conversion, except that it would clip 16 bits to 8 instead of scaling them."""
    if picture.mode == "F":
        raise ValueError("its pixels are floats, whose scale is unknown")
    if picture.mode == "I" and picture.format != "PNG":  # as which older Pillow opens 16-bit PNG
        raise ValueError("its pixels are 32-bit integers, whose scale is unknown")
    if picture.mode.startswith("I"):
        picture = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
    elif picture.mode in ("P", "LA", "PA"):  # a palette's transparency would warn on its way to RGB
        picture = picture.convert("RGBA")
    return picture.convert("RGB")
