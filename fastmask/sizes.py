"""Sizes of resized and padded images, without PyTorch.

The rule is Mask R-CNN's (section 3.1) with torchvision's rounding (models/detection/transform.py): the shorter side
becomes ``min_size`` pixels unless the longer one got beyond ``max_size``; sides are rounded down.
"""

import math
from collections.abc import Sequence

Size = tuple[int, int]  # (height, width)


def compute_resized_size(
    original: Size,
    min_size: float,
    max_size: float,
    room: tuple[float, float] = (math.inf, math.inf),
    *,
    enlarge_only: bool = False,
) -> Size:
    """(height, width) that an image is resized to, 0 where not a pixel of a side is left.

    Args:
        original: (height, width) of the image.
        min_size, max_size: pixels of the shorter side, and the limit of the longer one.
        room: (height, width) that it has to fit into as well.
        enlarge_only: matterport's rule instead (Mask_RCNN's utils.resize_image, mode "square"): an image is not shrunk
            to ``min_size``, only enlarged, and sides are rounded to the nearest pixel, of two to the even one.
    """
    if enlarge_only:
        longest = max(original)
        scale = max(1.0, min_size / min(original))
        scale = max_size / longest if round(longest * scale) > max_size else scale
        scale = min(scale, room[0] / original[0], room[1] / original[1])
        return round(original[0] * scale), round(original[1] * scale)
    scale = min(min_size / min(original), max_size / max(original), room[0] / original[0], room[1] / original[1])
    return math.floor(original[0] * scale), math.floor(original[1] * scale)


def check_pixels_left(original: Size, size: Size) -> None:
    """Raise a ValueError if not a pixel of a side of an image is left where it is resized to ``size``."""
    if min(size) < 1:
        (height, width), long = original, max(size)
        raise ValueError(
            f"images must be at most {long} times as long as wide, as they are resized to {long} pixels, "
            f"got {width} x {height} pixels (width x height): cut it into pieces"
        )


def compute_padded_size(sizes: Sequence[Sequence[int]], divisible: int) -> Size:
    """The least (height, width) that holds all sizes and is a multiple of ``divisible``."""
    height, width = (math.ceil(max(size[axis] for size in sizes) / divisible) * divisible for axis in (0, 1))
    return height, width
