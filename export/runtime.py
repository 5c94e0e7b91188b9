"""An exported model in ONNX Runtime, on pictures of any kind and size."""

import contextlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence, Sized
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from fastmask.answers import Found
from fastmask.export.deployed import INPUTS
from fastmask.feed import Picture, batches
from fastmask.models._presets import to_float
from fastmask.ops._utils import check_choice
from fastmask.ops.masks import encode_masks

PROVIDERS = {"cpu": ["CPUExecutionProvider"], "cuda": ["CUDAExecutionProvider", "CPUExecutionProvider"]}
NEEDED = ("image_mean", "image_std", "min_size", "max_size", "size_divisible", "images", "masks")
Size = tuple[int, int]  # (height, width)
Array = NDArray[Any]


class Session:
    """An ONNX file that :func:`fastmask.export.write_onnx` made, ready to run.

    Args:
        path: of the file.
        device: "cpu", or "cuda", which needs onnxruntime-gpu.

    Raises:
        ImportError: ONNX Runtime is not installed.
        ValueError: it is no such file, or ONNX Runtime has no such device.
    """

    def __init__(self, path: str | os.PathLike[str], device: str = "cpu") -> None:
        onnxruntime = runtime()
        if device not in PROVIDERS or PROVIDERS[device][0] not in onnxruntime.get_available_providers():
            there = ", ".join(onnxruntime.get_available_providers())
            raise ValueError(f"device must be one that this ONNX Runtime has ({there}), got {device!r}")
        self.path = os.fspath(path)
        try:
            self.session = onnxruntime.InferenceSession(self.path, providers=PROVIDERS[device])
        except Exception as error:  # its own kinds, of which it exports none
            raise ValueError(f"{self.path} cannot be run: {str(error).strip().splitlines()[0]}") from error
        if self.session.get_providers()[0] != PROVIDERS[device][0]:
            raise ValueError(f"device must be one that ONNX Runtime can load, got {device!r}")
        told = self.session.get_modelmeta().custom_metadata_map
        if any(name not in told for name in NEEDED) or [one.name for one in self.session.get_inputs()] != list(INPUTS):
            raise ValueError(f"{self.path} must be an ONNX file made by fastmask export, got one of other inputs")
        self.told: dict[str, Any] = {name: json.loads(told[name]) for name in (*NEEDED, "categories")}
        self.outputs = [one.name for one in self.session.get_outputs()]
        self.raw = self.told["images"].startswith("uint8")
        shape = self.session.get_inputs()[0].shape
        sides = shape[1:3] if self.raw else shape[2:4]
        self.batch: int | None = shape[0] if isinstance(shape[0], int) else None
        self.size: Size | None = (sides[0], sides[1]) if isinstance(sides[0], int) else None

    def __call__(self, images: Array, sizes: Array) -> dict[str, Array]:
        """Arrays as :meth:`fastmask.export.Deployed.forward` takes and gives tensors, by name."""
        try:
            found = self.session.run(None, dict(zip(INPUTS, (images, sizes), strict=True)))
        except Exception as error:  # its own kinds
            raise ValueError(f"{self.path} cannot be run: {str(error).strip().splitlines()[0]}") from error
        return dict(zip(self.outputs, found, strict=True))

    def resized(self, original: Size) -> Size:
        """The size that a picture is resized to: as the model would and, where that is larger, into a fixed size."""
        scale = min(self.told["min_size"] / min(original), self.told["max_size"] / max(original))
        if self.size is not None:
            scale = min(scale, self.size[0] / original[0], self.size[1] / original[1])
        shape = int(original[0] * scale), int(original[1] * scale)
        if min(shape) < 1:
            raise ValueError(f"images of {original} pixels cannot be resized to {shape}")
        return shape

    @torch.inference_mode()
    def prepared(self, pictures: Sequence[Tensor]) -> tuple[Array, Array]:
        """Pictures [3, h, w], uint8 or in [0, 1] -> images and sizes as the graph takes them."""
        if self.batch is not None and len(pictures) > self.batch:
            raise ValueError(f"pictures must be at most {self.batch}, got {len(pictures)}")
        shapes = [self.resized((picture.shape[1], picture.shape[2])) for picture in pictures]
        step = self.told["size_divisible"]
        height, width = self.size or tuple(-(-max(one[axis] for one in shapes) // step) * step for axis in (0, 1))
        batch = torch.zeros(self.batch or len(pictures), 3, height, width)
        mean, std = (torch.tensor(self.told[name])[:, None, None] for name in ("image_mean", "image_std"))
        for place, picture, shape in zip(batch, pictures, shapes, strict=False):
            planes = to_float(picture.cpu())
            planes = planes * 255 if self.raw else (planes - mean) / std
            resized = F.interpolate(planes[None], size=shape, mode="bilinear", align_corners=False)[0]
            place[:, : shape[0], : shape[1]] = resized
        sizes = np.array(shapes + [(1, 1)] * (len(batch) - len(pictures)), np.int64)
        if self.raw:
            return batch.round().clamp(0, 255).byte().permute(0, 2, 3, 1).contiguous().numpy(), sizes
        return batch.numpy(), sizes


class OnnxPredictor:
    """What :class:`fastmask.Predictor` gives, by ONNX Runtime; masks are COCO RLE.

    Args:
        path, device: see :class:`Session`.
        score: what is kept scores above it, and above what the model was exported with.
        batch: pictures at once, where the file does not say; all of one call are padded alike.

    Raises:
        ValueError: see :class:`Session`; or the file pastes masks.
    """

    def __init__(self, path: str | os.PathLike[str], device: str = "cpu", score: float = 0.0, batch: int = 1) -> None:
        self.session = Session(path, device)
        if self.session.told["masks"] == "paste":
            raise ValueError(f"{self.session.path} must be exported with --masks raw28 to be predicted with, got paste")
        if not 0 <= score <= 1:
            raise ValueError(f"score must be in [0, 1], got {score}")
        if batch < 1:
            raise ValueError(f"batch must be at least 1, got {batch}")
        self.score, self.batch = score, self.session.batch or batch

    def __call__(self, images: Sequence[Picture]) -> list[Found]:
        """For each picture boxes [n, 4] in its pixels, labels [n], scores [n] and masks; errors are raised."""
        return [found for found in self.stream(images, progress=False) if isinstance(found, dict)]

    def stream(
        self, images: Iterable[Picture], *, progress: bool = True, total: int | None = None, errors: str = "raise"
    ) -> Iterator[Found | Exception]:
        """Any number of pictures, in order, each with its answer; an error is raised or, with "yield", given."""
        from tqdm import tqdm

        check_choice("errors", errors, ("raise", "yield"))
        if total is None and isinstance(images, Sized):
            total = len(images)
        with (
            tqdm(total=total, unit="img", disable=not progress) as bar,
            contextlib.closing(batches(images, self.batch, lambda _: 0, 2, False)) as chunks,
        ):
            for chunk in chunks:
                for answer in [chunk] if isinstance(chunk, Exception) else self._answers(chunk):
                    if isinstance(answer, Exception) and errors == "raise":
                        raise answer
                    bar.update()
                    yield answer

    def _answers(self, pictures: list[Tensor]) -> Iterator[Found | Exception]:
        try:
            images, sizes = self.session.prepared(pictures)
            found = {name: torch.from_numpy(values) for name, values in self.session(images, sizes).items()}
        except ValueError as error:
            if len(pictures) == 1:
                yield error
            else:  # those that can be looked at alone
                for picture in pictures:
                    yield from self._answers([picture])
            return
        for i, picture in enumerate(pictures):
            count = int(found["count"][i])
            kept = found["scores"][i, :count] > self.score
            one = {name: values[i, :count][kept] for name, values in found.items() if name != "count"}
            ratios = torch.tensor(picture.shape[1:]) / torch.from_numpy(sizes[i])
            one["boxes"] = one["boxes"] * ratios.flip(0).repeat(2).to(one["boxes"].dtype)
            if "masks" in one:
                rle: Any = encode_masks(one["masks"], one["boxes"], (picture.shape[1], picture.shape[2]))
                one["masks"] = rle
            yield one


def runtime() -> Any:
    """The module; either of two packages has it."""
    try:
        import onnxruntime
    except ImportError as error:
        raise ImportError(
            "ONNX Runtime is not installed: pip install 'fastmask-rcnn[onnxruntime]' (or onnxruntime-gpu)"
        ) from error
    return onnxruntime
