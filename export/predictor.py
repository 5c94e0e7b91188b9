"""ExportedPredictor: an exported model on images of any kind and size."""

import contextlib
import os
from collections.abc import Iterable, Iterator, Sequence, Sized

import torch
from torch import Tensor

from fastmask.checks import check_at_least, check_choice
from fastmask.export.aot import AOTPackage
from fastmask.export.exported import ExportedModel
from fastmask.export.openvino import OpenVINOSession
from fastmask.export.runtime import OnnxSession
from fastmask.inference.prefetch import ImageLike, prefetch_batches
from fastmask.ops.masks import encode_masks
from fastmask.structures import Prediction

RUNTIMES = ("onnxruntime", "openvino")  # of ONNX files


def load_exported(
    path: str | os.PathLike[str], device: str = "auto", runtime: str | None = None, dtype: torch.dtype | None = None
) -> ExportedModel:
    """Load an exported file, with the arguments of :class:`ExportedPredictor`."""
    package = os.fspath(path).endswith(".pt2")
    check_choice("runtime", runtime or RUNTIMES[0], RUNTIMES)
    if package and runtime is not None:
        raise ValueError(f"runtime must not be given for a .pt2 file, got {runtime!r}")
    if runtime == "openvino":
        return OpenVINOSession(path, device, dtype or torch.float32)
    if dtype is not None:
        raise ValueError(f"dtype must be given with runtime openvino alone, as a file has its own, got {dtype}")
    return AOTPackage(path, device) if package else OnnxSession(path, device)


class ExportedPredictor:
    """Predicts as :class:`fastmask.Predictor` does, with an exported file; masks are COCO RLE.

    Args:
        path, device: see :class:`OnnxSession`, :class:`OpenVINOSession` and :class:`AOTPackage`.
        score: minimum score of a kept detection; below the exported model's own it has no effect.
        batch: images of a batch, where the file does not fix it; all images of a batch are padded alike.
        runtime: that runs an ONNX file, "onnxruntime" or "openvino"; None: onnxruntime.
        dtype: that OpenVINO computes in, float32 or bfloat16; None: float32. Other runtimes compute in the file's.

    Raises:
        ImportError: the runtime is not installed.
        ValueError: the file cannot be loaded, or pastes masks.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        device: str = "auto",
        score: float = 0.0,
        batch: int = 1,
        runtime: str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        self.session = load_exported(path, device, runtime, dtype)
        if self.session.metadata["masks"] == "paste":
            raise ValueError(f"{self.session.path} must be exported with --masks soft to be predicted with, got paste")
        if not 0 <= score <= 1:
            raise ValueError(f"score must be in [0, 1], got {score}")
        if batch < 1 or (self.session.batch is None and batch > self.session.metadata["batch"]):
            raise ValueError(f"batch must be in [1, {self.session.metadata['batch']}], got {batch}")
        self.score, self.batch = score, self.session.batch or batch

    def __call__(self, images: Sequence[ImageLike]) -> list[Prediction]:
        """Predict each image: boxes [n, 4] in its pixels, labels [n], scores [n] and masks; errors are raised."""
        return [item for item in self.stream(images, progress=False) if not isinstance(item, Exception)]

    def stream(
        self,
        images: Iterable[ImageLike],
        *,
        progress: bool = True,
        total: int | None = None,
        ahead: int = 2,
        errors: str = "raise",
    ) -> Iterator[Prediction | Exception]:
        """Yield the predictions of any number of images, in order, as :meth:`fastmask.Predictor.stream` does."""
        from tqdm import tqdm

        check_at_least("ahead", ahead, 0)
        check_choice("errors", errors, ("raise", "yield"))
        if total is None and isinstance(images, Sized):
            total = len(images)
        chunks = prefetch_batches(images, self.batch, lambda _: 0, ahead, False, channels=self.session.channels)
        with (
            tqdm(total=total, unit="img", disable=not progress) as bar,
            contextlib.closing(chunks),
        ):
            for chunk in chunks:
                for item in [chunk] if isinstance(chunk, Exception) else self._predict(chunk):
                    if isinstance(item, Exception) and errors == "raise":
                        raise item
                    bar.update()
                    yield item

    def _predict(self, images: list[Tensor]) -> Iterator[Prediction | Exception]:
        try:
            inputs, sizes = self.session.preprocess(images)
            found = {name: torch.from_numpy(values) for name, values in self.session(inputs, sizes).items()}
        except ValueError as error:
            if len(images) == 1:
                yield error
            else:  # those that can be predicted alone
                for image in images:
                    yield from self._predict([image])
            return
        for i, image in enumerate(images):
            count = int(found["count"][i])
            kept = found["scores"][i, :count] > self.score
            boxes, labels, scores = (found[name][i, :count][kept] for name in ("boxes", "labels", "scores"))
            ratios = torch.tensor(image.shape[1:]) / torch.from_numpy(sizes[i])
            boxes = boxes * ratios.flip(0).repeat(2).to(boxes.dtype)
            prediction = Prediction(boxes=boxes, labels=labels, scores=scores)
            if "keypoints" in found:
                points, values = (found[name][i, :count][kept].float() for name in ("keypoints", "keypoints_scores"))
                prediction["keypoints"] = points * torch.cat((ratios.flip(0).to(points), points.new_ones(1)))
                prediction["keypoints_scores"] = values
            if "masks" in found:
                size = (image.shape[1], image.shape[2])
                prediction["masks"] = encode_masks(found["masks"][i, :count][kept], boxes, size)
            yield prediction
