"""A model as one program of fixed shapes, from padded pixels to packed detections; on CUDA, captured as a graph."""

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
from fastmask.models.detection._channels import count_channels
from fastmask.models.detection._utils import runs_as_kernel
from fastmask.models.detection.generalized_rcnn import GeneralizedRCNN, first_rows
from fastmask.models.fused import StemConv2d
from fastmask.structures import Detections, Features

Output = TypeVar("Output")
Field = tuple[str, torch.Size, torch.dtype]


class Inputs(NamedTuple):
    """Inputs of a program: fixed shapes and, where it is captured, fixed addresses."""

    pixels: Tensor  # [B, C, H, W] normalized, zeros beyond each image; see empty_pixels
    sizes: Tensor  # [B, 2] int64 (height, width) of each image in there
    originals: Tensor  # [B, 2] int64 (height, width) of each image before it was resized


class Packed(NamedTuple):
    """Outputs of a program: one tensor for the host, and what stays on the device."""

    data: Tensor  # uint8, the fields one after the other
    fields: list[Field]
    masks: Tensor | None  # [B, D, M, M] probabilities


class BoxOutputs(NamedTuple):
    """Outputs of a program's first part, inputs of its second: what masks and keypoints are predicted from."""

    features: Features
    detections: Detections
    max_count: Tensor | None  # the largest number of detections in an image, where the host asks for it


class Program(nn.Module):
    """Padded images to boxes, labels, scores and keypoints in pixels of the original images, with RLE or mask
    probabilities.

    Args:
        model: see :func:`fastmask.models.prepare.prepare_for_inference`.
        masks: "rle" encodes them, "soft" packs them, anything else leaves them on the device.
        threshold: probability above which a pixel belongs to a mask, for RLE.
        bytes_per_mask: size of the buffer for RLE.
        trim: leave out rows that are padding; see :meth:`GeneralizedRCNN.infer`.
    """

    def __init__(
        self, model: GeneralizedRCNN, masks: str, threshold: float, bytes_per_mask: int, trim: bool = False
    ) -> None:
        super().__init__()
        self.model, self.masks, self.trim = model, masks, trim
        self.threshold, self.bytes_per_mask = threshold, bytes_per_mask
        self.channels = count_channels(model)
        gaps = any(type(module) is StemConv2d for module in model.modules())
        self.pixel_stride = PIXEL if gaps else self.channels

    def empty_pixels(self, batch: int, size: tuple[int, int], dtype: torch.dtype, device: torch.device | str) -> Tensor:
        """Allocate zeros [batch, C, *size], channels last, laid out as the model reads them fastest.

        For the stem kernel pixels have a stride of four elements, so that two of a half type are 16 bytes.
        """
        pixels = torch.zeros(batch, self.pixel_stride, *size, dtype=dtype, device=device)
        return pixels.to(memory_format=torch.channels_last)[:, : self.channels]

    def forward(self, inputs: Inputs) -> Packed:
        """Run both parts: no host sync, and nothing depends on what is in the images."""
        return self.predict_masks(inputs, self.detect_boxes(inputs, counted=False))

    def detect_boxes(self, inputs: Inputs, counted: bool = True) -> BoxOutputs:
        """Run the first part, up to the boxes; ``counted`` adds the largest number of detections."""
        features, detections = self.model.detect_boxes(inputs.pixels, inputs.sizes, trim=self.trim)
        return BoxOutputs(features, detections, detections.count.max() if counted else None)

    def predict_masks(self, inputs: Inputs, outputs: BoxOutputs, rows: int | None = None) -> Packed:
        """Run the second part, on the first ``rows`` detections of each image."""
        detections = outputs.detections if rows is None else first_rows(outputs.detections, rows)
        size = inputs.pixels.shape[2], inputs.pixels.shape[3]
        return self.pack(inputs, self.model.roi_heads.complete(outputs.features, detections, size))

    def pack(self, inputs: Inputs, detections: Detections) -> Packed:
        """Pack detections, in pixels of the original images, into one tensor."""
        scale = scale_boxes_op if runs_as_kernel(detections.boxes) else scale_boxes
        boxes, sizes = scale(detections.boxes, inputs.originals, inputs.sizes)
        out = {"count": detections.count, "labels": detections.labels, "boxes": boxes, "scores": detections.scores}
        if detections.keypoints is not None and detections.keypoints_scores is not None:
            keypoints = scale_keypoints(detections.keypoints, inputs.originals, inputs.sizes)
            out |= {"keypoints": keypoints, "keypoints_scores": detections.keypoints_scores}
        if detections.masks is not None and self.masks == "rle":
            number = detections.labels.numel()
            capacity = number * self.bytes_per_mask
            masks, corners = detections.masks.flatten(0, 1), boxes.flatten(0, 1)
            buffer, offsets = encode_masks_op(masks, corners, sizes, capacity, self.threshold, False, False, 1)
            out = {"offsets": offsets} | out | {"rle": buffer}
        elif detections.masks is not None and self.masks == "soft":
            out["masks"] = detections.masks
        data = torch.cat([values.contiguous().flatten().view(torch.uint8) for values in out.values()])
        return Packed(data, [(name, values.shape, values.dtype) for name, values in out.items()], detections.masks)


