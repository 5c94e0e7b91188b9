"""Preprocessing of a batch, eager fallback, image by image. Specification: reference_layers.preprocess."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor


def preprocess(
    images: Sequence[Tensor], heights: Sequence[int], widths: Sequence[int], mean: Tensor, std: Tensor, pixels: Tensor
) -> None:
    """Resize images [C, h, w] to heights and widths, normalize by mean [C] and std [C] -> ``pixels`` [B, C, H, W]."""
    pixels.zero_()
    mean, std = mean[:, None, None], std[:, None, None]
    for padded, image, height, width in zip(pixels, images, heights, widths, strict=False):
        scaled = image.float() if image.is_floating_point() else image.float() / 255
        normalized = (scaled - mean) / std
        resized = F.interpolate(normalized[None], size=(height, width), mode="bilinear", align_corners=False)[0]
        padded[:, :height, :width] = resized
