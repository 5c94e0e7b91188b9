"""Which size images are resized to, and which padded size they are put into."""

import math
from collections.abc import Sequence
from typing import Literal

from fastmask.models.detection.transform import GeneralizedRCNNTransform

Size = tuple[int, int]  # (height, width)


class Fitting:
    """A model's resizing, and a fixed padded size or "exact", the model's own.

    Args:
        transform: of the model.
        size: (height, width), rounded up as the model pads; or "exact".
    """

    def __init__(self, transform: GeneralizedRCNNTransform, size: Size | Literal["exact"]) -> None:
        self.transform = transform
        self.size = size if isinstance(size, str) else self._padded([size])

    def room(self, original: Size) -> Size | None:
        """The padded size that an image of that size gets, turned if it stands; None: any.

        Raises:
            ValueError: the image cannot be resized to fit.
        """
        room = self._room(original)
        self.resized(original)
        return room

    def resized(self, original: Size) -> Size:
        """The size an image is resized to: as the model would and, where that is larger, into its room.

        Raises:
            ValueError: not a pixel of it would be left, or a fixed size does not fit.
        """
        height, width = self._room(original) or (math.inf, math.inf)
        if self.transform.fixed_size is not None:
            shape = self.transform.fixed_size[1], self.transform.fixed_size[0]
        else:
            scale = min(self.transform.min_size[-1] / min(original), self.transform.max_size / max(original))
            scale = min(scale, height / original[0], width / original[1])
            shape = math.floor(original[0] * scale), math.floor(original[1] * scale)
        if min(shape) < 1 or shape[0] > height or shape[1] > width:
            raise ValueError(f"images of {original} pixels cannot be resized to {shape} in {(height, width)}")
        return shape

    def batch(self, originals: Sequence[Size]) -> tuple[list[Size], Size]:
        """The sizes to resize a batch's images to, and the padded one that all of them fit."""
        shapes = [self.resized(original) for original in originals]
        return shapes, self._room(originals[0]) or self._padded(shapes)

    def _room(self, original: Size) -> Size | None:
        if isinstance(self.size, str):
            return None
        turned = (original[0] > original[1]) != (self.size[0] > self.size[1]) and original[0] != original[1]
        return self.size[::-1] if turned and self.transform.fixed_size is None else self.size

    def _padded(self, shapes: Sequence[Size]) -> Size:
        step = self.transform.size_divisible
        height, width = (math.ceil(max(shape[axis] for shape in shapes) / step) * step for axis in (0, 1))
        return height, width
