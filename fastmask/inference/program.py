"""A model as one program of fixed shapes, from padded pixels to one packed answer; on CUDA, captured as a graph."""

import functools
import threading
import types
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from fastmask.kernels.fallback.stem import PIXEL
from fastmask.kernels.fallback.take import scale_boxes
from fastmask.kernels.rle import encode_masks_op
from fastmask.kernels.take import scale_boxes_op
from fastmask.models.detection._utils import runs_as_kernel
from fastmask.models.detection.generalized_rcnn import GeneralizedRCNN, first_rows
from fastmask.models.fused import StemConv2d
from fastmask.structures import Detections, Features

Made = TypeVar("Made")
Field = tuple[str, torch.Size, torch.dtype]


class Inputs(NamedTuple):
    """What a program reads, of fixed shapes and, where it is captured, at fixed addresses."""

    pixels: Tensor  # [B, 3, H, W] normalized, zeros beyond each image; see empty_pixels
    sizes: Tensor  # [B, 2] int64 (height, width) of each image in there
    originals: Tensor  # [B, 2] int64 (height, width) of each image before it was resized


class Packed(NamedTuple):
    """What a program gives: one tensor for the host, and what stays on the device."""

    data: Tensor  # uint8, the fields one after the other
    fields: list[Field]
    masks: Tensor | None  # [B, D, M, M] probabilities


class Looked(NamedTuple):
    """What the first part of a program gives to the second."""

    features: Features
    detections: Detections
    most: Tensor | None  # the largest number of detections in an image, where the host asks for it


class Program(nn.Module):
    """Padded images to boxes, labels and scores in pixels of the original images, with RLE or mask probabilities.

    Args:
        model: see :func:`fastmask.models.prepare.prepare_for_inference`.
        masks: "rle" encodes them, "soft" packs them, anything else leaves them on the device.
        threshold: of RLE.
        bytes_a_mask: of the buffer for RLE.
        trim: leave out rows that are padding; see :meth:`GeneralizedRCNN.infer`.
    """

    def __init__(
        self, model: GeneralizedRCNN, masks: str, threshold: float, bytes_a_mask: int, trim: bool = False
    ) -> None:
        super().__init__()
        self.model, self.masks, self.trim = model, masks, trim
        self.threshold, self.bytes_a_mask = threshold, bytes_a_mask
        self.elements_a_pixel = PIXEL if any(type(module) is StemConv2d for module in model.modules()) else 3

    def empty_pixels(self, batch: int, size: tuple[int, int], dtype: torch.dtype, device: torch.device | str) -> Tensor:
        """Zeros [batch, 3, *size], channels last, which lie as the model reads them fastest.

        Where its stem is our own, pixels lie four elements apart, so that two of a half type are 16 bytes.
        """
        pixels = torch.zeros(batch, self.elements_a_pixel, *size, dtype=dtype, device=device)
        return pixels.to(memory_format=torch.channels_last)[:, :3]

    def forward(self, inputs: Inputs) -> Packed:
        """Nothing waits for the device, and nothing depends on what is in the images."""
        return self.finish(inputs, self.look(inputs, counted=False))

    def look(self, inputs: Inputs, counted: bool = True) -> Looked:
        """As far as the boxes; with the largest number of detections if that is ``counted``."""
        features, detections = self.model.detect_boxes(inputs.pixels, inputs.sizes, trim=self.trim)
        return Looked(features, detections, detections.count.max() if counted else None)

    def finish(self, inputs: Inputs, looked: Looked, rows: int | None = None) -> Packed:
        """From there on, with the first ``rows`` detections of each image only."""
        found = looked.detections if rows is None else first_rows(looked.detections, rows)
        if self.model.roi_heads.has_mask():
            found = self.model.roi_heads.predict_masks(looked.features, found)
        return self.pack(inputs, found)

    def pack(self, inputs: Inputs, found: Detections) -> Packed:
        """The answer, in pixels of the original images, as one tensor."""
        scale = scale_boxes_op if runs_as_kernel(found.boxes) else scale_boxes
        boxes, sizes = scale(found.boxes, inputs.originals, inputs.sizes)
        out = {"count": found.count, "labels": found.labels, "boxes": boxes, "scores": found.scores}
        if found.masks is not None and self.masks == "rle":
            number = found.labels.numel()
            capacity = number * self.bytes_a_mask
            masks, corners = found.masks.flatten(0, 1), boxes.flatten(0, 1)
            buffer, offsets = encode_masks_op(masks, corners, sizes, capacity, self.threshold, False, False, 1)
            out = {"offsets": offsets} | out | {"rle": buffer}
        elif found.masks is not None and self.masks == "soft":
            out["masks"] = found.masks
        data = torch.cat([values.contiguous().flatten().view(torch.uint8) for values in out.values()])
        return Packed(data, [(name, values.shape, values.dtype) for name, values in out.items()], found.masks)


