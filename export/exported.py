"""What a file that was exported says of itself, and images made ready for it; whoever runs it."""

import abc
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from fastmask.models._presets import to_float

Size = tuple[int, int]  # (height, width)
Array = NDArray[Any]
ROWS = ("boxes", "labels", "scores", "masks")  # outputs with a row for each detection
NEEDED = (
    *("image_mean", "image_std", "min_size", "max_size", "size_divisible", "batch", "size", "dynamic"),
    *("images", "masks", "outputs", "dtype", "categories"),
)


class Exported(abc.ABC):
    """A file that ``fastmask export`` wrote, ready to run.

    Args:
        path: of the file.
        told: its metadata, each value JSON; see :meth:`fastmask.export.Deployed.told`.

    Raises:
        ValueError: something is missing there.
    """

    kind: str  # of the device that runs it

    def __init__(self, path: str, told: Mapping[str, str]) -> None:
        if any(name not in told for name in NEEDED):
            raise ValueError(f"{path} must be a file made by fastmask export, got one that does not say so")
        self.path = path
        self.told: dict[str, Any] = {name: json.loads(told[name]) for name in NEEDED}
        self.raw = self.told["images"].startswith("uint8")
        fixed = not self.told["dynamic"]
        self.batch: int | None = self.told["batch"] if fixed else None
        self.size: Size | None = tuple(self.told["size"]) if fixed else None

    @abc.abstractmethod
    def __call__(self, images: Array, sizes: Array) -> dict[str, Array]:
        """Arrays as :meth:`fastmask.export.Deployed.forward` takes and gives tensors, by name."""

    def resized(self, original: Size) -> Size:
        """The size that an image is resized to: as the model would and, where that is larger, into a fixed size."""
        scale = min(self.told["min_size"] / min(original), self.told["max_size"] / max(original))
        if self.size is not None:
            scale = min(scale, self.size[0] / original[0], self.size[1] / original[1])
        shape = int(original[0] * scale), int(original[1] * scale)
        if min(shape) < 1:
            raise ValueError(f"images of {original} pixels cannot be resized to {shape}")
        return shape

    @torch.inference_mode()
    def prepared(self, images: Sequence[Tensor]) -> tuple[Array, Array]:
        """Images [3, h, w], uint8 or in [0, 1] -> images and sizes as the file takes them."""
        if self.batch is not None and len(images) > self.batch:
            raise ValueError(f"images must be at most {self.batch}, got {len(images)}")
        shapes = [self.resized((image.shape[1], image.shape[2])) for image in images]
        step = self.told["size_divisible"]
        height, width = self.size or tuple(-(-max(one[axis] for one in shapes) // step) * step for axis in (0, 1))
        batch = torch.zeros(self.batch or len(images), 3, height, width)
        mean, std = (torch.tensor(self.told[name])[:, None, None] for name in ("image_mean", "image_std"))
        for place, image, shape in zip(batch, images, shapes, strict=False):
            planes = to_float(image.cpu())
            planes = planes * 255 if self.raw else (planes - mean) / std
            resized = F.interpolate(planes[None], size=shape, mode="bilinear", align_corners=False)[0]
            place[:, : shape[0], : shape[1]] = resized
        sizes = np.array(shapes + [(1, 1)] * (len(batch) - len(images)), np.int64)
        if self.raw:
            return batch.round().clamp(0, 255).byte().permute(0, 2, 3, 1).contiguous().numpy(), sizes
        return batch.numpy(), sizes


def cannot(path: str, error: Exception) -> str:
    """What is said of a file that cannot be loaded or run."""
    return f"{path} cannot be run: {(str(error).strip() or type(error).__name__).splitlines()[0]}"
