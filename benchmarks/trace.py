"""Trace a frame's kernels without a GPU: the program runs on fake CUDA tensors, and its launches are recorded.

The launchers of fastmask's operations run too: Triton's launches are recorded instead of done, and so are torch's
operations around them.
"""

import contextlib
import os
import types
import warnings
from collections.abc import Iterator
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch import Tensor, nn
from torch._library.custom_ops import OPDEFS
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from triton.runtime.jit import JITFunction

from fastmask import models
from fastmask.benchmarks.expansions import SYNCS, TRITON, Kernel, expand, extent, tensors_of
from fastmask.benchmarks.stages import build_stages
from fastmask.inference.program import Inputs, Program
from fastmask.kernels.launch import KERNELS
from fastmask.models.prepare import Fuse, prepare_for_inference

DEVICE = "cuda"
BYTES_PER_MASK = 2048  # the Predictor's default


class Call(NamedTuple):
    """An operation of a program; of fastmask's with all that its launcher does."""

    operation: str  # "aten::add", "fastmask::nms_padded"
    kernels: tuple[Kernel, ...]
    amount: int = 0  # that the time of fastmask's operation scales with; see AMOUNTS


# by operation, from its arguments; operations with a known time have a row in kernels/predict
AMOUNTS: dict[str, Any] = {
    "fastmask::multilevel_roi_align": lambda a: a["rois"].shape[0] * a["pooled_height"] * a["pooled_width"],
    "fastmask::nms_padded": lambda a: a["boxes"].shape[0],
    "fastmask::encode_masks": lambda a: a["masks"].shape[0],
    "fastmask::class_masks": lambda a: a["hidden"].shape[0],
    "fastmask::decode_keypoints": lambda a: a["heatmaps"].shape[0],
}

PROPERTIES = types.SimpleNamespace(shared_memory_per_block_optin=232_448)  # an H100's
JOINED = ("aten::cudnn_convolution_relu", "aten::cudnn_convolution_add_relu")


class Trace(TorchDispatchMode):
    """Records the kernels of all operations on fake tensors."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: list[Call] = []
        self._own: list[Kernel] | None = None  # of the launcher that is running

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = func._schema.name, kwargs or {}
        if name.removeprefix("aten::") in SYNCS:
            raise ValueError(f"operations must not synchronize with the host, got {name}")
        launcher = KERNELS.get(name) or (OPDEFS[name]._backend_fns.get(DEVICE) if name in OPDEFS else None)
        if launcher is not None and self._own is None:
            return self._trace_launch(name, func, launcher, args, kwargs)
        out = _convolve(func, args) if name in JOINED else func(*args, **kwargs)
        if "convolution" in name:
            out = _as_cudnn(args, out)
        kernels = expand(func, [*args, *kwargs.values()], out)
        if self._own is not None:
            self._own += kernels
        elif kernels:
            self.calls.append(Call(name, tuple(kernels)))
        return out

    def _trace_launch(self, name: str, func: Any, launcher: Any, args: Any, kwargs: Any) -> Any:
        self._own = []
        try:
            with self:
                out = launcher(*args, **kwargs)
        finally:
            kernels, self._own = self._own, None
        if name not in AMOUNTS:
            kernels = self._with_flops(name, kernels, args, kwargs)
        arguments = _bind_arguments(func, args, kwargs)
        amount = AMOUNTS[name](arguments) if name in AMOUNTS else 0
        presorted = ", presorted" if arguments.get("presorted") else ""
        self.calls.append(Call(name + presorted, tuple(kernels), amount))
        return out

    def _with_flops(self, name: str, kernels: list[Kernel], args: Any, kwargs: Any) -> list[Kernel]:
        """Put the FLOPs of the operation's fallback into the first Triton kernel."""
        first = next((number for number, kernel in enumerate(kernels) if kernel.kind == TRITON), None)
        if first is None:
            return kernels
        inner = Trace()
        with contextlib.suppress(Exception), inner:  # a fallback in NumPy has no products
            OPDEFS[name]._init_fn(*args, **kwargs)
        flops = sum(kernel.flops for call in inner.calls for kernel in call.kernels)
        return [*kernels[:first], kernels[first]._replace(flops=flops), *kernels[first + 1 :]]

    @contextlib.contextmanager
    def tracing(self) -> Iterator[None]:
        """Record what runs in this context."""

        def launch(kernel: Any, *args: Any, **kwargs: Any) -> None:
            assert self._own is not None, f"{kernel.__name__} must be launched by an operation of fastmask"
            tensors = {id(tensor): tensor for tensor in tensors_of([args, kwargs])}
            self._own.append(Kernel(kernel.__name__, TRITON, sum(map(extent, tensors.values()))))

        with self, mock.patch.object(JITFunction, "run", launch):
            yield


