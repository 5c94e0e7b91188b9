"""Preprocessing of a batch in plain PyTorch, image by image. Specification: reference_layers.preprocess."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor


def preprocess(
    images: Sequence[Tensor], heights: Sequence[int], widths: Sequence[int], mean: Tensor, std: Tensor, pixels: Tensor
) -> None:
    """Images [3, h, w] of any strides, sizes to resize them to, mean [3], std [3] -> into ``pixels`` [B, 3, H, W]."""
    pixels.zero_()
    mean, std = mean[:, None, None], std[:, None, None]
    for padded, image, height, width in zip(pixels, images, heights, widths, strict=False):
        scaled = image.float() if image.is_floating_point() else image.float() / 255
        normalized = (scaled - mean) / std
        resized = F.interpolate(normalized[None], size=(height, width), mode="bilinear", align_corners=False)[0]
        padded[:, :height, :width] = resized
