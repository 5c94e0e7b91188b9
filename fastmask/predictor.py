"""Predictor: a model made ready once, for pictures of any kind and size, as fast as the device allows."""

import collections
import contextlib
import itertools
import math
import os
import threading
from collections.abc import Iterable, Iterator, Sequence, Sized
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from fastmask.images import read_image
from fastmask.models._presets import to_float
from fastmask.models.detection.generalized_rcnn import GeneralizedRCNN
from fastmask.models.prepare import prepared
from fastmask.ops._utils import check_at_least, check_choice, check_pair
from fastmask.ops.masks import encode_masks, paste_masks, paste_masks_in_image
from fastmask.program import Field, Program, Runner, unpacked

Picture = Tensor | NDArray[Any] | Image.Image | str | os.PathLike[str]
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

    Safe to use from several threads: one lock, which they take in turns.
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
        check_at_least("batch", batch, 1)
        check_at_least("graphs", graphs, 1)
        if not isinstance(model, GeneralizedRCNN):
            raise ValueError(f"model must be one of fastmask.models.detection, got {type(model).__name__}")
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
        self.program = Program(ready, masks, threshold, BYTES_A_MASK, trim=self.device.type == "cpu")
        self._runners: collections.OrderedDict[tuple[int, int], Runner] = collections.OrderedDict()
        self._pool = torch.cuda.graph_pool_handle() if self.device.type == "cuda" else None
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
        if isinstance(images, str | os.PathLike | Tensor | np.ndarray | Image.Image):
            raise ValueError(f"images must be a list of pictures, got one {type(images).__name__}")
        return list(self.stream(images, progress=False))

    def stream(
        self, images: Iterable[Picture], *, progress: bool = True, total: int | None = None
    ) -> Iterator[dict[str, Any]]:
        """As :meth:`__call__`, for any number of pictures: answers come in order, one by one.

        Pictures are read ahead in threads; while the device works on a batch, the next one is uploaded behind it.

        Args:
            images: their number need not be known.
            progress: show a bar.
            total: of the bar, where ``images`` has no length.
        """
        from tqdm import tqdm

        if total is None and isinstance(images, Sized):
            total = len(images)
        bar = tqdm(total=total, unit="img", disable=not progress)
        pending: Pending | None = None
        with bar, ThreadPoolExecutor(max_workers=4) as threads:
            for chunk in self._read_ahead(images, threads):
                launched = self._launch(chunk)
                for result in () if pending is None else self._finish(pending):
                    bar.update()
                    yield result
                pending = launched
            for result in () if pending is None else self._finish(pending):
                bar.update()
                yield result

    def _read_ahead(self, images: Iterable[Picture], threads: ThreadPoolExecutor) -> Iterator[list[Tensor]]:
        """Batches of pictures [3, h, w], all standing or all lying; two batches are being read at any time."""
        submitted = (threads.submit(to_planes, image, number) for number, image in enumerate(images))
        queue = collections.deque(itertools.islice(submitted, 2 * self.batch))
        chunk: list[Tensor] = []
        while queue:
            picture = queue.popleft().result()
            queue.extend(itertools.islice(submitted, 1))
            turned = (
                chunk and self.size != "exact" and self._stands(picture.shape[1:]) != self._stands(chunk[0].shape[1:])
            )
            if turned or len(chunk) == self.batch:
                yield chunk
                chunk = []
            chunk.append(picture)
        if chunk:
            yield chunk

    @torch.inference_mode()
    def _launch(self, chunk: list[Tensor]) -> Pending:
        """Put a batch on the device and start the program; its answer is on its way to the host."""
        originals = [(image.shape[1], image.shape[2]) for image in chunk]
        with self._lock, _on(self.device):
            shapes, size = self._plan(originals)
            if self._last is not None:  # launched on another thread's stream, it may still be reading its answer
                torch.cuda.current_stream().wait_event(self._last)
            try:
                runner = self._runner(size)
                runner.inputs.pixels.zero_()
                for i, (image, shape) in enumerate(zip(chunk, shapes, strict=True)):
                    picture = self.transform.normalize(to_float(image.to(self.device, non_blocking=True)))
                    resized = F.interpolate(picture[None], size=shape, mode="bilinear", align_corners=False)[0]
                    runner.inputs.pixels[i, :, : shape[0], : shape[1]] = resized
                rest = [(1, 1)] * (self.batch - len(chunk))  # of a batch that is not full
                runner.inputs.sizes.copy_(torch.tensor(shapes + rest), non_blocking=True)
                runner.inputs.originals.copy_(torch.tensor(originals + rest), non_blocking=True)
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

    def _plan(self, originals: list[tuple[int, int]]) -> tuple[list[tuple[int, int]], tuple[int, int]]:
        """The sizes to resize a batch's pictures to, and the padded one that all of them fit."""
        height, width = (math.inf, math.inf) if self.size == "exact" else self._bucket(originals[0])
        shapes = []
        for before in originals:
            if self.transform.fixed_size is not None:
                shape = self.transform.fixed_size[1], self.transform.fixed_size[0]
            else:
                scale = min(self.transform.min_size[-1] / min(before), self.transform.max_size / max(before))
                scale = min(scale, height / before[0], width / before[1])
                shape = math.floor(before[0] * scale), math.floor(before[1] * scale)
            if min(shape) < 1 or shape[0] > height or shape[1] > width:
                raise ValueError(f"images of {before} pixels cannot be resized to {shape} in {self.size}")
            shapes.append(shape)
        step = self.transform.size_divisible
        padded = [math.ceil(max(shape[axis] for shape in shapes) / step) * step for axis in (0, 1)]
        return shapes, (padded[0], padded[1]) if self.size == "exact" else (int(height), int(width))

    def _bucket(self, original: tuple[int, int]) -> tuple[int, int]:
        """The size, turned if the picture stands and the size lies or the other way round."""
        assert not isinstance(self.size, str)
        return self.size[::-1] if self._stands(original) != self._stands(self.size) else self.size

    def _stands(self, size: Sequence[int]) -> bool:
        return size[0] > size[1]

    def _runner(self, size: tuple[int, int]) -> Runner:
        """The program on a padded size; made when it is first asked for."""
        if size not in self._runners:
            while len(self._runners) >= self.graphs:
                self._runners.popitem(last=False)
            self._runners[size] = Runner(self.program, self.batch, size, self.dtype, self.device, self._pool)
        self._runners.move_to_end(size)
        return self._runners[size]

    def _finish(self, pending: Pending) -> Iterator[dict[str, Any]]:
        """A batch's answers, once its data is here."""
        if pending.done is not None:
            pending.done.synchronize()
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


