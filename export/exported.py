"""What a file that was exported says of itself, and images made ready for it; whoever runs it."""

import abc
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastmask.models._presets import to_float
from fastmask.preprocess import Resizer, Size, normalize, pad, resize

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
        limits = (self.told[name] for name in ("min_size", "max_size", "size_divisible"))
        self.resizer = Resizer(*limits, padded_size=self.size)

    @abc.abstractmethod
    def __call__(self, images: Array, sizes: Array) -> dict[str, Array]:
        """Arrays as :meth:`fastmask.export.Deployed.forward` takes and gives tensors, by name."""

    @torch.inference_mode()
    def prepared(self, images: Sequence[Tensor]) -> tuple[Array, Array]:
        """Images [3, h, w], uint8 or in [0, 1] -> images and sizes as the file takes them."""
        if self.batch is not None and len(images) > self.batch:
            raise ValueError(f"images must be at most {self.batch}, got {len(images)}")
        shapes, padded_size = self.resizer.resize_batch([(image.shape[1], image.shape[2]) for image in images])
        mean, std = (torch.tensor(self.told[name]) for name in ("image_mean", "image_std"))
        pixels = [to_float(image.cpu()) for image in images]
        scaled = [image * 255 if self.raw else normalize(image, mean, std) for image in pixels]
        batch = pad([resize(image, size) for image, size in zip(scaled, shapes, strict=True)], padded_size, self.batch)
        sizes = np.array(shapes + [(1, 1)] * (len(batch) - len(images)), np.int64)
        if self.raw:
            return batch.round().clamp(0, 255).byte().permute(0, 2, 3, 1).contiguous().numpy(), sizes
        return batch.numpy(), sizes


def cannot(path: str, error: Exception) -> str:
    """What is said of a file that cannot be loaded or run."""
    return f"{path} cannot be run: {(str(error).strip() or type(error).__name__).splitlines()[0]}"
