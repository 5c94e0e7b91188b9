"""A batch of padded images and their sizes; torchvision.models.detection.image_list's names."""

import torch
from torch import Tensor


class ImageList:
    """``tensors`` [B, C, H, W], and ``image_sizes``, the (height, width) of each image inside."""

    def __init__(self, tensors: Tensor, image_sizes: list[tuple[int, int]]) -> None:
        self.tensors = tensors
        self.image_sizes = image_sizes

    def to(self, device: torch.device | str) -> "ImageList":
        """The same batch on another device."""
        return ImageList(self.tensors.to(device), self.image_sizes)