def to_planes(image: Picture, number: int) -> Tensor:
    """A picture of any kind -> [3, h, w], uint8 or floating."""
    if isinstance(image, str | os.PathLike):
        image = read_image(image)
    if isinstance(image, Image.Image):
        image = np.array(image.convert("RGB"))
    rows_first = isinstance(image, np.ndarray)
    planes = torch.from_numpy(np.ascontiguousarray(image)) if isinstance(image, np.ndarray) else image
    if not isinstance(planes, Tensor):
        raise ValueError(
            f"images[{number}] must be a path, a PIL image, a tensor or an array, got {type(image).__name__}"
        )
    if planes.ndim != 3 or 3 not in (planes.shape[0], planes.shape[2]):
        raise ValueError(f"images[{number}] must be [3, H, W] or [H, W, 3], got {tuple(planes.shape)}")
    if planes.dtype != torch.uint8 and not planes.is_floating_point():
        raise ValueError(f"images[{number}] must be uint8 or floating point, got {planes.dtype}")
    if planes.shape[2] == 3 and (rows_first or planes.shape[0] != 3):
        planes = planes.permute(2, 0, 1)
    if planes.numel() == 0:
        raise ValueError(f"images[{number}] must have pixels, got {tuple(planes.shape)}")
    return planes


def _on(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()
