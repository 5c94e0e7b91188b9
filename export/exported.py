"""Exported files, independent of their runtime: metadata, and preprocessing of images."""

import abc
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastmask.checks import check_shape
from fastmask.models._presets import to_float
from fastmask.preprocess import Resizer, normalize, pad, resize
from fastmask.sizes import Size

Array = NDArray[Any]
ROWS = ("boxes", "labels", "scores", "masks", "keypoints", "keypoints_scores")  # outputs with a row for each detection
NEEDED = (
    *("image_mean", "image_std", "min_size", "max_size", "size_divisible", "batch", "size", "dynamic"),
    *("images", "masks", "outputs", "dtype", "categories"),
)


class ExportedModel(abc.ABC):
    """A file that ``fastmask export`` wrote, ready to run.

    Args:
        path: of the file.
        metadata: its metadata, each value JSON; see :meth:`fastmask.export.ExportableModel.metadata`.

    Raises:
        ValueError: something is missing there.
    """

    kind: str  # of the device that runs it
    runtime: str  # its name

    def __init__(self, path: str, metadata: Mapping[str, str]) -> None:
        if any(name not in metadata for name in NEEDED):
            raise ValueError(f"{path} must be a file made by fastmask export, got one without its metadata")
        self.path = path
        self.metadata: dict[str, Any] = {name: json.loads(metadata[name]) for name in NEEDED}
        self.raw = self.metadata["images"].startswith("uint8")
        self.channels = len(self.metadata["image_mean"])
        fixed = not self.metadata["dynamic"]
        self.batch: int | None = self.metadata["batch"] if fixed else None
        self.size: Size | None = tuple(self.metadata["size"]) if fixed else None
        limits = (self.metadata[name] for name in ("min_size", "max_size", "size_divisible"))
        enlarge_only = json.loads(metadata.get("enlarge_only", "false"))  # of matterport's models alone
        self.resizer = Resizer(*limits, padded_size=self.size, enlarge_only=enlarge_only)

    @abc.abstractmethod
    def __call__(self, images: Array, sizes: Array) -> dict[str, Array]:
        """Run the file on arrays; inputs and outputs are those of :meth:`fastmask.export.ExportableModel.forward`."""

    @torch.inference_mode()
    def preprocess(self, images: Sequence[Tensor]) -> tuple[Array, Array]:
        """Resize, normalize and pad images [C, h, w], uint8 or in [0, 1], into the file's inputs images and sizes."""
        if self.batch is not None and len(images) > self.batch:
            raise ValueError(f"images must be at most {self.batch}, got {len(images)}")
        for i, image in enumerate(images):
            check_shape(f"images[{i}]", image, self.channels, "H", "W")
        shapes, padded_size = self.resizer.resize_batch([(image.shape[1], image.shape[2]) for image in images])
        mean, std = (torch.tensor(self.metadata[name]) for name in ("image_mean", "image_std"))
        pixels = [to_float(image.cpu()) for image in images]
        scaled = [image * 255 if self.raw else normalize(image, mean, std) for image in pixels]
        batch = pad([resize(image, size) for image, size in zip(scaled, shapes, strict=True)], padded_size, self.batch)
        sizes = np.array(shapes + [(1, 1)] * (len(batch) - len(images)), np.int64)
        if self.raw:
            return batch.round().clamp(0, 255).byte().permute(0, 2, 3, 1).contiguous().numpy(), sizes
        return batch.numpy(), sizes


def format_load_error(path: str, error: Exception) -> str:
    """Format the error of a file that cannot be loaded or run."""
    return f"{path} cannot be run: {(str(error).strip() or type(error).__name__).splitlines()[0]}"
