"""Predictor: a model made ready once, for pictures of any kind and size, as fast as the device allows."""

import collections
import contextlib
import itertools
import math
import os
import threading
from collections.abc import Iterable, Iterator, Sequence, Sized
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from fastmask.feed import Picture, batches
from fastmask.models._presets import to_float
from fastmask.models.detection.generalized_rcnn import GeneralizedRCNN
from fastmask.models.detection.transform import GeneralizedRCNNTransform
from fastmask.models.prepare import KnownAnchors, prepared
from fastmask.ops._utils import check_at_least, check_choice, check_pair
from fastmask.ops.masks import encode_masks, paste_masks, paste_masks_in_image
from fastmask.program import Field, Program, Runner, unpacked

MASKS = ("rle", "bool", "packed", "soft", "float")
BYTES_A_MASK = 2048  # of RLE; a batch that needs more is encoded once more, outside the program


class Pending(NamedTuple):
    """A batch that has been given to the device."""

    data: Tensor  # uint8 on the host, once ``done``
    fields: list[Field]
    masks: Tensor | None  # [B, D, M, M] on the device, where they are still needed
    originals: list[tuple[int, int]]
    done: "torch.cuda.Event | None"


class Predictor:
    """What a model finds in pictures.

    The model is copied and prepared once: norms folded, channels last, ``dtype``. Pictures are resized, normalised and
    padded on its device; then, on CUDA, one graph replay does everything up to boxes and masks, and one copy brings the
    answer to the host. On other devices the same program is called.

    Args:
        model: any of ``fastmask.models.detection``; stays as it is.
        size: (height, width) that pictures are padded to, or, for those that stand, that turned; a picture is resized
            as the model would and, where that is larger, into it. "exact" pads as the model does, which captures a
            graph for each size.
        batch: pictures at once, fewer where standing ones follow lying ones; with "exact", padded together, as the
            model pads a list of that many.
        dtype: of weights and maps; boxes, scores and masks are float32 at least. "auto": bfloat16 on CUDA, else the
            model's own.
        masks: "rle": COCO's, as :func:`fastmask.ops.encode_masks`; "bool" or "packed": as
            :func:`fastmask.ops.paste_masks`; "float": torchvision's pasted probabilities [n, 1, h, w]; "soft":
            probabilities [n, 1, 28, 28] over the boxes.
        threshold: what counts as mask is above it.
        graphs: captured shapes that are kept; beyond it, the least recently used one is dropped.

    Raises:
        ValueError: an argument does not fit, or a weight is NaN or infinite.

    Safe to use from several threads: one lock, which they take in turns. While a new shape is captured, a
    ``torch.cuda.synchronize()`` of another thread breaks the capture, as CUDA has it.
    """

    def __init__(
        self,
        model: GeneralizedRCNN,
        size: tuple[int, int] | Literal["exact"] = (800, 1344),
        batch: int = 1,
        dtype: torch.dtype | Literal["auto"] = "auto",
        masks: str = "rle",
        *,
        threshold: float = 0.5,
        graphs: int = 8,
    ) -> None:
        check_choice("masks", masks, MASKS)
        for name, number in (("batch", batch), ("graphs", graphs)):
            if not isinstance(number, int):
                raise ValueError(f"{name} must be an int, got {number!r}")
            check_at_least(name, number, 1)
        if not isinstance(model, GeneralizedRCNN):
            kind = type(model).__name__
            raise ValueError(f"model must be one of fastmask.models.detection, not compiled or wrapped, got {kind}")
        if type(model.transform) is not GeneralizedRCNNTransform:
            raise ValueError(f"model.transform must be GeneralizedRCNNTransform, got {type(model.transform).__name__}")
        own = next(model.parameters())
        self.device = own.device
        if dtype == "auto":
            dtype = torch.bfloat16 if self.device.type == "cuda" else own.dtype
        if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
            raise ValueError(f"dtype must be 'auto' or a floating torch.dtype, got {dtype!r}")
        if size != "exact" and (isinstance(size, str) or not isinstance(size, Sequence)):
            raise ValueError(f"size must be (height, width) or 'exact', got {size!r}")
        self.size = size if size == "exact" else self._rounded(check_pair("size", size, 1), model)
        self.batch, self.dtype, self.masks, self.threshold, self.graphs = batch, dtype, masks, threshold, graphs
        ready = prepared(model, dtype)
        self.transform = ready.transform
        assert isinstance(ready.rpn.anchor_generator, KnownAnchors)
        self.anchors: KnownAnchors = ready.rpn.anchor_generator
        self._mean, self._std = (
            torch.tensor(values, device=self.device)[:, None, None]
            for values in (self.transform.image_mean, self.transform.image_std)
        )
        self.program = Program(ready, masks, threshold, BYTES_A_MASK, trim=self.device.type == "cpu")
        self._runners: collections.OrderedDict[tuple[int, int], Runner] = collections.OrderedDict()
        on_cuda = self.device.type == "cuda"
        self._capture = torch.cuda.Stream(self.device) if on_cuda else None
        self._uploads = torch.cuda.Stream(self.device) if on_cuda else None
        self._pool: Any = None
        self._last: torch.cuda.Event | None = None  # of the batch launched last
        self._lock = threading.Lock()

    @staticmethod
    def _rounded(size: tuple[int, int], model: GeneralizedRCNN) -> tuple[int, int]:
        """As the model pads."""
        step = model.transform.size_divisible
        return math.ceil(size[0] / step) * step, math.ceil(size[1] / step) * step

    def __call__(self, images: Sequence[Picture]) -> list[dict[str, Any]]:
        """Find what is in pictures.

        Args:
            images: of any sizes, each one a path, a PIL image, or a tensor or array [3, h, w] or [h, w, 3], uint8 or
                float in [0, 1]. (Of [3, h, 3], a tensor is taken for the former, an array for the latter.)

        Returns:
            For each one, in order, boxes [n, 4] in its pixels, labels [n] and scores [n], best first, on the host, and
            masks: those that are pasted on the model's device, others on the host.

        Raises:
            ValueError: a picture is broken, has no pixels, or is of no such shape.
            RuntimeError: it is too large for the device's memory.
        """
        return list(self.stream(images, progress=False))

    def stream(
        self, images: Iterable[Picture], *, progress: bool = True, total: int | None = None, ahead: int = 2
    ) -> Iterator[dict[str, Any]]:
        """As :meth:`__call__`, for any number of pictures: answers come in order, one by one.

        While the device works on a batch, the next one is read, in threads, and put behind it.

        Args:
            images: their number need not be known.
            progress: show a bar.
            total: of the bar, where ``images`` has no length.
            ahead: batches that are asked for before they are needed. With 0 a picture's answer is given before the
                next one is asked for, as a camera wants it.
        """
        if isinstance(images, str | os.PathLike | Tensor | np.ndarray | Image.Image):
            raise ValueError(f"images must be a list of pictures, got one {type(images).__name__}")
        check_at_least("ahead", ahead, 0)
        if total is None and isinstance(images, Sized):
            total = len(images)
        return self._stream(images, progress, total, ahead)

    def _stream(
        self, images: Iterable[Picture], progress: bool, total: int | None, ahead: int
    ) -> Iterator[dict[str, Any]]:
        from tqdm import tqdm

        pending: Pending | None = None
        pin = self.device.type == "cuda"
        with (
            tqdm(total=total, unit="img", disable=not progress) as bar,
            contextlib.closing(batches(images, self.batch, self._bucket, ahead, pin)) as chunks,
        ):
            while True:
                launched, failure = None, None
                try:
                    chunk = next(chunks, None)
                    launched = None if chunk is None else self._launch(chunk)
                except Exception as error:  # after the answers that are there
                    failure = error
                waiting = [pending] if ahead else [pending, launched]
                for one in waiting:
                    for result in () if one is None else self._finish(one):
                        bar.update()
                        yield result
                if failure is not None:
                    raise failure
                pending = launched if ahead else None
                if launched is None:
                    return

    @torch.inference_mode()
    def _launch(self, chunk: list[Tensor]) -> Pending:
        """Put a batch on the device and start the program; its answer is on its way to the host."""
        originals = [(image.shape[1], image.shape[2]) for image in chunk]
        with self._lock, _on(self.device), torch.autocast(self.device.type, enabled=False):
            shapes, size = self._plan(originals)
            if self._last is not None:  # launched on another thread's stream, it may still be reading its answer
                torch.cuda.current_stream().wait_event(self._last)
            try:
                runner = self._runner(size)
                runner.inputs.pixels.zero_()
                for i, (image, shape) in enumerate(zip(chunk, shapes, strict=True)):
                    picture = (to_float(self._uploaded(image)) - self._mean) / self._std
                    resized = F.interpolate(picture[None], size=shape, mode="bilinear", align_corners=False)[0]
                    runner.inputs.pixels[i, :, : shape[0], : shape[1]] = resized
                rest = [(1, 1)] * (self.batch - len(chunk))  # of a batch that is not full
                runner.inputs.sizes.copy_(self._pinned(torch.tensor(shapes + rest)), non_blocking=True)
                runner.inputs.originals.copy_(self._pinned(torch.tensor(originals + rest)), non_blocking=True)
                packed = runner.run()
            except torch.OutOfMemoryError as error:
                wanted = 3 * self.batch * size[0] * size[1] * self.dtype.itemsize
                raise RuntimeError(
                    f"images of {originals} need more memory than there is: the padded pixels {size} alone are "
                    f"{wanted} bytes ({error})"
                ) from error
            masks = None if self.masks == "soft" else packed.masks
            if self.device.type != "cuda":
                return Pending(packed.data, packed.fields, masks, originals, None)
            data = torch.empty(packed.data.shape, dtype=torch.uint8, pin_memory=True)
            data.copy_(packed.data, non_blocking=True)
            masks = None if masks is None else masks.clone()
            done = self._last = torch.cuda.Event()
            done.record()
            return Pending(data, packed.fields, masks, originals, done)

    def _pinned(self, tensor: Tensor) -> Tensor:
        return tensor.pin_memory() if self.device.type == "cuda" else tensor

    def _uploaded(self, image: Tensor) -> Tensor:
        """On the device, without waiting for what it is doing: over a stream of its own."""
        if self._uploads is None or image.device == self.device:
            return image.to(self.device)
        with torch.cuda.stream(self._uploads):
            uploaded = image.to(self.device, non_blocking=True)
        torch.cuda.current_stream().wait_stream(self._uploads)
        uploaded.record_stream(torch.cuda.current_stream())
        return uploaded

    def _plan(self, originals: list[tuple[int, int]]) -> tuple[list[tuple[int, int]], tuple[int, int]]:
        """The sizes to resize a batch's pictures to, and the padded one that all of them fit."""
        height, width = self._bucket(originals[0]) or (math.inf, math.inf)
        shapes = []
        for before in originals:
            if self.transform.fixed_size is not None:
                shape = self.transform.fixed_size[1], self.transform.fixed_size[0]
            else:
                scale = min(self.transform.min_size[-1] / min(before), self.transform.max_size / max(before))
                scale = min(scale, height / before[0], width / before[1])
                shape = math.floor(before[0] * scale), math.floor(before[1] * scale)
            if min(shape) < 1 or shape[0] > height or shape[1] > width:
                raise ValueError(f"images of {before} pixels cannot be resized to {shape} in {(height, width)}")
            shapes.append(shape)
        step = self.transform.size_divisible
        padded = [math.ceil(max(shape[axis] for shape in shapes) / step) * step for axis in (0, 1)]
        return shapes, (padded[0], padded[1]) if self.size == "exact" else (int(height), int(width))

    def _bucket(self, original: tuple[int, int]) -> tuple[int, int] | None:
        """The padded size that a picture of that size gets, turned if it stands; None: any."""
        if isinstance(self.size, str):
            return None
        turned = (original[0] > original[1]) != (self.size[0] > self.size[1]) and original[0] != original[1]
        return self.size[::-1] if turned and self.transform.fixed_size is None else self.size

    def _runner(self, size: tuple[int, int]) -> Runner:
        """The program on a padded size; made when it is first asked for."""
        if size not in self._runners:
            while len(self._runners) >= self.graphs:
                if self._last is not None:
                    self._last.synchronize()  # what is dropped may be running
                dropped, _ = self._runners.popitem(last=False)
                self.anchors.forget(dropped)
            if not self._runners and self._capture is not None:
                self._pool = torch.cuda.graph_pool_handle()  # one whose last graph is gone is gone too
            runner = Runner(self.program, self.batch, size, self.dtype, self.device, self._pool, self._capture)
            self._runners[size] = runner
        self._runners.move_to_end(size)
        return self._runners[size]

    def _finish(self, pending: Pending) -> Iterator[dict[str, Any]]:
        """A batch's answers, once its data is here."""
        if pending.done is not None:
            pending.done.synchronize()
            if pending.masks is not None:
                pending.masks.record_stream(torch.cuda.current_stream(self.device))
        found = unpacked(pending.data, pending.fields)
        for i, original in enumerate(pending.originals):
            count = int(found["count"][i])
            result: dict[str, Any] = {name: found[name][i, :count].clone() for name in ("boxes", "labels", "scores")}
            if self.masks == "soft" and "masks" in found:
                result["masks"] = found["masks"][i, :count, None].clone()
            elif pending.masks is not None:
                result["masks"] = self._masks(found, i, count, pending.masks[i, :count], result["boxes"], original)
            yield result

    def _masks(
        self, found: dict[str, Tensor], image: int, count: int, masks: Tensor, boxes: Tensor, original: tuple[int, int]
    ) -> Any:
        """One picture's masks from their probabilities, or from the RLE that came with the answer."""
        boxes = boxes.to(masks.device)
        if self.masks == "float":
            return paste_masks_in_image(masks[:, None], boxes, original)
        if self.masks != "rle":
            return paste_masks(masks, boxes, original, output=self.masks, threshold=self.threshold)
        first = image * found["labels"].shape[1]
        ends = found["offsets"][first : first + count + 1].tolist()
        if ends[-1] > len(found["rle"]):  # it did not fit the program's buffer
            return encode_masks(masks, boxes, original, threshold=self.threshold)
        text = found["rle"].numpy()
        pairs = itertools.pairwise(ends)
        return [{"size": list(original), "counts": text[start:end].tobytes()} for start, end in pairs]


def _on(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()