def unpacked(data: Tensor, fields: Sequence[Field]) -> dict[str, Tensor]:
    """The fields of a packed tensor; views of it."""
    out, start = {}, 0
    for name, shape, dtype in fields:
        end = start + shape.numel() * dtype.itemsize
        out[name] = data[start:end].view(dtype).view(shape)
        start = end
    return out


_capturing = threading.Lock()  # CUDA captures one graph at a time in a process


class Runner:
    """A program on one shape: captured as CUDA graphs where there are such, else simply called.

    Args:
        program, batch, size: images at once, and (height, width) of the padded pixels.
        dtype, device: of the pixels.
        pool: torch's handle of graph memory, shared by runners of which one runs at a time; None on other devices.
        stream: to capture on; None on devices without graphs.
        buckets: numbers of detections, ascending. The host then waits for the boxes, and masks are made for the
            smallest of these that holds all detections. None: for all rows, and the host waits for nothing.
        compile: by ``torch.compile`` first; see :func:`compiled`.
    """

    def __init__(
        self,
        program: Program,
        batch: int,
        size: tuple[int, int],
        dtype: torch.dtype,
        device: torch.device,
        pool: Any,
        stream: "torch.cuda.Stream | None",
        buckets: Sequence[int] | None = None,
        compile: bool = False,
    ) -> None:
        pixels = program.empty_pixels(batch, size, dtype, device)
        self._sizes = torch.tensor([[size] * batch] * 2, device=device)  # resized and original: one copy for both
        self._written: object = None  # what was copied there last
        self.inputs = Inputs(pixels, *self._sizes)
        self.buckets = buckets
        self._finish: dict[int, Callable[..., Packed]] = {}
        if compile:
            program.look(self.inputs)  # so that the anchors of this shape are there: they are tensors, not a program
        made = compiled if compile else _same
        if buckets is None:
            self._whole = captured(made(program.forward), pool, stream, self.inputs)
            return
        self._look = captured(made(program.look), pool, stream, self.inputs)
        looked = None if stream is None else self._look(self.inputs)  # the tensors that every replay writes to
        for rows in buckets:
            finish = made(functools.partial(program.finish, rows=rows))
            self._finish[rows] = captured(finish, pool, stream, self.inputs, looked)

    def write_sizes(self, sizes: Sequence[tuple[int, int]], originals: Sequence[tuple[int, int]]) -> None:
        """(height, width) of each image into the inputs, unless they are there; nobody waits for a device."""
        rest = [(1, 1)] * (len(self._sizes[0]) - len(sizes))  # of a batch that is not full
        both = [[*sizes, *rest], [*originals, *rest]]
        if both != self._written:
            self._written = None
            host = torch.tensor(both, pin_memory=self._sizes.is_cuda)
            self._sizes.copy_(host, non_blocking=True)
            self._written = both

    def run(self) -> Packed:
        """On what the inputs hold now. A captured program's answer is overwritten by the next run."""
        if self.buckets is None:
            return self._whole(self.inputs)
        looked = self._look(self.inputs)
        assert looked.most is not None
        most = int(looked.most)  # here the host waits
        rows = next(rows for rows in self.buckets if rows >= most)
        return self._finish[rows](self.inputs, looked)


def _same(function: Callable[..., Made]) -> Callable[..., Made]:
    return function


def compiled(function: Callable[..., Made]) -> Callable[..., Made]:
    """A function as one graph of ``torch.compile``, for the shapes that it is first called with.

    PyTorch keeps what it compiled by code object, and counts it against a limit: each function gets a code object of
    its own, with which all of it goes. CUDA graphs are :func:`captured`'s business, not the compiler's.
    """

    def call(*args: Any) -> Made:
        return function(*args)

    own = types.FunctionType(call.__code__.replace(), call.__globals__, closure=call.__closure__)
    return torch.compile(own, fullgraph=True, dynamic=False, options={"triton.cudagraphs": False})


def captured(
    function: Callable[..., Made], pool: Any, stream: "torch.cuda.Stream | None", *args: Any
) -> Callable[..., Made]:
    """A function as a CUDA graph, to be called with the same tensors; without a stream, itself.

    It is run some times for what is chosen and compiled at first calls, then once for the record; on the stream given,
    as torch's default one belongs to the device that captured first.
    """
    if stream is None:
        return function
    with _capturing:
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(2):
                function(*args)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        # other threads may go on allocating memory meanwhile
        with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
            output = function(*args)

    def replay(*_: Any) -> Made:
        graph.replay()
        return output

    return replay
