"""Preprocessing of ``weights.transforms()``; torchvision.transforms._presets' names."""

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn


def to_float(image: Tensor | Image.Image) -> Tensor:
    """An image as float32 [C, H, W] in [0, 1]; integer tensors are divided by their type's largest value."""
    if not isinstance(image, Tensor):
        array = np.array(image)
        image = torch.from_numpy(array if array.ndim == 3 else array[:, :, None]).permute(2, 0, 1)
    if image.is_floating_point():
        return image.float()
    largest = 1 if image.dtype == torch.bool else torch.iinfo(image.dtype).max
    return image.float() / largest


class ObjectDetection(nn.Module):
    """PIL image or tensor [..., C, H, W] -> float32 in [0, 1]; the model resizes and normalizes."""

    def forward(self, img: Tensor | Image.Image) -> Tensor:
        return to_float(img)

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"
