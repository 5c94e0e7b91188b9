"""An exported model on images of any kind and size."""

import contextlib
import os
from collections.abc import Iterable, Iterator, Sequence, Sized
from typing import Any

import torch
from torch import Tensor

from fastmask.checks import check_choice
from fastmask.export.aot import Package
from fastmask.export.exported import ROWS, Exported
from fastmask.export.runtime import Session
from fastmask.inference.prefetch import ImageLike, batches
from fastmask.inference.unpack import Found
from fastmask.ops.masks import encode_masks


def opened(path: str | os.PathLike[str], device: str = "auto") -> Exported:
    """A .pt2 file by PyTorch, any other by ONNX Runtime."""
    return Package(path, device) if os.fspath(path).endswith(".pt2") else Session(path, device)


class ExportedPredictor:
    """What :class:`fastmask.Predictor` gives, by an exported file; masks are COCO RLE.

    Args:
        path, device: see :class:`Session` and :class:`Package`.
        score: what is kept scores above it, and above what the model was exported with.
        batch: images at once, where the file does not say; all of one call are padded alike.

    Raises:
        ImportError: ONNX Runtime is not installed.
        ValueError: see there; or the file pastes masks.
    """

    def __init__(self, path: str | os.PathLike[str], device: str = "auto", score: float = 0.0, batch: int = 1) -> None:
        self.session = opened(path, device)
        if self.session.told["masks"] == "paste":
            raise ValueError(f"{self.session.path} must be exported with --masks raw28 to be predicted with, got paste")
        if not 0 <= score <= 1:
            raise ValueError(f"score must be in [0, 1], got {score}")
        if batch < 1 or (self.session.batch is None and batch > self.session.told["batch"]):
            raise ValueError(f"batch must be in [1, {self.session.told['batch']}], got {batch}")
        self.score, self.batch = score, self.session.batch or batch

    def __call__(self, images: Sequence[ImageLike]) -> list[Found]:
        """For each image boxes [n, 4] in its pixels, labels [n], scores [n] and masks; errors are raised."""
        return [found for found in self.stream(images, progress=False) if isinstance(found, dict)]

    def stream(
        self, images: Iterable[ImageLike], *, progress: bool = True, total: int | None = None, errors: str = "raise"
    ) -> Iterator[Found | Exception]:
        """Any number of images, in order, each with its answer; an error is raised or, with "yield", given."""
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

    def _answers(self, images: list[Tensor]) -> Iterator[Found | Exception]:
        try:
            inputs, sizes = self.session.prepared(images)
            found = {name: torch.from_numpy(values) for name, values in self.session(inputs, sizes).items()}
        except ValueError as error:
            if len(images) == 1:
                yield error
            else:  # those that can be looked at alone
                for image in images:
                    yield from self._answers([image])
            return
        for i, image in enumerate(images):
            count = int(found["count"][i])
            kept = found["scores"][i, :count] > self.score
            one = {name: found[name][i, :count][kept] for name in ROWS if name in found}
            ratios = torch.tensor(image.shape[1:]) / torch.from_numpy(sizes[i])
            one["boxes"] = one["boxes"] * ratios.flip(0).repeat(2).to(one["boxes"].dtype)
            if "masks" in one:
                rle: Any = encode_masks(one["masks"], one["boxes"], (image.shape[1], image.shape[2]))
                one["masks"] = rle
            yield one