def _convolve(func: Any, args: Any) -> Any:
    """Outputs of cuDNN's fused convolutions, of which PyTorch has no fakes."""
    arguments = _bind_arguments(func, args, {})
    sides = (arguments[name] for name in ("stride", "padding", "dilation"))
    return torch.ops.aten.convolution.default(
        arguments["self"], arguments["weight"], arguments["bias"], *sides, False, [0, 0], arguments["groups"]
    )


def _as_cudnn(args: Any, out: Any) -> Any:
    """A convolution's output is channels-last where its input or weight is; the fake one is that only on a GPU."""
    if out.ndim != 4:
        return out
    last = torch.channels_last
    dense = any(tensor.is_contiguous(memory_format=last) and not tensor.is_contiguous() for tensor in args[:2])
    return out.contiguous(memory_format=last) if dense else out


def _bind_arguments(func: Any, args: Any, kwargs: Any) -> dict[str, Any]:
    """An operation's arguments by name."""
    names = (argument.name for argument in func._schema.arguments)
    return {**dict(zip(names, args, strict=False)), **kwargs}


@contextlib.contextmanager
def fake_cuda() -> Iterator[FakeTensorMode]:
    """Tensors on the device "cuda" are fake, and no GPU is needed."""
    with (
        FakeTensorMode(allow_non_fake_inputs=True) as mode,
        mock.patch("torch.cuda.current_device", return_value=0),  # of fake tensors
        mock.patch("torch.cuda.get_device_properties", return_value=PROPERTIES),
        warnings.catch_warnings(action="ignore", category=UserWarning),  # of launchers that read a fake's address
        mock.patch.dict(os.environ, FASTMASK_TUNING="off"),
        torch.no_grad(),
    ):
        yield mode


def empty_weights(model: nn.Module) -> None:
    """Replace a model's weights by fake CUDA tensors."""
    for module in model.modules():
        for name, values in module._parameters.items():
            if values is not None:
                module._parameters[name] = nn.Parameter(_like(values), False)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = _like(buffer)


def _like(values: Tensor) -> Tensor:
    return torch.empty_strided(values.shape, values.stride(), dtype=values.dtype, device=DEVICE)


def trace(
    batch: int, dtype: torch.dtype, size: tuple[int, int], fuse: Fuse = "kernel", model: Any = None
) -> dict[str, list[Call]]:
    """Calls of each stage of benchmarks/stages.py for a batch of images of (height, width), RLE out.

    Args:
        model: None for R50-FPN with 91 classes and a hundred detections.
    """
    if model is None:
        model = models.get_model("maskrcnn_resnet50_fpn", weights=None, weights_backbone=None).eval()
    program = Program(prepare_for_inference(model, dtype, fuse), "rle", 0.5, BYTES_PER_MASK)
    calls: dict[str, list[Call]] = {}
    with fake_cuda():
        empty_weights(program)
        pixels = program.empty_pixels(batch, size, dtype, DEVICE)
        sizes = torch.empty(batch, 2, dtype=torch.int64, device=DEVICE)
        inputs = Inputs(pixels, sizes, sizes.clone())
        program(inputs)  # fills caches by shape
        for name, stage in build_stages(program, inputs, {}).items():
            mode = Trace()
            with mode.tracing():
                stage()
            calls[name] = mode.calls
    return calls
