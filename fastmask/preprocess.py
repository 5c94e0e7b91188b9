"""Preprocessing of images, for training, inference and export alike: resizing, padding, normalization."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fastmask.sizes import Size, check_pixels_left, compute_padded_size, compute_resized_size


def resize(image: Tensor, size: Size) -> Tensor:
    """Resize a floating-point image [C, h, w] to [C, *size]: bilinear without antialiasing, as torchvision's models."""
    return F.interpolate(image[None], size=size, mode="bilinear", align_corners=False)[0]


def normalize(image: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Normalize [..., C, H, W] in [0, 1] by mean [C] and standard deviation [C]."""
    return (image - mean[:, None, None]) / std[:, None, None]


def normalize_padded(pixels: Tensor, sizes: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Normalize padded uint8 images, in the dtype of ``mean``; padding becomes 0.

    Args:
        pixels: [B, C, H, W] uint8.
        sizes: [B, 2] int64 (height, width) of each image in there, which begins in the top left corner.
        mean, std: [C], for images in [0, 1].
    """
    rows, columns = (
        torch.arange(pixels.shape[2 + axis], device=pixels.device) < sizes[:, axis, None] for axis in (0, 1)
    )
    inside = (rows[:, :, None] & columns[:, None, :])[:, None]  # [B, 1, H, W]
    return torch.where(inside, normalize(pixels.to(mean.dtype) / 255, mean, std), 0.0)


def pad(images: Sequence[Tensor], size: Size, batch: int | None = None) -> Tensor:
    """Put images [C, h, w] into the top left corners of zeros [B, C, *size]; B is ``batch`` or their number."""
    padded = images[0].new_zeros(batch or len(images), images[0].shape[0], *size)
    for i, image in enumerate(images):  # by index: gradients do not pass through views that an iteration gives
        padded[i, :, : image.shape[1], : image.shape[2]] = image
    return padded


class Resizer:
    """The sizes that images are resized to, and the padded size that a batch of them is put into.

    Args:
        min_size, max_size: see :func:`compute_resized_size`.
        size_divisible: padded sides are multiples of it.
        fixed_size: (height, width) that every image is resized to instead.
        padded_size: (height, width) of every batch, rounded up to multiples; None: the least that a batch needs.
        transpose: give portrait images the landscape size transposed, and the other way round.
        enlarge_only: see :func:`compute_resized_size`.
    """

    def __init__(
        self,
        min_size: float,
        max_size: float,
        size_divisible: int,
        *,
        fixed_size: Size | None = None,
        padded_size: Size | None = None,
        transpose: bool = False,
        enlarge_only: bool = False,
    ) -> None:
        self.min_size, self.max_size, self.size_divisible = min_size, max_size, size_divisible
        self.fixed_size = fixed_size
        self.padded_size = None if padded_size is None else compute_padded_size([padded_size], size_divisible)
        self.transpose = transpose and fixed_size is None
        self.enlarge_only = enlarge_only

    def choose_padded_size(self, original: Size) -> Size | None:
        """The padded size of an image of that size; None: any.

        Raises:
            ValueError: the image cannot be resized to fit.
        """
        self.resize(original)
        return self._choose(original)

    def resize(self, original: Size) -> Size:
        """(height, width) that an image is resized to: as the model would, but no larger than its padded size.

        Raises:
            ValueError: not a pixel of it would be left, or a fixed size does not fit.
        """
        room = self._choose(original) or (math.inf, math.inf)
        limits = self.min_size, self.max_size, room
        size = self.fixed_size or compute_resized_size(original, *limits, enlarge_only=self.enlarge_only)
        if min(size) < 1 or size[0] > room[0] or size[1] > room[1]:
            if self.fixed_size:
                height, width = original
                raise ValueError(f"images of {height} x {width} pixels cannot be resized to {size} in {room}")
            check_pixels_left(original, size)
        return size

    def resize_batch(self, originals: Sequence[Size]) -> tuple[list[Size], Size]:
        """The sizes that a batch's images are resized to, and the padded size that holds all of them."""
        sizes = [self.resize(original) for original in originals]
        return sizes, self._choose(originals[0]) or compute_padded_size(sizes, self.size_divisible)

    def _choose(self, original: Size) -> Size | None:
        if self.padded_size is None:
            return None
        portrait, padded_portrait = original[0] > original[1], self.padded_size[0] > self.padded_size[1]
        turn = self.transpose and portrait != padded_portrait and original[0] != original[1]
        return self.padded_size[::-1] if turn else self.padded_size
