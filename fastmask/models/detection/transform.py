"""Resizing, normalizing and padding of images, and the way back; torchvision.models.detection.transform's names."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastmask.checks import ArgumentError, NotScriptable
from fastmask.models.detection._channels import count_values
from fastmask.models.detection.image_list import ImageList
from fastmask.ops.masks import paste_masks_in_image
from fastmask.preprocess import normalize, pad, resize
from fastmask.sizes import compute_padded_size, compute_resized_size
from fastmask.structures import Prediction

Target = dict[str, Tensor]


class GeneralizedRCNNTransform(NotScriptable, nn.Module):
    """What is done to images and targets before the backbone, and to detections afterwards.

    Args:
        min_size: the shorter side after resizing, in pixels; of several, training draws one, inference takes the last.
        max_size: the longer side's limit.
        image_mean, image_std: of each channel, for images in [0, 1]; numbers, a NumPy array or a tensor.
        size_divisible: the padded size is a multiple of it.
        fixed_size: (width, height) for all images, instead of ``min_size`` and ``max_size``.
        _skip_resize: keyword only; in training, leave the sizes as they are.

    Source: torchvision/models/detection/transform.py.
    """

    _enlarge_only = False  # matterport's rule of sizes, see fastmask.sizes

    def __init__(
        self,
        min_size: int | Sequence[int],
        max_size: int,
        image_mean: Sequence[float],
        image_std: Sequence[float],
        size_divisible: int = 32,
        fixed_size: tuple[int, int] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        self.min_size = tuple(min_size) if isinstance(min_size, list | tuple) else (min_size,)
        self.max_size = max_size
        self.image_mean = image_mean
        self.image_std = image_std
        self.size_divisible = size_divisible
        self.fixed_size = fixed_size
        self._skip_resize = kwargs.pop("_skip_resize", False)

    def forward(
        self, images: list[Tensor], targets: list[Target] | None = None
    ) -> tuple[ImageList, list[Target] | None]:
        """Images [C, h, w] in [0, 1] -> one padded batch; targets are copied, their boxes and masks resized alike."""
        resized, resized_targets = [], []
        if len(images) == 0:
            raise ValueError("images must be at least one image, got none")
        for i, image in enumerate(images):
            if image.ndim != 3:
                raise ValueError(f"images[{i}] must be [C, H, W], got {tuple(image.shape)}")
            if torch.compiler.is_compiling() and not torch.compiler.is_exporting():
                for side in image.shape[1:]:
                    len(range(side))  # a constant of what torch.compile makes: other sizes are compiled anew
            target = None if targets is None else dict(targets[i])
            image, target = self.resize(self.normalize(image), target)
            resized.append(image)
            resized_targets.append(target)
        sizes = [(image.shape[-2], image.shape[-1]) for image in resized]
        batch = ImageList(self.batch_images(resized, self.size_divisible), sizes)
        return batch, None if targets is None else [target for target in resized_targets if target is not None]

    def normalize(self, image: Tensor) -> Tensor:
        """(image - mean) / std, channel by channel; one value, or one channel, is for all of the others."""
        if not image.is_floating_point():
            raise TypeError(f"images must be floating point in [0, 1], got {image.dtype}")
        mean, std = (
            torch.as_tensor(values, dtype=image.dtype, device=image.device)
            for values in (self.image_mean, self.image_std)
        )
        channels = count_values(mean, std)
        if image.shape[-3] != channels and 1 not in (image.shape[-3], channels):
            raise ArgumentError(f"image must have {channels} channels, as image_mean has, got {image.shape[-3]}")
        return normalize(image, mean, std)

    def torch_choice(self, k: Sequence[int]) -> int:
        """One of the numbers, drawn as torchvision draws it; of one alone, without drawing."""
        return k[int(torch.empty(1).uniform_(0, len(k))) if len(k) > 1 else 0]

    def resize(self, image: Tensor, target: Target | None = None) -> tuple[Tensor, Target | None]:
        """One image [C, h, w], and its target's boxes, masks and keypoints with it."""
        before = (image.shape[-2], image.shape[-1])
        if self.training:
            if self._skip_resize:
                return image, target
            shorter = self.torch_choice(self.min_size)
        else:
            shorter = self.min_size[-1]
        if self.fixed_size is not None:
            size = (self.fixed_size[1], self.fixed_size[0])
        else:
            size = compute_resized_size(before, shorter, self.max_size, enlarge_only=self._enlarge_only)
        if target is not None:
            if "masks" in target:
                target["masks"] = resize_masks(target["masks"], size)
            target["boxes"] = resize_boxes(target["boxes"], before, size)
            if "keypoints" in target:
                target["keypoints"] = resize_keypoints(target["keypoints"], before, size)
        return resize(image, size), target

    def max_by_axis(self, the_list: list[list[int]]) -> list[int]:
        """The largest number of each position in lists of one length."""
        return [max(numbers) for numbers in zip(*the_list, strict=True)]

    def batch_images(self, images: list[Tensor], size_divisible: int = 32) -> Tensor:
        """Images [C, h, w] of any sizes -> [B, C, H, W], zeros at the right and the bottom."""
        _, height, width = self.max_by_axis([list(image.shape) for image in images])
        return pad(images, compute_padded_size([(height, width)], size_divisible))

    def postprocess(
        self,
        result: list[Prediction],
        image_shapes: Sequence[tuple[int, int]],
        original_image_sizes: Sequence[tuple[int, int]],
    ) -> list[Prediction]:
        """Boxes and keypoints from the batch's pixels to the original images', and masks [N, 1, M, M] pasted there.

        There may be no results at all, as of parts in training mode.
        """
        if self.training:
            return result
        for detections, shape, original in zip(result, image_shapes, original_image_sizes, strict=len(result) > 0):
            detections["boxes"] = resize_boxes(detections["boxes"], shape, original)
            if "masks" in detections:
                detections["masks"] = paste_masks_in_image(detections["masks"], detections["boxes"], original)
            if "keypoints" in detections:
                detections["keypoints"] = resize_keypoints(detections["keypoints"], shape, original)
        return result

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(\n    Normalize(mean={self.image_mean}, std={self.image_std})"
            f"\n    Resize(min_size={self.min_size}, max_size={self.max_size}, mode='bilinear')\n)"
        )


def resize_masks(masks: Tensor, size: Sequence[int]) -> Tensor:
    """Masks [N, h, w] -> uint8 [N, *size], each pixel the nearest one's; as bytes where PyTorch can, as float else."""
    values = masks.byte() if masks.device.type in ("cpu", "cuda", "meta") else masks.float()
    return F.interpolate(values[:, None], size=tuple(size))[:, 0].byte()


def resize_keypoints(keypoints: Tensor, original_size: Sequence[int], new_size: Sequence[int]) -> Tensor:
    """Keypoints [N, K, 3] (x, y, visibility) of an image of one (height, width) -> the same in another."""
    height, width = (new / old for old, new in zip(original_size, new_size, strict=True))
    return keypoints * torch.tensor([width, height, 1.0], dtype=torch.float32).to(keypoints)


def resize_boxes(boxes: Tensor, original_size: Sequence[int], new_size: Sequence[int]) -> Tensor:
    """Boxes [N, 4] of an image of one (height, width) -> the same in another, by float32 ratios as torchvision."""
    boxes = boxes if boxes.is_floating_point() else boxes.to(torch.float32)
    # Python's quotient, rounded to float32, is float32's own: sides are below 2^24
    height, width = (new / old for old, new in zip(original_size, new_size, strict=True))
    return boxes * torch.tensor([width, height] * 2, dtype=torch.float32).to(boxes)
