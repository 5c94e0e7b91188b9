"""Running an exported ONNX file with OpenVINO."""

import contextlib
import functools
import os
import threading
from collections.abc import Iterator
from typing import Any

import torch

from fastmask.export.exported import Array, ExportedModel, format_load_error
from fastmask.export.module import INPUTS

HINTS = {torch.float32: "f32", torch.bfloat16: "bf16"}  # of what is computed in
HINT = "INFERENCE_PRECISION_HINT"


class OpenVINOSession(ExportedModel):
    """An ONNX file that :func:`fastmask.export.write_onnx` made, in OpenVINO on as many threads as PyTorch uses.

    Args:
        path: of the file.
        device: "auto" or "cpu"; another that OpenVINO lists, such as "gpu" with Intel's drivers.
        dtype: that is computed in, whatever the file's: float32, or bfloat16 where the processor has instructions for
            it (OpenVINO's own default there).

    Raises:
        ImportError: OpenVINO is not installed.
        ValueError: it is no such file, or OpenVINO has no such device, or no such dtype there.
    """

    runtime = "OpenVINO"

    def __init__(self, path: str | os.PathLike[str], device: str = "auto", dtype: torch.dtype = torch.float32) -> None:
        openvino, name = import_openvino(), os.fspath(path)
        core, where = open_core(), find_device(device)
        if dtype not in HINTS:
            raise ValueError(f"dtype must be one of {', '.join(map(str, HINTS))} in OpenVINO, got {dtype}")
        if dtype == torch.bfloat16 and core.get_property(where, HINT) != openvino.Type.bf16:  # would be emulated
            raise ValueError(f"dtype must be torch.float32, as this {where} has no bfloat16, got {dtype}")
        options: dict[str, Any] = {HINT: HINTS[dtype]}
        if where == "CPU":  # under torchrun, this rank's share; a pinned thread may share its core with other ranks'
            options |= {"INFERENCE_NUM_THREADS": torch.get_num_threads(), "ENABLE_CPU_PINNING": False}
        frontend = openvino.frontend.FrontEndManager().load_by_framework("onnx")
        with explain_errors(name):
            model = frontend.convert(frontend.load(name))
        key = ["framework"]  # where the frontend puts the metadata of ONNX
        super().__init__(name, model.get_rt_info(key).value if model.has_rt_info(key) else {})
        with explain_errors(name):
            self.compiled = core.compile_model(model, where, options)
        self.kind, self.dtype = where.lower(), dtype
        self._lock = threading.Lock()
        names = [value.names for value in self.compiled.inputs]  # an input has others, too, where it is cast at once
        if len(names) != len(INPUTS) or any(own not in each for own, each in zip(INPUTS, names, strict=True)):
            raise ValueError(f"{name} must take {' and '.join(INPUTS)}, got a file of other inputs")

    def __call__(self, images: Array, sizes: Array) -> dict[str, Array]:
        """See :meth:`ExportedModel.__call__`; threads take turns."""
        with self._lock, explain_errors(self.path):
            outputs = self.compiled(dict(zip(INPUTS, (images, sizes), strict=True)))
        return dict(zip(self.metadata["outputs"], outputs.values(), strict=True))


def import_openvino() -> Any:
    """Import the module; ImportError names the extra."""
    try:
        import openvino
        import openvino.frontend
    except ImportError as error:
        raise ImportError("OpenVINO is not installed: pip install 'fastmask-rcnn[openvino]'") from error
    return openvino


@functools.cache
def open_core() -> Any:
    """OpenVINO's core, one for the life of the process.

    Its CPU plugin gives the thread a signal stack of its own, and when it goes the one before. After two plugins that
    do not go in the opposite order of their coming an unmapped one would be left, and the next signal (SIGCHLD, which
    PyTorch's loaders handle) would end the process.
    """
    return import_openvino().Core()


def find_device(device: str) -> str:
    """OpenVINO's name of a device, such as CPU; ValueError if it lists none of that name."""
    names: list[str] = open_core().available_devices
    name = "CPU" if device == "auto" else device.upper()
    if name not in names:
        listed = ", ".join(map(str.lower, names))
        raise ValueError(f"device must be one that OpenVINO lists here ({listed}), got {device!r}")
    return name


@contextlib.contextmanager
def explain_errors(path: str) -> Iterator[None]:
    """OpenVINO's errors as a ValueError of one line: the reason stands below lines about its sources."""
    try:
        yield
    except Exception as error:  # of several kinds
        reason = str(error).strip().rpartition("\n")[2]
        raise ValueError(format_load_error(path, RuntimeError(reason))) from error