def scale_keypoints(keypoints: Tensor, originals: Tensor, sizes: Tensor) -> Tensor:
    """Keypoints [B, D, K, 3] in pixels of resized images -> in those of the original ones, both of sizes [B, 2]."""
    ratios = originals.to(keypoints.dtype) / sizes.to(keypoints.dtype)
    return keypoints * torch.nn.functional.pad(ratios.flip(1), (0, 1), value=1.0)[:, None, None]


def split_fields(data: Tensor, fields: Sequence[Field]) -> dict[str, Tensor]:
    """Split a packed tensor into its fields, which are views of it."""
    out, start = {}, 0
    for name, shape, dtype in fields:
        end = start + shape.numel() * dtype.itemsize
        out[name] = data[start:end].view(dtype).view(shape)
        start = end
    return out


_capturing = threading.Lock()  # CUDA captures one graph at a time in a process


class Buffers:
    """Inputs of a program on one shape, at fixed addresses; arguments as :class:`Runner`."""

    def __init__(
        self, program: Program, batch: int, size: tuple[int, int], dtype: torch.dtype, device: torch.device
    ) -> None:
        pixels = program.empty_pixels(batch, size, dtype, device)
        self._sizes = torch.tensor([[size] * batch] * 2, device=device)  # resized and original: one copy for both
        self._written: object = None  # what was copied there last
        self.inputs = Inputs(pixels, *self._sizes)

    def write_sizes(self, sizes: Sequence[tuple[int, int]], originals: Sequence[tuple[int, int]]) -> None:
        """Write (height, width) of each image into the inputs, unless they are there; no host sync."""
        rest = [(1, 1)] * (len(self._sizes[0]) - len(sizes))  # of a batch that is not full
        both = [[*sizes, *rest], [*originals, *rest]]
        if both != self._written:
            self._written = None
            host = torch.tensor(both, pin_memory=self._sizes.is_cuda)
            self._sizes.copy_(host, non_blocking=True)
            self._written = both


class Runner(Buffers):
    """A program on one shape: captured as CUDA graphs on a GPU, called elsewhere.

    Args:
        program, batch, size: images at once, and (height, width) of the padded pixels.
        dtype, device: of the pixels.
        pool: torch's handle of graph memory, shared by runners of which one runs at a time; None on other devices.
        stream: to capture on; None on devices without graphs.
        buckets: numbers of detections, ascending. The host then waits for the boxes, and masks are predicted for the
            smallest bucket that holds all detections. None: for all rows, without a host sync.
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
        super().__init__(program, batch, size, dtype, device)
        self.buffers: list[Buffers] = [self]
        self.buckets = buckets
        self._second: dict[int, Callable[..., Packed]] = {}
        if compile:
            program.detect_boxes(
                self.inputs
            )  # so that the anchors of this shape are there: they are tensors, not a program
        build = compile_function if compile else _identity
        if buckets is None:
            self._whole = capture_graph(build(program.forward), pool, stream, self.inputs)
            return
        self._first = capture_graph(build(program.detect_boxes), pool, stream, self.inputs)
        outputs = None if stream is None else self._first(self.inputs)  # the tensors that every replay writes to
        for rows in buckets:
            second = build(functools.partial(program.predict_masks, rows=rows))
            self._second[rows] = capture_graph(second, pool, stream, self.inputs, outputs)

    def run(self) -> Packed:
        """Run the program on what the inputs hold now. The next run overwrites a captured program's outputs."""
        if self.buckets is None:
            return self._whole(self.inputs)
        outputs = self._first(self.inputs)
        assert outputs.max_count is not None
        max_count = int(outputs.max_count)  # the host sync
        rows = next(rows for rows in self.buckets if rows >= max_count)
        return self._second[rows](self.inputs, outputs)


def _identity(function: Callable[..., Output]) -> Callable[..., Output]:
    return function


def compile_function(function: Callable[..., Output]) -> Callable[..., Output]:
    """Compile a function as one graph of ``torch.compile``, for the shapes that it is first called with.

    PyTorch keeps what it compiled by code object, and counts it against a limit: each function gets a code object of
    its own, with which all of it goes. CUDA graphs are :func:`capture_graph`'s business, not the compiler's.
    """

    def call(*args: Any) -> Output:
        return function(*args)

    own = types.FunctionType(call.__code__.replace(), call.__globals__, closure=call.__closure__)
    return torch.compile(own, fullgraph=True, dynamic=False, options={"triton.cudagraphs": False})


def capture_graph(
    function: Callable[..., Output], pool: Any, stream: "torch.cuda.Stream | None", *args: Any
) -> Callable[..., Output]:
    """Capture a function as a CUDA graph, to be called with the same tensors; without a stream, return it as it is.

    It runs twice to warm up, for what first calls choose and compile, then once in the capture; on the stream given, as
    torch's default capture stream belongs to the device that captured first.
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

    def replay(*_: Any) -> Output:
        graph.replay()
        return output

    return replay
