"""Pictures from files, as a model sees them: RGB, upright, 8 bits a channel."""

import os

import numpy as np
from PIL import Image, ImageOps

Path = str | os.PathLike[str]


def read_image(path: Path) -> Image.Image:
    """A picture file of any kind Pillow reads -> RGB, turned as its EXIF orientation says.

    16-bit greyscale is scaled to 8 bits; an alpha channel is dropped, as torchvision's readers do.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is torn, not a picture, or of a kind without a usual scale (floats, 32-bit integers).
    """
    try:
        with Image.open(path) as picture:
            picture.load()
            return _eight_bit_rgb(ImageOps.exif_transpose(picture))
    except FileNotFoundError:
        raise
    except Exception as error:  # Pillow's readers raise whatever their parsing trips over
        raise ValueError(f"{os.fspath(path)} cannot be read as a picture: {error}") from error


def _eight_bit_rgb(picture: Image.Image) -> Image.Image:
    """Pillow's own conversion, except that it would clip 16 bits to 8 instead of scaling them."""
    if picture.mode == "F":
        raise ValueError("its pixels are floats, whose scale is unknown")
    if picture.mode.startswith("I"):
        pixels = np.asarray(picture).astype(np.int64)
        if pixels.size and (pixels.min() < 0 or pixels.max() > 65535):
            raise ValueError("its pixels are 32-bit integers, whose scale is unknown")
        picture = Image.fromarray((pixels >> 8).astype(np.uint8))
    elif picture.mode in ("P", "LA", "PA"):  # a palette's transparency would warn on its way to RGB
        picture = picture.convert("RGBA")
    return picture.convert("RGB")
