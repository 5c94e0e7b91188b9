"""Images from files, as a model sees them: RGB, upright, 8 bits a channel."""

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
    """An image file of any kind Pillow reads -> RGB, turned as its EXIF orientation says.

    16-bit greyscale is scaled to 8 bits; an alpha channel is dropped, as torchvision's readers do.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is torn, not an image, or of a kind without a usual scale (floats, 32-bit integers).
    """
    try:
        with open(path, "rb") as file, Image.open(file) as image:  # by name, Pillow maps turned TIFFs wrongly
            image.load()
            return to_upright_rgb(image)
    except FileNotFoundError:
        raise
    except UnidentifiedImageError as error:
        raise ValueError(f"{os.fspath(path)} cannot be read as an image: it is of no kind that is known") from error
    except Exception as error:  # Pillow's readers raise whatever their parsing trips over
        raise ValueError(f"{os.fspath(path)} cannot be read as an image: {error}") from error


def read_image_size(path: Path) -> tuple[int, int]:
    """(height, width) of the image that :func:`read_image` would give, from the file's first bytes.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not an image.
    """
    try:
        with open(path, "rb") as file, Image.open(file) as image:
            turned = _turn(image) in SIDEWAYS
            return (image.width, image.height) if turned else (image.height, image.width)
    except FileNotFoundError:
        raise
    except Exception as error:  # as above
        raise ValueError(f"{os.fspath(path)} cannot be read as an image: {error}") from error


def to_upright_rgb(image: Image.Image) -> Image.Image:
    """An image that is open already, as :func:`read_image` gives one; ValueError for kinds without a usual scale."""
    return _upright(_eight_bit_rgb(image), image)


def _upright(rgb: Image.Image, image: Image.Image) -> Image.Image:
    """Turned as the image's EXIF says."""
    turn = _turn(image)
    return rgb if turn is None else rgb.transpose(turn)


def _turn(image: Image.Image) -> Image.Transpose | None:
    """What the image's EXIF says; metadata that cannot be read says nothing."""
    try:
        return TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # each format's parser trips in its own way, over what is not pixels
        return None


def _eight_bit_rgb(image: Image.Image) -> Image.Image:
    """Pillow's own conversion, except that it would clip 16 bits to 8 instead of scaling them."""
    if image.mode == "F":
        raise ValueError("its pixels are floats, whose scale is unknown")
    if image.mode == "I" and image.format != "PNG":  # as which older Pillow opens 16-bit PNG
        raise ValueError("its pixels are 32-bit integers, whose scale is unknown")
    if image.mode.startswith("I"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    elif image.mode in ("P", "LA", "PA"):  # a palette's transparency would warn on its way to RGB
        image = image.convert("RGBA")
    return image.convert("RGB")
